//! Tests of the store: those of both databases, and what each has alone. PostgreSQL is one server for all of them; tests
//! that end it bring their own.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use glidepath_domain::names::{Attempt, RunId};
use glidepath_testkit::postgres::{Cluster, End};
use glidepath_testkit::wait;
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::{AnyConnection, Connection as _};

use super::*;
use crate::seal::Seal;

/// Makes of each `async fn name(house: House)` two tests: `sqlite::name` and `postgresql::name`.
macro_rules! both {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test] async fn $name() { super::$name(super::House::sqlite().await).await; })*
        }
        mod postgresql {
            $(#[tokio::test] async fn $name() { super::$name(super::House::postgresql().await).await; })*
        }
    };
}

mod both;
mod migrations;
mod postgresql;
mod power_cut;
mod sqlite;

const KEY: [u8; 32] = [7; 32];
const OTHER_KEY: [u8; 32] = [8; 32];
const PASSWORD: &str = "pw-of-t3sts";
/// Long enough for a loaded machine; whatever takes so long hangs.
const SOON: Duration = Duration::from_secs(60);

/// A store, and the folder with its keys.
struct House {
    dir: tempfile::TempDir,
    database: Database,
    store: Store,
}

impl House {
    async fn sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::in_folder(dir.path());
        Self::with(dir, database).await
    }

    /// In a database of its own on the server of all tests.
    async fn postgresql() -> Self {
        Self::on(cluster(), &fresh(cluster())).await
    }

    async fn on(cluster: &Cluster, name: &str) -> Self {
        Self::with(tempfile::tempdir().unwrap(), database(cluster, name)).await
    }

    async fn with(dir: tempfile::TempDir, database: Database) -> Self {
        let store = opened(&database, dir.path()).await;
        Self { dir, database, store }
    }

    /// What a crash leaves: the old handles are dropped, nothing is closed.
    async fn crashed(self) -> Self {
        drop(self.store);
        Self { store: opened(&self.database, self.dir.path()).await, ..self }
    }

    /// A connection beside those of the store.
    async fn elsewhere(&self) -> AnyConnection {
        let (url, _) = address(&self.database);
        AnyConnection::connect(&url).await.unwrap()
    }

    /// Somebody else writes and does not come to an end.
    async fn held(&self) -> AnyConnection {
        let mut elsewhere = self.elsewhere().await;
        sqlx::query(self.database.begin()).execute(&mut elsewhere).await.unwrap();
        if !self.database.is_sqlite() {
            let lock = "LOCK TABLE runs, attempts, events IN EXCLUSIVE MODE";
            sqlx::query(lock).execute(&mut elsewhere).await.unwrap();
        }
        elsewhere
    }
}

/// The server of all tests that leave it alone.
fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::start(&["max_connections=200", "deadlock_timeout=5s"]))
}

/// A new user with a database.
fn fresh(cluster: &Cluster) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("house{}", COUNT.fetch_add(1, Ordering::Relaxed));
    cluster.make(&name, PASSWORD);
    name
}

fn database(cluster: &Cluster, name: &str) -> Database {
    Database::postgresql(cluster.url(&format!("{name}:{PASSWORD}"), name).into(), cluster.url(name, name))
}

/// As a URL, and whether it is a file.
fn address(database: &Database) -> (String, bool) {
    match database {
        Database::Sqlite(file) => (format!("sqlite://{}", file.display()), true),
        Database::PostgreSql { url, .. } => (url.expose_secret().to_owned(), false),
    }
}

async fn opened(database: &Database, dir: &Path) -> Store {
    Store::open_in(database.clone(), Seal::in_state_dir(dir).unwrap()).await.unwrap()
}

/// Why it does not open.
async fn refused(database: &Database, dir: &Path) -> String {
    let opened = Store::open_in(database.clone(), Seal::in_state_dir(dir).unwrap()).await;
    opened.err().expect("it opened").to_string()
}

fn run(n: u64) -> RunId {
    RunId::from_parts(1_700_000_000_000 + n, u128::from(n))
}

fn row(n: u64, server_key: &str) -> RunRow {
    RunRow {
        run: run(n),
        hub: "main".to_owned(),
        server_key: server_key.to_owned(),
        spawn_id: format!("spawn-{n}"),
        state: "submitting".to_owned(),
        alive: true,
        settled: false,
        requested_ms: 1,
        ended_ms: None,
        doc: format!("{{\"n\":{n}}}"),
        view: format!("{{\"view\":{n}}}"),
        attempts: vec![AttemptRow { number: 1, site: "here".to_owned(), fenced: false, job: None }],
    }
}

fn ended(n: u64, server_key: &str, at_ms: i64) -> RunRow {
    let mut row = row(n, server_key);
    row.attempts[0].fenced = true;
    RunRow { alive: false, settled: true, ended_ms: Some(at_ms), state: "ended".to_owned(), ..row }
}

fn order() -> SecretString {
    SecretString::from("{\"token\":\"s3cret\"}")
}

fn attempt(n: u64, number: u32) -> Attempt {
    Attempt { run: run(n), number }
}
