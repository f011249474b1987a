//! What an operator should hear of and can count: refusals, retries, doubts and repairs.
//!
//! In: one call where such a thing happens, with whom it is about. Out: one line in the log and one count, always both:
//! there is no way to write the line without counting, nor to count without the line. Words, levels and remedies of all
//! of them stand in `table`, which the operator's manual repeats. No user's name is ever part of a count.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use glidepath_domain::names::{Attempt, HubName, RunId, ServerKey, SiteName};
use tracing::Level;

mod table;
#[cfg(test)]
mod tests;

pub use table::{Doubt, Refusal, Repair, Retry};

/// The four kinds, in the words of the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Somebody asked, and was told no.
    Refusal,
    /// Something did not work, and is done again or elsewhere.
    Retry,
    /// Nobody can tell how something is; it begins and ends.
    Doubt,
    /// Something half-done or left over was put right.
    Repair,
}

impl Kind {
    /// The word in log lines.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Refusal => "refusal",
            Self::Retry => "retry",
            Self::Doubt => "doubt",
            Self::Repair => "repair",
        }
    }

    /// The metric that counts it, without the prefix of all metrics.
    #[must_use]
    pub fn metric(self) -> &'static str {
        match self {
            Self::Refusal => "refusals",
            Self::Retry => "retries",
            Self::Doubt => "doubts_begun",
            Self::Repair => "repairs",
        }
    }
}

/// How often the same line is written about the same subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Each time.
    Each,
    /// At most once in a minute; the line says how many there were. Each is counted.
    Calm,
}

/// One thing that can happen, in the operator's words.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which of the four.
    pub kind: Kind,
    /// What it happens to: a label of the metric.
    pub what: &'static str,
    /// Why: a label of the metric.
    pub reason: &'static str,
    /// The level of its line.
    pub level: Level,
    /// How often it is written.
    pub pace: Pace,
    /// What happened, as the line says it.
    pub sentence: &'static str,
    /// What the service does next, as the line says it.
    pub next: &'static str,
    /// What the operator does, as the manual says it.
    pub remedy: &'static str,
}

/// One of the things in `table`.
pub trait Notable: Copy {
    /// What stands there of it.
    fn entry(self) -> &'static Entry;
}

/// Everything that can happen, kind by kind.
pub fn all() -> impl Iterator<Item = &'static Entry> {
    let refusals = Refusal::ALL.iter().map(|one| one.entry());
    let retries = Retry::ALL.iter().map(|one| one.entry());
    let doubts = Doubt::ALL.iter().map(|one| one.entry());
    refusals.chain(retries).chain(doubts).chain(Repair::ALL.iter().map(|one| one.entry()))
}

/// Whom and what it is about. What is not known or does not belong is left out.
#[derive(Debug, Clone, Copy, Default)]
pub struct About<'a> {
    /// The Hub.
    pub hub: Option<&'a HubName>,
    /// The server.
    pub key: Option<&'a ServerKey>,
    /// Which life of it.
    pub run: Option<RunId>,
    /// Which submit of that.
    pub attempt: Option<u32>,
    /// Where.
    pub site: Option<&'a SiteName>,
    /// Who connected.
    pub peer: Option<IpAddr>,
    /// Whatever else names the subject: a route, a listener.
    pub at: Option<&'a str>,
    /// Why, in a sentence.
    pub why: Option<&'a str>,
}

impl<'a> About<'a> {
    /// About nothing in particular yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Of this Hub.
    #[must_use]
    pub fn hub(self, hub: &'a HubName) -> Self {
        Self { hub: Some(hub), ..self }
    }

    /// Of this server, and of its Hub.
    #[must_use]
    pub fn key(self, key: &'a ServerKey) -> Self {
        Self { key: Some(key), hub: Some(&key.hub), ..self }
    }

    /// Of this run.
    #[must_use]
    pub fn run(self, run: RunId) -> Self {
        Self { run: Some(run), ..self }
    }

    /// Of this attempt, and of its run.
    #[must_use]
    pub fn attempt(self, attempt: Attempt) -> Self {
        Self { run: Some(attempt.run), attempt: Some(attempt.number), ..self }
    }

    /// At this site.
    #[must_use]
    pub fn site(self, site: &'a SiteName) -> Self {
        Self { site: Some(site), ..self }
    }

    /// From this address.
    #[must_use]
    pub fn peer(self, peer: IpAddr) -> Self {
        Self { peer: Some(peer), ..self }
    }

    /// At this place.
    #[must_use]
    pub fn at(self, at: &'a str) -> Self {
        Self { at: Some(at), ..self }
    }

    /// For this reason.
    #[must_use]
    pub fn why(self, why: &'a str) -> Self {
        Self { why: Some(why), ..self }
    }

    /// What tells one subject from another; not the reason, which may have numbers in it.
    fn subject(&self) -> String {
        let Self { hub, key, run, attempt, site, peer, at, why: _ } = self;
        format!("{hub:?} {key:?} {run:?} {attempt:?} {site:?} {peer:?} {at:?}")
    }
}

/// Takes note of all that is notable. Clones share the counts.
#[derive(Clone)]
pub struct Notes {
    inner: Arc<Inner>,
}

struct Inner {
    counts: BTreeMap<Id, AtomicU64>,
    open: BTreeMap<Id, AtomicI64>,
    told: Mutex<HashMap<(Id, String), Told>>,
}

type Id = (Kind, &'static str, &'static str);

/// A line that was written lately.
struct Told {
    at: Instant,
    since: u64,
}

/// Between two lines of the same about the same.
const CALM: Duration = Duration::from_secs(60);
/// Subjects that are remembered for that; beyond them a line may come early.
const SUBJECTS_MAX: usize = 4096;

impl Default for Notes {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Notes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notes").finish_non_exhaustive()
    }
}

impl Notes {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new() -> Self {
        let counts = all().map(|entry| (id(entry), AtomicU64::new(0))).collect();
        let doubts = all().filter(|entry| entry.kind == Kind::Doubt);
        let open = doubts.map(|entry| (id(entry), AtomicI64::new(0))).collect();
        Self { inner: Arc::new(Inner { counts, open, told: Mutex::default() }) }
    }

    /// Somebody was told no.
    pub fn refused(&self, what: Refusal, about: &About<'_>) {
        self.tell(what.entry(), about);
    }

    /// Something is done again, or elsewhere.
    pub fn retries(&self, what: Retry, about: &About<'_>) {
        self.tell(what.entry(), about);
    }

    /// Something was put right.
    pub fn repaired(&self, what: Repair, about: &About<'_>) {
        self.tell(what.entry(), about);
    }

    /// From here on nobody can tell, until [`Doubting::over`].
    #[must_use]
    pub fn doubts(&self, what: Doubt, about: &About<'_>) -> Doubting {
        let entry = what.entry();
        self.tell(entry, about);
        self.opened(entry, 1);
        Doubting { notes: self.clone(), entry, since: Instant::now() }
    }

    /// How often this has happened since the start.
    #[must_use]
    pub fn counted(&self, what: impl Notable) -> u64 {
        self.inner.counts.get(&id(what.entry())).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// All counts of one kind, by what and reason.
    #[must_use]
    pub fn counts(&self, kind: Kind) -> Vec<(&'static str, &'static str, u64)> {
        let of_kind = self.inner.counts.iter().filter(|((of, _, _), _)| *of == kind);
        of_kind.map(|((_, what, reason), count)| (*what, *reason, count.load(Ordering::Relaxed))).collect()
    }

    /// How many doubts stand now, by what and reason.
    #[must_use]
    pub fn open(&self) -> Vec<(&'static str, &'static str, i64)> {
        let open = self.inner.open.iter();
        open.map(|((_, what, reason), count)| (*what, *reason, count.load(Ordering::Relaxed))).collect()
    }

    fn opened(&self, entry: &'static Entry, by: i64) {
        if let Some(count) = self.inner.open.get(&id(entry)) {
            count.fetch_add(by, Ordering::Relaxed);
        }
    }

    fn tell(&self, entry: &'static Entry, about: &About<'_>) {
        if let Some(count) = self.inner.counts.get(&id(entry)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let times = match entry.pace {
            Pace::Each => Some(1),
            Pace::Calm => self.times_to_tell(entry, about),
        };
        if let Some(times) = times {
            let times = (times > 1).then_some(times);
            write(entry.level, entry, about, entry.sentence, Some(entry.next), times, None);
        }
    }

    /// How many there were since the last line, this one counted in; `None` when it is too early for the next line.
    fn times_to_tell(&self, entry: &'static Entry, about: &About<'_>) -> Option<u64> {
        let now = Instant::now();
        let mut told = self.inner.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= SUBJECTS_MAX {
            told.retain(|_, one| now.duration_since(one.at) < CALM);
            if told.len() >= SUBJECTS_MAX {
                told.clear();
            }
        }
        match told.entry((id(entry), about.subject())) {
            std::collections::hash_map::Entry::Occupied(mut one) => {
                let one = one.get_mut();
                one.since += 1;
                if now.duration_since(one.at) < CALM {
                    return None;
                }
                one.at = now;
                Some(std::mem::take(&mut one.since))
            }
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(Told { at: now, since: 0 });
                Some(1)
            }
        }
    }
}

/// A doubt that stands. Dropped without [`Doubting::over`], it stands no more and no line says so: the service ends.
pub struct Doubting {
    notes: Notes,
    entry: &'static Entry,
    since: Instant,
}

impl Doubting {
    /// It is known again.
    pub fn over(self, about: &About<'_>) {
        let lasted_s = self.since.elapsed().as_secs();
        let sentence = format!("{}: that is over", self.entry.sentence);
        write(Level::INFO, self.entry, about, &sentence, None, None, Some(lasted_s));
    }
}

impl fmt::Debug for Doubting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doubting").field("of", &self.entry.sentence).finish_non_exhaustive()
    }
}

impl Drop for Doubting {
    fn drop(&mut self) {
        self.notes.opened(self.entry, -1);
    }
}

fn id(entry: &Entry) -> Id {
    (entry.kind, entry.what, entry.reason)
}

fn write(
    level: Level,
    entry: &Entry,
    about: &About<'_>,
    sentence: &str,
    next: Option<&str>,
    times: Option<u64>,
    lasted_s: Option<u64>,
) {
    let About { hub, key, run, attempt, site, peer, at, why } = *about;
    macro_rules! line {
        ($level:expr) => {
            tracing::event!(
                $level,
                note = entry.kind.word(),
                what = entry.what,
                reason = entry.reason,
                hub = hub.map(display),
                server.key = key.map(display),
                run = run.map(display),
                attempt,
                site = site.map(display),
                peer = peer.map(display),
                at,
                why,
                times,
                lasted_s,
                next,
                "{sentence}"
            )
        };
    }
    match level {
        Level::ERROR => line!(Level::ERROR),
        Level::WARN => line!(Level::WARN),
        Level::INFO => line!(Level::INFO),
        _ => line!(Level::DEBUG),
    }
}

/// The table of the operator's manual.
#[must_use]
pub fn manual() -> String {
    let mut lines = vec![
        "| metric | `what`, `reason` | level | what happened | what the service does | what you do |"
            .to_owned(),
        "|---|---|---|---|---|---|".to_owned(),
    ];
    for Entry { kind, what, reason, level, pace, sentence, next, remedy } in all() {
        let level = level.as_str().to_lowercase();
        let calm = if *pace == Pace::Calm { ", calm" } else { "" };
        let metric = kind.metric();
        lines.push(format!(
            "| `{metric}` | `{what}`, `{reason}` | {level}{calm} | {sentence} | {next} | {remedy} |"
        ));
    }
    lines.join("\n")
}
