//! Promise: what a role puts on its default target, which lies in the extension's own schema, is evaluated with that role's rights
//! and no others, also while the table is made anew.

use harness::roles::{role, run};
use harness::*;

/// A function that makes its role a superuser if it is ever called by one.
const RISE: &str = "
    CREATE FUNCTION app.rise() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
        IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN EXECUTE 'CREATE ROLE risen SUPERUSER'; END IF;
    END $$;
    CREATE FUNCTION app.pure(t text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM app.rise(); RETURN t; END $$;
    CREATE FUNCTION app.yes(int) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM app.rise(); RETURN true; END $$;
    CREATE DOMAIN app.checked AS text CHECK (app.yes(1))";

#[test]
fn a_table_beside_the_default_target_is_made_with_its_owners_rights() {
    let db = Database::new();
    let (_owner, mut client) = role(&db);
    run(&mut client, "SELECT ingest.create_pipeline('p')");
    run(
        &mut client,
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'k', 'A text.')",
    );
    db.settle();
    run(&mut client, RISE);
    let mut tokens = 100;
    for trap in [
        "CREATE STATISTICS app.st ON (app.pure('s') || content), tokens FROM ingest.p_chunks",
        "CREATE TABLE app.keys (key text PRIMARY KEY); CREATE INDEX ON app.keys ((app.pure('c') || key));
         INSERT INTO app.keys VALUES ('k');
         ALTER TABLE ingest.p_chunks ADD FOREIGN KEY (document_key) REFERENCES app.keys",
        "CREATE POLICY p ON ingest.p_chunks USING ('{x}'::app.checked[] IS NOT NULL)",
        "ALTER TABLE ingest.p_chunks ADD CHECK (app.yes(1)), ALTER content SET DEFAULT app.pure('d')",
        "CREATE TABLE app.parent (LIKE ingest.p_chunks) PARTITION BY RANGE (chunk_no);
         CREATE INDEX ON app.parent (chunk_no) WHERE app.yes(1);
         ALTER TABLE ingest.p_chunks ALTER id DROP IDENTITY;
         ALTER TABLE app.parent ATTACH PARTITION ingest.p_chunks FOR VALUES FROM (0) TO (1000000);
         ALTER TABLE app.parent DETACH PARTITION ingest.p_chunks;
         CREATE SEQUENCE app.ids START 1000; ALTER TABLE ingest.p_chunks ALTER id SET DEFAULT nextval('app.ids')",
    ] {
        run(&mut client, trap);
        tokens += 1;
        run(
            &mut client,
            &format!("SELECT ingest.alter_pipeline('p', chunk_tokens => {tokens})"),
        );
        db.settle();
        assert_eq!(
            db.one::<i32>("SELECT chunk_tokens FROM ingest.pipelines"),
            tokens,
            "{trap}: {:?}",
            db.all::<String>("SELECT last_error FROM ingest.rebuilds")
        );
        assert_eq!(
            db.all::<String>("SELECT rolname::text FROM pg_roles WHERE rolname = 'risen'"),
            Vec::<String>::new(),
            "{trap}"
        );
    }
    // All of it is on the new table, and nothing is left of how it was made.
    assert_eq!(
        db.one::<String>(
            "SELECT concat_ws(' ', (SELECT count(*) FROM pg_policy WHERE polrelid = 'ingest.p_chunks'::regclass), (SELECT count(*) FROM pg_constraint WHERE contype IN ('c', 'f')
                                    AND conrelid = 'ingest.p_chunks'::regclass),
                              (SELECT count(*) FROM pg_index WHERE indrelid = 'ingest.p_chunks'::regclass AND indpred IS NOT NULL),
                              (SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'ingest%'), pg_get_userbyid(c.relowner) LIKE 'owner%')
             FROM pg_class c WHERE c.oid = 'ingest.p_chunks'::regclass"
        ),
        "1 2 1 1 t"
    );
}
