//! Promise: `ALTER EXTENSION pg_ingest UPDATE` gives nobody more than they had, and says who has less; neither it nor
//! `CREATE EXTENSION` touches rights on what is not the extension's.

use harness::roles::{another, column, forbidden, role, run};
use harness::*;

const DATA_0_1_0: &str = include_str!("upgrade/data-0.1.0.sql");

/// A database of 0.1.0 with the pipeline `default`, of the superuser, and five documents.
fn in_use() -> Database<'static> {
    let db = Database::of_release("0.1.0");
    db.run(DATA_0_1_0);
    db
}

/// Updates; returns the warnings.
fn update(db: &Database) -> Vec<String> {
    let update = "ALTER EXTENSION pg_ingest UPDATE";
    let mut warnings = db.one_with_notices::<bool>(update, "SELECT true").1;
    warnings.retain(|warning| warning.starts_with("WARNING"));
    warnings
}

/// Who was granted a pipeline.
fn granted(db: &Database) -> Vec<String> {
    db.all("SELECT grantee::text FROM ingest.pipeline_grant ORDER BY 1")
}

#[test]
fn only_who_could_do_everything_is_granted_the_pipelines() {
    let db = in_use();
    let (full, mut all) = another(&db, "full");
    let (reader, mut reads) = another(&db, "reader");
    let (importer, mut adds) = another(&db, "importer");
    let (outside, _client) = another(&db, "outside");
    db.run(&format!(
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ingest.documents TO {full}; GRANT SELECT ON ingest.documents TO {reader};
         GRANT INSERT ON ingest.documents TO {importer}; REVOKE USAGE ON SCHEMA ingest FROM {outside};
         GRANT ALL ON ingest.documents TO {outside}"
    ));
    let warnings = update(&db);
    assert_eq!(granted(&db), [full.to_string()]);
    let said = |role: &str| warnings.iter().any(|warning| warning.contains(role));
    assert!(
        said(&reader) && said(&importer) && said(&outside) && !said(&full),
        "{warnings:?}"
    );
    let count = "SELECT count(*) FROM ingest.documents";
    assert_eq!(column::<i64>(&mut all, count), [5]);
    assert_eq!(column::<i64>(&mut reads, count), [0]);
    assert_eq!(column::<i64>(&mut adds, count), [0]);
    let change = "UPDATE ingest.documents SET content = 'mine'";
    assert_eq!(reads.execute(change, &[]).expect("nothing is seen"), 0);
    forbidden(
        &mut adds,
        "INSERT INTO ingest.documents (content) VALUES ('x')",
    );
}

#[test]
fn whoever_has_less_after_the_update_is_named_with_what_to_say() {
    let db = in_use();
    let mixed = format!("Mixed Case {}", db.name());
    let (columns, mut client) = another(&db, "columns");
    let (owner, _owner) = role(&db);
    db.run(&format!(
        "CREATE ROLE \"{mixed}\"; GRANT SELECT ON ingest.progress, ingest.failures TO \"{mixed}\";
         GRANT SELECT (key), UPDATE (content) ON ingest.documents TO {columns}; GRANT SELECT ON ingest.documents TO PUBLIC, {owner};
         UPDATE ingest.pipeline SET owner = '{owner}'"
    ));
    let warnings = update(&db);
    let of = |who: &str| {
        let mut found = warnings.iter().filter(|warning| warning.contains(who));
        let first = found.next().expect(who);
        assert!(found.next().is_none(), "{warnings:?}");
        first
    };
    let said = of(&mixed);
    assert!(
        said.contains("loses its rights on ingest.failures, ingest.progress"),
        "{said}"
    );
    let advice =
        format!("SELECT ingest.grant_pipeline(name, '\"{mixed}\"') FROM ingest.pipelines;");
    assert!(said.contains(&advice), "{said}");
    of("PUBLIC loses its rights on ingest.documents");
    of(&columns);
    // The owner goes on seeing what is its own.
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    run(&mut client, "SELECT key FROM ingest.documents");
    db.run(&advice);
    assert_eq!(granted(&db), [format!("\"{mixed}\"")]);
    db.run(&format!("DROP ROLE \"{mixed}\""));
}

#[test]
fn nobody_is_named_when_nobody_had_rights() {
    let db = in_use();
    assert_eq!(update(&db), Vec::<String>::new());
    assert_eq!(granted(&db), Vec::<String>::new());
}

#[test]
fn a_right_that_was_passed_on_goes_with_the_right_it_came_from() {
    let db = in_use();
    let (lender, mut lends) = another(&db, "lender");
    let (borrower, _client) = another(&db, "borrower");
    db.run(&format!(
        "GRANT SELECT ON ingest.documents, ingest.queue TO {lender} WITH GRANT OPTION"
    ));
    run(
        &mut lends,
        &format!("GRANT SELECT ON ingest.documents, ingest.queue TO {borrower}"),
    );
    let warnings = update(&db).join("\n");
    assert!(
        warnings.contains(&*lender) && warnings.contains(&*borrower),
        "{warnings}"
    );
    forbidden(&mut lends, "SELECT * FROM ingest.queue");
}

#[test]
fn what_is_not_the_extensions_keeps_its_rights() {
    let db = in_use();
    let (app, mut client) = another(&db, "app");
    db.run(&format!(
        "CREATE PROCEDURE ingest.nightly() LANGUAGE sql AS 'SELECT 1';
         CREATE FUNCTION ingest.report() RETURNS int LANGUAGE sql AS 'SELECT 2';
         REVOKE ALL ON ROUTINE ingest.nightly(), ingest.report() FROM PUBLIC;
         GRANT EXECUTE ON ROUTINE ingest.nightly(), ingest.report() TO {app};
         CREATE TABLE ingest.own AS SELECT 3 AS n; GRANT SELECT ON ingest.own, ingest.default_chunks TO {app};
         REVOKE EXECUTE ON FUNCTION ingest.count_tokens(text, text) FROM PUBLIC;
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA ingest TO {app}"
    ));
    update(&db);
    run(
        &mut client,
        "CALL ingest.nightly(); SELECT ingest.report(); SELECT * FROM ingest.own, ingest.default_chunks;
         SELECT ingest.count_tokens('a text', 'local/all-MiniLM-L6-v2')",
    );
    // What the extension keeps for itself is nobody's to call any more.
    forbidden(&mut client, "SELECT ingest.remove_pipeline(1)");
}

#[test]
fn what_was_in_the_schema_before_keeps_its_rights() {
    let db = Database::empty_in(shared_cluster(&[]));
    db.run("CREATE SCHEMA ingest");
    let (app, mut client) = another(&db, "app");
    db.run(&format!(
        "CREATE TABLE ingest.own AS SELECT 3 AS n; GRANT SELECT ON ingest.own TO {app}"
    ));
    db.run("CREATE EXTENSION pg_ingest CASCADE; SELECT ingest.create_pipeline()");
    db.run(&format!("GRANT SELECT ON ingest.default_chunks TO {app}"));
    let reads = "SELECT * FROM ingest.own, ingest.default_chunks";
    run(&mut client, reads);
    // The target stays when the extension goes, and the schema with it.
    let (guest, mut visitor) = another(&db, "guest");
    db.run(&format!("REVOKE USAGE ON SCHEMA ingest FROM {guest}; GRANT USAGE ON SCHEMA ingest TO {app} WITH GRANT OPTION"));
    run(
        &mut client,
        &format!("GRANT USAGE ON SCHEMA ingest TO {guest}"),
    );
    db.run("DROP EXTENSION pg_ingest; CREATE EXTENSION pg_ingest");
    run(&mut client, reads);
    run(&mut visitor, "SELECT * FROM ingest.progress");
}
