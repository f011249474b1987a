//! When to dial and how long each dial may take. Given the time; no clock.

use std::time::Duration;

use tokio::time::Instant;

/// A silence is young for so long: a dial every half second, each given up after two.
const YOUNG: Duration = Duration::from_secs(90);
const DIAL_EVERY: Duration = Duration::from_millis(500);
const QUICK_DIAL: Duration = Duration::from_secs(2);
/// After that: ever less often, each with more time.
const SLOW_DIAL: Duration = Duration::from_secs(15);
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// When to dial: often while the silence is young, then ever less, and never before home allows it.
#[derive(Debug)]
pub(super) struct Pace {
    silent_since: Option<Instant>,
    pub(super) next: Instant,
    not_before: Instant,
    backoff: Duration,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Pace { silent_since: Some(now), next: now, not_before: now, backoff: FIRST_BACKOFF }
    }

    /// Whether a lane is good at this moment.
    pub(super) fn note(&mut self, good: bool, now: Instant) {
        match (good, self.silent_since) {
            (true, Some(_)) => {
                self.silent_since = None;
                self.backoff = FIRST_BACKOFF;
            }
            (false, None) => {
                self.silent_since = Some(now);
                self.backoff = FIRST_BACKOFF;
                self.next = now.max(self.not_before);
            }
            _ => {}
        }
    }

    /// A dial begins: plans the next one; says how long this one may take.
    pub(super) fn dialled(&mut self, now: Instant) -> Duration {
        let young = self.silent_since.is_some_and(|since| now.saturating_duration_since(since) < YOUNG);
        if young {
            self.next = now + DIAL_EVERY.mul_f64(rand::random_range(0.8..1.2));
            QUICK_DIAL
        } else {
            self.next = now + self.backoff.mul_f64(rand::random_range(0.5..1.0));
            self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
            SLOW_DIAL
        }
    }

    pub(super) fn stay_away(&mut self, now: Instant, after: Duration) {
        self.not_before = now + after.mul_f64(rand::random_range(1.0..1.3));
        self.next = self.next.max(self.not_before);
    }

    /// Soon, but not all agents at one time.
    pub(super) fn soon(&mut self, now: Instant) {
        self.not_before = now + Duration::from_millis(rand::random_range(100..1000));
        self.next = self.not_before;
    }
}
