//! What is written about a job, in `job.json` of its folder: enough to go on after the service was killed at any moment.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use glidepath_domain::backend::{JobEnd, JobLabel};
use glidepath_domain::names::{Attempt, ServerKey};
use glidepath_domain::resources::Resources;
use serde::{Deserialize, Serialize};

use super::accounts::Account;
use super::files;

/// Name of the file.
const FILE: &str = "job.json";

/// Everything about one job. The folder that holds it belongs to the service, so no job can change it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) key: ServerKey,
    pub(crate) attempt: Attempt,
    /// Place in the order of submits.
    pub(crate) seq: u64,
    /// When it was submitted, in milliseconds since 1970.
    pub(crate) submitted_ms: u64,
    pub(crate) account: Account,
    pub(crate) home: PathBuf,
    /// The 0700 folder of the server's socket; outside the job's folder when that path would be too long.
    pub(crate) socket_dir: PathBuf,
    /// The agent that starts the job, as it was at submit.
    pub(crate) agent: PathBuf,
    pub(crate) resources: Resources,
    pub(crate) grace_s: u32,
    pub(crate) phase: Phase,
    pub(crate) cancel: Option<Cancel>,
}

/// How far a job is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub(crate) enum Phase {
    /// Waits for its turn.
    Queued,
    /// Is about to be started. Whoever removes the file of this claim decides: the process goes on, the service revokes.
    Starting { claim: String },
    /// This process is its agent.
    Running { agent: ProcessId },
    /// Over.
    Ended { end: JobEnd },
}

/// One process among all that ever had its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    pub(crate) pid: i32,
    /// When it began, in ticks since the machine's start.
    pub(crate) started: u64,
    /// Which start of the machine.
    pub(crate) boot: String,
}

/// That somebody wants the end of the job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cancel {
    /// When, in seconds since the machine's start: no clock change makes the grace shorter.
    pub(crate) since_uptime_s: u64,
    /// Without the grace.
    pub(crate) now: bool,
}

impl Record {
    pub(crate) fn label(&self) -> JobLabel {
        JobLabel { key: self.key.clone(), attempt: self.attempt }
    }

    pub(crate) fn is_queued(&self) -> bool {
        self.phase == Phase::Queued && self.cancel.is_none()
    }

    /// True from the moment of starting until the end is written.
    pub(crate) fn holds_slot(&self) -> bool {
        matches!(self.phase, Phase::Starting { .. } | Phase::Running { .. })
    }

    /// The socket's folder when it has to be removed beside the job's, as [`super::submit`] made it.
    pub(crate) fn outer_socket_dir(&self) -> Option<PathBuf> {
        let inner = Path::new(&self.attempt.to_string()).join("own").join("s");
        (!self.socket_dir.ends_with(inner)).then(|| self.socket_dir.clone())
    }

    pub(crate) fn read(folder: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(folder.join(FILE))?)?)
    }

    /// Writes it whole or not at all, to the disk.
    pub(crate) fn write(&self, folder: &Path) -> io::Result<()> {
        files::replace(&folder.join(FILE), &serde_json::to_vec_pretty(self)?, 0o600)
    }
}
