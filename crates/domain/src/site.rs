//! A site as the operator describes it, and a snapshot of what it can take now.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::names::SiteName;
use crate::policy::{Granted, Policy, granted};
use crate::resources::Arch;

/// A place that can take servers, as the operator describes it. Never changes while the service runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// The one name that config, forms and records use.
    pub name: SiteName,
    /// What a user reads on the form; the name when the operator gave none.
    pub title: String,
    /// Free labels: `institution`, `country`, RSEs near.
    pub labels: BTreeMap<String, String>,
    /// How the home end reaches a server there.
    pub reach: Reach,
    /// What every request at this site must stay within.
    pub limits: Limits,
    /// The processor architectures found there.
    pub archs: Vec<Arch>,
    /// The GPU kinds found there; empty where there are none.
    pub gpus: Vec<GpuKind>,
    /// Who may use it.
    pub access: Access,
    /// Whether files in the user's home are kept between servers; said on the form.
    pub home: Home,
    /// The operator's preference among sites that are equal otherwise: higher is better.
    pub preference: i32,
}

/// How the home end reaches a server at a site. In both there is an agent with a control link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// Through the link that the agent dials.
    Tunnel,
    /// The home end connects to the server's address itself.
    Direct,
}

/// What every request at a site must stay within; `None` is no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Cores of one server.
    pub cores: Option<u32>,
    /// Memory of one server in MiB.
    pub memory_mb: Option<u64>,
    /// Walltime of one server in minutes, whatever its policies say.
    pub walltime_min: Option<u32>,
    /// Servers of one user at a time.
    pub servers_per_user: Option<u32>,
    /// Servers of everybody at a time, waiting ones included.
    pub servers: Option<u32>,
    /// What is granted whom of its time.
    #[serde(default)]
    pub policies: Vec<Policy>,
}

impl Limits {
    /// What somebody in these groups may have of its time.
    #[must_use]
    pub fn granted(&self, groups: &[String]) -> Granted {
        granted(&self.policies, self.walltime_min, groups)
    }
}

/// One kind of GPU at a site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuKind {
    /// As requests name it: `a100`.
    pub kind: String,
    /// Memory of each in MiB.
    pub memory_mb: u64,
    /// The most that one server can have.
    pub per_server: u32,
}

/// Who may use a site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Every user of every Hub.
    Everyone,
    /// Members of at least one of these groups.
    Groups(Vec<String>),
}

/// What becomes of files in a user's home when the server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Home {
    /// They are there after the next start.
    Kept,
    /// They go with the server.
    Scratch,
}

/// What a site can take now, as its backend said last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Whether the site answers, and how it does.
    pub health: Health,
    /// Slots, or whatever the site counts, that are free now; `None` when it cannot say.
    pub free_slots: Option<u32>,
    /// Requests waiting there now.
    pub waiting: u32,
    /// When a request made now would start, in seconds; `None` is *unknown*, which is never zero.
    pub predicted_wait_s: Option<u32>,
    /// Servers of ours there now, of all users and all Hubs, waiting ones included.
    pub servers: u32,
}

/// Whether a site takes new servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "health", content = "why")]
pub enum Health {
    /// It answers.
    Well,
    /// It has not answered yet, or not lately; new servers may still be tried.
    Unknown(String),
    /// It failed repeatedly and is left alone for a while.
    Resting(String),
    /// The operator closed it.
    Closed(String),
}
