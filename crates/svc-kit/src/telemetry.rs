//! Logs to standard error, as text for people or JSON for machines. One event is one line in both: what others wrote
//! cannot look like an event of its own.

use std::fmt::Write as _;
use std::io;

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
    let builder = tracing_subscriber::fmt().with_env_filter(filter);
    let started = match log.format {
        Format::Text => {
            let builder = builder.with_writer(|| OneLine(io::stderr()));
            // No colours: what others wrote could not be told from the formatter's own escapes.
            builder.with_ansi(false).finish().try_init()
        }
        // JSON has no line break within a document.
        Format::Json => builder.with_writer(io::stderr).json().flatten_event(true).finish().try_init(),
    };
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
}

/// Takes one event per write, as the formatter gives them, and passes it on as one line.
struct OneLine<W>(W);

impl<W: io::Write> io::Write for OneLine<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        self.0.write_all(one_line(&text).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The text with its last line break only. Whatever else some reader takes for the end of a line, and what would turn the
/// order of letters around or speak to a terminal, is written out.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.strip_suffix('\n').unwrap_or(text).chars() {
        let breaks = matches!(c, '\u{2028}' | '\u{2029}');
        let turns = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if (c.is_control() && c != '\t') || breaks || turns {
            let _ = write!(line, "{}", c.escape_default()); // into a String: never fails
        } else {
            line.push(c);
        }
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    const FORGED: &str =
        "calm\n2026-01-01T00:00:00Z ERROR all is lost\r\u{2028}\u{85}\u{202e}\u{1b}[31mred\0";

    /// Where events go.
    #[derive(Clone, Default)]
    struct Sheet(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sheet {
        fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(piece)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: Format) -> String {
        let sheet = Sheet::default();
        let events = || {
            let error = io::Error::other(FORGED);
            tracing::warn!(%error, why = FORGED, "said: {FORGED}");
        };
        let to = sheet.clone();
        let builder = tracing_subscriber::fmt().with_ansi(false);
        match format {
            Format::Text => {
                let text = builder.with_writer(move || OneLine(to.clone())).finish();
                tracing::subscriber::with_default(text, events);
            }
            Format::Json => {
                let json = builder.with_writer(move || to.clone()).json().flatten_event(true).finish();
                tracing::subscriber::with_default(json, events);
            }
        }
        let bytes = sheet.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn an_event_is_one_line_whatever_others_wrote_into_it() {
        for format in [Format::Text, Format::Json] {
            let log = logged(format);
            assert!(log.ends_with('\n') && log.matches("all is lost").count() == 3, "{log}");
            let text_only = ['\u{85}', '\u{2028}', '\u{202e}']; // JSON's readers break lines at line feeds
            let breaks =
                |c: &char| ['\n', '\r'].contains(c) || (format == Format::Text && text_only.contains(c));
            assert_eq!(log.chars().filter(breaks).count(), 1, "{log:?}");
            assert!(!log.contains(['\u{1b}', '\0']), "{log:?}");
        }
        let json: serde_json::Value = serde_json::from_str(&logged(Format::Json)).unwrap();
        assert_eq!(json["why"], FORGED, "nothing is lost for machines");
    }

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
