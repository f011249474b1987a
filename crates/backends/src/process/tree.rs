//! Removes folders that a job could write in, however it left them.
//!
//! In: a folder. Out: it is gone. What is in it was made by somebody else, so nothing about it is believed: no link is
//! followed, no path below the folder is resolved again, and a nest of folders of any depth costs a few descriptors
//! and no stack: what lies deeper than one level is moved up before it is removed.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{Uid, UnlinkatFlags, unlinkat};

use super::files;

/// Somebody who makes folders as fast as they are removed must not keep the service at it for ever.
const WITHIN: Duration = Duration::from_secs(600);

/// Removes a folder with all that is in it; what a link points to stays. Succeeds when there is none.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let top = match entered(AT_FDCWD, path) {
        Ok(top) => top,
        Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::ENOTDIR | Errno::ELOOP) => return files::remove_file(path),
        Err(why) => return Err(why.into()),
    };
    empty(&top)?;
    files::absent_is_well(fs::remove_dir(path))
}

/// A link in place of the folder is an error, not a way.
const FOLDER: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Opens a folder, whatever its mode.
fn entered(at: impl AsFd, name: &Path) -> nix::Result<OwnedFd> {
    open_up(&at, name)?;
    openat(at, name, FOLDER, Mode::empty())
}

/// Lets the owner into a folder that a job shut, and change what is in it. Root needs no leave; a service without privilege
/// has the account of its jobs. The folder is named by a descriptor: a link in its place is not followed.
fn open_up(at: impl AsFd, name: &Path) -> nix::Result<()> {
    if Uid::effective().is_root() {
        return Ok(());
    }
    let folder = match openat(at, name, FOLDER.union(OFlag::O_PATH), Mode::empty()) {
        Ok(folder) => folder,
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(()), // none: what comes next tells
        Err(why) => return Err(why),
    };
    let itself = format!("/proc/self/fd/{}", folder.as_raw_fd());
    fs::set_permissions(itself, Permissions::from_mode(0o700))
        .map_err(|why| why.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
}

/// Each round takes one level off every folder in `top`, until a round finds nothing.
fn empty(top: &OwnedFd) -> io::Result<()> {
    let began = Instant::now();
    let mut up = MovedUp { prefix: format!(".glidepath-{}-", files::random_hex::<8>()), count: 0 };
    loop {
        let mut found = false;
        for entry in entries(top)? {
            let entry = entry?;
            found = true;
            let name = entry.file_name();
            if !entry.file_type()?.is_dir() {
                absent_is_well(unlinkat(top, name.as_os_str(), UnlinkatFlags::NoRemoveDir))?;
            } else if !removed_empty(top, Path::new(&name))? {
                take_level_off(top, Path::new(&name), &mut up)?;
            }
            if began.elapsed() > WITHIN {
                return Err(io::Error::other("it takes too long"));
            }
        }
        if !found {
            return Ok(());
        }
    }
}

/// Removes the files of one folder of `top`, moves its folders up into `top`, and removes it.
fn take_level_off(top: &OwnedFd, name: &Path, up: &mut MovedUp) -> io::Result<()> {
    let folder = match entered(top, name) {
        Ok(folder) => folder,
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(()), // changed meanwhile: the next round looks again
        Err(why) => return Err(why.into()),
    };
    for entry in entries(&folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if !entry.file_type()?.is_dir() {
            absent_is_well(unlinkat(&folder, name.as_os_str(), UnlinkatFlags::NoRemoveDir))?;
        } else if !removed_empty(&folder, Path::new(&name))? {
            open_up(&folder, Path::new(&name))?;
            absent_is_well(renameat(&folder, name.as_os_str(), top, up.next().as_str()))?;
        }
    }
    removed_empty(top, name).map(|_| ())
}

/// Names in `top` that nobody can have taken in advance.
struct MovedUp {
    prefix: String,
    count: u64,
}

impl MovedUp {
    fn next(&mut self) -> String {
        self.count += 1;
        format!("{}{}", self.prefix, self.count)
    }
}

/// False when something is in it.
fn removed_empty(folder: &OwnedFd, name: &Path) -> io::Result<bool> {
    match unlinkat(folder, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(true),
        Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR) => Ok(false),
        Err(why) => Err(why.into()),
    }
}

/// The names in exactly this folder, wherever it is by now.
fn entries(folder: &OwnedFd) -> io::Result<fs::ReadDir> {
    fs::read_dir(format!("/proc/self/fd/{}", folder.as_fd().as_raw_fd()))
}

fn absent_is_well(done: nix::Result<()>) -> io::Result<()> {
    match done {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(why) => Err(why.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::open;
    use std::os::unix::fs::symlink;

    /// More levels than the stack of a thread has room for.
    const DEEP: usize = 22_000;

    fn nest(folder: &Path, levels: usize) {
        let mut at = open(folder, FOLDER, Mode::empty()).unwrap();
        for level in 0..levels {
            nix::sys::stat::mkdirat(&at, "d", Mode::from_bits_truncate(0o700)).unwrap();
            at = openat(&at, "d", FOLDER, Mode::empty()).unwrap();
            if level % 1_000 == 0 {
                drop(openat(&at, "f", OFlag::O_CREAT | OFlag::O_WRONLY, Mode::empty()).unwrap());
            }
        }
    }

    #[test]
    fn a_nest_of_any_depth_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("own");
        fs::create_dir_all(tree.join("s")).unwrap();
        nest(&tree, DEEP);
        nest(&tree.join("s"), 10);
        remove(&tree).unwrap();
        assert!(!tree.exists());
        remove(&tree).unwrap();
    }

    #[test]
    fn what_links_point_to_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (tree, kept) = (folder.path().join("own"), folder.path().join("kept"));
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::create_dir_all(kept.join("deep")).unwrap();
        fs::write(kept.join("deep/file"), "x").unwrap();
        for at in ["link", "a/link", "a/b/link"] {
            symlink(&kept, tree.join(at)).unwrap();
        }
        remove(&tree).unwrap();
        assert!(!tree.exists() && kept.join("deep/file").exists());
        let link = folder.path().join("link");
        symlink(&kept, &link).unwrap();
        remove(&link).unwrap();
        assert!(fs::symlink_metadata(&link).is_err() && kept.join("deep/file").exists());
    }
}
