//! The one writer: takes what waits, writes it in one transaction, tells everybody after the commit.
//!
//! A change that fails alone is undone alone. Some errors, a full disk among them, make the database give up the whole
//! transaction: then nothing of it is done, nothing more is tried in it, and everybody who waits is told so.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use glidepath_domain::names::Attempt;
use glidepath_svc_kit::crash;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Connection as _, Row as _};
use tokio::sync::{broadcast, mpsc, oneshot};

use super::{Bound, EventRow, RunRow, StoreError, failed, get};

/// Changes in one transaction, at most: the first of them waits for all.
const CHANGES_TOGETHER: usize = 256;

/// What a probe writes: about as much as a start.
const PROBE_BYTES: usize = 16 * 1024;

/// A change to be written.
pub(super) enum Change {
    Create {
        row: Box<RunRow>,
        sealed: Vec<u8>,
    },
    Save {
        row: Box<RunRow>,
        tell: bool,
        erase_order: bool,
    },
    Bind {
        attempt: Attempt,
        key: String,
    },
    Prune {
        ended_before_ms: i64,
        keep_events: u32,
    },
    /// Writes something and takes it back, to see whether it can be done.
    Probe,
    Close,
}

impl Change {
    /// Where tests kill the service: with all of it written, and not committed.
    fn crash_before(&self) {
        crash::point(match self {
            Self::Create { .. } => "store.create.before",
            Self::Save { row, .. } if row.settled => "store.settled.before",
            Self::Save { row, .. } => match row.state.as_str() {
                "queued" => "store.queued.before",
                "dialling" | "starting" => "store.starting.before",
                "ready" => "store.ready.before",
                "stopping" => "store.stopping.before",
                "ended" => "store.ended.before",
                _ => return,
            },
            Self::Bind { .. } => "store.bind.before",
            Self::Prune { .. } => "store.prune.before",
            Self::Close => "store.close.before",
            Self::Probe => return,
        });
    }

    /// And with all of it committed, before anybody is told.
    fn crash_after(&self) {
        crash::point(match self {
            Self::Create { .. } => "store.create.after",
            Self::Save { row, .. } if row.settled => "store.settled.after",
            Self::Save { row, .. } => match row.state.as_str() {
                "queued" => "store.queued.after",
                "dialling" | "starting" => "store.starting.after",
                "ready" => "store.ready.after",
                "stopping" => "store.stopping.after",
                "ended" => "store.ended.after",
                _ => return,
            },
            Self::Bind { .. } => "store.bind.after",
            Self::Prune { .. } => "store.prune.after",
            Self::Close => "store.close.after",
            Self::Probe => return,
        });
    }
}

/// What a change came to.
pub(super) enum Done {
    Written,
    Bound(Bound),
}

/// A change and who waits for it.
pub(super) struct Job {
    pub(super) change: Change,
    pub(super) reply: oneshot::Sender<Result<Done, StoreError>>,
}

/// What an attempt is bound to.
pub(super) const BINDING: &str = "SELECT a.bound_key, a.fenced, r.server_key FROM attempts a \
                                  JOIN runs r ON r.run = a.run WHERE a.run = $1 AND a.number = $2";

/// What a row of [`BINDING`] says to a key; `None` while no key is bound and one may be.
pub(super) fn binding(row: &SqliteRow, key: &str) -> Result<Option<Bound>, StoreError> {
    let bound: Option<String> = get(row, "bound_key")?;
    let fenced: i64 = get(row, "fenced")?;
    Ok(match bound {
        Some(bound) if bound != key => Some(Bound::ToAnotherKey),
        _ if fenced != 0 => Some(Bound::Fenced),
        Some(_) => Some(Bound::ToThisKey { server_key: get(row, "server_key")? }),
        None => None,
    })
}

pub(super) struct Writer {
    pub(super) connection: SqliteConnection,
    pub(super) jobs: mpsc::Receiver<Job>,
    pub(super) events: broadcast::Sender<EventRow>,
    /// Whether the last that was asked could be written.
    pub(super) able: Arc<AtomicBool>,
}

impl Writer {
    /// Writes until told to close, or until every handle to the store is gone.
    pub(super) async fn run(mut self) {
        let mut batch = Vec::with_capacity(CHANGES_TOGETHER);
        while self.jobs.recv_many(&mut batch, CHANGES_TOGETHER).await > 0 {
            let closes = batch.iter().any(|job| matches!(job.change, Change::Close));
            let prunes = batch.iter().any(|job| matches!(job.change, Change::Prune { .. }));
            self.write(std::mem::take(&mut batch)).await;
            if closes || prunes {
                self.empty_the_log().await;
            }
            if closes {
                break;
            }
        }
        self.jobs.close();
        let _ = self.connection.close().await;
    }

    async fn write(&mut self, batch: Vec<Job>) {
        let mut told = Vec::new();
        let written = self.all(&batch, &mut told).await;
        let refused = |done: &Result<Done, StoreError>| matches!(done, Err(StoreError::Database { .. }));
        self.able.store(written.as_ref().is_ok_and(|done| !done.iter().any(refused)), Ordering::Relaxed);
        match written {
            Ok(done) => {
                for event in told {
                    let _ = self.events.send(event); // nobody may be listening
                }
                for (job, done) in batch.into_iter().zip(done) {
                    let _ = job.reply.send(done); // the caller may have given up
                }
            }
            Err(error) => {
                let _ = self.statement("ROLLBACK").await; // the database may have done it already
                tracing::error!(%error, "the store could not write; what was asked is not done");
                for job in batch {
                    let _ = job.reply.send(Err(error.clone()));
                }
            }
        }
    }

    /// All of them in one transaction. On an error it is lost, and nothing of it must be believed.
    async fn all(
        &mut self,
        batch: &[Job],
        told: &mut Vec<EventRow>,
    ) -> Result<Vec<Result<Done, StoreError>>, StoreError> {
        self.statement("BEGIN IMMEDIATE").await?;
        let mut done = Vec::with_capacity(batch.len());
        for job in batch {
            done.push(self.one(&job.change, told).await?);
            job.change.crash_before();
        }
        self.statement("COMMIT").await?;
        batch.iter().for_each(|job| job.change.crash_after());
        Ok(done)
    }

    /// One change in a savepoint of its own: when it fails, the others stand. On an outer error the savepoint is gone,
    /// and the transaction with it: whatever came next would be written by itself.
    async fn one(
        &mut self,
        change: &Change,
        told: &mut Vec<EventRow>,
    ) -> Result<Result<Done, StoreError>, StoreError> {
        let before = told.len();
        self.statement("SAVEPOINT one").await?;
        let done = self.apply(change, told).await;
        if let Err(error) = &done {
            told.truncate(before);
            self.statement("ROLLBACK TO one").await.map_err(|_| error.clone())?;
        }
        self.statement("RELEASE one").await?;
        Ok(done)
    }

    async fn apply(&mut self, change: &Change, told: &mut Vec<EventRow>) -> Result<Done, StoreError> {
        match change {
            Change::Create { row, sealed } => {
                self.create(row, sealed).await?;
                told.push(self.event(row).await?);
            }
            Change::Save { row, tell, erase_order } => {
                self.save(row).await?;
                if *erase_order {
                    let query = sqlx::query("DELETE FROM orders WHERE run = $1").bind(row.run.to_string());
                    query.execute(&mut self.connection).await.map_err(written)?;
                }
                if *tell {
                    told.push(self.event(row).await?);
                }
            }
            Change::Bind { attempt, key } => return self.bind(*attempt, key).await.map(Done::Bound),
            Change::Prune { ended_before_ms, keep_events } => {
                self.prune(*ended_before_ms, *keep_events).await?;
            }
            Change::Probe => self.probe().await?,
            Change::Close => {}
        }
        Ok(Done::Written)
    }

    async fn create(&mut self, row: &RunRow, sealed: &[u8]) -> Result<(), StoreError> {
        let query = "INSERT INTO runs (run, hub, server_key, spawn_id, state, alive, settled, requested_ms, ended_ms, \
                     doc, view) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";
        let query = sqlx::query(query)
            .bind(row.run.to_string())
            .bind(&row.hub)
            .bind(&row.server_key)
            .bind(&row.spawn_id)
            .bind(&row.state)
            .bind(i64::from(row.alive))
            .bind(i64::from(row.settled))
            .bind(row.requested_ms)
            .bind(row.ended_ms)
            .bind(&row.doc)
            .bind(&row.view);
        query.execute(&mut self.connection).await.map_err(|error| {
            let twice =
                error.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation);
            if twice { StoreError::AlreadyAlive } else { written(error) }
        })?;
        self.attempts(row).await?;
        let query = sqlx::query("INSERT INTO orders (run, sealed) VALUES ($1, $2)");
        let query = query.bind(row.run.to_string()).bind(sealed);
        query.execute(&mut self.connection).await.map_err(written)?;
        Ok(())
    }

    async fn save(&mut self, row: &RunRow) -> Result<(), StoreError> {
        let query = "UPDATE runs SET state = $2, alive = $3, settled = $4, ended_ms = $5, doc = $6, view = $7 \
                     WHERE run = $1";
        let query = sqlx::query(query)
            .bind(row.run.to_string())
            .bind(&row.state)
            .bind(i64::from(row.alive))
            .bind(i64::from(row.settled))
            .bind(row.ended_ms)
            .bind(&row.doc)
            .bind(&row.view);
        query.execute(&mut self.connection).await.map_err(written)?;
        self.attempts(row).await
    }

    /// The attempts as the run has them. Never touches the bound key, and never lifts a fence.
    async fn attempts(&mut self, row: &RunRow) -> Result<(), StoreError> {
        for attempt in &row.attempts {
            let query = "INSERT INTO attempts (run, number, site, fenced, job) VALUES ($1, $2, $3, $4, $5) \
                         ON CONFLICT (run, number) DO UPDATE SET \
                         fenced = CASE WHEN attempts.fenced = 1 THEN 1 ELSE excluded.fenced END, \
                         job = COALESCE(excluded.job, attempts.job)";
            let query = sqlx::query(query)
                .bind(row.run.to_string())
                .bind(i64::from(attempt.number))
                .bind(&attempt.site)
                .bind(i64::from(attempt.fenced))
                .bind(attempt.job.as_deref());
            query.execute(&mut self.connection).await.map_err(written)?;
        }
        Ok(())
    }

    async fn bind(&mut self, attempt: Attempt, key: &str) -> Result<Bound, StoreError> {
        let (run, number) = (attempt.run.to_string(), i64::from(attempt.number));
        let query = "UPDATE attempts SET bound_key = $3 \
                     WHERE run = $1 AND number = $2 AND fenced = 0 AND bound_key IS NULL";
        let query = sqlx::query(query).bind(&run).bind(number).bind(key);
        query.execute(&mut self.connection).await.map_err(written)?;
        let query = sqlx::query(BINDING).bind(&run).bind(number);
        let row = query.fetch_optional(&mut self.connection).await.map_err(written)?;
        let Some(row) = row else { return Ok(Bound::Unknown) };
        Ok(binding(&row, key)?.unwrap_or(Bound::TooLate))
    }

    async fn event(&mut self, row: &RunRow) -> Result<EventRow, StoreError> {
        let query = sqlx::query("INSERT INTO events (hub, run, view) VALUES ($1, $2, $3) RETURNING id");
        let query = query.bind(&row.hub).bind(row.run.to_string()).bind(&row.view);
        let id: i64 =
            query.fetch_one(&mut self.connection).await.and_then(|row| row.try_get("id")).map_err(written)?;
        Ok(EventRow { id: id.unsigned_abs(), hub: row.hub.as_str().into(), view: row.view.as_str().into() })
    }

    async fn prune(&mut self, ended_before_ms: i64, keep_events: u32) -> Result<(), StoreError> {
        let query = "DELETE FROM runs WHERE settled = 1 AND ended_ms < $1 AND EXISTS \
                     (SELECT 1 FROM runs later WHERE later.server_key = runs.server_key AND later.run > runs.run)";
        let query = sqlx::query(query).bind(ended_before_ms);
        query.execute(&mut self.connection).await.map_err(written)?;
        let query = "DELETE FROM events WHERE id <= (SELECT MAX(id) FROM events) - $1";
        let query = sqlx::query(query).bind(i64::from(keep_events));
        query.execute(&mut self.connection).await.map_err(written)?;
        Ok(())
    }

    async fn probe(&mut self) -> Result<(), StoreError> {
        let query = sqlx::query("INSERT INTO events (hub, run, view) VALUES ('', '', $1)");
        let query = query.bind("x".repeat(PROBE_BYTES));
        query.execute(&mut self.connection).await.map_err(written)?;
        self.statement("DELETE FROM events WHERE hub = ''").await
    }

    /// Brings the write-ahead log into the database and cuts it to nothing: what was erased may still stand in it.
    async fn empty_the_log(&mut self) {
        if let Err(error) = self.statement("PRAGMA wal_checkpoint(TRUNCATE)").await {
            tracing::warn!(%error, "the write-ahead log keeps what was erased until the next try");
        }
    }

    async fn statement(&mut self, sql: &'static str) -> Result<(), StoreError> {
        sqlx::query(sql).execute(&mut self.connection).await.map(drop).map_err(written)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "shaped for map_err")]
fn written(error: sqlx::Error) -> StoreError {
    failed("written", &error)
}
