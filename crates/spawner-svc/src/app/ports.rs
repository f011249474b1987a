//! All listeners at once, and the ports that stay the same over restarts.
//!
//! Hubs keep the relay's address and agents that of the link: where the config leaves the choice (port 0), the port of
//! the first start is kept in `<state_dir>/ports.json` and taken again. A listener that outlived the last process is taken as
//! it is, with whoever waits in its queue.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;

use anyhow::anyhow;
use glidepath_svc_kit::files::{in_words, write_private};
use glidepath_svc_kit::kept::{Copies, Inherited};
use glidepath_svc_kit::listen;
use rand::Rng as _;
use tokio::net::TcpListener;

use crate::config::{Config, Hub};

const NAME: &str = "ports.json";
/// Below the ports that systems give to outgoing connections, so that none sits on a kept port after a restart.
const CHOSEN: std::ops::Range<u16> = 20_000..32_000;
/// Ports that are tried before the system is asked for any.
const TRIES: usize = 32;

/// All listeners, bound.
pub(super) struct Ports {
    pub(super) api: TcpListener,
    pub(super) link: TcpListener,
    pub(super) metrics: TcpListener,
    pub(super) relays: Vec<(TcpListener, Hub)>,
    /// The names under which listeners were kept for this process.
    before: BTreeSet<String>,
}

impl Ports {
    /// A copy of each but the link's, for whoever keeps them over a restart. An agent must be refused while nobody is
    /// home: then it knows that its streams are lost, and ends them before its server prints into them.
    pub(super) fn copies(&self) -> std::io::Result<Copies> {
        let mut copies = Copies::instead_of(self.before.clone());
        copies.add("listen.api", &self.api)?;
        copies.add("listen.metrics", &self.metrics)?;
        for (relay, hub) in &self.relays {
            copies.add(&relay_key(hub), relay)?;
        }
        Ok(copies)
    }
}

/// Binds everything or nothing.
pub(super) async fn bind(
    config: &Config,
    state_dir: &Path,
    mut inherited: Inherited,
) -> anyhow::Result<Ports> {
    let path = state_dir.join(NAME);
    let mut kept = Kept::read(&path)?;
    let ports_before = kept.clone();
    let before = inherited.names();
    let from = &mut inherited;
    let api = kept.bind("listen.api", config.listen.api, &path, from).await?;
    let link = kept.bind("listen.link", config.listen.link, &path, &mut Inherited::default()).await?;
    let metrics = kept.bind("listen.metrics", config.listen.metrics, &path, from).await?;
    let mut relays = Vec::new();
    for hub in &config.hubs {
        relays.push((kept.bind(&relay_key(hub), hub.relay, &path, from).await?, hub.clone()));
    }
    if kept != ports_before {
        kept.write(&path)?;
    }
    Ok(Ports { api, link, metrics, relays, before })
}

fn relay_key(hub: &Hub) -> String {
    format!("hub {}.relay", hub.name)
}

#[derive(Clone, Default, PartialEq, Eq)]
struct Kept {
    ports: BTreeMap<String, u16>,
}

impl Kept {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        match std::fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).map(|ports| Self { ports }).map_err(|_| {
                anyhow!("{shown} is damaged: restore it, or remove it and start servers anew, since ports will change")
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(anyhow!("cannot read {shown}: {}", in_words(&error))),
        }
    }

    fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_vec_pretty(&self.ports)?;
        write_private(path, &text)
            .map_err(|error| anyhow!("cannot write {}: {}", path.display(), in_words(&error)))
    }

    async fn bind(
        &mut self,
        key: &str,
        address: SocketAddr,
        path: &Path,
        inherited: &mut Inherited,
    ) -> anyhow::Result<TcpListener> {
        if address.port() != 0 {
            return taken_or_bound(address, inherited).await.map_err(|why| anyhow!("{key}: {why}"));
        }
        let name = format!("{key} {}", address.ip());
        if let Some(port) = self.ports.get(&name) {
            let again = SocketAddr::new(address.ip(), *port);
            return taken_or_bound(again, inherited).await.map_err(|why| {
                anyhow!(
                    "{key}: {why}; this port was chosen at the first start and is kept in {}",
                    path.display()
                )
            });
        }
        let listener = fresh(address).await.map_err(|why| anyhow!("{key}: {why}"))?;
        self.ports.insert(name, listener.local_addr()?.port());
        Ok(listener)
    }
}

async fn taken_or_bound(address: SocketAddr, inherited: &mut Inherited) -> Result<TcpListener, String> {
    let Some(listener) = inherited.listener(address) else { return listen::bind(address).await };
    let taken = listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener));
    taken.map_err(|error| format!("the listener that was kept cannot be used: {}", in_words(&error)))
}

async fn fresh(address: SocketAddr) -> Result<TcpListener, String> {
    for _ in 0..TRIES {
        let port = rand::rng().random_range(CHOSEN);
        if let Ok(listener) = listen::bind(SocketAddr::new(address.ip(), port)).await {
            return Ok(listener);
        }
    }
    listen::bind(address).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_chosen_port_is_taken_again_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let mut kept = Kept::read(&path).unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        let first = kept
            .bind("listen.api", any, &path, &mut Inherited::default())
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        kept.write(&path).unwrap();
        let mut kept = Kept::read(&path).unwrap();
        let held = kept.bind("listen.api", any, &path, &mut Inherited::default()).await.unwrap();
        assert_eq!(held.local_addr().unwrap(), first);
        let told =
            kept.bind("listen.api", any, &path, &mut Inherited::default()).await.unwrap_err().to_string();
        assert!(
            told.contains("another process listens there; this port was chosen at the first start"),
            "{told}"
        );
    }

    #[tokio::test]
    async fn a_damaged_file_is_told_and_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        std::fs::write(&path, "{").unwrap();
        assert!(Kept::read(&path).map(|_| ()).unwrap_err().to_string().contains("is damaged: restore it"));
    }
}
