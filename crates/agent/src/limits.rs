//! When a server must end, and when its user is told before: walltime, no activity, a kernel that computes alone.
//!
//! In: the limits of the launch order, what was seen of the server ([`Look`]), the time. Out: [`News`], each once. No
//! clock, no server: whoever looks is `activity`. What could not be seen is no sign of anything: it neither prolongs
//! nor ends.

use std::time::Duration;

use glidepath_api_types::agent::{self as wire, EndCause};
use tokio::time::Instant;

use crate::events::later;

/// Between two looks at most.
const LOOK_EVERY_MOST: Duration = Duration::from_secs(60);
/// Between two looks while a user who was warned may take the warning back.
const LOOK_EVERY_WARNED: Duration = Duration::from_secs(5);
/// Between two looks at least.
const LOOK_EVERY_LEAST: Duration = Duration::from_secs(1);

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// The user is to be told that the server ends in `left`.
    Warn {
        /// What ends it.
        cause: EndCause,
        /// Which of the warnings this is: the time before the end at which it was due.
        before: Duration,
        /// Until the end.
        left: Duration,
    },
    /// It does not end of that any more, for now.
    TakenBack(EndCause),
    /// It is to end now, after so long.
    End {
        /// Why.
        cause: EndCause,
        /// The limit.
        span: Duration,
    },
}

/// What was seen of a server at one look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Look {
    /// A kernel computes.
    pub busy: bool,
    /// Somebody's page is connected to a kernel.
    pub connected: bool,
    /// A kernel did something since the look before.
    pub kernels: bool,
    /// A person or a terminal did something since the look before.
    pub others: bool,
}

/// The limits of one server, from its start.
#[derive(Debug)]
pub struct Limits {
    ends_at: Instant,
    walltime: Countdown,
    idle: Option<Countdown>,
    unattended: Option<Countdown>,
    active_at: Instant,
    seen: bool,
    /// Since when a kernel has computed at every look, with nobody there.
    alone_since: Option<Instant>,
}

impl Limits {
    /// Of a server that starts now.
    pub fn new(walltime: Duration, order: &wire::Limits, now: Instant) -> Self {
        let before: Vec<Duration> = order.warn_before_s.iter().copied().map(Duration::from_secs).collect();
        let countdown = |cause, span| Countdown::new(cause, span, &before);
        let seconds =
            |cause, limit: Option<u64>| limit.map(|limit| countdown(cause, Duration::from_secs(limit)));
        Limits {
            ends_at: later(now, walltime),
            walltime: countdown(EndCause::Walltime, walltime),
            idle: seconds(EndCause::Idle, order.idle_s),
            unattended: seconds(EndCause::Unattended, order.unattended_s),
            active_at: now,
            seen: false,
            alone_since: None,
        }
    }

    /// True when the server has to be looked at.
    pub fn need_looks(&self) -> bool {
        self.idle.is_some() || self.unattended.is_some()
    }

    /// The walltime's news, which no look changes.
    pub fn pass(&mut self, now: Instant) -> Option<News> {
        self.walltime.at(Some(self.ends_at.saturating_duration_since(now)))
    }

    /// When [`Limits::pass`] has something to say next.
    pub fn pass_due(&self, now: Instant) -> Instant {
        later(now, self.walltime.next(self.ends_at.saturating_duration_since(now)))
    }

    /// Takes in what was seen; `None` when nothing could be.
    pub fn see(&mut self, look: Option<Look>, now: Instant) -> Vec<News> {
        let Some(look) = look else { return Vec::new() };
        let first = !std::mem::replace(&mut self.seen, true); // a server that has just come up is not idle
        if first || look.busy || look.kernels || look.others {
            self.active_at = now;
        }
        let alone = look.busy && !look.connected && !look.others;
        self.alone_since = alone.then(|| self.alone_since.unwrap_or(now));
        let (idle_left, alone_left) = self.left(now);
        let idle = self.idle.as_mut().and_then(|idle| idle.at(idle_left));
        let alone = self.unattended.as_mut().and_then(|unattended| unattended.at(alone_left));
        idle.into_iter().chain(alone).collect()
    }

    /// Until the next look.
    pub fn look_again(&self, now: Instant) -> Duration {
        let (idle_left, alone_left) = self.left(now);
        let each = [(&self.idle, idle_left), (&self.unattended, alone_left)];
        let running = each.into_iter().filter_map(|(countdown, left)| countdown.as_ref().zip(left));
        let mut wait = LOOK_EVERY_MOST;
        for (countdown, left) in running {
            let usual = if countdown.told.is_some() { LOOK_EVERY_WARNED } else { LOOK_EVERY_MOST };
            wait = wait.min(usual).min(countdown.span / 10).min(countdown.next(left));
        }
        let spans = [&self.idle, &self.unattended].into_iter().flatten().map(|countdown| countdown.span / 10);
        spans.fold(wait, Duration::min).max(LOOK_EVERY_LEAST)
    }

    fn left(&self, now: Instant) -> (Option<Duration>, Option<Duration>) {
        let until = |limit: Option<&Countdown>, from: Option<Instant>| {
            let end = later(from?, limit?.span);
            Some(end.saturating_duration_since(now))
        };
        (until(self.idle.as_ref(), Some(self.active_at)), until(self.unattended.as_ref(), self.alone_since))
    }
}

/// One limit with its warnings.
#[derive(Debug)]
struct Countdown {
    cause: EndCause,
    span: Duration,
    /// Before the end, longest first; each shorter than the span.
    before: Vec<Duration>,
    told: Option<Duration>,
}

impl Countdown {
    fn new(cause: EndCause, span: Duration, before: &[Duration]) -> Self {
        let mut before: Vec<Duration> = before.iter().copied().filter(|before| *before < span).collect();
        before.sort_unstable_by(|a, b| b.cmp(a));
        before.dedup();
        if before.is_empty() {
            before.push(span / 10); // nobody's server ends without a word
        }
        Countdown { cause, span, before, told: None }
    }

    /// What follows with so much left; `None` when its time does not run.
    fn at(&mut self, left: Option<Duration>) -> Option<News> {
        let cause = self.cause;
        if left.is_some_and(|left| left.is_zero()) {
            return Some(News::End { cause, span: self.span });
        }
        let reached =
            left.and_then(|left| self.before.iter().copied().filter(|before| left <= *before).min());
        match (reached, left) {
            (Some(before), Some(left)) if self.told.is_none_or(|told| before < told) => {
                self.told = Some(before);
                Some(News::Warn { cause, before, left })
            }
            (None, _) => self.told.take().map(|_| News::TakenBack(cause)),
            _ => None,
        }
    }

    /// Until the next warning, or the end, with so much left.
    fn next(&self, left: Duration) -> Duration {
        let untold = self.before.iter().filter(|before| self.told.is_none_or(|told| **before < told));
        let milestones = untold.copied().chain([Duration::ZERO]);
        milestones.map(|before| left.saturating_sub(before)).min().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);
    const MIN: Duration = Duration::from_secs(60);
    const H: Duration = Duration::from_secs(3600);
    const QUIET: Look = Look { busy: false, connected: false, kernels: false, others: false };
    const BUSY: Look = Look { busy: true, ..QUIET };

    fn order(idle: Option<Duration>, unattended: Option<Duration>) -> wire::Limits {
        let seconds = |span: Option<Duration>| span.map(|span| span.as_secs());
        wire::Limits { idle_s: seconds(idle), unattended_s: seconds(unattended), ..wire::Limits::default() }
    }

    /// The news of so long, looking as often as is asked for, each with the time since the start.
    fn lives(
        limits: &mut Limits,
        start: Instant,
        from: Duration,
        until: Duration,
        look: Option<Look>,
    ) -> Vec<(Duration, News)> {
        let (mut news, mut at) = (Vec::new(), from);
        while at <= until {
            let now = start + at;
            news.extend(limits.pass(now).into_iter().chain(limits.see(look, now)).map(|one| (at, one)));
            let walltime = limits.pass_due(now).saturating_duration_since(now).max(S);
            at += limits.look_again(now).min(walltime);
        }
        news
    }

    fn warn(cause: EndCause, before: Duration) -> News {
        News::Warn { cause, before, left: before }
    }

    #[test]
    fn the_walltime_is_told_at_30_10_and_1_minute_and_then_ends() {
        let start = Instant::now();
        let mut limits = Limits::new(2 * H, &order(None, None), start);
        let news = lives(&mut limits, start, Duration::ZERO, 2 * H, Some(BUSY));
        let told = [30, 10, 1].map(|n| (2 * H - n * MIN, warn(EndCause::Walltime, n * MIN)));
        let end = (2 * H, News::End { cause: EndCause::Walltime, span: 2 * H });
        assert_eq!(news, [told.as_slice(), &[end]].concat());
    }

    #[test]
    fn a_silent_kernel_that_computes_for_4_hours_is_not_idle_and_an_idle_one_is() {
        let start = Instant::now();
        let mut busy = Limits::new(24 * H, &order(Some(H), None), start);
        assert_eq!(lives(&mut busy, start, Duration::ZERO, 4 * H, Some(BUSY)), []);
        let news = lives(&mut busy, start, 4 * H + S, 6 * H, Some(QUIET));
        assert_eq!(news.last().unwrap().1, News::End { cause: EndCause::Idle, span: H });
        let mut idle = Limits::new(24 * H, &order(Some(H), None), start);
        let news = lives(&mut idle, start, Duration::ZERO, H, Some(QUIET));
        let told = [30, 10, 1].map(|n| (H - n * MIN, warn(EndCause::Idle, n * MIN)));
        assert_eq!(news, [told.as_slice(), &[(H, News::End { cause: EndCause::Idle, span: H })]].concat());
    }

    #[test]
    fn an_open_tab_alone_is_idle() {
        let start = Instant::now();
        let mut limits = Limits::new(24 * H, &order(Some(H), None), start);
        let tab = Look { connected: true, ..QUIET };
        let news = lives(&mut limits, start, Duration::ZERO, H, Some(tab));
        assert_eq!(news.last().unwrap(), &(H, News::End { cause: EndCause::Idle, span: H }));
    }

    #[test]
    fn what_cannot_be_seen_never_ends_a_server_and_hides_no_idleness() {
        let start = Instant::now();
        let mut limits = Limits::new(24 * H, &order(Some(H), Some(H)), start);
        assert_eq!(limits.see(Some(QUIET), start), []);
        assert_eq!(lives(&mut limits, start, Duration::ZERO, 5 * H, None), []);
        let seen = limits.see(Some(QUIET), start + 5 * H);
        assert_eq!(seen, [News::End { cause: EndCause::Idle, span: H }], "nothing happened meanwhile");
        let mut limits = Limits::new(24 * H, &order(Some(H), Some(H)), start);
        limits.see(Some(QUIET), start);
        let seen = limits.see(Some(Look { kernels: true, ..QUIET }), start + 5 * H);
        assert_eq!(seen, [], "something happened meanwhile");
    }

    #[test]
    fn a_server_that_took_long_to_come_up_has_all_its_time() {
        let start = Instant::now();
        let mut limits = Limits::new(24 * H, &order(Some(H), None), start);
        assert_eq!(limits.see(Some(QUIET), start + 2 * H), []);
        assert_eq!(limits.see(Some(QUIET), start + 2 * H + 29 * MIN), []);
    }

    #[test]
    fn a_warning_is_taken_back_once_and_given_again() {
        let start = Instant::now();
        let mut limits = Limits::new(24 * H, &order(Some(H), None), start);
        lives(&mut limits, start, Duration::ZERO, 35 * MIN, Some(QUIET));
        let active = Some(Look { others: true, ..QUIET });
        assert_eq!(limits.see(active, start + 36 * MIN), [News::TakenBack(EndCause::Idle)]);
        assert_eq!(limits.see(active, start + 37 * MIN), []);
        let again = limits.see(Some(QUIET), start + 67 * MIN);
        assert_eq!(again, [warn(EndCause::Idle, 30 * MIN)]);
    }

    #[test]
    fn a_late_look_tells_the_last_warning_that_is_due_and_no_other() {
        let start = Instant::now();
        let mut limits = Limits::new(24 * H, &order(Some(H), None), start);
        limits.see(Some(QUIET), start);
        let seen = limits.see(Some(QUIET), start + 55 * MIN);
        assert_eq!(seen, [News::Warn { cause: EndCause::Idle, before: 10 * MIN, left: 5 * MIN }]);
    }

    #[test]
    fn a_kernel_that_computes_alone_ends_at_its_limit_and_one_that_is_watched_does_not() {
        let start = Instant::now();
        let mut limits = Limits::new(24 * H, &order(None, Some(H)), start);
        let watched = Some(Look { connected: true, ..BUSY });
        assert_eq!(lives(&mut limits, start, Duration::ZERO, 5 * H, watched), []);
        let alone = lives(&mut limits, start, 5 * H, 6 * H + MIN, Some(BUSY));
        assert_eq!(alone.last().unwrap().1, News::End { cause: EndCause::Unattended, span: H });
    }

    #[test]
    fn a_kernel_that_is_done_takes_the_warning_back() {
        let start = Instant::now();
        let mut limits = Limits::new(24 * H, &order(None, Some(H)), start);
        lives(&mut limits, start, Duration::ZERO, 40 * MIN, Some(BUSY));
        let done = limits.see(Some(QUIET), start + 41 * MIN);
        assert_eq!(done, [News::TakenBack(EndCause::Unattended)]);
    }

    #[test]
    fn an_end_that_is_too_near_for_every_warning_is_told_shortly_before() {
        let start = Instant::now();
        let mut limits = Limits::new(50 * S, &order(None, None), start);
        assert_eq!(limits.pass(start), None);
        assert_eq!(limits.pass_due(start), start + 45 * S);
        assert_eq!(limits.pass(start + 45 * S), Some(warn(EndCause::Walltime, 5 * S)));
    }
}
