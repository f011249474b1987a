//! The home end before agents that do not play by the rules. They speak over a pipe in memory, with paused time.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::*;
use crate::link::LinkState;
use crate::proto::frame::{self, CloseKind, Frame};
use crate::proto::handshake::{Key, VERSIONS, Verdict, decode_challenge, decode_verdict};

/// Admits everybody under one name.
#[derive(Default)]
struct Open {
    asked: AtomicUsize,
    links: Mutex<Vec<Link>>,
}

#[async_trait]
impl Gate for Open {
    async fn admit(&self, _: Knock) -> Result<Admitted, Refusal> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Ok(Admitted { identity: "ada".into() })
    }

    fn linked(&self, _: &Admitted, link: Link) {
        lock(&self.links).push(link);
    }
}

struct Scene {
    home: HomeEnd,
    gate: Arc<Open>,
    served: JoinSet<()>,
}

/// Another implementation than the one that is tested.
type Socket = WebSocketStream<DuplexStream>;

async fn send(socket: &mut Socket, message: Bytes) -> Result<(), tungstenite::Error> {
    socket.send(Message::Binary(message)).await
}

/// The next binary message; an error when there is none.
async fn receive(socket: &mut Socket) -> Result<Bytes, tungstenite::Error> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Binary(bytes))) => return Ok(bytes),
            Some(Ok(Message::Text(text))) => panic!("a text message: {text}"),
            Some(Ok(Message::Close(_))) | None => return Err(tungstenite::Error::ConnectionClosed),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error),
        }
    }
}

impl Scene {
    fn new() -> Self {
        let gate = Arc::new(Open::default());
        Scene { home: HomeEnd::new(HomeConfig::default(), gate.clone()), gate, served: JoinSet::new() }
    }

    fn pipe(&mut self) -> DuplexStream {
        let (near, far) = duplex(1 << 20);
        let home = self.home.clone();
        self.served.spawn(async move { home.serve(far, ([127, 0, 0, 1], 1).into()).await });
        near
    }

    async fn knock(&mut self) -> Socket {
        let pipe = self.pipe();
        client_async("ws://home/link", pipe).await.unwrap().0
    }

    /// A whole handshake of an honest agent.
    async fn enter(&mut self, key: &Key) -> Socket {
        self.enter_as(key, [5; 16]).await
    }

    async fn enter_as(&mut self, key: &Key, session: [u8; 16]) -> Socket {
        let mut socket = self.knock().await;
        let hello = hello_of(key, session, VERSIONS);
        send(&mut socket, hello.clone()).await.unwrap();
        let challenge = receive(&mut socket).await.unwrap();
        send(&mut socket, key.prove(&hello, &challenge)).await.unwrap();
        let verdict = decode_verdict(&receive(&mut socket).await.unwrap()).unwrap();
        assert!(matches!(verdict, Verdict::Welcome(_)), "{verdict:?}");
        socket
    }

    fn link(&self) -> Link {
        lock(&self.gate.links).last().cloned().expect("a link")
    }
}

fn hello(key: &Key, versions: (u16, u16)) -> Bytes {
    hello_of(key, [5; 16], versions)
}

fn hello_of(key: &Key, session: [u8; 16], versions: (u16, u16)) -> Bytes {
    Hello {
        versions,
        key: key.public(),
        session,
        credential: "ticket".into(),
        home: "home:80".into(),
        software: "agent/0".into(),
        capabilities: vec![],
    }
    .encode()
}

fn message(frames: &[Frame]) -> Bytes {
    let mut out = BytesMut::new();
    frames.iter().for_each(|frame| frame.put(&mut out));
    out.freeze()
}

async fn refusal(socket: &mut Socket) -> Refused {
    match decode_verdict(&receive(socket).await.unwrap()).unwrap() {
        Verdict::Refused(refused) => refused,
        Verdict::Welcome(_) => panic!("welcomed"),
    }
}

/// What a lane is told before it ends.
async fn goodbye(socket: &mut Socket) -> Option<(CloseKind, String)> {
    let mut said = None;
    while let Ok(mut message) = receive(socket).await {
        while let Some(frame) = frame::next(&mut message).unwrap() {
            if let Frame::Close { kind, reason } = frame {
                said = Some((kind, reason));
            }
        }
    }
    said
}

#[tokio::test(start_paused = true)]
async fn a_proof_that_was_heard_on_another_connection_opens_nothing() {
    let (mut scene, key) = (Scene::new(), Key::generate().unwrap());
    let hello = hello(&key, VERSIONS);
    let mut first = scene.knock().await;
    send(&mut first, hello.clone()).await.unwrap();
    let challenge = receive(&mut first).await.unwrap();
    let proof = key.prove(&hello, &challenge);
    send(&mut first, proof.clone()).await.unwrap();
    receive(&mut first).await.unwrap();

    let mut second = scene.knock().await;
    send(&mut second, hello).await.unwrap();
    assert_ne!(receive(&mut second).await.unwrap(), challenge, "a challenge is fresh");
    send(&mut second, proof).await.unwrap();
    let refused = refusal(&mut second).await;
    assert_eq!((refused.after, refused.sentence.as_str()), (None, "the proof of the key is wrong"));
    assert_eq!(scene.gate.asked.load(Ordering::SeqCst), 1, "the gate was asked for the first one only");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_the_agent_does_not_hold_opens_nothing() {
    let (mut scene, key, other) = (Scene::new(), Key::generate().unwrap(), Key::generate().unwrap());
    let mut socket = scene.knock().await;
    let hello = hello(&key, VERSIONS);
    send(&mut socket, hello.clone()).await.unwrap();
    let challenge = receive(&mut socket).await.unwrap();
    send(&mut socket, other.prove(&hello, &challenge)).await.unwrap();
    assert_eq!(refusal(&mut socket).await.after, None);
    assert_eq!(scene.gate.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn an_agent_of_another_version_is_refused_in_words_but_not_for_good() {
    let (mut scene, key) = (Scene::new(), Key::generate().unwrap());
    let mut socket = scene.knock().await;
    send(&mut socket, hello(&key, (7, 9))).await.unwrap();
    let answer = receive(&mut socket).await.unwrap();
    let refused = decode_challenge(&answer).unwrap().unwrap_err();
    assert!(refused.after.is_some());
    assert!(
        refused.sentence.contains("versions 1 to 1") && refused.sentence.contains("7 to 9"),
        "{refused:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_handshake_has_one_deadline_however_its_parts_crawl() {
    let mut scene = Scene::new();
    let began = Instant::now();
    let mut pipe = scene.pipe();
    for byte in b"GET /link HTTP/1.1\r\nX: ".iter().cycle() {
        tokio::time::sleep(Duration::from_millis(700)).await;
        if pipe.write_all(&[*byte]).await.is_err() {
            break;
        }
    }
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    let mut left = Vec::new();
    let _ = pipe.read_to_end(&mut left).await;
    let mut socket = scene.knock().await;
    assert!(receive(&mut socket).await.is_err(), "a handshake without HELLO ends too");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_breaks_the_protocol_loses_its_link_and_is_told_why() {
    let over_credit = Frame::Data { stream: 1, offset: 262_144, bytes: Bytes::from_static(b"x") };
    let not_opened = Frame::Data { stream: 4, offset: 0, bytes: Bytes::from_static(b"x") };
    let cases = [
        (Message::Binary(message(&[over_credit])), "credit"),
        (Message::Binary(message(&[not_opened])), "never opened"),
        (Message::Binary(Bytes::from_static(&[0x3f, 0])), "unknown type"),
        (Message::Text("hello".into()), "text"),
    ];
    for (bad, expected) in cases {
        let (mut scene, key) = (Scene::new(), Key::generate().unwrap());
        let mut socket = scene.enter(&key).await;
        socket.send(bad).await.unwrap();
        let said = goodbye(&mut socket).await.map(|(_, reason)| reason);
        assert!(said.as_ref().is_some_and(|said| said.contains(expected)), "{said:?}; expected {expected}");
        assert!(scene.link().closed().await.contains(expected));
        scene.served.join_next().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_says_nothing_is_given_up_and_its_link_closes_after_the_resume_time() {
    let (mut scene, key) = (Scene::new(), Key::generate().unwrap());
    let began = Instant::now();
    let _silent = scene.enter(&key).await;
    let link = scene.link();
    let mut state = link.watch();
    state.wait_for(|state| matches!(state, LinkState::Cut { .. })).await.unwrap();
    let noticed = began.elapsed();
    assert!((Duration::from_secs(9)..Duration::from_secs(16)).contains(&noticed), "{noticed:?}");
    link.closed().await;
    let closed = began.elapsed();
    assert!((Duration::from_secs(74)..Duration::from_secs(83)).contains(&closed), "{closed:?}");
    assert_eq!(scene.home.links(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_agent_whose_way_is_back_after_a_minute_finds_its_link_in_spite_of_the_handshake() {
    let (mut scene, key) = (Scene::new(), Key::generate().unwrap());
    let mut state = {
        drop(scene.enter(&key).await);
        scene.link().watch()
    };
    state.wait_for(|state| matches!(state, LinkState::Cut { .. })).await.unwrap();
    // The way is back after 60 s, the next dial begins 0.6 s later, and has six slow round trips.
    tokio::time::sleep(Duration::from_millis(60_000 + 600 + 6 * 500)).await;
    scene.enter(&key).await;
    assert_eq!(lock(&scene.gate.links).len(), 1, "it is the same link");
}

#[tokio::test(start_paused = true)]
async fn an_agent_whose_welcome_was_lost_comes_back_to_the_same_link() {
    let (mut scene, key) = (Scene::new(), Key::generate().unwrap());
    let mut socket = scene.knock().await;
    let hello = hello(&key, VERSIONS);
    send(&mut socket, hello.clone()).await.unwrap();
    let challenge = receive(&mut socket).await.unwrap();
    send(&mut socket, key.prove(&hello, &challenge)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    drop(socket);
    scene.enter(&key).await;
    assert_eq!(lock(&scene.gate.links).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_dial_of_a_former_session_that_comes_late_ends_no_agent() {
    let (mut scene, key) = (Scene::new(), Key::generate().unwrap());
    let mut present = scene.enter_as(&key, [6; 16]).await;
    let link = scene.link();
    let _late = scene.enter_as(&key, [5; 16]).await;
    assert_eq!(goodbye(&mut present).await, None, "the agent dials again; it is told no end");
    assert!(link.closed().await.contains("took its place"));
    scene.enter_as(&key, [6; 16]).await;
    assert_eq!(scene.home.links(), 1);
}
