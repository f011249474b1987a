//! What the relay says when a server cannot, and what it never does.

use std::time::Duration;

use glidepath_domain::backend::ServerAddress;
use glidepath_spawner::arrivals::routes::{RouteState, Routes};
use glidepath_spawner::arrivals::upstream::{ConnectError, Probe, Upstream, probe};
use glidepath_tunnel::home::HomeConfig;
use tokio::time::Instant;

use crate::house::{House, Reach, both_ways, linked, linked_with, own, run, serve_streams};
use crate::server::{Scripted, Server};

const GET: &str = "GET /user/ada/api HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn what_is_unknown_waiting_or_ended_is_a_503_that_says_so() {
    let house = House::empty("main").await;
    let reply = house.told(GET).await;
    assert!(reply.starts_with("HTTP/1.1 503 ") && reply.contains("No such server"), "{reply}");

    let waiting = RouteState::Waiting { message: "place 3 in the queue".into() };
    house.routes.put(&house.hub, "/user/ada/", run(1), waiting).unwrap();
    let reply = house.told(GET).await;
    assert!(reply.starts_with("HTTP/1.1 503 ") && reply.contains("place 3 in the queue"), "{reply}");
    assert!(reply.contains("retry-after: ") && reply.contains("cache-control: no-store"), "{reply}");

    let ended = RouteState::Ended { message: "exit code 1: <img src=x onerror=alert(1)>".into() };
    house.routes.put(&house.hub, "/user/ada/", run(1), ended).unwrap();
    let browser = GET.replace("Host: h", "Host: h\r\nAccept: text/html,application/xhtml+xml");
    let page = house.told(&browser).await;
    assert!(page.starts_with("HTTP/1.1 503 ") && page.contains("text/html"), "{page}");
    assert!(
        page.contains("exit code 1: &lt;img src=x onerror=alert(1)&gt;") && !page.contains("<img"),
        "{page}"
    );
}

#[tokio::test]
async fn two_hubs_with_the_same_user_stay_apart_by_any_host() {
    let (one, two) = (Scripted::saying(reply_of("one")), Scripted::saying(reply_of("two")));
    let routes = Routes::new();
    let first = House::sharing(routes.clone(), "first").await;
    let second = House::sharing(routes, "second").await;
    first.ready("/user/ada/", Upstream::direct(run(1), own(one.socket.clone())));
    second.ready("/user/ada/", Upstream::direct(run(2), own(two.socket.clone())));
    second.ready("/user/bob/", Upstream::direct(run(3), own(two.socket.clone())));
    for host in [first.relay.to_string(), second.relay.to_string(), "second".into(), "first".into()] {
        for header in ["X-Forwarded-Host", "X-Forwarded-Server", "Forwarded", "X-Glidepath-Hub"] {
            let request = format!(
                "GET /user/ada/ HTTP/1.1\r\nHost: {host}\r\n{header}: second\r\nConnection: close\r\n\r\n"
            );
            assert!(first.told(&request).await.ends_with("one"));
            assert!(second.told(&request).await.ends_with("two"));
        }
    }
    let stranger = first.told("GET /user/bob/ HTTP/1.1\r\nHost: second\r\nConnection: close\r\n\r\n").await;
    assert!(stranger.starts_with("HTTP/1.1 503 "), "{stranger}");
}

fn reply_of(name: &str) -> &'static str {
    match name {
        "one" => "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\none",
        _ => "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\ntwo",
    }
}

#[tokio::test]
async fn a_socket_of_another_account_is_sent_nothing() {
    let mut server = Scripted::saying("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    let house = House::empty("main").await;
    let uid = nix::unistd::getuid().as_raw() + 1;
    let upstream = Upstream::direct(run(1), ServerAddress::Unix { path: server.socket.clone(), uid });
    assert!(matches!(upstream.connect().await, Err(ConnectError::WrongOwner { .. })));
    assert!(matches!(probe(&upstream, "/user/ada/").await, Probe::Silent(_)));
    house.ready("/user/ada/", upstream);
    let reply = house.told(GET).await;
    assert!(reply.starts_with("HTTP/1.1 503 ") && reply.contains("another account"), "{reply}");
    assert!(server.head().await.is_empty(), "connections were made, and carried nothing");
}

#[tokio::test]
async fn a_probe_tells_a_status_from_silence() {
    let server = Server::start();
    let upstream = Upstream::direct(run(1), own(server.socket.clone()));
    assert_eq!(probe(&upstream, "/user/ada/").await, Probe::Answers(200));
    assert_eq!(probe(&upstream, "/user/ada").await, Probe::Answers(200));
    let broken = Scripted::saying("HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n");
    let upstream = Upstream::direct(run(1), own(broken.socket.clone()));
    assert_eq!(probe(&upstream, "/user/ada/").await, Probe::Answers(500));
    let nobody = Upstream::direct(run(1), own("/nonexistent/socket".into()));
    assert!(matches!(probe(&nobody, "/user/ada/").await, Probe::Silent(_)));
}

#[tokio::test]
async fn nobody_at_the_address_is_a_503() {
    let house = House::with(Reach::Direct, "/nonexistent/socket".into()).await;
    let reply = house.told(GET).await;
    assert!(reply.starts_with("HTTP/1.1 503 ") && reply.contains("is not answering"), "{reply}");
}

both_ways! {
    async fn a_server_that_hangs_up_before_it_answers_is_a_502(reach) {
        let server = Scripted::saying("");
        let house = House::with(reach, server.socket.clone()).await;
        let reply = house.told("POST /user/ada/ HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
        assert!(reply.starts_with("HTTP/1.1 502 "), "{reply}");
    }

    async fn a_response_that_breaks_off_does_not_look_complete(reach) {
        let chunked = Scripted::saying("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n");
        let house = House::with(reach, chunked.socket.clone()).await;
        let mut client = house.client().await;
        client.send(GET).await;
        client.until("abcde\r\n").await;
        assert_ne!(client.try_rest().await.unwrap_or_default(), "0\r\n\r\n");

        let sized = Scripted::saying("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabcde");
        let house = House::with(reach, sized.socket.clone()).await;
        let mut client = house.client().await;
        client.send("GET /user/ada/ HTTP/1.0\r\nHost: h\r\n\r\n").await;
        client.until("abcde").await;
        assert_eq!(client.try_rest().await.unwrap_or_default(), "");

        // An HTTP/1.0 client learns the end of a chunked response from the connection's end: it must be a reset.
        let house = House::with(reach, chunked.socket.clone()).await;
        let mut client = house.client().await;
        client.send("GET /user/ada/ HTTP/1.0\r\nHost: h\r\n\r\n").await;
        client.until("abcde").await;
        assert_eq!(client.try_rest().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn a_refused_upload_still_hears_why() {
    let house = House::empty("main").await;
    let mut client = house.client().await;
    client.send("POST /user/ada/ HTTP/1.1\r\nHost: h\r\nContent-Length: 500000\r\n\r\n").await;
    client.send(vec![b'x'; 500_000]).await;
    let reply = client.until("No such server").await;
    assert!(reply.starts_with("HTTP/1.1 503 "), "{reply}");
}

#[tokio::test]
async fn a_request_waits_for_a_new_link_and_takes_it() {
    let server = Server::start();
    let house = House::empty("main").await;
    let (home, agent) = linked().await;
    house.ready("/user/ada/", Upstream::new(run(1), home.clone(), None));
    home.close("the service was replaced");
    agent.closed().await;
    let mut client = house.client().await;
    client.send(GET).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (home, agent) = linked().await;
    crate::house::leave(serve_streams(agent, server.socket.clone()));
    house.ready("/user/ada/", Upstream::new(run(1), home, None));
    assert!(client.rest().await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_server_that_is_away_is_waited_for_and_its_paths_stay_its_own() {
    let (default, named) = (Scripted::saying(reply_of("one")), Scripted::saying(reply_of("two")));
    let house = House::empty("main").await;
    house.ready("/user/ada/", Upstream::direct(run(1), own(default.socket.clone())));
    let away = || RouteState::Away { message: "its agent has not come back yet".into() };
    house.routes.put(&house.hub, "/user/ada/lab/", run(2), away()).unwrap();
    let mut client = house.client().await;
    client.send(GET.replace("/user/ada/", "/user/ada/lab/")).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    house.ready("/user/ada/lab/", Upstream::direct(run(2), own(named.socket.clone())));
    assert!(client.rest().await.ends_with("two"));
    house.routes.put(&house.hub, "/user/ada/lab/", run(2), away()).unwrap();
    let reply = house.told(&GET.replace("/user/ada/", "/user/ada/lab/")).await;
    assert!(reply.starts_with("HTTP/1.1 503 ") && reply.contains("has not come back yet"), "{reply}");
}

#[tokio::test]
async fn a_link_that_stays_cut_is_a_503_after_ten_seconds() {
    let house = House::empty("main").await;
    let config = HomeConfig { resume_for: Duration::from_secs(60), ..HomeConfig::default() };
    let ((home, agent), _, stop) = linked_with(config).await;
    house.ready("/user/ada/", Upstream::new(run(1), home, None));
    stop.cancel();
    drop(agent);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = Instant::now();
    let reply = house.told(GET).await;
    assert!(reply.starts_with("HTTP/1.1 503 ") && reply.contains("not answering"), "{reply}");
    assert!((9..15).contains(&before.elapsed().as_secs()), "{:?}", before.elapsed());
}

#[tokio::test]
async fn stopping_lets_requests_finish_and_closes_the_rest() {
    let server = Server::start();
    let house = House::with(Reach::Direct, server.socket.clone()).await;
    let (mut slow, mut idle, mut switched) =
        (house.client().await, house.client().await, house.client().await);
    idle.send("GET /user/ada/x HTTP/1.1\r\nHost: h\r\n\r\n").await;
    idle.until("host: h\n").await;
    switched
        .send(
            "GET /user/ada/switch HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nx",
        )
        .await;
    switched.until("X").await;
    slow.send("GET /user/ada/slow HTTP/1.1\r\nHost: h\r\n\r\n").await;
    tokio::time::timeout(crate::house::SOON, server.seen.asked.notified()).await.expect("it is under way");
    house.stop.cancel();
    let before = Instant::now();
    assert_eq!(idle.rest().await, "");
    assert!(slow.rest().await.ends_with("at last"));
    switched.try_rest().await.unwrap_or_default();
    let relay = house.relay;
    house.ended().await;
    assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
    assert!(tokio::net::TcpStream::connect(relay).await.is_err());
}
