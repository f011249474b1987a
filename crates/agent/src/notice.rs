//! Tells the user, before the agent acts, that the server will be ended.
//!
//! A notice goes to the server's log; to a small JSON file whose path the server finds in `GLIDEPATH_NOTICE_FILE`:
//! `{"text": …, "ends_at": <unix seconds>}`; and to a file in the folder that the server started in, where JupyterLab's
//! file browser shows it whatever the user's image holds. Files are replaced as a whole, and removed when they hold no more.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::output::Output;

/// Name of the file in the job's folder.
pub const NOTICE_NAME: &str = "notice.json";
/// Name of the file that users see in JupyterLab's file browser.
pub const SHOWN_NAME: &str = "THIS SERVER ENDS SOON.md";

/// Where notices go.
pub struct Notices {
    output: Output,
    file: Option<PathBuf>,
    shown: Option<PathBuf>,
}

impl Notices {
    /// Notices into the log, and into the file when there is a place for one.
    pub fn new(output: Output, file: Option<PathBuf>) -> Self {
        Notices { output, file, shown: None }
    }

    /// From here on also into the folder where the server starts. What an earlier server left there goes.
    pub fn show_in(&mut self, folder: &Path) {
        let shown = folder.join(SHOWN_NAME);
        let _ = std::fs::remove_file(&shown);
        self.shown = Some(shown);
    }

    /// Says that the server ends in so long.
    pub fn warn(&self, text: &str, ends_in: Duration) {
        self.output.say(text);
        let ends_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + ends_in;
        let notice = serde_json::json!({ "text": text, "ends_at": ends_at.as_secs() });
        let page = format!("# This server ends soon\n\n{text}\n");
        for (path, content) in [(&self.file, notice.to_string()), (&self.shown, page)] {
            if let Some(path) = path
                && let Err(error) = replace(path, content.as_bytes())
            {
                tracing::warn!(path = %path.display(), %error, "the notice could not be written there");
            }
        }
    }

    /// Says something that is no warning.
    pub fn say(&self, text: &str) {
        self.output.say(text);
    }

    /// Takes the warning back.
    pub fn clear(&self, text: &str) {
        self.output.say(text);
        self.remove();
    }

    /// Leaves no warning behind: whoever starts the next server would take it for theirs.
    pub fn remove(&self) {
        for path in [&self.file, &self.shown].into_iter().flatten() {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?.write_all(text)?;
    std::fs::rename(fresh, path)
}
