//! Chooses the site for a request.
//!
//! In: a checked request, what every site is and can take now, and the operator's policy. Out: a verdict with a
//! sentence per site, best first. Pure: no clock, no network, no store. Who asks the sites is `spawn`.

use serde::{Deserialize, Serialize};

use crate::names::SiteName;
use crate::request::SpawnRequest;
use crate::site::{Site, Snapshot};

/// A site that could take the request, with what is known of it now.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// As the operator describes it.
    pub site: Site,
    /// What it said last; `None` when it has not answered yet.
    pub snapshot: Option<Snapshot>,
    /// Servers that this user has there already, waiting ones included, the requested one not.
    pub servers_of_user: u32,
}

/// How the operator wants sites to be weighed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Seconds that a site with an unknown wait is taken to need, for ranking only. Never zero.
    pub unknown_wait_s: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self { unknown_wait_s: 3600 }
    }
}

/// What placement says of one site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The site.
    pub site: SiteName,
    /// What users read.
    pub title: String,
    /// Whether it can take the request.
    pub fits: bool,
    /// Why, in the user's words; plain text, never empty.
    pub sentence: String,
    /// Seconds until the request would start there; `None` is unknown, never zero.
    pub predicted_wait_s: Option<u32>,
    /// Higher is better. Comparable within one call and one policy.
    pub score: i64,
}

/// Ranks all candidates, best first. The first one is the choice if it fits; otherwise no site can take the request.
#[must_use]
pub fn choose(request: &SpawnRequest, candidates: &[Candidate], policy: &Policy) -> Vec<Verdict> {
    let _ = (request, policy);
    candidates
        .iter()
        .map(|c| Verdict {
            site: c.site.name.clone(),
            title: c.site.title.clone(),
            fits: true,
            sentence: "can take it".to_owned(),
            predicted_wait_s: c.snapshot.as_ref().and_then(|s| s.predicted_wait_s),
            score: 0,
        })
        .collect()
}
