//! The command line: what can be asked of this binary, and which module does it.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::confine::{self, RlimitSpec};
use crate::{launch_child, session};

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
    /// started, 79 home could not be reached in time, 80 home was absent for too long.
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

/// See [`session::run`].
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The dial file (JSON). It must belong to this account with mode 0600; it is removed once read.
    #[arg(long, value_name = "PATH")]
    pub dial_file: PathBuf,
    /// The server's home folder [default: $HOME, else what the account database says].
    #[arg(long, value_name = "DIR")]
    pub home: Option<PathBuf>,
    /// Folder for the server's socket, mode 0700, short enough for a path of 100 bytes [default: a fresh folder below
    /// $XDG_RUNTIME_DIR, else below /tmp].
    #[arg(long, value_name = "DIR")]
    pub socket_dir: Option<PathBuf>,
    /// Folder for the server's log [default: the dial file's folder].
    #[arg(long, value_name = "DIR")]
    pub log_dir: Option<PathBuf>,
}

/// See [`confine::confine`].
#[derive(Debug, Args)]
pub struct ConfineArgs {
    /// Remove this file first of all; when it is not there any more, the start was revoked and nothing is done.
    #[arg(long, value_name = "PATH")]
    pub claim: Option<PathBuf>,
    /// Enter this network namespace, such as /run/netns/NAME.
    #[arg(long, value_name = "PATH")]
    pub network_namespace: Option<PathBuf>,
    /// Join this cgroup: a folder that holds cgroup.procs. May be repeated.
    #[arg(long, value_name = "DIR")]
    pub cgroup: Vec<PathBuf>,
    /// Limit a resource, such as nofile=4096 or as=2147483648 (soft and hard), or core=0:unlimited. May be repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    pub rlimit: Vec<RlimitSpec>,
    /// Start a new session, so that signals of this terminal or group do not reach the command.
    #[arg(long)]
    pub new_session: bool,
    /// File mode mask, octal, such as 077.
    #[arg(long, value_name = "MASK", value_parser = confine::parse_umask)]
    pub umask: Option<u32>,
    /// Account to become; never 0.
    #[arg(long, value_name = "UID", requires = "gid")]
    pub uid: Option<u32>,
    /// Its group; never 0.
    #[arg(long, value_name = "GID", requires = "uid")]
    pub gid: Option<u32>,
    /// Its further groups, separated by commas; without it there are none.
    #[arg(long, value_name = "GID,...", value_delimiter = ',', requires = "uid")]
    pub groups: Vec<u32>,
    /// Folder to start in.
    #[arg(long, value_name = "DIR")]
    pub chdir: Option<PathBuf>,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// See [`launch_child::become_server`].
#[derive(Debug, Args)]
pub struct LaunchChildArgs {
    /// Pid of the agent.
    #[arg(long)]
    pub parent: i32,
    /// Folder to start in; made when missing.
    #[arg(long)]
    pub chdir: PathBuf,
    /// The server's command.
    #[arg(last = true, required = true)]
    pub command: Vec<OsString>,
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
