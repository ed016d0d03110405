//! A private Postgres cluster: made, started, stopped and removed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use postgres::{Client, Config, NoTls};

use crate::process::{processes_in, signal};
use crate::waiting::{SOON, wait_until};

/// What every cluster of the tests is started with; a test's own settings come after.
const SETTINGS: [(&str, &str); 12] = [
    // What the system has taken outlives any process.
    ("fsync", "off"),
    ("shared_preload_libraries", "pg_ingest"),
    // What is seen not to be sent twice is not even tried.
    ("pg_ingest.vector_cache", "0"),
    ("listen_addresses", ""),
    ("unix_socket_directories", "{home}"),
    ("port", "5432"),
    ("max_connections", "60"),
    ("max_worker_processes", "32"),
    ("max_prepared_transactions", "8"),
    ("log_line_prefix", "%m [%p] %d: "),
    ("lc_messages", "C"),
    ("timezone", "UTC"),
];

/// Lines of the server's log that a failing test shows.
const LOG_TAIL: usize = 60;

/// Waits for the test's end, however it comes, and takes the cluster away, whose directory is `$1`. SIGQUIT is what Postgres
/// calls an immediate shutdown. A process that does not work in the data directory is not this cluster's postmaster.
const WATCHDOG: &str = r#"
    read -r _
    pid=$(head -n 1 "$1/data/postmaster.pid")
    runs() { [ -n "$pid" ] && [ "$(readlink "/proc/$pid/cwd")" = "$1/data" ]; }
    if runs "$1"; then kill -s QUIT "$pid"; fi
    tenths=200
    while runs "$1" && [ "$tenths" -gt 0 ]; do sleep 0.1; tenths=$((tenths - 1)); done
    if runs "$1"; then kill -s KILL "$pid"; fi
    rm -rf "$1"
"#;

/// A running server with its own data directory, reached by a socket in a directory of its own. Stopped and removed when
/// dropped, or when the test's process ends in whatever way.
pub struct Cluster {
    home: PathBuf,
    programs: PathBuf,
    user: Option<User>,
    /// The role that initdb makes.
    superuser: &'static str,
    settings: Mutex<BTreeMap<String, String>>,
    /// The version of the extension that its databases get; `None` for the one that users get.
    version: Option<String>,
    watchdog: Mutex<Option<Child>>,
}

/// Whom the server runs as when the tests run as root.
#[derive(Clone, Copy)]
struct User {
    uid: u32,
    gid: u32,
}

/// The cluster that the tests of one file share, started at the first call with these settings (later calls get the same
/// one). `{home}` in a setting stands for the cluster's directory.
pub fn shared_cluster(settings: &[(&str, &str)]) -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| Cluster::start(settings))
}

impl Cluster {
    /// Makes and starts one. `{home}` in a setting stands for its directory.
    ///
    /// # Panics
    /// When Postgres or the extension is not there, or the server does not start.
    pub fn start(settings: &[(&str, &str)]) -> Self {
        let cluster = Self::make(settings);
        cluster.start_server();
        cluster
    }

    /// Makes and starts one whose first superuser has this name.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn start_as(superuser: &'static str, settings: &[(&str, &str)]) -> Self {
        let mut cluster = Self::reserve();
        cluster.superuser = superuser;
        cluster.make_data(settings);
        cluster.start_server();
        cluster
    }

    /// Makes and starts one with the library of the crash tests, at whose points SQL makes the worker wait, fail or die.
    ///
    /// # Panics
    /// As [`start`](Self::start), and when that library is not installed.
    pub fn start_injecting(settings: &[(&str, &str)]) -> Self {
        let mut cluster = Self::make(&[]);
        cluster.version = Some(concat!(env!("CARGO_PKG_VERSION"), "-injection").to_owned());
        cluster.remember("shared_preload_libraries", "pg_ingest_injection");
        for (name, value) in settings {
            cluster.remember(name, value);
        }
        cluster.write_settings();
        cluster.start_server();
        cluster
    }

    /// The statement that makes the extension in a database of it.
    pub fn create_extension(&self) -> String {
        let version = self.version.as_ref();
        let version = version.map_or_else(String::new, |version| format!(" VERSION '{version}'"));
        format!("CREATE EXTENSION pg_ingest{version} CASCADE")
    }

    /// Makes one and does not start it, for a test that lays files into [`home`](Self::home) first.
    pub fn make(settings: &[(&str, &str)]) -> Self {
        let cluster = Self::reserve();
        cluster.make_data(settings);
        cluster
    }

    /// A hot standby of a running server, by streaming replication, started. It has the same settings, and these.
    pub fn standby_of(primary: &Self, settings: &[(&str, &str)]) -> Self {
        let mut standby = Self::reserve();
        standby.superuser = primary.superuser;
        primary.run(
            primary
                .program("pg_basebackup")
                .args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync"])
                .arg("--pgdata")
                .arg(standby.data()),
        );
        for (name, value) in primary.settings().iter() {
            // Directories are each server's own.
            standby.remember(
                name,
                &value.replace(&*primary.home.to_string_lossy(), "{home}"),
            );
        }
        standby.configure(settings);
        standby.start_server();
        standby
    }

    /// Ends a standby's recovery: it takes writes from now on.
    pub fn promote(&self) {
        self.run(self.pg_ctl("promote").args(["-w", "-t", "60"]));
    }

    /// A directory for one.
    fn reserve() -> Self {
        let pg_config = std::env::var("PG_CONFIG").unwrap_or_else(|_| "pg_config".into());
        let programs = PathBuf::from(ask(&pg_config, "--bindir"));
        let share = PathBuf::from(ask(&pg_config, "--sharedir"));
        for extension in ["pg_ingest", "vector"] {
            assert!(
                share
                    .join(format!("extension/{extension}.control"))
                    .exists(),
                "{extension} is not installed in {}: run make install",
                share.display()
            );
        }
        // A socket's path has room for 107 bytes, so not below whatever TMPDIR says.
        let home = tempfile::Builder::new()
            .prefix("pgi-")
            .tempdir_in("/tmp")
            .expect("a directory in /tmp")
            .keep();
        let mut cluster = Self {
            home,
            programs,
            user: server_user(),
            superuser: "postgres",
            settings: Mutex::default(),
            version: None,
            watchdog: Mutex::default(),
        };
        cluster.own(&cluster.home);
        cluster.watch();
        cluster
    }

    fn make_data(&self, settings: &[(&str, &str)]) {
        self.run(self.program("initdb").args([
            "--pgdata=data",
            &format!("--username={}", self.superuser),
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ]));
        self.configure(&SETTINGS);
        self.configure(settings);
    }

    /// Its directory, which the server's user owns: data, socket, log, and whatever a test lays there.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    /// Where the installed models lie.
    pub fn installed_models() -> PathBuf {
        let pg_config = std::env::var("PG_CONFIG").unwrap_or_else(|_| "pg_config".into());
        PathBuf::from(ask(&pg_config, "--sharedir")).join("pg_ingest/models")
    }

    /// Gives a file or directory to the user that the server runs as.
    pub fn own(&self, path: &Path) {
        if let Some(user) = self.user {
            chown(path, Some(user.uid), Some(user.gid)).expect("root gives directories away");
        }
    }

    /// A directory that the server can read, with these files in it. Names may hold subdirectories.
    pub fn directory(&self, name: &str, files: &[(&str, &[u8])]) -> PathBuf {
        let directory = self.home.join(name);
        fs::create_dir_all(&directory).expect("a directory can be made");
        for (name, content) in files {
            let path = directory.join(name);
            fs::create_dir_all(path.parent().expect("a file lies in a directory"))
                .expect("a directory can be made");
            fs::write(&path, content).expect("a file can be written");
        }
        directory
    }

    /// Starts the server and waits until it takes connections.
    pub fn start_server(&self) {
        assert!(
            self.try_to_start(),
            "the server does not start\n{}",
            self.log_tail("")
        );
    }

    /// The same after its first process was killed: the system may take a moment to end the threads of the others, and
    /// until then their memory is in use.
    pub fn start_server_again(&self) {
        wait_until("the server starts", SOON, || self.try_to_start());
    }

    fn try_to_start(&self) -> bool {
        let mut start = self.pg_ctl("start");
        start.args(["-w", "-t", "60", "-l"]).arg(self.log());
        // A server that inherits a pipe would keep it open.
        let status = start
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("pg_ctl runs");
        status.success()
    }

    /// Stops the server: `smart`, `fast` or `immediate`.
    pub fn stop_server(&self, mode: &str) {
        self.run(self.pg_ctl("stop").args(["-w", "-t", "60", "-m", mode]));
    }

    /// Kills the server's first process, and waits until the others have gone, too.
    pub fn kill_postmaster(&self) {
        let pidfile =
            fs::read_to_string(self.data().join("postmaster.pid")).expect("the server runs");
        let pid: i32 = pidfile
            .lines()
            .next()
            .and_then(|line| line.parse().ok())
            .expect("its first line is the pid");
        signal(pid, "KILL");
        let data = self.data();
        wait_until("all processes have gone", SOON, || {
            processes_in(&data).is_empty()
        });
        // Where nobody collects the dead, its pid still stands for a process.
        let _ = fs::remove_file(self.data().join("postmaster.pid"));
        let _ = fs::remove_file(self.home.join(".s.PGSQL.5432.lock"));
    }

    /// Stops it fast, takes further settings, and starts it.
    pub fn restart(&self, settings: &[(&str, &str)]) {
        self.stop_server("fast");
        self.configure(settings);
        self.start_server();
    }

    /// Takes further settings, for the next start.
    pub fn configure(&self, settings: &[(&str, &str)]) {
        for (name, value) in settings {
            self.remember(name, value);
        }
        self.write_settings();
    }

    /// Takes further settings without a restart, and waits until new sessions have them.
    pub fn reload(&self, settings: &[(&str, &str)]) {
        self.configure(settings);
        let before = self.loaded_at();
        self.run(&mut self.pg_ctl("reload"));
        wait_until("the settings are reread", SOON, || {
            self.loaded_at() > before
        });
    }

    fn loaded_at(&self) -> String {
        self.client("postgres")
            .query_one(
                "SELECT to_char(pg_conf_load_time(), 'YYYY-MM-DD HH24:MI:SS.US')",
                &[],
            )
            .expect("pg_conf_load_time()")
            .get(0)
    }

    /// How to connect to a database, as the superuser.
    pub fn config(&self, database: &str) -> Config {
        let mut config = Config::new();
        config
            .host_path(&self.home)
            .user(self.superuser)
            .dbname(database)
            .connect_timeout(Duration::from_secs(20));
        config
    }

    /// A connection to a database, as the superuser.
    pub fn client(&self, database: &str) -> Client {
        self.config(database)
            .connect(NoTls)
            .unwrap_or_else(|error| {
                panic!(
                    "no connection to {database}: {error}\n{}",
                    self.log_tail("")
                )
            })
    }

    /// One of Postgres's programs (`pg_dump`, `psql`), to be run as the server's user and set to reach this server.
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        command
            .current_dir(&self.home)
            .env("PGHOST", &self.home)
            .env("PGPORT", "5432")
            .env("PGUSER", self.superuser)
            .env("LC_ALL", "C")
            // With it, Rust's panics would carry backtraces into the details of errors.
            .env_remove("RUST_BACKTRACE");
        if let Some(user) = self.user {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }

    /// Runs a program to its end and returns what it printed.
    ///
    /// # Panics
    /// With its messages, when it fails.
    #[track_caller]
    pub fn run(&self, command: &mut Command) -> String {
        let done = command
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        assert!(
            done.status.success(),
            "{command:?} failed\n{}\n{}",
            String::from_utf8_lossy(&done.stderr),
            self.log_tail("")
        );
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    /// The last lines of the server's log that hold `word`.
    pub fn log_tail(&self, word: &str) -> String {
        let log = fs::read(self.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(word)).collect();
        let from = lines.len().saturating_sub(LOG_TAIL);
        format!("--- server log\n{}\n---", lines[from..].join("\n"))
    }

    fn log(&self) -> PathBuf {
        self.home.join("log")
    }

    fn pg_ctl(&self, action: &str) -> Command {
        let mut command = self.program("pg_ctl");
        command.args([action, "-D", "data"]);
        command
    }

    fn remember(&self, name: &str, value: &str) {
        let value = value.replace("{home}", &self.home.to_string_lossy());
        self.settings().insert(name.into(), value);
    }

    fn settings(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_settings(&self) {
        let mut text = String::new();
        for (name, value) in self.settings().iter() {
            let _ = writeln!(text, "{name} = '{}'", value.replace('\'', "''"));
        }
        fs::write(self.data().join("postgresql.conf"), text).expect("the settings can be written");
    }

    /// Its standard input is a pipe that this process holds: it reads the end of it when this process ends.
    fn watch(&mut self) {
        let mut command = Command::new("sh");
        command
            .args(["-c", WATCHDOG, "watchdog"])
            .arg(&self.home)
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.watchdog = Mutex::new(Some(command.spawn().expect("sh runs")));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail(""));
        }
        let watchdog = self
            .watchdog
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(mut watchdog) = watchdog.take() {
            drop(watchdog.stdin.take());
            let _ = watchdog.wait();
        }
    }
}

fn ask(pg_config: &str, what: &str) -> String {
    let answer = Command::new(pg_config)
        .arg(what)
        .output()
        .unwrap_or_else(|error| panic!("{pg_config}: {error}; name a pg_config with PG_CONFIG=…"));
    String::from_utf8_lossy(&answer.stdout).trim().to_owned()
}

/// Nobody when the tests do not run as root: then the server runs as whoever runs them.
fn server_user() -> Option<User> {
    let id = |arguments: &[&str]| -> Option<u32> {
        let answer = Command::new("id").args(arguments).output().ok()?;
        String::from_utf8_lossy(&answer.stdout).trim().parse().ok()
    };
    if id(&["-u"]) != Some(0) {
        return None;
    }
    let named = std::env::var("PG_INGEST_TEST_USER").ok();
    let name = named.unwrap_or_else(|| {
        let postgres = id(&["-u", "postgres"]).is_some();
        if postgres { "postgres" } else { "nobody" }.to_owned()
    });
    let of =
        |option: &str| id(&[option, &name]).unwrap_or_else(|| panic!("there is no user {name}"));
    Some(User {
        uid: of("-u"),
        gid: of("-g"),
    })
}
