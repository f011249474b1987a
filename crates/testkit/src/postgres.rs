//! A PostgreSQL server of a test's own: a cluster in a folder below /tmp, reached by a socket in it. It ends with whoever
//! started it, however that ends: a small shell that waits for the other end of a pipe to go away stops and removes it.
//!
//! Calls block: they are for the arranging part of a test, and for acts of an operator or of fate.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a server may take to come up or to end.
const SERVES_WITHIN: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(30);
const REMEDY: &str =
    "PostgreSQL is not found, and these tests need it: run scripts/setup, or apt-get install postgresql";
/// Waits for the end of its input, then ends the server and removes its folder.
const REAPER: &str = r#"
cat >/dev/null
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)
if [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = postgres ]; then
    kill -QUIT "$pid"
    for _ in $(seq 100); do [ -d "/proc/$pid" ] || break; sleep 0.1; done
fi
umount "$1/small" 2>/dev/null
rm -rf "$1"
"#;

/// How a server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// As an operator restarts it: connections are ended, everything is written.
    Fast,
    /// As at a power cut, but for the disk: the main process and all others are gone.
    Killed,
}

/// One server.
#[derive(Debug)]
pub struct Cluster {
    folder: PathBuf,
    programs: PathBuf,
    /// Who it runs as: it refuses root.
    account: Option<(u32, u32)>,
    settings: Vec<String>,
    port: String,
    server: Mutex<Option<Child>>,
    /// Its input's end is the server's.
    _reaper: Child,
}

impl Cluster {
    /// Makes one and starts it. `settings` are lines such as `max_connections=9`.
    #[must_use]
    #[expect(clippy::unwrap_used, reason = "a test cannot go on without it")]
    pub fn start(settings: &[&str]) -> Self {
        let programs = programs();
        let folder = tempfile::Builder::new().prefix("gp-pg-").tempdir_in("/tmp").unwrap().keep();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o711)).unwrap();
        let account = account();
        let data = folder.join("data");
        fs::create_dir(&data).unwrap();
        if let Some((user, group)) = account {
            chown(&data, Some(user), Some(group)).unwrap();
        }
        let mut reaper = Command::new("sh");
        reaper.args(["-c", REAPER, "sh"]).arg(&folder).stdin(Stdio::piped()).stdout(Stdio::null());
        let reaper = reaper.stderr(Stdio::null()).process_group(0).spawn().unwrap();
        let port = settings.iter().find_map(|line| line.strip_prefix("port=")).unwrap_or("5432").to_owned();
        let settings = settings.iter().map(|&line| line.to_owned()).collect();
        let this =
            Self { folder, programs, account, settings, port, server: Mutex::new(None), _reaper: reaper };
        let mut initdb = this.program("initdb");
        initdb.args([
            "--no-sync",
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale",
            "C.UTF-8",
            "-D",
        ]);
        done(initdb.arg(&data));
        let hba = "local all postgres trust\nlocal all all scram-sha-256\nhost all all 127.0.0.1/32 scram-sha-256\n";
        fs::write(data.join("pg_hba.conf"), hba).unwrap();
        this.serve();
        this
    }

    /// Where its files are; the data in `data`.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whose its files are, when not the test's own account.
    #[must_use]
    pub fn account(&self) -> Option<(u32, u32)> {
        self.account
    }

    /// The URL of a database for a user, with a password where there is one: `glidepath:pw`.
    #[must_use]
    pub fn url(&self, user: &str, database: &str) -> String {
        let socket = self.folder.join("data").display().to_string().replace('/', "%2F");
        format!("postgresql://{user}@{socket}:{}/{database}", self.port)
    }

    /// A user with this password and a database of the same name.
    pub fn make(&self, name: &str, password: &str) {
        self.sql("postgres", &format!("CREATE ROLE {name} LOGIN PASSWORD '{password}'"));
        self.sql("postgres", &format!("CREATE DATABASE {name} OWNER {name}"));
    }

    /// Runs it as the server's own administrator, and returns what it prints.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        done(self.psql(database).args(["-c", sql]))
    }

    /// A session of the server's administrator, to be fed and ended by whoever asked for it.
    #[must_use]
    pub fn psql(&self, database: &str) -> Command {
        let mut psql = self.program("psql");
        psql.arg("-h").arg(self.folder.join("data"));
        psql.args([
            "-p",
            &self.port,
            "-U",
            "postgres",
            "-X",
            "-A",
            "-t",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            database,
        ]);
        psql
    }

    /// Ends the server; its files stay.
    #[expect(clippy::unwrap_used, reason = "a test cannot go on without it")]
    pub fn end(&self, how: End) {
        let Some(mut server) = self.server.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return;
        };
        let signal = if how == End::Fast { "-INT" } else { "-KILL" };
        done(Command::new("kill").args([signal, &server.id().to_string()]));
        server.wait().unwrap();
    }

    /// Starts the server again and waits until it answers.
    pub fn serve(&self) {
        let until = Instant::now() + SERVES_WITHIN;
        loop {
            let mut server = self.spawn();
            let answers = loop {
                if self
                    .psql("postgres")
                    .args(["-c", "SELECT 1"])
                    .output()
                    .is_ok_and(|out| out.status.success())
                {
                    break true;
                }
                // After a kill the old server's last processes may still be there: it must be tried again.
                if !matches!(server.try_wait(), Ok(None)) || Instant::now() > until {
                    break false;
                }
                pause();
            };
            *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
            if answers {
                return;
            }
            assert!(Instant::now() < until, "PostgreSQL does not start: {}", self.log());
            pause();
        }
    }

    /// What the server has told.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    #[expect(clippy::unwrap_used, reason = "a test cannot go on without it")]
    fn spawn(&self) -> Child {
        let mut server = self.program("postgres");
        let data = self.folder.join("data");
        server.arg("-D").arg(&data).arg("-k").arg(&data);
        let ours =
            ["listen_addresses=", "fsync=off", "shared_buffers=16MB", "max_wal_size=64MB", "autovacuum=off"];
        for setting in ours.into_iter().chain(self.settings.iter().map(String::as_str)) {
            server.args(["-c", setting]);
        }
        let log = fs::OpenOptions::new().create(true).append(true).open(self.folder.join("log")).unwrap();
        server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0).spawn().unwrap()
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        command
            .current_dir(&self.folder)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default());
        if let Some((user, group)) = self.account {
            command.uid(user).gid(group);
        }
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = server.kill(); // nothing of it is kept
            let _ = server.wait();
        }
    }
}

/// Where the programs are: Debian keeps the server's out of everybody's way.
#[expect(clippy::panic, reason = "this is how a test fails")]
fn programs() -> PathBuf {
    let mut found: Vec<PathBuf> =
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
    versions.sort();
    found.extend(versions.into_iter().rev());
    let whole =
        |folder: &PathBuf| ["initdb", "postgres", "psql"].iter().all(|name| folder.join(name).exists());
    found.into_iter().find(whole).unwrap_or_else(|| panic!("{REMEDY}"))
}

/// The account for a server that root starts: PostgreSQL's own, or that of nobody.
fn account() -> Option<(u32, u32)> {
    let number = |what: &str, whose: &str| -> Option<u32> {
        let told =
            Command::new("id").args([what, whose]).output().ok().filter(|told| told.status.success())?;
        String::from_utf8(told.stdout).ok()?.trim().parse().ok()
    };
    let me = Command::new("id").arg("-u").output().ok()?;
    if String::from_utf8(me.stdout).ok()?.trim() != "0" {
        return None;
    }
    number("-u", "postgres").zip(number("-g", "postgres")).or(Some((65534, 65534)))
}

#[expect(clippy::panic, reason = "this is how a test fails")]
fn done(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut told = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let _ = write!(told, "{}", String::from_utf8_lossy(&output.stderr)); // a text takes everything
        panic!("{command:?}: {told}");
    }
    told
}

#[expect(clippy::disallowed_methods, reason = "no runtime is needed here")]
fn pause() {
    std::thread::sleep(LOOK_AGAIN);
}
