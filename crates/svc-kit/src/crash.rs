//! Points at which a test kills the service, and nothing at all in a build without the feature `crash-points`.
//!
//! A point stands before and after every write to the store and every act on the outside. The tests read the points
//! from the sources, so that a new one is covered by being there. [`arm`] makes one of them deadly: the process ends
//! there by SIGKILL, as it does when a machine runs out of memory; no destructor runs, nothing is flushed.

/// Dies here when a test asked for this point.
#[inline]
pub fn point(name: &'static str) {
    #[cfg(feature = "crash-points")]
    fail::fail_point!(name);
    #[cfg(not(feature = "crash-points"))]
    let _ = name;
}

/// The variable that names the deadly point, as `NAME` or `NAME#N` for the Nth time that it is passed.
#[cfg(feature = "crash-points")]
pub const VARIABLE: &str = "GLIDEPATH_DIE_AT";

/// Makes the point deadly that [`VARIABLE`] names, if it names one.
#[cfg(feature = "crash-points")]
pub fn arm() -> Result<(), String> {
    use std::sync::atomic::{AtomicU32, Ordering};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    let Ok(told) = std::env::var(VARIABLE) else { return Ok(()) };
    let (name, passes) = match told.rsplit_once('#') {
        Some((name, count)) => {
            (name, count.parse::<u32>().map_err(|_| format!("{VARIABLE}: {count:?} is no number"))?)
        }
        None => (told.as_str(), 1),
    };
    let left = AtomicU32::new(passes.max(1));
    fail::cfg_callback(name, move || {
        if left.fetch_sub(1, Ordering::SeqCst) == 1 {
            let _ = kill(Pid::this(), Signal::SIGKILL); // does not return when it succeeds
            std::thread::park(); // the signal takes the other threads first
        }
    })
    .map_err(|why| format!("{VARIABLE}: {why}"))
}
