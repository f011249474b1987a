//! The life cycle of runs: drives `domain::run`, one task per run, and keeps the store ahead of every act.
//!
//! In: starts and stops from `http`, arrivals, what backends list. Out: submits, cancels, routes, and a [`RunView`]
//! of every server, whole at each change.

mod view;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_core::Stream;
use glidepath_api_types::agent::Trust;
use glidepath_domain::names::{HubName, RunId, ServerKey};
use glidepath_domain::placement::{Policy, Verdict};
use glidepath_domain::request::SpawnRequest;
use glidepath_domain::run::Deadlines;
use secrecy::SecretString;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::arrivals::{Arrivals, Arrived};
use crate::sites::Sites;
use crate::store::{Store, StoreError};

pub use view::{RunView, UsedSoFar};

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
    #[error("no site can take this request: {sentence}")]
    NoSite {
        /// The best site's reason, for the user.
        sentence: String,
        /// What placement says of each site.
        verdicts: Vec<Verdict>,
    },
    /// The last run of this server is still ending; ask again later.
    #[error("the previous server is still stopping; try again in a moment")]
    StillStopping,
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

/// Events of one Hub: a growing id and the whole server as it stood then.
pub type Events = std::pin::Pin<Box<dyn Stream<Item = (u64, RunView)> + Send>>;

/// How the life cycle behaves; from config.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long each step may take.
    pub deadlines: Deadlines,
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
    /// Signs tickets, knows links and routes.
    pub arrivals: Arc<Arrivals>,
    /// New links, as `arrivals` tells them.
    pub arrived: mpsc::Receiver<Arrived>,
    /// How to behave.
    pub settings: Settings,
}

/// The life cycle's door, for `http`; cheap to clone.
#[derive(Clone)]
pub struct Spawner {
    _store: Store,
}

/// The life cycle's work; whoever holds it must run it.
pub struct SpawnerTask {
    _parts: Parts,
}

impl Spawner {
    /// Reads what lives from the store, so that every view can be given at once. Nothing is done yet.
    #[expect(clippy::unused_async, reason = "signature first")]
    pub async fn load(parts: Parts) -> Result<(Self, SpawnerTask), StoreError> {
        Ok((Self { _store: parts.store.clone() }, SpawnerTask { _parts: parts }))
    }

    /// Starts this server, or finds it alive. May be repeated with the same spawn id.
    #[expect(clippy::unused_async, reason = "signature first")]
    pub async fn start(&self, order: SpawnOrder) -> Result<Started, StartError> {
        let _ = order;
        Err(StartError::Closing)
    }

    /// The live run of this server, or the last one.
    #[must_use]
    pub fn view(&self, key: &ServerKey) -> Option<RunView> {
        let _ = key;
        None
    }

    /// Every server of this Hub that lives or whose last end is kept.
    #[must_use]
    pub fn list(&self, hub: &HubName) -> Vec<RunView> {
        let _ = hub;
        Vec::new()
    }

    /// Tells this server to end; `run` limits it to that run. `None` when there is nothing to end.
    #[expect(clippy::unused_async, reason = "signature first")]
    pub async fn stop(
        &self,
        key: &ServerKey,
        run: Option<RunId>,
        now: bool,
    ) -> Result<Option<RunView>, StopError> {
        let _ = (key, run, now);
        Ok(None)
    }

    /// Waits until this server has no live run, at most so long; then as [`Spawner::view`].
    #[expect(clippy::unused_async, reason = "signature first")]
    pub async fn wait_ended(&self, key: &ServerKey, at_most: Duration) -> Option<RunView> {
        let _ = (key, at_most);
        None
    }

    /// This Hub's events after the given id, then those to come. Without an id, or with one that is no longer kept:
    /// every server as it stands first. A slow reader is caught up from the store.
    #[must_use]
    pub fn events(&self, hub: &HubName, after: Option<u64>) -> Events {
        let _ = (hub, after);
        Box::pin(futures_util::stream::pending())
    }

    /// What placement says of this request now, best first. Nothing is reserved.
    #[must_use]
    pub fn verdicts(&self, request: &SpawnRequest) -> Vec<Verdict> {
        let _ = request;
        Vec::new()
    }

    /// Removes the user's kept files at every site (`delete_forever`), once no server of theirs lives there.
    #[expect(clippy::unused_async, reason = "signature first")]
    pub async fn forget_home(&self, key: &ServerKey) -> Result<(), ForgetError> {
        let _ = key;
        Ok(())
    }

    /// Runs by state, for metrics.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<(String, glidepath_domain::run::State), u64> {
        BTreeMap::new()
    }
}

impl SpawnerTask {
    /// Drives all runs until told to stop; then lets go of them without ending any.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        stop.cancelled().await;
        Ok(())
    }
}
