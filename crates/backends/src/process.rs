//! Jobs that are processes of this machine: the embedded default.
//!
//! ```text
//! submit ──► submit   makes the job's folder apart, then moves it to its place: from then on there is a job
//!            queue    whose turn is it (pure)
//!            render   program, arguments, environment (pure) ──► start ──► children
//! list ────► keeper   reads folders, `/proc`, cgroups        ──► readback (pure)
//! cancel ──► keeper   SIGTERM, the grace, SIGKILL of everything that carries the job's label
//! forget ──► keeper   removes folder, socket and cgroup
//! ```
//!
//! Jobs run in sessions of their own and outlive the service, SIGKILL included; a service that comes back finds them
//! by their folder, number and time of start. What is *not* here: tickets, links, and when a job should end.

pub mod config;

mod accounts;
mod cgroup;
mod children;
mod failpoint;
mod files;
mod homes;
mod keeper;
mod procs;
mod queue;
mod readback;
mod record;
mod render;
mod root;
mod start;
mod submit;
mod tree;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use glidepath_domain::backend::{Backend, BackendError, CancelHow, JobId, JobLabel, JobSeen, JobSpec};
use glidepath_domain::names::ServerKey;
use glidepath_domain::site::Snapshot;
use tokio::sync::Notify;
use tokio::task::{JoinSet, spawn_blocking};

use self::accounts::AccountBook;
use self::config::ProcessConfig;
use self::failpoint::Failpoint;
pub use self::failpoint::Moment;
use self::keeper::Keeper;
use self::root::WorkRoot;

/// Longest wait for one call; a disk that hangs for longer makes the answer unknown.
const CALL_MAX: Duration = Duration::from_secs(30);
/// Between two looks when nothing is on its way.
const CALM: Duration = Duration::from_secs(1);
/// Between two looks while something starts or ends.
const BUSY: Duration = Duration::from_millis(100);

/// Why a backend cannot work, every reason in one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct Unusable(pub Vec<String>);

/// The backend. Dropping it ends its own tasks and no job.
pub struct ProcessBackend {
    keeper: Arc<Keeper>,
    warnings: Vec<String>,
    /// What an earlier service was making or removing, until the pump starts.
    leftovers: Mutex<Vec<PathBuf>>,
    pump: Mutex<Option<JoinSet<()>>>,
}

impl ProcessBackend {
    /// Opens the work root, copies the agent there and finds out about cgroups. Inside a tokio runtime, jobs of an
    /// earlier service go on from here; otherwise from the first call.
    ///
    /// # Errors
    /// Everything that is wrong with the place, one sentence each.
    pub fn new(config: ProcessConfig) -> Result<Self, Unusable> {
        let root = WorkRoot::open(&config.work_root, &config.agent, config.switches_accounts())
            .map_err(|why| Unusable(vec![why]))?;
        let mut wrong = Vec::new();
        let leftovers = root.leftovers().unwrap_or_else(|why| {
            wrong.push(format!("the work root {} cannot be read: {why}", root.path().display()));
            Vec::new()
        });
        if let Some(namespace) = config.network_namespace.as_ref().filter(|namespace| !namespace.exists()) {
            wrong.push(format!("there is no network namespace {}", namespace.display()));
        }
        let boot = procs::boot_id().unwrap_or_else(|why| {
            wrong.push(format!("/proc does not tell which start of the machine this is: {why}"));
            String::new()
        });
        let mut warnings = config.warnings();
        let cgroups = match cgroup::open(config.cgroup, config.cgroup_parent.as_deref(), root.id()) {
            Ok(Ok(cgroups)) => {
                let missing = cgroups.missing();
                if !missing.is_empty() {
                    warnings.push(format!(
                        "cgroups have no controller for {} here, so that is not held for a job as a whole",
                        missing.join(" and ")
                    ));
                }
                Some(cgroups)
            }
            Ok(Err(why)) => {
                warnings.push(format!(
                    "jobs have no cgroup here ({why}): cores are advice, and memory is limited per process only"
                ));
                None
            }
            Err(why) => {
                wrong.push(why);
                None
            }
        };
        if !wrong.is_empty() {
            return Err(Unusable(wrong));
        }
        for warning in &warnings {
            tracing::warn!(work_root = %root.path().display(), "{warning}");
        }
        let keeper = Arc::new(Keeper {
            book: AccountBook::new(config.accounts.clone(), config.account_book.clone()),
            config,
            root,
            cgroups,
            boot,
            children: Default::default(),
            wake: Arc::new(Notify::new()),
            turn: Default::default(),
            failpoint: Failpoint::default(),
        });
        let backend = Self { keeper, warnings, leftovers: Mutex::new(leftovers), pump: Mutex::new(None) };
        if tokio::runtime::Handle::try_current().is_ok() {
            backend.wake_pump();
        }
        Ok(backend)
    }

    /// What an operator should know although it works: one sentence each.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// From the next time that it comes to this moment, the backend does nothing more, as if its service had been
    /// killed there. For tests of what a restarted service makes of it.
    #[cfg(feature = "contract")]
    pub fn die_at(&self, moment: Moment) {
        self.keeper.failpoint.set(moment);
    }

    /// Starts the task that gives jobs their turn and the one that clears up, once.
    fn wake_pump(&self) {
        let mut pump = self.pump.lock().unwrap_or_else(PoisonError::into_inner);
        pump.get_or_insert_with(|| {
            let mut tasks = JoinSet::new();
            tasks.spawn(run_pump(Arc::downgrade(&self.keeper), self.keeper.wake.clone()));
            let leftovers =
                self.leftovers.lock().map(|mut all| std::mem::take(&mut *all)).unwrap_or_default();
            tasks.spawn(clear_up(leftovers));
            tasks
        });
    }

    /// Runs one call on a thread that may block, for at most [`CALL_MAX`].
    async fn call<T: Send + 'static>(
        &self,
        what: &'static str,
        act: impl FnOnce(&Keeper) -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        self.wake_pump();
        let keeper = self.keeper.clone();
        match tokio::time::timeout(CALL_MAX, spawn_blocking(move || act(&keeper))).await {
            Ok(Ok(done)) => done,
            Ok(Err(_)) => Err(BackendError::Unknown(format!("{what} broke off"))),
            Err(_) => Err(BackendError::Unknown(format!("{what} took longer than {} s", CALL_MAX.as_secs()))),
        }
    }
}

/// Removes leftovers one by one: they may be millions of files, and no job waits for that.
async fn clear_up(leftovers: Vec<PathBuf>) {
    for leftover in leftovers {
        let _ = spawn_blocking(move || root::clear(&leftover)).await;
    }
}

/// Gives jobs their turn, and ends what has to end, until the backend is dropped.
async fn run_pump(keeper: Weak<Keeper>, wake: Arc<Notify>) {
    let mut pause = Duration::ZERO;
    loop {
        let _ = tokio::time::timeout(pause, wake.notified()).await;
        let Some(keeper) = keeper.upgrade() else { return };
        let tended = spawn_blocking(move || keeper.tend()).await;
        pause = match tended {
            Ok(Ok(tended)) if tended.busy => BUSY,
            Ok(Ok(_)) => CALM,
            Ok(Err(why)) => {
                tracing::debug!("the jobs cannot be tended: {why}");
                CALM
            }
            Err(_) => CALM,
        };
    }
}

/// Tells a call on another thread that nobody waits for its answer.
struct GivenUp(Arc<AtomicBool>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[async_trait]
impl Backend for ProcessBackend {
    /// Dropped half way, it makes no job any more, unless it has made it already.
    async fn submit(&self, spec: &JobSpec) -> Result<JobId, BackendError> {
        let given_up = GivenUp(Arc::new(AtomicBool::new(false)));
        let (spec, flag) = (spec.clone(), given_up.0.clone());
        self.call("submitting the job", move |keeper| keeper.submit(&spec, &flag)).await
    }

    async fn list(&self) -> Result<Vec<JobSeen>, BackendError> {
        self.call("listing the jobs", Keeper::list).await
    }

    async fn cancel(&self, label: &JobLabel, how: CancelHow) -> Result<(), BackendError> {
        let label = label.clone();
        self.call("cancelling the job", move |keeper| keeper.cancel(&label, how)).await
    }

    async fn forget(&self, label: &JobLabel) -> Result<(), BackendError> {
        let label = label.clone();
        self.call("forgetting the job", move |keeper| keeper.forget(&label)).await
    }

    async fn snapshot(&self) -> Result<Snapshot, BackendError> {
        self.call("looking at the site", Keeper::snapshot).await
    }

    async fn delete_home(&self, key: &ServerKey) -> Result<(), BackendError> {
        let key = key.clone();
        self.call("removing the home", move |keeper| keeper.delete_home(&key)).await
    }
}
