//! Promise: what was embedded once is not paid for again: chunks of a changed document that did not change, and texts that
//! occur more than once. What was saved is told, and nobody gets another text's vector or suffers for another document.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use fake_api::{FakeApi, Fault};
use harness::flight::{SINGLY, chunks, counted, in_flight};
use harness::remote::{KEY, all_embedded, api};
use harness::repeats::{SMALL, contents, insert, reused_tokens, sent};
use harness::*;

/// A cluster whose workers remember vectors, as they do by themselves. Those of the other tests here do not, so what is not
/// sent again was in the target, or on its way.
fn remembering_cluster() -> &'static Cluster {
    static REMEMBERING: OnceLock<Cluster> = OnceLock::new();
    REMEMBERING.get_or_init(|| Cluster::start(&[("pg_ingest.vector_cache", "16MB")]))
}

/// A document of several chunks, and the same with another last sentence.
fn revisions() -> [String; 2] {
    let body = texts::long("harbour", 12);
    ["The end is near.", "The end is far."].map(|end| format!("{body}{end}"))
}

/// Embeds a document and changes its end; what was sent for each content.
fn change(db: &Database, api: &FakeApi) -> (BTreeSet<String>, Vec<String>) {
    let [old, new] = revisions();
    insert(db, "d", &old);
    all_embedded(db, "p", 1);
    let before = contents(db, "p");
    assert!(before.len() > 5, "{before:?}");
    sent(api);
    insert(db, "d", &new);
    all_embedded(db, "p", 1);
    (before, sent(api))
}

#[test]
fn a_changed_document_of_a_vecs_collection_pays_for_the_chunks_that_changed() {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("p", &api, &format!("layout => 'vecs', {SMALL}"));
    let [old, new] = revisions();
    insert(&db, "d", &old);
    insert(&db, "d#1", &new);
    db.settle();
    let before = sent(&api).len();
    assert!(before > 5, "{before}");
    insert(&db, "d", &new);
    db.settle();
    assert_eq!(sent(&api).len(), 1);
    assert!(db.one::<bool>(
        "SELECT array_agg(vec::text ORDER BY id) FILTER (WHERE metadata ->> 'doc_id' = 'd')
              = array_agg(vec::text ORDER BY id) FILTER (WHERE metadata ->> 'doc_id' = 'd#1') FROM vecs.p"
    ));
}

#[test]
fn a_changed_document_pays_for_the_chunks_that_changed() {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("p", &api, SMALL);
    let (before, sent_again) = change(&db, &api);
    let after = contents(&db, "p");
    let changed: Vec<&String> = after.difference(&before).collect();
    assert_eq!(sent_again.iter().collect::<Vec<_>>(), changed);
    assert_eq!(changed.len(), 1);
    // What was saved is told, and what is in the target is counted as ever.
    let kept: i64 = db.one(&format!(
        "SELECT sum(tokens)::bigint FROM ingest.p_chunks WHERE content <> {}",
        quoted(changed[0])
    ));
    assert_eq!(reused_tokens(&db), kept);
    assert!(db.one::<bool>("SELECT saved_usd > 0 AND saved_usd < cost_usd FROM ingest.progress"));
    counted(&db, "p");
    // All of it back, and nothing but what is new is sent.
    insert(&db, "d", &revisions()[0]);
    all_embedded(&db, "p", 1);
    assert_eq!(contents(&db, "p"), before);
    assert_eq!(sent(&api).len(), 1);
    assert_eq!(reused_tokens(&db), 2 * kept);
}

#[test]
fn a_document_split_in_another_way_keeps_the_chunks_that_are_still_cut_so() {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("p", &api, SMALL);
    insert(&db, "short", "One chunk in any case.");
    insert(&db, "long", &texts::long("garden", 12));
    all_embedded(&db, "p", 2);
    sent(&api);
    db.run("SELECT ingest.alter_pipeline('p', chunk_tokens => 50)");
    db.settle();
    all_embedded(&db, "p", 2);
    let sent = sent(&api);
    assert!(
        !sent.is_empty() && sent.iter().all(|text| text.contains("garden")),
        "{sent:?}"
    );
}

#[test]
fn a_half_precision_vector_is_kept_as_it_is() {
    let db = Database::new();
    let api = api();
    db.run(&format!(
        "SELECT ingest.create_pipeline('p', model => 'openai/text-embedding-3-large', base_url => {}, api_key => {}, {SMALL})",
        quoted(&api.openai_url()),
        quoted(&db.cluster().write_key(KEY)),
    ));
    let vectors = || -> Vec<String> {
        db.all("SELECT chunk_no || pg_typeof(embedding)::text || embedding::text FROM ingest.p_chunks ORDER BY chunk_no")
    };
    let [old, new] = revisions();
    insert(&db, "d", &old);
    db.settle();
    let before = vectors();
    assert!(before[0].starts_with("0halfvec"), "{}", before[0]);
    api.reset();
    insert(&db, "d", &new);
    db.settle();
    assert_eq!(sent(&api).len(), 1);
    let (after, last) = (vectors(), before.len() - 1);
    assert_eq!(after[..last], before[..last]);
    assert_ne!(after[last..], before[last..]);
}

#[test]
fn another_request_makes_other_vectors_and_none_of_the_old_ones_are_kept() {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("p", &api, SMALL);
    insert(&db, "d", &revisions()[0]);
    all_embedded(&db, "p", 1);
    // Headers are for whoever stands in between.
    db.run(r#"SELECT ingest.alter_pipeline('p', request => '{"headers": {"x-project": "a"}}')"#);
    let (before, sent_again) = change(&db, &api);
    assert_eq!(sent_again.len(), 1);
    db.run(r#"SELECT ingest.alter_pipeline('p', request => '{"body": {"task": "other"}}')"#);
    db.settle();
    assert_eq!(sent(&api).len(), before.len());
    insert(&db, "d", &revisions()[0]);
    all_embedded(&db, "p", 1);
    assert_eq!(sent(&api).len(), 1);
}

#[test]
fn vectors_that_were_in_the_target_before_the_pipeline_are_never_used() {
    let db = Database::new();
    let api = api();
    let [old, new] = revisions();
    db.create_remote_pipeline("p", &api, &format!("{SMALL}, max_attempts => 1"));
    // As another model may have left them.
    let foreign = |content: &str| {
        db.execute(
            "INSERT INTO ingest.p_chunks (document_key, chunk_no, content, tokens, metadata, embedding)
             SELECT 'd', chunk_no, content, tokens, '{}', array_fill(0.025::real, ARRAY[1536])::vector
             FROM ingest.split($1, 'p')",
            &[&content],
        );
    };
    foreign(&old);
    insert(&db, "d", &old);
    db.settle();
    db.check_vectors("ingest.p_chunks");
    // The same where the first attempt failed.
    db.run("DELETE FROM ingest.documents");
    foreign(&old);
    api.refuse_text("near");
    insert(&db, "d", &old);
    db.settle();
    assert_eq!(db.progress_of("p").failed, 1);
    insert(&db, "d", &new);
    db.settle();
    assert_eq!(db.progress_of("p").embedded, 1);
    db.check_vectors("ingest.p_chunks");
}

#[test]
fn what_cannot_be_read_back_is_embedded_again() {
    let db = Database::new();
    let api = api();
    db.run("CREATE TABLE public.t (id bigint, document_key text, chunk_no int, content text, tokens int, metadata jsonb, embedding vector(1536))");
    db.create_remote_pipeline("p", &api, &format!("{SMALL}, target => 'public.t'"));
    let [old, new] = revisions();
    insert(&db, "d", &old);
    db.settle();
    // Somebody has put a hand to it.
    db.run("UPDATE public.t SET embedding = NULL WHERE chunk_no = 0; UPDATE public.t SET content = content || ' edited' WHERE chunk_no IN (1, 2)");
    api.reset();
    insert(&db, "d", &new);
    db.settle();
    // Three by hand, one by the change.
    assert_eq!(sent(&api).len(), 4);
    assert_eq!(
        db.check_vectors("public.t"),
        db.one::<i64>("SELECT chunks FROM ingest.progress") as usize
    );
}

#[test]
fn identical_texts_of_different_documents_are_sent_once() {
    let db = Database::new_in(remembering_cluster());
    let api = api();
    db.create_remote_pipeline("p", &api, "batch_size => 7");
    db.run(
        "INSERT INTO ingest.documents (pipeline, key, content)
         SELECT 'p', 'd' || n, 'The letter number ' || n % 20 FROM generate_series(1, 1000) n",
    );
    all_embedded(&db, "p", 1000);
    assert_eq!((api.distinct_inputs(), api.repeated_inputs()), (20, 0));
    let (tokens, reused): (i64, i64) = (db.progress_of("p").tokens, reused_tokens(&db));
    assert_eq!(reused, tokens / 1000 * 980);
    // A little later, too, and for the same text in another document of several chunks.
    insert(&db, "again", "The letter number 7");
    all_embedded(&db, "p", 1001);
    assert_eq!((api.distinct_inputs(), api.repeated_inputs()), (20, 0));
    // Another pipeline pays for itself.
    db.create_remote_pipeline("q", &api, "");
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('q', 'd', 'The letter number 7')");
    all_embedded(&db, "q", 1);
    assert_eq!(api.times_sent("The letter number 7"), 2);
}

#[test]
fn a_text_that_occurs_twice_in_a_document_is_sent_once() {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline(
        "p",
        &api,
        "chunk_tokens => 8, chunk_overlap => 0, splitter => 'markdown'",
    );
    insert(
        &db,
        "d",
        &"# Notice\n\nAll rights are reserved.\n\n".repeat(6),
    );
    all_embedded(&db, "p", 1);
    let chunks = chunks(&db, "p");
    let distinct: BTreeSet<&String> = chunks.iter().collect();
    assert!(chunks.len() > distinct.len(), "{chunks:?}");
    assert_eq!(
        (api.distinct_inputs(), api.repeated_inputs()),
        (distinct.len() as u64, 0)
    );
}

#[test]
fn the_local_model_reads_a_text_once() {
    let db = Database::new_in(remembering_cluster());
    db.run("SELECT ingest.create_pipeline()");
    db.run(
        "INSERT INTO ingest.documents (key, content)
         SELECT 'd' || n, 'The letter number ' || n % 3 FROM generate_series(1, 300) n",
    );
    db.settle();
    let vectors: i64 = db.one("SELECT count(DISTINCT embedding::text) FROM ingest.default_chunks");
    assert_eq!((vectors, db.progress().chunks), (3, 300));
    assert!(db.one::<bool>(
        "SELECT reused_tokens * 300 = tokens * 297 AND saved_usd = 0 FROM ingest.progress"
    ));
}

#[test]
fn what_waits_for_another_documents_answer_outlives_that_document() {
    let (db, api) = in_flight(&["a"]);
    // The same text as the one in flight.
    insert(&db, "b", "Old text of a.");
    insert(&db, "c", "Old text of a.");
    wait_until("the worker holds all", SOON, || {
        db.progress_of("p").in_flight == 3
    });
    db.run("UPDATE ingest.documents SET content = 'New text.' WHERE key = 'a'");
    wait_until("the new text is in flight", SOON, || api.in_flight() == 2);
    db.run("DELETE FROM ingest.documents WHERE key = 'c'");
    api.release_answers();
    all_embedded(&db, "p", 2);
    assert_eq!(chunks(&db, "p"), ["a: New text.", "b: Old text of a."]);
    assert_eq!(api.times_sent("Old text of a."), 1);
    counted(&db, "p");
}

#[test]
fn when_the_first_of_several_is_deleted_unsent_another_is_sent() {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("p", &api, "batch_size => 1, concurrency => 1");
    flight::send(&db, &api, &["blocker"]);
    for key in ["a", "b", "c", "d"] {
        insert(&db, key, "The same text.");
    }
    wait_until("the worker holds all", SOON, || {
        db.progress_of("p").in_flight == 5
    });
    db.run("DELETE FROM ingest.documents WHERE key IN ('a', 'b')");
    wait_until("the worker has given them up", SOON, || {
        db.one("SELECT bool_and(in_flight_documents = 3) FROM ingest.workers WHERE database = current_database()")
    });
    api.release_answers();
    all_embedded(&db, "p", 3);
    assert_eq!(api.times_sent("The same text."), 1);
}

#[test]
fn a_paused_pipeline_sends_nothing_for_those_who_waited_for_another_one() {
    let db = Database::new_in(remembering_cluster());
    let api = api();
    db.create_remote_pipeline("p", &api, "batch_size => 1, concurrency => 1");
    flight::send(&db, &api, &["blocker"]);
    for key in ["a", "b", "c", "d"] {
        insert(&db, key, "The same text.");
    }
    wait_until("the worker holds all", SOON, || {
        db.progress_of("p").in_flight == 5
    });
    db.run("SELECT ingest.pause('p')");
    wait_until("the worker has given them up", SOON, || {
        db.progress_of("p").in_flight == 1
    });
    api.release_answers();
    wait_until("the blocker is there", SOON, || {
        chunks(&db, "p").len() == 1 && db.progress_of("p").in_flight == 0
    });
    assert_eq!(api.times_sent("The same text."), 0);
    db.run("SELECT ingest.resume('p')");
    all_embedded(&db, "p", 5);
    assert_eq!(api.times_sent("The same text."), 1);
}

#[test]
fn a_failed_request_fails_none_that_only_waited_for_it() {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("p", &api, &format!("{SINGLY}, max_attempts => 1"));
    let first = AtomicUsize::new(0);
    api.on_request(move |_| {
        (first.fetch_add(1, Ordering::SeqCst) == 0).then(|| Fault::status(500))
    });
    flight::send(&db, &api, &["a"]);
    for key in ["b", "c"] {
        insert(&db, key, "Old text of a.");
    }
    wait_until("the worker holds all", SOON, || {
        db.progress_of("p").in_flight == 3
    });
    api.release_answers();
    db.settle();
    assert_eq!(db.all::<String>("SELECT key FROM ingest.failures"), ["a"]);
    assert_eq!(chunks(&db, "p"), ["b: Old text of a.", "c: Old text of a."]);
    db.check_vectors("ingest.p_chunks");
    counted(&db, "p");
}

#[test]
fn a_document_tried_again_pays_only_for_what_has_no_answer_yet() {
    let db = Database::new_in(remembering_cluster());
    let api = api();
    db.create_remote_pipeline(
        "p",
        &api,
        &format!("{SMALL}, batch_size => 1, concurrency => 1"),
    );
    let once = AtomicUsize::new(0);
    api.on_request(move |request| {
        let last = request.texts.iter().any(|text| text.contains("near"));
        (last && once.fetch_add(1, Ordering::SeqCst) == 0).then(|| Fault::status(500))
    });
    insert(&db, "d", &revisions()[0]);
    all_embedded(&db, "p", 1);
    let sent = sent(&api);
    let again = sent.len() - contents(&db, "p").len();
    assert_eq!(again, 1, "{sent:?}");
}
