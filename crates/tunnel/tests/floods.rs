//! Agents that keep to no rule, written from `docs/wire.md` alone: what they send costs home little, and no other link
//! anything. A program of its own, because it looks at how much memory it holds.
#![expect(clippy::unwrap_used, clippy::panic, reason = "the helpers of tests may fail as tests do")]

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use glidepath_tunnel::link::Link;
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

use house::{Agent, House, config, quick, soon};

#[path = "links/house.rs"]
#[allow(dead_code, reason = "shared with the other tests of links")]
mod house;

/// One at a time: each looks at the memory of the whole process.
static ALONE: Mutex<()> = Mutex::const_new(());

const MIB: usize = 1024 * 1024;

// ---- the wire ----

const OPEN: u8 = 0x01;
const DATA: u8 = 0x02;
const RESET: u8 = 0x04;
const CREDIT: u8 = 0x06;
const STREAMS: u8 = 0x07;
const PING: u8 = 0x08;
const PONG: u8 = 0x09;
const LANE_ACK: u8 = 0x0a;
const LANE_GONE: u8 = 0x0b;
const CLOSE: u8 = 0x0c;
const MOST: u64 = (1 << 62) - 1;

fn number(value: u64) -> Vec<u8> {
    (value | 0xc000_0000_0000_0000).to_be_bytes().to_vec()
}

fn text(text: &str) -> Vec<u8> {
    [number(text.len() as u64), text.into()].concat()
}

fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    [vec![kind], number(body.len() as u64), body.to_vec()].concat()
}

fn numbers(kind: u8, values: &[u64]) -> Vec<u8> {
    frame(kind, &values.iter().flat_map(|value| number(*value)).collect::<Vec<_>>())
}

fn data(stream: u64, offset: u64, bytes: &[u8]) -> Vec<u8> {
    frame(DATA, &[number(stream), number(offset), bytes.to_vec()].concat())
}

fn key() -> Ed25519KeyPair {
    let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
    Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap()
}

fn hello(key: &Ed25519KeyPair, ticket: &str, session: [u8; 16]) -> Vec<u8> {
    let parts = [
        number(1),
        number(1),
        key.public_key().as_ref().to_vec(),
        session.to_vec(),
        text(ticket),
        text("home:80"),
        text("raw/1"),
        number(0),
    ];
    frame(0x20, &parts.concat())
}

fn proof(key: &Ed25519KeyPair, hello: &[u8], challenge: &[u8]) -> Vec<u8> {
    let mut signed = b"glidepath link proof v1\0".to_vec();
    signed.extend_from_slice(digest(&SHA256, hello).as_ref());
    signed.extend_from_slice(digest(&SHA256, challenge).as_ref());
    frame(0x22, key.sign(&signed).as_ref())
}

/// One lane of an agent that says what it likes.
struct Raw {
    socket: WebSocketStream<TcpStream>,
}

impl Raw {
    async fn knock(home: SocketAddr) -> Self {
        let tcp = TcpStream::connect(home).await.unwrap();
        let (socket, _) = client_async(format!("ws://{home}/link"), tcp).await.unwrap();
        Self { socket }
    }

    async fn say(&mut self, bytes: Vec<u8>) {
        self.socket.send(Message::Binary(Bytes::from(bytes))).await.unwrap();
    }

    /// The next binary message; empty when the connection is over.
    async fn hear(&mut self) -> Bytes {
        loop {
            match soon("a message", self.socket.next()).await {
                Some(Ok(Message::Binary(bytes))) => return bytes,
                Some(Ok(_)) => {}
                _ => return Bytes::new(),
            }
        }
    }

    /// The kind of home's last word.
    async fn introduce(&mut self, key: &Ed25519KeyPair, hello: &[u8]) -> u8 {
        self.say(hello.to_vec()).await;
        let challenge = self.hear().await;
        assert_eq!(challenge[0], 0x21);
        self.say(proof(key, hello, &challenge)).await;
        self.hear().await[0]
    }

    async fn enter(home: SocketAddr, ticket: &str) -> Self {
        let (mut raw, key) = (Self::knock(home).await, key());
        assert_eq!(raw.introduce(&key, &hello(&key, ticket, [7; 16])).await, WELCOME);
        raw
    }
}

const WELCOME: u8 = 0x23;
const REFUSED: u8 = 0x24;

// ---- the honest ones ----

/// An honest agent's link, as home sees it, and the agent.
async fn honest(house: &mut House) -> (Link, Agent) {
    let agent = Agent::dial(config(&house.url(), "ticket-honest")).echoes();
    (house.arrival().await, agent)
}

async fn echoes(link: &Link) {
    let mut stream = link.open("server").unwrap();
    stream.write_all(b"still here").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut back = Vec::new();
    soon("the echo on another link", stream.read_to_end(&mut back)).await.unwrap();
    assert_eq!(back, b"still here");
}

fn memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

// ---- the floods ----

/// What is sent again and again: the n-th message of a flood.
type Flood = (&'static str, fn(u64) -> Message);

fn binary(bytes: Vec<u8>) -> Message {
    Message::Binary(bytes.into())
}

/// Many of the same in one message.
fn row(n: u64, frame: impl Fn(u64) -> Vec<u8>) -> Message {
    binary((0..1000).flat_map(|at| frame(n * 1000 + at)).collect())
}

const FLOODS: &[Flood] = &[
    ("pings", |n| row(n, |n| numbers(PING, &[n]))),
    ("pongs", |n| row(n, |_| numbers(PONG, &[MOST]))),
    ("confirmations of nothing", |n| row(n, |_| numbers(LANE_ACK, &[0, MOST]))),
    ("confirmations of what was never sent", |n| row(n, |n| numbers(LANE_ACK, &[n, 0]))),
    ("credit without bounds", |n| row(n, |n| numbers(CREDIT, &[0, MOST - n]))),
    ("credit for streams of nobody", |n| row(n, |n| numbers(CREDIT, &[2 * n, MOST]))),
    ("streams without bounds", |n| row(n, |_| numbers(STREAMS, &[MOST]))),
    ("opens", |n| row(n, |n| frame(OPEN, &[number(2 * n + 1), b"x".to_vec()].concat()))),
    ("opens of one stream", |n| row(n, |_| frame(OPEN, &[number(1), b"server".to_vec()].concat()))),
    ("opens with home's numbers", |n| row(n, |n| frame(OPEN, &[number(2 * n), b"x".to_vec()].concat()))),
    ("resets of what was never opened", |n| row(n, |n| numbers(RESET, &[2 * n + 1]))),
    ("the same bytes again", |_| binary(data(1, 0, &[b'x'; 60_000]))),
    ("bytes at the end of all numbers", |_| binary(data(1, MOST, b"xxxx"))),
    ("bytes with holes", |n| row(n, |n| data(1, 2 * n % 262_144, b"x"))),
    ("bytes of another end's stream", |_| binary(data(0, 0, &[b'x'; 60_000]))),
    ("lanes that were lost", |n| row(n, |n| numbers(LANE_GONE, &[n + 1, 0]))),
    ("goodbyes", |n| row(n, |_| frame(CLOSE, &[number(0), b"bye".to_vec()].concat()))),
    ("frames of a later version", |_| binary(frame(0x7f, &[0; 200_000]))),
    ("messages that are too large", |_| binary(frame(0x7f, &vec![0; MIB]))),
    ("proofs", |n| row(n, |_| frame(0x22, &[0; 64]))),
    ("nothing at all", |_| binary(Vec::new())),
    ("frames that never end", |_| binary([vec![DATA], number(MOST)].concat())),
    ("text", |_| Message::Text("x".repeat(60_000).into())),
    ("pings of the WebSocket", |_| Message::Ping(vec![0; 125].into())),
];

/// 256 MiB in all, from agents that read nothing of what home answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_any_frame_keeps_no_memory_and_holds_up_no_other_link() {
    let _alone = ALONE.lock().await;
    let mut house = House::open(quick()).await;
    let (link, _agent) = honest(&mut house).await;
    echoes(&link).await;
    let (before, mut sent_in_all) = (memory(), 0);
    for (number, (what, message)) in FLOODS.iter().enumerate() {
        let mut raw = Raw::enter(house.address, &format!("ticket-flood-{number}")).await;
        house.arrival().await;
        // What costs home most to read is sent less of.
        let most = if message(0).len() > 32 * 1024 { 120 * MIB } else { 2 * MIB };
        let flood = async {
            let mut sent = 0;
            for n in 0..100_000 {
                let message = message(n);
                sent += message.len();
                // Home may end it, and need not read from who does not read its answers.
                let taken = timeout(Duration::from_secs(1), raw.socket.send(message)).await;
                if sent > most || !matches!(taken, Ok(Ok(()))) {
                    break;
                }
            }
            sent
        };
        let honest = async {
            for _ in 0..5 {
                echoes(&link).await;
            }
        };
        let (sent, ()) = tokio::join!(flood, honest);
        sent_in_all += sent;
        echoes(&link).await;
        let grown = memory().saturating_sub(before);
        assert!(grown < 64 * MIB, "{what}: home grew by {} MiB", grown / MIB);
    }
    assert!(sent_in_all > 200 * MIB, "only {} MiB were sent: that is no flood", sent_in_all / MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_grants_all_and_reads_nothing_makes_home_keep_little() {
    let _alone = ALONE.lock().await;
    let mut house = House::open(quick()).await;
    let (link, _agent) = honest(&mut house).await;
    let mut raw = Raw::enter(house.address, "ticket-deaf").await;
    let deaf = house.arrival().await;
    let (before, piece) = (memory(), vec![b'x'; 64 * 1024]);
    let mut streams = Vec::new();
    for stream in 0..16 {
        streams.push(deaf.open("server").unwrap());
        raw.say(numbers(CREDIT, &[2 * stream, MOST])).await;
    }
    let mut taken = 0;
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until && taken < 256 * MIB {
        for stream in &mut streams {
            if let Ok(written) = timeout(Duration::from_millis(5), stream.write(&piece)).await {
                taken += written.unwrap_or_default();
            }
        }
        echoes(&link).await;
    }
    assert!(taken > MIB, "home took only {taken} bytes: nothing was tried");
    assert!(taken < 128 * MIB, "home took {} MiB for nobody", taken / MIB);
    let grown = memory().saturating_sub(before);
    assert!(grown < 128 * MIB, "home grew by {} MiB", grown / MIB);
}

/// Everything of Ada's that somebody may have seen, and none of it opens her link.
#[tokio::test(flavor = "multi_thread")]
async fn anothers_ticket_session_and_proof_are_worth_nothing() {
    let _alone = ALONE.lock().await;
    let mut house = House::open(quick()).await;
    let (home, ada, mallory) = (house.address, key(), key());
    let session = [9; 16];
    let of_ada = hello(&ada, "ticket-ada", session);
    let mut first = Raw::knock(home).await;
    first.say(of_ada.clone()).await;
    let challenge = first.hear().await;
    let of_ada_proof = proof(&ada, &of_ada, &challenge);
    first.say(of_ada_proof.clone()).await;
    assert_eq!(first.hear().await[0], WELCOME);
    let link = house.arrival().await;

    // Her words, heard on the way and said again.
    let mut again = Raw::knock(home).await;
    again.say(of_ada.clone()).await;
    assert_eq!(again.hear().await[0], 0x21);
    again.say(of_ada_proof.clone()).await;
    assert_eq!(again.hear().await[0], REFUSED, "a proof counts once");

    // Her ticket and session with another key, her key without a way to prove it.
    let stolen = hello(&mallory, "ticket-ada", session);
    assert_eq!(Raw::knock(home).await.introduce(&mallory, &stolen).await, REFUSED);
    assert_eq!(Raw::knock(home).await.introduce(&mallory, &of_ada).await, REFUSED);

    // Her session under an own ticket is another link.
    let mut own = Raw::knock(home).await;
    assert_eq!(own.introduce(&mallory, &hello(&mallory, "ticket-mallory", session)).await, WELCOME);
    let of_mallory = house.arrival().await;
    let mut stream = link.open("server").unwrap();
    stream.write_all(b"for ada").await.unwrap();
    let heard = soon("what is hers", async {
        loop {
            let message = first.hear().await;
            assert!(!message.is_empty(), "her lane was ended");
            if message.windows(7).any(|window| window == b"for ada") {
                return message;
            }
        }
    });
    heard.await;
    let overheard = timeout(Duration::from_millis(300), async {
        loop {
            let message = own.hear().await;
            assert!(!message.windows(7).any(|window| window == b"for ada"), "she was overheard");
            if message.is_empty() {
                return;
            }
        }
    });
    let _ = overheard.await;

    // A second proof on a lane that is up ends that session, and no other.
    own.say(of_ada_proof).await;
    let why = soon("the end of the own link", of_mallory.closed()).await;
    assert!(why.contains("unknown type"), "{why}");
    soon("her link alone is left", async {
        while house.home.links() != 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}
