//! A rate with room for a burst: a bucket that starts full, loses one drop per act and refills steadily.

use std::time::Duration;

use tokio::time::Instant;

/// How much a bucket holds, and how fast it refills.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    pub(super) burst: f64,
    pub(super) per_s: f64,
}

#[derive(Debug)]
pub(super) struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    pub(super) fn full(rate: Rate, now: Instant) -> Self {
        Self { left: rate.burst, at: now }
    }

    /// Takes one drop; when there is none, says how long until there is.
    pub(super) fn take(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        self.left = self.level(rate, now);
        self.at = now;
        if self.left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - self.left) / rate.per_s));
        }
        self.left -= 1.0;
        Ok(())
    }

    pub(super) fn is_full(&self, rate: Rate, now: Instant) -> bool {
        self.level(rate, now) >= rate.burst
    }

    fn level(&self, rate: Rate, now: Instant) -> f64 {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * rate.per_s;
        (self.left + gained).min(rate.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let rate = Rate { burst: 3.0, per_s: 2.0 };
        let start = Instant::now();
        let mut bucket = Bucket::full(rate, start);
        assert_eq!((0..5).filter(|_| bucket.take(rate, start).is_ok()).count(), 3);
        assert_eq!(bucket.take(rate, start), Err(Duration::from_millis(500)));
        assert_eq!(bucket.take(rate, start + Duration::from_millis(500)), Ok(()));
        assert!(!bucket.is_full(rate, start + Duration::from_secs(1)));
        assert!(bucket.is_full(rate, start + Duration::from_secs(9)));
    }
}
