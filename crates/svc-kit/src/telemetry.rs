//! Logs to standard error, as text for people or JSON for machines.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt as _;

/// How to log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Text or JSON.
    pub format: Format,
    /// A checked filter: `info`, `warn,glidepath_spawner=debug`.
    pub level: Level,
}

/// Shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON document per line.
    Json,
}

/// A log filter that has been parsed once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Level(String);

impl Level {
    /// Accepts a level, or a list of `target=level`.
    pub fn parse(raw: &str) -> Result<Self, String> {
        let known = |level: &str| ["trace", "debug", "info", "warn", "error", "off"].contains(&level);
        let parts_known =
            raw.split(',').all(|part| known(part.rsplit('=').next().unwrap_or_default().trim()));
        if !parts_known || EnvFilter::try_new(raw).is_err() {
            return Err(
                "must be trace, debug, info, warn, error or off, or a list like warn,hyper=off".to_owned()
            );
        }
        Ok(Self(raw.to_owned()))
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: Format::Text, level: Level("info".to_owned()) }
    }
}

/// Starts logging for the whole process. A second call changes nothing.
pub fn start(log: &Log) {
    let filter = EnvFilter::try_new(&log.level.0).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter);
    let started = match log.format {
        Format::Text => builder.with_ansi(std::io::stderr().is_terminal()).finish().try_init(),
        Format::Json => builder.json().flatten_event(true).finish().try_init(),
    };
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_a_level_and_nothing_else() {
        for good in ["info", "warn,hyper=off", "glidepath_spawner=trace"] {
            assert!(Level::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "loud", "info,", "x=loud"] {
            assert!(Level::parse(bad).is_err(), "{bad}");
        }
    }
}
