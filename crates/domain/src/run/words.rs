//! What a user reads of a run: one sentence per state, how far it is, whether it lives. Plain text.

use std::time::Duration;

use super::{Choice, Deadlines, Job, Life, LinkNow, Moment, Phase, Run, State, Stop, Submit};
use crate::policy::{self, Bound};
use crate::run::{Answer, Try};

/// Longest sentence, in characters.
const SENTENCE_MAX_CHARS: usize = 600;

impl Run {
    /// What goes on, for the user.
    #[must_use]
    pub fn message(&self) -> String {
        let Some(attempt) = self.current() else {
            return match (&self.end, &self.stop) {
                (Some(end), _) => end.message.clone(),
                (None, Some(_)) => "Stopping".to_owned(),
                (None, None) => "Looking for a site".to_owned(),
            };
        };
        let title = &attempt.at.title;
        let sentence = match self.state {
            State::Requested => "Looking for a site".to_owned(),
            State::Placed | State::Submitting => self.asking(attempt),
            State::Queued => with_silence(queued(attempt), attempt),
            State::Dialling => with_silence(
                format!("{title} has given the server a place; waiting for it to call home"),
                attempt,
            ),
            State::Starting => starting(attempt),
            State::Ready => match attempt.now.link {
                LinkNow::Down(since) => format!(
                    "The server at {title} is not answering since {}; it is kept, and work in it goes on",
                    clock_time(since)
                ),
                LinkNow::Up | LinkNow::None => format!("The server runs at {title}"),
            },
            State::Stopping => match &self.stop {
                Some(stop) => format!("The server at {title} is stopping: {}", stop.why),
                None => format!("The server at {title} is stopping"),
            },
            State::Ended => self.end.as_ref().map(|end| end.message.clone()).unwrap_or_default(),
        };
        plain(&sentence)
    }

    /// Whether it lives, as far as anybody can tell.
    #[must_use]
    pub fn life(&self, now: Moment, deadlines: &Deadlines) -> Life {
        if self.state == State::Ended {
            return Life::Gone;
        }
        let Some(attempt) = self.current() else { return Life::Alive };
        let silent = attempt.silent_since.is_some_and(|since| now.since(since) >= quiet(deadlines));
        let unheard = attempt.now.link != LinkNow::Up;
        if silent && unheard && attempt.submit == Submit::Done { Life::Unknown } else { Life::Alive }
    }

    /// How far it is, 0 to 100.
    #[must_use]
    pub fn progress(&self) -> u8 {
        match self.state {
            State::Requested => 2,
            State::Placed => 5,
            State::Submitting => 10,
            State::Queued => 20,
            State::Dialling => 50,
            State::Starting => 70,
            State::Ready | State::Stopping | State::Ended => 100,
        }
    }

    /// Place in the queue and seconds until it starts, when known and while it waits.
    #[must_use]
    pub fn queue(&self) -> (Option<u32>, Option<u32>) {
        match (self.state, self.current().map(|attempt| &attempt.job)) {
            (State::Queued, Some(Job::Queued { position, predicted_wait_s })) => {
                (*position, *predicted_wait_s)
            }
            _ => (None, None),
        }
    }

    fn asking(&self, attempt: &Try) -> String {
        if attempt.fenced {
            let next = self.plan.get(self.tries.len()).map_or("another site", |choice| choice.title.as_str());
            return format!(
                "{}; trying {next}",
                attempt.trouble.as_deref().unwrap_or("that site did not work")
            );
        }
        let title = &attempt.at.title;
        match (attempt.submit, self.tries.iter().rev().nth(1).and_then(|before| before.trouble.as_deref())) {
            (Submit::Unsure, _) => format!("{title} is not answering; asking again"),
            (_, Some(trouble)) => format!("{trouble}; asking {title}"),
            (_, None) => format!("Asking {title} for a place"),
        }
    }
}

/// Silence of a site that is told at once would flicker.
const QUIET: Duration = Duration::from_secs(15);

/// From when on a silent site makes it unknown whether a run lives.
pub(super) fn quiet(deadlines: &Deadlines) -> Duration {
    deadlines.doubt.min(QUIET)
}

fn queued(attempt: &Try) -> String {
    let title = &attempt.at.title;
    match &attempt.job {
        Job::Stuck(words) => join(&format!("The job at {title} is held up"), words),
        Job::Queued { position: Some(place), predicted_wait_s: Some(wait) } => {
            format!(
                "Waiting for a place at {title}: number {place} in the queue, about {}",
                span(u64::from(*wait))
            )
        }
        Job::Queued { position: Some(place), predicted_wait_s: None } => {
            format!("Waiting for a place at {title}: number {place} in the queue")
        }
        Job::Queued { position: None, predicted_wait_s: Some(wait) } => {
            format!("Waiting for a place at {title}: about {}", span(u64::from(*wait)))
        }
        Job::NotSeen | Job::Running | Job::Gone { .. } | Job::Queued { .. } => {
            format!("Waiting for a place at {title}")
        }
    }
}

fn starting(attempt: &Try) -> String {
    let title = &attempt.at.title;
    match (&attempt.now.link, &attempt.now.phase, &attempt.now.answer) {
        (LinkNow::Down(since), _, _) => {
            format!("The server starts at {title}; it is not answering since {}", clock_time(*since))
        }
        (_, Some(Phase::Listening), Some(Answer::Status(status))) if *status >= 500 => {
            format!("The server at {title} answers with error {status}; waiting for it to become well")
        }
        (_, Some(Phase::Listening), _) => {
            format!("The server at {title} listens; waiting for its first answer")
        }
        (_, _, _) => format!("The server starts at {title}"),
    }
}

fn with_silence(sentence: String, attempt: &Try) -> String {
    match attempt.silent_since {
        Some(since) => format!("{sentence} (the site is not answering since {})", clock_time(since)),
        None => sentence,
    }
}

pub(super) fn queue_deadline(deadlines: &Deadlines) -> String {
    format!("no place became free within {}", span(deadlines.queued.as_secs()))
}

pub(super) fn dial_deadline(title: &str, deadlines: &Deadlines) -> String {
    format!("the job at {title} did not call home within {}", span(deadlines.dialling.as_secs()))
}

pub(super) fn start_deadline(deadlines: &Deadlines, last: &str) -> String {
    format!("the server did not become ready within {}: {last}", span(deadlines.starting.as_secs()))
}

pub(super) fn walltime(walltime_s: u64) -> String {
    format!("the server lived for the {} it was granted", policy::span(walltime_s))
}

pub(super) fn idle(at: &Choice) -> String {
    let (span, whose) = limit(at.granted.idle_s.as_ref(), &at.title);
    format!("no kernel, terminal or notebook of the server was active for {span}{whose}")
}

pub(super) fn unattended(at: &Choice) -> String {
    let (span, whose) = limit(at.granted.unattended_s.as_ref(), &at.title);
    format!("a kernel of the server computed for {span} with nobody connected{whose}")
}

/// How long, and whose limit that is.
fn limit(bound: Option<&Bound<u64>>, title: &str) -> (String, String) {
    match bound {
        Some(bound) => (policy::span(bound.most), format!(", the limit of {title}{}", bound.whose())),
        None => ("too long".to_owned(), String::new()),
    }
}

pub(super) fn home_absent(title: &str) -> String {
    format!("the server at {title} was ended because it could not reach home for too long")
}

pub(super) fn agent_lost(title: &str, code: Option<i32>, signal: Option<i32>) -> String {
    match (signal, code) {
        (Some(signal), _) => format!("the job at {title} was killed by signal {signal}"),
        (None, Some(code)) => format!("the job at {title} ended with exit code {code}"),
        (None, None) => format!("the job at {title} is gone"),
    }
}

pub(super) fn killed(title: &str, signal: i32) -> String {
    format!("the server at {title} was killed by signal {signal}")
}

pub(super) fn exited(title: &str, code: Option<i32>) -> String {
    match code {
        Some(code) => format!("the server at {title} exited with code {code}"),
        None => format!("the server at {title} ended"),
    }
}

pub(super) fn stopped(stop: &Stop) -> String {
    stop.why.clone()
}

/// A sentence, and what somebody else says of it.
pub(super) fn join(sentence: &str, detail: &str) -> String {
    if detail.trim().is_empty() { sentence.to_owned() } else { format!("{sentence}: {}", detail.trim()) }
}

/// Text from outside as one line: capped, without control characters.
pub(super) fn plain(raw: &str) -> String {
    let line: String =
        raw.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SENTENCE_MAX_CHARS + 1).collect();
    if line.chars().count() > SENTENCE_MAX_CHARS {
        line.chars().take(SENTENCE_MAX_CHARS).chain(['…']).collect()
    } else {
        line
    }
}

fn span(seconds: u64) -> String {
    let (count, unit) = match seconds {
        0..=119 => (seconds, "second"),
        120..=7199 => (seconds / 60, "minute"),
        _ => (seconds / 3600, "hour"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

fn clock_time(at: Moment) -> String {
    let seconds = at.0 / 1000;
    format!("{:02}:{:02}:{:02} UTC", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60)
}
