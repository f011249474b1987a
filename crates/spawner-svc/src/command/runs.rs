//! `runs`: a table of runs, read beside the service, whether that runs or not.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use glidepath_domain::run::{Life, Moment, State};
use serde_json::json;

use super::words::{between, coloured, in_colour, parse_span, plain, stamp, table};
use super::{complain, say};
use crate::clock;
use crate::spawn::Story;
use crate::store::{Database, Look, RunRow, StoreError};

/// Between two looks of `--watch`.
const WATCH_EVERY: Duration = Duration::from_secs(2);
/// Longest reason in a table.
const REASON_MAX_CHARS: usize = 70;

/// Which runs, and how.
#[derive(Debug, Clone, Args)]
pub(super) struct Wanted {
    /// Only of this Hub.
    #[arg(long)]
    hub: Option<String>,
    /// Only of this user.
    #[arg(long)]
    user: Option<String>,
    /// Only at this site.
    #[arg(long)]
    site: Option<String>,
    /// Only in these states, such as ready,queued.
    #[arg(long, value_delimiter = ',')]
    state: Vec<String>,
    /// Ended ones too, for as long as they are kept.
    #[arg(long)]
    ended: bool,
    /// Only those that were asked for, or reached their state, within this time: 90s, 15min, 2h, 3d.
    #[arg(long, value_name = "TIME", value_parser = parse_span)]
    since: Option<Duration>,
    /// As JSON, for programs.
    #[arg(long)]
    json: bool,
    /// Again every two seconds, until Ctrl-C.
    #[arg(long)]
    watch: bool,
}

const STATES: [&str; 9] =
    ["requested", "placed", "submitting", "queued", "dialling", "starting", "ready", "stopping", "ended"];

/// Shows them.
pub(super) async fn show(database: &Database, wanted: &Wanted) -> ExitCode {
    if let Some(unknown) = wanted.state.iter().find(|state| !STATES.contains(&state.as_str())) {
        complain(&format!("there is no state {unknown:?}; there are {}", STATES.join(", ")));
        return ExitCode::from(super::WRONG_CONFIG);
    }
    loop {
        let told = match told(database, wanted).await {
            Ok(told) => told,
            Err(error) => {
                complain(&error.to_string());
                return ExitCode::FAILURE;
            }
        };
        if wanted.watch && in_colour() {
            say("\u{1b}[H\u{1b}[2J");
        }
        say(&told);
        if !wanted.watch {
            return ExitCode::SUCCESS;
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

async fn told(database: &Database, wanted: &Wanted) -> Result<String, StoreError> {
    let look = Look::open(database.clone())?;
    let ended = wanted.ended || wanted.state.iter().any(|state| state == "ended");
    let now = clock::now();
    let rows = look.runs(!ended).await?;
    let mut lines: Vec<Line> = rows.iter().map(Line::of).filter(|line| line.is_wanted(wanted, now)).collect();
    lines.sort_by(|a, b| (&a.hub, &a.user, &a.server, &a.run).cmp(&(&b.hub, &b.user, &b.server, &b.run)));
    if wanted.json {
        let all: Vec<_> = lines.iter().map(|line| line.json(now)).collect();
        return Ok(format!("{}\n", serde_json::Value::from(all)));
    }
    if lines.is_empty() {
        return Ok("no run is so\n".to_owned());
    }
    let head = ["RUN", "HUB", "USER/SERVER", "SITE", "STATE", "FOR", "TRY", "WALLTIME LEFT", "REASON"];
    let cells: Vec<Vec<String>> = lines.iter().map(|line| line.cells(now)).collect();
    let text = table(&head, &cells);
    let mut shown = String::new();
    for (n, row) in text.lines().enumerate() {
        let colour = n.checked_sub(1).and_then(|n| lines.get(n)).map_or("1", Line::colour);
        shown += &coloured(row, colour, in_colour());
        shown.push('\n');
    }
    Ok(shown)
}

/// One run as a line.
struct Line {
    run: String,
    hub: String,
    user: String,
    server: String,
    state: String,
    story: Option<Story>,
    unreadable: Option<String>,
}

impl Line {
    fn of(row: &RunRow) -> Self {
        let key = glidepath_domain::names::ServerKey::parse_full(&row.server_key);
        let (user, server) = key.map_or_else(
            |_| (row.server_key.clone(), String::new()),
            |key| (key.user.to_string(), key.server.to_string()),
        );
        let (story, unreadable) = match Story::read(row) {
            Ok(story) => (Some(story), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let (run, hub, state) = (row.run.to_string(), row.hub.clone(), row.state.clone());
        Self { run, hub, user, server, state, story, unreadable }
    }

    fn site(&self) -> Option<String> {
        self.story.as_ref().and_then(|story| story.view.site.as_ref()).map(ToString::to_string)
    }

    fn is_wanted(&self, wanted: &Wanted, now: Moment) -> bool {
        let same = |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|wanted| wanted == is);
        let state = wanted.state.is_empty() || wanted.state.contains(&self.state);
        let lately = match (wanted.since, &self.story) {
            (Some(within), Some(story)) => now.since(story.run.since.max(story.run.requested_at)) <= within,
            (Some(_), None) | (None, _) => true,
        };
        same(&wanted.hub, &self.hub)
            && same(&wanted.user, &self.user)
            && same(&wanted.site, &self.site().unwrap_or_default())
            && state
            && lately
    }

    /// The doubt about it, or why it is as it is.
    fn reason(&self) -> String {
        let Some(story) = &self.story else { return self.unreadable.clone().unwrap_or_default() };
        let view = &story.view;
        match &view.end {
            Some(end) if !story.settled => format!("{}; something is left to remove", end.reason.as_str()),
            Some(end) => format!("{}: {}", end.reason.as_str(), end.message),
            None if view.life == Life::Unknown => {
                format!("nobody can tell whether it lives: {}", view.message)
            }
            None => view.message.clone(),
        }
    }

    fn left(&self, now: Moment) -> Option<String> {
        let end = self.story.as_ref()?.walltime_end()?;
        Some(if end > now { between(now, end) } else { "over".to_owned() })
    }

    fn cells(&self, now: Moment) -> Vec<String> {
        let of = |cell: &dyn Fn(&Story) -> String| self.story.as_ref().map(cell).unwrap_or_default();
        let mut reason: String = self.reason().chars().take(REASON_MAX_CHARS + 1).collect();
        if reason.chars().count() > REASON_MAX_CHARS {
            reason = reason.chars().take(REASON_MAX_CHARS).chain(['…']).collect();
        }
        let server =
            if self.server.is_empty() { self.user.clone() } else { format!("{}/{}", self.user, self.server) };
        let cells = [
            self.run.clone(),
            self.hub.clone(),
            server,
            self.site().unwrap_or_else(|| "-".to_owned()),
            self.state.clone(),
            of(&|story| between(story.run.since, now)),
            of(&|story| story.run.tries.len().to_string()),
            self.left(now).unwrap_or_else(|| "-".to_owned()),
            reason,
        ];
        cells.iter().map(|cell| plain(cell)).collect()
    }

    fn json(&self, now: Moment) -> serde_json::Value {
        let story = self.story.as_ref();
        let left_s = story.and_then(Story::walltime_end).map(|end| end.since(now).as_secs());
        json!({
            "run": self.run, "hub": self.hub, "user": self.user, "server": self.server, "site": self.site(),
            "state": self.state,
            "life": story.map(|story| story.view.life),
            "since": story.map(|story| stamp(story.run.since)),
            "requested_at": story.map(|story| stamp(story.run.requested_at)),
            "attempt": story.map(|story| story.run.tries.len()),
            "settled": story.map(|story| story.settled),
            "end": story.and_then(|story| story.view.end.as_ref()).map(|end| end.reason.as_str()),
            "reason": self.reason(),
            "walltime_left_s": left_s,
            "unreadable": self.unreadable,
        })
    }

    fn colour(&self) -> &'static str {
        let Some(story) = &self.story else { return "31" };
        match (story.run.state, story.view.life) {
            (_, Life::Unknown) => "33",
            (State::Ready, _) => "32",
            (State::Ended, _) => "2",
            (_, _) => "0",
        }
    }
}
