//! For tests only: waiting with a deadline, fakes for faults, a proxy that breaks connections on purpose.
//!
//! Nothing in here is part of a shipped binary.

pub mod backend;
pub mod chaos;
pub mod wait;
