//! The way to one server, and HTTP/1.1 over it.
//!
//! In: a run's link, or the address that a backend made for a site with reach `direct`. Out: byte streams to the
//! server, exchanges over kept connections, and the probe that tells whether it answers. Which path belongs to which
//! server is `routes`; what may pass is the relay's business.

mod exchange;

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use glidepath_api_types::agent::PURPOSE_SERVER;
use glidepath_domain::backend::ServerAddress;
use glidepath_domain::names::RunId;
use glidepath_tunnel::link::{Link, LinkState, OpenError};
use glidepath_tunnel::stream::Stream;
use http::{HeaderValue, Method, Request, Version, header};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use self::exchange::Pool;
pub use self::exchange::{Exchange, Lease, OutBody, SendError};

/// Longest wait for a direct connection; the server is on this machine or near.
const CONNECT_WAIT: Duration = Duration::from_secs(5);

/// Longest wait for the whole answer to a probe.
const PROBE_WAIT: Duration = Duration::from_secs(5);

/// How one server is reached. Shared by the routes and by the exchanges under way.
#[derive(Debug)]
pub struct Upstream {
    run: RunId,
    way: Way,
    pool: Pool,
    /// Requests of people that change something.
    uses: watch::Sender<u64>,
}

#[derive(Debug)]
enum Way {
    Link(Link),
    Unix { path: PathBuf, uid: u32 },
    Tcp(String),
}

/// Why there is no stream to the server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The link has no lane now; it may come back.
    #[error("the link is cut since {} s", .since.elapsed().as_secs())]
    Cut {
        /// When the last lane was lost.
        since: Instant,
    },
    /// The link is over; the agent may come back with a new one.
    #[error("the link is closed: {0}")]
    Closed(String),
    /// The link is there and gives no further stream.
    #[error("no stream: {0}")]
    NoStream(#[source] OpenError),
    /// The socket cannot be connected.
    #[error("connecting to {address}: {source}")]
    Connect {
        /// Where to.
        address: String,
        /// What the system says.
        source: io::Error,
    },
    /// Somebody else listens on the server's socket.
    #[error("{path} belongs to uid {found}, not to {expected}")]
    WrongOwner {
        /// The socket.
        path: PathBuf,
        /// The account that must listen.
        expected: u32,
        /// The account that does.
        found: u32,
    },
}

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// It speaks HTTP; this was the status.
    Answers(u16),
    /// It does not, for this reason.
    Silent(String),
}

impl Upstream {
    /// The way over the link, or straight to the address where there is one.
    #[must_use]
    pub fn new(run: RunId, link: Link, direct: Option<ServerAddress>) -> Arc<Self> {
        match direct {
            None => Self::with(run, Way::Link(link)),
            Some(address) => Self::direct(run, address),
        }
    }

    /// The way straight to an address.
    #[must_use]
    pub fn direct(run: RunId, address: ServerAddress) -> Arc<Self> {
        match address {
            ServerAddress::Unix { path, uid } => Self::with(run, Way::Unix { path, uid }),
            ServerAddress::Tcp(address) => Self::with(run, Way::Tcp(address)),
        }
    }

    fn with(run: RunId, way: Way) -> Arc<Self> {
        Arc::new(Self { run, way, pool: Pool::default(), uses: watch::Sender::new(0) })
    }

    /// Whose server this is.
    #[must_use]
    pub fn run(&self) -> RunId {
        self.run
    }

    /// Somebody changed something there: the server took a request that is more than a look.
    pub fn used(&self) {
        self.uses.send_modify(|uses| *uses = uses.wrapping_add(1));
    }

    /// Waits until the count of such requests is another one, and gives it. May be dropped half way.
    pub async fn uses_other_than(&self, known: u64) -> u64 {
        let mut uses = self.uses.subscribe();
        match uses.wait_for(|uses| *uses != known).await {
            Ok(uses) => *uses,
            Err(_) => known, // never: its sender is here
        }
    }

    /// Waits until bytes can flow, at most until the deadline; at once for a direct address. May be dropped half way.
    pub async fn awake(&self, deadline: Instant) -> Result<(), ConnectError> {
        let Way::Link(link) = &self.way else { return Ok(()) };
        let mut states = link.watch();
        let decided = |state: &LinkState| matches!(state, LinkState::Up { .. } | LinkState::Closed { .. });
        let waited = tokio::time::timeout_at(deadline, states.wait_for(decided)).await;
        drop(waited);
        match link.state() {
            LinkState::Up { .. } => Ok(()),
            LinkState::Cut { since } => Err(ConnectError::Cut { since: since.into() }),
            LinkState::Dialling => Err(ConnectError::Closed("the agent has not arrived".to_owned())),
            LinkState::Closed { reason } => Err(ConnectError::Closed(reason)),
        }
    }

    /// A fresh byte stream to the server. Over a link at once, also while it is cut: its bytes then wait.
    pub async fn connect(&self) -> Result<Connection, ConnectError> {
        match &self.way {
            Way::Link(link) => match link.open(PURPOSE_SERVER) {
                Ok(stream) => Ok(Connection::Link(stream)),
                Err(OpenError::Closed(reason)) => Err(ConnectError::Closed(reason)),
                Err(other) => Err(ConnectError::NoStream(other)),
            },
            Way::Unix { path, uid } => connect_unix(path, *uid).await,
            Way::Tcp(address) => {
                let stream = within(TcpStream::connect(address), address).await?;
                let _ = stream.set_nodelay(true); // slower without, not wrong
                Ok(Connection::Tcp(stream))
            }
        }
    }
}

/// Asks the server's `<prefix>api`: JupyterHub's and Jupyter's own sign of life, open without a token.
pub async fn probe(upstream: &Arc<Upstream>, prefix: &str) -> Probe {
    let request = Request::builder()
        .method(Method::GET)
        .version(Version::HTTP_11)
        .uri(format!("{}/api", prefix.trim_end_matches('/')))
        .header(header::HOST, HeaderValue::from_static("127.0.0.1"))
        .header(header::USER_AGENT, HeaderValue::from_static("glidepath-probe"))
        .body(OutBody::Empty);
    let Ok(request) = request else { return Probe::Silent("its prefix is no path".to_owned()) };
    match timeout(PROBE_WAIT, upstream.send(request)).await {
        Ok(Ok(exchange)) => Probe::Answers(exchange.response.status().as_u16()),
        Ok(Err(error)) => Probe::Silent(told(&error)),
        Err(_) => Probe::Silent(format!("no answer within {} s", PROBE_WAIT.as_secs())),
    }
}

/// An error with its causes in one line.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_line = cause.to_string();
        if !line.ends_with(&cause_line) {
            line.push_str(": ");
            line.push_str(&cause_line);
        }
        source = cause.source();
    }
    line
}

async fn connect_unix(path: &Path, uid: u32) -> Result<Connection, ConnectError> {
    let address = path.display().to_string();
    let stream = within(UnixStream::connect(path), &address).await?;
    let owner = stream.peer_cred().map_err(|source| ConnectError::Connect { address, source })?;
    if owner.uid() != uid {
        return Err(ConnectError::WrongOwner { path: path.to_owned(), expected: uid, found: owner.uid() });
    }
    Ok(Connection::Unix(stream))
}

async fn within<T>(act: impl Future<Output = io::Result<T>>, address: &str) -> Result<T, ConnectError> {
    let done = timeout(CONNECT_WAIT, act).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    done.map_err(|source| ConnectError::Connect { address: address.to_owned(), source })
}

/// A byte stream to a server. Dropping it early aborts what the server was doing for it.
#[derive(Debug)]
pub enum Connection {
    /// Over the link.
    Link(Stream),
    /// Straight to its checked socket.
    Unix(UnixStream),
    /// Straight to its port.
    Tcp(TcpStream),
}

macro_rules! each_way {
    ($self:ident, $io:ident => $call:expr) => {
        match $self.get_mut() {
            Connection::Link(io) => {
                let $io = Pin::new(io);
                $call
            }
            Connection::Unix(io) => {
                let $io = Pin::new(io);
                $call
            }
            Connection::Tcp(io) => {
                let $io = Pin::new(io);
                $call
            }
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each_way!(self, io => io.poll_read(cx, buf))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        each_way!(self, io => io.poll_write(cx, data))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each_way!(self, io => io.poll_write_vectored(cx, data))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Link(io) => io.is_write_vectored(),
            Self::Unix(io) => io.is_write_vectored(),
            Self::Tcp(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each_way!(self, io => io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each_way!(self, io => io.poll_shutdown(cx))
    }
}
