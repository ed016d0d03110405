//! Promise: the parts keep their promises together. A pipeline that watches tables, is somebody's who is no superuser, is lent to
//! others or has another layout is rebuilt as any other one is.

use fake_api::FakeApi;
use harness::flight::counted;
use harness::remote::api;
use harness::roles::{another, column, forbidden, refused, role, run};
use harness::*;

/// What makes the same API another model's.
const OTHER: &str = r#"request => '{"document_prefix": "other: ", "query_prefix": "other: "}'"#;

/// A pipeline `p` that watches a table of so many articles, all of them embedded.
fn articles(rows: usize) -> (Database<'static>, FakeApi) {
    articles_in(Database::new(), rows)
}

fn articles_in(db: Database<'_>, rows: usize) -> (Database<'_>, FakeApi) {
    let api = api();
    db.create_remote_pipeline("p", &api, "dimensions => 64");
    db.run(&format!(
        "CREATE TABLE public.articles (id int PRIMARY KEY, body text);
         INSERT INTO public.articles SELECT n, 'The body of article ' || n || '.' FROM generate_series(1, {rows}) n;
         SELECT ingest.watch('public.articles', 'body', 'p')"
    ));
    db.settle();
    (db, api)
}

/// Begins to make other vectors, for which the API does not answer for now.
fn begin(db: &Database, api: &FakeApi) {
    api.hold_answers();
    db.run(&format!(
        "SELECT ingest.alter_pipeline('p', dimensions => 96, {OTHER})"
    ));
    wait_until("the new vectors are asked for", SOON, || {
        api.in_flight() > 0
    });
}

/// The definitions of a table's full-text indexes.
fn text_indexes(db: &Database, table: &str) -> Vec<String> {
    db.all(&format!(
        "SELECT substring(indexdef FROM 'to_tsvector.*') FROM pg_indexes
         WHERE indexdef LIKE '%to_tsvector%' AND format('%I.%I', schemaname, tablename) = '{table}'"
    ))
}

#[test]
fn new_vectors_come_with_the_full_text_index_of_the_language_that_was_asked_for() {
    for layout in ["chunks", "vecs"] {
        let db = Database::new();
        let api = api();
        db.create_remote_pipeline(
            "p",
            &api,
            &format!("dimensions => 64, index => 'immediate', layout => '{layout}'"),
        );
        let table: String = db.one("SELECT target::text FROM ingest.pipelines");
        db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'a', 'Cats were running.')");
        db.settle();
        let before = text_indexes(&db, &table);
        assert!(
            before.len() == 1 && before[0].contains("simple"),
            "{before:?}"
        );
        // With the new definition, and while that is being made.
        db.run("SELECT ingest.alter_pipeline('p', dimensions => 96, language => 'english')");
        db.settle();
        let after = text_indexes(&db, &table);
        assert!(
            after.len() == 1 && after[0].contains("english"),
            "{after:?}"
        );
        api.hold_answers();
        db.run("SELECT ingest.alter_pipeline('p', dimensions => 64); SELECT ingest.alter_pipeline('p', language => 'german')");
        let meanwhile = text_indexes(&db, &table);
        assert!(
            meanwhile.len() == 1 && meanwhile[0].contains("german"),
            "{meanwhile:?}"
        );
        api.release_answers();
        db.settle();
        let after = text_indexes(&db, &table);
        assert!(after.len() == 1 && after[0].contains("german"), "{after:?}");
        assert_eq!(
            db.one::<i64>(&format!("SELECT count(*) FROM pg_indexes WHERE indexdef LIKE '%hnsw%' AND format('%I.%I', schemaname, tablename) = '{table}'")),
            1
        );
        if layout == "vecs" {
            assert_eq!(
                db.one::<i64>("SELECT count(*) FROM pg_indexes WHERE tablename = 'p' AND indexname LIKE 'ix\\_vector\\_cosine\\_ops\\_hnsw\\_m16\\_efc64\\_%'"),
                1
            );
            assert_eq!(
                db.one::<i64>("SELECT count(*) FROM pg_class WHERE relname LIKE '%next%'"),
                0
            );
        }
    }
}

#[test]
fn a_vecs_collection_is_not_given_vectors_that_its_client_cannot_read() {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("p", &api, "dimensions => 64, layout => 'vecs'");
    for documents in [0, 1] {
        let error = db.expect_error(
            "SELECT ingest.alter_pipeline('p', model => 'openai/text-embedding-3-large', dimensions => 3072)",
        );
        assert!(
            error.text().contains("vecs"),
            "{documents}: {}",
            error.text()
        );
        db.run(&format!(
            "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', '{documents}', 'A text.')"
        ));
        db.settle();
    }
}

#[test]
fn the_rows_of_a_watched_table_are_read_for_the_new_vectors_too() {
    let (db, api) = articles(6);
    begin(&db, &api);
    db.run(
        "INSERT INTO public.articles VALUES (7, 'Of seven.'); UPDATE public.articles SET body = 'Changed.' WHERE id = 1;
         DELETE FROM public.articles WHERE id = 2; ALTER TABLE public.articles DISABLE TRIGGER ALL;
         DELETE FROM public.articles WHERE id = 3; ALTER TABLE public.articles ENABLE TRIGGER ALL",
    );
    api.release_answers();
    db.settle();
    counted(&db, "p");
    assert_eq!(
        db.all::<String>("SELECT document_key || content FROM ingest.p_chunks WHERE document_key <> '3' ORDER BY 1"),
        db.all::<String>("SELECT id || body FROM public.articles ORDER BY 1")
    );
    assert_eq!(db.one::<i32>("SELECT dimensions FROM ingest.pipelines"), 96);
    db.run("UPDATE public.articles SET body = 'Changed again.' WHERE id = 1");
    db.settle();
    assert_eq!(
        db.one::<String>("SELECT content FROM ingest.p_chunks WHERE document_key = '1'"),
        "Changed again."
    );
}

#[test]
fn watching_again_ends_the_block_of_a_rebuild_too() {
    let (db, api) = articles(3);
    begin(&db, &api);
    db.run("ALTER TABLE public.articles RENAME body TO text; UPDATE public.articles SET text = text || ' More.'");
    let blocked =
        || db.one::<i64>("SELECT count(*) FROM ingest.pipeline WHERE blocked_error IS NOT NULL");
    wait_until("both are blocked", SOON, || blocked() == 2);
    db.run("SELECT ingest.watch('public.articles', 'text', 'p')");
    assert_eq!(blocked(), 0);
    api.release_answers();
    db.settle();
    counted(&db, "p");
    assert_eq!(db.one::<i32>("SELECT dimensions FROM ingest.pipelines"), 96);
}

#[test]
fn a_row_that_cannot_be_read_fails_in_both() {
    let (db, api) = articles(3);
    db.run("CREATE TABLE public.numbers (id int PRIMARY KEY, n int); INSERT INTO public.numbers VALUES (1, 1), (2, 0);
            SELECT ingest.watch('public.numbers', '(6 / n)::text', 'p')");
    db.settle();
    assert_eq!(db.progress_of("p").counts(), (5, 4, 0, 1));
    begin(&db, &api);
    db.run("UPDATE public.numbers SET n = 0 WHERE id = 1");
    api.release_answers();
    // Search finds what the first row was before.
    wait_until("it waits for a person", SOON, || {
        db.one::<bool>("SELECT EXISTS (SELECT FROM ingest.rebuilds WHERE state = 'blocked')")
    });
    assert_eq!(db.progress_of("p").counts(), (5, 3, 0, 2));
    assert!(db.one::<bool>("SELECT ingest.finish_rebuild('p')"));
    db.settle();
    counted(&db, "p");
    assert_eq!(db.progress_of("p").counts(), (5, 3, 0, 2));
    assert_eq!(db.one::<i32>("SELECT dimensions FROM ingest.pipelines"), 96);
    db.run("UPDATE public.numbers SET n = 3");
    db.settle();
    assert_eq!(db.progress_of("p").counts(), (5, 5, 0, 0));
}

#[test]
fn what_is_not_watched_any_more_leaves_a_rebuild_too() {
    let (db, api) = articles(3);
    begin(&db, &api);
    db.run("SELECT ingest.unwatch('public.articles', 'p');
            CREATE TABLE public.\"it's \"\"new\"\"\" (\"a b\" text PRIMARY KEY, \"B'\" text); INSERT INTO public.\"it's \"\"new\"\"\" VALUES ('k', 'A text.'), ('l', 'L.');
            SELECT ingest.watch('public.\"it''s \"\"new\"\"\"', '\"B''\"', 'p')");
    wait_until("it is read", SOON, || {
        db.one::<i64>("SELECT count(*) FROM ingest.documents") == 2
    });
    db.run("DROP TABLE public.\"it's \"\"new\"\"\" CASCADE; INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'x', 'X.')");
    api.release_answers();
    db.settle();
    counted(&db, "p");
    assert_eq!(
        db.all::<String>("SELECT document_key FROM ingest.p_chunks"),
        ["x"]
    );
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM pg_class WHERE relname LIKE '%next%'"),
        0
    );
}

#[test]
fn a_changed_row_of_a_watched_table_pays_for_the_chunks_that_changed() {
    for layout in ["chunks", "vecs"] {
        let db = Database::new();
        let api = api();
        db.create_remote_pipeline(
            "p",
            &api,
            &format!("layout => '{layout}', chunk_tokens => 20, chunk_overlap => 0"),
        );
        db.run(&format!(
            "CREATE TABLE public.articles (id int PRIMARY KEY, body text, lang text);
             INSERT INTO public.articles VALUES (1, {}, 'en');
             SELECT ingest.watch('public.articles', 'body', 'p', metadata => 'jsonb_build_object(''lang'', lang)')",
            quoted(&texts::long("stable", 12))
        ));
        db.settle();
        let sent = || api.requests().iter().map(|r| r.texts.len()).sum::<usize>();
        let before = sent();
        assert!(before > 3, "{before}");
        db.run("UPDATE public.articles SET lang = 'de'");
        db.settle();
        assert_eq!(sent(), before, "metadata costs nothing");
        db.run("UPDATE public.articles SET body = body || E'\\n\\nAn end.'");
        db.settle();
        assert!(sent() <= before + 2, "{} {before}", sent());
        // Cut in another way: what is cut as before is not sent again.
        let before = sent();
        db.run("SELECT ingest.alter_pipeline('p', chunk_tokens => 21)");
        db.settle();
        let chunks: i64 = db.one("SELECT chunks FROM ingest.progress");
        assert!(
            ((sent() - before) as i64) < chunks,
            "{} {chunks}",
            sent() - before
        );
        // Another model pays for all.
        let before = sent();
        db.run("SELECT ingest.alter_pipeline('p', dimensions => 96)");
        db.settle();
        assert_eq!(
            (sent() - before) as i64,
            db.one::<i64>("SELECT chunks FROM ingest.progress")
        );
    }
}

#[test]
fn a_rebuild_of_a_default_target_is_its_owners_and_seen_by_those_who_were_granted_it() {
    let db = Database::new();
    let (owner, mut client) = role(&db);
    let (guest, mut guests) = another(&db, "guest");
    let (stranger, mut strangers) = another(&db, "stranger");
    run(
        &mut client,
        &format!(
            "SELECT ingest.create_pipeline('p', index => 'immediate'); SELECT ingest.grant_pipeline('p', '{guest}');
             INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'a', 'A text.'), ('p', 'bad', '');
             GRANT SELECT ON ingest.p_chunks TO {guest}; GRANT SELECT (content) ON ingest.p_chunks TO {stranger};
             ALTER TABLE ingest.p_chunks ENABLE ROW LEVEL SECURITY;
             CREATE POLICY seen ON ingest.p_chunks FOR SELECT TO {guest} USING (document_key <> 'x');
             COMMENT ON TABLE ingest.p_chunks IS 'Mine';
             CREATE TABLE app.articles (id int PRIMARY KEY, body text); INSERT INTO app.articles VALUES (1, 'One.'), (2, 'Two.');
             SELECT ingest.watch('app.articles', 'body', 'p')"
        ),
    );
    db.run("CREATE INDEX by_meta ON ingest.p_chunks USING gin (metadata)");
    db.settle();
    let put_on = || {
        db.rows_as_text(
            "SELECT relowner::regrole, relacl, relrowsecurity, obj_description(oid), (SELECT array_agg(attacl ORDER BY attnum) FROM pg_attribute WHERE attrelid = c.oid AND attacl IS NOT NULL) AS attacl,
                    (SELECT array_agg(relname ORDER BY relname) FROM pg_index i JOIN pg_class x ON x.oid = indexrelid WHERE indrelid = c.oid) AS indexes,
                    (SELECT array_agg(polname || pg_get_expr(polqual, polrelid)) FROM pg_policy WHERE polrelid = c.oid) AS policies,
                    pg_get_serial_sequence('ingest.p_chunks', 'id') AS sequence
             FROM pg_class c WHERE oid = 'ingest.p_chunks'::regclass",
        )
    };
    let before = put_on();
    db.run("SELECT ingest.pause('p')");
    run(
        &mut client,
        "SELECT ingest.alter_pipeline('p', chunk_tokens => 100)",
    );
    for (who, rows) in [(&mut guests, 1), (&mut client, 1), (&mut strangers, 0)] {
        for sql in [
            "SELECT count(*) FROM ingest.rebuilds",
            "SELECT count(rebuilding) FROM ingest.progress",
            "SELECT count(*) FROM ingest.watches",
        ] {
            assert_eq!(column::<i64>(who, sql), [rows], "{sql}");
        }
        run(
            who,
            "SELECT * FROM ingest.doctor(); SELECT ingest.wait(timeout => '0 s'); SELECT ingest.retry(); SELECT * FROM ingest.estimate()",
        );
    }
    run(&mut client, "SELECT * FROM ingest.estimate('p')");
    for sql in [
        "SELECT ingest.alter_pipeline('p', chunk_tokens => 50)",
        "SELECT ingest.cancel_rebuild('p')",
        "SELECT ingest.finish_rebuild('p')",
        "SELECT ingest.unwatch('app.articles', 'p')",
        "SELECT ingest.watch('app.articles', 'body', 'p')",
        "SELECT ingest.resume('p')",
        "SELECT ingest.set_owner('p', current_user::regrole)",
        "SELECT * FROM ingest.p_chunks_next",
    ] {
        forbidden(&mut strangers, sql);
        forbidden(&mut guests, sql);
    }
    assert_eq!(
        refused(
            &mut client,
            &format!("SELECT ingest.set_owner('p', '{owner}')")
        )
        .code,
        "55000"
    );
    db.run("SELECT ingest.resume('p')");
    run(
        &mut guests,
        "UPDATE ingest.documents SET content = 'Another text.' WHERE key = 'a'",
    );
    db.settle();
    assert_eq!(put_on(), before);
    assert_eq!(
        db.one::<i32>("SELECT chunk_tokens FROM ingest.pipelines"),
        100
    );
    assert_eq!(
        column::<i64>(
            &mut guests,
            "SELECT count(*) FROM ingest.failures WHERE NOT rebuild"
        ),
        [1]
    );
    assert_eq!(
        column::<String>(
            &mut guests,
            "SELECT key FROM ingest.search('another text', 1, 'p')"
        ),
        ["a"]
    );
    assert_eq!(
        column::<i64>(&mut strangers, "SELECT count(*) FROM ingest.failures"),
        [0]
    );
    // And dropped in the middle of another one.
    db.run("SELECT ingest.pause('p')");
    run(&mut client, "SELECT ingest.alter_pipeline('p', chunk_tokens => 50); SELECT ingest.cancel_rebuild('p');
                      SELECT ingest.alter_pipeline('p', chunk_tokens => 60); SELECT ingest.drop_pipeline('p', true)");
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM pg_class WHERE relname LIKE 'p\\_chunks%'"),
        0
    );
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'pg\\_ingest\\_watch%'"),
        0
    );
}

#[test]
fn a_guest_says_of_no_document_which_row_it_is() {
    let db = Database::new();
    let (_owner, mut client) = role(&db);
    let (guest, mut guests) = another(&db, "guest");
    run(
        &mut client,
        &format!(
            "SELECT ingest.create_pipeline('p'); SELECT ingest.create_pipeline('q'); SELECT ingest.grant_pipeline('p', '{guest}');
             CREATE TABLE app.articles (id int PRIMARY KEY, body text, secret text); INSERT INTO app.articles VALUES (1, 'One.', 'Hush.'), (2, 'Two.', 'Hush.');
             SELECT ingest.watch('app.articles', 'body', 'p')"
        ),
    );
    run(&mut guests, "SELECT ingest.create_pipeline('theirs')");
    db.settle();
    for sql in [
        "UPDATE ingest.documents SET watch_id = 1",
        "UPDATE ingest.documents SET source_key = '2' WHERE key = '1'",
        "INSERT INTO ingest.documents (pipeline, key, watch_id, source_key) VALUES ('theirs', 'x', 1, '1')",
        "SELECT * FROM app.articles",
    ] {
        forbidden(&mut guests, sql);
    }
    // A text of its own for such a document is not taken; one that is moved or deleted is gone until its row is written again.
    run(
        &mut guests,
        "UPDATE ingest.documents SET content = 'Not it.' WHERE key = '1'",
    );
    db.settle();
    assert_eq!(
        db.all::<String>("SELECT content FROM ingest.p_chunks ORDER BY 1"),
        ["One.", "Two."]
    );
    run(
        &mut guests,
        "UPDATE ingest.documents SET pipeline = 'theirs' WHERE key = '1'; DELETE FROM ingest.documents WHERE key = '2'",
    );
    db.settle();
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM ingest.theirs_chunks"),
        0
    );
    assert_eq!(db.one::<i64>("SELECT count(*) FROM ingest.p_chunks"), 0);
    run(&mut client, "UPDATE app.articles SET body = body || '!'");
    db.settle();
    counted(&db, "p");
    counted(&db, "theirs");
    assert_eq!(
        db.all::<String>("SELECT content FROM ingest.p_chunks ORDER BY 1"),
        ["One.!", "Two.!"]
    );
}

#[test]
fn what_a_role_copies_out_it_can_copy_in() {
    use std::io::{Read, Write};
    let db = Database::new();
    let (_owner, mut client) = role(&db);
    run(
        &mut client,
        "SELECT ingest.create_pipeline('p'); INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'a', 'A text.')",
    );
    db.settle();
    let mut rows = Vec::new();
    client
        .copy_out("COPY ingest.documents TO STDOUT")
        .expect("COPY")
        .read_to_end(&mut rows)
        .expect("rows");
    run(&mut client, "DELETE FROM ingest.documents");
    let mut writer = client
        .copy_in("COPY ingest.documents FROM STDIN")
        .expect("COPY starts");
    writer.write_all(&rows).expect("rows");
    if let Err(error) = writer.finish() {
        panic!("{}", ServerError::from(error).text());
    }
    db.settle();
    assert_eq!(db.progress_of("p").counts(), (1, 1, 0, 0));
}

#[test]
fn a_rebuild_that_is_complete_waits_for_the_end_of_a_restore() {
    // Nor is an index built that the dump brings along.
    let cluster = Cluster::start(&[("pg_ingest.deferred_index_min_chunks", "2")]);
    let (db, _api) = articles_in(Database::new_in(&cluster), 3);
    let mut reader = db.connect();
    run(&mut reader, "BEGIN; SELECT count(*) FROM ingest.p_chunks");
    db.run(&format!(
        "SELECT ingest.alter_pipeline('p', dimensions => 96, {OTHER})"
    ));
    wait_until("it is complete", SOON, || {
        db.all::<String>("SELECT state FROM ingest.rebuilds") == ["switching"]
    });
    let file = db.dump(&[]);
    // A restore that takes its time.
    let dump = std::fs::read_to_string(&file).expect("the dump");
    let at = dump
        .find("ADD CONSTRAINT")
        .and_then(|at| dump[..at].rfind("\nALTER TABLE"))
        .expect("constraints");
    let slow = format!("{}\nSELECT pg_sleep(4);\n{}", &dump[..at], &dump[at..]);
    std::fs::write(&file, slow).expect("written");
    let restored = Database::empty_in(db.cluster());
    restored.restore(&file);
    restored.settle();
    assert_eq!(
        restored.one::<i32>("SELECT dimensions FROM ingest.pipelines"),
        96
    );
    assert_eq!(
        restored.one::<i64>("SELECT count(*) FROM pg_class WHERE relname LIKE '%next%'"),
        0
    );
    restored.run("UPDATE public.articles SET body = 'Changed.' WHERE id = 1");
    restored.settle();
    counted(&restored, "p");
}

#[test]
fn a_rebuild_whose_old_table_is_gone_says_so() {
    let (db, api) = articles(2);
    begin(&db, &api);
    db.run("DROP TABLE ingest.p_chunks");
    api.release_answers();
    wait_until("it is blocked", SOON, || {
        db.all::<String>("SELECT state FROM ingest.rebuilds") == ["blocked"]
    });
    let error: String = db.one("SELECT last_error FROM ingest.rebuilds");
    assert!(error.contains("dropped"), "{error}");
    db.run("SELECT ingest.drop_pipeline('p', true)");
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM pg_class WHERE relname LIKE '%next%'"),
        0
    );
}

#[test]
fn a_match_function_finds_the_new_vectors() {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("p", &api, "dimensions => 64");
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'a', 'A text.')");
    db.settle();
    db.run("SELECT ingest.create_match_function('p')");
    let found = || {
        db.one::<String>(
            "SELECT content FROM public.match_documents(ingest.embed('A text.', 'p'), 1)",
        )
    };
    assert_eq!(found(), "A text.");
    for change in [
        OTHER,
        "dimensions => 96",
        "model => 'openai/text-embedding-3-large', dimensions => 2500",
        "dimensions => 100",
    ] {
        db.run(&format!("SELECT ingest.alter_pipeline('p', {change})"));
        db.settle();
        assert_eq!(found(), "A text.", "{change}");
        db.run("SELECT ingest.create_match_function('p')");
        assert_eq!(found(), "A text.", "{change}");
    }
}

#[test]
fn a_pipeline_is_dropped_in_the_middle_of_a_rebuild_while_its_watched_table_is_written() {
    let (db, api) = articles(3);
    begin(&db, &api);
    let (mut writer, mut dropper) = (db.connect(), db.connect());
    run(
        &mut writer,
        "BEGIN; SELECT * FROM public.articles FOR UPDATE",
    );
    std::thread::scope(|scope| {
        let dropping =
            scope.spawn(move || run(&mut dropper, "SELECT ingest.drop_pipeline('p', true)"));
        wait_until("it waits for the writer", SOON, || {
            db.one::<i64>("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'public.articles'::regclass") == 1
        });
        run(
            &mut writer,
            "UPDATE public.articles SET body = 'Changed.'; COMMIT",
        );
        dropping.join().expect("it is dropped");
    });
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM pg_class WHERE relname LIKE 'p\\_chunks%'"),
        0
    );
}

#[test]
fn the_longest_name_of_a_default_target_has_room_for_a_rebuild_of_its_owners() {
    let cluster = Cluster::start(&[("pg_ingest.deferred_index_min_chunks", "2")]);
    let db = Database::new_in(&cluster);
    let (_owner, mut client) = role(&db);
    for name in ["n".repeat(56), "é".repeat(28), "short".into()] {
        run(
            &mut client,
            &format!(
                "SELECT ingest.create_pipeline('{name}');
                 INSERT INTO ingest.documents (pipeline, key, content) SELECT '{name}', n, 'Text ' || n FROM generate_series(1, 3) n"
            ),
        );
        db.settle();
        let indexes = || {
            db.one::<i64>(&format!(
                "SELECT count(*) FROM pg_indexes WHERE tablename = '{name}_chunks' AND indexdef ~ 'hnsw|german'"
            ))
        };
        run(
            &mut client,
            &format!("SELECT ingest.alter_pipeline('{name}', chunk_tokens => 50)"),
        );
        run(&mut client, "SELECT ingest.wait()");
        wait_until("the index is built", SOON, || indexes() == 1);
        run(
            &mut client,
            &format!(
                "SELECT ingest.alter_pipeline('{name}', chunk_tokens => 60, language => 'german')"
            ),
        );
        db.settle();
        assert_eq!(indexes(), 2);
        assert_eq!(
            db.all::<String>(
                "SELECT last_error FROM ingest.worker_states() WHERE last_error IS NOT NULL"
            ),
            Vec::<String>::new()
        );
    }
}

#[test]
fn waiting_without_a_timeout_costs_no_processor() {
    let db = Database::with_pipeline();
    db.run("SELECT ingest.pause('default'); INSERT INTO ingest.documents (key, content) VALUES ('a', 'A text.')");
    let mut waiting = db.connect();
    let pid: i32 = waiting
        .query_one("SELECT pg_backend_pid()", &[])
        .expect("its number")
        .get(0);
    std::thread::scope(|scope| {
        let waits = scope.spawn(move || run(&mut waiting, "SELECT ingest.wait()"));
        std::thread::sleep(std::time::Duration::from_secs(2));
        let ticks = cpu_ticks(pid);
        db.run("SELECT ingest.resume('default')");
        waits.join().expect("it ends");
        assert!(ticks < 60, "{ticks} hundredths of a second of two");
    });
}
