//! The door of the fuzz target: any bytes from the Hub's proxy through the whole of one visit. Not for use.
#![allow(clippy::expect_used, reason = "for tests and the fuzzer alone: this is how they fail")]

use std::cell::OnceCell;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use glidepath_domain::backend::ServerAddress;
use glidepath_domain::names::{HubName, RunId};
use glidepath_svc_kit::seats::Seats;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Relay, serve};
use crate::arrivals::routes::{RouteState, Routes};
use crate::arrivals::upstream::Upstream;

/// What the relay made of some bytes.
#[derive(Debug)]
pub struct Visited {
    /// What it sent to servers, by connection.
    pub sent: Vec<Vec<u8>>,
    /// How many answers it gave.
    pub answered: u64,
}

/// A server that is answered for with `204` whenever a client waits; keeps what it hears.
type Heard = Arc<Mutex<Vec<Vec<u8>>>>;

/// Sends the bytes to a relay with one server, `/user/ada/`.
pub fn visit(input: &[u8]) -> Visited {
    thread_local!(static RUNTIME: OnceCell<Runtime> = const { OnceCell::new() });
    RUNTIME.with(|runtime| {
        let runtime = runtime.get_or_init(|| {
            // Time that jumps over every wait.
            Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime")
        });
        runtime.block_on(visited(input))
    })
}

async fn visited(input: &[u8]) -> Visited {
    let (hub, routes) = (HubName::parse("main").expect("a name"), Routes::new());
    let server = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = ServerAddress::Tcp(server.local_addr().expect("its address").to_string());
    let upstream = Upstream::direct(RunId::from_parts(1, 0), address);
    routes.put(&hub, "/user/ada/", RunId::from_parts(1, 0), RouteState::Ready(upstream)).expect("a prefix");
    let heard = Heard::default();
    let mut tasks = JoinSet::new();
    tasks.spawn(answer_all(server, Arc::clone(&heard)));

    let door = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let mut client = TcpStream::connect(door.local_addr().expect("its address")).await.expect("a client");
    let (stream, _) = door.accept().await.expect("the client");
    let relay = Arc::new(Relay { hub, routes: Arc::clone(&routes) });
    let (busy, _idle) = mpsc::channel(1);
    let seat = Seats::new(1).take().await;
    tasks.spawn(serve(relay, stream, seat, busy, CancellationToken::new()));
    let _ = client.write_all(input).await; // it may be refused before it is whole
    let _ = client.shutdown().await;
    let _ = client.read_to_end(&mut Vec::new()).await;
    tasks.shutdown().await;
    let answered = routes.answers().map(|(_, count)| count).sum();
    let sent = std::mem::take(&mut *heard.lock().expect("no panic before"));
    Visited { sent, answered }
}

async fn answer_all(server: TcpListener, heard: Heard) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = server.accept().await {
        connections.spawn(answer(stream, Arc::clone(&heard)));
    }
}

async fn answer(mut stream: TcpStream, heard: Heard) {
    let number = {
        let mut heard = heard.lock().expect("no panic before");
        heard.push(Vec::new());
        heard.len() - 1
    };
    let mut owes = false;
    let mut part = vec![0; 16 * 1024];
    loop {
        match timeout(Duration::from_millis(10), stream.read(&mut part)).await {
            Ok(Ok(count @ 1..)) => {
                heard.lock().expect("no panic before")[number].extend_from_slice(&part[..count]);
                owes = true;
            }
            Ok(_) => return,
            Err(_) if owes => {
                owes = false;
                let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use glidepath_testkit::corpus::replay;
    use glidepath_testkit::readers::check_passed;

    #[test]
    fn what_was_kept_or_changed_reaches_a_server_as_the_standard_reads_it() {
        replay("relay_head", 800, |input| {
            let visited = super::visit(input);
            check_passed(input, "", &visited.sent, visited.answered);
        });
    }

    #[test]
    fn a_plain_request_reaches_the_server() {
        let visited = super::visit(b"POST /user/ada/x HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi");
        assert_eq!((visited.sent.len(), visited.answered), (1, 1));
        assert!(visited.sent[0].ends_with(b"\r\n\r\nhi"));
    }
}
