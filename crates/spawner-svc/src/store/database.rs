//! Which database the store is in, and how it is opened: the only place that knows one from the other.
//!
//! In: what the config says. Out: the writer's connection, which is the only one that may write, and a pool for readers.
//! On PostgreSQL the writer's session holds an advisory lock for as long as it lives; beside SQLite it is the state
//! folder that is locked, which is `app`'s matter.

use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::migrate::Migrator;
use sqlx::{AnyConnection, AnyPool, ConnectOptions as _, Row as _};
use tokio::time::Instant;

use super::{StoreError, faults, folder};
use crate::config::{Config, StoreConfig};

pub(super) static SQLITE: Migrator = sqlx::migrate!("./migrations/sqlite");
pub(super) static POSTGRESQL: Migrator = sqlx::migrate!("./migrations/postgresql");

/// Connections for readers.
pub(super) const READERS: u32 = 4;
/// How long a connection may take.
const CONNECTED_WITHIN: Duration = Duration::from_secs(5);
/// How long a starting service waits for the session of one that was killed just now.
const FREE_WITHIN: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What a path may hold in a URL as it is.
const IN_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'.').remove(b'-').remove(b'_');

/// What was committed survives a power cut, and what was erased is overwritten. A statement waits for another process
/// that holds the file.
const AS_SQLITE: [&str; 4] = [
    "PRAGMA busy_timeout = 10000",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA secure_delete = ON",
];
/// A commit is answered when it is on disk, whatever the server's file says.
const AS_POSTGRESQL: &str = "SELECT set_config('synchronous_commit', 'on', false) \
                             WHERE current_setting('synchronous_commit') = 'off'";
/// How soon the server misses a client that went away without a word, and with it gives the lock free.
const KEEPALIVE: [(&str, &str); 3] =
    [("tcp_keepalives_idle", "10"), ("tcp_keepalives_interval", "5"), ("tcp_keepalives_count", "3")];

/// One writer per schema of a database: (`glpa`, the schema).
pub(super) const LOCK: &str = "SELECT pg_try_advisory_lock(1735159905, hashtext(current_schema())) AS ours";
const HOLDER: &str = "SELECT a.pid, COALESCE(a.application_name, '') AS name, \
     COALESCE(host(a.client_addr), 'the server''s own machine') AS place, \
     COALESCE(to_char(a.backend_start, 'YYYY-MM-DD HH24:MI:SS TZ'), '?') AS since \
     FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid \
     WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2 AND l.classid::bigint = 1735159905 \
     AND l.objid::bigint = (hashtext(current_schema())::bigint & 4294967295) \
     AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// Where the store is.
#[derive(Debug, Clone)]
pub enum Database {
    /// This file.
    Sqlite(PathBuf),
    /// A database of a PostgreSQL server.
    PostgreSql {
        /// With its password.
        url: SecretString,
        /// Without.
        shown: String,
        /// How this service is known to the server: no two have the same name.
        us: String,
    },
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum NotOpened {
    /// Another session may write.
    Taken(Holder),
    /// The database said no, or nobody answered.
    Failed(sqlx::Error),
}

impl From<sqlx::Error> for NotOpened {
    fn from(error: sqlx::Error) -> Self {
        Self::Failed(error)
    }
}

/// The session that may write.
#[derive(Debug, Clone)]
pub(super) struct Holder {
    pid: i64,
    name: String,
    place: String,
    since: String,
}

impl Database {
    /// The file of a state folder.
    #[must_use]
    pub fn in_folder(state_dir: &Path) -> Self {
        Self::Sqlite(state_dir.join("glidepath.db"))
    }

    /// The one that the config names.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        match &config.store {
            StoreConfig::Sqlite => Self::in_folder(&config.state_dir),
            StoreConfig::PostgreSql(there) => Self::postgresql(there.url.clone(), there.shown.clone()),
        }
    }

    /// A server's. `shown` is the URL without its password.
    #[must_use]
    pub fn postgresql(url: SecretString, shown: String) -> Self {
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        let host: String = host.unwrap_or_default().chars().filter(char::is_ascii_graphic).take(24).collect();
        let us = format!("glidepath {host} pid {} {:08x}", std::process::id(), rand::random::<u32>());
        Self::PostgreSql { url, shown, us }
    }

    pub(super) fn is_sqlite(&self) -> bool {
        matches!(self, Self::Sqlite(_))
    }

    /// Begins a transaction that will write.
    pub(super) fn begin(&self) -> &'static str {
        if self.is_sqlite() { "BEGIN IMMEDIATE" } else { "BEGIN" }
    }

    /// As a sentence names it.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Sqlite(file) => file.display().to_string(),
            Self::PostgreSql { shown, .. } => shown.clone(),
        }
    }

    /// The writer's connection for a service that starts, with all tables up to date.
    pub(super) async fn first(&self) -> Result<AnyConnection, StoreError> {
        if let Self::Sqlite(file) = self {
            folder::check(file.parent().unwrap_or(Path::new(".")))?;
            folder::keep_to_owner(file)?;
        }
        let until = Instant::now() + FREE_WITHIN;
        let mut connection = loop {
            match self.writer().await {
                Ok(connection) => break connection,
                Err(NotOpened::Taken(_)) if Instant::now() < until => tokio::time::sleep(LOOK_AGAIN).await,
                Err(NotOpened::Taken(holder)) => return Err(StoreError::Taken(holder.to_string())),
                Err(NotOpened::Failed(error)) => return Err(self.not_opened(&error)),
            }
        };
        let migrations = if self.is_sqlite() { &SQLITE } else { &POSTGRESQL };
        let migrated = migrations.run(&mut connection).await;
        migrated.map_err(|error| faults::not_migrated(&error, |error| self.not_opened(error)))?;
        Ok(connection)
    }

    /// A connection that may write, and no other may while it lives.
    pub(super) async fn writer(&self) -> Result<AnyConnection, NotOpened> {
        let mut connection = self.connect(true).await?;
        if self.is_sqlite() {
            for pragma in AS_SQLITE {
                sqlx::query(pragma).execute(&mut connection).await?;
            }
            return Ok(connection);
        }
        sqlx::query(AS_POSTGRESQL).execute(&mut connection).await?;
        let ours: Option<bool> = sqlx::query(LOCK).fetch_one(&mut connection).await?.try_get("ours")?;
        match ours {
            Some(true) => Ok(connection),
            Some(false) => Err(NotOpened::Taken(holder(&mut connection).await?)),
            None => {
                Err(sqlx::Error::Configuration("its search_path names no schema that is there".into()).into())
            }
        }
    }

    /// Connections that can only read; made when they are needed.
    pub(super) fn readers(&self, patience: Duration) -> Result<AnyPool, StoreError> {
        let options = self.options(false).map_err(|error| self.not_opened(&error))?;
        let pool = AnyPoolOptions::new().max_connections(READERS).acquire_timeout(patience);
        // Whoever waits is told by its error, and the writer tells that the database is away.
        Ok(pool.acquire_slow_threshold(patience * 2).connect_lazy_with(options))
    }

    /// Ends a session of this service that the server has not missed yet.
    pub(super) async fn end_own(&self, holder: &Holder) -> bool {
        let Self::PostgreSql { us, .. } = self else { return false };
        if holder.name != *us {
            return false;
        }
        if let Ok(mut connection) = self.connect(false).await {
            let query = sqlx::query("SELECT pg_terminate_backend($1::int)").bind(holder.pid);
            let _ = query.execute(&mut connection).await; // looked at again in a moment
        }
        true
    }

    /// Whether a service could start with it: for `check`, which changes nothing.
    pub async fn lack(&self) -> Result<(), String> {
        if self.is_sqlite() {
            return Ok(()); // its folder is looked at
        }
        let step = |error: &sqlx::Error| faults::sentence(error, &self.shown());
        let mut connection = self.connect(false).await.map_err(|error| step(&error))?;
        let query = "SELECT COALESCE(has_schema_privilege(current_schema(), 'CREATE') \
                     AND has_schema_privilege(current_schema(), 'USAGE'), false) AS may";
        let may = sqlx::query(query).fetch_one(&mut connection).await.and_then(|row| row.try_get("may"));
        if may.map_err(|error| step(&error))? { Ok(()) } else { Err(faults::NO_RIGHT.to_owned()) }
    }

    async fn connect(&self, writes: bool) -> sqlx::Result<AnyConnection> {
        let options = self.options(writes)?;
        let connected = tokio::time::timeout(CONNECTED_WITHIN, options.connect());
        connected.await.unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))
    }

    fn options(&self, writes: bool) -> sqlx::Result<AnyConnectOptions> {
        sqlx::any::install_default_drivers();
        let options = match self {
            Self::Sqlite(file) => {
                let file =
                    file.to_str().ok_or_else(|| sqlx::Error::Configuration("its path is no text".into()))?;
                let mode = if writes { "rwc" } else { "ro" };
                AnyConnectOptions::from_str(&format!(
                    "sqlite://{}?mode={mode}",
                    utf8_percent_encode(file, IN_PATH)
                ))
            }
            Self::PostgreSql { url, us, .. } => {
                AnyConnectOptions::from_str(url.expose_secret()).map(|mut options| {
                    let mut said = options.database_url.query_pairs_mut();
                    said.append_pair("application_name", us);
                    said.append_pair("options[client_min_messages]", "warning"); // not what is there already
                    if writes {
                        for (name, value) in KEEPALIVE {
                            said.append_pair(&format!("options[{name}]"), value);
                        }
                    } else {
                        said.append_pair("options[default_transaction_read_only]", "on");
                    }
                    drop(said);
                    options
                })
            }
        };
        options.map(AnyConnectOptions::disable_statement_logging)
    }

    fn not_opened(&self, error: &sqlx::Error) -> StoreError {
        StoreError::Database { step: "opened", why: faults::sentence(error, &self.shown()) }
    }
}

impl Holder {
    /// It let go while it was looked for, or may not be seen.
    pub(super) fn is_unknown(&self) -> bool {
        self.pid == 0
    }
}

async fn holder(connection: &mut AnyConnection) -> sqlx::Result<Holder> {
    let row = sqlx::query(HOLDER).fetch_optional(connection).await?;
    let Some(row) = row else {
        let unknown = || "?".to_owned();
        return Ok(Holder { pid: 0, name: unknown(), place: unknown(), since: unknown() });
    };
    Ok(Holder {
        pid: row.try_get("pid")?,
        name: row.try_get("name")?,
        place: row.try_get("place")?,
        since: row.try_get("since")?,
    })
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { pid, name, place, since } = self;
        write!(f, "{name:?}, connected from {place} since {since} (the server's process {pid})")
    }
}
