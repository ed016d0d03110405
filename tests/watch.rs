//! Promise: a watched table stays embedded. Whatever is done to its rows, by whom and in whatever way, their chunks follow; what
//! the expressions do not read queues nothing; and `unwatch` leaves nothing behind.

use std::io::Write;

use harness::flight::counted;
use harness::remote::api;
use harness::roles::{refused, role, run};
use harness::*;

/// A database with a table of articles and a pipeline at a fake API.
fn articles(rows: usize) -> (Database<'static>, fake_api::FakeApi) {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("p", &api, "index => 'none'");
    db.run(&format!(
        "CREATE TABLE public.articles (id bigint PRIMARY KEY, title text, body text, lang text DEFAULT 'en', views int DEFAULT 0);
         INSERT INTO public.articles (id, title, body)
         SELECT n, 'Title ' || n, 'The body of article ' || n || '.' FROM generate_series(1, {rows}) n"
    ));
    (db, api)
}

const WATCH: &str = "SELECT ingest.watch('public.articles', $$title || E'\\n' || body$$, 'p', metadata => $$jsonb_build_object('lang', lang)$$)";

/// `key: content` of each chunk, on one line.
fn texts_of(db: &Database) -> Vec<String> {
    db.all("SELECT document_key || ': ' || replace(content, E'\\n', ' / ') FROM ingest.p_chunks ORDER BY document_key COLLATE \"C\", chunk_no")
}

/// What is embedded is what the rows say, and nothing else.
#[track_caller]
fn follows(db: &Database) {
    counted(db, "p");
    assert_eq!(
        texts_of(db),
        db.all::<String>("SELECT id || ': ' || title || ' / ' || body FROM public.articles ORDER BY id::text COLLATE \"C\"")
    );
}

#[test]
fn rows_that_are_there_and_rows_that_come_are_embedded() {
    let (db, _api) = articles(5);
    db.run(WATCH);
    follows(&db);
    db.run("INSERT INTO public.articles (id, title, body, lang) VALUES (6, 'Six', 'Of six.', 'de'), (7, 'Seven', 'Of seven.', 'fr')");
    follows(&db);
    assert_eq!(
        db.one::<String>("SELECT metadata->>'lang' FROM ingest.p_chunks WHERE document_key = '6'"),
        "de"
    );
    db.with_client(|client| {
        let mut copy = client
            .copy_in("COPY public.articles (id, title, body) FROM STDIN")
            .expect("COPY starts");
        copy.write_all(b"8\tEight\tOf eight.\n9\tNine\tOf nine.\n")
            .expect("rows are sent");
        copy.finish().expect("COPY ends")
    });
    follows(&db);
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM ingest.documents WHERE content IS NOT NULL"),
        0,
        "there is no second copy of the text"
    );
    assert_eq!(
        db.rows_as_text("SELECT pipeline, source, state FROM ingest.watches"),
        [r#"{"state": "watching", "source": "articles", "pipeline": "p"}"#]
    );
}

#[test]
fn an_update_of_what_is_read_embeds_anew_and_any_other_queues_nothing() {
    let (db, api) = articles(20);
    db.run(WATCH);
    follows(&db);
    let (before, versions) = (
        api.requests().len(),
        db.rows_as_text("SELECT id, updated_at FROM ingest.documents ORDER BY id"),
    );
    db.run("UPDATE public.articles SET views = views + 1; UPDATE public.articles SET title = title; UPDATE public.articles SET body = 'x' WHERE false");
    db.quiesce();
    assert_eq!(api.requests().len(), before);
    assert_eq!(
        db.rows_as_text("SELECT id, updated_at FROM ingest.documents ORDER BY id"),
        versions
    );
    db.run("UPDATE public.articles SET body = 'Another body.' WHERE id = 3; UPDATE public.articles SET lang = 'nl' WHERE id = 4");
    follows(&db);
    assert_eq!(
        db.one::<String>("SELECT metadata->>'lang' FROM ingest.p_chunks WHERE document_key = '4'"),
        "nl"
    );
    // Another column may be added, renamed and dropped.
    db.run("ALTER TABLE public.articles ADD likes int; UPDATE public.articles SET likes = 1; ALTER TABLE public.articles DROP views");
    db.run("UPDATE public.articles SET title = 'New ' || title WHERE id < 6");
    follows(&db);
}

#[test]
fn deleted_rows_and_changed_keys_leave_nothing_stale() {
    let (db, _api) = articles(10);
    db.run(WATCH);
    follows(&db);
    db.run("DELETE FROM public.articles WHERE id <= 3");
    follows(&db);
    db.run("UPDATE public.articles SET id = 100 + id WHERE id = 4");
    follows(&db);
    // Keys that other rows had until this very statement.
    db.run("UPDATE public.articles SET id = id - 1 WHERE id BETWEEN 5 AND 10");
    follows(&db);
    db.run("BEGIN; DELETE FROM public.articles; INSERT INTO public.articles (id, title, body) VALUES (5, 'Other', 'Other.'); ROLLBACK");
    follows(&db);
    db.run("INSERT INTO public.articles (id, title, body) VALUES (5, 'Merged', 'Merged.'), (50, 'New', 'New.')
            ON CONFLICT (id) DO UPDATE SET title = EXCLUDED.title, body = EXCLUDED.body");
    follows(&db);
    db.run("TRUNCATE public.articles");
    follows(&db);
    assert_eq!(db.progress_of("p").documents, 0);
    db.run("INSERT INTO public.articles (id, title, body) VALUES (1, 'Again', 'Again.')");
    follows(&db);
}

#[test]
fn any_primary_key_will_do() {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("p", &api, "");
    db.run(
        r#"CREATE TYPE public.colour AS ENUM ('red', 'light "green"');
           CREATE DOMAIN public.isbn AS char(5);
           CREATE TABLE public."Odd ""table""" ("a b" public.colour, "B" timestamptz, c public.isbn, d numeric, "select" text,
                                              PRIMARY KEY (c, "B", "a b", d));
           INSERT INTO public."Odd ""table""" VALUES ('red', '2024-02-29 12:00:00.123456+01', '12 45', 1.50, 'First.'),
                                                   ('light "green"', '-infinity', 'x', 'NaN', 'Second.');
           SET timezone = 'Asia/Tokyo'; SET datestyle = 'German';
           SELECT ingest.watch('public."Odd ""table"""', '"select"', 'p')"#,
    );
    db.settle();
    let keys = [
        r#"["12 45", "2024-02-29 11:00:00.123456+00", "red", "1.50"]"#,
        r#"["x    ", "-infinity", "light \"green\"", "NaN"]"#,
    ];
    let there = || {
        db.all::<String>(
            "SELECT document_key || content FROM ingest.p_chunks ORDER BY document_key COLLATE \"C\"",
        )
    };
    assert_eq!(
        there(),
        [format!("{}First.", keys[0]), format!("{}Second.", keys[1])]
    );
    // Another session writes times in another way.
    run(
        &mut db.connect(),
        r#"SET timezone = 'America/Lima'; SET datestyle = 'SQL';
           UPDATE public."Odd ""table""" SET "select" = 'Third.' WHERE c = 'x'; DELETE FROM public."Odd ""table""" WHERE d = 1.5"#,
    );
    db.settle();
    assert_eq!(there(), [format!("{}Third.", keys[1])]);

    db.run(
        "CREATE TABLE public.notes (id uuid PRIMARY KEY, slug varchar(20), note varchar);
         INSERT INTO public.notes VALUES ('00000000-0000-0000-0000-00000000000A', 'one', 'A note.');
         SELECT ingest.create_pipeline('q'); SELECT ingest.watch('public.notes', 'note', 'q')",
    );
    db.settle();
    assert_eq!(
        db.all::<String>("SELECT document_key FROM ingest.q_chunks"),
        ["00000000-0000-0000-0000-00000000000a"]
    );
}

#[test]
fn two_pipelines_may_watch_a_table_and_one_may_watch_several() {
    let (db, api) = articles(3);
    db.create_remote_pipeline("q", &api, "");
    db.run(WATCH);
    db.run(
        "CREATE TABLE public.pages (id int PRIMARY KEY, slug text, text text);
         INSERT INTO public.pages VALUES (1, 'home', 'Welcome.'), (2, 'about', 'We.'), (3, 'about', 'Twice.'), (4, NULL, 'Nameless.');
         SELECT ingest.watch('public.articles', 'title', 'q');
         SELECT ingest.watch('public.pages', 'text', 'p', key => 'slug')",
    );
    db.settle();
    let keys = |pipeline: &str| {
        db.all::<String>(&format!(
            "SELECT document_key FROM ingest.{pipeline}_chunks ORDER BY document_key COLLATE \"C\""
        ))
    };
    assert_eq!(keys("q"), ["1", "2", "3"]);
    assert_eq!(
        keys("p"),
        [
            "1",
            "2",
            "3",
            "public.pages/4",
            "public.pages/about",
            "public.pages/about (public.pages 3)",
            "public.pages/home"
        ]
    );
    db.run("UPDATE public.pages SET slug = 'start' WHERE id = 1; DELETE FROM public.articles WHERE id = 2");
    db.settle();
    assert_eq!(keys("q"), ["1", "3"]);
    assert!(keys("p").contains(&"public.pages/start".to_owned()));
    assert!(!keys("p").contains(&"public.pages/home".to_owned()));
    counted(&db, "p");
    // A document that somebody inserted has the name already.
    db.run(
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('q', '9', 'By hand.');
            INSERT INTO public.articles (id, title, body) VALUES (9, 'Nine', '')",
    );
    db.settle();
    assert_eq!(keys("q"), ["1", "3", "9", "9 (public.articles 9)"]);
}

#[test]
fn watch_again_changes_the_expressions() {
    let (db, _api) = articles(4);
    db.run(WATCH);
    follows(&db);
    db.run("SELECT ingest.watch('public.articles', 'upper(title)', 'p')");
    db.settle();
    assert_eq!(
        texts_of(&db),
        ["1: TITLE 1", "2: TITLE 2", "3: TITLE 3", "4: TITLE 4"]
    );
    assert_eq!(
        db.one::<String>("SELECT string_agg(DISTINCT metadata::text, ' ') FROM ingest.p_chunks"),
        "{}"
    );
    db.run("UPDATE public.articles SET body = 'Not read any more.'");
    assert_eq!(db.progress_of("p").state, "idle");
    // What happened while nobody looked is found.
    db.run("ALTER TABLE public.articles DISABLE TRIGGER USER; DELETE FROM public.articles WHERE id = 1;
            INSERT INTO public.articles (id, title) VALUES (5, 'Title 5'); ALTER TABLE public.articles ENABLE TRIGGER USER");
    db.run("SELECT ingest.watch('public.articles', 'upper(title)', 'p')");
    db.settle();
    counted(&db, "p");
    assert_eq!(
        texts_of(&db),
        ["2: TITLE 2", "3: TITLE 3", "4: TITLE 4", "5: TITLE 5"]
    );
}

#[test]
fn unwatch_leaves_nothing_behind() {
    let (db, _api) = articles(30);
    let before = db
        .rows_as_text("SELECT tgname FROM pg_trigger WHERE tgrelid = 'public.articles'::regclass");
    db.run(WATCH);
    follows(&db);
    db.run("SELECT ingest.unwatch('public.articles', 'p')");
    counted(&db, "p");
    assert_eq!(db.progress_of("p").counts(), (0, 0, 0, 0));
    assert_eq!(
        db.rows_as_text(
            "SELECT tgname FROM pg_trigger WHERE tgrelid = 'public.articles'::regclass"
        ),
        before
    );
    for table in ["watch", "documents", "queue", "failures", "p_chunks"] {
        assert_eq!(
            db.one::<i64>(&format!("SELECT count(*) FROM ingest.{table}")),
            0,
            "{table}"
        );
    }
    db.run("INSERT INTO public.articles (id) VALUES (1000)");
    let error = db.expect_error("SELECT ingest.unwatch('public.articles', 'p')");
    assert_eq!(error.code, "42704");
    // So does dropping the pipeline, the table or the extension.
    db.run(WATCH);
    db.run("SELECT ingest.drop_pipeline('p', true)");
    assert_eq!(
        db.rows_as_text(
            "SELECT tgname FROM pg_trigger WHERE tgrelid = 'public.articles'::regclass"
        ),
        before
    );
    db.run("SELECT ingest.create_pipeline('q', target => 'public.q'); SELECT ingest.watch('public.articles', 'title', 'q')");
    db.run("DROP EXTENSION pg_ingest");
    assert_eq!(
        db.rows_as_text(
            "SELECT tgname FROM pg_trigger WHERE tgrelid = 'public.articles'::regclass"
        ),
        before
    );
    db.run("INSERT INTO public.articles (id) VALUES (1001)");
}

#[test]
fn a_table_that_is_dropped_takes_its_documents_along() {
    let (db, _api) = articles(30);
    db.run(WATCH);
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'own', 'By hand.')");
    db.settle();
    db.run("DROP TABLE public.articles");
    wait_until("its documents are gone", SOON, || {
        db.progress_of("p").counts() == (1, 1, 0, 0)
            && db.one::<i64>("SELECT count(*) FROM ingest.watch") == 0
    });
    counted(&db, "p");
    assert_eq!(texts_of(&db), ["own: By hand."]);
}

#[test]
fn a_long_table_is_read_in_short_transactions_while_others_write_to_it() {
    let (db, _api) = articles(20_000);
    let (cluster, name) = (db.cluster(), db.name().to_owned());
    let writer = std::thread::spawn(move || {
        let mut client = cluster.client(&name);
        for n in 0..60 {
            run(
                &mut client,
                &format!(
                    "DELETE FROM public.articles WHERE id = {n} * 311 + 5;
                     UPDATE public.articles SET title = 'Changed ' || id WHERE id = {n} * 317 + 7;
                     UPDATE public.articles SET id = 100000 + id WHERE id = {n} * 331 + 11;
                     INSERT INTO public.articles (id, title, body) VALUES (50000 + {n}, 'New', 'New.')"
                ),
            );
        }
    });
    db.run(WATCH);
    let longest = {
        let mut client = db.connect();
        let mut longest = 0.0f64;
        wait_until("the table has been read", SOON * 4, || {
            let row = client
                .query_one(
                    "SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float8,
                            (SELECT bool_and(state = 'watching') FROM ingest.watches)
                     FROM pg_stat_activity WHERE backend_type LIKE 'pg_ingest%' AND datname = current_database()",
                    &[],
                )
                .expect("a look at the worker");
            longest = longest.max(row.get(0));
            row.get(1)
        });
        longest
    };
    writer.join().expect("the writer is not disturbed");
    assert!(longest < 10.0, "a transaction of {longest} s");
    assert!(db.one::<bool>("SELECT ingest.wait('p', '300 s')"));
    follows(&db);
}

#[test]
fn a_bulk_change_is_one_statement_of_ours() {
    let (db, _api) = articles(0);
    db.run("SELECT ingest.pause('p')");
    db.run(WATCH);
    let timed = |sql: &str| {
        let start = std::time::Instant::now();
        db.run(sql);
        start.elapsed()
    };
    let insert = timed(
        "INSERT INTO public.articles (id, title, body) SELECT n, 'T' || n, 'B' || n FROM generate_series(1, 100000) n",
    );
    let other = timed("UPDATE public.articles SET views = 1");
    let read = timed("UPDATE public.articles SET title = title || '!'");
    println!(
        "100,000 rows: insert {insert:?}, update of another column {other:?}, of one that is read {read:?}"
    );
    assert_eq!(db.progress_of("p").counts(), (100_000, 0, 100_000, 0));
    // Row by row it would be several minutes.
    assert!(read < SOON * 2, "{read:?}");
}

#[test]
fn a_partitioned_table_is_watched_with_its_partitions() {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("p", &api, "");
    db.run(
        "CREATE TABLE public.articles (id int, title text, body text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
         CREATE TABLE public.a PARTITION OF public.articles FOR VALUES FROM (0) TO (100);
         CREATE TABLE public.b (body text, extra int, title text, id int NOT NULL);
         ALTER TABLE public.b DROP extra;
         ALTER TABLE public.articles ATTACH PARTITION public.b FOR VALUES FROM (100) TO (200);
         INSERT INTO public.articles VALUES (1, 'One', '1'), (101, 'Hundred', '101');
         SELECT ingest.watch('public.articles', $$title || E'\\n' || body$$, 'p')",
    );
    follows(&db);
    db.run("INSERT INTO public.articles VALUES (2, 'Two', '2'); INSERT INTO public.b (id, title, body) VALUES (102, 'Direct', '102')");
    follows(&db);
    db.run("UPDATE public.articles SET id = id + 100 WHERE id = 1 AND false; UPDATE public.articles SET id = 103 WHERE id = 1; UPDATE public.b SET title = 'D' WHERE id = 102");
    follows(&db);
    db.run("TRUNCATE public.a");
    follows(&db);
    assert_eq!(
        db.expect_error("SELECT ingest.watch('public.a', 'title', 'p')")
            .detail
            .as_deref(),
        Some("It is a partition.")
    );
    // What came with a partition is found by watch().
    db.run("CREATE TABLE public.c (id int PRIMARY KEY, title text, body text); INSERT INTO public.c VALUES (201, 'C', '201');
            ALTER TABLE public.articles ATTACH PARTITION public.c FOR VALUES FROM (200) TO (300);
            ALTER TABLE public.articles DETACH PARTITION public.b;
            SELECT ingest.watch('public.articles', $$title || E'\\n' || body$$, 'p');
            INSERT INTO public.c VALUES (202, 'D', '202')");
    follows(&db);
    db.run("SELECT ingest.unwatch('public.articles', 'p')");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal AND tgrelid::regclass::text IN ('articles', 'a', 'c')"), 0);
}

#[test]
fn changes_that_are_replicated_are_seen() {
    let (db, _api) = articles(3);
    db.run(WATCH);
    follows(&db);
    // What an apply worker does.
    db.run(
        "SET session_replication_role = replica;
         INSERT INTO public.articles (id, title, body) VALUES (4, 'Four', 'Applied.');
         UPDATE public.articles SET title = 'Changed' WHERE id = 1;
         DELETE FROM public.articles WHERE id = 2;
         RESET session_replication_role",
    );
    follows(&db);
    db.run("SET session_replication_role = replica; TRUNCATE public.articles; RESET session_replication_role");
    follows(&db);
}

#[test]
fn a_transaction_that_began_before_watching_is_told_to_try_again() {
    let (db, _api) = articles(2);
    let mut client = db.connect();
    run(
        &mut client,
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM ingest.documents",
    );
    db.run(WATCH);
    let insert = "INSERT INTO public.articles (id, title, body) VALUES (3, 'Three', 'Of three.')";
    assert_eq!(refused(&mut client, insert).code, "40001");
    run(&mut client, "ROLLBACK");
    run(&mut client, insert);
    follows(&db);
}

#[test]
fn estimate_and_eta_know_what_is_in_the_table() {
    let (db, _api) = articles(0);
    db.run("SELECT ingest.pause('p')");
    db.run("INSERT INTO public.articles (id, title, body) SELECT n, 'T', repeat(md5(n::text) || ' ', 20) FROM generate_series(1, 30) n");
    db.run(WATCH);
    wait_until("the table has been read", SOON, || {
        db.progress_of("p").documents == 30
    });
    let row = &db.rows("SELECT documents, chunks, tokens FROM ingest.estimate('p')")[0];
    let (documents, chunks, tokens): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    assert_eq!((documents, chunks), (30, 30));
    db.run("SELECT ingest.resume('p')");
    db.settle();
    counted(&db, "p");
    assert_eq!(tokens, db.progress_of("p").tokens);
}

#[test]
fn a_subscribers_copy_is_watched_like_any_table() {
    let cluster = Cluster::start(&[("wal_level", "logical")]);
    let publisher = Database::empty_in(&cluster);
    publisher.run(
        "CREATE TABLE public.articles (id bigint PRIMARY KEY, title text, body text);
         INSERT INTO public.articles SELECT n, 'Title ' || n, 'Body ' || n FROM generate_series(1, 5) n;
         CREATE PUBLICATION all_of_it FOR TABLE public.articles",
    );
    publisher.run("SELECT pg_create_logical_replication_slot('articles', 'pgoutput')");
    let db = Database::new_in(&cluster);
    let api = api();
    db.create_remote_pipeline("p", &api, "");
    db.run(
        "CREATE TABLE public.articles (id bigint PRIMARY KEY, title text, body text);
         SELECT ingest.watch('public.articles', $$title || E'\\n' || body$$, 'p')",
    );
    db.run(&format!(
        "CREATE SUBSCRIPTION articles CONNECTION 'host={} port=5432 user=postgres dbname={}' PUBLICATION all_of_it
         WITH (create_slot = false, slot_name = 'articles')",
        cluster.home().display(),
        publisher.name()
    ));
    let arrived = |condition: &str| {
        wait_until("the change is applied", SOON, || {
            db.one::<bool>(&format!("SELECT {condition} FROM public.articles"))
        });
        follows(&db);
    };
    arrived("count(*) = 5");
    publisher.run("INSERT INTO public.articles VALUES (6, 'Six', 'Of six.'); UPDATE public.articles SET body = 'New' WHERE id = 2; DELETE FROM public.articles WHERE id = 3");
    arrived("count(*) = 5 AND bool_or(id = 6) AND bool_or(body = 'New')");
    publisher.run(
        "TRUNCATE public.articles; INSERT INTO public.articles VALUES (7, 'Seven', 'Of seven.')",
    );
    arrived("count(*) = 1");
    db.run("DROP SUBSCRIPTION articles");
}

#[test]
fn content_is_read_with_the_rights_of_the_pipelines_owner() {
    let db = Database::new();
    let (owner, mut client) = role(&db);
    run(
        &mut client,
        "SELECT ingest.create_pipeline('p', target => 'app.p_chunks')",
    );
    db.run(&format!(
        "CREATE TABLE public.articles (id int PRIMARY KEY, title text, tenant text);
         GRANT SELECT, INSERT, UPDATE, TRIGGER ON public.articles TO {owner};
         ALTER TABLE public.articles ENABLE ROW LEVEL SECURITY;
         CREATE POLICY own ON public.articles TO {owner} USING (tenant = 'own');
         INSERT INTO public.articles VALUES (1, 'A text of mine.', 'own'), (2, 'A secret of others.', 'other')"
    ));
    // Who it is, is what it says.
    run(
        &mut client,
        "SELECT ingest.watch('public.articles', $$title || ' ' || current_user$$, 'p')",
    );
    db.settle();
    let there = || db.all::<String>("SELECT content FROM app.p_chunks ORDER BY 1");
    let mine = format!("A text of mine. {owner}");
    assert_eq!(there(), std::slice::from_ref(&mine));
    // A row that is hidden is not there for the pipeline: a new one, and one that was shown before.
    db.run("INSERT INTO public.articles VALUES (3, 'Another secret.', 'other'), (4, 'Another text.', 'own')");
    db.settle();
    assert_eq!(there(), [mine.clone(), format!("Another text. {owner}")]);
    db.run("UPDATE public.articles SET tenant = 'other', title = 'Hidden.' WHERE id = 4");
    db.settle();
    assert_eq!(there(), [mine]);
    assert_eq!(db.progress_of("p").counts(), (1, 1, 0, 0));
}
