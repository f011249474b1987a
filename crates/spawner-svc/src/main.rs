//! The program `glidepath-spawner`: reads its arguments, then leaves the rest to the library.

use std::process::ExitCode;

use clap::Parser as _;
use glidepath_spawner::command::{Arguments, run};

fn main() -> ExitCode {
    run(Arguments::parse())
}
