//! The home end: takes connections that agents made, asks the gate, keeps the links.
//!
//! In: connections after TLS. Out: links, to the gate. Not here: listening, TLS, who may come.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::link::Link;

/// What the home end allows and how long it waits.
#[derive(Clone, Debug)]
pub struct HomeConfig {
    /// Name and version that agents see.
    pub software: String,
    /// How long a link without a lane waits for its agent before it closes.
    pub resume_for: Duration,
    /// Handshakes at one time; beyond that a dialler hears 503 with `Retry-After`.
    pub max_handshakes: usize,
    /// One deadline over upgrade, handshake and the gate's answer.
    pub handshake_for: Duration,
    /// A lane that was idle this long is pinged; without an answer for twice as long it is dropped.
    pub heartbeat: Duration,
    /// Links at one time.
    pub max_links: usize,
    /// Lanes per link.
    pub max_lanes: usize,
}

impl Default for HomeConfig {
    fn default() -> Self {
        HomeConfig {
            software: format!("glidepath-tunnel/{}", env!("CARGO_PKG_VERSION")),
            resume_for: Duration::from_secs(60),
            max_handshakes: 64,
            handshake_for: Duration::from_secs(10),
            heartbeat: Duration::from_secs(5),
            max_links: 20_000,
            max_lanes: 8,
        }
    }
}

/// Decides who may come in. Called with the lock of nothing held; may wait on a store.
#[async_trait]
pub trait Gate: Send + Sync + 'static {
    /// After the agent proved that it holds the key. The same credential and key may come again, at every
    /// dial and for every lane: answer the same. [`Admitted::identity`] names the link.
    async fn admit(&self, knock: Knock) -> Result<Admitted, Refusal>;

    /// A new link (not a resumed one, not a further lane) is up. Must not block.
    fn linked(&self, admitted: &Admitted, link: Link);
}

/// An agent at the door.
#[derive(Clone)]
pub struct Knock {
    /// The credential as the agent sent it, at most 8 KiB. A secret.
    pub credential: String,
    /// The ed25519 public key whose possession was proved.
    pub key: [u8; 32],
    /// Name and version of the agent: text from outside, capped, without control characters.
    pub software: String,
    /// Where the connection came from.
    pub peer: SocketAddr,
}

impl std::fmt::Debug for Knock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Knock").field("software", &self.software).field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// The gate's yes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// Names the link; one link per identity, the newest wins.
    pub identity: String,
}

/// The gate's no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Never again: the dialler gives up.
    Final {
        /// Why, for the agent's log.
        sentence: String,
    },
    /// Not now: the dialler comes again.
    Later {
        /// Why, for the agent's log.
        sentence: String,
        /// How long to stay away.
        after: Duration,
    },
}

/// The home end of all links. Cheap to clone; all clones are the same home.
#[derive(Clone)]
pub struct HomeEnd {
    gate: Arc<dyn Gate>,
}

impl HomeEnd {
    /// A home without links. Must be called inside a tokio runtime.
    pub fn new(config: HomeConfig, gate: Arc<dyn Gate>) -> Self {
        let _ = config;
        HomeEnd { gate }
    }

    /// Serves one connection, after TLS: upgrade, handshake, then the lane until its end. The caller's task
    /// owns it; dropping it drops the lane (the link then waits for the agent to come back).
    pub async fn serve<IO>(&self, io: IO, peer: SocketAddr)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let _ = (io, peer, &self.gate);
        std::future::ready(()).await;
    }

    /// Drains: no further handshakes, every lane is closed with the request to come again soon.
    pub fn shutdown(&self, reason: &str) {
        let _ = reason;
    }

    /// Links at this moment, cut ones included.
    pub fn links(&self) -> usize {
        0
    }
}
