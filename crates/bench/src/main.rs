//! `glidepath-bench`: the programs that the benchmarks of `bench/` start.
//!
//! A benchmark is a Python module in `bench/rows`; it starts these programs and the peers that they are compared with,
//! and prints what was measured.

mod link;

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
}

#[expect(clippy::print_stderr, reason = "a program of the command line says why it ends")]
fn main() -> ExitCode {
    let done = match Args::parse().what {
        What::Home(args) => link::home(&args),
        What::Agent(args) => link::agent(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("glidepath-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
