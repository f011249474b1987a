//! The agent: what runs inside a job, as the user's account.
//!
//! ```text
//!  dial_file ─► session ─► tunnel link ═══════════════════════════► home
//!                 │            ▲  ▲
//!                 │            │  └─ carry: streams "control" and "server", opened by home
//!                 │            └──── hub: the server's Hub API calls, opened here
//!                 ├─ launch  (the order made concrete: argv, environment, socket)
//!                 ├─ server  (start, see it listen, end it; nothing is left behind)
//!                 ├─ activity ─► limits  (what goes on in it; when it must end, and when its user is told)
//!                 ├─ ending  (why the agent ends it, in words)
//!                 └─ report  (phase, usage, last lines, at each change and every 10 s)
//! ```
//!
//! In: a dial file, then launch and stop orders over the link. Out: a running server, reports, an exit code that
//! says how it ended (`glidepath_api_types::agent::EXIT_*`). `confine` is the set-up of a process by the backend;
//! `launch_child` is the set-up of the server's own process. Both re-execute this binary instead of running code
//! between fork and exec.
//!
//! Not here: who may dial, what a batch system does, who is granted which limits, anything about Jupyter beyond the
//! launch order and the two lists that `activity` asks for.

pub mod activity;
pub mod carry;
pub mod cli;
pub mod confine;
pub mod dial_file;
pub mod ending;
pub mod events;
pub mod gpu;
pub mod hub;
pub mod launch;
pub mod launch_child;
pub mod limits;
pub mod notice;
pub mod output;
pub mod processes;
pub mod reaper;
pub mod report;
pub mod scribe;
pub mod server;
pub mod session;
pub mod usage;
