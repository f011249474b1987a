//! One bulk query per site serves all its runs: often while anything starts or stops there, seldom otherwise.
//!
//! In: what the backend lists. Out: to each run what was seen of its job. A job of this instance that the store does
//! not know, or knows to be over, is removed: after a successful reading of the store only.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use glidepath_domain::backend::{CancelHow, JobSeen, JobState};
use glidepath_domain::names::Attempt;
use glidepath_domain::run::Event;
use tokio::time::{Instant, timeout};

use super::Shared;
use super::book::{Door, Need};
use super::driver::{MAILBOX, Message};
use crate::clock;
use crate::notable::{About, Doubt, Doubting, Repair};
use crate::sites::{Query, SiteSetup, jittered};

/// One bulk query.
const LIST_WITHIN: Duration = Duration::from_secs(60);
/// A site that did not answer so often in a row is asked at the slow pace.
const HAMMER_AT_MOST: u32 = 5;
/// The removal of all jobs of one list that nobody wants: no list is taken meanwhile.
const REMOVE_WITHIN: Duration = Duration::from_secs(30);
/// Of them at a time.
const REMOVALS_AT_ONCE: usize = 8;
/// Between two looks for such jobs where nothing runs.
const IDLE: Duration = Duration::from_secs(60);
/// After this long a job that nobody wants is ended the unkind way.
const KINDLY_FOR: Duration = Duration::from_secs(30);

/// Looks at one site for ever. May be dropped at any time.
pub(super) async fn site(shared: Arc<Shared>, setup: SiteSetup) {
    let mut orphans = HashMap::new();
    let mut unheard = 0_u32;
    let mut doubt = None;
    loop {
        let heard = look(&shared, &setup, &mut orphans).await;
        let heard = told(&shared, &setup, heard, &mut doubt);
        unheard = if heard { 0 } else { unheard.saturating_add(1) };
        let looked = Instant::now();
        let (slow, idle) = (jittered(shared.settings.list_slow), jittered(IDLE));
        loop {
            let every = match shared.book().need(&setup.site.name) {
                Need::Moving if unheard < HAMMER_AT_MOST => shared.settings.list_fast,
                Need::Moving | Need::Calm => slow,
                Need::Idle => idle,
            };
            tokio::select! {
                () = tokio::time::sleep_until(looked + every) => break,
                () = told_to_look(&shared, &setup) => {}
            }
        }
    }
}

/// Returns when something changed at this site since the last look that was asked for.
async fn told_to_look(shared: &Shared, setup: &SiteSetup) {
    match shared.looks.get(&setup.site.name) {
        Some(look) => look.notified().await,
        None => std::future::pending().await,
    }
}

/// Tells the operator when a site falls silent and when it is heard again. True when it was heard.
fn told(shared: &Shared, setup: &SiteSetup, heard: Result<(), String>, doubt: &mut Option<Doubting>) -> bool {
    let about = About::new().site(&setup.site.name);
    match &heard {
        Ok(()) => {
            if let Some(doubt) = doubt.take() {
                doubt.over(&about);
            }
        }
        Err(why) => {
            doubt.get_or_insert_with(|| shared.notes.doubts(Doubt::SiteUnlisted, &about.why(why)));
        }
    }
    heard.is_ok()
}

/// Lists once and tells everybody, or why the site did not answer.
async fn look(
    shared: &Shared,
    setup: &SiteSetup,
    orphans: &mut HashMap<Attempt, Instant>,
) -> Result<(), String> {
    let watched = shared.book().watched(&setup.site.name);
    let asked = clock::now();
    shared.sites.asks(&setup.site.name, Query::List);
    let listed = match timeout(LIST_WITHIN, setup.backend.list()).await {
        Ok(Ok(jobs)) => jobs,
        Ok(Err(error)) => return Err(silent(&watched, error.to_string())),
        Err(_) => return Err(silent(&watched, "no answer in time".to_owned())),
    };
    let mut seen: HashMap<Attempt, JobSeen> =
        listed.into_iter().map(|job| (job.label.attempt, job)).collect();
    for (attempt, door) in &watched {
        let number = attempt.number;
        let message = match seen.remove(attempt) {
            Some(job) => Message::Listed { number, state: job.state },
            None => Message::Heard(Event::JobAbsent(number, asked)),
        };
        tell(door, message);
    }
    // A job of a run that has a driver is that driver's matter: it was begun just now, or thought to be cleaned up.
    let mut unwanted = HashMap::new();
    for (attempt, job) in seen {
        let door = shared.book().door(attempt.run);
        match door {
            Some(door) => tell(&door, Message::Listed { number: attempt.number, state: job.state }),
            None => {
                unwanted.insert(attempt, job);
            }
        }
    }
    remove_orphans(shared, setup, unwanted, orphans).await;
    Ok(())
}

fn silent(watched: &[(Attempt, Door)], why: String) -> String {
    for (attempt, door) in watched {
        tell(door, Message::Heard(Event::SiteSilent(attempt.number)));
    }
    why
}

/// A list comes again: one that finds its driver busy is dropped, and leaves room for what comes only once.
fn tell(door: &Door, message: Message) {
    if door.mailbox.capacity() > MAILBOX / 2 {
        let _ = door.mailbox.try_send(message);
    }
}

/// Removes the jobs that no run wants: left by a crash between two steps, or by a submit that came through late. What
/// takes too long is asked for again after the next list.
async fn remove_orphans(
    shared: &Shared,
    setup: &SiteSetup,
    undriven: HashMap<Attempt, JobSeen>,
    orphans: &mut HashMap<Attempt, Instant>,
) {
    let there: HashSet<Attempt> = undriven.keys().copied().collect();
    orphans.retain(|attempt, _| there.contains(attempt));
    let mut removals = Vec::new();
    for (attempt, job) in undriven {
        match shared.store.is_wanted(attempt).await {
            Ok(Some(true)) => continue, // its run could not be read: nobody drives it, and nobody may end it
            Ok(Some(false) | None) => {}
            Err(_) => break, // nobody knows whether it is wanted
        }
        let since = *orphans.entry(attempt).or_insert_with(|| {
            let about = About::new().key(&job.label.key).attempt(attempt).site(&setup.site.name);
            shared.notes.repaired(Repair::Orphan, &about.at(&job.id.0));
            Instant::now()
        });
        let how = if since.elapsed() > KINDLY_FOR { CancelHow::Now } else { CancelHow::Kindly };
        removals.push(remove(setup, job, how));
    }
    let all = futures_util::stream::iter(removals).for_each_concurrent(REMOVALS_AT_ONCE, |removal| removal);
    let _ = timeout(REMOVE_WITHIN, all).await;
}

async fn remove(setup: &SiteSetup, job: JobSeen, how: CancelHow) {
    let cancelled = setup.backend.cancel(&job.label, how).await;
    if cancelled.is_ok() && matches!(job.state, JobState::Ended(_)) {
        let _ = setup.backend.forget(&job.label).await; // asked again with the next list
    }
}
