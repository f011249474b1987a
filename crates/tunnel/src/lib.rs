//! Two ends, one link, many streams: the way home for agents behind outbound-only networks.
//!
//! ```text
//!  agent end                                                          home end
//!  dial ──TCP [──CONNECT] ──TLS ──WebSocket──► serve                      │
//!    │         HELLO, CHALLENGE, PROOF, WELCOME (handshake)             Gate
//!  Link ◄── lane ◄═══════════ frames ═══════════► lane ──► Link ◄───────┘
//!    │                                                       │
//!  Stream (AsyncRead + AsyncWrite)                         Stream
//!    │ carry                                                 │ carry
//!  the server's connection                           the user's connection
//! ```
//!
//! `proto` is the protocol as a state machine that is given frames and the time; `link` and `stream` are its
//! two faces for callers; `lane` is the shell around one socket; `home` and `dial` make lanes. The wire is
//! described in `docs/wire.md`.
//!
//! Not here: who may dial (the caller's [`home::Gate`]), what a stream's bytes mean, jobs, users, Jupyter.

mod carry;
mod connect;
pub mod dial;
#[cfg(any(test, feature = "fuzz"))]
#[doc(hidden)]
pub mod fuzz;
pub mod gulp;
pub mod home;
mod lane;
pub mod link;
mod proto;
mod proxy;
pub mod stream;
mod trust;
mod upgrade;
mod websocket;
