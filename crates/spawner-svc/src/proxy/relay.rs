//! Carries users' requests from one Hub's proxy to their servers.
//!
//! In: connections at this hub's listener; the hub is the listener, never a header. Out: the same requests, with path
//! and headers as received, on the way that `routes` knows for the path; the responses, as they come. HTTP/1.0 and
//! 1.1, upgrades (WebSocket), streams and bodies of any size: nothing is held back, nothing is kept whole.
//!
//! Waiting: a request whose server's link is cut waits [`LINK_WAIT`] for it and then gets a 503; one that was sent
//! before the cut waits as long as the link may still be resumed. Refusals are 5xx wherever a server could have
//! answered. Not here: who may see a server; that is the server's and the Hub's business.

#[cfg(any(test, feature = "fuzz"))]
#[doc(hidden)]
pub mod fuzz;
mod pass;

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use glidepath_domain::names::HubName;
use glidepath_svc_kit::seats::{Seat, Seats, UnderWay};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::pass::Switch;
use super::client::Client;
use super::sockets;
use crate::arrivals::routes::Routes;

/// Connections of one hub's proxy at a time; beyond that the one that has waited longest without a request is closed.
pub const CONNECTIONS_MAX: usize = 16_384;

/// How long a new request waits for a link that is cut, or for the agent's next one.
pub const LINK_WAIT: Duration = Duration::from_secs(10);

/// How long requests under way may go on once the service is to stop. Upgraded connections have no end of their own
/// and are closed as soon as the others are through.
pub const DRAIN: Duration = Duration::from_secs(10);

/// Longest time for a request's head to arrive, and for an idle connection to stay.
const HEAD_WAIT: Duration = Duration::from_secs(60);

/// Bytes of a request's head.
const HEAD_MAX_BYTES: usize = 64 * 1024;

/// What all connections of one hub's listener share.
struct Relay {
    hub: HubName,
    routes: Arc<Routes>,
}

/// One connection of the Hub's proxy.
struct Visit {
    relay: Arc<Relay>,
    /// The two ends to be joined once the response that says so has been written.
    switch: Mutex<Option<Switch>>,
    /// A response broke off half way: the connection must not end as if it were complete.
    broke: Arc<AtomicBool>,
}

/// Serves one hub's listener until the service is to stop, then drains for at most [`DRAIN`].
///
/// At most `connections_max` are open at a time, [`CONNECTIONS_MAX`] in a service.
pub async fn run(
    listener: TcpListener,
    hub: HubName,
    routes: Arc<Routes>,
    connections_max: usize,
    stop: CancellationToken,
) {
    let relay = Arc::new(Relay { hub, routes });
    let seats = Seats::new(connections_max);
    let mut open = JoinSet::new();
    // Dropped by each connection when it has no request of its own left: the channel's end is the end of the drain.
    let (busy, mut all_idle) = mpsc::channel::<Infallible>(1);
    loop {
        let next = async {
            let (stream, _) = sockets::accept(&listener, relay.hub.as_str(), relay.routes.notes()).await;
            (stream, seats.take().await)
        };
        // Nothing else ends the wait: a connection that was taken would be lost with it.
        tokio::select! {
            () = stop.cancelled() => break,
            (stream, seat) = next => {
                open.spawn(serve(Arc::clone(&relay), stream, seat, busy.clone(), stop.clone()));
            }
        }
        while open.try_join_next().is_some() {}
    }
    drop((listener, busy));
    if timeout(DRAIN, all_idle.recv()).await.is_err() {
        tracing::info!(hub = %relay.hub, "requests were still under way when the time to drain was over");
    }
    open.shutdown().await;
}

async fn serve(
    relay: Arc<Relay>,
    stream: TcpStream,
    seat: Arc<Seat>,
    busy: mpsc::Sender<Infallible>,
    stop: CancellationToken,
) {
    let visit = Arc::new(Visit { relay, switch: Mutex::default(), broke: Arc::default() });
    let service = service_fn(|request| {
        let begun = seat.busy().map(|busy| (Arc::clone(&visit), busy));
        async move {
            let Some((visit, busy)) = begun else { return std::future::pending().await };
            let answer = pass::answer(visit, request).await;
            Ok::<_, Infallible>(answer.map(|body| UnderWay::new(body, busy)))
        }
    });
    let client = Client::new(stream);
    let mut connection = http().serve_connection(TokioIo::new(client.clone()), service).with_upgrades();
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = client.gone() => return,
        () = seat.given_up() => return,
        () = stop.cancelled() => {
            std::pin::Pin::new(&mut connection).graceful_shutdown();
            tokio::select! {
                ended = &mut connection => ended,
                () = client.gone() => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(hub = %visit.relay.hub, %error, "a connection of the Hub's proxy ended early");
        if visit.broke.load(Ordering::Relaxed) {
            client.reset_at_close();
        }
        return;
    }
    drop((connection, client, busy));
    let switch = visit.switch.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let (Some(switch), Some(_busy)) = (switch, seat.busy()) {
        switch.join().await;
    }
}

fn http() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .half_close(true)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WAIT)
        .max_header_size(HEAD_MAX_BYTES);
    builder
}
