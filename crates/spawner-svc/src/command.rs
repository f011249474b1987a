//! What the program does for its arguments, and what it tells whoever typed them.
//!
//! Exit codes: 0 done or stopped when asked, 1 could not start or go on, 2 the config is wrong.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use glidepath_svc_kit::telemetry;
use tokio_util::sync::CancellationToken;

use crate::app::{self, surroundings};
use crate::config::Config;
use crate::http;

/// Starts users' servers at sites, and keeps the way to them.
#[derive(Debug, Parser)]
#[command(name = "glidepath-spawner", version)]
pub struct Arguments {
    /// The config: TOML, or JSON by its extension.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Command {
    /// Run the service until SIGTERM; then drain. Servers live on. (The default.)
    Serve,
    /// Tell everything that is wrong with the config and this machine, and start nothing.
    Check,
    /// Print the OpenAPI document of the API.
    Openapi,
}

const WRONG_CONFIG: u8 = 2;

/// Does it.
#[must_use]
pub fn run(arguments: Arguments) -> ExitCode {
    let command = arguments.command.unwrap_or(Command::Serve);
    if matches!(command, Command::Openapi) {
        say(&http::document());
        return ExitCode::SUCCESS;
    }
    let Some(path) = arguments.config else {
        complain("name the config: glidepath-spawner --config FILE");
        return ExitCode::from(WRONG_CONFIG);
    };
    let config = match Config::load(&path) {
        Ok(config) => config,
        Err(problems) => {
            complain(&problems.to_string());
            return ExitCode::from(WRONG_CONFIG);
        }
    };
    match command {
        Command::Check => check(&path.display().to_string(), &config),
        Command::Serve | Command::Openapi => serve(config),
    }
}

fn check(shown: &str, config: &Config) -> ExitCode {
    for warning in surroundings::warnings(config).iter() {
        say(&format!("warning: {}: {}\n", warning.key, warning.message));
    }
    let problems = surroundings::look(config);
    if problems.is_empty() {
        say(&format!("{shown} is right\n"));
        return ExitCode::SUCCESS;
    }
    complain(&problems.to_string());
    ExitCode::from(WRONG_CONFIG)
}

fn serve(config: Config) -> ExitCode {
    telemetry::start(&config.log);
    #[cfg(feature = "crash-points")]
    if let Err(wrong) = glidepath_svc_kit::crash::arm() {
        complain(&wrong);
        return ExitCode::from(WRONG_CONFIG);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(app::run(config, CancellationToken::new())),
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
