//! Whether a folder can hold the database.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use nix::sys::statfs::statfs;

use super::StoreError;

/// File systems whose locks or memory maps cannot be relied on: (magic number of statfs(2), name).
const REMOTE: [(i64, &str); 15] = [
    (0x6969, "NFS"),
    (0x517B, "SMB"),
    (0xFF53_4D42, "CIFS"),
    (0xFE53_4D42, "SMB2"),
    (0x6573_5546, "FUSE"),
    (0x0102_1997, "9P"),
    (0x5346_414F, "AFS"),
    (0x6B41_4653, "AFS"),
    (0x0BD0_0BD0, "Lustre"),
    (0x4750_4653, "GPFS"),
    (0x00C3_6400, "CephFS"),
    (0x1983_0326, "BeeGFS"),
    (0x2003_0528, "PVFS2"),
    (0x7461_636F, "OCFS2"),
    (0x0116_1970, "GFS2"),
];

/// Refuses a network file system. One that is missing is judged by the nearest folder above it; makes nothing.
pub fn on_local_disk(path: &Path) -> Result<(), StoreError> {
    let bad = |why: String| StoreError::Folder { path: path.to_owned(), why };
    let there = path.ancestors().find(|dir| dir.exists()).unwrap_or(path);
    let system = statfs(there).map_err(|error| bad(format!("cannot be looked at: {error}")))?;
    match remote_name(system.filesystem_type().0) {
        None => Ok(()),
        Some(name) => Err(bad(format!(
            "lies on a network file system ({name}), where a database can be damaged: choose a folder on a local disk"
        ))),
    }
}

/// Makes the folder (0700) when it is missing. Refuses a network file system and one that cannot be written.
pub(super) fn check(path: &Path) -> Result<(), StoreError> {
    on_local_disk(path)?;
    let bad = |why: String| StoreError::Folder { path: path.to_owned(), why };
    if !path.exists() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| bad(format!("cannot be made: {error}")))?;
    }
    let probe = path.join(".writable");
    fs::write(&probe, b"x")
        .and_then(|()| fs::remove_file(&probe))
        .map_err(|error| bad(format!("cannot be written: {error}")))
}

/// Makes the database's file if it is missing, for its owner alone: it tells who works where. The files that SQLite
/// puts beside it get the same mode.
pub(super) fn keep_to_owner(path: &Path) -> Result<(), StoreError> {
    fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .and_then(|file| file.set_permissions(fs::Permissions::from_mode(0o600)))
        .map_err(|error| StoreError::Folder {
            path: path.to_owned(),
            why: format!("cannot hold the database: {error}"),
        })
}

fn remote_name(magic: impl TryInto<i64>) -> Option<&'static str> {
    // Some architectures give the number with its sign.
    let magic = magic.try_into().ok()? & 0xFFFF_FFFF;
    REMOTE.iter().find(|(known, _)| *known == magic).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_known_by_their_numbers() {
        assert_eq!(remote_name(0x6969_i64), Some("NFS"));
        assert_eq!(remote_name(0xFF53_4D42_i64), Some("CIFS"));
        assert_eq!(remote_name(0xEF53_i64), None, "ext4 is local");
        assert_eq!(remote_name(0x0102_1994_i64), None, "tmpfs is local");
    }

    #[test]
    fn a_folder_that_is_a_file_is_told_in_a_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        fs::write(&path, "").unwrap();
        let error = check(&path).unwrap_err().to_string();
        assert!(error.starts_with("the state folder") && error.contains("cannot be written"), "{error}");
    }
}
