//! Listening sockets, a sentence when there can be none, and a bound on what is let in.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::files::in_words;
use crate::seats::{Seat, Seats, UnderWay};

/// Reads `127.0.0.1:8000` or `[::1]:8000`; port 0 takes a free one.
pub fn parse(raw: &str) -> Result<SocketAddr, &'static str> {
    raw.trim().parse().map_err(|_| "must be an address and a port, like 127.0.0.1:8000 or [::1]:8000")
}

/// Binds; the error names address and reason.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address)
        .await
        .map_err(|error| format!("cannot listen on {address}: {}", in_words(&error)))
}

/// What one listener allows.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Connections at a time; beyond that the one that has waited longest without a request is closed for the next.
    pub connections: usize,
    /// A request's head must arrive within this time, and an idle connection is closed after it.
    pub head_wait: Duration,
    /// What requests under way are given once the service is to stop.
    pub drain: Duration,
}

/// Serves HTTP/1.1 until told to stop; then lets requests under way end, for a bounded time.
pub async fn serve(mut listener: TcpListener, routes: Router, bounds: Bounds, stop: CancellationToken) {
    let seats = Seats::new(bounds.connections);
    let mut open = JoinSet::new();
    loop {
        let next = async {
            let (stream, _) = Listener::accept(&mut listener).await;
            (stream, seats.take().await)
        };
        // Nothing else ends the wait: a connection that was taken would be lost with it.
        tokio::select! {
            () = stop.cancelled() => break,
            (stream, seat) = next => {
                open.spawn(connection(stream, routes.clone(), bounds.head_wait, stop.clone(), seat));
            }
        }
        while open.try_join_next().is_some() {}
    }
    drop(listener);
    let ended = async { while open.join_next().await.is_some() {} };
    if timeout(bounds.drain, ended).await.is_err() {
        tracing::info!(connections = open.len(), "requests that did not end in time are cut");
    }
    open.shutdown().await;
}

async fn connection(
    stream: TcpStream,
    routes: Router,
    head_wait: Duration,
    stop: CancellationToken,
    seat: Arc<Seat>,
) {
    let _ = stream.set_nodelay(true); // slower without, not wrong
    let (routes, asked) = (TowerToHyperService::new(routes), Arc::clone(&seat));
    let service = service_fn(move |request| {
        let begun = asked.busy().map(|busy| (routes.call(request), busy));
        async move {
            let Some((answer, busy)) = begun else { return std::future::pending().await };
            answer.await.map(|answer| answer.map(|body| UnderWay::new(body, busy)))
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_wait)
        .serve_connection(TokioIo::new(stream), service);
    let mut served = pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = seat.given_up() => return,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::trace!(%error, "a connection ended");
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_told_in_one_sentence() {
        let first = bind(parse("[::1]:0").unwrap()).await.unwrap();
        let address = first.local_addr().unwrap();
        let told = bind(address).await.unwrap_err();
        assert_eq!(told, format!("cannot listen on {address}: another process listens there"));
    }

    const PATIENCE: Duration = Duration::from_secs(10);
    const BOUNDS: Bounds =
        Bounds { connections: 1, head_wait: Duration::from_millis(200), drain: Duration::from_secs(5) };

    struct Served {
        address: SocketAddr,
        stop: CancellationToken,
        task: JoinSet<()>,
    }

    async fn served(routes: Router, bounds: Bounds) -> Served {
        let listener = bind(parse("127.0.0.1:0").unwrap()).await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let mut task = JoinSet::new();
        task.spawn(serve(listener, routes, bounds, stop.clone()));
        Served { address, stop, task }
    }

    fn routes() -> Router {
        Router::new().route("/", get(async || std::future::ready("well").await)).route(
            "/slow",
            get(async || {
                tokio::time::sleep(Duration::from_millis(300)).await;
                "at last"
            }),
        )
    }

    async fn ask(stream: &mut TcpStream, path: &str) {
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    }

    async fn answer(stream: &mut TcpStream) -> String {
        let mut buffer = vec![0; 4096];
        let n = timeout(PATIENCE, stream.read(&mut buffer)).await.expect("an answer in time").unwrap();
        String::from_utf8(buffer[..n].to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_silent_peer_gives_its_place_to_the_next() {
        let served = served(routes(), BOUNDS).await;
        let mut silent = TcpStream::connect(served.address).await.unwrap();
        silent.write_all(b"GET / HT").await.unwrap();
        let mut next = TcpStream::connect(served.address).await.unwrap();
        ask(&mut next, "/").await;
        assert!(answer(&mut next).await.ends_with("well"));
    }

    #[tokio::test]
    async fn a_peer_that_says_half_of_a_request_is_closed_after_the_wait() {
        let served = served(routes(), Bounds { connections: 2, ..BOUNDS }).await;
        let mut silent = TcpStream::connect(served.address).await.unwrap();
        silent.write_all(b"GET / HT").await.unwrap();
        let mut rest = Vec::new();
        let ended = timeout(PATIENCE, silent.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "it is open for ever");
    }

    #[tokio::test]
    async fn many_peers_that_say_half_of_a_request_keep_nobody_out() {
        let bounds = Bounds { connections: 2, head_wait: PATIENCE * 9, ..BOUNDS };
        let served = served(routes(), bounds).await;
        let mut slow = TcpStream::connect(served.address).await.unwrap();
        ask(&mut slow, "/slow").await;
        tokio::time::sleep(Duration::from_millis(100)).await; // the request is taken
        let mut silent = Vec::new();
        for _ in 0..50 {
            let mut peer = TcpStream::connect(served.address).await.unwrap();
            peer.write_all(b"GET / HT").await.unwrap();
            silent.push(peer);
        }
        let mut honest = TcpStream::connect(served.address).await.unwrap();
        ask(&mut honest, "/").await;
        assert!(answer(&mut honest).await.ends_with("well"));
        assert!(answer(&mut slow).await.ends_with("at last"), "a request under way is not sent away");
        let first = timeout(PATIENCE, silent[0].read_to_end(&mut Vec::new())).await;
        assert!(first.is_ok(), "the eldest gave its place up");
    }

    #[tokio::test]
    async fn a_request_under_way_is_answered_before_the_end_and_a_silent_peer_does_not_delay_it() {
        let bounds = Bounds { connections: 2, head_wait: PATIENCE * 9, drain: Duration::from_millis(600) };
        let mut served = served(routes(), bounds).await;
        let mut silent = TcpStream::connect(served.address).await.unwrap();
        silent.write_all(b"GET / HT").await.unwrap();
        let mut slow = TcpStream::connect(served.address).await.unwrap();
        ask(&mut slow, "/slow").await;
        tokio::time::sleep(Duration::from_millis(100)).await; // the request is taken
        served.stop.cancel();
        assert!(answer(&mut slow).await.ends_with("at last"));
        timeout(PATIENCE, served.task.join_next()).await.expect("the end comes in time").unwrap().unwrap();
        assert!(TcpStream::connect(served.address).await.is_err());
    }

    #[test]
    fn an_address_without_brackets_or_port_is_refused() {
        for bad in ["::1:80", "127.0.0.1", "localhost:80", "[::1]", ""] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
