//! Batch systems behind one trait, [`glidepath_domain::backend::Backend`].
//!
//! Each has three parts: *render* (pure: what a job will look like), *call* (the world), *read back* (pure: what the
//! world's answer means). Who decides which backend gets a job, and when it ends, is the service above.
//!
//! ```text
//! process      children of the service on this machine
//! contract     the promises of the trait as tests, which every backend passes (feature `contract`)
//! ```

#[cfg(feature = "contract")]
pub mod contract;
#[cfg(feature = "process")]
pub mod process;
