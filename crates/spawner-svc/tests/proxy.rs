//! The relay, the link listener and the Hub API's way home, over real sockets and a real tunnel.

#![expect(clippy::unwrap_used, clippy::panic, reason = "this is how a test fails, also in its scaffolding")]

#[path = "proxy/house.rs"]
mod house;
#[path = "proxy/recorder.rs"]
mod recorder;
#[path = "proxy/server.rs"]
mod server;

#[path = "proxy/cuts.rs"]
mod cuts;
#[path = "proxy/edges.rs"]
mod edges;
#[path = "proxy/failures.rs"]
mod failures;
#[path = "proxy/hostile_server.rs"]
mod hostile_server;
#[path = "proxy/hub_calls.rs"]
mod hub_calls;
#[path = "proxy/hub_tricks.rs"]
mod hub_tricks;
#[path = "proxy/knocking.rs"]
mod knocking;
#[path = "proxy/noted.rs"]
mod noted;
#[path = "proxy/passing.rs"]
mod passing;
#[path = "proxy/smuggling.rs"]
mod smuggling;
