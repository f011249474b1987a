//! `glidepath-bench`: the programs that the benchmarks of `bench/` start.
//!
//! A benchmark is a Python module in `bench/rows`; it starts these programs and the peers that they are compared with,
//! and prints what was measured.
#![expect(
    clippy::disallowed_methods,
    reason = "programs that run until they are killed: their tasks end with them"
)]

mod bulk;
mod echo;
mod figures;
mod link;
mod origin;
mod pattern;
mod relay;
mod requests;
mod wide;
mod wire;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Programs for `make bench`.
#[derive(Debug, Parser)]
#[command(name = "glidepath-bench", version)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Home end of one link: every connection to `--public` becomes a stream.
    Home(link::HomeArgs),
    /// Agent end of links: every stream becomes a connection to `--origin`.
    Agent(link::AgentArgs),
    /// A server that costs little, behind the agent.
    Origin(origin::OriginArgs),
    /// A relay that only copies.
    Relay(relay::RelayArgs),
    /// Small requests, each answer checked.
    Requests(requests::RequestsArgs),
    /// Bodies down or up, each byte checked.
    Bulk(bulk::BulkArgs),
    /// Round trips of WebSocket messages, alone or beside bulk.
    Echo(echo::EchoArgs),
    /// An echo beside readers that stopped reading.
    Stall(echo::StallArgs),
    /// WebSockets that are open and say nothing.
    Hold(echo::HoldArgs),
    /// A line of some rate, delay and loss between two network namespaces.
    Wide(wide::WideArgs),
}

#[expect(clippy::print_stderr, reason = "a program of the command line says why it ends")]
fn main() -> ExitCode {
    let done = match Args::parse().what {
        What::Home(args) => link::home(&args),
        What::Agent(args) => link::agent(&args),
        What::Origin(args) => on_one_thread(origin::origin(&args)),
        What::Relay(args) => on_one_thread(relay::relay(&args)),
        What::Requests(args) => on_one_thread(requests::requests(&args)),
        What::Bulk(args) => on_one_thread(bulk::bulk(&args)),
        What::Echo(args) => on_one_thread(echo::echo(&args)),
        What::Stall(args) => on_one_thread(echo::stall(&args)),
        What::Hold(args) => on_one_thread(echo::hold(&args)),
        What::Wide(args) => on_one_thread(wide::wide(&args)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("glidepath-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Load takes no more of the machine than it must. It looks for what arrived more often than tokio does by itself.
fn on_one_thread(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.event_interval(4).enable_all().build()?.block_on(work)
}
