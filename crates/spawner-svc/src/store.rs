//! The only SQL: runs, attempts, events, sealed launch orders.
//!
//! In: rows that `spawn` and `arrivals` made. Out: the same rows, and every event in the order of its id. One task
//! writes, many changes per transaction; whoever asked for a change hears of it after the commit is on disk. Readers have
//! a small pool. SQLite and PostgreSQL serve the same queries and have the same tables.
//!
//! ```text
//! Store ── change ──► write: one transaction for all that waits ── SQL of each: change
//!   └──── read ─────► pool                    └── connection: database      errors in sentences: faults
//! ```
//! Not here: what a run's record means.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use glidepath_domain::names::{Attempt, RunId};
use secrecy::SecretString;
use sqlx::any::AnyRow;
use sqlx::{AnyPool, Row as _};
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::seal::{Seal, SealError};

mod change;
mod database;
mod faults;
mod folder;
mod health;
mod look;
#[cfg(test)]
mod tests;
mod write;

use change::{BINDING, Change, Done, binding};
pub use database::Database;
pub use folder::on_local_disk;
use health::Health;
pub use health::Written;
pub use look::Look;
use write::{Job, Writer};

/// Changes that may wait for the writer.
const CHANGES_WAITING: usize = 1024;
/// Events that a slow subscriber may fall behind before it must read them from the store.
const EVENTS_WAITING: usize = 1024;
/// How long a look at the store's health may take.
const HEALTHY_WITHIN: Duration = Duration::from_secs(3);
/// How long a caller waits for its change or its rows.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Before rows are read again whose connection was lost.
const READ_AGAIN: Duration = Duration::from_millis(100);

/// Why the store could not be opened, read or written. One sentence each.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The folder cannot hold the database.
    #[error("the state folder {path} {why}")]
    Folder {
        /// Which folder.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// The database said no.
    #[error("the database could not be {step}: {why}")]
    Database {
        /// `opened`, `read`, `written`.
        step: &'static str,
        /// In the database's words.
        why: String,
    },
    /// Nobody answers at the database's address; the writer tries on.
    #[error("the database is away: {0}")]
    Away(String),
    /// Another service may write the database, and this one may not.
    #[error("another service writes this database: {0}; end it, or give each service a database of its own")]
    Taken(String),
    /// A launch order could not be sealed or opened.
    #[error("a launch order is out of reach: {0}")]
    Sealed(String),
    /// Another run of the same server is alive.
    #[error("another run of this server is alive")]
    AlreadyAlive,
    /// The service ends.
    #[error("the store is closed")]
    Closed,
}

/// A run as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct RunRow {
    /// Which life.
    pub run: RunId,
    /// The Hub that it belongs to.
    pub hub: String,
    /// The server's full key.
    pub server_key: String,
    /// The Hub's spawn that created it.
    pub spawn_id: String,
    /// A word for people who look into the database.
    pub state: String,
    /// False once it ended.
    pub alive: bool,
    /// True once it ended and nothing is left of it at any site.
    pub settled: bool,
    /// Milliseconds since 1970.
    pub requested_ms: i64,
    /// The same, of its end.
    pub ended_ms: Option<i64>,
    /// The life cycle's own record, as JSON.
    pub doc: String,
    /// What everybody may see, as JSON.
    pub view: String,
    /// Its attempts. Which key is bound to one is the gate's to write.
    pub attempts: Vec<AttemptRow>,
}

/// An attempt as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRow {
    /// Counts from 1.
    pub number: u32,
    /// Where.
    pub site: String,
    /// True once it may not attach.
    pub fenced: bool,
    /// The batch system's own name for its job.
    pub job: Option<String>,
}

/// What became of binding a key to an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bound {
    /// The key is bound to it: now, or it was before.
    ToThisKey {
        /// The server's full key.
        server_key: String,
    },
    /// It is not bound, and the ticket's time for a first redemption is over.
    TooLate,
    /// Another key redeemed the ticket.
    ToAnotherKey,
    /// It may not attach: another attempt follows, or the run is over.
    Fenced,
    /// There is no such attempt.
    Unknown,
}

/// One event as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRow {
    /// Grows with every event, over all Hubs; not every number is an event's.
    pub id: u64,
    /// The Hub that may hear it.
    pub hub: Arc<str>,
    /// What everybody may see of the run, as JSON.
    pub view: Arc<str>,
}

/// Handle to the store; cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    readers: AnyPool,
    changes: mpsc::Sender<Job>,
    events: broadcast::Sender<EventRow>,
    health: Arc<Health>,
    /// How long rows are waited for.
    patience: Duration,
    seal: Seal,
    writer: std::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Store {
    /// Opens `<state_dir>/glidepath.db`, as [`Store::open_in`]. Refuses a folder on a network file system.
    pub async fn open(state_dir: &Path, seal: Seal) -> Result<Self, StoreError> {
        Self::open_in(Database::in_folder(state_dir), seal).await
    }

    /// Opens a database, brings its tables up to date and starts the writer. Refuses one that another service writes.
    pub async fn open_in(database: Database, seal: Seal) -> Result<Self, StoreError> {
        Self::opened(database, seal, ANSWER_WITHIN).await
    }

    async fn opened(database: Database, seal: Seal, patience: Duration) -> Result<Self, StoreError> {
        let mut connection = database.first().await?;
        let newest = sqlx::query("SELECT MAX(id) AS newest FROM events").fetch_one(&mut connection).await;
        let newest: Option<i64> = get(&newest.map_err(|error| faults::failed("read", &error))?, "newest")?;
        let readers = database.readers(patience)?;
        let (changes, jobs) = mpsc::channel(CHANGES_WAITING);
        let (events, _) = broadcast::channel(EVENTS_WAITING);
        let health = Arc::new(Health::default());
        let newest = newest.unwrap_or(0).unsigned_abs();
        let writer = Writer::new(database, connection, newest, jobs, events.clone(), Arc::clone(&health));
        let writer = tokio::runtime::Handle::current().spawn(writer.run());
        let writer = std::sync::Mutex::new(Some(writer));
        Ok(Self { inner: Arc::new(Inner { readers, changes, events, health, patience, seal, writer }) })
    }

    /// Writes what is under way and closes. Later calls fail with [`StoreError::Closed`].
    pub async fn close(&self) {
        let _ = self.change(Change::Close).await;
        let writer = self.inner.writer.lock().ok().and_then(|mut writer| writer.take());
        if let Some(writer) = writer {
            let _ = writer.await;
        }
        self.inner.readers.close().await;
    }

    /// Returns when the writer has ended: the store takes nothing any more.
    pub async fn closed(&self) {
        self.inner.changes.closed().await;
    }

    /// Why the writer ended before it was told to.
    #[must_use]
    pub fn why_closed(&self) -> Option<StoreError> {
        self.inner.health.why_ended()
    }

    /// Why nothing can be written, as the writer found last; `None` while all is well.
    #[must_use]
    pub fn trouble(&self) -> Option<StoreError> {
        self.inner.health.trouble()
    }

    /// How often it began that nothing could be written.
    #[must_use]
    pub fn troubles(&self) -> u64 {
        self.inner.health.times()
    }

    /// How much was written since it was opened.
    #[must_use]
    pub fn written(&self) -> Written {
        self.inner.health.written()
    }

    /// True while reads and writes work; for `/health/ready`. Where the last change could not be written, it is tried
    /// whether one can be by now.
    pub async fn healthy(&self) -> bool {
        let looked = async {
            let read = sqlx::query("SELECT 1").fetch_one(&self.inner.readers).await;
            let able = self.trouble().is_none() || self.change(Change::Probe).await.is_ok();
            read.is_ok() && able
        };
        let looked = tokio::time::timeout(HEALTHY_WITHIN, looked).await;
        matches!(looked, Ok(true)) && !self.inner.changes.is_closed()
    }

    /// Writes down a new run with its sealed launch order, and tells of it. One live run per server, whatever happens.
    /// Waits for as long as the writer takes: whoever makes a run must know whether it is there.
    pub async fn create(&self, row: RunRow, order: &SecretString) -> Result<(), StoreError> {
        let sealed = self.inner.seal.close(&row.run.to_string(), order).map_err(out_of_reach)?;
        self.done(Change::Create { row: Box::new(row), sealed }).await.map(drop)
    }

    /// Writes down how a run stands. `tell` makes an event of it; `erase_order` removes its launch order.
    pub async fn save(&self, row: RunRow, tell: bool, erase_order: bool) -> Result<(), StoreError> {
        self.change(Change::Save { row: Box::new(row), tell, erase_order }).await.map(drop)
    }

    /// Binds an agent's key to an attempt, by compare-and-set. `may_be_first` is false once the ticket's time for a
    /// first redemption is over. Only a first redemption writes: an agent that dials again needs no room on the disk.
    pub async fn bind(
        &self,
        attempt: Attempt,
        key: &[u8; 32],
        may_be_first: bool,
    ) -> Result<Bound, StoreError> {
        let key = crate::seal::to_hex(key);
        let query = || sqlx::query(BINDING).bind(attempt.run.to_string()).bind(i64::from(attempt.number));
        let row = self.read(|| query().fetch_optional(&self.inner.readers)).await?;
        let Some(row) = row else { return Ok(Bound::Unknown) };
        match binding(&row, &key)? {
            Some(bound) => return Ok(bound),
            None if !may_be_first => return Ok(Bound::TooLate),
            None => {}
        }
        match self.change(Change::Bind { attempt, key }).await? {
            Done::Bound(bound) => Ok(bound),
            Done::Written => Err(StoreError::Closed),
        }
    }

    /// Removes ended runs that are older, but the last of each server, and all but the newest events.
    pub async fn prune(&self, ended_before_ms: i64, keep_events: u32) -> Result<(), StoreError> {
        self.change(Change::Prune { ended_before_ms, keep_events }).await.map(drop)
    }

    /// Every run that lives or still has something left at a site, oldest first.
    pub async fn unsettled(&self) -> Result<Vec<RunRow>, StoreError> {
        let query = "SELECT * FROM runs WHERE settled = 0 ORDER BY run";
        let rows = self.read(|| sqlx::query(query).fetch_all(&self.inner.readers)).await?;
        rows.iter().map(run_row).collect()
    }

    /// One of them, if it is one.
    pub async fn unsettled_run(&self, run: RunId) -> Result<Option<RunRow>, StoreError> {
        let query = || sqlx::query("SELECT * FROM runs WHERE settled = 0 AND run = $1").bind(run.to_string());
        let row = self.read(|| query().fetch_optional(&self.inner.readers)).await?;
        row.as_ref().map(run_row).transpose()
    }

    /// The last run of each server.
    pub async fn last_runs(&self) -> Result<Vec<RunRow>, StoreError> {
        let query = "SELECT r.* FROM runs r WHERE r.run = \
                     (SELECT MAX(l.run) FROM runs l WHERE l.server_key = r.server_key) ORDER BY r.run";
        let rows = self.read(|| sqlx::query(query).fetch_all(&self.inner.readers)).await?;
        rows.iter().map(run_row).collect()
    }

    /// What everybody may see of the last run of each server of one Hub, as JSON.
    pub async fn views(&self, hub: &str) -> Result<Vec<String>, StoreError> {
        let query = "SELECT r.view FROM runs r WHERE r.hub = $1 AND r.run = \
                     (SELECT MAX(l.run) FROM runs l WHERE l.server_key = r.server_key) ORDER BY r.run";
        let query = || sqlx::query(query).bind(hub.to_owned());
        let rows = self.read(|| query().fetch_all(&self.inner.readers)).await?;
        rows.iter().map(|row| get(row, "view")).collect()
    }

    /// Whether anything may be left of this attempt at a site: `None` when the run is not known at all.
    pub async fn is_wanted(&self, attempt: Attempt) -> Result<Option<bool>, StoreError> {
        let query = "SELECT r.settled, a.number FROM runs r \
                     LEFT JOIN attempts a ON a.run = r.run AND a.number = $2 WHERE r.run = $1";
        let query = || sqlx::query(query).bind(attempt.run.to_string()).bind(i64::from(attempt.number));
        let row = self.read(|| query().fetch_optional(&self.inner.readers)).await?;
        let Some(row) = row else { return Ok(None) };
        let settled: i64 = get(&row, "settled")?;
        let number: Option<i64> = get(&row, "number")?;
        Ok(number.map(|_| settled == 0))
    }

    /// The launch order of a run, while it is kept.
    pub async fn order(&self, run: RunId) -> Result<Option<SecretString>, StoreError> {
        let query = || sqlx::query("SELECT sealed FROM orders WHERE run = $1").bind(run.to_string());
        let row = self.read(|| query().fetch_optional(&self.inner.readers)).await?;
        let Some(row) = row else { return Ok(None) };
        let sealed: Vec<u8> = get(&row, "sealed")?;
        self.inner.seal.open(&run.to_string(), &sealed).map(Some).map_err(out_of_reach)
    }

    /// Events of one Hub after an id, oldest first, at most so many.
    pub async fn events_after(
        &self,
        hub: &str,
        after: u64,
        at_most: u32,
    ) -> Result<Vec<EventRow>, StoreError> {
        let query = "SELECT id, hub, view FROM events WHERE hub = $1 AND id > $2 ORDER BY id LIMIT $3";
        let after = i64::try_from(after).unwrap_or(i64::MAX);
        let query = || sqlx::query(query).bind(hub.to_owned()).bind(after).bind(i64::from(at_most));
        let rows = self.read(|| query().fetch_all(&self.inner.readers)).await?;
        rows.iter().map(event_row).collect()
    }

    /// The oldest and the newest id that are kept.
    pub async fn event_ids(&self) -> Result<Option<(u64, u64)>, StoreError> {
        let query = "SELECT MIN(id) AS oldest, MAX(id) AS newest FROM events";
        let row = self.read(|| sqlx::query(query).fetch_one(&self.inner.readers)).await?;
        let (oldest, newest): (Option<i64>, Option<i64>) = (get(&row, "oldest")?, get(&row, "newest")?);
        Ok(oldest.zip(newest).map(|(oldest, newest)| (oldest.unsigned_abs(), newest.unsigned_abs())))
    }

    /// Every event from here on, in the order of its id, after it is on disk.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<EventRow> {
        self.inner.events.subscribe()
    }

    async fn change(&self, change: Change) -> Result<Done, StoreError> {
        let written = timeout(ANSWER_WITHIN, self.done(change)).await;
        written.unwrap_or_else(|_| Err(too_slow("written", ANSWER_WITHIN)))
    }

    async fn done(&self, change: Change) -> Result<Done, StoreError> {
        let (job, answer) = Job::new(change);
        self.inner.changes.send(job).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Rows, asked for again where the connection was lost.
    async fn read<T, Rows>(&self, ask: impl Fn() -> Rows) -> Result<T, StoreError>
    where
        Rows: Future<Output = sqlx::Result<T>>,
    {
        let asked = async {
            loop {
                match ask().await {
                    Err(error) if faults::is_lost(&error) => sleep(READ_AGAIN).await,
                    other => return other,
                }
            }
        };
        match timeout(self.inner.patience, asked).await {
            Ok(Ok(rows)) => Ok(rows),
            Ok(Err(sqlx::Error::PoolClosed)) => Err(StoreError::Closed),
            Ok(Err(sqlx::Error::PoolTimedOut)) | Err(_) => Err(self.not_read()),
            Ok(Err(error)) => Err(faults::failed("read", &error)),
        }
    }

    fn not_read(&self) -> StoreError {
        let readers = &self.inner.readers;
        let busy = readers.size() == database::READERS && readers.num_idle() == 0;
        match self.trouble() {
            Some(away @ StoreError::Away(_)) => away,
            _ if busy => {
                let within = self.inner.patience.as_secs();
                let why = format!(
                    "all {} connections for reading were in use for {within} seconds",
                    database::READERS
                );
                StoreError::Database { step: "read", why }
            }
            _ => too_slow("read", self.inner.patience),
        }
    }
}

fn run_row(row: &AnyRow) -> Result<RunRow, StoreError> {
    let run: String = get(row, "run")?;
    let (alive, settled): (i64, i64) = (get(row, "alive")?, get(row, "settled")?);
    Ok(RunRow {
        run: RunId::parse(&run).map_err(|error| unreadable(&error.to_string()))?,
        hub: get(row, "hub")?,
        server_key: get(row, "server_key")?,
        spawn_id: get(row, "spawn_id")?,
        state: get(row, "state")?,
        alive: alive != 0,
        settled: settled != 0,
        requested_ms: get(row, "requested_ms")?,
        ended_ms: get(row, "ended_ms")?,
        doc: get(row, "doc")?,
        view: get(row, "view")?,
        attempts: Vec::new(),
    })
}

fn event_row(row: &AnyRow) -> Result<EventRow, StoreError> {
    let id: i64 = get(row, "id")?;
    let (hub, view): (String, String) = (get(row, "hub")?, get(row, "view")?);
    Ok(EventRow { id: id.unsigned_abs(), hub: hub.into(), view: view.into() })
}

fn get<'r, T>(row: &'r AnyRow, column: &str) -> Result<T, StoreError>
where
    T: sqlx::Decode<'r, sqlx::Any> + sqlx::Type<sqlx::Any>,
{
    row.try_get(column).map_err(|error| unreadable(&error.to_string()))
}

fn unreadable(why: &str) -> StoreError {
    StoreError::Database { step: "read", why: why.to_owned() }
}

fn too_slow(step: &'static str, within: Duration) -> StoreError {
    StoreError::Database { step, why: format!("no answer within {} seconds", within.as_secs()) }
}

fn out_of_reach(error: SealError) -> StoreError {
    StoreError::Sealed(error.to_string())
}
