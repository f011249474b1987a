//! What the operator hears of pages, servers' calls and knocks that are refused: one line, one count.

use std::path::PathBuf;

use glidepath_api_types::agent::PURPOSE_HUB_API;
use glidepath_domain::backend::ServerAddress;
use glidepath_domain::names::HubName;
use glidepath_spawner::arrivals::routes::RouteState;
use glidepath_spawner::arrivals::upstream::Upstream;
use glidepath_spawner::config::HubApi;
use glidepath_spawner::notable::{Notable, Notes, Refusal};
use glidepath_spawner::proxy::hub_forward::HubForward;
use glidepath_spawner::proxy::link;
use glidepath_spawner::tls::{self, LinkTls};
use glidepath_testkit::log::Log;
use glidepath_testkit::wait::until;
use glidepath_tunnel::dial::Trust;
use glidepath_tunnel::home::{HomeConfig, HomeEnd};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::house::{House, OpenGate, SOON, dial, leave, run};
use crate::hub_calls::{Hub, agent_of, call, get, ok};
use crate::server::Scripted;

/// The one line of this.
fn once(log: &Log, what: Refusal) -> Value {
    let entry = what.entry();
    let mut lines = log.of("refusal", entry.what, entry.reason);
    assert_eq!(lines.len(), 1, "{entry:?}: {lines:?}");
    lines.remove(0)
}

#[tokio::test]
async fn each_page_that_is_not_served_is_counted_and_told_once_in_a_while() {
    let log = Log::begin();
    let house = House::empty("main").await;
    let notes = house.routes.notes().clone();
    let put = |state| house.routes.put(&house.hub, "/user/ada/", run(1), state).unwrap();
    let asked = "GET /user/ada/lab/tree/x?token=s3cret HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    let words = || "as told".to_owned();
    let uid = nix::unistd::getuid().as_raw();
    let other = Scripted::saying("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    let nobody = Scripted::saying("x");
    let at = |path: &PathBuf, uid| Upstream::direct(run(1), ServerAddress::Unix { path: path.clone(), uid });
    for (what, state) in [
        (Refusal::PageUnknown, None),
        (Refusal::PageStarting, Some(RouteState::Waiting { message: words() })),
        (Refusal::PageWrongOwner, Some(RouteState::Ready(at(&other.socket, uid + 1)))),
        (Refusal::PageConnect, Some(RouteState::Ready(at(&"/nowhere/socket".into(), uid)))),
        (Refusal::PageBroken, Some(RouteState::Ready(at(&nobody.socket, uid)))),
        (Refusal::PageEnded, Some(RouteState::Ended { message: words() })),
    ] {
        if let Some(state) = state {
            put(state);
        }
        for _ in 0..3 {
            house.told(asked).await;
        }
        let line = once(&log, what);
        assert_eq!((line["hub"].as_str(), line["at"].as_str()), (Some("main"), Some("/user/ada/lab")));
        assert_eq!(notes.counted(what), 3, "{what:?}");
    }
    house.told("GET http://elsewhere/ HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
    once(&log, Refusal::PageMalformed);
    assert!(!log.lines().iter().any(|line| line.to_string().contains("s3cret")), "no query is written");
}

#[tokio::test]
async fn a_page_of_a_server_that_cannot_be_reached_is_told() {
    let log = Log::begin();
    let house = House::empty("main").await;
    let away = RouteState::Away { message: "its agent has not come back yet".to_owned() };
    house.routes.put(&house.hub, "/user/ada/", run(1), away).unwrap();
    house.told("GET /user/ada/ HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
    assert_eq!(once(&log, Refusal::PageAway)["why"], "its agent has not come back yet");
}

#[tokio::test]
async fn a_servers_calls_that_are_not_carried_are_told_with_whose_they_are() {
    let log = Log::begin();
    let notes = Notes::new();
    let hub = Hub::start("main", ok).await;
    let mut gone = hub.target("/");
    gone.api = HubApi::parse("http://127.0.0.1:9/hub/api", "/").unwrap();
    let forward = HubForward::new(vec![gone], notes.clone(), CancellationToken::new()).unwrap();
    let agent = agent_of(&hub.name, &forward).await;
    for _ in 0..3 {
        call(&agent, &get("/hub/home")).await;
        call(&agent, &get("/hub/api/user")).await;
    }
    let mut stream = agent.open("shell").unwrap();
    let _ = stream.write_all(b"ls\n").await;
    until(SOON, "the stream is reset", || async { notes.counted(Refusal::HubCallStream) == 1 }).await;
    for what in [Refusal::HubCallPath, Refusal::HubCallUnreachable, Refusal::HubCallStream] {
        assert_eq!(once(&log, what)["server.key"], "main.ada.");
    }
    assert_eq!(notes.counted(Refusal::HubCallPath), 3);
    assert_eq!(notes.counted(Refusal::HubCallUnreachable), 3);
    let _of_another = agent_of(&HubName::parse("second").unwrap(), &forward).await;
    assert_eq!(once(&log, Refusal::HubCallNoHub)["hub"], "second");
}

#[tokio::test]
async fn a_servers_calls_without_bounds_or_end_are_told() {
    let log = Log::begin();
    let notes = Notes::new();
    let hub = Hub::start("main", ok).await;
    let forward = HubForward::new(vec![hub.target("/")], notes.clone(), CancellationToken::new()).unwrap();
    let agent = agent_of(&hub.name, &forward).await;
    let post = |length: usize, body: &str| {
        format!(
            "POST /hub/api/x HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
    };
    call(&agent, &post(2_000_000, &"x".repeat(2_000_000))).await;
    let mut stream = agent.open(PURPOSE_HUB_API).unwrap();
    stream.write_all(post(9, "half").as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    until(SOON, "it is told", || async { notes.counted(Refusal::HubCallBroken) == 1 }).await;
    for what in [Refusal::HubCallTooLarge, Refusal::HubCallBroken] {
        assert_eq!(once(&log, what)["server.key"], "main.ada.");
        assert_eq!(notes.counted(what), 1);
    }
}

#[tokio::test]
async fn a_peer_that_does_not_trust_the_certificate_is_told() {
    let log = Log::begin();
    let notes = Notes::new();
    let (ours, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let tls = tls::own_ca(ours.path(), &["127.0.0.1".into()]).unwrap();
    let stranger = tls::own_ca(others.path(), &["127.0.0.1".into()]).unwrap().ca_pem().unwrap().to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let home = HomeEnd::new(HomeConfig::default(), OpenGate::new().0);
    leave(link::run(listener, LinkTls::Own(tls), home, notes.clone(), CancellationToken::new()));
    let _agent = dial(&format!("wss://{address}/link"), Trust::CaPem(stranger));
    until(SOON, "it came", || async { notes.counted(Refusal::KnockTrust) > 0 }).await;
    assert_eq!(once(&log, Refusal::KnockTrust)["peer"], "127.0.0.1");
}
