//! Promise: a budget is used by all who share it, whatever the number of processes and databases, and never exceeded: the
//! provider refuses nothing. It can be changed while it is used, seen, and estimated before it is spent.

use std::time::Duration;

use fake_api::{Behaviour, FakeApi, Fault, Latency, Limits};
use harness::roles::{another, forbidden, role, run};
use harness::*;

/// An API that keeps these limits by the minute and by the second.
fn api(limits: Limits) -> FakeApi {
    FakeApi::start(Behaviour {
        limits,
        latency: Latency {
            fixed: Duration::from_millis(100),
            ..Latency::default()
        },
        ..remote::behaviour()
    })
}

/// What every budgeted run must show: nothing refused, nothing sent twice, no more in a window than the limit and one
/// request.
fn nothing_was_refused(api: &FakeApi, rpm: u64, tpm: u64) {
    assert_eq!(api.refused(), 0, "requests refused");
    assert_eq!(api.repeated_inputs(), 0, "inputs sent twice");
    let largest = api.requests().iter().map(|r| r.tokens).max().unwrap_or(0);
    for seconds in [1, 10, 60] {
        let busiest = api.busiest(Duration::from_secs(seconds));
        let (requests, tokens) = (rpm * seconds / 60, tpm * seconds / 60);
        // A tenth of a second for the way from the budget to the server.
        assert!(
            busiest.requests <= requests + rpm / 600 + 2,
            "{busiest:?} in {seconds} s of {requests} requests"
        );
        assert!(
            busiest.tokens <= tokens + tpm / 600 + largest,
            "{busiest:?} in {seconds} s of {tokens} tokens"
        );
    }
}

#[test]
fn several_workers_of_several_databases_share_one_budget_and_are_never_refused() {
    let (rpm, tpm) = (4_000, 4_000_000);
    let api = api(Limits::per_minute(rpm, tpm));
    let cluster = Cluster::start(&[("pg_ingest.workers", "2")]);
    let databases = [Database::new_in(&cluster), Database::new_in(&cluster)];
    for db in &databases {
        db.run(&format!(
            "SELECT ingest.set_limit('shared', rpm => {rpm}, tpm => {tpm}, utilization => 1.0)"
        ));
        db.create_remote_pipeline("default", &api, "limits => 'shared', index => 'none'");
        db.run("SELECT ingest.pause('default')");
        db.insert_prose("default", db.name(), 600, 340);
    }
    for db in &databases {
        db.run("SELECT ingest.resume('default')");
    }
    for db in &databases {
        db.settle();
        assert_eq!(db.progress().counts(), (600, 600, 0, 0));
        assert_eq!(db.check_vectors("ingest.default_chunks"), 600);
    }
    nothing_was_refused(&api, rpm, tpm);
    let sent = api.tokens_accepted() as i64;
    for db in &databases {
        let today: i64 = db.one("SELECT tokens_today FROM ingest.limits WHERE name = 'shared'");
        assert_eq!(today, sent, "each database sees what all have sent");
    }
}

#[test]
fn a_scarce_budget_of_requests_is_kept_too() {
    let api = api(Limits::per_minute(600, 10_000_000));
    let db = Database::new();
    db.run("SELECT ingest.set_limit('few', rpm => 600, utilization => 1.0)");
    db.create_remote_pipeline("default", &api, "limits => 'few', batch_size => 1");
    db.insert_prose("default", "d", 60, 10);
    db.settle();
    assert_eq!(api.accepted(), 60);
    nothing_was_refused(&api, 600, 10_000_000);
}

#[test]
fn pipelines_of_one_limit_get_equal_shares_whatever_their_requests_look_like() {
    let api = api(Limits::none());
    let db = Database::new();
    db.run("SELECT ingest.set_limit('both', tpm => 1200000, utilization => 1.0)");
    for (name, more) in [("small", "batch_size => 2"), ("large", "concurrency => 20")] {
        let more = format!(
            "limits => 'both', index => 'none', request => '{{\"headers\": {{\"x-pipeline\": \"{name}\"}}}}', {more}"
        );
        db.create_remote_pipeline(name, &api, &more);
        db.run(&format!("SELECT ingest.pause('{name}')"));
        db.insert_prose(name, "d", 600, 340);
    }
    db.run("SELECT ingest.resume('small'), ingest.resume('large')");
    wait_until("a third is done", SOON, || api.tokens_accepted() > 140_000);
    let tokens = |name: &str| -> u64 {
        let requests = api.requests();
        let of = requests
            .iter()
            .filter(|r| r.header("x-pipeline") == Some(name));
        of.map(|r| r.tokens).sum()
    };
    let (small, large) = (tokens("small"), tokens("large"));
    let share = small as f64 / (small + large) as f64;
    assert!((0.35..=0.65).contains(&share), "{small} and {large} tokens");
}

#[test]
fn a_changed_limit_takes_effect_at_once() {
    let api = api(Limits::none());
    let db = Database::new();
    db.run("SELECT ingest.set_limit('l', rpm => 1, tpm => 1000, utilization => 1.0)");
    db.create_remote_pipeline("default", &api, "limits => 'l', batch_size => 1");
    db.insert_prose("default", "d", 20, 340);
    wait_until("the first request is sent", SOON, || api.arrived() == 1);
    // At one a minute this would be over in twenty minutes.
    db.run("SELECT ingest.set_limit('l', rpm => 60000, tpm => 60000000)");
    db.settle();
    assert_eq!(api.accepted(), 20);
    db.run("SELECT ingest.set_limit('l', rpm => 1)");
    api.hold_answers();
    db.insert_prose("default", "e", 5, 20);
    wait_until("the next is sent", SOON, || api.arrived() == 21);
    assert_eq!(db.progress().embedded, 20);
    api.release_answers();
    // Another limit for the pipeline does the same.
    db.run("SELECT ingest.set_limit('wide', rpm => 60000); SELECT ingest.alter_pipeline('default', limits => 'wide')");
    db.settle();
    assert_eq!(db.progress().embedded, 25);
}

#[test]
fn the_day_s_budget_holds_across_a_restart() {
    let api = api(Limits::none());
    let cluster = Cluster::start(&[]);
    let db = Database::new_in(&cluster);
    let to_midnight: f64 = db.one("SELECT extract(epoch FROM date_trunc('day', now() AT TIME ZONE 'UTC') + interval '1 day' - now() AT TIME ZONE 'UTC')::float8");
    if to_midnight < 180.0 {
        eprintln!("skipped: the day is nearly over");
        return;
    }
    db.run("SELECT ingest.set_limit('day', rpd => 10, utilization => 1.0)");
    db.create_remote_pipeline("default", &api, "limits => 'day', batch_size => 1");
    db.insert_prose("default", "d", 20, 20);
    let spent = |db: &Database| {
        wait_until("the day's budget is spent", SOON, || {
            db.progress().state == "cooling_down" && db.progress().embedded == 10
        });
        assert_eq!(
            db.one::<i64>("SELECT requests_today FROM ingest.limits"),
            10
        );
        assert!(db.one::<bool>(
            "SELECT abs(extract(epoch FROM cooling_down_until - date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC') - 86400) < 2
             FROM ingest.limits"
        ));
    };
    spent(&db);
    wait_until("it is written down", SOON, || {
        db.one::<Option<i64>>("SELECT max(requests) FROM ingest.limit_day") == Some(10)
    });
    cluster.restart(&[]);
    db.reconnect();
    db.worker();
    db.insert_prose("default", "e", 1, 20);
    spent(&db);
    assert_eq!(api.arrived(), 10);
    db.run("SELECT ingest.set_limit('day', rpd => 15, utilization => 1.0)");
    wait_until("what was added is used", SOON, || api.arrived() == 15);
    db.run("SELECT ingest.set_limit('day', rpm => 6000)");
    db.settle();
    assert_eq!(db.progress().counts(), (21, 21, 0, 0));
    assert_eq!(
        db.one::<i64>("SELECT requests_today FROM ingest.limits"),
        21
    );
}

#[test]
fn where_databases_define_a_limit_differently_the_stricter_holds_and_the_doctor_says_so() {
    let cluster = Cluster::start(&[]);
    let (one, other) = (Database::new_in(&cluster), Database::new_in(&cluster));
    one.run("SELECT ingest.set_limit('l', rpm => 1000, tpm => 500000, utilization => 1.0)");
    other.run("SELECT ingest.set_limit('l', rpm => 2000, tpm => 100000, utilization => 0.5)");
    let targets = |db: &Database| -> Vec<(Option<i64>, Option<i64>)> {
        let rows = db.rows("SELECT target_rpm, target_tpm FROM ingest.budget_states()");
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    };
    for db in [&one, &other] {
        wait_until("both definitions are known", SOON, || {
            targets(db) == [(Some(1000), Some(50_000))]
        });
    }
    let doctor = |db: &Database| {
        db.one::<bool>("SELECT ok FROM ingest.doctor() WHERE \"check\" = 'limit l'")
    };
    assert!(!doctor(&one), "the other one's tokens are fewer");
    other.run("SELECT ingest.set_limit('l', rpm => 1000, tpm => 500000, utilization => 1.0)");
    wait_until("they agree", SOON, || doctor(&one) && doctor(&other));
    other.run("SELECT ingest.drop_limit('l')");
    one.run("SELECT ingest.set_limit('l', rpm => 3000, utilization => 1.0)");
    wait_until("only one is left", SOON, || {
        targets(&one) == [(Some(3000), None)]
    });
    other.run("SELECT ingest.set_limit('l', rpm => 7)");
    wait_until("the other is back", SOON, || {
        targets(&one) == [(Some(5), None)]
    });
    drop(other);
    wait_until("a dropped database limits nobody", SOON, || {
        targets(&one) == [(Some(3000), None)]
    });
}

#[test]
fn what_the_provider_says_of_its_limits_is_kept_where_it_is_less() {
    let api = api(Limits {
        per_second: false,
        ..Limits::per_minute(600, 600_000)
    });
    let db = Database::new();
    db.run("SELECT ingest.set_limit('hopeful', rpm => 5000, tpm => 5000000)");
    db.create_remote_pipeline("named", &api, "limits => 'hopeful'");
    db.create_remote_pipeline("unnamed", &api, "");
    db.insert_prose("named", "d", 3, 20);
    db.insert_prose("unnamed", "d", 3, 20);
    db.settle();
    let targets: Vec<(Option<i64>, Option<i64>)> = db
        .rows("SELECT target_rpm, target_tpm FROM ingest.budget_states()")
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    assert_eq!(targets, [(Some(480), Some(480_000)); 2]);
}

#[test]
fn a_preset_is_defined_at_its_first_use() {
    let api = api(Limits::none());
    let db = Database::new();
    db.create_remote_pipeline("default", &api, "limits => 'openai-tier-3'");
    let row = &db.rows(
        "SELECT rpm, tpm, rpd, tpd, utilization FROM ingest.limits WHERE name = 'openai-tier-3'",
    )[0];
    assert_eq!(
        (
            row.get::<_, Option<i64>>(0),
            row.get::<_, Option<i64>>(1),
            row.get::<_, f64>(4)
        ),
        (Some(5_000), Some(5_000_000), 0.8)
    );
    // What the user says of it holds, also for the next pipeline.
    db.run("SELECT ingest.set_limit('openai-tier-3', rpm => 100)");
    db.create_remote_pipeline("second", &api, "limits => 'openai-tier-3'");
    assert_eq!(
        db.all::<Option<i64>>("SELECT rpm FROM ingest.limits"),
        [Some(100)]
    );
}

#[test]
fn an_estimate_says_before_what_is_spent_afterwards() {
    let api = api(Limits::none());
    let db = Database::new();
    db.run("SELECT ingest.set_limit('estimated', tpm => 300000, utilization => 1.0)");
    db.create_remote_pipeline(
        "default",
        &api,
        "limits => 'estimated', chunk_tokens => 100, index => 'none'",
    );
    db.run("SELECT ingest.pause('default')");
    db.insert_prose("default", "d", 40, 200);
    let estimate = || {
        let row = &db.rows(
            "SELECT documents, chunks, tokens, requests, cost_usd::float8, extract(epoch FROM duration)::float8 FROM ingest.estimate()",
        )[0];
        (
            row.get::<_, i64>(0),
            row.get::<_, i64>(1),
            row.get::<_, i64>(2),
            row.get::<_, i64>(3),
            row.get::<_, f64>(4),
            row.get::<_, f64>(5),
        )
    };
    let (documents, chunks, tokens, requests, cost, seconds) = estimate();
    assert_eq!(documents, 40);
    assert!(
        (seconds - tokens as f64 / 5_000.0).abs() < 1.0,
        "{seconds} s"
    );
    db.run("SELECT ingest.resume('default')");
    db.settle();
    let progress = db.progress();
    // Nothing is known beforehand of texts that occur twice.
    let reused: i64 = db.one("SELECT reused_tokens FROM ingest.progress");
    assert!(reused > 0);
    assert_eq!(
        (chunks, tokens),
        (progress.chunks, api.tokens_accepted() as i64 + reused)
    );
    assert!(
        (requests - api.accepted() as i64).abs() <= 3,
        "{requests} requests"
    );
    assert!((cost - tokens as f64 * 0.02 / 1e6).abs() < 2e-6, "{cost} $");
    assert_eq!(estimate().0, 0);
    // A long backlog is counted on a sample.
    db.run("SELECT ingest.pause('default')");
    db.insert_prose("default", "short", 300, 50);
    db.insert_prose("default", "long", 300, 400);
    let (documents, _, tokens, ..) = estimate();
    let exact: i64 = db.one(
        "SELECT sum(s.tokens) FROM ingest.documents d JOIN ingest.queue q ON q.document_id = d.id, ingest.split(d.content) s",
    );
    assert_eq!(documents, 600);
    let error = (tokens - exact) as f64 / exact as f64;
    assert!(error.abs() < 0.05, "{tokens} tokens for {exact}");
}

#[test]
fn limits_that_cannot_be_are_refused_with_what_to_do() {
    let api = api(Limits::none());
    let db = Database::new();
    for (call, word) in [
        ("set_limit('x')", "at least one"),
        ("set_limit('x', rpm => 0)", "rpm"),
        ("set_limit('x', tpm => -5)", "tpm"),
        ("set_limit('x', rpm => 5, utilization => 0)", "utilization"),
        (
            "set_limit('x', rpm => 5, utilization => 1.01)",
            "utilization",
        ),
        (
            "set_limit('x', rpm => 5, utilization => 'NaN')",
            "utilization",
        ),
        ("set_limit('', rpm => 5)", "name"),
        ("set_limit(NULL, rpm => 5)", "name"),
    ] {
        let error = db.expect_error(&format!("SELECT ingest.{call}"));
        assert_eq!(error.code, "22023", "{call}: {}", error.text());
        assert!(error.text().contains(word), "{call}: {}", error.text());
    }
    db.run("SELECT ingest.set_limit('l' || n, rpm => 100) FROM generate_series(1, 64) n");
    assert_eq!(
        db.expect_error("SELECT ingest.set_limit('one more', rpm => 5)")
            .code,
        "54000"
    );
    db.run("SELECT ingest.set_limit('l64', rpm => 5); SELECT ingest.drop_limit('l' || n) FROM generate_series(1, 64) n");
    let long = format!("SELECT ingest.set_limit('{}', rpm => 5)", "x".repeat(64));
    assert_eq!(db.expect_error(&long).code, "42622");
    assert_eq!(
        db.expect_error("SELECT ingest.drop_limit('none')").code,
        "42704"
    );

    // A chunk that no minute has room for would wait for ever.
    db.run("SELECT ingest.set_limit('tiny', tpm => 600)");
    let url = api.openai_url();
    let key = db.cluster().write_key(remote::KEY);
    let create = |more: &str| {
        format!(
            "SELECT ingest.create_pipeline('p', model => '{}', base_url => '{url}', api_key => '{key}', {more})",
            remote::MODEL
        )
    };
    let error = db.expect_error(&create("limits => 'tiny'"));
    assert!(
        error.code == "22023" && error.text().contains("480"),
        "{}",
        error.text()
    );
    db.run(&create("limits => 'tiny', chunk_tokens => 300"));
    let error = db.expect_error("SELECT ingest.set_limit('tiny', tpm => 300)");
    assert!(
        error.text().contains("smaller than one chunk"),
        "{}",
        error.text()
    );
    let error = db.expect_error("SELECT ingest.alter_pipeline('p', chunk_tokens => 500)");
    assert!(
        error.text().contains("smaller than one chunk"),
        "{}",
        error.text()
    );
    assert_eq!(
        db.one::<Option<i64>>("SELECT tpm FROM ingest.limits"),
        Some(600)
    );

    let error = db.expect_error("SELECT ingest.drop_limit('tiny')");
    assert_eq!(error.code, "2BP01");
    assert!(error.text().contains("'p'"), "{}", error.text());
    let error = db.expect_error("SELECT ingest.alter_pipeline('p', limits => 'nowhere')");
    assert_eq!(error.code, "42704");
    assert!(error.text().contains("'tiny'"), "{}", error.text());
    db.run("SELECT ingest.alter_pipeline('p', limits => ''); SELECT ingest.drop_limit('tiny')");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM ingest.limits"), 0);
}

#[test]
fn a_count_that_no_tokenizer_makes_is_not_believed() {
    let api = api(Limits::none());
    api.on_request(|request| {
        (request.number == 0).then(|| {
            let vector: Vec<String> = fake_api::vector_of(&request.texts[0], 1536)
                .iter()
                .map(f32::to_string)
                .collect();
            Fault::body(format!(
                r#"{{"data": [{{"index": 0, "embedding": [{}]}}], "usage": {{"prompt_tokens": 9223372036854775807}}}}"#,
                vector.join(",")
            ))
        })
    });
    let db = Database::new();
    db.run("SELECT ingest.set_limit('believed', rpm => 6000, tpm => 6000000)");
    db.create_remote_pipeline("default", &api, "limits => 'believed', batch_size => 1");
    db.insert_prose("default", "d", 5, 20);
    db.settle();
    assert_eq!(db.check_vectors("ingest.default_chunks"), 5);
    assert!(db.one::<bool>("SELECT tokens_today < 1000 FROM ingest.limits"));
}

#[test]
fn a_limit_is_its_owner_s_or_everybody_s_when_a_superuser_has_set_it() {
    let db = Database::new();
    let (_owner, mut client) = role(&db);
    let (other, mut stranger) = another(&db, "other");
    db.run(&format!("GRANT CREATE, USAGE ON SCHEMA app TO {other}"));
    let create = |limit: &str, target: &str| {
        format!(
            "SELECT ingest.create_pipeline('{target}', model => '{}', api_key => 'vault:x', limits => '{limit}', target => 'app.{target}')",
            remote::MODEL
        )
    };
    // One of one's own, also by the name of a preset, whose figures it has.
    forbidden(
        &mut client,
        "SELECT ingest.set_limit('openai-tier-3', rpm => 1)",
    );
    run(
        &mut client,
        "SELECT ingest.set_limit(name, rpm, tpm, rpd, tpd, 0.5) FROM ingest.limit_presets() WHERE name = 'openai-tier-3'",
    );
    run(&mut client, &create("openai-tier-3", "mine"));
    for sql in [
        "SELECT ingest.set_limit('openai-tier-3', rpm => 5000)",
        "SELECT ingest.drop_limit('openai-tier-3')",
        &create("openai-tier-3", "theirs"),
    ] {
        forbidden(&mut stranger, sql);
    }
    // A superuser takes it over, for everybody.
    db.run("SELECT ingest.set_limit('openai-tier-3', rpm => 5000)");
    run(&mut stranger, &create("openai-tier-3", "theirs"));
    forbidden(
        &mut client,
        "SELECT ingest.set_limit('openai-tier-3', rpm => 9000)",
    );
}

#[test]
fn a_role_leaves_room_for_the_limits_of_others() {
    let db = Database::new();
    let (_owner, mut client) = role(&db);
    let (_other, mut stranger) = another(&db, "other");
    run(
        &mut client,
        "SELECT ingest.set_limit('l' || n, rpm => 100) FROM generate_series(1, 8) n",
    );
    let error = roles::refused(&mut client, "SELECT ingest.set_limit('l9', rpm => 5)");
    assert_eq!(error.code, "54000", "{}", error.text());
    run(&mut client, "SELECT ingest.set_limit('l8', rpm => 5)");
    run(&mut stranger, "SELECT ingest.set_limit('l9', rpm => 5)");
}

#[test]
fn a_day_of_tokens_is_used_up_and_shown_when_nothing_more_fits() {
    let api = api(Limits::none());
    let db = Database::new();
    let to_midnight: f64 = db.one("SELECT extract(epoch FROM date_trunc('day', now() AT TIME ZONE 'UTC') + interval '1 day' - now() AT TIME ZONE 'UTC')::float8");
    if to_midnight < 180.0 {
        eprintln!("skipped: the day is nearly over");
        return;
    }
    db.run("SELECT ingest.set_limit('tokens of a day', tpd => 2000, utilization => 1.0)");
    db.create_remote_pipeline("default", &api, "limits => 'tokens of a day'");
    db.run("SELECT ingest.pause('default')");
    db.insert_prose("default", "d", 300, 100);
    db.run("SELECT ingest.resume('default')");
    wait_until("the day's budget is spent", SOON, || {
        db.progress().state == "cooling_down"
    });
    // No document of a hundred tokens fits into what is left.
    let today: i64 =
        db.one("SELECT tokens_today FROM ingest.limits WHERE name = 'tokens of a day'");
    assert!((1_880..=2_000).contains(&today), "{today} tokens");
    wait_until("all that was counted has arrived", SOON, || {
        api.tokens_accepted() as i64 == today
    });
    assert!(db.one::<bool>("SELECT eta IS NULL FROM ingest.progress"));
    let (chunks, days): (i64, f64) = {
        let row = &db.rows(
            "SELECT chunks, extract(epoch FROM duration)::float8 / 86400 FROM ingest.estimate()",
        )[0];
        (row.get(0), row.get(1))
    };
    assert!(
        chunks > 270 && (13.0..=16.0).contains(&days),
        "{chunks} chunks, {days} days"
    );
}

/// A pipeline with a hundred documents, one request each, under a limit that lets them through one by one.
fn trickling(api: &FakeApi, limit: &str) -> Database<'static> {
    let db = Database::new();
    db.run(&format!(
        "SELECT ingest.set_limit('{limit}', rpm => 120, utilization => 1.0)"
    ));
    db.create_remote_pipeline(
        "default",
        api,
        &format!("limits => '{limit}', batch_size => 1"),
    );
    db.insert_prose("default", "d", 100, 10);
    wait_until("the first are sent and others are held", SOON, || {
        api.accepted() >= 2 && db.progress().in_flight > 10
    });
    db
}

#[test]
fn what_is_deleted_or_changed_before_its_turn_is_not_sent() {
    let api = FakeApi::start(Behaviour {
        keep_texts: true,
        ..remote::behaviour()
    });
    let db = trickling(&api, "trickle");
    db.run("DELETE FROM ingest.documents WHERE id % 2 = 0; UPDATE ingest.documents SET content = 'New: ' || content");
    let before = api.arrived();
    wait_until("the worker has let go of what was taken back", SOON, || {
        db.one::<bool>("SELECT bool_and(in_flight_documents <= 50) FROM ingest.workers WHERE database = current_database()")
    });
    db.run("SELECT ingest.set_limit('trickle', rpm => 60000)");
    db.settle();
    let late: Vec<String> = api
        .requests()
        .iter()
        .skip(before + 2)
        .flat_map(|r| r.texts.clone())
        .collect();
    assert!(
        !late.is_empty() && late.iter().all(|text| text.starts_with("New: ")),
        "{late:?}"
    );
    assert_eq!(db.progress().counts(), (50, 50, 0, 0));
    assert_eq!(db.check_vectors("ingest.default_chunks"), 50);
}

#[test]
fn a_pause_keeps_what_waits_for_its_turn() {
    let api = api(Limits::none());
    let db = trickling(&api, "stopped");
    db.run("SELECT ingest.pause('default')");
    wait_until("nothing is in flight", SOON, || {
        db.progress().in_flight == 0
    });
    let sent = api.arrived() as i64;
    assert!(sent < 50, "{sent} sent");
    wait_until("what was sent is there", SOON, || {
        db.progress().embedded == sent
    });
    db.run("SELECT ingest.set_limit('stopped', rpm => 60000); SELECT ingest.resume('default')");
    db.settle();
    assert_eq!(db.progress().counts(), (100, 100, 0, 0));
    assert_eq!(api.repeated_inputs(), 0);
}

#[test]
fn whoever_resumes_ends_a_cool_down() {
    let api = api(Limits::none());
    api.on_request(|request| {
        (request.number == 0).then(|| Fault::rate_limited(Duration::from_secs(3000)))
    });
    let db = Database::new();
    db.run("SELECT ingest.set_limit('asked for an hour', rpm => 6000)");
    db.create_remote_pipeline("default", &api, "limits => 'asked for an hour'");
    db.insert_prose("default", "d", 3, 20);
    wait_until("the provider is waited for", SOON, || {
        db.progress().state == "cooling_down"
    });
    db.run("SELECT ingest.resume('default')");
    db.settle();
    assert_eq!(db.progress().counts(), (3, 3, 0, 0));
}

#[test]
fn a_pipeline_whose_target_is_gone_sends_nothing() {
    let api = api(Limits::none());
    let db = Database::new();
    db.create_remote_pipeline("default", &api, "target => 'public.gone'");
    db.run("DROP TABLE public.gone");
    db.insert_prose("default", "d", 50, 20);
    let blocked = |db: &Database| {
        let error = db.until_blocked("default").last_error;
        assert!(error.is_some_and(|e| e.contains("was dropped")));
    };
    blocked(&db);
    // A worker that was just looking at the definitions may have seen the table.
    let sent = api.arrived();
    assert!(sent <= 1, "{sent} requests");
    for _ in 0..3 {
        db.run("SELECT ingest.resume('default')");
        blocked(&db);
    }
    assert_eq!(api.arrived(), sent);
}
