//! Pipelines that speak to a fake embeddings API.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use fake_api::{Behaviour, FakeApi, vector_of};

use crate::{Cluster, Database, quoted};

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
