//! How many lanes a link should have: few at rest, more while bulk goes a long way and more of them carry more.
//!
//! Over a long way with loss one TCP connection is a trap: everything that shares it waits for the lost segment, and its
//! window collapses. There every further lane carries as much again. Where the line is the limit, further lanes carry
//! nothing more; then two stay, one for bulk and one for all that is small. Given the time and what moved; no clock.

use std::time::Duration;

use tokio::time::Instant;

/// A way shorter than this recovers from a loss before anybody notices.
const LONG_WAY: Duration = Duration::from_millis(5);
/// Bytes per second that are bulk.
const BULK: f64 = 100e3;
/// Between two looks, with bulk and without.
const LOOK_BUSY: Duration = Duration::from_millis(500);
const LOOK_IDLE: Duration = Duration::from_secs(2);
/// Bulk that lasts for so many looks gets its first lanes.
const BUSY_LOOKS: u32 = 2;
/// Lanes that are added at first. Where they carry more, all others follow at once: from there on the difference that
/// lanes make is a large one, and no noise is taken for it.
const FIRST: usize = 3;
/// A lane needs so long to show what it carries.
const SETTLE: Duration = Duration::from_secs(1);
/// More lanes must carry more by this part to be kept.
const WORTH: f64 = 1.1;
/// Lanes without bulk go after this.
const REST: Duration = Duration::from_secs(10);
/// After lanes were no help they are not tried again for so long.
const NO_HELP: Duration = Duration::from_secs(30);

/// Decides it.
#[derive(Debug)]
pub(super) struct Spread {
    least: usize,
    most: usize,
    wanted: usize,
    looked: Instant,
    moved: u64,
    busy_looks: u32,
    busy_at: Instant,
    /// What was carried before the last lanes were added, in bytes per second.
    before: Option<f64>,
    /// Since when all wanted lanes are up.
    settled: Option<Instant>,
    not_before: Instant,
}

impl Spread {
    pub(super) fn new(least: usize, most: usize, now: Instant) -> Self {
        Spread {
            least,
            most: most.max(least),
            wanted: least,
            looked: now,
            moved: 0,
            busy_looks: 0,
            busy_at: now,
            before: None,
            settled: None,
            not_before: now,
        }
    }

    pub(super) fn wanted(&self) -> usize {
        self.wanted
    }

    /// When to look; `None` when there is nothing to decide.
    pub(super) fn due(&self) -> Option<Instant> {
        let pause = if self.busy_looks > 0 { LOOK_BUSY } else { LOOK_IDLE };
        (self.most > self.least).then_some(self.looked + pause)
    }

    /// `moved` bytes have gone over the link so far, over `good` lanes now.
    pub(super) fn look(&mut self, now: Instant, moved: u64, rtt: Option<Duration>, good: usize) {
        let span = now.saturating_duration_since(self.looked).as_secs_f64().max(1e-3);
        let rate = moved.saturating_sub(self.moved) as f64 / span;
        (self.looked, self.moved) = (now, moved);
        if rate < BULK {
            self.busy_looks = 0;
            if now.saturating_duration_since(self.busy_at) > REST {
                (self.wanted, self.before, self.settled) = (self.least, None, None);
            }
            return;
        }
        self.busy_looks += 1;
        self.busy_at = now;
        if good < self.wanted {
            self.settled = None;
            return;
        }
        let settled = *self.settled.get_or_insert(now);
        match self.before {
            None if self.wanted == self.least => {
                let is_long = rtt.is_some_and(|rtt| rtt >= LONG_WAY);
                if is_long && self.busy_looks > BUSY_LOOKS && now >= self.not_before {
                    self.grow(rate);
                }
            }
            None => {}
            Some(_) if now.saturating_duration_since(settled) < SETTLE => {}
            Some(before) if rate > before * WORTH => self.grow(rate),
            Some(_) => {
                self.before = None;
                self.not_before = now + NO_HELP;
                // The last lanes were no help; if the first ones were none, bulk keeps a lane apart from small things.
                let first = self.least + FIRST;
                self.wanted = if self.wanted > first { first } else { self.least.max(2) };
            }
        }
    }

    fn grow(&mut self, rate: f64) {
        self.before = (self.wanted < self.most).then_some(rate);
        self.wanted = if self.wanted == self.least { (self.least + FIRST).min(self.most) } else { self.most };
        self.settled = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For so many seconds a line that carries `rate(lanes)` bytes per second; lanes come up at once.
    fn carry(
        spread: &mut Spread,
        from: Instant,
        for_s: u64,
        rtt_ms: u64,
        rate: impl Fn(usize) -> f64,
    ) -> Instant {
        let (mut now, mut moved, end) = (from, spread.moved as f64, from + Duration::from_secs(for_s));
        while let Some(due) = spread.due().filter(|due| *due < end) {
            let next = due.max(now);
            moved += rate(spread.wanted()) * (next - now).as_secs_f64();
            now = next;
            let good = spread.wanted();
            spread.look(now, moved as u64, Some(Duration::from_millis(rtt_ms)), good);
        }
        end
    }

    #[test]
    fn where_loss_is_the_limit_lanes_grow_to_the_most_and_go_when_bulk_is_over() {
        let start = Instant::now();
        let mut spread = Spread::new(1, 10, start);
        let lossy = |lanes: usize| 1.6e6 * lanes.saturating_sub(1).max(1) as f64;
        let now = carry(&mut spread, start, 15, 20, lossy);
        assert_eq!(spread.wanted(), 10);
        let now = carry(&mut spread, now, 9, 20, |_| 0.0);
        assert_eq!(spread.wanted(), 10, "a pause is no end");
        carry(&mut spread, now, 5, 20, |_| 0.0);
        assert_eq!(spread.wanted(), 1);
    }

    #[test]
    fn where_the_line_is_the_limit_two_stay() {
        let start = Instant::now();
        let mut spread = Spread::new(1, 10, start);
        let now = carry(&mut spread, start, 10, 20, |_| 24e6);
        assert_eq!(spread.wanted(), 2);
        carry(&mut spread, now, 60, 20, |_| 24e6);
        assert_eq!(spread.wanted(), 2, "not tried again while the same bulk goes on");
    }

    #[test]
    fn growing_ends_where_it_is_no_help_any_more() {
        let start = Instant::now();
        let mut spread = Spread::new(1, 10, start);
        carry(&mut spread, start, 20, 100, |lanes| 1e6 * lanes.min(4) as f64);
        assert_eq!(spread.wanted(), 4);
    }

    #[test]
    fn a_short_way_a_short_bulk_and_small_things_keep_one() {
        let start = Instant::now();
        let mut spread = Spread::new(1, 10, start);
        let now = carry(&mut spread, start, 10, 1, |_| 1e9);
        assert_eq!(spread.wanted(), 1, "near");
        let now = carry(&mut spread, now, 10, 20, |_| 50e3);
        assert_eq!(spread.wanted(), 1, "small");
        let now = carry(&mut spread, now, 3, 20, |_| 5e6);
        assert_eq!(spread.wanted(), 1, "short");
        carry(&mut spread, now, 30, 20, |_| 0.0);
        assert_eq!(spread.wanted(), 1);
        assert_eq!(Spread::new(2, 2, start).due(), None);
    }
}
