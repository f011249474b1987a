//! Reads the dial file: where home is and the right to dial there.
//!
//! The file holds the ticket, so it must belong to this account alone, and it is removed once read.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use glidepath_api_types::agent::DialFile;
use nix::fcntl::OFlag;
use nix::unistd::Uid;

/// Shape of the file that this agent reads.
const VERSION: u32 = 1;
/// A certificate bundle is the largest part.
const MAX_BYTES: u64 = 1024 * 1024;

/// Why the dial file cannot be used. Never quotes its content.
#[derive(Debug, thiserror::Error)]
pub enum BadDialFile {
    /// It cannot be opened or read.
    #[error("reading dial file {path}: {source}")]
    Read {
        /// As given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others could have read or written it.
    #[error("dial file {path}: {what}; it must be a plain file of this account with mode 0600")]
    Exposed {
        /// As given.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// It is not what this agent understands.
    #[error("dial file {path}: {what}")]
    Content {
        /// As given.
        path: PathBuf,
        /// What is wrong, without the file's content.
        what: String,
    },
}

/// Reads the file, checks who could have seen it, and removes it. Where it cannot be removed (a read-only mount), that
/// is logged and the agent goes on.
pub fn take(path: &Path) -> Result<DialFile, BadDialFile> {
    let read_failed = |source| BadDialFile::Read { path: path.to_owned(), source };
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(path)
        .map_err(read_failed)?;
    check_owner(path, &file)?;
    let mut text = String::new();
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(read_failed)?;
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "the dial file stays where it is");
    }
    parse(path, &text)
}

fn check_owner(path: &Path, file: &File) -> Result<(), BadDialFile> {
    let meta = file.metadata().map_err(|source| BadDialFile::Read { path: path.to_owned(), source })?;
    let exposed = |what: String| Err(BadDialFile::Exposed { path: path.to_owned(), what });
    if !meta.is_file() {
        return exposed("it is not a plain file".to_owned());
    }
    if meta.uid() != Uid::effective().as_raw() {
        return exposed(format!("it belongs to uid {}", meta.uid()));
    }
    if meta.mode() & 0o077 != 0 {
        return exposed(format!("its mode is {:04o}", meta.mode() & 0o7777));
    }
    Ok(())
}

fn parse(path: &Path, text: &str) -> Result<DialFile, BadDialFile> {
    let bad = |what| BadDialFile::Content { path: path.to_owned(), what };
    let dial: DialFile = serde_json::from_str(text).map_err(|error| {
        bad(format!("not a dial file (line {}, column {})", error.line(), error.column()))
    })?;
    if dial.version != VERSION {
        return Err(bad(format!("its version is {}, this agent reads {VERSION}", dial.version)));
    }
    let label = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if dial.attempt.is_empty() || dial.attempt.len() > 64 || !dial.attempt.chars().all(label) {
        return Err(bad("attempt: 1 to 64 letters, digits and `-`".to_owned()));
    }
    Ok(dial)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const GOOD: &str = r#"{"version":1,"home_url":"ws://127.0.0.1:1/link","trust":"system_roots",
        "ticket":"tick-et","attempt":"01ABC-1","dial_deadline_s":5,"absence_limit_s":60}"#;

    #[test]
    fn a_good_file_is_read_once() {
        let (_folder, path) = written(GOOD, 0o600);
        assert_eq!(take(&path).unwrap().attempt, "01ABC-1");
        assert!(!path.exists());
        assert!(matches!(take(&path), Err(BadDialFile::Read { .. })));
    }

    #[test]
    fn a_file_that_others_could_read_is_refused() {
        let (_folder, path) = written(GOOD, 0o640);
        assert!(take(&path).unwrap_err().to_string().contains("mode is 0640"));
    }

    #[test]
    fn a_link_is_not_followed() {
        let (folder, path) = written(GOOD, 0o600);
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(take(&link).is_err());
        assert!(path.exists());
    }

    #[test]
    fn no_error_quotes_the_content() {
        let broken = GOOD.replace("\"attempt\"", "\"atempt\"");
        let (_folder, path) = written(&broken, 0o600);
        let told = take(&path).unwrap_err().to_string();
        assert!(told.contains("line"), "{told}");
        assert!(!told.contains("tick-et"), "{told}");
    }

    #[test]
    fn another_version_is_named() {
        let (_folder, path) = written(&GOOD.replace("\"version\":1", "\"version\":2"), 0o600);
        assert!(take(&path).unwrap_err().to_string().contains("its version is 2"));
    }

    fn written(text: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dial.json");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        (folder, path)
    }
}
