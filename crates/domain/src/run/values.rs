//! The words that a run is told in: time, state, life, end.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A point in time, in milliseconds since 1970 in UTC. Given in by the caller.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(pub u64);

impl Moment {
    /// This much later.
    #[must_use]
    pub fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long ago `earlier` was; zero if it lies ahead.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Asked for.
    Requested,
    /// A site is chosen.
    Placed,
    /// Being handed to the site's batch system.
    Submitting,
    /// The batch system has it.
    Queued,
    /// It has a slot; its agent is expected to dial home.
    Dialling,
    /// The agent is home; the server starts.
    Starting,
    /// The server answers.
    Ready,
    /// It was told to end.
    Stopping,
    /// Over; nothing changes that.
    Ended,
}

/// Whether a run lives, as far as anybody can tell. Unknown never ends one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Life {
    /// It lives, or is on its way.
    Alive,
    /// It is over.
    Gone,
    /// Nobody can tell at present.
    Unknown,
}

/// Why a run ended, in stable words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// A ready server was told to end.
    Stopped,
    /// It was told to end before it was ready.
    Cancelled,
    /// The server's process exited.
    Exited,
    /// A signal that nobody here sent killed the server's process.
    Killed,
    /// No site could take it.
    NoSite,
    /// It waited too long in the queue.
    QueueDeadline,
    /// Its agent did not dial home in time.
    DialDeadline,
    /// The server did not answer in time.
    StartDeadline,
    /// The job is gone and its agent with it.
    AgentLost,
    /// It lived as long as it was granted.
    Walltime,
    /// Nothing in it was active for longer than its site bears.
    Idle,
    /// A kernel computed for longer than its site bears with nobody connected.
    Unattended,
    /// The site refused it, or its ticket was refused.
    Refused,
    /// Its agent could not reach home for too long and ended it.
    HomeAbsent,
}

impl EndReason {
    /// The stable word, as APIs and records write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Cancelled => "cancelled",
            Self::Exited => "exited",
            Self::Killed => "killed",
            Self::NoSite => "no_site",
            Self::QueueDeadline => "queue_deadline",
            Self::DialDeadline => "dial_deadline",
            Self::StartDeadline => "start_deadline",
            Self::AgentLost => "agent_lost",
            Self::Walltime => "walltime",
            Self::Idle => "idle",
            Self::Unattended => "unattended",
            Self::Refused => "refused",
            Self::HomeAbsent => "home_absent",
        }
    }
}

/// How a run ended. Text in it is plain, capped and free of control characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// A stable word.
    pub reason: EndReason,
    /// The same in a sentence for the user.
    pub message: String,
    /// Exit code of the server, when it exited.
    pub exit_code: Option<i32>,
    /// Signal that killed the server, when one did.
    pub signal: Option<i32>,
    /// The last lines that the server wrote, oldest first.
    pub last_lines: Vec<String>,
    /// When it ended.
    pub at: Moment,
}

/// How long each step may take. From the operator's config.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// From asking until the job has a slot.
    pub queued: Duration,
    /// From the slot until the agent is home.
    pub dialling: Duration,
    /// From the agent's arrival until the server answers.
    pub starting: Duration,
    /// How long a site may be silent before the next one is tried; never ends a server that was ready.
    pub doubt: Duration,
    /// Between a kind request to end and the unkind one.
    pub grace: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            queued: Duration::from_secs(24 * 3600),
            dialling: Duration::from_secs(120),
            starting: Duration::from_secs(180),
            doubt: Duration::from_secs(120),
            grace: Duration::from_secs(10),
        }
    }
}
