//! What every batch system promises. Its seam: below it one kind of job each, above it one life cycle for all.
//!
//! Each call may be repeated; none waits for a job to start or end. A backend keeps nothing that it could not find
//! again after `kill -9`: every object it makes carries the [`JobLabel`], and [`Backend::list`] reads it back.
//! The contract test in `glidepath-backends` holds every implementation to this page.

use std::path::PathBuf;

use async_trait::async_trait;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::names::{Attempt, ServerKey};
use crate::resources::Resources;
use crate::site::Snapshot;

/// What every external object carries, so that it can be found, told apart and removed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct JobLabel {
    /// Whose server.
    pub key: ServerKey,
    /// Which run of it, and which submit of that run.
    pub attempt: Attempt,
}

/// Everything a backend needs to submit one job. No secret but the dial file, which reaches the job as a file that
/// the job's account alone can read: never in an environment, an argument or an annotation.
#[derive(Debug, Clone)]
pub struct JobSpec {
    /// Carried by the job.
    pub label: JobLabel,
    /// What the job asks for.
    pub resources: Resources,
    /// The content of the agent's dial file (where home is, whom to trust, the ticket), as JSON.
    pub dial_file: SecretString,
    /// Seconds between a kind request to end and the unkind one.
    pub grace_s: u32,
}

/// The batch system's own name for a job, kept for people and logs; identity is the label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct JobId(pub String);

/// One job as a successful bulk reply showed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobSeen {
    /// Read back from the object, and verified to be of this instance.
    pub label: JobLabel,
    /// The batch system's own name for it.
    pub id: JobId,
    /// What it is doing.
    pub state: JobState,
}

/// What a job is doing, in the words that all batch systems share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobState {
    /// Waiting for a slot.
    Queued {
        /// Place in the queue, from 1; `None` when the system cannot say.
        position: Option<u32>,
        /// Seconds until it starts, if the system predicts; unknown is `None`, never 0.
        predicted_wait_s: Option<u32>,
    },
    /// It has a slot: the agent runs or is about to.
    Running {
        /// Where the server listens, for a site with reach `direct`.
        direct: Option<ServerAddress>,
    },
    /// Alive but not going on (held, suspended, spooling), with the system's words for it.
    Stuck(String),
    /// Over, and still shown by the system.
    Ended(JobEnd),
}

/// How a job ended, as the batch system tells. The agent's own report, when there is one, knows more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobEnd {
    /// Exit code of the agent.
    pub exit_code: Option<i32>,
    /// Signal that ended the agent.
    pub signal: Option<i32>,
    /// The system's own words (hold reason, out of memory, evicted); plain text.
    pub detail: Option<String>,
}

/// Where the home end connects for a site with reach `direct`. Made by the backend, never taken from an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerAddress {
    /// A unix socket on this machine; whoever listens there must be this account.
    Unix {
        /// Path of the socket.
        path: PathBuf,
        /// The account that must own the listening process; checked after connecting.
        uid: u32,
    },
    /// `host:port`.
    Tcp(String),
}

/// How a job is to be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelHow {
    /// SIGTERM or the system's likeness, the grace of its spec, then the unkind way.
    Kindly,
    /// At once.
    Now,
}

/// Why a backend could not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// The system said no, and will say no again: the request does not fit, the account may not.
    #[error("{0}")]
    Refused(String),
    /// The system did not answer, or not in words that were understood. What was asked may or may not have happened.
    #[error("{0}")]
    Unknown(String),
}

/// What every batch system offers. Each call may be repeated.
#[async_trait]
pub trait Backend: Send + Sync {
    /// Submits once per attempt; a second call with the same attempt returns the first job, also after a restart and
    /// also while the first call is still under way. After [`BackendError::Refused`] there is no job; after
    /// [`BackendError::Unknown`] there may be one, and [`Backend::list`] will tell.
    async fn submit(&self, spec: &JobSpec) -> Result<JobId, BackendError>;

    /// All jobs that carry this instance's label, in one bulk query. `Ok` is a whole and successful answer: a job
    /// that was submitted and is not in it is gone. Anything less is [`BackendError::Unknown`].
    async fn list(&self) -> Result<Vec<JobSeen>, BackendError>;

    /// Asks for the end of this attempt's job and everything it left behind. Succeeds when it is gone already, and
    /// also when the job was never there. Returns before the job is gone: [`Backend::list`] tells when it is.
    async fn cancel(&self, label: &JobLabel, how: CancelHow) -> Result<(), BackendError>;

    /// Forgets an ended job: removes what the system still keeps of it (its folder, its entry in the list).
    /// Called once its end is in the store. Succeeds when nothing is left.
    async fn forget(&self, label: &JobLabel) -> Result<(), BackendError>;

    /// What the site can take now.
    async fn snapshot(&self) -> Result<Snapshot, BackendError>;

    /// Removes the user's kept files at this site for good (JupyterHub's `delete_forever`). Succeeds when there are none.
    async fn delete_home(&self, key: &ServerKey) -> Result<(), BackendError>;
}
