//! Tells the user, before the agent acts, that the server will be ended.
//!
//! A notice goes to the server's log; to a small JSON file whose path the server finds in `GLIDEPATH_NOTICE_FILE`:
//! `{"text": …, "ends_at": <unix seconds>}`; and to a file in the folder that the server started in, where JupyterLab's
//! file browser shows it whatever the user's image holds. Files are replaced as a whole, hold every reason that there is,
//! and are removed when there is none.
//!
//! That folder is often on a network disk, so a thread of its own writes there.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use glidepath_api_types::agent::EndCause;

use crate::output::Output;
use crate::scribe::Scribe;

/// Name of the file in the job's folder.
pub const NOTICE_NAME: &str = "notice.json";
/// Begins the name of the file that users see in JupyterLab's file browser.
const SHOWN_NAME: &str = "THIS SERVER ENDS SOON";
/// Longest part of it that tells the servers of one folder apart.
const SERVER_NAME_MAX: usize = 100;
/// Changes of files that wait for a slow disk.
const WAITING: usize = 16;
/// How long the last change may take.
const LAST_CHANGE: Duration = Duration::from_secs(2);

/// Why a server will end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Its time is over.
    Walltime,
    /// Home is away.
    HomeAbsent,
    /// Nothing goes on.
    Idle,
    /// A kernel computes with nobody there.
    Unattended,
}

impl Reason {
    /// The one that stands for a limit of the server.
    pub fn of_limit(cause: EndCause) -> Self {
        match cause {
            EndCause::Idle => Reason::Idle,
            EndCause::Unattended => Reason::Unattended,
            _ => Reason::Walltime,
        }
    }
}

/// Where notices go.
pub struct Notices {
    output: Output,
    file: Option<PathBuf>,
    shown: Option<PathBuf>,
    /// What was said and when the server ends of it, in seconds since 1970.
    reasons: BTreeMap<Reason, (String, u64)>,
    disk: Option<Scribe<()>>,
}

impl Notices {
    /// Notices into the log, and into the file when there is a place for one.
    pub fn new(output: Output, file: Option<PathBuf>) -> Self {
        let disk = Scribe::start("notices", (), WAITING);
        let disk = disk.inspect_err(|error| tracing::warn!(%error, "notices go to the log only")).ok();
        Notices { output, file, shown: None, reasons: BTreeMap::new(), disk }
    }

    /// From here on also into the folder where the server of this name starts. What an earlier one left there goes.
    pub fn show_in(&mut self, folder: &Path, server: &str) {
        self.shown = Some(folder.join(shown_name(server)));
        self.write();
    }

    /// Says that the server ends in so long; gives the second since 1970 at which it will.
    pub fn warn(&mut self, reason: Reason, text: &str, ends_in: Duration) -> u64 {
        self.output.say(text);
        let ends_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + ends_in;
        self.reasons.insert(reason, (text.to_owned(), ends_at.as_secs()));
        self.write();
        ends_at.as_secs()
    }

    /// Says something that is no warning.
    pub fn say(&self, text: &str) {
        self.output.say(text);
    }

    /// Takes the warning back; another one stays.
    pub fn clear(&mut self, reason: Reason, text: &str) {
        self.output.say(text);
        self.reasons.remove(&reason);
        self.write();
    }

    /// Leaves no warning behind: whoever starts the next server would take it for theirs.
    pub async fn remove(&mut self) {
        self.reasons.clear();
        self.write();
        if let Some(disk) = &self.disk {
            disk.done(LAST_CHANGE).await;
        }
    }

    /// Makes the files tell the reasons that there are.
    fn write(&self) {
        let texts: Vec<&str> = self.reasons.values().map(|(text, _)| text.as_str()).collect();
        let first = self.reasons.values().map(|(_, ends_at)| *ends_at).min();
        let notice = first
            .map(|ends_at| serde_json::json!({ "text": texts.join("; "), "ends_at": ends_at }).to_string());
        let page = first.map(|_| format!("# This server ends soon\n\n{}\n", texts.join("\n\n")));
        for (path, content) in [(&self.file, notice), (&self.shown, page)] {
            let (Some(disk), Some(path)) = (&self.disk, path.clone()) else { continue };
            let given = disk.give(Box::new(move |()| put(&path, content)));
            if given.is_err() {
                tracing::warn!("a notice is not written: the disk does not answer");
            }
        }
    }
}

/// Servers that share a folder each have a file of their own.
fn shown_name(server: &str) -> String {
    let plain = server.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    let plain: String = plain.take(SERVER_NAME_MAX).collect();
    if plain.is_empty() { format!("{SHOWN_NAME}.md") } else { format!("{SHOWN_NAME} ({plain}).md") }
}

/// Without content there is to be no file.
fn put(path: &Path, content: Option<String>) {
    let done = match content {
        Some(content) => replace(path, content.as_bytes()),
        None => std::fs::remove_file(path).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(()),
            _ => Err(error),
        }),
    };
    if let Err(error) = done {
        tracing::warn!(path = %path.display(), %error, "the notice could not be changed there");
    }
}

fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?.write_all(text)?;
    std::fs::rename(fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_reason_does_not_take_another_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(NOTICE_NAME);
        let mut notices = Notices::new(Output::open(None), Some(file.clone()));
        notices.show_in(folder.path(), "");
        notices.warn(Reason::Walltime, "its time", Duration::from_secs(900));
        notices.warn(Reason::HomeAbsent, "home is away", Duration::from_secs(60));
        let told = async |notices: &Notices| {
            notices.disk.as_ref().unwrap().done(LAST_CHANGE).await;
            let page = std::fs::read_to_string(folder.path().join("THIS SERVER ENDS SOON.md")).unwrap();
            let notice: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
            (page, notice["text"].clone(), notice["ends_at"].as_u64().unwrap())
        };
        let (page, text, sooner) = told(&notices).await;
        assert!(page.contains("its time") && page.contains("home is away"), "{page}");
        assert_eq!(text, "its time; home is away");
        notices.clear(Reason::HomeAbsent, "home is back");
        let (page, text, later) = told(&notices).await;
        assert!(page.contains("its time") && !page.contains("home is away"), "{page}");
        assert_eq!(text, "its time");
        assert!(later > sooner + 800, "{sooner} {later}");
        notices.remove().await;
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn servers_in_one_folder_have_a_file_each() {
        assert_eq!(shown_name(""), "THIS SERVER ENDS SOON.md");
        assert_eq!(shown_name("lab"), "THIS SERVER ENDS SOON (lab).md");
        assert_eq!(shown_name("../x y"), "THIS SERVER ENDS SOON (xy).md");
    }
}
