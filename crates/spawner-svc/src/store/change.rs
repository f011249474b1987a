//! What can be changed, and the SQL that does it.
//!
//! Each change stands in a savepoint of its own: one that fails alone is undone alone. The same changes may come a second
//! time, after a commit whose answer was lost: then what they made is found again, and nothing is made twice.

use glidepath_domain::names::Attempt;
use glidepath_svc_kit::crash;
use rand::distr::{Alphanumeric, SampleString as _};
use sqlx::AnyConnection;
use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::faults::Fault;
use super::{Bound, EventRow, RunRow, StoreError, get};

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
    pub(super) fn crash_before(&self) {
        crash::point(match self {
            Self::Create { .. } => "store.create.before",
            Self::Save { row, .. } if row.settled => "store.settled.before",
            Self::Save { row, .. } => match row.state.as_str() {
                "submitting" => "store.submitting.before",
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
    pub(super) fn crash_after(&self) {
        crash::point(match self {
            Self::Create { .. } => "store.create.after",
            Self::Save { row, .. } if row.settled => "store.settled.after",
            Self::Save { row, .. } => match row.state.as_str() {
                "submitting" => "store.submitting.after",
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

/// What an attempt is bound to.
pub(super) const BINDING: &str = "SELECT a.bound_key, a.fenced, r.server_key FROM attempts a \
                                  JOIN runs r ON r.run = a.run WHERE a.run = $1 AND a.number = $2";

/// What a row of [`BINDING`] says to a key; `None` while no key is bound and one may be.
pub(super) fn binding(row: &AnyRow, key: &str) -> Result<Option<Bound>, StoreError> {
    let bound: Option<String> = get(row, "bound_key")?;
    let fenced: i64 = get(row, "fenced")?;
    Ok(match bound {
        Some(bound) if bound != key => Some(Bound::ToAnotherKey),
        _ if fenced != 0 => Some(Bound::Fenced),
        Some(_) => Some(Bound::ToThisKey { server_key: get(row, "server_key")? }),
        None => None,
    })
}

/// Writes into one transaction.
pub(super) struct Pen<'a> {
    pub(super) connection: &'a mut AnyConnection,
    /// These changes, or some of them, may have been committed already.
    pub(super) again: bool,
    /// No event of these changes has an id up to this one.
    pub(super) newest: u64,
}

impl Pen<'_> {
    /// One change in a savepoint of its own: when it fails, the others stand. On an outer error the savepoint is gone,
    /// and the transaction with it: whatever came next would be written by itself.
    pub(super) async fn one(
        &mut self,
        change: &Change,
        told: &mut Vec<EventRow>,
    ) -> Result<Result<Done, StoreError>, Fault> {
        let before = told.len();
        self.statement("SAVEPOINT one").await?;
        let done = match self.apply(change, told).await {
            Ok(done) => Ok(done),
            Err(Fault::Final(error)) => {
                told.truncate(before);
                self.statement("ROLLBACK TO one").await.map_err(|fault| match fault {
                    Fault::Final(_) => Fault::Final(error.clone()),
                    fault => fault,
                })?;
                Err(error)
            }
            Err(fault) => return Err(fault),
        };
        self.statement("RELEASE one").await?;
        Ok(done)
    }

    async fn apply(&mut self, change: &Change, told: &mut Vec<EventRow>) -> Result<Done, Fault> {
        match change {
            Change::Create { row, sealed } => {
                self.create(row, sealed).await?;
                told.push(self.event(row).await?);
            }
            Change::Save { row, tell, erase_order } => {
                self.save(row).await?;
                if *erase_order {
                    let query = sqlx::query("DELETE FROM orders WHERE run = $1").bind(row.run.to_string());
                    query.execute(&mut *self.connection).await?;
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

    async fn create(&mut self, row: &RunRow, sealed: &[u8]) -> Result<(), Fault> {
        if self.again {
            let query = sqlx::query("SELECT run FROM runs WHERE run = $1").bind(row.run.to_string());
            if query.fetch_optional(&mut *self.connection).await?.is_some() {
                return Ok(()); // the commit came through; its launch order may be erased since
            }
        }
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
        query.execute(&mut *self.connection).await.map_err(|error| {
            let twice =
                error.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation);
            if twice { Fault::Final(StoreError::AlreadyAlive) } else { error.into() }
        })?;
        self.attempts(row).await?;
        let query = sqlx::query("INSERT INTO orders (run, sealed) VALUES ($1, $2)");
        let query = query.bind(row.run.to_string()).bind(sealed);
        query.execute(&mut *self.connection).await?;
        Ok(())
    }

    async fn save(&mut self, row: &RunRow) -> Result<(), Fault> {
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
        query.execute(&mut *self.connection).await?;
        self.attempts(row).await
    }

    /// The attempts as the run has them. Never touches the bound key, and never lifts a fence.
    async fn attempts(&mut self, row: &RunRow) -> Result<(), Fault> {
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
            query.execute(&mut *self.connection).await?;
        }
        Ok(())
    }

    async fn bind(&mut self, attempt: Attempt, key: &str) -> Result<Bound, Fault> {
        let (run, number) = (attempt.run.to_string(), i64::from(attempt.number));
        let query = "UPDATE attempts SET bound_key = $3 \
                     WHERE run = $1 AND number = $2 AND fenced = 0 AND bound_key IS NULL";
        let query = sqlx::query(query).bind(&run).bind(number).bind(key);
        query.execute(&mut *self.connection).await?;
        let query = sqlx::query(BINDING).bind(&run).bind(number);
        let row = query.fetch_optional(&mut *self.connection).await?;
        let Some(row) = row else { return Ok(Bound::Unknown) };
        Ok(binding(&row, key)?.unwrap_or(Bound::TooLate))
    }

    async fn event(&mut self, row: &RunRow) -> Result<EventRow, Fault> {
        let id = match self.event_of_before(row).await? {
            Some(id) => id,
            None => {
                let query =
                    sqlx::query("INSERT INTO events (hub, run, view) VALUES ($1, $2, $3) RETURNING id");
                let query = query.bind(&row.hub).bind(row.run.to_string()).bind(&row.view);
                query.fetch_one(&mut *self.connection).await?.try_get("id")?
            }
        };
        self.newest = id.unsigned_abs();
        Ok(EventRow { id: self.newest, hub: row.hub.as_str().into(), view: row.view.as_str().into() })
    }

    /// The event that a commit has made of this whose answer was lost.
    async fn event_of_before(&mut self, row: &RunRow) -> Result<Option<i64>, Fault> {
        if !self.again {
            return Ok(None);
        }
        let query = "SELECT MIN(id) AS id FROM events WHERE id > $1 AND run = $2 AND view = $3";
        let newest = i64::try_from(self.newest).unwrap_or(i64::MAX);
        let query = sqlx::query(query).bind(newest).bind(row.run.to_string()).bind(&row.view);
        Ok(query.fetch_one(&mut *self.connection).await?.try_get("id")?)
    }

    async fn prune(&mut self, ended_before_ms: i64, keep_events: u32) -> Result<(), Fault> {
        let query = "DELETE FROM runs WHERE settled = 1 AND ended_ms < $1 AND EXISTS \
                     (SELECT 1 FROM runs later WHERE later.server_key = runs.server_key AND later.run > runs.run)";
        let query = sqlx::query(query).bind(ended_before_ms);
        query.execute(&mut *self.connection).await?;
        let query = "DELETE FROM events WHERE id <= (SELECT MAX(id) FROM events) - $1";
        let query = sqlx::query(query).bind(i64::from(keep_events));
        query.execute(&mut *self.connection).await?;
        Ok(())
    }

    async fn probe(&mut self) -> Result<(), Fault> {
        let much = Alphanumeric.sample_string(&mut rand::rng(), PROBE_BYTES); // a database may compress
        let query = sqlx::query("INSERT INTO events (hub, run, view) VALUES ('', '', $1)").bind(much);
        query.execute(&mut *self.connection).await?;
        self.statement("DELETE FROM events WHERE hub = ''").await
    }

    pub(super) async fn statement(&mut self, sql: &'static str) -> Result<(), Fault> {
        sqlx::query(sql).execute(&mut *self.connection).await?;
        Ok(())
    }
}
