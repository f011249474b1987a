//! Looks whether the machine is as the config needs it: folders, ports, binaries. Changes nothing that stays.
//!
//! For `check`, and before a start: what is told here in one sentence would otherwise fail half way.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use glidepath_svc_kit::files::in_words;
use glidepath_svc_kit::problems::Problems;

use super::{Config, LinkTls};

/// Everything about this machine that would keep the service from starting.
#[must_use]
pub fn look(config: &Config) -> Problems {
    let mut problems = Problems::default();
    state_dir(&config.state_dir, &mut problems);
    for (arch, path) in &config.agents {
        problems.keep(&format!("agent.{arch}"), executable(path));
    }
    let own = [("api", config.listen.api), ("link", config.listen.link), ("metrics", config.listen.metrics)];
    for (name, address) in own {
        problems.keep(&format!("listen.{name}"), bindable(address));
    }
    for hub in &config.hubs {
        problems.keep(&format!("hub {:?}.relay", hub.name.as_str()), bindable(hub.relay));
    }
    link(config, &mut problems);
    problems
}

/// The folder, or the nearest one above it, must take files.
fn state_dir(path: &Path, problems: &mut Problems) {
    let Some(there) = path.ancestors().find(|dir| dir.exists()) else { return };
    let told = if !there.is_dir() {
        Err(format!("{} is no folder", there.display()))
    } else {
        nix::unistd::access(there, nix::unistd::AccessFlags::W_OK | nix::unistd::AccessFlags::X_OK)
            .map_err(|errno| format!("cannot write in {}: {}", there.display(), in_words(&errno.into())))
    };
    problems.keep("state_dir", told);
}

fn executable(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let meta = fs::metadata(path).map_err(|error| {
        format!("cannot use the agent's binary {shown}: {}; give its path", in_words(&error))
    })?;
    if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 {
        return Err(format!(
            "{shown} is no program: make it executable, or give the path of glidepath-agent"
        ));
    }
    Ok(())
}

fn bindable(address: SocketAddr) -> Result<(), String> {
    let bound = TcpListener::bind(address).map(drop);
    bound.map_err(|error| format!("cannot listen on {address}: {}", in_words(&error)))
}

fn link(config: &Config, problems: &mut Problems) {
    if let LinkTls::Files { cert, key } = &config.link.tls {
        problems.keep("link.tls.cert", readable(cert));
        problems.keep("link.tls.key", readable(key));
    }
    if let Some(ca) = &config.link.ca {
        problems.keep("link.ca", readable(ca));
    }
}

fn readable(path: &Path) -> Result<(), String> {
    fs::File::open(path)
        .map(drop)
        .map_err(|error| format!("cannot read {}: {}", path.display(), in_words(&error)))
}
