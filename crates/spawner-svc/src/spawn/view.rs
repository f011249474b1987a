//! What everybody may see of a run who may see it at all: no secret.

use glidepath_domain::names::{RunId, ServerKey, SiteName};
use glidepath_domain::placement::Verdict;
use glidepath_domain::run::{End, Life, Moment, State};
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
    /// What placement said of each site, best first. The chosen one is `site`.
    pub verdicts: Vec<Verdict>,
    /// When it was asked for.
    pub requested_at: Moment,
    /// When the current state was reached.
    pub since: Moment,
    /// What the server used so far, when known.
    pub usage: Option<UsedSoFar>,
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
