//! For tests only: waiting with a deadline, fakes for faults, a proxy that breaks connections on purpose, the log.
//!
//! Nothing in here is part of a shipped binary.

pub mod backend;
pub mod chaos;
pub mod corpus;
pub mod log;
pub mod postgres;
pub mod readers;
pub mod site;
pub mod wait;
