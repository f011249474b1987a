//! What the program may use, once the operator's file has been checked.
//!
//! In: a path. Out: a [`Config`], or *every* problem with its key and remedy. `file` is what the file says word by
//! word, `check` turns it into this. Whether the machine is as the file needs it is for `app` to look at.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use glidepath_api_types::agent::ListenOn;
use glidepath_backends::process::config::ProcessConfig;
use glidepath_domain::names::{HubName, InstanceId};
use glidepath_domain::request::Defaults;
use glidepath_domain::resources::{Arch, Resources};
use glidepath_domain::run::Deadlines;
use glidepath_domain::site::Site;
use glidepath_svc_kit::auth::SecretHash;
use glidepath_svc_kit::files::in_words;
use glidepath_svc_kit::problems::Problems;
use glidepath_svc_kit::read::read;
use glidepath_svc_kit::telemetry::Log;
use serde_json::Value;

pub use hub_api::HubApi;
pub use store::{PostgreSql, StoreConfig};

mod check;
mod file;
#[cfg(any(test, feature = "fuzz"))]
#[doc(hidden)]
pub mod fuzz;
mod hub_api;
mod policy;
mod store;

/// Everything the service was told, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the service keeps what must survive it. Absolute.
    pub state_dir: PathBuf,
    /// Where runs and events are written down.
    pub store: StoreConfig,
    /// Tells this service from others at a batch system; `None` makes one at first start and keeps it.
    pub instance: Option<InstanceId>,
    /// Where to listen, beside the relays.
    pub listen: Listen,
    /// How agents reach home.
    pub link: Link,
    /// How to log.
    pub log: Log,
    /// Where the agent's binary lies, by architecture.
    pub agents: BTreeMap<Arch, PathBuf>,
    /// How long each step of a start may take.
    pub deadlines: Deadlines,
    /// Seconds before a server's end at which its user is told, longest first.
    pub warn_before_s: Vec<u64>,
    /// What stands in for options that a user left out.
    pub defaults: Resources,
    /// Named choices on the form, in the operator's order.
    pub presets: Vec<Preset>,
    /// The Hubs that may use this service; at least one.
    pub hubs: Vec<Hub>,
    /// The places that can take servers; at least one.
    pub sites: Vec<SiteConfig>,
}

/// Where to listen. Port 0 takes a free port, which is kept for the next start.
#[derive(Debug, Clone, Copy)]
pub struct Listen {
    /// For Hubs.
    pub api: SocketAddr,
    /// For agents.
    pub link: SocketAddr,
    /// For monitoring.
    pub metrics: SocketAddr,
}

/// How agents reach home.
#[derive(Debug, Clone)]
pub struct Link {
    /// `wss://host[:port]/link`; `None` is the link listener's own address.
    pub url: Option<String>,
    /// How the listener proves itself.
    pub tls: LinkTls,
    /// PEM file of the authority that agents trust instead of their machine's own.
    pub ca: Option<PathBuf>,
}

/// How the link listener proves itself to agents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkTls {
    /// By a certificate of an authority of the service's own, made at first start and handed to agents.
    OwnCa,
    /// By the operator's certificate.
    Files {
        /// Chain, PEM.
        cert: PathBuf,
        /// Private key, PEM, 0600.
        key: PathBuf,
    },
    /// Not at all: a proxy in front, named here, ends TLS.
    PlainBehind(String),
}

/// A named choice on the form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preset {
    /// As options name it.
    pub name: String,
    /// What users read.
    pub title: String,
    /// A line more; may be empty.
    pub description: String,
    /// What it stands for.
    pub resources: Resources,
}

/// A Hub that may use this service.
#[derive(Debug, Clone)]
pub struct Hub {
    /// As paths and keys name it.
    pub name: HubName,
    /// One secret, or two while they change.
    pub secrets: Vec<SecretHash>,
    /// The Hub's API, where servers' calls are forwarded to.
    pub api: HubApi,
    /// The Hub's `base_url`: starts and ends with a slash.
    pub base_url: String,
    /// Where its proxy reaches this Hub's servers.
    pub relay: SocketAddr,
    /// What the Hub is told of that; `None` is the listener's own address.
    pub relay_url: Option<String>,
}

/// A place that can take servers.
#[derive(Debug, Clone)]
pub struct SiteConfig {
    /// What placement knows of it.
    pub site: Site,
    /// Who speaks to its batch system.
    pub backend: BackendConfig,
    /// Seconds of home's absence after which an agent there ends its server; `None` is the run's walltime.
    pub absence_limit_s: Option<u64>,
    /// Where servers listen.
    pub listen_on: ListenOn,
    /// The operator's words when it takes no new servers.
    pub closed: Option<String>,
}

/// Which batch system, and what it needs to know.
#[derive(Debug, Clone)]
pub enum BackendConfig {
    /// Children of this service on this machine.
    Process(Box<ProcessConfig>),
}

impl Config {
    /// Reads and checks a TOML file, or a JSON file by its extension. Relative paths are taken from the file's folder.
    pub fn load(path: &Path) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|error| format!("cannot be read: {}", in_words(&error)));
        let Some(text) = problems.keep(&path.display().to_string(), text) else { return Err(problems) };
        Self::from_text(path, &text)
    }

    /// The same, of a file that has been read.
    fn from_text(path: &Path, text: &str) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let shown = path.display().to_string();
        let Some(value) = problems.keep(&shown, parse(path, text)) else { return Err(problems) };
        let here = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let Some(here) = problems.keep(&shown, std::path::absolute(here)) else { return Err(problems) };
        let Some(file) = read(value, "", &mut problems) else { return Err(problems) };
        check::check(file, &here, problems)
    }

    /// The defaults and presets as the check of options takes them.
    #[must_use]
    pub fn option_defaults(&self) -> Defaults {
        let presets = self.presets.iter().map(|preset| (preset.name.clone(), preset.resources.clone()));
        Defaults { resources: self.defaults.clone(), presets: presets.collect() }
    }
}

fn parse(path: &Path, text: &str) -> Result<Value, String> {
    if path.extension().is_some_and(|extension| extension == "json") {
        let at = |error: serde_json::Error| {
            format!("is not JSON: line {}, column {}", error.line(), error.column())
        };
        return serde_json::from_str(text).map_err(at);
    }
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        format!("is not TOML: line {line}: {}", error.message())
    })
}

#[cfg(test)]
mod tests;
