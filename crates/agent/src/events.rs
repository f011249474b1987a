//! Everything that can happen to an agent beside its server's own end, as one sequence of events.
//!
//! In: signals, orders of home, where the link stands, the ends of the agent's tasks. Out: [`Event`]s. What follows
//! from them is `session`'s.

use std::future::pending;
use std::io;
use std::time::Duration;

use glidepath_api_types::agent::ToAgent;
use glidepath_tunnel::dial::DialEnd;
use glidepath_tunnel::link::LinkState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::carry::Order;

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// Home asks for something.
    Order(Order),
    /// The batch system, or a person, asks for the end.
    Signal(&'static str),
    /// Home will not have this agent: final.
    Refused(String),
    /// Home closed the link: final.
    Closed(String),
    /// Home could not be reached in time, not once.
    NeverHome,
    /// Home has been absent for long; the server ends in so long.
    HomeAbsentSoon(Duration),
    /// Home has been absent for too long.
    HomeAbsent,
    /// Home is back after [`Event::HomeAbsentSoon`].
    HomeBack,
    /// A task of the agent came to an end that nobody asked for.
    Broken(&'static str),
}

/// How a task of the agent ended.
#[derive(Debug)]
pub enum TaskEnd {
    /// The dialler.
    Dial(DialEnd),
    /// Any other, by name.
    Other(&'static str),
}

/// The sequence of events, and the owner of the agent's tasks.
pub struct Events {
    /// Signals that ask for the end.
    pub signals: Signals,
    /// From control streams.
    pub orders: mpsc::Receiver<Order>,
    /// Where the link stands.
    pub link_state: watch::Receiver<LinkState>,
    /// The agent's tasks.
    pub tasks: JoinSet<TaskEnd>,
    /// Whether home is there.
    pub presence: Presence,
}

impl Events {
    /// Waits for the next event. May be dropped half way.
    pub async fn next(&mut self) -> Event {
        loop {
            let state = self.link_state.borrow_and_update().clone();
            if let Some(event) = self.presence.see(&state, Instant::now()) {
                return event;
            }
            tokio::select! {
                biased;
                name = self.signals.next() => return Event::Signal(name),
                Some(end) = self.tasks.join_next() => match end {
                    Ok(TaskEnd::Dial(DialEnd::Refused(sentence))) => return Event::Refused(sentence),
                    Ok(TaskEnd::Dial(DialEnd::Closed(reason))) => return Event::Closed(reason),
                    // Carrying ends with the link; the dialler says why.
                    Ok(TaskEnd::Other("carry")) => {}
                    Ok(TaskEnd::Other(name)) => return Event::Broken(name),
                    Err(_) => return Event::Broken("a task panicked"),
                },
                Some(order) = self.orders.recv() => return Event::Order(order),
                Ok(()) = self.link_state.changed() => {}
                () = until(self.presence.next_due()) => {}
            }
        }
    }

    /// Waits until the link is up, or is not, as asked. May be dropped half way.
    pub fn link_is_up(&self) -> bool {
        matches!(*self.link_state.borrow(), LinkState::Up { .. })
    }

    /// An order to stop, when this event is one.
    pub fn stop_grace(event: &Event) -> Option<Duration> {
        match event {
            Event::Order(Order::Known(ToAgent::Stop { grace_s, .. })) => {
                Some(Duration::from_secs((*grace_s).into()))
            }
            _ => None,
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}

/// SIGTERM, SIGINT, SIGHUP: the end is asked for.
pub struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    /// Takes the signals over from now on.
    pub fn listen() -> io::Result<Self> {
        Ok(Signals {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            Some(()) = self.term.recv() => "SIGTERM",
            Some(()) = self.int.recv() => "SIGINT",
            Some(()) = self.hup.recv() => "SIGHUP",
        }
    }
}

/// Whether home is there, and what follows when it is not. Given the link's state and the time; no clock of its own.
#[derive(Debug)]
pub struct Presence {
    dial_deadline: Instant,
    limit: Duration,
    warn_after: Duration,
    home: Home,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Home {
    NeverSeen,
    Here,
    Absent {
        since: Instant,
        warned: bool,
    },
    /// All was said.
    GivenUp,
}

impl Presence {
    /// Home must be there by `dial_deadline`, and never away for longer than `limit`.
    pub fn new(dial_deadline: Instant, limit: Duration) -> Self {
        let warn_after = limit.saturating_sub(warn_before(limit));
        Presence { dial_deadline, limit, warn_after, home: Home::NeverSeen }
    }

    /// Takes in where the link stands; says what follows now.
    fn see(&mut self, state: &LinkState, now: Instant) -> Option<Event> {
        let up = matches!(state, LinkState::Up { .. });
        match self.home {
            Home::GivenUp => {}
            Home::NeverSeen if up => self.home = Home::Here,
            // A lane that came and went between two looks.
            Home::NeverSeen if matches!(state, LinkState::Cut { .. }) => {
                self.home = Home::Absent { since: now, warned: false };
            }
            Home::NeverSeen if now >= self.dial_deadline => {
                self.home = Home::GivenUp;
                return Some(Event::NeverHome);
            }
            Home::Here if !up => self.home = Home::Absent { since: now, warned: false },
            Home::Absent { warned, .. } if up => {
                self.home = Home::Here;
                return warned.then_some(Event::HomeBack);
            }
            Home::Absent { since, .. } if now >= later(since, self.limit) => {
                self.home = Home::GivenUp;
                return Some(Event::HomeAbsent);
            }
            Home::Absent { since, warned: false } if now >= later(since, self.warn_after) => {
                self.home = Home::Absent { since, warned: true };
                return Some(Event::HomeAbsentSoon(later(since, self.limit) - now));
            }
            Home::NeverSeen | Home::Here | Home::Absent { .. } => {}
        }
        None
    }

    fn next_due(&self) -> Option<Instant> {
        match self.home {
            Home::NeverSeen => Some(self.dial_deadline),
            Home::Absent { since, warned: false } => Some(later(since, self.warn_after)),
            Home::Absent { since, warned: true } => Some(later(since, self.limit)),
            Home::Here | Home::GivenUp => None,
        }
    }
}

/// How long before an end the user is told: five minutes, or a tenth of a span that is short.
pub fn warn_before(span: Duration) -> Duration {
    Duration::from_secs(300).min(span / 10)
}

/// `from + span`, or ten years from then where that is more than the clock can tell.
pub fn later(from: Instant, span: Duration) -> Instant {
    let ten_years = Duration::from_secs(10 * 365 * 24 * 3600);
    from + span.min(ten_years)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: LinkState = LinkState::Up { lanes: 1 };
    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_home_never_reached_is_told_once() {
        let start = Instant::now();
        let mut presence = Presence::new(start + 5 * S, 100 * S);
        assert!(presence.see(&LinkState::Dialling, start).is_none());
        assert_eq!(presence.next_due(), Some(start + 5 * S));
        assert!(matches!(presence.see(&LinkState::Dialling, start + 5 * S), Some(Event::NeverHome)));
        assert!(presence.see(&LinkState::Dialling, start + 6 * S).is_none());
        assert_eq!(presence.next_due(), None);
    }

    #[test]
    fn absence_is_warned_of_and_then_acted_on() {
        let start = Instant::now();
        let mut presence = Presence::new(start + 5 * S, 100 * S);
        assert!(presence.see(&UP, start).is_none());
        assert!(presence.see(&LinkState::Dialling, start + 10 * S).is_none());
        assert_eq!(presence.next_due(), Some(start + 100 * S));
        let soon = presence.see(&LinkState::Dialling, start + 100 * S);
        assert!(matches!(soon, Some(Event::HomeAbsentSoon(left)) if left == 10 * S));
        assert!(matches!(presence.see(&LinkState::Dialling, start + 110 * S), Some(Event::HomeAbsent)));
    }

    #[test]
    fn a_home_that_comes_back_starts_the_clock_anew() {
        let start = Instant::now();
        let mut presence = Presence::new(start + 5 * S, 100 * S);
        presence.see(&UP, start);
        presence.see(&LinkState::Dialling, start);
        assert!(presence.see(&LinkState::Dialling, start + 95 * S).is_some());
        assert!(matches!(presence.see(&UP, start + 96 * S), Some(Event::HomeBack)));
        presence.see(&LinkState::Dialling, start + 97 * S);
        assert!(presence.see(&LinkState::Dialling, start + 120 * S).is_none());
    }

    #[test]
    fn an_endless_limit_is_no_overflow() {
        let start = Instant::now();
        let mut presence = Presence::new(start, Duration::from_secs(u64::MAX));
        presence.see(&UP, start);
        presence.see(&LinkState::Dialling, start);
        assert!(presence.next_due().is_some_and(|due| due > start));
    }
}
