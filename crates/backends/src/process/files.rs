//! Files that survive a crash whole: made new, replaced, given away, removed.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::unistd::Uid;

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

/// Tells of a folder above the path through which somebody else could lead a privileged service elsewhere: what is not a
/// real folder, belongs to another account than root or the service, or can be written by others who could then put
/// a link there. What is not there yet is no problem, as long as nobody else can make it.
pub(crate) fn astray_above(path: &Path) -> Option<String> {
    path.ancestors().skip(1).find_map(|above| {
        let shown = above.display();
        let found = match fs::symlink_metadata(above) {
            Ok(found) => found,
            Err(why) if why.kind() == io::ErrorKind::NotFound => return None,
            Err(why) => return Some(format!("{shown} cannot be looked at: {why}")),
        };
        if found.is_symlink() {
            return Some(format!("{shown} is a link: name the folder that it leads to"));
        }
        if ![0, Uid::effective().as_raw()].contains(&found.uid()) {
            let owner = found.uid();
            return Some(format!(
                "{shown} belongs to the account {owner}: chown it to root, or choose another place"
            ));
        }
        let sticky = found.mode() & 0o1000 != 0;
        let by_group = found.mode() & 0o020 != 0 && found.gid() != 0;
        if (by_group || found.mode() & 0o002 != 0) && !sticky {
            return Some(format!("{shown} can be written by others: chmod go-w it, or choose another place"));
        }
        None
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{chown, symlink};

    #[test]
    fn who_could_lead_the_service_elsewhere_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        assert_eq!(
            astray_above(&at("real/not/yet")),
            None,
            "what root or the service made, below a sticky /tmp"
        );
        fs::create_dir(at("real")).unwrap();
        symlink(at("real"), at("link")).unwrap();
        assert!(astray_above(&at("link/home")).unwrap().contains("link: name the folder"));
        assert!(astray_above(&at("link/not/yet")).unwrap().contains("is a link"));
        fs::set_permissions(at("real"), Permissions::from_mode(0o777)).unwrap();
        assert!(astray_above(&at("real/home")).unwrap().contains("can be written by others"));
        fs::set_permissions(at("real"), Permissions::from_mode(0o1777)).unwrap();
        assert_eq!(astray_above(&at("real/home")), None);
        if Uid::effective().is_root() {
            chown(at("real"), Some(12_345), None).unwrap();
            assert!(astray_above(&at("real/home")).unwrap().contains("belongs to the account 12345"));
        }
    }
}
