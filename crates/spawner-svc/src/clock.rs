//! The wall clock, for everything that is compared after a restart.

use std::time::{SystemTime, UNIX_EPOCH};

use glidepath_domain::run::Moment;

/// Now.
#[must_use]
pub fn now() -> Moment {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Moment(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
