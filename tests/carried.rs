//! Promise: what a user has put on a pipeline's table is on the one that takes its place; what stands in the way of that is named,
//! and harms nothing; and it takes no superuser.

use harness::rebuild::*;
use harness::roles::{another, forbidden, pipeline_owner, run};
use harness::*;

#[test]
fn what_a_user_has_put_on_the_table_is_on_the_new_one() {
    let db = Database::new();
    let (_old, new) = pipeline(&db, &["a", "b"]);
    let name = format!("reader_{}", db.name());
    db.run(&format!(
        "CREATE ROLE {name}; CREATE SEQUENCE ingest.numbers; CREATE TABLE public.keys (key text PRIMARY KEY);
         INSERT INTO public.keys VALUES ('a'), ('b');
         ALTER TABLE ingest.p_chunks ADD note text DEFAULT 'none', ADD number bigint DEFAULT nextval('ingest.numbers'),
             ADD CONSTRAINT short CHECK (length(note) < 100), ADD CONSTRAINT known FOREIGN KEY (document_key) REFERENCES public.keys,
             ENABLE ROW LEVEL SECURITY, REPLICA IDENTITY FULL, SET (fillfactor = 70);
         ALTER SEQUENCE ingest.numbers OWNED BY ingest.p_chunks.number;
         CREATE INDEX by_note ON ingest.p_chunks (note) WHERE note IS NOT NULL;
         CREATE INDEX by_vector ON ingest.p_chunks USING hnsw (embedding vector_cosine_ops) WITH (m = 8);
         CREATE POLICY readers ON ingest.p_chunks FOR SELECT TO {name} USING (note = 'none' AND EXISTS (SELECT FROM public.keys k WHERE k.key = document_key AND k.key <> 'b'));
         COMMENT ON POLICY readers ON ingest.p_chunks IS 'not b';
         COMMENT ON TABLE ingest.p_chunks IS 'mine'; COMMENT ON COLUMN ingest.p_chunks.note IS 'noted';
         GRANT USAGE ON SCHEMA ingest TO {name}; GRANT SELECT ON public.keys TO {name}; GRANT SELECT ON ingest.p_chunks TO {name} WITH GRANT OPTION;
         GRANT UPDATE (note) ON ingest.p_chunks TO {name};
         CREATE PUBLICATION mine FOR TABLE ingest.p_chunks;
         ALTER DEFAULT PRIVILEGES IN SCHEMA ingest GRANT ALL ON TABLES TO PUBLIC",
    ));
    let seen = || {
        db.all::<String>(
            "SELECT line FROM (
                 SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = 'ingest.p_chunks'::regclass
                 UNION ALL SELECT conname || pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'ingest.p_chunks'::regclass
                 UNION ALL SELECT concat_ws(' ', relacl, relrowsecurity, relforcerowsecurity, relreplident, reloptions, relowner, obj_description(oid, 'pg_class'))
                           FROM pg_class WHERE oid = 'ingest.p_chunks'::regclass
                 UNION ALL SELECT concat_ws(' ', attname, attnotnull, attidentity, attacl, col_description(attrelid, attnum), pg_get_serial_sequence('ingest.p_chunks', attname))
                           FROM pg_attribute WHERE attrelid = 'ingest.p_chunks'::regclass AND attnum > 0
                 UNION ALL SELECT concat_ws(' ', policyname, permissive, roles, cmd, qual, with_check) FROM pg_policies
                 UNION ALL SELECT obj_description(oid, 'pg_policy') FROM pg_policy
                 UNION ALL SELECT concat_ws(' ', pubname, schemaname, tablename) FROM pg_publication_tables
                 UNION ALL SELECT adbin FROM (SELECT pg_get_expr(adbin, adrelid) AS adbin FROM pg_attrdef WHERE adrelid = 'ingest.p_chunks'::regclass) d
             ) AS lines(line) ORDER BY line",
        )
    };
    let before = seen();
    let oid = || db.one::<i64>("SELECT 'ingest.p_chunks'::regclass::oid::bigint");
    let old_oid = oid();
    let mut client = db.connect();
    let prepared = client
        .prepare("SELECT count(*) FROM ingest.p_chunks WHERE note = 'none'")
        .expect("a statement");
    let count = |client: &mut postgres::Client| -> i64 {
        client.query_one(&prepared, &[]).expect("its result").get(0)
    };
    assert_eq!(count(&mut client), 2);
    begin(&db, &new, "");
    // Nobody sees the new table before it is in use.
    assert!(!db.one::<bool>(&format!(
        "SELECT has_table_privilege('{name}', target::oid, 'SELECT') FROM ingest.rebuilds"
    )));
    new.release_answers();
    db.settle();
    assert_ne!(oid(), old_oid);
    assert_eq!(seen(), before);
    assert_eq!(count(&mut client), 2);
    db.run(&format!("SET ROLE {name}"));
    assert_eq!(
        db.all::<String>("SELECT document_key FROM ingest.p_chunks"),
        ["a"]
    );
    db.run("RESET ROLE");
    assert_eq!(found(&db, "Old text of a.").as_deref(), Some("a"));
    nothing_left(&db);
    db.run(&format!("DROP OWNED BY {name}"));
}

#[test]
fn what_cannot_be_carried_over_is_named_beforehand() {
    let db = Database::new();
    let (_old, _new) = pipeline(&db, &["a"]);
    let cases = [
        ("CREATE VIEW public.seen AS SELECT document_key FROM ingest.p_chunks", "DROP VIEW public.seen", "view public.seen"),
        ("CREATE TABLE public.notes (id bigint REFERENCES ingest.p_chunks)", "DROP TABLE public.notes", "notes_id_fkey"),
        (
            "CREATE FUNCTION public.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
             CREATE TRIGGER mine AFTER INSERT ON ingest.p_chunks EXECUTE FUNCTION public.f()",
            "DROP FUNCTION public.f CASCADE",
            "trigger mine",
        ),
        (
            "CREATE FUNCTION public.rows() RETURNS SETOF ingest.p_chunks LANGUAGE sql AS 'SELECT * FROM ingest.p_chunks'",
            "DROP FUNCTION public.rows",
            "function public.rows()",
        ),
        ("CREATE TABLE public.child () INHERITS (ingest.p_chunks)", "DROP TABLE public.child", "inherits"),
    ];
    for (make, drop, word) in cases {
        db.run(make);
        let error = db.expect_error("SELECT ingest.alter_pipeline('p', dimensions => 96)");
        assert_eq!(error.code, "55000", "{}", error.text());
        assert!(error.text().contains(word), "{word}: {}", error.text());
        assert!(error.hint.is_some(), "{}", error.text());
        // Other chunks can still be had, document by document.
        db.run("SELECT ingest.alter_pipeline('p', chunk_tokens => 99)");
        db.settle();
        db.run("SELECT ingest.alter_pipeline('p', chunk_tokens => 100)");
        db.settle();
        db.run(drop);
    }
    db.run("ALTER TABLE ingest.documents DISABLE TRIGGER documents_deleted; DELETE FROM ingest.documents; ALTER TABLE ingest.documents ENABLE TRIGGER documents_deleted");
    let error = db.expect_error("SELECT ingest.alter_pipeline('p', dimensions => 96)");
    assert!(error.text().contains("no document"), "{}", error.text());
    db.run("SELECT ingest.create_pipeline('q', on_success => 'delete'); INSERT INTO ingest.documents (pipeline, key, content) VALUES ('q', 'k', 'A text.')");
    db.settle();
    let error =
        db.expect_error("SELECT ingest.alter_pipeline('q', model => 'ollama/x', dimensions => 3)");
    assert!(error.text().contains("on_success"), "{}", error.text());
    db.run("SELECT ingest.alter_pipeline('q', chunk_tokens => 100)");
}

#[test]
fn what_comes_in_the_way_later_blocks_the_switch_visibly_and_harms_nothing() {
    let db = Database::new();
    let (_old, new) = pipeline(&db, &["a"]);
    begin(&db, &new, "");
    db.run("CREATE VIEW public.seen AS SELECT document_key FROM ingest.p_chunks");
    new.release_answers();
    wait_until("it is blocked", SOON, || rebuild(&db) == ["blocked 1 1 0"]);
    let error: String = db.one("SELECT last_error FROM ingest.rebuilds");
    assert!(
        error.contains("cannot take the old ones' place") && error.contains("public.seen"),
        "{error}"
    );
    assert!(!db.one::<bool>("SELECT ok FROM ingest.doctor() WHERE \"check\" = 'rebuild of p'"));
    assert_eq!(found(&db, "Old text of a.").as_deref(), Some("a"));
    db.run("DROP VIEW public.seen; SELECT ingest.resume('p')");
    db.settle();
    assert_eq!(found(&db, "Old text of a.").as_deref(), Some("a"));
    nothing_left(&db);
}

#[test]
fn a_table_that_hides_rows_from_its_owner_is_not_taken_for_an_empty_one() {
    let db = Database::new();
    let (_owner, mut client) = pipeline_owner(&db, "");
    run(
        &mut client,
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('mine', 'k', 'A text.')",
    );
    db.settle();
    db.run("ALTER TABLE app.docs ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY");
    let sql = "SELECT ingest.alter_pipeline('mine', chunk_tokens => 100)";
    forbidden(&mut client, sql);
    db.run("ALTER TABLE app.docs NO FORCE ROW LEVEL SECURITY");
    run(&mut client, sql);
    db.settle();
    assert!(db.one::<bool>("SELECT relrowsecurity FROM pg_class WHERE oid = 'app.docs'::regclass"));
    run(&mut client, "SELECT ingest.drop_pipeline('mine', true)");
}

#[test]
fn an_owner_who_is_no_superuser_can_do_it_all() {
    let db = Database::new();
    let (owner, mut client) = pipeline_owner(&db, "");
    run(
        &mut client,
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('mine', 'k', 'A text.')",
    );
    db.settle();
    db.run("SELECT ingest.pause('mine')");
    run(
        &mut client,
        "SELECT ingest.alter_pipeline('mine', chunk_tokens => 100)",
    );
    db.run("SELECT ingest.resume('mine')");
    db.settle();
    assert!(db.one::<bool>(&format!(
        "SELECT relowner = '{owner}'::regrole FROM pg_class WHERE oid = 'app.docs'::regclass"
    )));
    assert_eq!(
        db.one::<i32>("SELECT chunk_tokens FROM ingest.pipelines"),
        100
    );
    // Nor may others.
    let (_other, mut other) = another(&db, "other");
    for sql in [
        "SELECT ingest.cancel_rebuild('mine')",
        "SELECT ingest.finish_rebuild('mine')",
        "SELECT ingest.take_place(1)",
        "SELECT * FROM ingest.swap_statements(1, 1)",
    ] {
        forbidden(&mut other, sql);
    }
    run(&mut client, "SELECT ingest.drop_pipeline('mine', true)");
}
