//! The link is cut while requests are under way.

use std::time::Duration;

use glidepath_spawner::arrivals::upstream::Upstream;
use glidepath_testkit::chaos::Proxy;
use glidepath_testkit::wait;
use glidepath_tunnel::home::HomeConfig;
use glidepath_tunnel::link::{Link, LinkState};

use crate::house::{House, SOON, leave, linked_through_chaos, run, serve_streams};
use crate::server::{PatternReader, Server};

/// A link whose ends notice a cut within a second or two.
async fn house_in_bad_weather(server: &Server, resume_for: Duration) -> (House, Link, Proxy) {
    let config = HomeConfig { resume_for, heartbeat: Duration::from_millis(300), ..HomeConfig::default() };
    let (home, agent, chaos) = linked_through_chaos(config).await;
    leave(serve_streams(agent, server.socket.clone()));
    let house = House::empty("main").await;
    house.ready("/user/ada/", Upstream::new(run(1), home.clone(), None));
    (house, home, chaos)
}

async fn noticed(home: &Link) {
    wait::until(SOON, "the cut to be noticed", || async { !matches!(home.state(), LinkState::Up { .. }) })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_goes_on_after_a_cut_with_equal_bytes() {
    const TOTAL: usize = 50_000_000;
    let server = Server::start();
    let (house, home, chaos) = house_in_bad_weather(&server, SOON).await;
    let mut reply = crate::passing::http_client()
        .get(house.url(&format!("/user/ada/bulk?{TOTAL}")))
        .send()
        .await
        .unwrap();
    let mut reader = PatternReader::default();
    let mut cut = false;
    while let Some(chunk) = reply.chunk().await.unwrap() {
        reader.read(&chunk);
        if !cut && reader.seen > TOTAL / 4 {
            cut = true;
            chaos.cut();
            noticed(&home).await;
            chaos.restore();
        }
    }
    assert_eq!((cut, reader.seen), (true, TOTAL));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_and_upgraded_connections_outlive_a_cut() {
    let server = Server::start();
    let (house, home, chaos) = house_in_bad_weather(&server, SOON).await;
    let mut switched = house.client().await;
    switched
        .send("GET /user/ada/switch HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nbefore")
        .await;
    switched.until("BEFORE").await;
    let mut slow = house.client().await;
    slow.send("GET /user/ada/slow HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
    chaos.cut();
    switched.send("during").await;
    noticed(&home).await;
    let mut late = house.client().await;
    late.send("GET /user/ada/x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    chaos.restore();
    switched.until("DURING").await;
    assert!(slow.rest().await.ends_with("at last"));
    assert!(late.rest().await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_that_lasts_ends_what_was_open_with_a_clear_error() {
    let server = Server::start();
    let (house, home, chaos) = house_in_bad_weather(&server, Duration::from_secs(2)).await;
    let mut waiting = house.client().await;
    waiting.send("GET /user/ada/never HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
    let mut half = house.client().await;
    half.send("GET /user/ada/stream HTTP/1.1\r\nHost: h\r\n\r\n").await;
    half.until("data: 0\n\n").await;
    chaos.cut();
    noticed(&home).await;
    let reply = waiting.rest().await;
    assert!(reply.starts_with("HTTP/1.1 502 ") && reply.contains("ended before it answered"), "{reply}");
    assert_ne!(half.try_rest().await.unwrap_or_default(), "0\r\n\r\n");
}
