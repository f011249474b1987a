//! Tells the user, before the agent acts, that the server will be ended.
//!
//! A notice goes to the server's log, and to a small JSON file whose path the server finds in `GLIDEPATH_NOTICE_FILE`:
//! `{"text": …, "ends_at": <unix seconds>}`, replaced as a whole, removed when it holds no more.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::output::Output;

/// Name of the file in the job's folder.
pub const NOTICE_NAME: &str = "notice.json";

/// Where notices go.
pub struct Notices {
    output: Output,
    file: Option<PathBuf>,
}

impl Notices {
    /// Notices into the log, and into the file when there is a place for one.
    pub fn new(output: Output, file: Option<PathBuf>) -> Self {
        Notices { output, file }
    }

    /// Says that the server ends in so long.
    pub fn warn(&self, text: &str, ends_in: Duration) {
        self.output.say(text);
        let ends_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + ends_in;
        let notice = serde_json::json!({ "text": text, "ends_at": ends_at.as_secs() });
        if let Some(path) = &self.file
            && let Err(error) = replace(path, notice.to_string().as_bytes())
        {
            tracing::warn!(path = %path.display(), %error, "the notice is in the server's log only");
        }
    }

    /// Says something that is no warning.
    pub fn say(&self, text: &str) {
        self.output.say(text);
    }

    /// Takes the warning back.
    pub fn clear(&self, text: &str) {
        self.output.say(text);
        if let Some(path) = &self.file {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?.write_all(text)?;
    std::fs::rename(fresh, path)
}
