//! A home that listens, a gate that remembers, agents that dial, and a line between them that can be cut.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use glidepath_tunnel::dial::{DialConfig, DialEnd, ProxyEnv, Trust, dialer};
use glidepath_tunnel::home::{Admitted, Gate, HomeConfig, HomeEnd, Knock, Refusal};
use glidepath_tunnel::link::{Incoming, Link, LinkState};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// Short, so that a silence is noticed soon.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(1);
/// Nothing in these tests takes longer.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Waits, but not for ever.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen within {DEADLINE:?}"),
    }
}

/// Admits `ticket-<identity>`, binds its first key, tells of new links.
pub(crate) struct Doorman {
    bound: Mutex<HashMap<String, [u8; 32]>>,
    links: mpsc::UnboundedSender<(String, Link)>,
    pub(crate) knocks: AtomicUsize,
}

#[async_trait]
impl Gate for Doorman {
    async fn admit(&self, knock: Knock) -> Result<Admitted, Refusal> {
        self.knocks.fetch_add(1, Ordering::SeqCst);
        let Some(identity) = knock.credential.strip_prefix("ticket-") else {
            return Err(Refusal::Final { sentence: "this ticket is not ours".into() });
        };
        let mut bound = self.bound.lock().unwrap();
        if *bound.entry(identity.to_owned()).or_insert(knock.key) != knock.key {
            return Err(Refusal::Final { sentence: "another key holds this ticket".into() });
        }
        Ok(Admitted { identity: identity.to_owned() })
    }

    fn linked(&self, admitted: &Admitted, link: Link) {
        let _ = self.links.send((admitted.identity.clone(), link));
    }
}

pub(crate) struct House {
    pub(crate) home: HomeEnd,
    pub(crate) door: Arc<Doorman>,
    pub(crate) address: SocketAddr,
    links: mpsc::UnboundedReceiver<(String, Link)>,
    tasks: JoinSet<()>,
}

pub(crate) fn quick() -> HomeConfig {
    HomeConfig { resume_for: Duration::from_secs(20), ..HomeConfig::default() }
}

impl House {
    pub(crate) async fn open(config: HomeConfig) -> Self {
        Self::build(config, None, TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    pub(crate) fn build(config: HomeConfig, tls: Option<TlsAcceptor>, listener: TcpListener) -> Self {
        let (tell, links) = mpsc::unbounded_channel();
        let door = Arc::new(Doorman { bound: Mutex::default(), links: tell, knocks: AtomicUsize::new(0) });
        let home = HomeEnd::new(config, door.clone());
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        let serving = home.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let Ok((tcp, peer)) = listener.accept().await else { return };
                tcp.set_nodelay(true).unwrap();
                let (home, tls) = (serving.clone(), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => home.serve(tcp, peer).await,
                        Some(tls) => {
                            if let Ok(tls) = tls.accept(tcp).await {
                                home.serve(tls, peer).await;
                            }
                        }
                    }
                });
            }
        });
        House { home, door, address, links, tasks }
    }

    pub(crate) fn url(&self) -> String {
        format!("ws://{}/link", self.address)
    }

    /// The next new link.
    pub(crate) async fn arrival(&mut self) -> Link {
        soon("a new link", self.links.recv()).await.unwrap().1
    }

    /// Kills the service: nothing is said to anybody.
    pub(crate) async fn kill(mut self) -> SocketAddr {
        self.tasks.shutdown().await;
        self.address
    }
}

pub(crate) fn config(url: &str, ticket: &str) -> DialConfig {
    DialConfig {
        home_url: url.to_owned(),
        trust: Trust::SystemRoots,
        credential: ticket.to_owned().into(),
        software: "agent/test".into(),
        proxy: ProxyEnv::default(),
        lanes: 1,
        most_lanes: 10,
        heartbeat: HEARTBEAT,
    }
}

pub(crate) struct Agent {
    pub(crate) link: Link,
    running: JoinSet<DialEnd>,
}

impl Agent {
    pub(crate) fn dial(config: DialConfig) -> Self {
        let (link, dialer) = dialer(config).unwrap();
        let mut running = JoinSet::new();
        running.spawn(dialer.run());
        Agent { link, running }
    }

    /// Answers every stream with its own bytes.
    pub(crate) fn echoes(mut self) -> Self {
        let link = self.link.clone();
        self.running.spawn(async move {
            echo(&link).await;
            std::future::pending().await
        });
        self
    }

    pub(crate) async fn end(mut self) -> DialEnd {
        soon("the dialler's end", self.running.join_next()).await.unwrap().unwrap()
    }
}

/// Answers every stream that comes with its own bytes, until the link is over.
pub(crate) async fn echo(link: &Link) {
    let mut streams = JoinSet::new();
    while let Some(Incoming { stream, .. }) = link.accept().await {
        streams.spawn(async move {
            let (mut from, mut to) = tokio::io::split(stream);
            if tokio::io::copy(&mut from, &mut to).await.is_ok() {
                let _ = to.shutdown().await;
            }
        });
    }
}

pub(crate) async fn up(link: &Link, wanted: usize) {
    let mut state = link.watch();
    let up = state.wait_for(|state| matches!(state, LinkState::Up { lanes } if *lanes >= wanted));
    soon("the link's lanes", up).await.unwrap();
}

/// A line that forwards connections to a target and can be cut in several ways.
pub(crate) struct Line {
    pub(crate) address: SocketAddr,
    mode: watch::Sender<Mode>,
    open: watch::Sender<bool>,
    target: Arc<Mutex<SocketAddr>>,
    _task: JoinSet<()>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Flow,
    /// Nothing moves; connections stay open, new ones get no answer.
    Stall,
    /// Every connection is broken, new ones at once.
    Break,
}

impl Line {
    pub(crate) async fn to(target: SocketAddr) -> Self {
        let mut listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (open, mut door) = watch::channel(true);
        let (mode, watched) = watch::channel(Mode::Flow);
        let target = Arc::new(Mutex::new(target));
        let aim = target.clone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut pipes = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let (aim, watched) = (*aim.lock().unwrap(), watched.clone());
                        pipes.spawn(pipe(accepted.unwrap().0, aim, watched));
                    }
                    _ = door.changed() => {}
                }
                if !*door.borrow_and_update() {
                    drop(listener);
                    door.changed().await.unwrap();
                    listener = TcpListener::bind(address).await.unwrap();
                }
            }
        });
        Line { address, mode, open, target, _task: task }
    }

    pub(crate) fn url(&self) -> String {
        format!("ws://{}/link", self.address)
    }

    pub(crate) fn stall(&self) {
        self.mode.send_replace(Mode::Stall);
    }

    /// New connections are refused; those that stand are left as they are.
    pub(crate) async fn refuse_for(&self, time: Duration) {
        self.open.send_replace(false);
        tokio::time::sleep(time).await;
        self.open.send_replace(true);
    }

    pub(crate) fn break_off(&self) {
        self.mode.send_replace(Mode::Break);
    }

    pub(crate) fn restore(&self) {
        self.mode.send_replace(Mode::Flow);
    }

    /// What was stalled is lost for good: the network forgot those connections.
    pub(crate) fn restore_for_new_ones(&self) {
        self.mode.send_replace(Mode::Break);
        self.mode.send_replace(Mode::Flow);
    }

    pub(crate) fn aim(&self, target: SocketAddr) {
        *self.target.lock().unwrap() = target;
    }
}

async fn pipe(mut near: TcpStream, target: SocketAddr, mut mode: watch::Receiver<Mode>) {
    let born = *mode.borrow_and_update();
    if born == Mode::Break {
        return;
    }
    let _ = mode.wait_for(|mode| *mode == Mode::Flow).await;
    let Ok(mut far) = TcpStream::connect(target).await else { return };
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    let (mut a, mut b) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        let now = *mode.borrow_and_update();
        match now {
            Mode::Break => return,
            Mode::Stall => {
                if mode.changed().await.is_err() {
                    return;
                }
            }
            Mode::Flow => tokio::select! {
                _ = mode.changed() => {}
                read = near.read(&mut a) => match read {
                    Ok(0) | Err(_) => return,
                    Ok(count) => if far.write_all(&a[..count]).await.is_err() { return },
                },
                read = far.read(&mut b) => match read {
                    Ok(0) | Err(_) => return,
                    Ok(count) => if near.write_all(&b[..count]).await.is_err() { return },
                },
            },
        }
    }
}

/// Bytes that differ everywhere, so that a lost, repeated or swapped piece shows.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(length);
    out
}
