//! A server, or an agent in its name, that answers without end or without sense: its own user sees an error, another's
//! server answers as ever, and what it says is not kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use glidepath_spawner::arrivals::upstream::Upstream;
use glidepath_testkit::wait;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixListener;
use tokio::time::timeout;

use crate::house::{House, Reach, SOON, both_ways, leave, linked, own, run, serve_streams};
use crate::server::{Server, read_head};

const MIB: usize = 1024 * 1024;
const GET: &str = "GET /user/ada/ HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";

/// Says a beginning and then the same piece for ever; counts what could be said, and the connections that ended.
struct Endless {
    socket: std::path::PathBuf,
    said: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
    _folder: TempDir,
}

impl Endless {
    fn saying(beginning: &'static str, piece: String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (said, ended): (Arc<AtomicUsize>, Arc<AtomicUsize>) = Default::default();
        let (counts, ends, piece) = (Arc::clone(&said), Arc::clone(&ended), Arc::new(piece));
        leave(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (counts, ends, piece) = (Arc::clone(&counts), Arc::clone(&ends), Arc::clone(&piece));
                leave(async move {
                    read_head(&mut stream).await;
                    let _ = stream.write_all(beginning.as_bytes()).await;
                    while stream.write_all(piece.as_bytes()).await.is_ok() {
                        counts.fetch_add(piece.len(), Ordering::Relaxed);
                    }
                    ends.fetch_add(1, Ordering::Relaxed);
                });
            }
        });
        Self { socket, said, ended, _folder: folder }
    }

    async fn ends(&self) {
        let over = || async { self.ended.load(Ordering::Relaxed) > 0 };
        wait::until(SOON, "the endless answer to be cut", over).await;
    }
}

/// Ada's hostile server and Bob's honest one, behind one relay.
async fn neighbours(reach: Reach, hostile: std::path::PathBuf, honest: &Server) -> House {
    let house = House::with(reach, hostile).await;
    house.ready("/user/bob/", Upstream::direct(run(2), own(honest.socket.clone())));
    house
}

async fn bob_is_served(house: &House) {
    let reply = house.told("GET /user/bob/x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
    assert!(reply.starts_with("HTTP/1.1 200 ") && reply.contains("GET /user/bob/x\n"), "{reply}");
}

both_ways! {
    async fn headers_without_end_are_cut_off_and_not_kept(reach) {
        for (beginning, piece) in [
            ("HTTP/1.1 200 OK\r\n", "X-More: y\r\n".repeat(1000)),
            ("HTTP/1.1 200 OK\r\nX-Long: ", "y".repeat(16 * 1024)),
            ("HTTP/1.1 200 ", "y".repeat(16 * 1024)),
            ("", "y".repeat(16 * 1024)),
        ] {
            let (hostile, bob) = (Endless::saying(beginning, piece), Server::start());
            let house = neighbours(reach, hostile.socket.clone(), &bob).await;
            let reply = house.told(GET).await;
            assert!(reply.starts_with("HTTP/1.1 502 "), "{beginning:?}: {reply}");
            hostile.ends().await;
            let said = hostile.said.load(Ordering::Relaxed);
            assert!(said < 4 * MIB, "{beginning:?}: {said} bytes of a head were taken");
            bob_is_served(&house).await;
        }
    }

    async fn interim_responses_without_end_are_cut_off(reach) {
        let hostile = Endless::saying("", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".repeat(10));
        let bob = Server::start();
        let house = neighbours(reach, hostile.socket.clone(), &bob).await;
        let reply = house.told(GET).await;
        assert!(reply.starts_with("HTTP/1.1 502 ") && reply.contains("interim"), "{reply}");
        hostile.ends().await;
        bob_is_served(&house).await;
    }

    async fn a_few_interim_responses_are_no_answer_and_do_no_harm(reach) {
        let server = crate::server::Scripted::saying(
            "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        );
        let house = House::with(reach, server.socket.clone()).await;
        let reply = house.told(GET).await;
        assert!(reply.starts_with("HTTP/1.1 200 ") && reply.ends_with("\r\n\r\nok"), "{reply}");
    }

    async fn a_promise_of_a_huge_body_costs_nothing_and_ends_with_its_client(reach) {
        let beginning = "HTTP/1.1 200 OK\r\nContent-Length: 9000000000000000000\r\n\r\n";
        let (hostile, bob) = (Endless::saying(beginning, "y".repeat(64 * 1024)), Server::start());
        let house = neighbours(reach, hostile.socket.clone(), &bob).await;
        let mut client = house.client().await;
        client.send(GET).await;
        client.until("content-length: 9000000000000000000").await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (first, _) = (hostile.said.load(Ordering::Relaxed), bob_is_served(&house).await);
        assert!(first < 64 * MIB, "{first} bytes were taken for a client that reads nothing");
        client.stream.set_zero_linger().unwrap();
        drop(client);
        hostile.ends().await;
    }

    async fn what_a_server_sets_for_anothers_path_stays_in_its_own_answer(reach) {
        let server = crate::server::Scripted::saying(
            "HTTP/1.1 302 Found\r\nSet-Cookie: session=evil; Path=/user/bob/\r\nLocation: /user/bob/\r\n\
             Content-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        );
        let bob = Server::start();
        let house = neighbours(reach, server.socket.clone(), &bob).await;
        let mut client = house.client().await;
        client.send("GET /user/ada/ HTTP/1.1\r\nHost: h\r\n\r\n").await;
        let reply = client.until("\r\n\r\n").await;
        assert!(reply.contains("location: /user/bob/") && reply.contains("session=evil"), "{reply}");
        client.send("GET /user/bob/x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
        let reply = client.rest().await;
        assert!(reply.starts_with("HTTP/1.1 200 ") && reply.contains("GET /user/bob/x\n"), "{reply}");
        assert!(!reply.contains("evil"), "an answer that nobody asked for came to the next: {reply}");
    }
}

/// Uploads that never end take all streams of one link, and nothing of another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_whose_streams_are_all_taken_holds_up_no_other() {
    let (ada, bob) = (Server::start(), Server::start());
    let house = House::with(Reach::Link, ada.socket.clone()).await;
    let (home, agent) = linked().await;
    leave(serve_streams(agent, bob.socket.clone()));
    house.ready("/user/bob/", Upstream::new(run(2), home, None));
    let mut uploads = Vec::new();
    for _ in 0..700 {
        let mut client = house.client().await;
        client.send("PUT /user/ada/length HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n").await;
        uploads.push(client);
    }
    let refused = async {
        loop {
            let reply = house.told("GET /user/ada/x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
            if reply.starts_with("HTTP/1.1 503 ") && reply.contains("too many connections") {
                return;
            }
        }
    };
    timeout(SOON, refused).await.expect("no stream is refused");
    for _ in 0..10 {
        bob_is_served(&house).await;
    }
    drop(uploads);
    let served = || async { house.told(GET).await.starts_with("HTTP/1.1 200 ") };
    wait::until(SOON, "the link to be of use again", served).await;
}
