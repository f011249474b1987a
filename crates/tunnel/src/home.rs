//! The home end: takes connections that agents made, asks the gate, keeps the links.
//!
//! In: connections after TLS. Out: links, to the gate. Not here: listening, TLS, who may come.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::lane::{LaneGuard, carry};
use crate::link::{Link, PeerInfo, Session, lock, now};
use crate::proto::frame::Broken;
use crate::proto::handshake::{self, Challenge, Hello, Refused, Welcome};
use crate::proto::mux::{Limits, Side};
use crate::upgrade::{self, Asked};
use crate::websocket::{Role, SocketEnd, WebSocket};

mod places;

use places::Places;

/// A link waits longer than its agent is told by this part of it: when its way is back in the last moment, the agent
/// still has to wait for its next dial and for the round trips of a handshake.
const SLACK: u32 = 12;
/// An agent sends each message of its handshake within this.
const MESSAGE_WITHIN: Duration = Duration::from_secs(3);

/// What the home end allows and how long it waits.
#[derive(Clone, Debug)]
pub struct HomeConfig {
    /// Name and version that agents see.
    pub software: String,
    /// How long a cut may last that a link survives; it waits a twelfth longer for its agent's handshake.
    pub resume_for: Duration,
    /// Handshakes at one time, a quarter of them from one address. Three times as many wait for at most 5 s; a dialler
    /// beyond that, or that waited in vain, hears 503 with `Retry-After`.
    pub max_handshakes: usize,
    /// One deadline over upgrade, handshake and the gate's answer.
    pub handshake_for: Duration,
    /// A lane that was silent for half as long again is pinged; one that was silent three times as long is
    /// dropped. Agents ping after their own heartbeat, so home rarely has to.
    pub heartbeat: Duration,
    /// Links at one time.
    pub max_links: usize,
    /// Lanes per link.
    pub max_lanes: usize,
    /// What a dialler that comes too many hears in `Retry-After`; whole seconds, at least 1.
    pub retry_after: Duration,
    /// `host:port` under which agents know this home; an agent that was sent elsewhere is refused. Empty: any.
    pub hosts: Vec<String>,
}

impl Default for HomeConfig {
    fn default() -> Self {
        HomeConfig {
            software: format!("glidepath-tunnel/{}", env!("CARGO_PKG_VERSION")),
            resume_for: Duration::from_secs(60),
            max_handshakes: 1024,
            handshake_for: Duration::from_secs(10),
            heartbeat: Duration::from_secs(5),
            max_links: 20_000,
            max_lanes: 12,
            retry_after: Duration::from_secs(1),
            hosts: Vec::new(),
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

    /// The home end itself sent a dialler away, before or after asking; for the operator's log. Must not block.
    fn turned_away(&self, peer: SocketAddr, turned: TurnedAway, sentence: &str) {
        debug!(%peer, ?turned, sentence, "an agent was refused");
    }
}

/// Why the home end sends a dialler away without its gate's no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnedAway {
    /// It did not prove that it holds its key.
    Proof,
    /// It speaks another version, or looks for another home.
    Unfit,
    /// As many are here as are taken; it may come again.
    Full,
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
        f.debug_struct("Knock")
            .field("software", &self.software)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
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

/// The home end of all links. Cheap to clone; all clones are the same home. When the last one goes, every link
/// that is still there closes.
#[derive(Clone)]
pub struct HomeEnd {
    home: Arc<Home>,
    /// Ends with the last clone: the task that closes links whose agents stay away.
    _sweeper: Arc<JoinSet<()>>,
}

struct Home {
    config: HomeConfig,
    gate: Arc<dyn Gate>,
    handshakes: Places,
    links: Mutex<HashMap<String, Entry>>,
    leaving: CancellationToken,
}

/// One link of an admitted agent.
struct Entry {
    key: [u8; 32],
    session: [u8; 16],
    incarnation: u64,
    next_lane: u64,
    link: Link,
}

/// What a handshake ended in.
enum Act {
    Lane(LaneGuard),
    Refused,
}

/// Why a connection came to nothing; for the log.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error("the handshake was not finished: {0}")]
    Socket(#[from] SocketEnd),
    #[error("the agent broke the protocol: {0}")]
    Broken(#[from] Broken),
    #[error("the agent sent nothing for {} s", MESSAGE_WITHIN.as_secs())]
    Silent(#[from] tokio::time::error::Elapsed),
    #[error("the link ended during the handshake")]
    Ended,
}

impl std::fmt::Debug for HomeEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HomeEnd").field("links", &self.links()).finish_non_exhaustive()
    }
}

impl HomeEnd {
    /// A home without links. Must be called inside a tokio runtime.
    pub fn new(config: HomeConfig, gate: Arc<dyn Gate>) -> Self {
        let home = Arc::new(Home {
            handshakes: Places::new(config.max_handshakes),
            config,
            gate,
            links: Mutex::new(HashMap::new()),
            leaving: CancellationToken::new(),
        });
        let mut sweeper = JoinSet::new();
        sweeper.spawn(sweep(Arc::downgrade(&home)));
        HomeEnd { home, _sweeper: Arc::new(sweeper) }
    }

    /// Serves one connection, after TLS: upgrade, handshake, then the lane until its end. The caller's task
    /// owns it; dropping it drops the lane (the link then waits for the agent to come back).
    pub async fn serve<IO>(&self, io: IO, peer: SocketAddr)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let handshake = timeout(self.home.config.handshake_for, self.home.handshake(io, peer));
        let (socket, lane) = match handshake.await {
            Ok(Ok(Some(established))) => established,
            Ok(Ok(None)) => return,
            Ok(Err(error)) => {
                debug!(%peer, %error, "a connection came to nothing");
                return;
            }
            Err(_) => {
                debug!(%peer, "a handshake took too long");
                return;
            }
        };
        let id = lane.id;
        let end = carry(socket, lane).await;
        debug!(%peer, lane = id, ?end, "a lane ended");
    }

    /// Drains: no further handshakes, every agent is asked to come again soon. Links close when their lanes have
    /// said so, at the latest 2 s later.
    pub fn shutdown(&self, reason: &str) {
        self.home.leaving.cancel();
        for entry in lock(&self.home.links).values() {
            entry.link.session().with(|core| core.say_away(reason));
        }
    }

    /// Links at this moment, cut ones included.
    pub fn links(&self) -> usize {
        lock(&self.home.links).len()
    }
}

impl Home {
    async fn handshake<IO>(
        &self,
        mut io: IO,
        peer: SocketAddr,
    ) -> Result<Option<(WebSocket<IO>, LaneGuard)>, Failed>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let accept = match upgrade::read(&mut io).await? {
            Asked::Link { accept } => accept,
            Asked::Else { status, sentence } => {
                upgrade::refuse(&mut io, status, "", sentence).await?;
                return Ok(None);
            }
        };
        // One place from here to the verdict; the head of a request costs nothing worth limiting here.
        let place = tokio::select! {
            biased;
            () = self.leaving.cancelled() => None,
            place = self.handshakes.take(peer) => place,
        };
        if place.is_none() {
            let header = format!("Retry-After: {}\r\n", self.config.retry_after.as_secs().max(1));
            let sentence = "this home takes no more links at this moment";
            if !self.leaving.is_cancelled() {
                self.gate.turned_away(peer, TurnedAway::Full, sentence);
            }
            upgrade::refuse(&mut io, "503 Service Unavailable", &header, sentence).await?;
            return Ok(None);
        }
        upgrade::accept(&mut io, &accept).await?;
        let mut socket = WebSocket::new(io, Role::Server);
        match self.decide(&mut socket, peer).await? {
            Act::Lane(lane) => Ok(Some((socket, lane))),
            Act::Refused => {
                drop(place);
                let _ = socket.close().await;
                // The agent closes first: what was said last must not be lost in a reset connection.
                while socket.receive().await.is_ok() {}
                Ok(None)
            }
        }
    }

    async fn decide<IO>(&self, socket: &mut WebSocket<IO>, peer: SocketAddr) -> Result<Act, Failed>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let raw_hello = timeout(MESSAGE_WITHIN, socket.receive()).await??;
        let hello = Hello::decode(&raw_hello)?;
        let version = match handshake::choose_version(hello.versions) {
            Ok(version) => version,
            Err(refused) => return self.turn_away(socket, peer, TurnedAway::Unfit, refused).await,
        };
        if !self.config.hosts.is_empty()
            && !self.config.hosts.iter().any(|host| hello.home.eq_ignore_ascii_case(host))
        {
            let sentence = "the agent was sent to another home than this one".to_owned();
            let refused = Refused { after: None, sentence };
            return self.turn_away(socket, peer, TurnedAway::Unfit, refused).await;
        }
        let mut nonce = [0; 32];
        SystemRandom::new().fill(&mut nonce).map_err(|_| io::Error::other("the system has no randomness"))?;
        let challenge = Challenge {
            version,
            nonce,
            software: self.config.software.clone(),
            capabilities: handshake::CAPABILITIES.iter().map(|&name| name.to_owned()).collect(),
        };
        let raw_challenge = challenge.encode();
        socket.send(&raw_challenge).await?;
        let proof = timeout(MESSAGE_WITHIN, socket.receive()).await??;
        if !handshake::verify(&hello.key, &raw_hello, &raw_challenge, &proof)? {
            let sentence = "the proof of the key is wrong".to_owned();
            let refused = Refused { after: None, sentence };
            return self.turn_away(socket, peer, TurnedAway::Proof, refused).await;
        }
        let knock = Knock {
            credential: hello.credential.clone(),
            key: hello.key,
            software: hello.software.clone(),
            peer,
        };
        let admitted = match self.gate.admit(knock).await {
            Ok(admitted) => admitted,
            Err(Refusal::Final { sentence }) => {
                return refuse(socket, Refused { after: None, sentence }).await;
            }
            Err(Refusal::Later { sentence, after }) => {
                return refuse(socket, Refused { after: Some(after), sentence }).await;
            }
        };
        let about =
            PeerInfo { software: hello.software.clone(), version, capabilities: hello.capabilities.clone() };
        let (welcome, session, fresh) = match self.place(&hello, &admitted, about) {
            Ok(placed) => placed,
            Err(refused) => return self.turn_away(socket, peer, TurnedAway::Full, refused).await,
        };
        let lane = LaneGuard::add(session, welcome.lane).ok_or(Failed::Ended)?;
        // Before the welcome: an agent that never hears it comes back to a link that is known.
        if let Some(link) = fresh {
            self.gate.linked(&admitted, link);
        }
        socket.send(&welcome.encode()).await?;
        debug!(%peer, identity = admitted.identity, lane = lane.id, "a lane is up");
        Ok(Act::Lane(lane))
    }

    /// Finds the session that the agent speaks of, or begins one; a new one's link is handed out too.
    fn place(
        &self,
        hello: &Hello,
        admitted: &Admitted,
        about: PeerInfo,
    ) -> Result<(Welcome, Arc<Session>, Option<Link>), Refused> {
        let mut links = lock(&self.links);
        let known = links.get_mut(&admitted.identity).filter(|entry| {
            entry.session == hello.session
                && entry.key == hello.key
                && entry.link.session().with(|c| c.ended().is_none())
        });
        let resume_for = self.config.resume_for;
        if let Some(entry) = known {
            let session = entry.link.session();
            // A silent lane is one that the agent has given up: it makes room for this one.
            let lanes = session.with(|core| {
                core.drop_silent_lanes(now());
                core.lane_count()
            });
            if lanes >= self.config.max_lanes {
                let sentence = format!("a link has {} lanes at most", self.config.max_lanes);
                return Err(Refused { after: Some(Duration::from_secs(5)), sentence });
            }
            entry.link.set_peer(about);
            let lane = entry.next_lane;
            entry.next_lane += 1;
            return Ok((Welcome { incarnation: entry.incarnation, lane, resume_for }, session, None));
        }
        if links.len() >= self.config.max_links && !links.contains_key(&admitted.identity) {
            let sentence = "this home has its most links already".to_owned();
            return Err(Refused { after: Some(Duration::from_secs(30)), sentence });
        }
        let link = Link::new(Side::Home, Limits::default(), self.config.heartbeat);
        link.set_peer(about);
        let incarnation = rand::random::<u64>().max(1);
        let entry =
            Entry { key: hello.key, session: hello.session, incarnation, next_lane: 1, link: link.clone() };
        if let Some(old) = links.insert(admitted.identity.clone(), entry) {
            let reason = "a newer link of the same agent took its place";
            if old.key == hello.key {
                // The same agent, whose dials may arrive in any order: told an end for good, it would end its server.
                old.link.set_closed(reason);
            } else {
                old.link.close(reason);
            }
        }
        Ok((Welcome { incarnation, lane: 0, resume_for }, link.session(), Some(link)))
    }

    async fn turn_away<IO>(
        &self,
        socket: &mut WebSocket<IO>,
        peer: SocketAddr,
        turned: TurnedAway,
        refused: Refused,
    ) -> Result<Act, Failed>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        self.gate.turned_away(peer, turned, &refused.sentence);
        refuse(socket, refused).await
    }

    /// Closes links that had no lane for too long, and forgets closed ones.
    fn tidy(&self) {
        let now = now();
        let mut over = Vec::new();
        lock(&self.links).retain(|_, entry| {
            let session = entry.link.session();
            let (ended, bare_since) = session.with(|core| (core.ended().is_some(), core.bare_since()));
            let away = bare_since.map(|since| now.saturating_duration_since(since));
            if ended {
                return false;
            }
            if self.leaving.is_cancelled() && away.is_some() {
                over.push((entry.link.clone(), "home is going away".to_owned()));
                return false;
            }
            if away.is_some_and(|away| away > self.config.resume_for + self.config.resume_for / SLACK) {
                let reason =
                    format!("the agent was away for more than {} s", self.config.resume_for.as_secs());
                over.push((entry.link.clone(), reason));
                return false;
            }
            true
        });
        for (link, reason) in over {
            link.set_closed(&reason);
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        for entry in lock(&self.links).values() {
            entry.link.set_closed("home is going away");
        }
    }
}

async fn refuse<IO>(socket: &mut WebSocket<IO>, refused: Refused) -> Result<Act, Failed>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    socket.send(&refused.encode()).await?;
    Ok(Act::Refused)
}

async fn sweep(home: Weak<Home>) {
    loop {
        let Some(strong) = home.upgrade() else { return };
        strong.tidy();
        let every = if strong.leaving.is_cancelled() {
            Duration::from_millis(50)
        } else {
            Duration::from_millis(500)
        };
        let leaving = strong.leaving.clone();
        drop(strong);
        if leaving.is_cancelled() {
            sleep(every).await;
        } else {
            let _ = timeout(every, leaving.cancelled()).await;
        }
    }
}

#[cfg(test)]
mod tests;
