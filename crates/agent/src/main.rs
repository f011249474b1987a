//! `glidepath-agent`: reads the command line and hands over.

use clap::Parser;
use glidepath_agent::cli::Cli;

/// musl's own allocator gives every large block back to the kernel and asks for it again: bulk cost this end half as much
/// again.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() {
    std::process::exit(Cli::parse().run());
}
