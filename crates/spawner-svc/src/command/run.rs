//! `run ULID`: the story of one run.

use std::fmt::Write as _;
use std::process::ExitCode;

use glidepath_domain::run::{Life, Moment, State, Submit};
use serde_json::json;

use super::words::{between, plain, span, stamp, time};
use super::{complain, say};
use crate::clock;
use crate::spawn::{Entry, Happened, Story};
use crate::store::{Database, Look, RunRow};

/// Tells of the run whose id begins so.
pub(super) async fn tell(database: &Database, beginning: &str, as_json: bool) -> ExitCode {
    let row = match find(database, beginning).await {
        Ok(row) => row,
        Err(why) => {
            complain(&why);
            return ExitCode::FAILURE;
        }
    };
    match Story::read(&row) {
        Ok(story) if as_json => say(&format!("{}\n", in_json(&story))),
        Ok(story) => say(&in_words(&story, clock::now())),
        Err(error) => {
            let (run, key, state) = (row.run, row.server_key, row.state);
            complain(&format!("run {run} of {key} ({state}) does not read: {error}"));
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

async fn find(database: &Database, beginning: &str) -> Result<RunRow, String> {
    let beginning = beginning.to_ascii_uppercase();
    if beginning.is_empty() || !beginning.chars().all(|c| c.is_ascii_alphanumeric()) {
        return Err(format!(
            "{beginning:?} is no run's id: give it, or its beginning, as `runs --ended` shows it"
        ));
    }
    let look = Look::open(database.clone()).map_err(|error| error.to_string())?;
    let mut found = look.named(&beginning).await.map_err(|error| error.to_string())?;
    match (found.pop(), found.len()) {
        (Some(only), 0) => Ok(only),
        (Some(last), others) => Err(format!(
            "{} runs begin with {beginning}, the last of them {}: give more of the id",
            others + 1,
            last.run
        )),
        (None, _) => Err(format!("no run that is kept begins with {beginning}: `runs --ended` shows all")),
    }
}

fn in_words(story: &Story, now: Moment) -> String {
    let mut text = String::new();
    let out = &mut text;
    head(out, story, now);
    sites(out, story);
    attempts(out, story);
    happened(out, story, now);
    end(out, story);
    text
}

fn head(out: &mut String, story: &Story, now: Moment) {
    let (run, view) = (&story.run, &story.view);
    let server = match view.key.server.to_string() {
        name if name.is_empty() => "their server".to_owned(),
        name => format!("server {name:?}"),
    };
    let _ = writeln!(out, "run {} of {} at hub {}, {server}", run.id, view.key.user, view.key.hub);
    let state = format!("{:?}", run.state).to_lowercase();
    let _ = writeln!(out, "is {state} since {} ({})", time(run.since), between(run.since, now));
    if run.state != State::Ended {
        let _ = writeln!(out, "  {}", plain(&view.message));
    }
    if view.life == Life::Unknown {
        let _ = writeln!(out, "  nobody can tell whether it lives; it is kept");
    }
    if let Some(end) = story.walltime_end() {
        let left = if end > now { between(now, end) } else { "none".to_owned() };
        let _ = writeln!(out, "  walltime {}, left {left}", span(run.walltime_s));
    }
}

fn sites(out: &mut String, story: &Story) {
    let _ = writeln!(out, "\nsites, when it was asked for");
    for verdict in &story.verdicts {
        let fits = if verdict.fits { "can take it" } else { "cannot" };
        let _ = writeln!(out, "  {} ({fits}): {}", verdict.site, plain(&verdict.sentence));
    }
    if story.sites_left_out > 0 {
        let _ = writeln!(out, "  and {} behind these, of which nothing is kept", story.sites_left_out);
    }
}

fn attempts(out: &mut String, story: &Story) {
    let _ = writeln!(out, "\nattempts");
    if story.run.tries.is_empty() {
        let _ = writeln!(out, "  none");
    }
    for attempt in &story.run.tries {
        let job = story.jobs.iter().find(|(number, _)| *number == attempt.number);
        let job = match (job, attempt.submit) {
            (Some((_, job)), _) => format!("job {}", plain(job)),
            (None, Submit::Refused | Submit::NoPlace) => "no job".to_owned(),
            (None, _) => "no job's name is known".to_owned(),
        };
        let (number, site) = (attempt.number, &attempt.at.site);
        let _ = writeln!(out, "  {number} at {site}, begun {}: {job}", time(attempt.begun));
        if let Some(why) = &attempt.trouble {
            let _ = writeln!(out, "    failed: {}", plain(why));
        }
        if let Some(since) = attempt.silent_since {
            let _ = writeln!(out, "    the site does not answer since {}", time(since));
        }
    }
    if let Some(agent) = &story.agent {
        let (host, version) = (plain(&agent.host), plain(&agent.version));
        let _ = writeln!(out, "  agent of attempt {}: glidepath-agent {version} on {host}", agent.attempt);
        let _ = writeln!(out, "    heard first {}, last {} or later", time(agent.first), time(agent.last));
    } else if story.run.tries.iter().any(|attempt| attempt.linked) {
        let _ = writeln!(out, "  an agent was home; who and when was not kept");
    } else {
        let _ = writeln!(out, "  no agent was heard");
    }
}

fn happened(out: &mut String, story: &Story, now: Moment) {
    let _ = writeln!(out, "\nwhat happened");
    let entries = story.diary.entries();
    if entries.is_empty() {
        let _ = writeln!(out, "  the times of its states were not kept (an older version wrote it)");
        let _ = writeln!(out, "  {}  asked for", time(story.run.requested_at));
    }
    for (n, entry) in entries.iter().enumerate() {
        if let Some((after, count)) = story.diary.left_out().filter(|(after, _)| *after == n) {
            let _ = writeln!(out, "  … {count} entries after the first {after} were not kept …");
        }
        let next = entries.iter().skip(n + 1).find(|next| matches!(next.what, Happened::Reached(_)));
        let _ = writeln!(out, "  {}  {}", time(entry.at), sentence(entry, next, now));
    }
}

fn sentence(entry: &Entry, next: Option<&Entry>, now: Moment) -> String {
    let attempt = entry.attempt.map(|number| format!(" (attempt {number})")).unwrap_or_default();
    match entry.what {
        Happened::Reached(State::Ended) => "ended".to_owned(),
        Happened::Reached(state) => {
            let lasted = between(entry.at, next.map_or(now, |next| next.at));
            format!("{}{attempt}, for {lasted}", format!("{state:?}").to_lowercase())
        }
        Happened::AgentUnheard => format!("its agent is not heard{attempt}"),
        Happened::AgentBack => format!("its agent is heard again{attempt}"),
        Happened::Unknown => "nobody can tell whether it lives".to_owned(),
        Happened::Known => "that can be told again".to_owned(),
        Happened::TakenUp => "the service was started again and went on with it".to_owned(),
    }
}

fn end(out: &mut String, story: &Story) {
    if let Some(stop) = &story.run.stop {
        let _ = writeln!(out, "\nit was told to end {}: {}", time(stop.at), plain(&stop.why));
    }
    if let Some(end) = &story.run.end {
        let _ = writeln!(out, "\nend {}: {}", time(end.at), end.reason.as_str());
        let _ = writeln!(out, "  {}", plain(&end.message));
        match (end.exit_code, end.signal) {
            (_, Some(signal)) => _ = writeln!(out, "  signal {signal}"),
            (Some(code), None) => _ = writeln!(out, "  exit code {code}"),
            (None, None) => {}
        }
        if !end.last_lines.is_empty() {
            let _ = writeln!(out, "  its last lines:");
        }
        for line in &end.last_lines {
            let _ = writeln!(out, "  | {}", plain(line));
        }
        let left = story.left();
        match left.as_slice() {
            [] => _ = writeln!(out, "nothing is left of it at any site"),
            left => left.iter().for_each(|left| _ = writeln!(out, "still to be removed {left}")),
        }
    }
}

fn in_json(story: &Story) -> serde_json::Value {
    let (run, view) = (&story.run, &story.view);
    let job = |number: u32| story.jobs.iter().find(|(of, _)| *of == number).map(|(_, job)| job.clone());
    let attempts = run.tries.iter().map(|attempt| {
        json!({
            "number": attempt.number, "site": attempt.at.site, "begun": stamp(attempt.begun),
            "submit": attempt.submit, "job": job(attempt.number), "fenced": attempt.fenced,
            "agent_was_home": attempt.linked, "failed": attempt.trouble,
            "site_silent_since": attempt.silent_since.map(stamp), "cleaned": attempt.cleaned,
        })
    });
    let happened = story
        .diary
        .entries()
        .iter()
        .map(|entry| json!({ "at": stamp(entry.at), "attempt": entry.attempt, "what": entry.what }));
    let verdicts = story
        .verdicts
        .iter()
        .map(|verdict| json!({ "site": verdict.site, "fits": verdict.fits, "sentence": verdict.sentence }));
    json!({
        "run": run.id.to_string(), "hub": view.key.hub, "user": view.key.user.to_string(),
        "server": view.key.server.to_string(), "state": run.state, "life": view.life, "message": view.message,
        "requested_at": stamp(run.requested_at), "since": stamp(run.since), "walltime_s": run.walltime_s,
        "launched_at": run.launched_at.map(stamp), "ready_at": run.ready_at.map(stamp),
        "sites": verdicts.collect::<Vec<_>>(), "sites_left_out": story.sites_left_out,
        "attempts": attempts.collect::<Vec<_>>(),
        "agent": story.agent.as_ref().map(|agent| json!({
            "attempt": agent.attempt, "host": agent.host, "version": agent.version,
            "first": stamp(agent.first), "last": stamp(agent.last),
        })),
        "happened": happened.collect::<Vec<_>>(),
        "left_out": story.diary.left_out().map(|(_, count)| count),
        "stop": run.stop.as_ref().map(|stop| json!({ "at": stamp(stop.at), "why": stop.why })),
        "end": run.end.as_ref().map(|end| json!({
            "at": stamp(end.at), "reason": end.reason.as_str(), "message": end.message,
            "exit_code": end.exit_code, "signal": end.signal, "last_lines": end.last_lines,
        })),
        "settled": story.settled, "left": story.left(),
    })
}
