//! Looks whether the machine is as the config needs it: folders, ports, binaries. Changes nothing that stays.
//!
//! For `check`, and before a start: what is told here in one sentence would otherwise fail half way.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use glidepath_svc_kit::files::{LockError, in_words, lock};
use glidepath_svc_kit::kept::Inherited;
use glidepath_svc_kit::problems::Problems;

use crate::config::{BackendConfig, Config, LinkTls, StoreConfig};
use crate::store::{self, Database};
use crate::tls;

/// Everything about this machine that would keep the service from starting with these listeners.
#[must_use]
pub async fn look(config: &Config, inherited: &Inherited) -> Problems {
    let mut problems = Problems::default();
    state_dir(&config.state_dir, &mut problems);
    for (arch, path) in &config.agents {
        problems.keep(&format!("agent.{arch}"), executable(path));
    }
    if !in_use(&config.state_dir) {
        ports(config, inherited, &mut problems);
    }
    link(config, &mut problems);
    if let StoreConfig::PostgreSql(there) = &config.store {
        // The server must let the service in.
        problems.keep(there.key, Database::of(config).lack().await);
    }
    for site in &config.sites {
        let BackendConfig::Process(process) = &site.backend;
        for (key, lack) in process.lacks() {
            problems.add(format!("site {:?}.process.{key}", site.site.name.as_str()), lack);
        }
    }
    problems
}

/// What an operator should know although nothing is wrong, by key.
#[must_use]
pub fn warnings(config: &Config) -> Problems {
    let mut told = Problems::default();
    for site in &config.sites {
        let BackendConfig::Process(process) = &site.backend;
        for warning in process.warnings() {
            told.add(format!("site {:?}", site.site.name.as_str()), warning);
        }
    }
    let kinds: Vec<&str> =
        config.sites.iter().flat_map(|site| site.site.gpus.iter().map(|gpu| gpu.kind.as_str())).collect();
    for preset in &config.presets {
        if let Some(kind) = preset.resources.gpus.kind.as_deref().filter(|kind| !kinds.contains(kind)) {
            told.add(
                format!("presets {:?}", preset.name),
                format!("asks for {kind} GPUs, which no site has"),
            );
        }
    }
    told
}

/// True while a service with this state folder runs: then the ports are its own.
#[must_use]
pub fn in_use(state_dir: &Path) -> bool {
    let path = state_dir.join("lock");
    path.exists() && matches!(lock(&path), Err(LockError::Held { .. }))
}

fn ports(config: &Config, inherited: &Inherited, problems: &mut Problems) {
    let bindable = |address| if inherited.listens_on(address) { Ok(()) } else { bindable(address) };
    let own = [("api", config.listen.api), ("link", config.listen.link), ("metrics", config.listen.metrics)];
    for (name, address) in own {
        problems.keep(&format!("listen.{name}"), bindable(address));
    }
    for hub in &config.hubs {
        problems.keep(&format!("hub {:?}.relay", hub.name.as_str()), bindable(hub.relay));
    }
}

/// The folder, or the nearest one above it, must take files and be on a local disk.
fn state_dir(path: &Path, problems: &mut Problems) {
    let Some(there) = path.ancestors().find(|dir| dir.exists()) else { return };
    let told = if !there.is_dir() {
        Err(format!("{} is no folder", there.display()))
    } else {
        nix::unistd::access(there, nix::unistd::AccessFlags::W_OK | nix::unistd::AccessFlags::X_OK)
            .map_err(|errno| format!("cannot write in {}: {}", there.display(), in_words(&errno.into())))
    };
    if problems.keep("state_dir", told).is_some() {
        problems.keep("state_dir", store::on_local_disk(path));
    }
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
    match &config.link.tls {
        LinkTls::Files { cert, key } => {
            let cert_there = problems.keep("link.tls.cert", readable(cert)).is_some();
            let key_there = problems.keep("link.tls.key", readable(key)).is_some();
            if cert_there && key_there {
                problems.keep("link.tls", tls::load(cert, key));
            }
        }
        LinkTls::OwnCa => {
            let url = config.link.url.as_deref().and_then(|url| url.parse::<http::Uri>().ok());
            if let Some(host) = url.as_ref().and_then(http::Uri::host) {
                problems.keep("link.url", tls::check_host(host));
            }
        }
        LinkTls::PlainBehind(_) => {}
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
