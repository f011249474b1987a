//! What the store says: whether it is whole, and which runs should have come to an end.

use std::time::Duration;

use glidepath_domain::run::{Moment, State};

use super::Findings;
use crate::clock;
use crate::config::Config;
use crate::spawn::Story;
use crate::store::{Database, Look, StoreError};

/// A database beyond this slows each start down.
const LARGE_BYTES: u64 = 2 * 1024 * 1024 * 1024;
/// An ended run whose leftovers are there for so long is stuck: removal is asked for each minute.
const SETTLES_WITHIN: Duration = Duration::from_secs(180);
/// Runs that are named; the others are counted.
const NAMED: usize = 5;

pub(super) async fn look(config: &Config, serves: bool, out: &mut Findings) {
    if let Database::Sqlite(file) = Database::of(config)
        && !file.exists()
    {
        return;
    }
    if let Err(error) = look_into(config, serves, out).await {
        out.error("store", error.to_string(), "restore the state folder from a backup if it is damaged");
    }
}

async fn look_into(config: &Config, serves: bool, out: &mut Findings) -> Result<(), StoreError> {
    let look = Look::open(Database::of(config))?;
    if let Some(damage) = look.damage().await? {
        let found = format!("the database is damaged: {damage}");
        out.error("store", found, "stop the service and restore the state folder from a backup");
        return Ok(());
    }
    let size = look.size_bytes().await?;
    if size > LARGE_BYTES {
        let found = format!("the database has {} MB", size / 1024 / 1024);
        out.warning("store", found, "look for many runs with long last lines; report it");
    }
    let (mut unread, mut stuck, mut homeless) = (Vec::new(), Vec::new(), Vec::new());
    let now = clock::now();
    for row in look.runs(true).await? {
        let run = row.run.to_string();
        match Story::read(&row) {
            Err(_) => unread.push(run),
            Ok(story) => {
                if is_stuck(&story, now) {
                    stuck.push(run.clone());
                }
                let known = |name: &str| config.sites.iter().any(|site| site.site.name.as_str() == name);
                if story.run.tries.iter().any(|attempt| !attempt.cleaned && !known(attempt.at.site.as_str()))
                {
                    homeless.push(run);
                }
            }
        }
    }
    if let Some(runs) = named(&unread) {
        let remedy =
            "use the version that wrote them, or restore the state folder; nobody drives or ends them";
        out.error("runs", format!("do not read: {runs}"), remedy);
    }
    if let Some(runs) = named(&homeless) {
        let remedy = "put the site back into the config until they are over";
        out.error(
            "runs",
            format!("have something left at a site that the config does not have: {runs}"),
            remedy,
        );
    }
    if let Some(runs) = named(&stuck).filter(|_| serves) {
        let remedy = "`run ULID` tells what is left; see whether the site's batch system answers";
        out.warning("runs", format!("ended, and something is left of them at a site: {runs}"), remedy);
    }
    Ok(())
}

fn is_stuck(story: &Story, now: Moment) -> bool {
    story.run.state == State::Ended && !story.settled && now.since(story.run.since) > SETTLES_WITHIN
}

fn named(runs: &[String]) -> Option<String> {
    let more = runs.len().saturating_sub(NAMED);
    let first = runs.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    match (runs.is_empty(), more) {
        (true, _) => None,
        (false, 0) => Some(first),
        (false, more) => Some(format!("{first} and {more} more")),
    }
}
