//! Thousands of connections that say half of what they should, at each listener of the real program.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;

use super::place::{Place, Serving};

const FLOOD: usize = 10_000;
/// What the service may hold for a flood: some ten KiB for each connection.
const GROWTH_MAX_MIB: usize = 256;
const SOON: Duration = Duration::from_secs(20);

/// One flood at a time: together they are more than one process may have open.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// The program, and where it listens.
struct Attacked {
    _alone: MutexGuard<'static, ()>,
    place: Place,
    serving: Serving,
    attach: Value,
    memory_before: usize,
}

impl Attacked {
    async fn start() -> Self {
        let alone = ONE_AT_A_TIME.lock().await;
        let place = Place::new();
        let serving = place.serve();
        let attach = serde_json::from_slice(&fs::read(place.path("state/service.json")).unwrap()).unwrap();
        let memory_before = memory_mib(&serving);
        Self { _alone: alone, place, serving, attach, memory_before }
    }

    fn api(&self) -> SocketAddr {
        address(self.attach["api"].as_str().unwrap())
    }

    fn relay(&self) -> SocketAddr {
        address(self.attach["relays"]["main"].as_str().unwrap())
    }

    fn link(&self) -> SocketAddr {
        address(self.attach["link"].as_str().unwrap())
    }

    fn memory_is_bounded(&self, what: &str) {
        let grown = memory_mib(&self.serving).saturating_sub(self.memory_before);
        assert!(grown < GROWTH_MAX_MIB, "{what}: the service grew by {grown} MiB");
    }

    /// TLS as an agent speaks it.
    async fn knock(&self, from: Ipv4Addr) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        let pem = fs::read(self.place.path("state/ca/ca.pem")).unwrap();
        roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::from(std::net::IpAddr::from(Ipv4Addr::LOCALHOST));
        let stream = connect(from, self.link()).await?;
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    async fn an_agent_is_answered(&self) {
        let mut agent = timeout(SOON, self.knock(Ipv4Addr::LOCALHOST)).await.unwrap().unwrap();
        agent.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        let _ = timeout(SOON, agent.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    }
}

fn address(url: &str) -> SocketAddr {
    let (_, rest) = url.split_once("://").unwrap();
    rest.split('/').next().unwrap().parse().unwrap()
}

fn memory_mib(serving: &Serving) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", serving.0.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() / 1024
}

async fn connect(from: Ipv4Addr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    socket.connect(to).await
}

/// Lets this process have so many open. Root may raise what others are bound by.
fn room_for_a_flood() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let most = hard.max(FLOOD as u64 + 500);
    setrlimit(Resource::RLIMIT_NOFILE, most, most)
        .unwrap_or_else(|_| panic!("only {hard} open files are allowed; raise ulimit -Hn to {most}"));
}

/// Connections that say one of these and then nothing, from ten addresses.
async fn flood(to: SocketAddr, halves: &[&[u8]]) -> Vec<TcpStream> {
    room_for_a_flood();
    let mut open = Vec::new();
    for number in 0..FLOOD {
        let from = Ipv4Addr::new(127, 0, 1, (number % 10) as u8 + 1);
        let mut stream = timeout(SOON, connect(from, to)).await.expect("the door is stuck").unwrap();
        let _ = stream.write_all(halves[number % halves.len()]).await; // it may be sent away already
        open.push(stream);
    }
    open
}

/// How many the other side has not closed.
fn still_open(streams: &mut [TcpStream]) -> usize {
    let mut open = 0;
    for stream in streams {
        let mut byte = [0; 256];
        let ended = loop {
            match stream.try_read(&mut byte) {
                Ok(0) => break true,
                Ok(_) => {}
                Err(error) => break error.kind() != std::io::ErrorKind::WouldBlock,
            }
        };
        open += usize::from(!ended);
    }
    open
}

async fn all_closed_within(streams: &mut [TcpStream], wait: Duration) {
    let until = Instant::now() + wait;
    loop {
        // Readiness is noticed by the runtime, not by `try_read` alone.
        sleep(Duration::from_millis(200)).await;
        let open = still_open(streams);
        if open == 0 {
            return;
        }
        assert!(Instant::now() < until, "{open} are open after {wait:?}");
    }
}

async fn ask(to: SocketAddr, request: &str) -> String {
    let mut stream = timeout(SOON, TcpStream::connect(to)).await.expect("the door is stuck").unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let _ = timeout(SOON, stream.read_to_string(&mut answer)).await.expect("no answer in time");
    answer
}

const HALF_HEADS: [&[u8]; 3] = [b"", b"GET /v1/ver", b"GET /v1/version HTTP/1.1\r\nHost: h\r\nX: "];
const VERSION: &str = "GET /v1/version HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
const NO_SERVER: &str = "GET /user/ada/ HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
/// Lets in whoever comes within 60 s.
const HEAD_WAIT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn ten_thousand_half_requests_at_the_api_keep_no_hub_out() {
    let service = Attacked::start().await;
    let mut open = flood(service.api(), &HALF_HEADS).await;
    for _ in 0..20 {
        let answer = ask(service.api(), VERSION).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    service.memory_is_bounded("half requests at the API");
    assert!(still_open(&mut open) <= 1024, "more are kept than there are places");
}

#[tokio::test]
async fn ten_thousand_half_requests_at_the_relay_keep_no_browser_out() {
    let service = Attacked::start().await;
    let _open = flood(service.relay(), &HALF_HEADS).await;
    for _ in 0..20 {
        let answer = ask(service.relay(), NO_SERVER).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("No such server"), "{answer}");
    }
    let answer = ask(service.api(), VERSION).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "another listener suffers: {answer}");
    service.memory_is_bounded("half requests at the relay");
}

#[tokio::test]
async fn ten_thousand_half_handshakes_keep_no_agent_out_and_are_closed_in_time() {
    let service = Attacked::start().await;
    // Nothing; the start of a record; a record that announces more than comes; no TLS at all, and not whole.
    let halves: [&[u8]; 4] = [b"", b"\x16\x03\x01", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x16"];
    let mut open = flood(service.link(), &halves).await;
    service.an_agent_is_answered().await;
    // Whole TLS, and then half an upgrade.
    let mut inside = Vec::new();
    for number in 0..300 {
        let mut stream = service.knock(Ipv4Addr::new(127, 0, 2, (number % 5) as u8 + 1)).await.unwrap();
        stream.write_all(b"GET /link HTTP/1.1\r\nX: ").await.unwrap();
        inside.push(stream);
    }
    service.an_agent_is_answered().await;
    service.memory_is_bounded("half handshakes");
    all_closed_within(&mut open, Duration::from_secs(15)).await;
    for mut stream in inside {
        let _ = timeout(Duration::from_secs(15), stream.read_to_end(&mut Vec::new()))
            .await
            .expect("open for ever");
    }
}

#[tokio::test]
async fn bodies_that_never_come_are_answered_or_cut_and_hold_nothing_up() {
    let service = Attacked::start().await;
    let start = "PUT /v1/hubs/main/servers/main.ada. HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n{";
    let upload = "POST /user/ada/x HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\nx";
    let mut slow = Vec::new();
    for number in 0..1500 {
        let (to, half) = if number % 2 == 0 { (service.api(), start) } else { (service.relay(), upload) };
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.write_all(half.as_bytes()).await.unwrap();
        slow.push(stream);
    }
    assert!(ask(service.api(), VERSION).await.starts_with("HTTP/1.1 200 "));
    assert!(ask(service.relay(), NO_SERVER).await.starts_with("HTTP/1.1 503 "));
    service.memory_is_bounded("bodies that never come");
    for (number, stream) in slow.iter_mut().enumerate() {
        let mut answer = String::new();
        let _ = timeout(SOON, stream.read_to_string(&mut answer)).await.expect("open for ever");
        let status = if number % 2 == 0 { "HTTP/1.1 401 " } else { "HTTP/1.1 503 " };
        assert!(answer.starts_with(status), "{answer}");
    }
}

#[tokio::test]
#[ignore = "waits for a minute: make flood"]
async fn half_requests_are_closed_after_their_minute() {
    let service = Attacked::start().await;
    let mut at_the_relay = flood(service.relay(), &HALF_HEADS).await;
    let mut at_the_api = Vec::new();
    for half in HALF_HEADS {
        let mut stream = TcpStream::connect(service.api()).await.unwrap();
        stream.write_all(half).await.unwrap();
        at_the_api.push(stream);
    }
    sleep(HEAD_WAIT / 2).await;
    assert_eq!(still_open(&mut at_the_relay), at_the_relay.len(), "closed too early");
    all_closed_within(&mut at_the_relay, HEAD_WAIT).await;
    all_closed_within(&mut at_the_api, Duration::from_secs(5)).await;
    assert!(ask(service.relay(), NO_SERVER).await.starts_with("HTTP/1.1 503 "));
}
