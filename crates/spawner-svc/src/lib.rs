//! Placement, life cycle and relay of users' servers.
//!
//! ```text
//! Hub ──► http ──► spawn ──► placement, store ──► backend ──► job ──► agent
//!                    │                                                  │ dials home
//!                    └───────────► arrivals ◄───────────────────────────┘
//!                                     ▲
//! Hub's proxy ──► proxy (relay) ──────┘ finds the link by the service prefix
//! ```
//!
//! Files, from the ground up: `clock`, `config`, `notable`; `seal`, `sites`, `arrivals`, `store`, `tls`; `spawn`, `proxy` (which
//! meet only in `arrivals`); `metrics`; `http`; `app`; `doctor`; `command`; `main`. Only `app` makes a concrete backend.

pub mod app;
pub mod arrivals;
pub mod clock;
pub mod command;
pub mod config;
pub mod doctor;
pub mod http;
pub mod metrics;
pub mod notable;
pub mod proxy;
pub mod seal;
pub mod sites;
pub mod spawn;
pub mod store;
pub mod tls;
