//! How much may be in flight on a lane: enough to keep its line busy, little enough to keep its queue empty.
//!
//! In: what was sent and acknowledged when. Out: a bound in bytes and the round trip. The bound is a gain times
//! delivery rate times least round trip, so a small frame never waits behind megabytes in a socket.

use std::time::{Duration, Instant};

/// The bound before anything was measured.
const FIRST_BYTES: u64 = 128 * 1024;
/// Never less than this, or a lane would stall.
const LEAST_BYTES: u64 = 32 * 1024;
/// Never more than this, whatever was measured.
const MOST_BYTES: u64 = 16 * 1024 * 1024;
/// A queue of this long at the measured rate is tolerated, up to [`SLACK_BYTES`]: schedulers are not exact.
const SLACK: Duration = Duration::from_millis(2);
const SLACK_BYTES: u64 = 512 * 1024;
/// A rate sample counts this many round trips.
const RATE_TRIPS: u32 = 10;
/// The least round trip is measured anew after this long, with a drained queue.
const TRIP_AGE: Duration = Duration::from_secs(10);
const DRAIN: Duration = Duration::from_millis(50);

/// What was known when a message left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Departure {
    pub(crate) at: Instant,
    delivered: u64,
    delivered_at: Instant,
    /// The sender had nothing more to send than the bound let through.
    limited: bool,
}

/// Measures one lane.
#[derive(Debug)]
pub(crate) struct Pace {
    delivered: u64,
    delivered_at: Instant,
    /// Bytes per second; the two halves of a sliding maximum.
    rate: [f64; 2],
    rate_turn: Instant,
    least: Option<(Duration, Instant)>,
    smoothed: Option<Duration>,
    drain_until: Option<Instant>,
}

impl Pace {
    pub(crate) fn new(now: Instant) -> Self {
        Pace {
            delivered: 0,
            delivered_at: now,
            rate: [0.0; 2],
            rate_turn: now,
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
        let (Some((least, _)), rate) = (self.least, self.rate[0].max(self.rate[1])) else {
            return FIRST_BYTES;
        };
        if rate <= 0.0 {
            return FIRST_BYTES;
        }
        let product = rate * least.as_secs_f64();
        if self.drain_until.is_some() {
            return ((product / 2.0) as u64).clamp(LEAST_BYTES, MOST_BYTES);
        }
        let slack = (rate * SLACK.as_secs_f64()).min(SLACK_BYTES as f64);
        ((product * 1.5).max(product + slack) as u64).clamp(LEAST_BYTES, MOST_BYTES)
    }

    /// A message leaves while `in_flight` bytes are on their way.
    pub(crate) fn depart(&mut self, now: Instant, in_flight: u64) -> Departure {
        if in_flight == 0 {
            self.delivered_at = now;
        }
        Departure {
            at: now,
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            limited: in_flight == 0,
        }
    }

    /// `bytes` are known to have arrived; `last` is the newest message among them, `delay` how long the other
    /// end sat on the acknowledgement.
    pub(crate) fn arrived(&mut self, now: Instant, bytes: u64, last: Departure, delay: Duration) {
        self.delivered += bytes;
        self.delivered_at = now;
        let passed = now.saturating_duration_since(last.at);
        self.trip(now, passed.saturating_sub(delay.min(passed)));
        let span = now.saturating_duration_since(last.delivered_at).max(Duration::from_micros(20));
        let sample = (self.delivered - last.delivered) as f64 / span.as_secs_f64();
        let window =
            self.smoothed.unwrap_or(Duration::from_millis(100)).max(Duration::from_millis(5)) * RATE_TRIPS;
        if now.saturating_duration_since(self.rate_turn) > window / 2 {
            self.rate_turn = now;
            // A lane with little to say must not forget what it could carry.
            if !last.limited {
                self.rate = [self.rate[1], 0.0];
            }
        }
        self.rate[1] = self.rate[1].max(sample);
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
                self.drain_until = None;
            }
            (Some((_, since)), None) if now.saturating_duration_since(since) > TRIP_AGE => {
                self.drain_until = Some(now + DRAIN + self.smoothed.unwrap_or_default());
            }
            (Some(_), Some(until)) if now >= until => {
                self.least = Some((sample, now));
                self.drain_until = None;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends through a line of `rate` bytes per second and `trip` there and back for `seconds`; answers the
    /// longest queue in the last half, in seconds, and the part of the line that was used.
    fn carry(rate: f64, trip: Duration, seconds: f64) -> (f64, f64) {
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let mut pace = Pace::new(start);
        let (mut now, mut line_free, mut in_flight, mut carried, mut worst) =
            (0.0f64, 0.0f64, 0u64, 0u64, 0.0f64);
        let mut acks: std::collections::VecDeque<(f64, u64, Departure)> = Default::default();
        while now < seconds {
            while in_flight < pace.bound() {
                let departure = pace.depart(at(now), in_flight);
                line_free = line_free.max(now) + 16_384.0 / rate;
                if now > seconds / 2.0 {
                    worst = worst.max(line_free - now);
                    carried += 16_384;
                }
                in_flight += 16_384;
                acks.push_back((line_free + trip.as_secs_f64(), 16_384, departure));
            }
            let (when, bytes, departure) = acks.pop_front().unwrap();
            now = now.max(when);
            in_flight -= bytes;
            pace.arrived(at(now), bytes, departure, Duration::ZERO);
        }
        (worst, carried as f64 / (rate * seconds / 2.0))
    }

    #[test]
    fn a_line_is_kept_busy_and_its_queue_short() {
        for (rate, trip_ms, queue_s) in
            [(25e6, 20, 0.040), (25e6, 100, 0.120), (1.25e6, 20, 0.060), (1e9, 1, 0.004)]
        {
            let (queue, used) = carry(rate, Duration::from_millis(trip_ms), 30.0);
            assert!(queue < queue_s, "a queue of {queue} s at {rate} B/s and {trip_ms} ms");
            assert!(used > 0.9, "{used} of the line used at {rate} B/s and {trip_ms} ms");
        }
    }
}
