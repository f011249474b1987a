//! Who gets in, and what happens to those who do not.

use std::sync::atomic::Ordering;
use std::time::Duration;

use glidepath_tunnel::dial::{BadDial, DialEnd, Trust, dialer};
use glidepath_tunnel::home::HomeConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::house::{Agent, House, config, quick, soon, up};

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_that_home_does_not_know_is_refused_for_good_in_words() {
    let house = House::open(quick()).await;
    let agent = Agent::dial(config(&house.url(), "forged"));
    assert_eq!(agent.end().await, DialEnd::Refused("this ticket is not ours".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_with_the_same_ticket_is_refused_and_the_first_link_lives_on() {
    let mut house = House::open(quick()).await;
    let first = Agent::dial(config(&house.url(), "ticket-ada")).echoes();
    let link = house.arrival().await;
    let thief = Agent::dial(config(&house.url(), "ticket-ada"));
    assert_eq!(thief.end().await, DialEnd::Refused("another key holds this ticket".into()));
    let mut stream = link.open("server").unwrap();
    stream.write_all(b"x").await.unwrap();
    assert_eq!(soon("the echo", stream.read_u8()).await.unwrap(), b'x');
    up(&first.link, 1).await;
}

async fn ask(house: &House, request: &str) -> String {
    let mut tcp = TcpStream::connect(house.address).await.unwrap();
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let _ = soon("the answer", tcp.read_to_string(&mut answer)).await;
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_link_is_answered_by_http() {
    let house = House::open(quick()).await;
    assert!(ask(&house, "GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.starts_with("HTTP/1.1 404 "));
    assert!(ask(&house, "GET /link HTTP/1.1\r\nHost: h\r\n\r\n").await.starts_with("HTTP/1.1 426 "));
    let endless = format!("GET /link HTTP/1.1\r\nX: {}\r\n", "x".repeat(9_000));
    assert!(ask(&house, &endless).await.starts_with("HTTP/1.1 431 "));
}

const UPGRADE: &str = "GET /link HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_crawls_is_ended_and_gives_its_place_back() {
    let config_of_home =
        HomeConfig { handshake_for: Duration::from_millis(400), max_handshakes: 1, ..quick() };
    let mut house = House::open(config_of_home).await;
    for start in ["GET /li", UPGRADE] {
        let mut tcp = TcpStream::connect(house.address).await.unwrap();
        tcp.write_all(start.as_bytes()).await.unwrap();
        let mut all = Vec::new();
        let _ = soon("the end of the crawl", tcp.read_to_end(&mut all)).await;
    }
    let _agent = Agent::dial(config(&house.url(), "ticket-ada"));
    house.arrival().await;
    assert_eq!(house.door.knocks.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_handshakes_are_told_when_to_come_again() {
    let mut house = House::open(HomeConfig { max_handshakes: 1, ..quick() }).await;
    let mut holders = Vec::new();
    for _ in 0..4 {
        let mut holder = TcpStream::connect(house.address).await.unwrap();
        holder.write_all(UPGRADE.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        holders.push(holder);
    }
    let mut head = [0; 12];
    soon("the upgrade", holders[0].read_exact(&mut head)).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 101");
    let answer = ask(&house, UPGRADE).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("Retry-After: 1\r\n"), "{answer}");
    let agent = Agent::dial(config(&house.url(), "ticket-ada"));
    soon("the refusal is told", async {
        while !agent.link.trouble().is_some_and(|trouble| trouble.contains("503")) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    drop(holders);
    house.arrival().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_who_takes_all_places_of_its_address_keeps_no_agent_out() {
    let mut house = House::open(HomeConfig { max_handshakes: 8, ..quick() }).await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let stranger = tokio::net::TcpSocket::new_v4().unwrap();
        stranger.bind(([127, 0, 0, 2], 0).into()).unwrap();
        let mut tcp = stranger.connect(house.address).await.unwrap();
        tcp.write_all(UPGRADE.as_bytes()).await.unwrap();
        held.push(tcp);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let upgraded = held.iter().filter(|tcp| tcp.try_read(&mut [0; 256]).is_ok_and(|count| count > 0)).count();
    assert_eq!(upgraded, 2, "a quarter of the places; the others wait");
    let _agent = Agent::dial(config(&house.url(), "ticket-ada"));
    let came = tokio::time::timeout(Duration::from_secs(1), house.arrival()).await;
    assert!(came.is_ok(), "before the first stranger has lost its place");
    let silent = &mut held[0];
    let ended = tokio::time::timeout(Duration::from_secs(6), silent.read_to_end(&mut Vec::new())).await;
    assert!(ended.is_ok(), "who says nothing after the upgrade loses its place before the whole deadline");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dialler_stays_away_as_long_as_retry_after_says() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/link", listener.local_addr().unwrap());
    let _agent = Agent::dial(config(&url, "ticket-ada"));
    let mut times = Vec::new();
    for _ in 0..2 {
        let (mut tcp, _) = soon("a dial", listener.accept()).await.unwrap();
        times.push(std::time::Instant::now());
        let mut head = [0; 2_048];
        let _ = tcp.read(&mut head).await.unwrap();
        tcp.write_all(b"HTTP/1.1 503 Busy\r\nRetry-After: 3\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    }
    assert!(times[1] - times[0] >= Duration::from_secs(3), "{:?}", times[1] - times[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_that_lets_connect_and_answers_nothing_is_dialled_now_and_then_and_no_dial_is_given_up_soon() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/link", listener.local_addr().unwrap());
    let _agent = Agent::dial(config(&url, "ticket-ada"));
    let (mut dials, mut given_up) = (0, tokio::task::JoinSet::new());
    let accept = async {
        while let Ok((mut tcp, _)) = listener.accept().await {
            dials += 1;
            given_up.spawn(async move {
                let began = std::time::Instant::now();
                let _ = tcp.read_to_end(&mut Vec::new()).await;
                began.elapsed()
            });
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(5), accept).await;
    // Home works for each of them: the first has 1.6 to 2.4 s to itself, the first two twice that.
    assert_eq!(dials, 2, "dials in 5 s");
    let first = soon("the first dial's end", given_up.join_next()).await.unwrap().unwrap();
    assert!((Duration::from_secs(14)..Duration::from_secs(17)).contains(&first), "{first:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_sent_to_another_home_is_refused() {
    let house = House::open(HomeConfig { hosts: vec!["home.example:443".into()], ..quick() }).await;
    let agent = Agent::dial(config(&house.url(), "ticket-ada"));
    assert_eq!(
        agent.end().await,
        DialEnd::Refused("the agent was sent to another home than this one".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_with_its_most_links_takes_no_further_agent() {
    let mut house = House::open(HomeConfig { max_links: 1, ..quick() }).await;
    let _first = Agent::dial(config(&house.url(), "ticket-ada"));
    house.arrival().await;
    let second = Agent::dial(config(&house.url(), "ticket-bob"));
    soon("the refusal is told", async {
        while !second.link.trouble().is_some_and(|trouble| trouble.contains("most links")) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(house.home.links(), 1);
}

#[test]
fn a_dial_that_cannot_be_is_refused_at_once_with_what_to_write() {
    let url = |url: &str| dialer(config(url, "t")).map(|_| ()).unwrap_err().to_string();
    for bad in ["home", "http://home/link", "wss://", "wss://u:p@home/link", "wss://home:x/link", "/link"] {
        assert!(url(bad).contains("must be wss://host[:port]"), "{bad}: {}", url(bad));
    }
    let mut lanes = config("ws://home/link", "t");
    lanes.lanes = 0;
    assert!(matches!(dialer(lanes), Err(BadDial::Limit(_))));
    let heartbeat = |of: Duration| {
        let mut config = config("ws://home/link", "t");
        config.heartbeat = of;
        dialer(config).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(heartbeat(Duration::from_secs(55)), Ok(()));
    for bad in [55_001, 60_000, 99].map(Duration::from_millis) {
        assert!(heartbeat(bad).is_err_and(|told| told.contains("0.1 to 55 s")), "{bad:?}");
    }
    let mut pin = config("wss://home/link", "t");
    pin.trust = Trust::KeyPin("nonsense".into());
    assert!(matches!(dialer(pin), Err(BadDial::Trust(_))));
    let mut proxy = config("wss://home/link", "t");
    proxy.proxy.https_proxy = Some("socks5://proxy:1080".into());
    assert!(dialer(proxy).map(|_| ()).unwrap_err().to_string().contains("only http://"));
}

#[test]
fn a_credential_is_in_no_debug_output() {
    let config = config("ws://home/link", "ticket-secret");
    let shown = format!("{config:?} {:?}", dialer(config.clone()).unwrap());
    assert!(!shown.contains("ticket-secret"), "{shown}");
}
