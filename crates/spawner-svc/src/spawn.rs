//! The life cycle of runs: drives `domain::run`, one task per run, and keeps the store ahead of every act.
//!
//! In: starts and stops from `http`, arrivals, what backends list. Out: submits, cancels, routes, and a [`RunView`]
//! of every server, whole at each change.

mod acts;
mod book;
mod diary;
mod driver;
mod events;
mod launch;
mod places;
mod record;
mod session;
mod shared;
mod story;
#[cfg(test)]
mod tests;
mod used;
mod view;
mod watch;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_core::Stream;
use glidepath_api_types::agent::{Limits, Trust};
use glidepath_domain::names::{HubName, RunId, ServerKey};
use glidepath_domain::placement::{Policy, Verdict};
use glidepath_domain::request::SpawnRequest;
use glidepath_domain::run::{Deadlines, Effect, Event, Run, State};
use secrecy::SecretString;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch as latest};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::arrivals::routes::{RouteState, Routes};
use crate::arrivals::{Arrivals, Arrived};
use crate::clock;
use crate::notable::{About, Notes, Refusal, Repair};
use crate::sites::{SiteSetup, Sites};
use crate::store::{Store, StoreError};

use driver::{Driver, Message};
use launch::SealedOrder;
use record::Record;
use shared::{Reserved, Shared, Turn};

pub use diary::{AgentSeen, Diary, Entry, Happened};
pub use story::Story;
pub use view::{NearEnd, RunView, UsedSoFar};

/// A checked order to start a server. Holds secrets.
#[derive(Clone)]
pub struct SpawnOrder {
    /// Whose server, what it needs, where it may run.
    pub request: SpawnRequest,
    /// Made afresh by the Hub's side for every spawn.
    pub spawn_id: String,
    /// Command of the single-user server.
    pub argv: Vec<String>,
    /// Its environment, tokens included.
    pub env: BTreeMap<String, SecretString>,
    /// `JUPYTERHUB_SERVICE_PREFIX`, checked: starts and ends with a slash.
    pub prefix: String,
    /// Folder to start in; the home when absent.
    pub working_dir: Option<String>,
    /// The fields of `auth_state` that the operator named; sealed with the order, never sent to a site.
    pub auth_state: BTreeMap<String, SecretString>,
}

impl fmt::Debug for SpawnOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpawnOrder")
            .field("request", &self.request)
            .field("spawn_id", &self.spawn_id)
            .field("argv", &self.argv)
            .field("env", &self.env.keys().collect::<Vec<_>>())
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// Answer to a start.
#[derive(Debug, Clone)]
pub struct Started {
    /// The server as it stands.
    pub view: RunView,
    /// The Hub token of a live run that another spawn created.
    pub adopted: Option<SecretString>,
}

/// Why a server was not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No site can take the request now; the verdicts say why, site by site.
    #[error("no site can take this request")]
    NoSite {
        /// What placement says of each site.
        verdicts: Vec<Verdict>,
    },
    /// The last run of this server is still ending; ask again later.
    #[error("the previous server is still stopping; try again in a moment")]
    StillStopping,
    /// The store has not taken the new run yet; ask again with the same spawn id.
    #[error("the service is still writing down the request; try again in a moment")]
    StillStarting,
    /// The store could not be read or written; nothing was started.
    #[error("the service cannot write down the request now: {0}")]
    Store(#[from] StoreError),
    /// The service ends.
    #[error("the service is stopping")]
    Closing,
}

/// Why a stop was not taken.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// A start of this server is in hand and nobody can tell yet what comes of it; ask again.
    #[error("a start of this server is still being written down; try again in a moment")]
    StillStarting,
    /// The service ends.
    #[error("the service is stopping")]
    Closing,
}

/// Why a user's kept files were not removed.
#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    /// A server of this user lives.
    #[error("the server is still alive")]
    StillAlive,
    /// Some sites did not do it.
    #[error("the files could not be removed at {0}")]
    Sites(String),
}

/// Events of one Hub: the whole server as it stood then, and a growing id after which a reader may continue. What is
/// told first has none before its last: who was cut off in the middle must hear it again.
pub type Events = std::pin::Pin<Box<dyn Stream<Item = (Option<u64>, RunView)> + Send>>;

/// How the life cycle behaves; from config.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long each step may take.
    pub deadlines: Deadlines,
    /// Seconds before a server's end at which its user is told.
    pub warn_before_s: Vec<u64>,
    /// How sites are weighed.
    pub policy: Policy,
    /// `wss://host:port/link` for agents.
    pub home_url: String,
    /// Whom agents trust as home.
    pub trust: Trust,
    /// Between two bulk queries of a backend while something starts or stops there.
    pub list_fast: Duration,
    /// The same while everything is calm; jittered.
    pub list_slow: Duration,
    /// How long a start waits for the end of the run before.
    pub wait_for_end: Duration,
    /// How long ended runs are kept; the last end of each server is kept for good.
    pub keep_ended: Duration,
}

impl Settings {
    /// The usual pace, for this home.
    #[must_use]
    pub fn new(home_url: String, trust: Trust) -> Self {
        Self {
            deadlines: Deadlines::default(),
            warn_before_s: Limits::default().warn_before_s,
            policy: Policy::default(),
            home_url,
            trust,
            list_fast: Duration::from_millis(500),
            list_slow: Duration::from_secs(5),
            wait_for_end: Duration::from_secs(20),
            keep_ended: Duration::from_secs(30 * 24 * 3600),
        }
    }
}

/// Everything the life cycle works with.
pub struct Parts {
    /// Runs, attempts, events.
    pub store: Store,
    /// Sites and their backends.
    pub sites: Sites,
    /// Signs tickets, knows links.
    pub arrivals: Arc<Arrivals>,
    /// Where the relay looks servers up.
    pub routes: Arc<Routes>,
    /// New links, as `arrivals` tells them.
    pub arrived: mpsc::Receiver<Arrived>,
    /// How to behave.
    pub settings: Settings,
    /// Where what is notable is noted.
    pub notes: Notes,
}

/// Submits at one site at a time.
const SUBMITS_AT_ONCE: usize = 8;
/// A start is answered when its run is on disk, or after this time.
const CREATED_WITHIN: Duration = Duration::from_secs(30);
/// A stop is answered when it is written down, or after this time.
const STOP_TAKEN_WITHIN: Duration = Duration::from_secs(5);
/// Removing one user's files at one site.
const FORGET_WITHIN: Duration = Duration::from_secs(60);
/// Drivers have this long to let go when the service stops.
const LET_GO_WITHIN: Duration = Duration::from_secs(2);
/// Verdicts that are kept with a run, and sites that it tries at most: what no user reads is not carried in every event.
const VERDICTS_KEPT: usize = 20;
/// What the user reads when the Hub asked for the end.
const STOPPED: &str = "the server was stopped on request";

/// The life cycle's door, for `http`; cheap to clone.
#[derive(Clone)]
pub struct Spawner {
    shared: Arc<Shared>,
}

/// The life cycle's work; whoever holds it must run it.
pub struct SpawnerTask {
    shared: Arc<Shared>,
    arrived: mpsc::Receiver<Arrived>,
    resumed: Vec<(Driver, Vec<Effect>)>,
}

impl Spawner {
    /// Reads what lives from the store, so that every view can be given at once. Nothing is done yet.
    pub async fn load(parts: Parts) -> Result<(Self, SpawnerTask), StoreError> {
        let turn = |setup: &SiteSetup| (setup.site.name.clone(), Arc::new(Semaphore::new(SUBMITS_AT_ONCE)));
        let looks =
            parts.sites.setups().iter().map(|setup| (setup.site.name.clone(), Notify::new())).collect();
        let submits = parts.sites.setups().iter().map(turn).collect();
        let shared = Arc::new(Shared {
            store: parts.store,
            sites: parts.sites,
            arrivals: parts.arrivals,
            routes: parts.routes,
            settings: parts.settings,
            notes: parts.notes,
            book: Mutex::default(),
            turns: Mutex::default(),
            submits,
            looks,
            drivers: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        for row in shared.store.last_runs().await?.iter().filter(|row| row.settled) {
            let (Ok(view), Ok(record)) = (record::read_view(&row.view), Record::read(row)) else {
                shared
                    .notes
                    .refused(Refusal::RecordUnreadable, &About::new().run(row.run).at(&row.server_key));
                continue;
            };
            if let Some(end) = &view.end {
                let state = RouteState::Ended { message: end.message.clone() };
                let _ = shared.routes.put(&view.key.hub, &record.prefix, view.run, state); // it was checked once
            }
            let view = Arc::new(view);
            let (_, views) = latest::channel(Arc::clone(&view));
            shared.book().show(view, row.spawn_id.clone(), views);
        }
        let mut resumed = Vec::new();
        for row in shared.store.unsettled().await? {
            match shared.take_up(&row) {
                Ok(taken_up) => {
                    let about = About::new().run(row.run).at(&row.server_key).why(&row.state);
                    shared.notes.repaired(Repair::RunTakenUp, &about);
                    resumed.push(taken_up);
                }
                // Its job is left alone: the store says that it is wanted.
                Err(error) => {
                    let why = error.to_string();
                    let about = About::new().run(row.run).at(&row.server_key).why(&why);
                    shared.notes.refused(Refusal::RecordUnreadable, &about);
                }
            }
        }
        Ok((Self { shared: Arc::clone(&shared) }, SpawnerTask { shared, arrived: parts.arrived, resumed }))
    }

    /// Starts this server, or finds it alive. May be repeated with the same spawn id.
    pub async fn start(&self, order: SpawnOrder) -> Result<Started, StartError> {
        let key = order.request.key.clone();
        let patience = tokio::time::Instant::now() + self.shared.settings.wait_for_end;
        loop {
            let Some(turn) = self.shared.turn_of(&key).await else {
                let stops = self.view(&key).is_some_and(|view| view.state == State::Stopping);
                return Err(if stops { StartError::StillStopping } else { StartError::StillStarting });
            };
            if self.shared.stop.is_cancelled() {
                return Err(StartError::Closing);
            }
            let found = self
                .shared
                .book()
                .current(&key)
                .map(|current| (current.view.clone(), current.spawn_id.clone(), current.views.clone()));
            match found {
                Some((view, spawn_id, _)) if spawn_id == order.spawn_id => {
                    return Ok(Started { view: RunView::clone(&view), adopted: None });
                }
                Some((view, _, mut views)) if view.state != State::Ended => {
                    // Without an order the run is at its end, which is written down before it is told.
                    let order = match view.state {
                        State::Stopping => None,
                        _ => acts::kept_order(&self.shared.store, view.run).await?,
                    };
                    if let Some(order) = order {
                        return Ok(Started { view: RunView::clone(&view), adopted: order.hub_token() });
                    }
                    drop(turn);
                    let ended = views.wait_for(|view| view.state == State::Ended);
                    if tokio::time::timeout_at(patience, ended).await.is_err() {
                        return Err(StartError::StillStopping);
                    }
                }
                Some((view, _, _)) => return self.start_after(order, Some(view.run), turn).await,
                None => return self.start_after(order, None, turn).await,
            }
        }
    }

    /// Makes a new run, in a task of its own: a caller that goes away half way leaves either nothing or a run that
    /// is driven. One that is kept waiting by the store finds the run when it comes again.
    async fn start_after(
        &self,
        order: SpawnOrder,
        last: Option<RunId>,
        turn: Turn,
    ) -> Result<Started, StartError> {
        let spawner = self.clone();
        let task = self.shared.drivers.spawn(async move {
            let _turn = turn;
            spawner.start_new(order, last).await
        });
        match tokio::time::timeout(CREATED_WITHIN, task).await {
            Ok(Ok(started)) => started,
            Ok(Err(broken)) if broken.is_panic() => std::panic::resume_unwind(broken.into_panic()),
            Ok(Err(_)) => Err(StartError::Closing),
            Err(_) => Err(StartError::StillStarting),
        }
    }

    /// Places and writes down a new run. Called in this server's turn.
    async fn start_new(&self, order: SpawnOrder, last: Option<RunId>) -> Result<Started, StartError> {
        let shared = &self.shared;
        let now = clock::now();
        let id = RunId::after(last, now.0, rand::random());
        let key = order.request.key.clone();
        let mut verdicts = {
            let mut book = shared.book();
            let verdicts = book.verdicts(&order.request, &shared.sites, &shared.settings.policy);
            match verdicts.first() {
                Some(best) if best.fits => book.reserve(id, &key, &best.site),
                _ => return Err(StartError::NoSite { verdicts }),
            }
            verdicts
        };
        let reserved = Reserved { shared, run: id };
        let sites_left_out = verdicts.len().saturating_sub(VERDICTS_KEPT);
        verdicts.truncate(VERDICTS_KEPT);
        verdicts.shrink_to_fit(); // what was cut off would be held for as long as the run lives
        let walltime_s = u64::from(order.request.resources.walltime_min) * 60;
        let mut run = Run::requested(id, record::plan(&verdicts), walltime_s, now);
        let effects = run.step(Event::Tick, now, &shared.settings.deadlines);
        let sealed =
            SealedOrder::new(&order).text().map_err(|error| StoreError::Sealed(error.to_string()))?;
        let mut diary = Diary::default();
        for state in [State::Requested, run.state] {
            diary.add(now, None, Happened::Reached(state));
        }
        let record = Record {
            run,
            diary,
            agent: None,
            request: order.request,
            spawn_id: order.spawn_id,
            prefix: order.prefix,
            verdicts,
            sites_left_out,
            usage: None,
            warnings: Vec::new(),
            jobs: Vec::new(),
        };
        let view = record.view(now, &shared.settings.deadlines);
        shared.store.create(record.row(&view)?, &sealed).await?;
        let driver = shared.open(record, view.clone());
        drop(reserved);
        shared.drive(driver, effects);
        Ok(Started { view, adopted: None })
    }

    /// The live run of this server, or the last one.
    #[must_use]
    pub fn view(&self, key: &ServerKey) -> Option<RunView> {
        self.shared.book().current(key).map(|current| RunView::clone(&current.view))
    }

    /// Every server of this Hub that lives or whose last end is kept.
    #[must_use]
    pub fn list(&self, hub: &HubName) -> Vec<RunView> {
        self.shared.book().list(hub)
    }

    /// Tells this server to end; `run` limits it to that run. `None` when there is nothing to end.
    pub async fn stop(
        &self,
        key: &ServerKey,
        run: Option<RunId>,
        now: bool,
    ) -> Result<Option<RunView>, StopError> {
        // A start that is being written down comes first: what it makes must be found here.
        let turn = self.shared.turn_of(key).await;
        if self.shared.stop.is_cancelled() {
            return Err(StopError::Closing);
        }
        let live = self.view(key).filter(|view| view.state != State::Ended);
        let Some(view) = live.filter(|view| run.is_none_or(|run| run == view.run)) else {
            return if turn.is_some() { Ok(None) } else { Err(StopError::StillStarting) };
        };
        let Some(door) = self.shared.book().door(view.run) else { return Ok(None) };
        let (taken, answer) = oneshot::channel();
        let message = Message::Stop { why: STOPPED.to_owned(), now, taken };
        let told = async {
            if door.mailbox.send(message).await.is_ok() {
                let _ = answer.await; // its driver may have come to the end
            }
        };
        let _ = tokio::time::timeout(STOP_TAKEN_WITHIN, told).await; // it is in its mailbox, or the store is slow
        Ok(self.view(key).filter(|after| after.run == view.run).or(Some(view)))
    }

    /// Waits until this server has no live run, at most so long; then as [`Spawner::view`].
    pub async fn wait_ended(&self, key: &ServerKey, at_most: Duration) -> Option<RunView> {
        let mut views = self.shared.book().current(key).map(|current| current.views.clone())?;
        let ended = views.wait_for(|view| view.state == State::Ended);
        let _ = tokio::time::timeout(at_most, ended).await; // then as it stands
        self.view(key)
    }

    /// This Hub's events after the given id, then those to come. Without an id, or with one that is no longer kept:
    /// every server as it stands first. A slow reader is caught up from the store.
    #[must_use]
    pub fn events(&self, hub: &HubName, after: Option<u64>) -> Events {
        events::of_hub(Arc::clone(&self.shared), hub.clone(), after)
    }

    /// What placement says of this request now, best first. Nothing is reserved.
    #[must_use]
    pub fn verdicts(&self, request: &SpawnRequest) -> Vec<Verdict> {
        self.shared.book().verdicts(request, &self.shared.sites, &self.shared.settings.policy)
    }

    /// Removes the user's kept files at every site (`delete_forever`), once no server of theirs lives there.
    pub async fn forget_home(&self, key: &ServerKey) -> Result<(), ForgetError> {
        if self.shared.book().lives_of_user(key) {
            return Err(ForgetError::StillAlive);
        }
        let mut failed = Vec::new();
        for setup in self.shared.sites.setups() {
            let done = tokio::time::timeout(FORGET_WITHIN, setup.backend.delete_home(key)).await;
            match done {
                Ok(Ok(())) => {}
                Ok(Err(error)) => failed.push(format!("{}: {error}", setup.site.title)),
                Err(_) => failed.push(format!("{}: no answer in time", setup.site.title)),
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(ForgetError::Sites(failed.join("; "))) }
    }

    /// Live runs by site and state, for metrics.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<(String, State), u64> {
        self.shared.book().counts()
    }
}

impl SpawnerTask {
    /// Drives all runs until told to stop; then lets go of them without ending any. The sites' own loop
    /// ([`Sites::run`]) is the caller's to run.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let Self { shared, mut arrived, resumed } = self;
        let _let_go = shared.stop.clone().drop_guard(); // also when this future is dropped
        for (driver, effects) in resumed {
            shared.drive(driver, effects);
        }
        let mut loops = tokio::task::JoinSet::new();
        for setup in shared.sites.setups() {
            loops.spawn(watch::site(Arc::clone(&shared), setup.clone()));
        }
        let pruned = Arc::clone(&shared);
        loops.spawn(async move { pruned.prune().await });
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = loops.join_next() => {
                    ended?;
                    anyhow::bail!("a loop of the life cycle ended by itself");
                }
                Some(arrived) = arrived.recv() => shared.hand_over(arrived),
            }
        }
        shared.stop.cancel();
        shared.drivers.close();
        let _ = tokio::time::timeout(LET_GO_WITHIN, shared.drivers.wait()).await; // the rest ends with the runtime
        Ok(())
    }
}
