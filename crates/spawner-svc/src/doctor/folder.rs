//! The state folder: whose it is, who may enter, how much room there is.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use nix::sys::statvfs::statvfs;
use nix::unistd::Uid;

use super::Findings;
use crate::config::Config;

const MB: u64 = 1024 * 1024;
/// Below this the store soon cannot write; below the second it is worth a warning.
const ROOM_MIN: u64 = 100 * MB;
const ROOM_GOOD: u64 = 1024 * MB;

pub(super) fn look(config: &Config, out: &mut Findings) {
    let dir = &config.state_dir;
    let Ok(meta) = fs::metadata(dir) else {
        return out
            .note("state_dir", format!("{} is not there yet; the first start makes it", dir.display()));
    };
    let mode = meta.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let found = format!("others may enter {} (mode {mode:03o})", dir.display());
        out.error("state_dir", found, "chmod 700 it, and change the secrets that may have been read");
    }
    let (owner, own) = (meta.uid(), Uid::effective());
    if !own.is_root() && owner != own.as_raw() {
        let found = format!("{} belongs to account {owner}, and this is account {own}", dir.display());
        out.error("state_dir", found, "run the service and this as the account that owns the folder");
    }
    for name in ["glidepath.db", "keys"] {
        if let Ok(inner) = fs::metadata(dir.join(name))
            && inner.uid() != owner
        {
            let found = format!("{name} in it belongs to account {}, the folder to {owner}", inner.uid());
            out.error("state_dir", found, "chown -R the folder to the account of the service");
        }
    }
    if let Ok(room) = statvfs(dir) {
        let free = room.blocks_available() * room.fragment_size();
        let found = format!("{} MB are free for {}", free / MB, dir.display());
        if free < ROOM_MIN {
            out.error("state_dir", found, "make room: without it no start, stop or end can be written down");
        } else if free < ROOM_GOOD {
            out.warning("state_dir", found, "make room before the store cannot write");
        }
    }
}
