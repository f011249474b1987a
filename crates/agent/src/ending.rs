//! Why an agent ends its server, and how that is told home.

use std::time::Duration;

use glidepath_api_types::agent::{
    EXIT_CANNOT_START, EXIT_HOME_ABSENT, EXIT_IDLE, EXIT_NEVER_HOME, EXIT_SERVER_ENDED, EXIT_TICKET_REFUSED,
    EXIT_UNATTENDED, EXIT_WALLTIME, EndCause, ServerEnd, ToAgent,
};

use crate::carry::Order;
use crate::events::Event;
use crate::output::clean_line;
use crate::reaper::Exit;
use crate::server::Over;

/// Longest reason of home that is passed on.
const REASON_CHARS: usize = 300;

/// Why the agent ends its server, or never starts one.
pub struct Ending {
    /// The word for home.
    pub cause: EndCause,
    /// The sentence for the server's log.
    pub why: String,
    /// The order's own when `None`.
    pub grace: Option<Duration>,
    /// The agent's own.
    pub exit_code: i32,
    /// Nobody is to be told any more.
    pub silent: bool,
    /// The batch system waits.
    pub hurried: bool,
}

impl Ending {
    /// Of this cause; kind, told, and without haste.
    pub fn new(cause: EndCause, why: String, exit_code: i32) -> Self {
        Ending { cause, why, grace: None, exit_code, silent: false, hurried: false }
    }

    /// By one of the limits that the server was given.
    pub fn of_limit(cause: EndCause, span: Duration) -> Self {
        let span = in_words(span);
        match cause {
            EndCause::Idle => Ending::new(cause, format!("nothing went on in it for {span}"), EXIT_IDLE),
            EndCause::Unattended => {
                let why = format!("a kernel computed for {span} with nobody connected");
                Ending::new(cause, why, EXIT_UNATTENDED)
            }
            _ => Ending::new(cause, format!("it lived for the {span} it was granted"), EXIT_WALLTIME),
        }
    }

    /// Which events end the server; the others do not.
    pub fn asked_by(event: Event) -> Option<Self> {
        let asked = |why: String, code| Ending::new(EndCause::Asked, why, code);
        let ending = match event {
            Event::Order(Order::Known(ToAgent::Stop { grace_s, reason })) => {
                let grace = Some(Duration::from_secs(grace_s.into()));
                Ending { grace, ..asked(plain(&reason), EXIT_SERVER_ENDED) }
            }
            Event::Order(Order::Known(ToAgent::Launch(_))) => {
                tracing::debug!("a repeated launch order is ignored");
                return None;
            }
            Event::Order(Order::Known(ToAgent::Used)) => return None,
            Event::Order(Order::UnreadableLaunch) => {
                let why = "this agent cannot read the launch order of its home".to_owned();
                Ending::new(EndCause::CannotStart, why, EXIT_CANNOT_START)
            }
            Event::Signal(name) => {
                let why = format!("the batch system asked for it ({name})");
                Ending { hurried: true, ..asked(why, EXIT_SERVER_ENDED) }
            }
            Event::Refused(sentence) => {
                let sentence = plain(&sentence);
                tracing::error!(%sentence, "home refuses this agent");
                Ending {
                    silent: true,
                    ..asked(format!("home refuses this agent: {sentence}"), EXIT_TICKET_REFUSED)
                }
            }
            Event::Closed(reason) => {
                let why = format!("home closed the link: {}", plain(&reason));
                Ending { silent: true, ..asked(why, EXIT_SERVER_ENDED) }
            }
            Event::NeverHome => {
                tracing::error!("home could not be reached in time");
                let why = "home could not be reached in time".to_owned();
                Ending { silent: true, ..Ending::new(EndCause::HomeAbsent, why, EXIT_NEVER_HOME) }
            }
            Event::HomeAbsent => {
                let why = "home was absent for too long".to_owned();
                Ending::new(EndCause::HomeAbsent, why, EXIT_HOME_ABSENT)
            }
            Event::Broken(task) => {
                tracing::error!(task, "a part of the agent broke");
                asked(format!("the agent broke ({task})"), EXIT_CANNOT_START)
            }
            Event::HomeAbsentSoon(_) | Event::HomeBack => return None,
        };
        Some(ending)
    }

    /// The end of a server that never was.
    pub fn before_start(&self) -> ServerEnd {
        ServerEnd { exit_code: None, signal: None, why: Some(self.why.clone()), cause: self.cause }
    }
}

/// How a server that was started ended.
pub fn server_end(over: &Over, ending: Option<&Ending>) -> ServerEnd {
    let Exit { code, signal } = over.exit;
    if let Some(told) = &over.not_started {
        return ServerEnd {
            exit_code: None,
            signal: None,
            why: Some(plain(told)),
            cause: EndCause::CannotStart,
        };
    }
    ServerEnd {
        exit_code: code,
        signal,
        why: ending.map(|ending| ending.why.clone()),
        cause: ending.map_or(EndCause::ByItself, |ending| ending.cause),
    }
}

/// What the user is told before a limit ends the server.
pub fn warning(cause: EndCause, left: Duration) -> String {
    let left = in_words(left);
    match cause {
        EndCause::Idle => {
            format!("nothing goes on in this server: unless that changes, it ends in {left}")
        }
        EndCause::Unattended => format!(
            "a kernel computes in this server with nobody connected: unless somebody opens it, the server ends in {left}"
        ),
        _ => format!("this server's time is over in {left}: save your work"),
    }
}

/// What the user is told when it does not, after all.
pub fn taken_back(cause: EndCause) -> &'static str {
    match cause {
        EndCause::Unattended => "no kernel computes alone any more: this server stays",
        _ => "something goes on in this server again: it stays",
    }
}

/// Text from outside, for a log or a report.
fn plain(text: &str) -> String {
    clean_line(text.as_bytes()).chars().take(REASON_CHARS).collect()
}

/// A length of time, about.
pub fn in_words(span: Duration) -> String {
    let s = span.as_secs_f64().round();
    if s < 120.0 { format!("{s} seconds") } else { format!("{} minutes", (s / 60.0).round()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_told_in_the_unit_that_fits() {
        assert_eq!(in_words(Duration::from_millis(1600)), "2 seconds");
        assert_eq!(in_words(Duration::from_secs(300)), "5 minutes");
    }

    #[test]
    fn text_from_home_is_made_plain() {
        assert_eq!(plain("a\x1b[31m\nb"), "ab");
        assert_eq!(plain(&"x".repeat(1000)).len(), REASON_CHARS);
    }

    #[test]
    fn a_command_that_could_not_be_started_is_told_as_that() {
        let exit = Exit { code: Some(EXIT_CANNOT_START), signal: None };
        let over = Over { exit, not_started: Some("starting nope: No such file".to_owned()) };
        let end = server_end(&over, None);
        assert_eq!((end.cause, end.exit_code), (EndCause::CannotStart, None));
    }
}
