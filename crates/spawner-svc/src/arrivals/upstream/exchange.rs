//! One HTTP/1.1 request and its response over a connection to the server, and the few connections kept for the next.
//!
//! A connection belongs to one exchange at a time: its [`Lease`] gives it back when the response has been read, and
//! closes it, which aborts what the server does, when it is dropped before. A kept connection that turns out to be
//! stale costs the request one further try, and only where nothing of it can have been acted upon.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::{ConnectError, Upstream};

/// Connections kept per server: what a Lab page opens at once.
const IDLE_MAX: usize = 8;

/// How long a connection is kept without a request.
const IDLE_FOR: Duration = Duration::from_secs(30);

/// A response whose head has arrived, and the right to the connection that its body still comes over.
#[derive(Debug)]
pub struct Exchange {
    /// Its body comes as the server sends it.
    pub response: Response<Incoming>,
    /// Given back when the body has been read; closes the connection when dropped.
    pub lease: Lease,
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Nothing was sent.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection ended, or what came back is not HTTP/1.x. The request may have been acted upon.
    #[error("the exchange broke: {0}")]
    Broken(#[source] hyper::Error),
}

/// The body of a request on its way to the server.
pub enum OutBody {
    /// None.
    Empty,
    /// As it comes in.
    Through(Incoming),
    /// As it comes in, once the future is ready: the server is to say first that it wants it.
    Held {
        /// The body.
        body: Incoming,
        /// Ready when the server said so, or when it has been waited for long enough.
        until: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    },
}

impl Body for OutBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Through(body) => Pin::new(body).poll_frame(cx),
            Self::Held { body, until } => {
                if let Some(wait) = until {
                    ready!(wait.as_mut().poll(cx));
                    *until = None;
                }
                Pin::new(body).poll_frame(cx)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Through(body) | Self::Held { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Through(body) | Self::Held { body, .. } => body.size_hint(),
        }
    }
}

impl Upstream {
    /// Sends a request and waits for the head of its response, however long the server takes. May be dropped half
    /// way: the connection then closes.
    pub async fn send(self: &Arc<Self>, mut request: Request<OutBody>) -> Result<Exchange, SendError> {
        if let Some(mut kept) = self.pool.take() {
            let again = replay(&request);
            match kept.sender.try_send_request(request).await {
                Ok(response) => return Ok(self.exchange(response, kept)),
                Err(mut error) => match error.take_message().or(again) {
                    Some(unsent) => request = unsent,
                    None => return Err(SendError::Broken(error.into_error())),
                },
            }
        }
        let connection = TokioIo::new(self.connect().await?);
        let handshake = http1::handshake(connection).await;
        let (sender, connection) = handshake.map_err(SendError::Broken)?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to a server ended early");
            }
        });
        let mut kept = Kept { sender, idle_since: Instant::now(), _driver: driver };
        let response = kept.sender.send_request(request).await.map_err(SendError::Broken)?;
        Ok(self.exchange(response, kept))
    }

    fn exchange(self: &Arc<Self>, response: Response<Incoming>, kept: Kept) -> Exchange {
        Exchange { response, lease: Lease { upstream: Arc::clone(self), kept } }
    }
}

/// The same request once more, where repeating it is harmless.
fn replay(request: &Request<OutBody>) -> Option<Request<OutBody>> {
    let harmless = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if !harmless || !matches!(request.body(), OutBody::Empty) {
        return None;
    }
    let mut again = Request::new(OutBody::Empty);
    again.method_mut().clone_from(request.method());
    again.uri_mut().clone_from(request.uri());
    *again.version_mut() = request.version();
    again.headers_mut().clone_from(request.headers());
    again.extensions_mut().clone_from(request.extensions()); // who listens to interim responses
    Some(again)
}

/// The right to a connection.
#[derive(Debug)]
pub struct Lease {
    upstream: Arc<Upstream>,
    kept: Kept,
}

impl Lease {
    /// Keeps the connection for the next request, if it can take one and there is room.
    pub fn give_back(self) {
        self.upstream.pool.keep(self.kept);
    }
}

/// A connection with the task that moves its bytes; dropping it ends both.
#[derive(Debug)]
struct Kept {
    sender: SendRequest<OutBody>,
    idle_since: Instant,
    _driver: JoinSet<()>,
}

/// The connections of one server that wait for a request.
#[derive(Debug, Default)]
pub(super) struct Pool {
    shared: Arc<Mutex<Shelf>>,
}

#[derive(Debug, Default)]
struct Shelf {
    idle: Vec<Kept>,
    /// Ends connections that nobody asks for; there while any is kept, gone with the pool.
    reaper: JoinSet<()>,
    reaping: bool,
}

impl Pool {
    /// The connection used last, if one can take a request now.
    fn take(&self) -> Option<Kept> {
        let mut shelf = locked(&self.shared);
        shelf.idle.retain(Kept::is_fresh);
        let ready = shelf.idle.iter().rposition(|kept| kept.sender.is_ready())?;
        Some(shelf.idle.remove(ready))
    }

    fn keep(&self, mut kept: Kept) {
        kept.idle_since = Instant::now();
        let mut shelf = locked(&self.shared);
        if kept.sender.is_closed() || shelf.idle.len() >= IDLE_MAX {
            return;
        }
        shelf.idle.push(kept);
        if !shelf.reaping {
            shelf.reaping = true;
            while shelf.reaper.try_join_next().is_some() {}
            shelf.reaper.spawn(reap(Arc::downgrade(&self.shared)));
        }
    }
}

impl Kept {
    fn is_fresh(&self) -> bool {
        !self.sender.is_closed() && self.idle_since.elapsed() < IDLE_FOR
    }
}

async fn reap(shelf: Weak<Mutex<Shelf>>) {
    loop {
        sleep(IDLE_FOR / 2).await;
        let Some(shelf) = shelf.upgrade() else { return };
        let mut shelf = locked(&shelf);
        shelf.idle.retain(Kept::is_fresh);
        if shelf.idle.is_empty() {
            shelf.reaping = false;
            return;
        }
    }
}

fn locked(shelf: &Mutex<Shelf>) -> MutexGuard<'_, Shelf> {
    shelf.lock().unwrap_or_else(PoisonError::into_inner)
}
