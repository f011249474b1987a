//! One relay in front of one server, reached straight or through a link, and a client that speaks raw bytes.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use glidepath_domain::backend::ServerAddress;
use glidepath_domain::names::{HubName, RunId};
use glidepath_spawner::arrivals::routes::{RouteState, Routes};
use glidepath_spawner::arrivals::upstream::Upstream;
use glidepath_spawner::notable::Notes;
use glidepath_spawner::proxy::{link, relay};
use glidepath_spawner::tls::LinkTls;
use glidepath_testkit::chaos::Proxy;
use glidepath_tunnel::dial::{DialConfig, Trust, dialer};
use glidepath_tunnel::home::{Admitted, Gate, HomeConfig, HomeEnd, Knock, Refusal};
use glidepath_tunnel::link::{Incoming, Link};
use secrecy::SecretString;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Nothing here takes longer.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// How the home end reaches the server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Reach {
    Direct,
    Link,
}

/// Runs one story over both reaches.
macro_rules! both_ways {
    ($($(#[$meta:meta])* async fn $name:ident($reach:ident) $body:block)*) => {$(
        mod $name {
            #[allow(unused_imports, reason = "not every story needs everything")]
            use super::*;

            $(#[$meta])*
            async fn story($reach: crate::house::Reach) $body

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn straight() {
                story(crate::house::Reach::Direct).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn through_a_link() {
                story(crate::house::Reach::Link).await;
            }
        }
    )*};
}
pub(crate) use both_ways;

/// A hub's relay with its routes.
pub(crate) struct House {
    pub(crate) relay: SocketAddr,
    pub(crate) routes: Arc<Routes>,
    pub(crate) hub: HubName,
    pub(crate) stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl House {
    pub(crate) async fn empty(hub: &str) -> Self {
        Self::sharing(Routes::new(), hub).await
    }

    pub(crate) async fn sharing(routes: Arc<Routes>, hub: &str) -> Self {
        Self::narrow(routes, hub, relay::CONNECTIONS_MAX).await
    }

    /// With room for so many connections.
    pub(crate) async fn narrow(routes: Arc<Routes>, hub: &str, connections_max: usize) -> Self {
        let hub = HubName::parse(hub).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(relay::run(listener, hub.clone(), Arc::clone(&routes), connections_max, stop.clone()));
        Self { relay, routes, hub, stop, tasks }
    }

    /// With one ready server at `/user/ada/` that listens on this socket.
    pub(crate) async fn with(reach: Reach, socket: PathBuf) -> Self {
        let mut house = Self::empty("main").await;
        let upstream = match reach {
            Reach::Direct => Upstream::direct(run(1), own(socket)),
            Reach::Link => {
                let (home, agent) = linked().await;
                house.tasks.spawn(serve_streams(agent, socket));
                Upstream::new(run(1), home, None)
            }
        };
        house.ready("/user/ada/", upstream);
        house
    }

    pub(crate) fn ready(&self, prefix: &str, upstream: Arc<Upstream>) {
        self.routes.put(&self.hub, prefix, upstream.run(), RouteState::Ready(upstream)).unwrap();
    }

    pub(crate) async fn client(&self) -> Raw {
        Raw { stream: TcpStream::connect(self.relay).await.unwrap(), seen: Vec::new() }
    }

    /// Sends these bytes on a connection of its own and reads to its end.
    pub(crate) async fn told(&self, bytes: &str) -> String {
        let mut client = self.client().await;
        client.send(bytes).await;
        client.rest().await
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.relay)
    }

    /// Waits for the relay to end.
    pub(crate) async fn ended(mut self) {
        timeout(SOON, self.tasks.join_next()).await.unwrap();
    }
}

/// The n-th run that ever was.
pub(crate) fn run(number: u64) -> RunId {
    RunId::from_parts(number, 0)
}

/// A socket of the account that runs the test.
pub(crate) fn own(path: PathBuf) -> ServerAddress {
    ServerAddress::Unix { path, uid: nix::unistd::getuid().as_raw() }
}

/// Bytes out, bytes in.
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    seen: Vec<u8>,
}

impl Raw {
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        timeout(SOON, self.stream.write_all(bytes.as_ref())).await.unwrap().unwrap();
    }

    pub(crate) async fn half_close(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// Everything up to and with this text.
    pub(crate) async fn until(&mut self, text: &str) -> String {
        let end = loop {
            if let Some(at) = self.seen.windows(text.len()).position(|window| window == text.as_bytes()) {
                break at + text.len();
            }
            let read = timeout(SOON, self.stream.read_buf(&mut self.seen)).await;
            let read =
                read.unwrap_or_else(|_| panic!("no {text:?} in {:?}", String::from_utf8_lossy(&self.seen)));
            assert_ne!(read.unwrap(), 0, "ended before {text:?}: {:?}", String::from_utf8_lossy(&self.seen));
        };
        String::from_utf8_lossy(&self.seen.drain(..end).collect::<Vec<_>>()).into_owned()
    }

    /// Everything up to the other side's end.
    pub(crate) async fn rest(&mut self) -> String {
        self.try_rest().await.unwrap()
    }

    pub(crate) async fn try_rest(&mut self) -> std::io::Result<String> {
        timeout(SOON, self.stream.read_to_end(&mut self.seen)).await.expect("no end")?;
        Ok(String::from_utf8_lossy(&std::mem::take(&mut self.seen)).into_owned())
    }
}

/// Lets everybody in, under the name that the credential gives.
pub(crate) struct OpenGate {
    links: Mutex<mpsc::Sender<Link>>,
}

impl OpenGate {
    pub(crate) fn new() -> (Arc<Self>, mpsc::Receiver<Link>) {
        let (links, arrived) = mpsc::channel(64);
        (Arc::new(Self { links: Mutex::new(links) }), arrived)
    }
}

#[async_trait]
impl Gate for OpenGate {
    async fn admit(&self, knock: Knock) -> Result<Admitted, Refusal> {
        Ok(Admitted { identity: knock.credential })
    }

    fn linked(&self, _admitted: &Admitted, link: Link) {
        self.links.lock().unwrap().try_send(link).unwrap();
    }
}

/// Both ends of a link that is up: home's and the agent's. Its tasks live as long as the runtime.
pub(crate) async fn linked() -> (Link, Link) {
    linked_with(HomeConfig::default()).await.0
}

/// The same, with the address that the agent dialled and the switch that ends the listener.
pub(crate) async fn linked_with(config: HomeConfig) -> ((Link, Link), SocketAddr, CancellationToken) {
    let (address, mut arrived, stop) = door(config).await;
    let agent = dial(&format!("ws://{address}/link"), Trust::SystemRoots);
    let home = timeout(SOON, arrived.recv()).await.unwrap().unwrap();
    ((home, agent), address, stop)
}

/// Both ends of a link that leads through bad weather.
pub(crate) async fn linked_through_chaos(config: HomeConfig) -> (Link, Link, Proxy) {
    let (address, mut arrived, _) = door(config).await;
    let chaos = Proxy::to(address).await.unwrap();
    let agent = dial(&format!("ws://{}/link", chaos.address()), Trust::SystemRoots);
    let home = timeout(SOON, arrived.recv()).await.unwrap().unwrap();
    (home, agent, chaos)
}

async fn door(config: HomeConfig) -> (SocketAddr, mpsc::Receiver<Link>, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (gate, arrived) = OpenGate::new();
    let stop = CancellationToken::new();
    let home = HomeEnd::new(config, gate);
    leave(link::run(listener, LinkTls::PlainBehind("nobody".into()), home, Notes::new(), stop.clone()));
    (address, arrived, stop)
}

/// An agent end that dials for as long as the runtime lives.
pub(crate) fn dial(url: &str, trust: Trust) -> Link {
    let mut config = DialConfig::new(url, trust, SecretString::from("agent"), "test");
    config.proxy = glidepath_tunnel::dial::ProxyEnv::default();
    let (link, dialer) = dialer(config).unwrap();
    leave(async {
        dialer.run().await;
    });
    link
}

/// A task that ends with the test's runtime.
pub(crate) fn leave(task: impl Future<Output = ()> + Send + 'static) {
    let handle = tokio::runtime::Handle::current();
    drop(handle.spawn(task));
}

/// What an agent does with the streams that home opens.
pub(crate) async fn serve_streams(agent: Link, socket: PathBuf) {
    let mut streams = JoinSet::new();
    while let Some(Incoming { purpose, mut stream }) = agent.accept().await {
        assert_eq!(purpose, "server");
        let socket = socket.clone();
        streams.spawn(async move {
            if let Ok(mut server) = UnixStream::connect(socket).await {
                let _ = copy_bidirectional(&mut stream, &mut server).await;
            }
        });
    }
}
