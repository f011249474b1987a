//! The one writer: takes what waits, writes it in one transaction, tells everybody after the commit.
//!
//! Some errors, a full disk among them, make the database give up the whole transaction: then nothing of it is done,
//! nothing more is tried in it, and everybody who waits is told so. When the connection is lost, the writer waits for the
//! database and writes the same again; a commit whose answer was lost is thereby found out. Who waits too long is told
//! that nothing is done, unless it may be. A session that another service has taken over meanwhile is the end.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{AnyConnection, Connection as _};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

use super::change::{Change, Done, Pen};
use super::database::{Database, NotOpened};
use super::faults::{self, Fault};
use super::health::Health;
use super::{CHANGES_WAITING, EventRow, StoreError};

/// Changes in one transaction, at most: the first of them waits for all.
const CHANGES_TOGETHER: usize = 256;
/// Between two looks at the database while nothing is asked.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A look.
const LOOKED_WITHIN: Duration = Duration::from_secs(5);
/// One transaction on a server: beyond it the connection is taken for lost.
const WRITTEN_WITHIN: Duration = Duration::from_secs(20);
/// How long a change waits for a database that is away; less than its caller waits for its answer.
const RIDE_OUT: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 20 });
/// How often one transaction is begun again that the database gave up for the sake of another.
const TRIES: u32 = 6;
/// Between two tries, at least and at most; jittered.
const TRY_AGAIN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
const CLOSED_WITHIN: Duration = Duration::from_secs(2);

/// A change and who waits for it.
pub(super) struct Job {
    change: Change,
    reply: oneshot::Sender<Result<Done, StoreError>>,
    asked: Instant,
}

impl Job {
    /// A change that is asked for now, and where its answer comes.
    pub(super) fn new(change: Change) -> (Self, oneshot::Receiver<Result<Done, StoreError>>) {
        let (reply, answer) = oneshot::channel();
        (Self { change, reply, asked: Instant::now() }, answer)
    }

    fn answer(self, done: Result<Done, StoreError>) {
        let _ = self.reply.send(done); // the caller may have given up
    }
}

pub(super) struct Writer {
    database: Database,
    /// `None` while it is lost.
    connection: Option<AnyConnection>,
    jobs: mpsc::Receiver<Job>,
    events: broadcast::Sender<EventRow>,
    health: Arc<Health>,
    /// The newest event that was told.
    newest: u64,
    /// A commit was asked for and not answered.
    committing: bool,
}

impl Writer {
    pub(super) fn new(
        database: Database,
        connection: AnyConnection,
        newest: u64,
        jobs: mpsc::Receiver<Job>,
        events: broadcast::Sender<EventRow>,
        health: Arc<Health>,
    ) -> Self {
        Self { database, connection: Some(connection), jobs, events, health, newest, committing: false }
    }

    /// Writes until told to close, or until every handle to the store is gone.
    pub(super) async fn run(mut self) {
        match self.until_closed().await {
            Ok(()) | Err(StoreError::Closed) => {}
            Err(why) => {
                tracing::error!(error = %why, "nothing more is written");
                self.health.ended(why);
            }
        }
        self.jobs.close();
        if let Some(connection) = self.connection.take() {
            let _ = timeout(CLOSED_WITHIN, connection.close()).await; // its session ends with it in any case
        }
    }

    async fn until_closed(&mut self) -> Result<(), StoreError> {
        let mut batch = Vec::with_capacity(CHANGES_TOGETHER);
        loop {
            match timeout(LOOK_EVERY, self.jobs.recv_many(&mut batch, CHANGES_TOGETHER)).await {
                Ok(0) => return Ok(()),
                Ok(_) => {
                    let closes = self.write(std::mem::take(&mut batch)).await?;
                    if closes {
                        return Ok(());
                    }
                }
                Err(_) => self.look().await?,
            }
        }
    }

    /// Writes all of it and answers everybody. True when it was told to close.
    async fn write(&mut self, mut batch: Vec<Job>) -> Result<bool, StoreError> {
        let (mut in_doubt, mut tries) = (0, 0);
        loop {
            let mut told = Vec::new();
            let fault = match self.all(&batch, in_doubt > 0, &mut told).await {
                Ok(done) => return Ok(self.tell(batch, done, told).await),
                Err(fault) => fault,
            };
            match fault {
                Fault::Lost(why) => {
                    if self.committing {
                        in_doubt = batch.len();
                    }
                    self.come_back(why, &mut batch, in_doubt).await?;
                }
                Fault::Again(_) if tries < TRIES => {
                    tries += 1;
                    self.roll_back().await;
                    sleep(jittered(TRY_AGAIN.0 * tries)).await;
                }
                Fault::Again(why) | Fault::Final(why) => {
                    self.roll_back().await;
                    self.health.fell(&why);
                    let closes = batch.iter().any(|job| matches!(job.change, Change::Close));
                    batch.into_iter().for_each(|job| job.answer(Err(why.clone())));
                    return Ok(closes);
                }
            }
        }
    }

    /// After the commit.
    async fn tell(
        &mut self,
        batch: Vec<Job>,
        done: Vec<Result<Done, StoreError>>,
        told: Vec<EventRow>,
    ) -> bool {
        match done.iter().find_map(|done| done.as_ref().err().filter(|why| is_trouble(why))) {
            Some(why) => self.health.fell(why),
            None => self.health.rose(),
        }
        for event in told {
            let _ = self.events.send(event); // nobody may be listening
        }
        let closes = batch.iter().any(|job| matches!(job.change, Change::Close));
        let prunes = batch.iter().any(|job| matches!(job.change, Change::Prune { .. }));
        for (job, done) in batch.into_iter().zip(done) {
            job.answer(done);
        }
        if closes || prunes {
            self.empty_the_log().await;
        }
        closes
    }

    /// All of them in one transaction. On an error it is lost, and nothing of it must be believed.
    async fn all(
        &mut self,
        batch: &[Job],
        again: bool,
        told: &mut Vec<EventRow>,
    ) -> Result<Vec<Result<Done, StoreError>>, Fault> {
        self.committing = false;
        if self.database.is_sqlite() {
            return self.transaction(batch, again, told).await; // its statements have a time of their own
        }
        let written = timeout(WRITTEN_WITHIN, self.transaction(batch, again, told)).await;
        written.unwrap_or_else(|_| Err(Fault::Lost(super::too_slow("written", WRITTEN_WITHIN))))
    }

    async fn transaction(
        &mut self,
        batch: &[Job],
        again: bool,
        told: &mut Vec<EventRow>,
    ) -> Result<Vec<Result<Done, StoreError>>, Fault> {
        let Some(connection) = &mut self.connection else { return Err(Fault::Lost(StoreError::Closed)) };
        let mut pen = Pen { connection, again, newest: self.newest };
        pen.statement(self.database.begin()).await?;
        let mut done = Vec::with_capacity(batch.len());
        for job in batch {
            done.push(pen.one(&job.change, told).await?);
            job.change.crash_before();
        }
        self.committing = true;
        pen.statement("COMMIT").await?;
        self.committing = false;
        self.newest = pen.newest;
        self.health.wrote(done.iter().filter(|done| done.is_ok()).count());
        batch.iter().for_each(|job| job.change.crash_after());
        Ok(done)
    }

    async fn roll_back(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        let rolled_back = sqlx::query("ROLLBACK").execute(connection).await;
        // SQLite may have done it already; a server says nothing to that.
        if rolled_back.is_err() && !self.database.is_sqlite() {
            self.connection = None;
        }
    }

    /// While nothing is asked: whether the database is there, and can write again where it could not.
    async fn look(&mut self) -> Result<(), StoreError> {
        if self.health.trouble().is_some() {
            let (probe, _) = Job::new(Change::Probe);
            return self.write(vec![probe]).await.map(drop);
        }
        let Some(connection) = self.connection.as_mut().filter(|_| !self.database.is_sqlite()) else {
            return Ok(());
        };
        let why = match timeout(LOOKED_WITHIN, connection.ping()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => faults::failed("reached", &error),
            Err(_) => super::too_slow("reached", LOOKED_WITHIN),
        };
        let mut held = Vec::new();
        self.come_back(why, &mut held, 0).await?;
        if held.is_empty() {
            self.health.rose();
            return Ok(());
        }
        if self.write(held).await? { Err(StoreError::Closed) } else { Ok(()) }
    }

    /// Waits for a new connection. Takes in what is asked meanwhile, and tells whoever waits too long that it is not done;
    /// the first `in_doubt` may be, and wait. An error is the writer's end.
    async fn come_back(
        &mut self,
        why: StoreError,
        held: &mut Vec<Job>,
        in_doubt: usize,
    ) -> Result<(), StoreError> {
        self.connection = None; // a session that still lives ends with it
        self.health.fell(&why);
        let mut pause = TRY_AGAIN.0;
        loop {
            match self.database.writer().await {
                Ok(connection) => {
                    self.connection = Some(connection);
                    return Ok(());
                }
                Err(NotOpened::Taken(holder)) => {
                    if !self.database.end_own(&holder).await && !holder.is_unknown() {
                        return Err(StoreError::Taken(holder.to_string()));
                    }
                }
                Err(NotOpened::Failed(error)) => {
                    self.health.fell(&StoreError::Away(faults::sentence(&error, &self.database.shown())));
                }
            }
            while held.len() < CHANGES_WAITING
                && let Ok(job) = self.jobs.try_recv()
            {
                held.push(job);
            }
            if held.iter().any(|job| matches!(job.change, Change::Close)) {
                return Err(StoreError::Closed);
            }
            self.let_go(held, in_doubt);
            sleep(jittered(pause)).await;
            pause = (pause * 2).min(TRY_AGAIN.1);
        }
    }

    /// Whoever has waited for too long and is in no doubt hears that it is not done.
    fn let_go(&self, held: &mut Vec<Job>, in_doubt: usize) {
        let why = self.health.trouble().unwrap_or(StoreError::Closed);
        let (over, waits): (Vec<Job>, Vec<Job>) = held
            .split_off(in_doubt)
            .into_iter()
            .partition(|job| job.asked.elapsed() > RIDE_OUT || job.reply.is_closed());
        held.extend(waits);
        over.into_iter().for_each(|job| job.answer(Err(why.clone())));
    }

    /// Brings SQLite's write-ahead log into the database and cuts it to nothing: what was erased may still stand in it.
    async fn empty_the_log(&mut self) {
        let Some(connection) = self.connection.as_mut().filter(|_| self.database.is_sqlite()) else { return };
        if let Err(error) = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(connection).await {
            tracing::warn!(%error, "the write-ahead log keeps what was erased until the next try");
        }
    }
}

/// Whether it is the database that fails, and not what was asked.
fn is_trouble(why: &StoreError) -> bool {
    matches!(why, StoreError::Database { .. } | StoreError::Away(_))
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..1.5))
}
