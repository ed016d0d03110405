//! Dumping a database and restoring it into another.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::Database;

impl Database<'_> {
    /// What `pg_dump` writes with these options; returns the file.
    pub fn dump(&self, options: &[&str]) -> PathBuf {
        let file = self.cluster().home().join(format!("{}.sql", self.name()));
        self.cluster().run(
            self.cluster()
                .program("pg_dump")
                .args(options)
                .arg("--file")
                .arg(&file)
                .arg(self.name()),
        );
        file
    }

    /// Runs such a file in this database.
    ///
    /// # Panics
    /// When a statement fails.
    pub fn restore(&self, file: &Path) {
        let text = std::fs::File::open(file).expect("the dump");
        let done = self
            .cluster()
            .program("psql")
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null", "-d"])
            .arg(self.name())
            .stdin(Stdio::from(text))
            .output()
            .expect("psql runs");
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
    }
}
