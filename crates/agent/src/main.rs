//! `glidepath-agent`: reads the command line and hands over.

use clap::Parser;
use glidepath_agent::cli::Cli;

fn main() {
    std::process::exit(Cli::parse().run());
}
