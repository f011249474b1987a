//! Chooses the site for a request.
//!
//! In: a checked request, what every site is and can take now, and the operator's policy. Out: a verdict with a
//! sentence per site, best first. Pure: no clock, no network, no store. Who asks the sites is `spawn`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::names::SiteName;
use crate::policy::{Bound, Granted};
use crate::request::SpawnRequest;
use crate::resources::{Arch, Gpus};
use crate::site::{Access, GpuKind, Health, Home, Site, Snapshot};

/// A site that could take the request, with what is known of it now.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// As the operator describes it.
    pub site: Arc<Site>,
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
    /// What the user is granted of the site's time.
    #[serde(default)]
    pub granted: Granted,
    /// Higher is better. Comparable within one call and one policy.
    pub score: i64,
}

/// Ranks all candidates, best first. The first one is the choice if it fits; otherwise no site can take the request.
///
/// Sites that the user may not use are told as such, with the groups that may: whoever sees what exists knows what to
/// ask for. A verdict depends on its own candidate alone, so one more site never changes what is said of another.
#[must_use]
pub fn choose(request: &SpawnRequest, candidates: &[Candidate], policy: &Policy) -> Vec<Verdict> {
    let judged = |candidate| (expected_wait_s(candidate, policy), judge(request, candidate, policy));
    let mut verdicts: Vec<(u32, Verdict)> = candidates.iter().map(judged).collect();
    // What scores the same is told apart by the wait itself, which the score has in steps only, then by name.
    verdicts.sort_by(|(a_wait_s, a), (b_wait_s, b)| {
        (!a.fits, -a.score, a_wait_s, &a.site).cmp(&(!b.fits, -b.score, b_wait_s, &b.site))
    });
    verdicts.into_iter().map(|(_, verdict)| verdict).collect()
}

fn judge(request: &SpawnRequest, candidate: &Candidate, policy: &Policy) -> Verdict {
    let site = &candidate.site;
    let granted = site.limits.granted(&request.groups);
    let reasons = reasons_against(request, candidate, &granted);
    let fits = reasons.is_empty();
    let answered = candidate.snapshot.as_ref().filter(|snapshot| snapshot.health == Health::Well);
    let wait_s = answered.and_then(|snapshot| snapshot.predicted_wait_s);
    Verdict {
        site: site.name.clone(),
        title: site.title.clone(),
        fits,
        sentence: if fits { outlook(candidate.snapshot.as_ref(), &granted) } else { reasons.join(" ") },
        predicted_wait_s: wait_s.filter(|_| fits),
        granted,
        score: if fits { score(candidate, policy) } else { UNFIT + preference(site) },
    }
}

/// Every filter that stands against the site, each in a sentence. What the site is comes first, what the user chose last.
fn reasons_against(request: &SpawnRequest, candidate: &Candidate, granted: &Granted) -> Vec<String> {
    let Candidate { site, snapshot, servers_of_user } = candidate;
    let asked = &request.resources;
    let filters = [
        health(snapshot.as_ref()),
        access(&site.access, &request.groups),
        asked.arch.and_then(|arch| arch_missing(site, arch)),
        too_much(site.limits.cores.map(u64::from), asked.cores.into(), |n| counted(n, "core")),
        too_much(site.limits.memory_mb, asked.memory_mb, |n| format!("{} of memory", size(n))),
        gpus(&site.gpus, &asked.gpus),
        walltime(granted.walltime_min.as_ref(), asked.walltime_min),
        servers_per_user(site.limits.servers_per_user, *servers_of_user),
        servers(site.limits.servers, snapshot.as_ref()),
        not_chosen(site, request.site.as_ref()),
    ];
    filters.into_iter().flatten().collect()
}

fn health(snapshot: Option<&Snapshot>) -> Option<String> {
    match &snapshot?.health {
        Health::Well | Health::Unknown(_) => None,
        Health::Resting(why) => Some(format!("Rests after repeated failures{}.", because(why))),
        Health::Closed(why) => Some(format!("Is closed{}.", because(why))),
    }
}

fn access(access: &Access, groups: &[String]) -> Option<String> {
    let Access::Groups(allowed) = access else { return None };
    if allowed.iter().any(|group| groups.contains(group)) {
        return None;
    }
    Some(format!("Is for members of {}.", listed(allowed.iter().map(String::as_str), "or")))
}

fn arch_missing(site: &Site, arch: Arch) -> Option<String> {
    let has = || listed(site.archs.iter().map(|arch| arch.as_str()), "and");
    (!site.archs.contains(&arch)).then(|| format!("Has no {arch} machines, only {}.", has()))
}

fn too_much(limit: Option<u64>, asked: u64, words: impl Fn(u64) -> String) -> Option<String> {
    let limit = limit.filter(|limit| asked > *limit)?;
    Some(format!("Gives one server at most {}; you ask for {}.", words(limit), words(asked)))
}

fn gpus(has: &[GpuKind], asked: &Gpus) -> Option<String> {
    if asked.count == 0 {
        return None;
    }
    if has.is_empty() {
        return Some("Has no GPUs.".to_owned());
    }
    let of_kind: Vec<&GpuKind> = match &asked.kind {
        Some(kind) => has.iter().filter(|gpu| gpu.kind == *kind).collect(),
        None => has.iter().collect(),
    };
    let kind = asked.kind.as_deref().map(|kind| format!("{kind} ")).unwrap_or_default();
    if of_kind.is_empty() {
        return Some(format!(
            "Has no {kind}GPUs, only {}.",
            listed(has.iter().map(|gpu| gpu.kind.as_str()), "and")
        ));
    }
    let wanted_mb = asked.memory_mb.unwrap_or(0);
    let most_memory = of_kind.iter().map(|gpu| gpu.memory_mb).max().unwrap_or(0);
    if most_memory < wanted_mb {
        let (most, wanted) = (size(most_memory), size(wanted_mb));
        return Some(format!("Its {kind}GPUs have at most {most} each; you ask for {wanted}."));
    }
    let large_enough = of_kind.iter().filter(|gpu| gpu.memory_mb >= wanted_mb);
    let most = large_enough.map(|gpu| gpu.per_server).max().unwrap_or(0);
    too_much(Some(most.into()), asked.count.into(), |n| counted(n, &format!("{kind}GPU")))
}

fn walltime(limit: Option<&Bound<u32>>, asked: u32) -> Option<String> {
    let limit = limit.filter(|limit| asked > limit.most)?;
    let (most, whose) = (minutes(limit.most), limit.whose());
    Some(format!("Servers there live at most {most}{whose}; you ask for {}.", minutes(asked)))
}

fn servers_per_user(limit: Option<u32>, has: u32) -> Option<String> {
    let limit = limit.filter(|limit| has >= *limit)?;
    let have = if has == 0 { "no server".to_owned() } else { counted(has.into(), "server") };
    Some(format!("You have {have} there, and one user may have {limit}."))
}

fn servers(limit: Option<u32>, snapshot: Option<&Snapshot>) -> Option<String> {
    let limit = limit.filter(|limit| snapshot.map_or(0, |snapshot| snapshot.servers) >= *limit)?;
    Some(format!("Is full: it takes {} at a time.", counted(limit.into(), "server")))
}

fn not_chosen(site: &Site, chosen: Option<&SiteName>) -> Option<String> {
    chosen.filter(|chosen| **chosen != site.name).map(|_| "You chose another site.".to_owned())
}

/// What a user may expect of a site that fits: when it starts, and what may end it early.
fn outlook(snapshot: Option<&Snapshot>, granted: &Granted) -> String {
    let starts = start(snapshot);
    granted.in_words().map_or(starts.clone(), |ends| format!("{starts} {ends}"))
}

fn start(snapshot: Option<&Snapshot>) -> String {
    let Some(snapshot) = snapshot else {
        return "Has not told yet what is free; your server can be tried there.".to_owned();
    };
    if let Health::Unknown(why) = &snapshot.health {
        return format!("Does not answer at present{}; your server can be tried there.", because(why));
    }
    let ahead = match snapshot.waiting {
        0 => String::new(),
        1 => ", with 1 server waiting before yours".to_owned(),
        n => format!(", with {n} servers waiting before yours"),
    };
    match (snapshot.predicted_wait_s, snapshot.free_slots) {
        (Some(0..=30), _) => format!("Should start at once{ahead}."),
        (Some(wait_s), _) => format!("Should start in about {}{ahead}.", minutes(wait_s.div_ceil(60))),
        (None, Some(0)) => format!("Has no free slot now{ahead}; the wait is not known."),
        (None, Some(free)) => {
            format!("Has {} free{ahead}; the wait is not known.", counted(free.into(), "slot"))
        }
        (None, None) => format!("Can take your server{ahead}; the wait is not known."),
    }
}

/// Steps of the expected wait, in seconds. Within one step, what the operator prefers decides, then where files are
/// kept, then what is free.
const WAIT_STEPS_S: [u32; 8] = [30, 120, 600, 1800, 2 * 3600, 8 * 3600, 24 * 3600, 7 * 24 * 3600];
const PER_STEP: i64 = 10_000_000_000;
const PER_PREFERENCE: i64 = 2_000;
const FOR_KEPT_FILES: i64 = 500;
const UNFIT: i64 = -1_000_000_000_000;

fn score(candidate: &Candidate, policy: &Policy) -> i64 {
    let snapshot = candidate.snapshot.as_ref();
    let wait_s = expected_wait_s(candidate, policy);
    let step = WAIT_STEPS_S.iter().filter(|step| wait_s > **step).count() as i64;
    let free = snapshot.and_then(|snapshot| snapshot.free_slots).unwrap_or(100).min(499);
    let spread = i64::from(free) - i64::from(candidate.servers_of_user.min(400));
    let kept = if candidate.site.home == Home::Kept { FOR_KEPT_FILES } else { 0 };
    preference(&candidate.site) + kept + spread - step * PER_STEP
}

/// The wait that ranking counts with, in seconds: what the site said, or what stands for not knowing.
fn expected_wait_s(candidate: &Candidate, policy: &Policy) -> u32 {
    match &candidate.snapshot {
        Some(Snapshot { health: Health::Well, predicted_wait_s: Some(wait_s), .. }) => *wait_s,
        Some(Snapshot { health: Health::Well, free_slots: Some(1..), waiting: 0, .. }) => {
            policy.unknown_wait_s.min(600)
        }
        Some(Snapshot { health: Health::Well, .. }) => policy.unknown_wait_s,
        _ => policy.unknown_wait_s.saturating_mul(4), // silent, which is worse than busy
    }
}

fn preference(site: &Site) -> i64 {
    i64::from(site.preference.clamp(-1_000_000, 1_000_000)) * PER_PREFERENCE
}

fn because(why: &str) -> String {
    let why: String =
        why.trim().trim_end_matches('.').chars().filter(|c| !c.is_control()).take(200).collect();
    if why.is_empty() { why } else { format!(" ({why})") }
}

fn counted(n: u64, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

fn size(memory_mb: u64) -> String {
    if memory_mb < 1024 {
        return format!("{memory_mb} MB");
    }
    let tenths = memory_mb * 10 / 1024;
    if tenths.is_multiple_of(10) {
        format!("{} GB", tenths / 10)
    } else {
        format!("{}.{} GB", tenths / 10, tenths % 10)
    }
}

fn minutes(n: u32) -> String {
    match n {
        0..=119 => counted(n.into(), "minute"),
        120..=2879 if n.is_multiple_of(60) => counted((n / 60).into(), "hour"),
        120..=2879 => format!("{} h {} min", n / 60, n % 60),
        _ if n.is_multiple_of(1440) => counted((n / 1440).into(), "day"),
        _ => format!("{} d {} h", n / 1440, n % 1440 / 60),
    }
}

fn listed<'a>(words: impl Iterator<Item = &'a str>, last: &str) -> String {
    let words: Vec<&str> = words.collect();
    match words.as_slice() {
        [] => "none".to_owned(),
        [one] => (*one).to_owned(),
        [most @ .., end] => format!("{} {last} {end}", most.join(", ")),
    }
}

#[cfg(test)]
mod tests;
