//! The command line: what can be asked of this binary; each module says what it must be told for it.

use clap::{Parser, Subcommand};

use crate::confine::{self, ConfineArgs};
use crate::launch_child::{self, LaunchChildArgs};
use crate::session::{self, RunArgs};

/// Runs one user's server inside a job and carries its streams home over one outbound link.
#[derive(Debug, Parser)]
#[command(name = "glidepath-agent", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Dial home with the ticket of a dial file, start the server that home orders, and see it to its end.
    ///
    /// Exit codes: 0 the server ended (home was told how), 77 home refused the ticket, 78 the server could not be
    /// started, 79 home could not be reached in time, 80 home was absent for too long. 81, 82 and 83: the server was ended at
    /// its walltime, because it was idle, or because it computed for too long with nobody connected.
    Run(RunArgs),
    /// Set up a process, then become the given command. Used by the backend that starts jobs on this machine.
    ///
    /// Steps, in this order: claim, network namespace, cgroups, session, resource limits, umask, groups and uid (with
    /// no_new_privs), folder, exec. The first step that fails is told on stderr and ends it with exit code 76.
    Confine(ConfineArgs),
    /// The set-up of the server's own process; not for people.
    #[command(hide = true)]
    LaunchChild(LaunchChildArgs),
}

impl Cli {
    /// Does what was asked; the result is the exit code. `confine` and `launch-child` return only on failure.
    pub fn run(self) -> i32 {
        match self.command {
            Command::Run(args) => session::run_blocking(args),
            Command::Confine(args) => confine::main(args),
            Command::LaunchChild(args) => launch_child::main(args),
        }
    }
}
