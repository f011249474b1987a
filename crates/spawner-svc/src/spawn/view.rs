//! What everybody may see of a run who may see it at all: no secret.

use glidepath_domain::names::{RunId, ServerKey, SiteName};
use glidepath_domain::placement::Verdict;
use glidepath_domain::policy::Granted;
use glidepath_domain::run::{End, EndReason, Life, Moment, State};
use serde::{Deserialize, Serialize};

/// One run, whole, as it stood at some moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunView {
    /// Whose server.
    pub key: ServerKey,
    /// Which life of it.
    pub run: RunId,
    /// Which submit of the run; `None` before the first.
    pub attempt: Option<u32>,
    /// Where it stands. The relay's URL belongs to it while this is `Ready`.
    pub state: State,
    /// Whether it lives, as far as anybody can tell.
    pub life: Life,
    /// The site of the current attempt.
    pub site: Option<SiteName>,
    /// What goes on, in the user's words; plain text.
    pub message: String,
    /// 0 to 100.
    pub progress: u8,
    /// Place in the queue, from 1, when known.
    pub queue_position: Option<u32>,
    /// Seconds until it is predicted to start, when known.
    pub predicted_wait_s: Option<u32>,
    /// How and why it ended, when it did.
    pub end: Option<End>,
    /// What placement said of the sites, best first; of the best twenty where there are more. The chosen one is `site`.
    pub verdicts: Vec<Verdict>,
    /// When it was asked for.
    pub requested_at: Moment,
    /// When the current state was reached.
    pub since: Moment,
    /// What the server used so far, when known.
    pub usage: Option<UsedSoFar>,
    /// Seconds that it may live.
    #[serde(default)]
    pub walltime_s: u64,
    /// When they are over; `None` unless the server runs.
    #[serde(default)]
    pub lives_until: Option<Moment>,
    /// What its user is granted of its site's time.
    #[serde(default)]
    pub granted: Granted,
    /// The ends that its user was warned of and that may still come, soonest first.
    #[serde(default)]
    pub near_ends: Vec<NearEnd>,
}

/// An end that is near, as its agent tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NearEnd {
    /// What will have ended it.
    pub reason: EndReason,
    /// When.
    pub ends_at: Moment,
    /// Which of the warnings this is, in seconds before the end.
    pub before_s: u64,
}

/// What a server used so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UsedSoFar {
    /// CPU time, in seconds.
    pub cpu_s: f64,
    /// Resident memory now, in bytes.
    pub memory_bytes: u64,
    /// The most resident memory seen, in bytes.
    pub memory_peak_bytes: u64,
}
