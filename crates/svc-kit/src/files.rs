//! Files that only this account may read, written whole or not at all, and one lock per state folder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Largest private file that is read.
const READ_MAX_BYTES: u64 = 1024 * 1024;

/// Makes a folder that only this account may enter; one that is there is closed to others. What is missing above it
/// gets the usual mode, as others' folders may lie there too.
pub fn private_dir(path: &Path) -> io::Result<()> {
    if let Some(above) = path.parent() {
        fs::create_dir_all(above)?;
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o700))?;
    }
    Ok(())
}

/// Writes a 0600 file so that a reader finds the old content or the new one, also after a crash. Blocks.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut partial = name.to_owned();
    partial.push(format!(".{}.partial", std::process::id()));
    let partial = folder.join(partial);
    let written = (|| {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(&partial); // nothing half-made stays; the first error is the one to tell
    }
    written
}

/// Reads a secret from a file that others cannot read. The error says what to do.
pub fn read_private(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let mut file = File::open(path).map_err(|error| format!("cannot read {shown}: {}", in_words(&error)))?;
    let meta = file.metadata().map_err(|error| format!("cannot read {shown}: {}", in_words(&error)))?;
    if !meta.is_file() {
        return Err(format!("{shown} is no file"));
    }
    if meta.mode() & 0o077 != 0 {
        return Err(format!("{shown} can be read by others: chmod 600 {shown}"));
    }
    let mut content = String::new();
    let read = Read::take(&mut file, READ_MAX_BYTES).read_to_string(&mut content);
    read.map_err(|error| format!("cannot read {shown}: {}", in_words(&error)))?;
    Ok(content)
}

/// The right to use a state folder; ends when dropped, or with the process however it ends.
#[derive(Debug)]
pub struct Lock {
    _held: Flock<File>,
}

/// Why a lock was not given.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error("another process (pid {pid}) uses this folder")]
    Held {
        /// What the lock file says of it; empty when it says nothing.
        pid: String,
    },
    /// The file could not be opened or locked.
    #[error("{}", in_words(.0))]
    Io(#[source] io::Error),
}

/// Takes the lock at this path, without waiting, and writes the process's id into it.
pub fn lock(path: &Path) -> Result<Lock, LockError> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = file.map_err(LockError::Io)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut held) => {
            held.set_len(0).map_err(LockError::Io)?;
            write!(*held, "{}", std::process::id()).map_err(LockError::Io)?;
            Ok(Lock { _held: held })
        }
        Err((mut file, Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            let _ = Read::take(&mut file, 20).read_to_string(&mut pid); // only to tell; the lock is held either way
            Err(LockError::Held { pid: pid.chars().filter(char::is_ascii_digit).collect() })
        }
        Err((_, errno)) => Err(LockError::Io(errno.into())),
    }
}

/// An operating system's error, as a person says it.
#[must_use]
pub fn in_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "it does not exist".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::StorageFull => "the disk is full".to_owned(),
        io::ErrorKind::QuotaExceeded => "the disk quota is used up".to_owned(),
        io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only".to_owned(),
        io::ErrorKind::AddrInUse => "another process listens there".to_owned(),
        io::ErrorKind::AddrNotAvailable => "this machine has no such address".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_file_is_whole_and_private_and_leaves_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("service.json");
        fs::write(&path, "old and open").unwrap();
        write_private(&path, b"new").unwrap();
        assert_eq!(read_private(&path).unwrap(), "new");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(&path, "x").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let told = read_private(&path).unwrap_err();
        assert!(told.ends_with(&format!("can be read by others: chmod 600 {}", path.display())), "{told}");
        assert!(read_private(&dir.path().join("none")).unwrap_err().ends_with("it does not exist"));
        assert!(read_private(dir.path()).unwrap_err().ends_with("is no file"));
    }

    #[test]
    fn a_folder_is_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        private_dir(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        fs::create_dir(dir.path().join("usual")).unwrap();
        assert_eq!(mode(&dir.path().join("a")), mode(&dir.path().join("usual")), "others may lie beside it");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        private_dir(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
    }

    #[test]
    fn the_second_lock_is_refused_with_the_pid_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = lock(&path).unwrap();
        let told = lock(&path).unwrap_err().to_string();
        assert_eq!(told, format!("another process (pid {}) uses this folder", std::process::id()));
        drop(held);
        lock(&path).unwrap();
    }
}
