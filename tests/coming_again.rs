//! A text that comes again when its vector is long forgotten is not paid again: the vector is where it was written. If it is there
//! no more, the text is sent.

use std::sync::OnceLock;

use harness::flight::{SINGLY, counted};
use harness::remote::{all_embedded, api};
use harness::repeats::{SMALL, contents, insert, reused_tokens, sent};
use harness::*;

/// Half a megabyte is held at a time: of 150 documents of 80 sentences, the last come when the first are long written.
const SLOWLY: &str = "concurrency => 1";

/// A cluster whose workers remember hardly a vector, and where some thousand were written.
fn forgetful_cluster() -> &'static Cluster {
    static FORGETFUL: OnceLock<Cluster> = OnceLock::new();
    FORGETFUL.get_or_init(|| Cluster::start(&[("pg_ingest.vector_cache", "256kB")]))
}

/// Inserts so many documents of so many sentences for each prefix of their keys, always the same in the same order.
fn insert_corpora(db: &Database, prefixes: &[&str], (documents, sentences): (i32, i32)) {
    db.execute(
        "INSERT INTO ingest.documents (pipeline, key, content)
         SELECT 'p', prefix || n, (SELECT string_agg(format('Sentence %s of letter %s speaks of the harbour and the garden. ', s, n), '')
                                   FROM generate_series(1, $3) s)
         FROM unnest($1::text[]) WITH ORDINALITY AS p(prefix, place), generate_series(1, $2) n
         ORDER BY place, n",
        &[&prefixes, &documents, &sentences],
    );
}

#[test]
fn a_corpus_that_comes_again_under_other_keys_is_not_sent_again() {
    let db = Database::new_in(forgetful_cluster());
    let api = api();
    db.create_remote_pipeline("p", &api, SMALL);
    insert_corpora(&db, &["a"], (200, 6));
    all_embedded(&db, "p", 200);
    let texts = contents(&db, "p").len() as u64;
    assert!(texts > 600, "{texts}");
    assert_eq!((api.distinct_inputs(), api.repeated_inputs()), (texts, 0));
    // Later, and twice at once.
    insert_corpora(&db, &["b", "c"], (200, 6));
    all_embedded(&db, "p", 600);
    assert_eq!((api.distinct_inputs(), api.repeated_inputs()), (texts, 0));
    assert_eq!(reused_tokens(&db), db.progress_of("p").tokens / 3 * 2);
    api.reset();
    insert_corpora(&db, &["d"], (201, 6));
    all_embedded(&db, "p", 801);
    let new = sent(&api);
    assert!(
        !new.is_empty() && new.iter().all(|text| text.contains("letter 201")),
        "{new:?}"
    );
}

#[test]
fn a_corpus_that_comes_twice_at_once_is_sent_once() {
    let db = Database::new_in(forgetful_cluster());
    let api = api();
    db.create_remote_pipeline("p", &api, SLOWLY);
    insert_corpora(&db, &["a", "b", "c"], (150, 80));
    all_embedded(&db, "p", 450);
    let texts = contents(&db, "p").len() as u64;
    assert_eq!((api.distinct_inputs(), api.repeated_inputs()), (texts, 0));
    counted(&db, "p");
}

#[test]
fn a_corpus_that_comes_again_into_a_vecs_collection_is_not_sent_again() {
    let db = Database::new_in(forgetful_cluster());
    let api = api();
    db.create_remote_pipeline("p", &api, &format!("layout => 'vecs', {SMALL}"));
    for prefix in ["a", "b"] {
        insert_corpora(&db, &[prefix], (100, 6));
        db.settle();
    }
    assert_eq!(api.repeated_inputs(), 0);
    let [chunks, texts, vectors]: [i64; 3] = [
        "count(*)",
        "count(DISTINCT metadata ->> 'text')",
        "count(DISTINCT (metadata ->> 'text', vec::text))",
    ]
    .map(|count| db.one(&format!("SELECT {count} FROM vecs.p")));
    assert_eq!([chunks, vectors], [2 * texts, texts]);
    assert_eq!(api.distinct_inputs() as i64, texts);
}

#[test]
fn a_corpus_that_comes_again_is_read_once_by_the_local_model() {
    let db = Database::new_in(forgetful_cluster());
    db.run("SELECT ingest.create_pipeline()");
    for prefix in ["a", "b"] {
        db.execute(
            "INSERT INTO ingest.documents (key, content) SELECT $1 || n, 'The letter number ' || n FROM generate_series(1, 100) n",
            &[&prefix],
        );
        db.settle();
    }
    assert!(
        db.one::<bool>("SELECT reused_tokens * 2 = tokens AND chunks = 200 FROM ingest.progress")
    );
    assert_eq!(
        db.one::<i64>(
            "SELECT count(DISTINCT (content, embedding::text)) FROM ingest.default_chunks"
        ),
        100
    );
}

#[test]
fn what_is_embedded_anew_is_sent_once_too() {
    let db = Database::new_in(forgetful_cluster());
    let api = api();
    db.create_remote_pipeline("p", &api, SLOWLY);
    insert_corpora(&db, &["a", "b"], (150, 80));
    all_embedded(&db, "p", 300);
    let texts = contents(&db, "p").len();
    sent(&api);
    db.run(r#"SELECT ingest.alter_pipeline('p', request => '{"body": {"task": "other"}}')"#);
    db.settle();
    wait_until("the new vectors are in use", SOON, || {
        db.one("SELECT NOT EXISTS (SELECT FROM ingest.rebuilds)")
    });
    assert_eq!(sent(&api).len(), texts);
    all_embedded(&db, "p", 300);
}

#[test]
fn a_text_is_sent_again_where_the_document_that_had_it_has_it_no_more() {
    let db = Database::new_in(forgetful_cluster());
    let api = api();
    db.create_remote_pipeline("p", &api, SINGLY);
    let text = |key: &str| format!("Old text of {key}.");
    for key in ["changed", "deleted", "edited", "there"] {
        insert(&db, key, &text(key));
    }
    all_embedded(&db, "p", 4);
    insert_corpora(&db, &["other"], (20, 6));
    all_embedded(&db, "p", 24);
    insert(&db, "changed", "New text.");
    db.run("DELETE FROM ingest.documents WHERE key = 'deleted'");
    // As another model may make it.
    db.run("UPDATE ingest.p_chunks SET embedding = array_fill(0.025::real, ARRAY[1536])::vector WHERE document_key = 'edited'");
    insert_corpora(&db, &["another"], (20, 6));
    db.settle();
    for (round, key) in ["changed", "deleted", "edited", "there"]
        .iter()
        .cycle()
        .take(12)
        .enumerate()
    {
        insert(&db, &format!("{key} again {round}"), &text(key));
    }
    db.settle();
    db.run("DELETE FROM ingest.documents WHERE key = 'edited'");
    all_embedded(&db, "p", 54);
    let times = ["changed", "deleted", "edited", "there"].map(|key| api.times_sent(&text(key)));
    assert_eq!(times, [2, 2, 2, 1]);
    counted(&db, "p");
}

#[test]
fn while_a_target_cannot_be_read_what_was_written_there_is_sent_again() {
    let db = Database::new_in(forgetful_cluster());
    let api = api();
    db.create_remote_pipeline("p", &api, SMALL);
    insert(&db, "a", "The text of a.");
    all_embedded(&db, "p", 1);
    insert_corpora(&db, &["other"], (20, 6));
    all_embedded(&db, "p", 21);
    let mut locker = db.connect();
    locker
        .batch_execute("BEGIN; LOCK TABLE ingest.p_chunks IN ACCESS EXCLUSIVE MODE")
        .expect("a lock");
    insert(&db, "b", "The text of a.");
    insert(&db, "c", "The text of a.");
    wait_until("it is sent again", SOON, || {
        api.times_sent("The text of a.") == 2
    });
    locker.batch_execute("COMMIT").expect("its end");
    all_embedded(&db, "p", 23);
    assert_eq!(api.times_sent("The text of a."), 2);
}
