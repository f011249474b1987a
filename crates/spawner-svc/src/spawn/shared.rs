//! What all drivers share, and how a run comes to its driver.
//!
//! In: runs to be driven, agents that arrived. Out: one driver per run, taken up again when it breaks off; a turn per
//! server; the pruning of what is too old.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use glidepath_domain::names::{RunId, ServerKey, SiteName};
use glidepath_domain::run::Effect;
use tokio::sync::{Notify, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, mpsc, watch as latest};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::book::{Book, Door};
use super::diary::Happened;
use super::driver::{Driver, MAILBOX, Message};
use super::record::{self, Record};
use super::{RunView, Settings};
use crate::arrivals::routes::Routes;
use crate::arrivals::{Arrivals, Arrived};
use crate::clock;
use crate::notable::{About, Notes, Refusal, Retry};
use crate::sites::Sites;
use crate::store::{RunRow, Store, StoreError};

/// A start or stop waits at most so long for another of the same server.
const TURN_WITHIN: Duration = Duration::from_secs(30);
/// Between two removals of what is too old to be kept.
const PRUNE_EVERY: Duration = Duration::from_secs(600);
/// Events that are kept for readers who come back.
const EVENTS_KEPT: u32 = 20_000;
/// Before a run whose driver broke off is taken up again.
const TAKE_UP_AGAIN: Duration = Duration::from_secs(2);

/// What all drivers share.
pub(super) struct Shared {
    pub(super) store: Store,
    pub(super) sites: Sites,
    pub(super) arrivals: Arc<Arrivals>,
    pub(super) routes: Arc<Routes>,
    pub(super) settings: Settings,
    pub(super) notes: Notes,
    /// One lock, never held across a wait.
    pub(super) book: Mutex<Book>,
    /// Starts and stops of one server, one after the other. Only servers with one under way are in it.
    pub(super) turns: Mutex<HashMap<ServerKey, Arc<tokio::sync::Mutex<()>>>>,
    pub(super) submits: HashMap<SiteName, Arc<Semaphore>>,
    /// Told when a site should be looked at soon.
    pub(super) looks: HashMap<SiteName, Notify>,
    pub(super) drivers: TaskTracker,
    pub(super) stop: CancellationToken,
}

impl Shared {
    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn look_at(&self, site: &SiteName) {
        if let Some(look) = self.looks.get(site) {
            look.notify_one();
        }
    }

    /// Enters a run into the book and makes its driver, which does nothing yet.
    pub(super) fn open(self: &Arc<Self>, record: Record, view: RunView) -> Driver {
        let (mailbox, messages) = mpsc::channel(MAILBOX);
        let (views, watched) = latest::channel(Arc::new(view.clone()));
        let door = Door { run: record.run.id, mailbox };
        let site = record.site().cloned();
        self.book().open(door, view, record.spawn_id.clone(), watched, site);
        Driver::new(Arc::clone(self), record, messages, views)
    }

    pub(super) fn drive(self: &Arc<Self>, driver: Driver, effects: Vec<Effect>) {
        let shared = Arc::clone(self);
        let (stop, site) = (self.stop.clone(), driver.site().cloned());
        self.drivers
            .spawn(async move { stop.run_until_cancelled(shared.keep_driving(driver, effects)).await });
        if let Some(site) = site {
            self.look_at(&site);
        }
    }

    /// Drives a run until it is settled. A driver that broke off is a fault of ours and no end of the run: it is taken
    /// up again from the store, as after a crash, while all others go on.
    pub(super) async fn keep_driving(self: Arc<Self>, mut driver: Driver, mut effects: Vec<Effect>) {
        let run = driver.run_id();
        while AssertUnwindSafe(driver.run(effects)).catch_unwind().await.is_err() {
            self.notes.retries(Retry::DriverAgain, &About::new().run(run));
            (driver, effects) = loop {
                tokio::time::sleep(TAKE_UP_AGAIN).await;
                match self.store.unsettled_run(run).await {
                    Ok(Some(row)) => match self.take_up(&row) {
                        Ok(taken_up) => break taken_up,
                        Err(error) => self.unread(run, &error),
                    },
                    Ok(None) => return self.book().close(run),
                    Err(error) => self.unread(run, &error),
                }
            };
        }
    }

    fn unread(&self, run: RunId, error: &StoreError) {
        self.notes.retries(Retry::DriverUnread, &About::new().run(run).why(&error.to_string()));
    }

    /// A run as the store has it, with a driver, and what is to be done first.
    pub(super) fn take_up(self: &Arc<Self>, row: &RunRow) -> Result<(Driver, Vec<Effect>), StoreError> {
        let mut record = Record::read(row)?;
        let view = record::read_view(&row.view)?;
        let now = clock::now();
        record.happened(now, Happened::TakenUp);
        let effects = record.run.resume(now, &self.settings.deadlines);
        let mut driver = self.open(record, view.clone());
        driver.route(&view); // whoever asks the relay at its first moment must find it
        Ok((driver, effects))
    }

    /// Tells a run that its agent is home.
    pub(super) fn hand_over(&self, arrived: Arrived) {
        let attempt = arrived.attempt;
        let told = match self.book().door(attempt.run) {
            Some(door) => {
                let message = Message::Arrived { number: attempt.number, link: arrived.link };
                door.mailbox.try_send(message).map_err(|error| error.to_string())
            }
            None => Err("its run is over".to_owned()),
        };
        if let Err(why) = told {
            self.notes.refused(Refusal::KnockRunOver, &About::new().attempt(attempt).why(&why));
            self.arrivals.dismiss(attempt, "this attempt is over");
        }
    }

    /// Waits for this server's turn; `None` when another start or stop takes too long.
    pub(super) async fn turn_of(self: &Arc<Self>, key: &ServerKey) -> Option<Turn> {
        let lock = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(turns.entry(key.clone()).or_default())
        };
        let guard = tokio::time::timeout(TURN_WITHIN, lock.lock_owned()).await;
        let turn = Turn { shared: Arc::clone(self), key: key.clone(), guard: guard.ok() };
        if turn.guard.is_some() { Some(turn) } else { None }
    }

    /// Waits for a turn to submit at this site.
    pub(super) async fn turn(&self, site: &SiteName) -> Option<OwnedSemaphorePermit> {
        Arc::clone(self.submits.get(site)?).acquire_owned().await.ok()
    }

    pub(super) async fn prune(&self) {
        loop {
            let keep = i64::try_from(self.settings.keep_ended.as_millis()).unwrap_or(i64::MAX);
            let before = i64::try_from(clock::now().0).unwrap_or(i64::MAX).saturating_sub(keep);
            if let Err(error) = self.store.prune(before, EVENTS_KEPT).await
                && self.store.trouble().is_none()
            {
                self.notes.retries(Retry::StorePrune, &About::new().why(&error.to_string()));
            }
            tokio::time::sleep(PRUNE_EVERY).await;
        }
    }
}

/// One server's turn; the next comes when it is dropped.
pub(super) struct Turn {
    shared: Arc<Shared>,
    key: ServerKey,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.guard = None;
        let mut turns = self.shared.turns.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever waits holds a handle of its own.
        if turns.get(&self.key).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            turns.remove(&self.key);
        }
    }
}

/// A place that is given back unless the run was entered into the book.
pub(super) struct Reserved<'a> {
    pub(super) shared: &'a Shared,
    pub(super) run: RunId,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.shared.book().release(self.run);
    }
}
