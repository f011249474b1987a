//! The file that tells a Hub on this machine where the service listens: `<state_dir>/service.json`, 0600.
//!
//! Written after every listener is bound, removed at a clean end. Whoever reads it checks that the process lives.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::anyhow;
use glidepath_svc_kit::files::{in_words, write_private};
use serde::{Deserialize, Serialize};

use crate::config::Hub;

const NAME: &str = "service.json";

/// Who serves, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// Process id.
    pub pid: u32,
    /// Version of the service.
    pub version: String,
    /// When it started.
    pub started_at: String,
    /// `http://host:port` of the API.
    pub api: String,
    /// `http://host:port` of metrics and health.
    pub metrics: String,
    /// What agents dial.
    pub link: String,
    /// The relay's URL of each Hub, by its name.
    pub relays: BTreeMap<String, String>,
}

impl Attach {
    pub(super) fn new(
        api: SocketAddr,
        metrics: SocketAddr,
        link: &str,
        hubs: &[Hub],
        relays: &[String],
    ) -> Self {
        let names = hubs.iter().map(|hub| hub.name.to_string());
        Self {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: format!("{:.3}", jiff::Timestamp::now()),
            api: format!("http://{}", reachable(api)),
            metrics: format!("http://{}", reachable(metrics)),
            link: link.to_owned(),
            relays: names.zip(relays.iter().cloned()).collect(),
        }
    }

    /// Writes the file: from here on the service is there.
    pub(super) fn write(&self, state_dir: &Path) -> anyhow::Result<()> {
        let path = state_dir.join(NAME);
        let text = serde_json::to_vec_pretty(self)?;
        write_private(&path, &text)
            .map_err(|error| anyhow!("cannot write {}: {}", path.display(), in_words(&error)))
    }

    /// Removes the file, if it is this process's.
    pub(super) fn remove(&self, state_dir: &Path) {
        let path = state_dir.join(NAME);
        let own = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Self>(&text).ok());
        if own.as_ref() == Some(self)
            && let Err(error) = std::fs::remove_file(&path)
        {
            tracing::warn!(path = %path.display(), %error, "the attach file stays");
        }
    }
}

/// An address that takes all is reached from this machine by loopback.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        let loopback = if address.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        };
        address.set_ip(loopback);
    }
    address
}
