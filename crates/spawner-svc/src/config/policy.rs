//! What the file says of a site's time: `[[site.policy]]`, and when users are warned.

use glidepath_domain::policy::{Patience, Policy};
use glidepath_domain::request;
use glidepath_svc_kit::problems::Problems;

use super::file::PolicyFile;

/// Longest patience that is taken: a year.
const PATIENCE_MAX_S: u64 = 366 * 24 * 3600;
/// Warnings before one end.
const WARNINGS_MAX: usize = 10;
/// As users expect them: 30, 10 and 1 minute before.
const USUAL_WARNINGS_S: [u64; 3] = [1800, 600, 60];

/// A site's policies; `walltime_min` is the site's own limit, `key` where they stand.
pub(super) fn policies(
    key: &str,
    files: Vec<PolicyFile>,
    walltime_min: Option<u32>,
    p: &mut Problems,
) -> Vec<Policy> {
    let mut everybodys = false;
    let checked = files.into_iter().enumerate().map(|(n, file)| {
        let policy = policy(&format!("{key}.{n}"), file, walltime_min, p);
        if policy.groups.is_empty() && std::mem::replace(&mut everybodys, true) {
            p.add(format!("{key}.{n}.groups"), "is missing: one policy is for everybody already");
        }
        policy
    });
    checked.collect()
}

fn policy(key: &str, file: PolicyFile, hard_min: Option<u32>, p: &mut Problems) -> Policy {
    let at = |field: &str| format!("{key}.{field}");
    if file.groups.as_ref().is_some_and(Vec::is_empty) {
        p.add(at("groups"), "must name at least one group; leave it out for everybody");
    }
    if file.walltime_min.is_none() && file.idle_s.is_none() && file.unattended_s.is_none() {
        p.add(key, "says nothing: give walltime_min, idle_s or unattended_s");
    }
    let hard_min = hard_min.unwrap_or(request::WALLTIME_MIN_MAX).min(request::WALLTIME_MIN_MAX);
    if file.walltime_min.is_some_and(|asked| !(1..=hard_min).contains(&asked)) {
        p.add(at("walltime_min"), format!("must be from 1 to {hard_min}, which nobody may exceed there"));
    }
    let mut patience = |field: &str, given: Option<u64>| match given? {
        0 => Some(Patience::Endless),
        s @ 1..=PATIENCE_MAX_S => Some(Patience::Seconds(s)),
        _ => {
            p.add(at(field), format!("must be from 1 to {PATIENCE_MAX_S} seconds, or 0 for never"));
            None
        }
    };
    Policy {
        idle: patience("idle_s", file.idle_s),
        unattended: patience("unattended_s", file.unattended_s),
        groups: file.groups.unwrap_or_default(),
        walltime_min: file.walltime_min,
    }
}

/// When users are told of an end, longest before it first.
pub(super) fn warnings(given: Option<Vec<u64>>, p: &mut Problems) -> Vec<u64> {
    let mut seconds = given.unwrap_or_else(|| USUAL_WARNINGS_S.to_vec());
    let fits = (1..=WARNINGS_MAX).contains(&seconds.len());
    if !fits || seconds.iter().any(|before| !(1..=PATIENCE_MAX_S).contains(before)) {
        let rule = format!("must be 1 to {WARNINGS_MAX} whole numbers of seconds, each 1 or more");
        p.add("warn_before_s", rule);
    }
    seconds.sort_unstable_by(|a, b| b.cmp(a));
    seconds.dedup();
    seconds
}
