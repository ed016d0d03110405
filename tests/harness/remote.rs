//! Pipelines that speak to a fake embeddings API.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::sync::OnceLock;

use fake_api::{Behaviour, FakeApi, Record, Request, vector_of};

use crate::{Cluster, Database, SOON, quoted, wait_until};

/// A key as OpenAI's look, and one to change it for. They must never be seen anywhere.
pub const KEY: &str = "sk-test-4f9d2c81b7e35a60f1d8c94e7b2a6035";
/// See [`KEY`].
pub const OTHER_KEY: &str = "sk-test-a1b2c3d4e5f60718293a4b5c6d7e8f90";

/// The model of these pipelines: one that the catalogue knows.
pub const MODEL: &str = "openai/text-embedding-3-small";

/// How such an API usually is: it wants [`KEY`].
pub fn behaviour() -> Behaviour {
    Behaviour {
        keys: vec![KEY.into()],
        ..Behaviour::default()
    }
}

impl Cluster {
    /// Writes a key where only the server reads it; returns the reference to it.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write_key(&self, key: &str) -> String {
        self.write_key_as("key", key)
    }

    /// The same under a name of one's own choice, which begins with `key`. Who reads meanwhile finds the old key or the new
    /// one, never half of it.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write_key_as(&self, name: &str, key: &str) -> String {
        let path = self.home().join(name);
        let mut file = tempfile::Builder::new()
            .prefix("key-")
            .tempfile_in(self.home())
            .expect("a file in the cluster's directory");
        writeln!(file, "{key}").expect("a file in the cluster's directory");
        // The server may run as another user than the tests.
        let readable = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(file.path(), readable).expect("chmod");
        file.persist(&path).expect("a rename");
        format!("file:{}", path.display())
    }
}

impl Database<'_> {
    /// Creates a pipeline of [`MODEL`] at this API with [`KEY`]; `more` are further arguments, such as
    /// `concurrency => 5`.
    pub fn create_remote_pipeline(&self, name: &str, api: &FakeApi, more: &str) {
        let key = self.cluster().write_key(KEY);
        self.create_pipeline_at(name, &api.openai_url(), &key, more);
    }

    /// The same with a key of one's own choice.
    pub fn create_pipeline_at(&self, name: &str, url: &str, key: &str, more: &str) {
        let comma = if more.is_empty() { "" } else { ", " };
        self.run(&format!(
            "SELECT ingest.create_pipeline({}, model => {}, base_url => {}, api_key => {}{comma}{more})",
            quoted(name),
            quoted(MODEL),
            quoted(url),
            quoted(key),
        ));
    }

    /// How many chunks of a table have a vector, and that each belongs to its text.
    ///
    /// # Panics
    /// When one is another text's.
    #[track_caller]
    pub fn check_vectors(&self, table: &str) -> usize {
        let rows = self.rows(&format!("SELECT content, embedding::real[] FROM {table}"));
        for row in &rows {
            let (content, embedding): (String, Vec<f32>) = (row.get(0), row.get(1));
            let expected = vector_of(&content, embedding.len());
            let same = embedding
                .iter()
                .zip(&expected)
                .all(|(a, b)| (a - b).abs() < 1e-6);
            assert!(same, "the vector of {content:?} is another text's");
        }
        rows.len()
    }

    /// Inserts documents of about `words` words each, all different, as `prefix` and a number from 1 on.
    pub fn insert_prose(&self, pipeline: &str, prefix: &str, documents: usize, words: usize) {
        self.run(&format!(
            "INSERT INTO ingest.documents (pipeline, key, content)
             SELECT {}, {} || n, 'Document {} ' || n || ': ' ||
                    (SELECT string_agg((ARRAY['the', 'harbour', 'garden', 'of', 'engine', 'letter', 'and', 'forest', 'river', 'was',
                                              'painted', 'measured', 'in', 'spring', 'by', 'people'])[1 + (n * 7 + w * w) % 16], ' ')
                     FROM generate_series(1, {words}) w)
             FROM generate_series(1, {documents}) n",
            quoted(pipeline),
            quoted(prefix),
            prefix.replace('\'', ""),
        ));
    }
}

/// An API that wants [`KEY`] and remembers the texts.
pub fn api() -> FakeApi {
    FakeApi::start(Behaviour {
        keep_texts: true,
        ..behaviour()
    })
}

/// The cluster of those tests in which requests are to time out.
pub fn impatient_cluster() -> &'static Cluster {
    static IMPATIENT: OnceLock<Cluster> = OnceLock::new();
    IMPATIENT.get_or_init(|| {
        Cluster::start(&[
            ("pg_ingest.request_timeout", "4s"),
            ("pg_ingest.connect_timeout", "1000ms"),
        ])
    })
}

/// Waits for the documents of a pipeline and sees that each is embedded, and rightly.
#[track_caller]
pub fn all_embedded(db: &Database, pipeline: &str, documents: usize) {
    all_embedded_but(db, pipeline, documents, 0);
}

/// The same where so many of them are failures.
#[track_caller]
pub fn all_embedded_but(db: &Database, pipeline: &str, documents: usize, failures: usize) {
    let settled = format!(
        "SELECT ingest.wait({}, timeout => '60 s')",
        quoted(pipeline)
    );
    assert!(
        db.one::<bool>(&settled),
        "{:?} {:?}",
        db.progress_of(pipeline),
        db.rows_as_text("SELECT * FROM ingest.failures")
    );
    let (all, failed) = (documents as i64, failures as i64);
    let progress = db.progress_of(pipeline);
    assert_eq!(
        progress.counts(),
        (all, all - failed, 0, failed),
        "{pipeline}: {:?}",
        db.rows_as_text("SELECT * FROM ingest.failures")
    );
    let table: String = db.one(&format!(
        "SELECT target::text FROM ingest.pipelines WHERE name = {}",
        quoted(pipeline)
    ));
    let chunks = db.check_vectors(&table);
    assert_eq!(chunks as i64, progress.chunks, "{pipeline}");
}

/// Requests and tokens that this database has written down as its only day's.
pub fn day_totals(db: &Database) -> (i64, i64) {
    let row = &db.rows("SELECT requests, tokens FROM ingest.limit_day")[0];
    (row.get(0), row.get(1))
}

/// Waits until what was sent today is in the database, too. A worker that waits for answers has no reason to write it now.
pub fn day_is_written_down(db: &Database, api: &FakeApi) {
    wait_until("the day's total is written down", SOON, || {
        db.run("SELECT ingest.wake()");
        db.one::<Option<i64>>("SELECT sum(requests)::bigint FROM ingest.limit_day")
            == Some(api.arrived() as i64)
    });
}

/// Ends a server at once, as a crash would, and waits until its requests are off.
pub fn end_at_once(db: &Database, cluster: &Cluster, api: &FakeApi) {
    db.disconnect();
    cluster.stop_server("immediate");
    wait_until("its requests are off", SOON, || api.in_flight() == 0);
}

/// Sees that a vector is this text's.
#[track_caller]
pub fn same_vector(stored: &[f32], text: &str) {
    let expected = vector_of(text, stored.len());
    let same = stored
        .iter()
        .zip(&expected)
        .all(|(a, b)| (a - b).abs() < 1e-6);
    assert!(same, "the vector is not that of {text:?}");
}

/// What `embed()` gives.
pub fn embed(db: &Database, text: &str, pipeline: &str) -> Vec<f32> {
    db.one(&format!(
        "SELECT ingest.embed({}, {})::real[]",
        quoted(text),
        quoted(pipeline)
    ))
}

/// The values of a field of every request's body.
pub fn field(records: &[Record], name: &str) -> Vec<Option<String>> {
    let value = |record: &Record| Some(record.fields.get(name)?.as_str()?.to_owned());
    records.iter().map(value).collect()
}

/// The whole of the server's log.
pub fn server_log(cluster: &Cluster) -> String {
    let bytes = std::fs::read(cluster.home().join("log")).expect("the server's log");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The value of the header by which rules tell pipelines apart.
pub fn case_of(request: &Request) -> &str {
    request.header("x-case").unwrap_or_default()
}

/// The argument that sets that header.
pub fn case(name: &str) -> String {
    format!(r#"request => '{{"headers": {{"x-case": "{name}"}}}}'"#)
}
