//! The configured sites, their backends, and what they can take now.
//!
//! In: config and the backends that `app` built. Out: the latest snapshot of each site, refreshed in the background,
//! with a site that fails repeatedly left alone for a while.

use std::sync::Arc;
use std::time::Duration;

use glidepath_api_types::agent::ListenOn;
use glidepath_domain::backend::Backend;
use glidepath_domain::names::SiteName;
use glidepath_domain::site::{Site, Snapshot};
use tokio_util::sync::CancellationToken;

/// One site with its backend.
#[derive(Clone)]
pub struct SiteSetup {
    /// As the operator describes it.
    pub site: Site,
    /// Speaks to its batch system.
    pub backend: Arc<dyn Backend>,
    /// Where servers there are told to listen.
    pub listen_on: ListenOn,
    /// Seconds of home's absence after which an agent there ends its server; the run's walltime when `None`.
    pub absence_limit_s: Option<u64>,
    /// The operator's words when the site is closed to new servers.
    pub closed: Option<String>,
}

/// How often sites are asked, and how long a failing one rests.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Between two snapshots of a site; jittered.
    pub snapshot_every: Duration,
    /// One snapshot may take this long.
    pub snapshot_timeout: Duration,
    /// Failures in a row after which a site rests.
    pub failures_to_rest: u32,
    /// First rest; doubles each time.
    pub rest: Duration,
    /// Longest rest.
    pub rest_ceiling: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            snapshot_every: Duration::from_secs(5),
            snapshot_timeout: Duration::from_secs(10),
            failures_to_rest: 3,
            rest: Duration::from_secs(30),
            rest_ceiling: Duration::from_secs(600),
        }
    }
}

/// What the service knows of one site now.
#[derive(Clone)]
pub struct SiteNow {
    /// The site and its backend.
    pub setup: SiteSetup,
    /// What it said last; `None` when it has not answered yet.
    pub snapshot: Option<Snapshot>,
}

/// All sites; cheap to clone.
#[derive(Clone)]
pub struct Sites {
    inner: Arc<(Vec<SiteSetup>, Pace)>,
}

impl Sites {
    /// Takes the sites in the operator's order.
    #[must_use]
    pub fn new(sites: Vec<SiteSetup>, pace: Pace) -> Self {
        Self { inner: Arc::new((sites, pace)) }
    }

    /// Asks every site for a snapshot, again and again, until told to stop.
    pub async fn run(&self, stop: CancellationToken) {
        stop.cancelled().await;
    }

    /// One site by name.
    #[must_use]
    pub fn get(&self, name: &SiteName) -> Option<SiteSetup> {
        self.inner.0.iter().find(|s| &s.site.name == name).cloned()
    }

    /// Every site as it stands, in the operator's order.
    #[must_use]
    pub fn all(&self) -> Vec<SiteNow> {
        self.inner.0.iter().map(|setup| SiteNow { setup: setup.clone(), snapshot: None }).collect()
    }
}
