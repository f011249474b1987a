//! What passes between the Hub's side and the servers, each way through one narrow door.
//!
//! [`relay`] carries users' requests to their servers, one listener per hub. [`hub_forward`] carries the servers'
//! own Hub API calls home. [`link`] is the door that agents knock at. Who is let in and what is reachable is known in
//! `arrivals`; nothing here knows how a run starts or ends.

mod body;
mod bucket;
mod client;
mod headers;
pub mod hub_forward;
pub mod link;
mod refusal;
pub mod relay;
mod sockets;
