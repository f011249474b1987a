//! The places that are taken at sites: by starts that are about to be written down, and by runs that live.
//!
//! Kept by site: a decision counts each site's places, and there may be many sites and many runs.

use std::collections::HashMap;

use glidepath_domain::names::{RunId, ServerKey, SiteName};
use tokio::time::Instant;

/// One place.
pub(super) struct Held {
    pub(super) key: ServerKey,
    pub(super) since: Instant,
}

impl Held {
    pub(super) fn is_of_user(&self, key: &ServerKey) -> bool {
        self.key.user == key.user && self.key.hub == key.hub
    }
}

/// At most one for each run.
#[derive(Default)]
pub(super) struct Places {
    at: HashMap<SiteName, HashMap<RunId, Held>>,
    of: HashMap<RunId, SiteName>,
}

impl Places {
    /// Takes a place there, from now on. One that the run has elsewhere is given back.
    pub(super) fn take(&mut self, run: RunId, key: &ServerKey, site: &SiteName) {
        self.give_back(run);
        let held = Held { key: key.clone(), since: Instant::now() };
        self.at.entry(site.clone()).or_default().insert(run, held);
        self.of.insert(run, site.clone());
    }

    pub(super) fn give_back(&mut self, run: RunId) {
        let Some(site) = self.of.remove(&run) else { return };
        if let Some(at) = self.at.get_mut(&site) {
            at.remove(&run);
        }
    }

    /// Where the run has its place.
    pub(super) fn of(&self, run: RunId) -> Option<&SiteName> {
        self.of.get(&run)
    }

    /// Everybody's at one site.
    pub(super) fn at(&self, site: &SiteName) -> impl Iterator<Item = &Held> {
        self.at.get(site).into_iter().flat_map(HashMap::values)
    }
}
