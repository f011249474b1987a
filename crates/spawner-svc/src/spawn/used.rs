//! Tells an agent that a person used its server in a way that the server itself does not tell: saved a file, say.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::arrivals::upstream::Upstream;

/// Between two words of it.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// What was told so far.
pub(super) struct Used {
    told: u64,
    again_at: Instant,
}

impl Default for Used {
    fn default() -> Self {
        Self { told: 0, again_at: Instant::now() }
    }
}

impl Used {
    /// Waits until there is something to tell; gives the count that is told then. May be dropped half way.
    pub(super) async fn next(&self, upstream: Option<&Upstream>) -> u64 {
        let Some(upstream) = upstream else { return std::future::pending().await };
        sleep_until(self.again_at).await;
        upstream.uses_other_than(self.told).await
    }

    /// It is told.
    pub(super) fn told(&mut self, uses: u64) {
        self.told = uses;
        self.later();
    }

    /// Nobody took it, or has just: not again at once.
    pub(super) fn later(&mut self) {
        self.again_at = Instant::now() + TELL_EVERY;
    }
}
