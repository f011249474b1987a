//! What every Glidepath service needs and none should write again. Knows no server, site or job.
//!
//! ```text
//! read, problems   a file or a body becomes a type, or a list of everything that is wrong with it
//! problem, auth    HTTP: errors as application/problem+json, bodies, bearer secrets kept as hashes
//! tasks, shutdown  every task has a name, an owner and an end
//! telemetry        logs as text or JSON
//! files, listen    private files, one lock per state folder, ports
//! kept             listeners that stay open while the service is started again
//! seats            places for connections, which those without a request give up
//! crash            where tests kill the service; nothing in a normal build
//! ```

pub mod auth;
pub mod crash;
pub mod files;
pub mod kept;
pub mod listen;
pub mod problem;
pub mod problems;
pub mod read;
pub mod seats;
pub mod shutdown;
pub mod tasks;
pub mod telemetry;
