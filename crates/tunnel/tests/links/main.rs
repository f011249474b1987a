//! Two real ends over real sockets.
#![expect(clippy::unwrap_used, clippy::panic, reason = "the helpers of tests may fail as tests do")]

mod carry;
mod door;
mod house;
mod passage;
mod recover;
mod spread;
mod way;
