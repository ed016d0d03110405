//! Promise: a key is used where its owner may use it, for hosts that are allowed, and is found where it is kept, when it is
//! needed.

use fake_api::FakeApi;
use harness::remote::{KEY, MODEL, OTHER_KEY, behaviour};
use harness::roles::{another, column, forbidden, refused, role, run};
use harness::*;

/// What Supabase Vault looks like to a reader, without its encryption.
const VAULT: &str = "CREATE SCHEMA vault;
    CREATE TABLE vault.secrets (name text, secret text);
    CREATE VIEW vault.decrypted_secrets AS SELECT name, secret AS decrypted_secret FROM vault.secrets;
    REVOKE ALL ON ALL TABLES IN SCHEMA vault FROM PUBLIC";

fn create(url: &str, key: &str, more: &str) -> String {
    format!(
        "SELECT ingest.create_pipeline('mine', model => '{MODEL}', base_url => '{url}', api_key => '{key}', target => 'app.docs'{more})"
    )
}

fn insert(key: &str) -> String {
    format!(
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('mine', '{key}', 'Text {key}.')"
    )
}

fn blocked_because(db: &Database, words: &str) {
    wait_until(words, SOON, || {
        let progress = db.progress_of("mine");
        progress.state == "blocked" && progress.last_error.is_some_and(|e| e.contains(words))
    });
    assert_eq!(db.progress_of("mine").failed, 0);
}

#[test]
fn a_secret_of_vault_serves_whoever_can_read_it() {
    let api = FakeApi::start(behaviour());
    let cluster = Cluster::start(&[("pg_ingest.allowed_hosts", "*")]);
    let db = Database::new_in(&cluster);
    let (owner, mut client) = role(&db);
    run(&mut client, &create(&api.openai_url(), "vault:openai", ""));
    run(&mut client, &insert("a"));
    blocked_because(&db, "no view vault.decrypted_secrets");

    db.run(VAULT);
    run(&mut client, "SELECT ingest.resume('mine')");
    blocked_because(&db, "may not read vault.decrypted_secrets");

    db.run(&format!(
        "GRANT USAGE ON SCHEMA vault TO {owner}; GRANT SELECT ON vault.decrypted_secrets TO {owner}"
    ));
    run(&mut client, "SELECT ingest.resume('mine')");
    blocked_because(&db, "no secret \"openai\" in Vault");

    db.run(&format!(
        "INSERT INTO vault.secrets VALUES ('openai', '{KEY}')"
    ));
    run(&mut client, "SELECT ingest.resume('mine')");
    db.settle();
    assert_eq!(db.progress_of("mine").counts(), (1, 1, 0, 0));

    // A key that is changed on both sides is found without anybody's help, and nothing is lost.
    db.run(&format!("UPDATE vault.secrets SET secret = '{OTHER_KEY}'"));
    api.accept_key(OTHER_KEY);
    run(&mut client, &insert("b"));
    db.settle();
    assert_eq!(db.progress_of("mine").counts(), (2, 2, 0, 0));
    assert_eq!(db.progress_of("mine").last_error, None);

    // A query finds it too, when there is nothing else to do.
    db.run(&format!("UPDATE vault.secrets SET secret = '{KEY}'"));
    api.accept_key(KEY);
    run(&mut client, "SELECT ingest.embed('a question', 'mine')");
}

#[test]
fn everybody_s_pipelines_go_to_allowed_hosts_only() {
    let api = FakeApi::start(behaviour());
    let cluster = Cluster::start(&[]);
    let key = cluster.write_key(KEY);
    let db = Database::new_in(&cluster);
    let (_owner, mut client) = role(&db);
    let url = api.openai_url();
    let host = url
        .trim_start_matches("http://")
        .trim_end_matches("/v1")
        .to_owned();

    let error = forbidden(&mut client, &create(&url, "vault:openai", ""));
    assert!(
        error
            .text()
            .contains(&format!("host {host} is not in pg_ingest.allowed_hosts")),
        "{}",
        error.text()
    );
    // Not even without a key: documents would leave.
    forbidden(
        &mut client,
        &format!(
            "SELECT ingest.create_pipeline('mine', model => 'ollama/x', dimensions => 8, base_url => '{url}', target => 'app.docs')"
        ),
    );

    cluster.reload(&[("pg_ingest.allowed_hosts", &host)]);
    wait_until("the host is allowed", SOON, || {
        client.batch_execute(&create(&url, &key, "")).is_ok()
    });
    run(&mut client, &insert("a"));
    db.settle();
    forbidden(
        &mut client,
        "SELECT ingest.alter_pipeline('mine', base_url => 'http://169.254.169.254/v1')",
    );

    let error = db.expect_error("ALTER SYSTEM SET pg_ingest.allowed_hosts = 'https://x'");
    assert_eq!(error.code, "22023", "{}", error.text());

    // What is no longer allowed is no longer done.
    cluster.reload(&[("pg_ingest.allowed_hosts", "elsewhere.example")]);
    wait_until("the setting is known", SOON, || {
        db.one::<String>("SELECT current_setting('pg_ingest.allowed_hosts')") == "elsewhere.example"
    });
    run(&mut client, &insert("b"));
    blocked_because(&db, "is not in pg_ingest.allowed_hosts");
    assert_eq!(api.arrived(), 1);

    // A superuser may send it there.
    db.run(&format!(
        "SELECT ingest.alter_pipeline('mine', base_url => '{url}', api_key => '')"
    ));
    api.change(|behaviour| behaviour.keys.clear());
    run(&mut client, "SELECT ingest.resume('mine')");
    db.settle();
    assert_eq!(db.progress_of("mine").counts(), (2, 2, 0, 0));
    // And the owner may not use that for another place.
    forbidden(
        &mut client,
        "SELECT ingest.alter_pipeline('mine', base_url => 'http://127.0.0.1:1/v1')",
    );
}

#[test]
fn a_key_of_the_server_is_not_for_everybody() {
    let cluster = Cluster::start(&[]);
    let key = cluster.write_key(KEY);
    let db = Database::new_in(&cluster);
    let (owner, mut client) = role(&db);
    let at_openai = |key: &str| {
        format!(
            "SELECT ingest.create_pipeline('mine', model => '{MODEL}', api_key => '{key}', target => 'app.docs')"
        )
    };
    for key in ["env:PATH", key.as_str()] {
        let error = forbidden(&mut client, &at_openai(key));
        assert!(
            error.text().contains("may not use the key"),
            "{}",
            error.text()
        );
    }
    db.run(&format!("GRANT pg_read_server_files TO {owner}"));
    run(&mut client, &at_openai(&key));
    run(
        &mut client,
        "SELECT ingest.pause('mine'); SELECT ingest.drop_pipeline('mine', true)",
    );
    db.run(&format!("REVOKE pg_read_server_files FROM {owner}"));
    cluster.reload(&[("pg_ingest.allowed_hosts", "api.openai.com")]);
    wait_until("the administrator has allowed the host", SOON, || {
        client.batch_execute(&at_openai("env:PATH")).is_ok()
    });
}

#[test]
fn the_doctor_tells_what_is_wrong_with_a_key_and_never_the_key() {
    let cluster = Cluster::start(&[]);
    let db = Database::new_in(&cluster);
    let problem = || {
        db.one::<String>(
            "SELECT detail FROM ingest.doctor() WHERE \"check\" = 'model of mine' AND NOT ok",
        )
    };
    db.run("CREATE SCHEMA app");
    db.run(&create(
        "http://127.0.0.1:9/v1",
        "env:NO_SUCH_VARIABLE_HERE",
        "",
    ));
    assert!(problem().contains("NO_SUCH_VARIABLE_HERE"), "{}", problem());
    db.run("SELECT ingest.alter_pipeline('mine', api_key => 'file:/nowhere/key')");
    assert!(problem().contains("/nowhere/key"), "{}", problem());
    let key = cluster.write_key(&format!("{KEY}\nsecond line"));
    db.run(&format!(
        "SELECT ingest.alter_pipeline('mine', api_key => '{key}')"
    ));
    assert!(!problem().contains("4f9d2c81"), "{}", problem());
    cluster.write_key(KEY);
    assert!(db.one::<bool>("SELECT ok FROM ingest.doctor() WHERE \"check\" = 'model of mine'"));
}

#[test]
fn a_key_that_is_given_by_mistake_is_not_logged() {
    let cluster = Cluster::start(&[]);
    let db = Database::new_in(&cluster);
    for sql in [
        format!("SELECT ingest.create_pipeline('p', model => '{MODEL}', api_key => '{KEY}')"),
        format!("SELECT ingest.create_pipeline('p', model => '{MODEL}', api_key => 'env:{KEY}')"),
        // Something else is wrong, too.
        format!("SELECT ingest.create_pipeline('p', api_key => '{KEY}')"),
        format!("SELECT ingest.create_pipeline('p', model => 'nobody/x', api_key => '{KEY}')"),
        format!(
            "SELECT ingest.create_pipeline('p', model => '{MODEL}', base_url => 'no url', api_key => '{KEY}')"
        ),
        // Elsewhere than in api_key.
        format!(
            "SELECT ingest.create_pipeline('p', model => '{MODEL}', base_url => 'https://h/?key={KEY}')"
        ),
        format!(
            "SELECT ingest.create_pipeline('p', model => '{MODEL}', base_url => 'https://u:{KEY}@h/')"
        ),
        format!(
            r#"SELECT ingest.create_pipeline('p', model => '{MODEL}', request => '{{"headers": {{"Authorization": "Bearer {KEY}"}}}}')"#
        ),
        format!(
            r#"SELECT ingest.create_pipeline('p', model => '{MODEL}', request => '{{"key": "{KEY}"}}')"#
        ),
    ] {
        let error = db.expect_error(&sql);
        assert_eq!(error.code, "22023", "{}", error.text());
        assert!(!error.text().contains(&KEY[8..]), "{}", error.text());
    }
    let error = db.expect_error(&format!(
        "SELECT ingest.alter_pipeline('no such pipeline', api_key => '{KEY}')"
    ));
    assert_eq!(error.code, "42704", "{}", error.text());
    // Other errors are logged with their statements, also after these.
    db.expect_error("SELECT ingest.pause('no such pipeline')");
    let log = harness::remote::server_log(&cluster);
    assert!(log.contains("STATEMENT:  SELECT ingest.pause"), "{log}");
    assert!(!log.contains(&KEY[8..]), "{log}");
}

#[test]
fn where_a_key_is_kept_is_for_the_owner_alone() {
    let cluster = Cluster::start(&[]);
    let db = Database::new_in(&cluster);
    let (owner, mut owns) = role(&db);
    let (guest, mut client) = another(&db, "guest");
    db.run(&format!(
        "SELECT ingest.create_pipeline('mine', model => '{MODEL}', api_key => 'file:/nowhere/secret', target => 'app.docs');
         SELECT ingest.grant_pipeline('mine', '{guest}')"
    ));
    run(&mut client, &insert("a"));
    let seen = |client: &mut postgres::Client| {
        let embed = refused(client, "SELECT ingest.embed('a question', 'mine')").text();
        let doctor = column::<String>(
            client,
            "SELECT concat_ws(' ', detail, hint) FROM ingest.doctor()",
        );
        let progress = Progress::read(client, "mine")
            .last_error
            .unwrap_or_default();
        (embed, progress, doctor.join("\n"))
    };
    let hidden = |(embed, progress, doctor): (String, String, String)| {
        for text in [&embed, &progress, &doctor] {
            assert!(
                text.contains("its owner can see why") && !text.contains("nowhere"),
                "{text}"
            );
        }
    };
    db.until_blocked("mine");
    hidden(seen(&mut client));
    let (embed, progress, doctor) = db.with_client(seen);
    for text in [embed, progress, doctor] {
        assert!(text.contains("file:/nowhere/secret"), "{text}");
    }
    // Nor what its owner may not use.
    db.run(&format!(
        "UPDATE ingest.pipeline SET owner = '{owner}', trusted = false; ALTER TABLE app.docs OWNER TO {owner}; SELECT ingest.resume('mine')"
    ));
    blocked_because(&db, "may not use the key");
    hidden(seen(&mut client));
    assert!(seen(&mut owns).2.contains("may not use the key"));
}

#[test]
fn a_host_is_allowed_as_the_hint_writes_it() {
    let cluster = Cluster::start(&[]);
    let db = Database::new_in(&cluster);
    let (_owner, mut client) = role(&db);
    for (url, entry) in [
        ("http://127.0.0.1/v1", "127.0.0.1:80"),
        ("https://127.0.0.1/v1", "127.0.0.1"),
        ("http://127.0.0.1:443/v1", "127.0.0.1:443"),
    ] {
        let create = format!(
            "SELECT ingest.create_pipeline('mine', model => 'ollama/x', dimensions => 8, base_url => '{url}', target => 'app.docs')"
        );
        let error = forbidden(&mut client, &create);
        let advice = format!("pg_ingest.allowed_hosts = '{entry}'");
        assert!(error.text().contains(&advice), "{}", error.text());
        cluster.reload(&[("pg_ingest.allowed_hosts", entry)]);
        wait_until("what the hint says helps", SOON, || {
            client.batch_execute(&create).is_ok()
        });
        run(&mut client, "SELECT ingest.drop_pipeline('mine', true)");
        cluster.reload(&[("pg_ingest.allowed_hosts", "")]);
        wait_until("nothing is allowed", SOON, || {
            column::<String>(&mut client, "SHOW pg_ingest.allowed_hosts") == [""]
        });
    }
}
