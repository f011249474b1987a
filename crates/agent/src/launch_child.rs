//! The set-up of the server's own process: a new session, its fate tied to the agent's, its folder, then exec.
//!
//! Standard input is a pipe to the agent. It closes at the exec; when a step fails, the reason is written to it first.
//! The server itself reads from `/dev/null`. Rust's standard library clears the signal mask at the exec; a signal that
//! the agent was started with as ignored stays ignored, as anywhere.
//!
//! When the agent dies without ending its server (SIGKILL), the kernel sends the server SIGTERM: enough for Jupyter to
//! save and to end its kernels, which SIGKILL would leave behind. What stays all the same is the backend's to remove.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use glidepath_api_types::agent::EXIT_CANNOT_START;
use nix::sys::signal::Signal;

/// What `glidepath-agent launch-child` is told.
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

/// Which step failed.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// A step that should not fail.
    #[error("setting up the server's process: {step}: {source}")]
    SetUp {
        /// The call.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The agent was gone before the set-up was complete.
    #[error("the agent is gone")]
    Orphan,
    /// The folder to start in.
    #[error("entering folder {folder}: {source}")]
    Folder {
        /// As ordered.
        folder: String,
        /// What the system said.
        source: io::Error,
    },
    /// The server's command.
    #[error("starting {program}: {source}")]
    Exec {
        /// The first word of the command.
        program: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Runs [`become_server`] and tells the agent why it could not.
pub fn main(args: LaunchChildArgs) -> i32 {
    let told_at = io::stdin().as_fd().try_clone_to_owned();
    let Err(error) = become_server(args);
    match told_at {
        Ok(pipe) => drop(write!(File::from(pipe), "{error}")),
        Err(_) => drop(writeln!(io::stderr(), "glidepath-agent: {error}")),
    }
    EXIT_CANNOT_START
}

/// Returns only when a step failed.
pub fn become_server(args: LaunchChildArgs) -> Result<Infallible, ChildError> {
    let set_up = |step| move |source: nix::errno::Errno| ChildError::SetUp { step, source: source.into() };
    nix::unistd::setsid().map_err(set_up("setsid"))?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGTERM).map_err(set_up("pdeathsig"))?;
    if nix::unistd::getppid().as_raw() != args.parent {
        return Err(ChildError::Orphan);
    }
    let null = File::open("/dev/null").map_err(|source| ChildError::SetUp { step: "/dev/null", source })?;
    nix::unistd::dup2_stdin(null).map_err(set_up("stdin"))?;
    enter(&args.chdir)?;
    let mut words = args.command.into_iter();
    let program = words.next().unwrap_or_default();
    let source = Command::new(&program).args(words).exec();
    Err(ChildError::Exec { program: program.to_string_lossy().into_owned(), source })
}

fn enter(folder: &Path) -> Result<(), ChildError> {
    let failed = |source| ChildError::Folder { folder: folder.display().to_string(), source };
    std::fs::create_dir_all(folder).map_err(failed)?;
    std::env::set_current_dir(folder).map_err(failed)
}
