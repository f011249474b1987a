//! Files that survive a crash whole: made new, replaced, given away, removed.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::accounts::Account;
use super::tree;

/// Writes a file that must not exist yet, to the disk.
pub(crate) fn write_new(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()
}

/// Replaces a file by another, whole or not at all; on the disk when it returns.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("the path has no folder"))?;
    let name = path.file_name().ok_or_else(|| io::Error::other("the path has no name"))?;
    let new = folder.join(format!(".{}.new", name.to_string_lossy()));
    remove_file(&new)?;
    let written = write_new(&new, content, mode).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        remove_file(&new)?;
    }
    written?;
    sync_folder(folder)
}

/// Makes the names in a folder survive a power cut.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Makes one folder with exactly these permissions, whatever the umask.
pub(crate) fn make_folder(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)?;
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Makes a folder and all that is missing above it.
pub(crate) fn make_folders(path: &Path, mode: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_folders(parent, mode)?;
    }
    match make_folder(path, mode) {
        Err(why) if why.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other,
    }
}

/// Gives a file or folder to an account; not what a link points to.
pub(crate) fn give(path: &Path, account: &Account) -> io::Result<()> {
    if account.switch {
        std::os::unix::fs::lchown(path, Some(account.uid), Some(account.gid))?;
    }
    Ok(())
}

/// Removes a file; succeeds when there is none.
pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    absent_is_well(fs::remove_file(path))
}

/// Removes a folder with all that is in it, without following links, whatever a job made in it; succeeds when there is
/// none.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    tree::remove(path)
}

/// Makes "there is none" a success.
pub(crate) fn absent_is_well(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// So many random bytes as hexadecimal digits.
pub(crate) fn random_hex<const BYTES: usize>() -> String {
    hex(&rand::random::<[u8; BYTES]>())
}
