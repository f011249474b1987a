//! How much may be in flight on a lane: enough to keep its line busy, little enough to keep its queue empty.
//!
//! In: what was sent and acknowledged when. Out: a bound in bytes and the round trip. Whoever sends more than the line
//! carries only makes its queue longer, and the round trip with it. So, once a round trip, the bound becomes what it
//! would have to be for a queue of [`QUEUE`] and no more, as FAST TCP does (Wei, Jin, Low, Hegde: FAST TCP, 2006): a small
//! frame never waits behind megabytes in a socket, and no queue on the way overflows.

use std::time::{Duration, Instant};

/// The bound before anything was measured.
const FIRST_BYTES: f64 = 128.0 * 1024.0;
/// Never less than this, or a lane would stall.
const LEAST_BYTES: f64 = 32.0 * 1024.0;
/// Never more than this, whatever was measured.
const MOST_BYTES: f64 = 16.0 * 1024.0 * 1024.0;
/// A message holds this much whatever the window is.
const LEAST_MESSAGE_BYTES: u64 = 16 * 1024;
const MESSAGE: Duration = Duration::from_millis(1);
/// The queue that a lane aims for, as the time that its line needs for it. Less, and every hiccup of a scheduler is taken
/// for a queue.
const QUEUE: Duration = Duration::from_millis(3);
/// In bytes at least, as fewer do not keep a line busy, and at most.
const QUEUE_LEAST_BYTES: f64 = 16.0 * 1024.0;
const QUEUE_MOST_BYTES: f64 = 256.0 * 1024.0;
/// On a way shorter than this schedulers, not queues, make round trips long: the queue is always the longest there.
const NEAR: Duration = Duration::from_millis(2);
/// What a line carried counts for so many round trips, and so long.
const RATE_ROUNDS: u32 = 16;
const RATE_AGE: Duration = Duration::from_millis(250);
/// After so many round trips without a queue the window grows by so much at once.
const EMPTY_ROUNDS: u32 = 5;
const RISE: f64 = 1.25;
/// The least round trip is measured anew after this long, with a drained queue.
const TRIP_AGE: Duration = Duration::from_secs(10);
const DRAIN: Duration = Duration::from_millis(50);
/// The part of the window that a drain leaves: the queue is no longer than the rest.
const DRAINED: f64 = 0.75;

/// What was known when a message left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Departure {
    pub(crate) at: Instant,
}

/// Measures one lane.
#[derive(Debug)]
pub(crate) struct Pace {
    /// The bound; a drain leaves a part of it.
    window: f64,
    /// Below this the window doubles every round trip, until a queue is seen: at first, after a drain, and by a part when
    /// there is no queue.
    rise_to: f64,
    round: Round,
    /// Bytes per second; the two halves of a sliding maximum.
    rate: [f64; 2],
    rate_since: Instant,
    /// In a row, with the window full and no queue to speak of.
    empty_rounds: u32,
    least: Option<(Duration, Instant)>,
    smoothed: Option<Duration>,
    drain_until: Option<Instant>,
}

/// What was seen in one round trip.
#[derive(Debug)]
struct Round {
    since: Instant,
    arrived: u64,
    least: Duration,
    /// The bound held something back.
    is_full: bool,
}

impl Round {
    fn new(now: Instant) -> Self {
        Round { since: now, arrived: 0, least: Duration::MAX, is_full: false }
    }
}

impl Pace {
    pub(crate) fn new(now: Instant) -> Self {
        Pace {
            window: FIRST_BYTES,
            rise_to: MOST_BYTES,
            round: Round::new(now),
            rate: [0.0; 2],
            rate_since: now,
            empty_rounds: 0,
            least: None,
            smoothed: None,
            drain_until: None,
        }
    }

    /// The smoothed round trip.
    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.smoothed
    }

    /// How many bytes may be in flight.
    pub(crate) fn bound(&self) -> u64 {
        let part = if self.drain_until.is_some() { DRAINED } else { 1.0 };
        (self.window * part).clamp(LEAST_BYTES, MOST_BYTES) as u64
    }

    /// The most that one message should hold: what the line carries in a moment. It has arrived when its last byte has,
    /// and that must not look like a queue.
    pub(crate) fn message_bytes(&self) -> u64 {
        ((self.best() * MESSAGE.as_secs_f64()) as u64).max(LEAST_MESSAGE_BYTES)
    }

    /// A message leaves while `in_flight` bytes are on their way.
    pub(crate) fn depart(&mut self, now: Instant, in_flight: u64) -> Departure {
        self.round.is_full |= in_flight as f64 >= self.window / 2.0;
        Departure { at: now }
    }

    /// `bytes` are known to have arrived; `last` is the newest message among them, `delay` how long the other
    /// end sat on the acknowledgement.
    pub(crate) fn arrived(&mut self, now: Instant, bytes: u64, last: Departure, delay: Duration) {
        let passed = now.saturating_duration_since(last.at);
        let trip = passed.saturating_sub(delay.min(passed));
        self.trip(now, trip);
        self.round.arrived += bytes;
        self.round.least = self.round.least.min(trip);
        if self.round.is_full && self.drain_until.is_none() && self.window < self.rise_to {
            self.window = (self.window + bytes as f64).min(self.rise_to);
        }
        if last.at >= self.round.since {
            let round = std::mem::replace(&mut self.round, Round::new(now));
            self.turn(now, &round);
        }
    }

    /// The most that the line carried lately, in bytes per second.
    fn best(&self) -> f64 {
        self.rate[0].max(self.rate[1])
    }

    /// A round trip is over: what left in it has been heard of.
    fn turn(&mut self, now: Instant, round: &Round) {
        let Some((least, _)) = self.least else { return };
        let span = now.saturating_duration_since(round.since).max(Duration::from_micros(20));
        let rate = round.arrived as f64 / span.as_secs_f64();
        let age = (self.smoothed.unwrap_or_default() * RATE_ROUNDS / 2).max(RATE_AGE);
        if now.saturating_duration_since(self.rate_since) > age {
            (self.rate_since, self.rate) = (now, [self.rate[1], 0.0]);
        }
        self.rate[1] = self.rate[1].max(rate);
        let queue = match least < NEAR {
            true => QUEUE_MOST_BYTES,
            false => (self.best() * QUEUE.as_secs_f64()).clamp(QUEUE_LEAST_BYTES, QUEUE_MOST_BYTES),
        };
        let trip = round.least.max(least).max(Duration::from_micros(1));
        let queued = rate * (trip - least).as_secs_f64();
        // Longer round trips vary more: what ends a rise is what HyStart takes for a queue (RFC 9406).
        let later = (least / 8).clamp(Duration::from_millis(4), Duration::from_millis(16));
        if trip > least + later {
            self.rise_to = 0.0;
        }
        if self.window < self.rise_to || self.drain_until.is_some() {
            return;
        }
        // The line carries more than it did, or the rise ended by a hiccup.
        let is_empty = round.is_full && queued < queue / 2.0;
        self.empty_rounds = if is_empty { self.empty_rounds + 1 } else { 0 };
        if self.empty_rounds == EMPTY_ROUNDS {
            (self.empty_rounds, self.rise_to) = (0, self.window * RISE);
        }
        let aim = self.window * (least.as_secs_f64() / trip.as_secs_f64()) + queue;
        let aim = f64::midpoint(self.window, aim);
        // What is not used says nothing of what could be.
        if round.is_full || aim < self.window {
            self.window = aim.clamp(LEAST_BYTES, MOST_BYTES);
        }
    }

    /// One round trip was measured.
    pub(crate) fn trip(&mut self, now: Instant, sample: Duration) {
        let sample = sample.max(Duration::from_micros(1));
        self.smoothed = Some(match self.smoothed {
            Some(smoothed) => (smoothed * 7 + sample) / 8,
            None => sample,
        });
        match (self.least, self.drain_until) {
            (None, _) => self.least = Some((sample, now)),
            (Some((least, _)), _) if sample <= least => {
                self.least = Some((sample, now));
                self.drained();
            }
            (Some((_, since)), None) if now.saturating_duration_since(since) > TRIP_AGE => {
                self.drain_until = Some(now + DRAIN + self.smoothed.unwrap_or_default());
            }
            (Some(_), Some(until)) if now >= until => {
                self.least = Some((sample, now));
                self.drained();
            }
            _ => {}
        }
    }

    /// Goes on from what was in flight at the end of a drain, rather than pour the other half into the line at once.
    fn drained(&mut self) {
        if self.drain_until.take().is_some() {
            self.rise_to = self.window;
            self.window *= DRAINED;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends through a line of so many bytes per second and seconds there and back, both of them at some second, for
    /// `seconds`; answers the longest queue in the last half, in seconds, and the part of the line that was used.
    fn carry(rate: impl Fn(f64) -> f64, trip: impl Fn(f64) -> f64, seconds: f64) -> (f64, f64) {
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let mut pace = Pace::new(start);
        let (mut now, mut line_free, mut in_flight, mut carried, mut worst) =
            (0.0f64, 0.0f64, 0u64, 0u64, 0.0f64);
        let mut acks: std::collections::VecDeque<(f64, u64, Departure)> = Default::default();
        while now < seconds {
            while in_flight < pace.bound() {
                let departure = pace.depart(at(now), in_flight);
                line_free = line_free.max(now) + 16_384.0 / rate(now);
                if now > seconds / 2.0 {
                    worst = worst.max(line_free - now);
                    carried += 16_384;
                }
                in_flight += 16_384;
                acks.push_back((line_free + trip(now), 16_384, departure));
            }
            let (when, bytes, departure) = acks.pop_front().unwrap();
            now = now.max(when);
            in_flight -= bytes;
            pace.arrived(at(now), bytes, departure, Duration::ZERO);
        }
        (worst, carried as f64 / (rate(seconds) * seconds / 2.0))
    }

    #[test]
    fn a_line_is_kept_busy_and_its_queue_short() {
        for (rate, trip_ms, queue_s) in
            [(25e6, 20, 0.015), (25e6, 100, 0.035), (1.25e6, 20, 0.060), (1e9, 1, 0.004)]
        {
            let (queue, used) = carry(|_| rate, |_| f64::from(trip_ms) / 1e3, 30.0);
            assert!(queue < queue_s, "a queue of {queue} s at {rate} B/s and {trip_ms} ms");
            assert!(used > 0.9, "{used} of the line used at {rate} B/s and {trip_ms} ms");
        }
    }

    #[test]
    fn a_line_that_carries_more_than_before_is_found_out() {
        for trip in [0.02, 0.1] {
            let (queue, used) = carry(|now| if now < 18.0 { 6e6 } else { 25e6 }, |_| trip, 40.0);
            assert!(used > 0.9, "{used} of the line used, {trip} s there and back");
            assert!(queue < 0.05, "a queue of {queue} s, {trip} s there and back");
        }
    }

    #[test]
    fn a_hiccup_ends_no_rise_for_long() {
        let trip = |now: f64| if (0.15..0.35).contains(&now) { 0.18 } else { 0.1 };
        let (_, used) = carry(|_| 25e6, trip, 20.0);
        assert!(used > 0.9, "{used} of the line used");
    }
}
