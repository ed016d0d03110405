//! How long one document takes on its way.

use std::time::Duration;

use fake_api::{Behaviour, FakeApi, TokenCount};
use harness::*;

use crate::report::{line, quantile, seconds, timed};

pub fn of_one_document(cluster: &Cluster, rounds: usize) {
    let local = Database::new_in(cluster);
    local.run("SELECT ingest.create_pipeline()");
    println!(
        "from the commit of one short document to its vector visible, local model, {rounds} times"
    );
    measure(&local, rounds);
    let api = FakeApi::start(Behaviour {
        token_count: TokenCount::Bytes(4),
        ..remote::behaviour()
    });
    let remote = Database::new_in(cluster);
    remote.run("SELECT ingest.set_limit('wide', rpm => 1000000, tpm => 1000000000)");
    remote.create_remote_pipeline("default", &api, "limits => 'wide'");
    println!("the same with an API that answers at once, {rounds} times");
    measure(&remote, rounds);
}

fn measure(db: &Database, rounds: usize) {
    db.run(&texts::insert_passages());
    db.quiesce();
    let mut watcher = db.connect();
    let look = watcher
        .prepare("SELECT EXISTS (SELECT FROM ingest.default_chunks WHERE document_key = $1)")
        .expect("a query");
    let (mut whole, mut embed, mut net) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let text = texts::numbered(round);
        let asked = timed(|| {
            db.execute("SELECT ingest.embed($1)", &[&text]);
        });
        let key = format!("late {round}");
        db.execute(
            "INSERT INTO ingest.documents (key, content) VALUES ($1, $2)",
            &[&key, &text],
        );
        // The INSERT returns after its commit: what is measured starts here.
        let visible = timed(|| {
            while !watcher
                .query_one(&look, &[&key])
                .expect("a look")
                .get::<_, bool>(0)
            {
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        whole.push(visible);
        embed.push(asked);
        net.push(visible.saturating_sub(asked));
    }
    for (what, times) in [
        ("commit to visible", &mut whole),
        ("embed() of the same text, from a session", &mut embed),
        ("commit to visible, embed() not counted", &mut net),
    ] {
        line(&format!("{what}, p50"), seconds(quantile(times, 0.5)));
        line(&format!("{what}, p95"), seconds(quantile(times, 0.95)));
    }
    println!();
}
