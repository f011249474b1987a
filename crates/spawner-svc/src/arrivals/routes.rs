//! Which server a request path belongs to.
//!
//! In: per hub, the service prefix that the Hub gave each server (`/user/ada/`, `/jhub/user/ada%40example.org/lab/`)
//! and how that server can be reached. Out: for a raw request path, the server behind it or why there is none.
//! Paths are compared as decoded whole segments; nothing is decoded twice, nothing is collapsed. The hub is the
//! caller's knowledge (its listener), never read from the request. Who publishes is `spawn`; who reads is the relay.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use glidepath_domain::names::{HubName, RunId};
use percent_encoding::percent_decode_str;
use tokio::sync::watch;

use super::upstream::Upstream;
use crate::notable::Notes;

/// Reasons of ended runs that are kept per hub, so that a late visitor is told why; the oldest go first.
const ENDS_KEPT: usize = 4096;

/// Segments of the longest prefix that is taken: a deep `base_url`, `user`, the name and the server's name.
const PREFIX_MAX_SEGMENTS: usize = 32;

/// How one server can be reached now.
#[derive(Debug, Clone)]
pub enum RouteState {
    /// It has answered. Stays so while its link is cut or being made anew: the relay does the waiting.
    Ready(Arc<Upstream>),
    /// It has answered and cannot be reached now: the service was started again and its agent has not come back yet.
    /// Its paths stay its own, and requests wait for it as for a cut link.
    Away {
        /// For the user, as plain text.
        message: String,
    },
    /// It has never answered yet; the sentence says what it waits for.
    Waiting {
        /// For the user, as plain text.
        message: String,
    },
    /// It is over; the sentence says why.
    Ended {
        /// For the user, as plain text.
        message: String,
    },
}

/// What stands behind a path.
#[derive(Debug, Clone)]
pub enum Found {
    /// A server that can be asked.
    Ready(Arc<Upstream>),
    /// A server that will be there again.
    Away {
        /// What is known of it, as plain text.
        message: String,
    },
    /// A server that is on its way.
    Waiting {
        /// What it waits for, as plain text.
        message: String,
    },
    /// A server that was there once.
    Ended {
        /// Why it ended, as plain text.
        message: String,
    },
    /// Nothing that this hub knows.
    Unknown,
}

/// Why a text cannot be a server's prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("service prefix {raw:?} {why}")]
pub struct BadPrefix {
    raw: String,
    why: &'static str,
}

/// All routes of all hubs. Cheap to read: one short lock and one lookup per prefix length.
#[derive(Debug)]
pub struct Routes {
    hubs: RwLock<HashMap<HubName, HubRoutes>>,
    changes: watch::Sender<u64>,
    /// Answers of all relays since the start, by the first digit of their status.
    answers: [AtomicU64; 6],
    notes: Notes,
}

#[derive(Debug, Default)]
struct HubRoutes {
    /// By decoded segments, joined with `/`, which no decoded segment contains.
    by_prefix: HashMap<String, Route>,
    /// Ended prefixes, oldest first. One that came to life again is still in it, and is skipped when its turn comes.
    ends: VecDeque<(String, RunId)>,
    /// Segments of the longest prefix ever put: no lookup goes deeper.
    deepest: usize,
}

#[derive(Debug)]
struct Route {
    run: RunId,
    state: RouteState,
}

impl Routes {
    /// No routes yet, and what relays refuse is noted by themselves.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::noting(Notes::new())
    }

    /// No routes yet; relays note there what they refuse.
    #[must_use]
    pub fn noting(notes: Notes) -> Arc<Self> {
        let (hubs, changes, answers) = (RwLock::default(), watch::Sender::new(0), Default::default());
        Arc::new(Self { hubs, changes, answers, notes })
    }

    /// Where relays note what they refuse.
    #[must_use]
    pub fn notes(&self) -> &Notes {
        &self.notes
    }

    /// Says how the server with this prefix can be reached. A word about an older run than the one that is known
    /// changes nothing. `prefix` is the Hub's own `JUPYTERHUB_SERVICE_PREFIX`, as it wrote it.
    pub fn put(&self, hub: &HubName, prefix: &str, run: RunId, state: RouteState) -> Result<(), BadPrefix> {
        let (key, depth) = prefix_key(prefix)?;
        {
            let mut hubs = self.hubs.write().unwrap_or_else(PoisonError::into_inner);
            let routes = hubs.entry(hub.clone()).or_default();
            if routes.by_prefix.get(&key).is_some_and(|route| route.run > run) {
                return Ok(());
            }
            routes.deepest = routes.deepest.max(depth);
            if matches!(state, RouteState::Ended { .. }) {
                routes.ends.push_back((key.clone(), run));
            }
            routes.by_prefix.insert(key, Route { run, state });
            routes.forget_oldest_ends();
        }
        self.changes.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Takes the route of this run away, with its reason. Another run's route at the same prefix stays.
    pub fn remove(&self, hub: &HubName, prefix: &str, run: RunId) {
        let Ok((key, _)) = prefix_key(prefix) else { return };
        {
            let mut hubs = self.hubs.write().unwrap_or_else(PoisonError::into_inner);
            let Some(routes) = hubs.get_mut(hub) else { return };
            if routes.by_prefix.get(&key).is_some_and(|route| route.run == run) {
                routes.by_prefix.remove(&key);
            }
        }
        self.changes.send_modify(|count| *count += 1);
    }

    /// Finds the server of a raw request path (with or without a query): the longest prefix of it whose server has
    /// answered (ready or away); if there is none, the longest that waits; if none waits, the longest that ended.
    #[must_use]
    pub fn find(&self, hub: &HubName, raw_path: &str) -> Found {
        let hubs = self.hubs.read().unwrap_or_else(PoisonError::into_inner);
        match hubs.get(hub) {
            Some(routes) => routes.find(raw_path),
            None => Found::Unknown,
        }
    }

    /// Counts an answer of a relay.
    pub fn answered(&self, status: u16) {
        if let Some(count) = self.answers.get(usize::from(status / 100)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Answers of all relays since the start: the class of the status, and how many.
    pub fn answers(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let classes = ["other", "1xx", "2xx", "3xx", "4xx", "5xx"];
        classes.into_iter().zip(&self.answers).map(|(class, count)| (class, count.load(Ordering::Relaxed)))
    }

    /// Checks a service prefix as [`Routes::put`] will.
    pub fn check_prefix(prefix: &str) -> Result<(), BadPrefix> {
        prefix_key(prefix).map(drop)
    }

    /// Tells of every change, for whoever waits for a server to come back.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

impl HubRoutes {
    fn find(&self, raw_path: &str) -> Found {
        let mut best = Found::Unknown;
        let mut best_depth = 0;
        let mut key = String::with_capacity(raw_path.len().min(256));
        for (index, segment) in segments(raw_path).take(self.deepest).enumerate() {
            let Some(segment) = plain_segment(segment) else { break };
            if index > 0 {
                key.push('/');
            }
            key.push_str(&segment);
            let Some(route) = self.by_prefix.get(&key) else { continue };
            let found = Found::from(&route.state);
            if found.rank() >= best.rank() {
                best = found;
                best_depth = index + 1;
            }
        }
        if climbs_above(raw_path, best_depth) { Found::Unknown } else { best }
    }

    fn forget_oldest_ends(&mut self) {
        while self.ends.len() > ENDS_KEPT {
            let Some((key, run)) = self.ends.pop_front() else { break };
            let same_end =
                |route: &Route| route.run == run && matches!(route.state, RouteState::Ended { .. });
            if self.by_prefix.get(&key).is_some_and(same_end) {
                self.by_prefix.remove(&key);
            }
        }
    }
}

impl Found {
    fn rank(&self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::Ended { .. } => 1,
            Self::Waiting { .. } => 2,
            Self::Away { .. } | Self::Ready(_) => 3,
        }
    }
}

impl From<&RouteState> for Found {
    fn from(state: &RouteState) -> Self {
        match state {
            RouteState::Ready(upstream) => Self::Ready(Arc::clone(upstream)),
            RouteState::Away { message } => Self::Away { message: message.clone() },
            RouteState::Waiting { message } => Self::Waiting { message: message.clone() },
            RouteState::Ended { message } => Self::Ended { message: message.clone() },
        }
    }
}

/// The decoded form of a prefix, and its number of segments.
fn prefix_key(raw: &str) -> Result<(String, usize), BadPrefix> {
    let bad = |why| BadPrefix { raw: raw.chars().take(200).collect(), why };
    if !raw.starts_with('/') || raw.contains(['?', '#']) {
        return Err(bad("is not an absolute path"));
    }
    let inner = raw.strip_suffix('/').unwrap_or(raw);
    let mut key = String::with_capacity(inner.len());
    let mut depth = 0;
    for segment in segments(inner) {
        let segment =
            plain_segment(segment).ok_or_else(|| bad("has an empty, dotted or malformed segment"))?;
        if depth > 0 {
            key.push('/');
        }
        key.push_str(&segment);
        depth += 1;
    }
    match depth {
        0 => Err(bad("would take every path of the hub")),
        1..=PREFIX_MAX_SEGMENTS => Ok((key, depth)),
        _ => Err(bad("has more than 32 segments")),
    }
}

/// What stands between the slashes, as received; the query is no part of it.
fn segments(raw_path: &str) -> impl Iterator<Item = &str> {
    let path = raw_path.split(['?', '#']).next().unwrap_or_default();
    let inner = path.strip_prefix('/');
    inner.filter(|inner| !inner.is_empty()).into_iter().flat_map(|inner| inner.split('/'))
}

/// One segment, decoded once. `None` for what no name decodes to, and what two readers could understand differently:
/// empty, `.`, `..`, an encoded slash, a bare backslash (some read it as a slash; a name has it as `%5C`), a control
/// character, bytes that are no UTF-8.
fn plain_segment(raw: &str) -> Option<Cow<'_, str>> {
    let decoded = percent_decode_str(raw).decode_utf8().ok()?;
    let plain = !matches!(&*decoded, "" | "." | "..")
        && !raw.contains('\\')
        && !decoded.chars().any(|c| c == '/' || c.is_control());
    plain.then_some(decoded)
}

/// True when `..` segments (encoded or not) lead out of the first `depth` segments: another reader of the same path
/// would see another server.
fn climbs_above(raw_path: &str, depth: usize) -> bool {
    let mut below: isize = 0;
    for segment in segments(raw_path).skip(depth) {
        match &*percent_decode_str(segment).decode_utf8_lossy() {
            "." | "" => {}
            ".." => below -= 1,
            _ => below += 1,
        }
        if below < 0 {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests;
