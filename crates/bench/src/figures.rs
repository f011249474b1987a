//! What a load program prints: one line of JSON, and only when every byte was right.

use serde_json::{Value, json};

/// Prints a line.
#[expect(clippy::print_stdout, reason = "the figure is what these programs are for")]
pub(crate) fn tell(figure: &Value) {
    println!("{figure}");
}

/// Times of many round trips, in nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct Times(Vec<u64>);

impl Times {
    pub(crate) fn add(&mut self, took: std::time::Duration) {
        self.0.push(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn join(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Microseconds at the quantiles that rows ask for. Nothing of nothing.
    pub(crate) fn quantiles(mut self) -> Value {
        self.0.sort_unstable();
        let at = |share: f64| {
            let place = (self.0.len().saturating_sub(1) as f64 * share).round() as usize;
            self.0.get(place).map(|&ns| ns as f64 / 1e3)
        };
        json!({ "p50_us": at(0.5), "p90_us": at(0.9), "p99_us": at(0.99), "max_us": at(1.0) })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn quantiles_are_of_all_that_was_added_in_any_order() {
        let (mut times, mut others) = (Times::default(), Times::default());
        (0..50).rev().for_each(|n| times.add(Duration::from_micros(n)));
        (50..=100).for_each(|n| others.add(Duration::from_micros(n)));
        times.join(others);
        assert_eq!(times.count(), 101);
        assert_eq!(
            times.quantiles(),
            json!({ "p50_us": 50.0, "p90_us": 90.0, "p99_us": 99.0, "max_us": 100.0 })
        );
        assert_eq!(Times::default().quantiles()["p50_us"], Value::Null);
    }
}
