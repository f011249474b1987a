//! The real binary against a real home end: what an agent promises to the server it runs and to the home that sent it.

#![expect(clippy::unwrap_used, reason = "this is how a test fails")]

mod ends;
mod homes;
mod house;
mod hub;
mod launch;
mod limits;
mod real;
