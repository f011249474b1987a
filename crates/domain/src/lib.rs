//! The ground floor: values, parsing and pure decisions. No clock, no network, no runtime.
//!
//! ```text
//! names ──► resources ──► request ─┐
//!   │                              ├─► placement   (which site, and why)
//!   └─────► site, snapshot ────────┘
//!   └─────► policy ─► site           (how long a server may live, or be idle)
//!   └─────► run                        (one life of a server: states, attempts, what to do next)
//!   └─────► backend                    (what every batch system promises)
//! ```
//!
//! Import a name from the module that owns it.

pub mod backend;
pub mod names;
pub mod placement;
pub mod policy;
pub mod request;
pub mod resources;
pub mod run;
pub mod site;
