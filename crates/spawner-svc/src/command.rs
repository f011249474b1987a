//! What the program does for its arguments, and what it tells whoever typed them.
//!
//! Exit codes: 0 done or stopped when asked, 1 could not start or go on, 2 the config is wrong; `doctor` has its own.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use glidepath_svc_kit::kept::Inherited;
use glidepath_svc_kit::telemetry;
use tokio_util::sync::CancellationToken;

use crate::app::{self, surroundings};
use crate::config::Config;
use crate::http;
use crate::store::Database;

mod doctor;
mod run;
mod runs;
mod words;

/// Starts users' servers at sites, and keeps the way to them.
#[derive(Debug, Parser)]
#[command(name = "glidepath-spawner", version)]
pub struct Arguments {
    /// The config: TOML, or JSON by its extension.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// The state folder, for runs and run when there is no config that reads.
    #[arg(long, value_name = "DIR", global = true)]
    state_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Run the service until SIGTERM; then drain. Servers live on. (The default.)
    Serve,
    /// Tell everything that is wrong with the config and this machine, and start nothing.
    Check,
    /// List runs: those that live or of which something is left; works beside the service and without it.
    Runs(runs::Wanted),
    /// Tell the story of one run: states, sites, attempts, agent, end.
    Run {
        /// Its id, or as much of its beginning as tells it from others.
        id: String,
        /// As JSON, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Name what is wrong with this deployment, with remedies; works beside the service and without it.
    ///
    /// Exit codes: 0 nothing is wrong, 1 warnings, 2 errors.
    Doctor {
        /// As JSON, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Print the OpenAPI document of the API.
    Openapi,
}

const WRONG_CONFIG: u8 = 2;

/// Does it.
#[must_use]
pub fn run(arguments: Arguments) -> ExitCode {
    let inherited = Inherited::take();
    let Arguments { config, state_dir, command } = arguments;
    match command.unwrap_or(Command::Serve) {
        Command::Openapi => {
            say(&http::document());
            ExitCode::SUCCESS
        }
        Command::Runs(wanted) => match database(config.as_deref(), state_dir) {
            Ok(there) => awaited(runs::show(&there, &wanted)),
            Err(code) => code,
        },
        Command::Run { id, json } => match database(config.as_deref(), state_dir) {
            Ok(there) => awaited(run::tell(&there, &id, json)),
            Err(code) => code,
        },
        Command::Doctor { json } => awaited(doctor::tell(config.as_deref(), &inherited, json)),
        Command::Check => match load(config.as_deref()) {
            Ok((shown, config)) => awaited(check(&shown, &config, &inherited)),
            Err(code) => code,
        },
        Command::Serve => match load(config.as_deref()) {
            Ok((_, config)) => serve(config, inherited),
            Err(code) => code,
        },
    }
}

/// The config, or the code to end with once it is told what is wrong.
fn load(path: Option<&Path>) -> Result<(String, Config), ExitCode> {
    let Some(path) = path else {
        complain("name the config: glidepath-spawner --config FILE");
        return Err(ExitCode::from(WRONG_CONFIG));
    };
    Config::load(path).map(|config| (path.display().to_string(), config)).map_err(|problems| {
        complain(&problems.to_string());
        ExitCode::from(WRONG_CONFIG)
    })
}

/// The database: that of the folder that is named, or that of the config.
fn database(config: Option<&Path>, named: Option<PathBuf>) -> Result<Database, ExitCode> {
    match named {
        Some(folder) => Ok(Database::in_folder(&folder)),
        None => load(config).map(|(_, config)| Database::of(&config)),
    }
}

/// Runs a command that has to wait, on this thread.
fn awaited(work: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => {
            complain(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

async fn check(shown: &str, config: &Config, inherited: &Inherited) -> ExitCode {
    for warning in surroundings::warnings(config).iter() {
        say(&format!("warning: {}: {}\n", warning.key, warning.message));
    }
    let problems = surroundings::look(config, inherited).await;
    if problems.is_empty() {
        say(&format!("{shown} is right\n"));
        return ExitCode::SUCCESS;
    }
    complain(&problems.to_string());
    ExitCode::from(WRONG_CONFIG)
}

fn serve(config: Config, inherited: Inherited) -> ExitCode {
    telemetry::start(&config.log);
    #[cfg(feature = "crash-points")]
    if let Err(wrong) = glidepath_svc_kit::crash::arm() {
        complain(&wrong);
        return ExitCode::from(WRONG_CONFIG);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(app::run(config, inherited, CancellationToken::new())),
        Err(error) => Err(error.into()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "this is what the command is for")]
fn say(text: &str) {
    print!("{text}");
}

#[expect(clippy::print_stderr, reason = "whoever typed the command reads it; logs may not have begun")]
fn complain(text: &str) {
    eprintln!("glidepath-spawner: {text}");
}
