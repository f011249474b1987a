//! Requests that want to be two, or another user's. Two servers stand behind one relay; whatever is sent under the
//! prefix of one, nothing arrives at the other that the standard's reading of those bytes does not send there, and a
//! server sees no request that the relay has not answered.

use std::sync::Arc;
use std::time::Duration;

use glidepath_spawner::arrivals::upstream::Upstream;
use glidepath_testkit::readers::read_by_standard;
use proptest::prelude::*;
use tokio::time::timeout;

use crate::house::{House, Reach, SOON, both_ways, leave, linked, own, run, serve_streams};
use crate::recorder::Recorder;

/// Ada's server and Bob's, one reached straight and one through a link.
struct Neighbours {
    house: House,
    ada: Recorder,
    bob: Recorder,
    /// Answers of the relay when the present attack began.
    answered_before: u64,
}

impl Neighbours {
    async fn open(reach_of_ada: Reach) -> Self {
        let house = House::empty("main").await;
        let (ada, bob) = (Recorder::start("ada"), Recorder::start("bob"));
        for (number, name, server) in [(1, "ada", &ada), (2, "bob", &bob)] {
            let straight = (name == "ada") == (reach_of_ada == Reach::Direct);
            let upstream = if straight {
                Upstream::direct(run(number), own(server.socket.clone()))
            } else {
                let (home, agent) = linked().await;
                leave(serve_streams(agent, server.socket.clone()));
                Upstream::new(run(number), home, None)
            };
            house.ready(&format!("/user/{name}/"), upstream);
        }
        Self { house, ada, bob, answered_before: 0 }
    }

    fn begin(&mut self) {
        self.ada.forget();
        self.bob.forget();
        self.answered_before = self.answers();
    }

    fn answers(&self) -> u64 {
        self.house.routes.answers().map(|(_, count)| count).sum()
    }

    /// Sends the bytes on a connection of its own and reads whatever comes until its end.
    async fn attack(&self, bytes: &[u8]) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let stream = tokio::net::TcpStream::connect(self.house.relay).await.unwrap();
        let (mut from, mut to) = stream.into_split();
        let send = async {
            let _ = to.write_all(bytes).await; // a relay may refuse before all is sent
            let _ = to.shutdown().await;
        };
        let mut answers = Vec::new();
        let receive = from.read_to_end(&mut answers);
        let both = async { tokio::join!(send, receive) };
        let ended = timeout(SOON, both).await;
        assert!(ended.is_ok(), "the relay never ends {:?}", String::from_utf8_lossy(bytes));
    }

    /// Both users are served as ever: no connection that is kept has something left on it.
    async fn honest_ones_are_served(&self, after: &str) {
        for name in ["ada", "bob"] {
            let request = format!("GET /user/{name}/honest HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
            let reply = self.house.told(&request).await;
            let own = format!("\r\n\r\n{name}");
            assert!(reply.starts_with("HTTP/1.1 200 ") && reply.ends_with(&own), "after {after}: {reply}");
        }
    }

    /// The targets that came to Ada and to Bob since the attack began, without the honest ones.
    fn check(&self, what: &str) -> (Vec<String>, Vec<String>) {
        self.ada.check_all_readers_agree(what);
        self.bob.check_all_readers_agree(what);
        let (ada, bob) = (self.ada.targets(), self.bob.targets());
        let answers = self.answers() - self.answered_before;
        assert!((ada.len() + bob.len()) as u64 <= answers, "{what}: {answers} answers for {ada:?}, {bob:?}");
        assert!(ada.iter().all(|target| target.starts_with("/user/ada")), "{what}: {ada:?}");
        let without_honest = |targets: Vec<String>| -> Vec<String> {
            targets.into_iter().filter(|target| !target.ends_with("/honest")).collect()
        };
        (without_honest(ada), without_honest(bob))
    }
}

/// What every trick hides.
const EVIL: &str = "GET /user/bob/evil HTTP/1.1\r\nHost: h\r\n\r\n";

/// A target, and whether Ada's server gets it. Bob's never does.
const TARGETS: &[(&str, bool)] = &[
    ("/user/ada/", true),
    ("/user/ada//user/bob/evil", true),
    ("/user/ada/x%2f..%2f..%2fbob/evil", true),
    ("/user/ada/%2F..%2F../bob/evil", true),
    ("/user/ada/..;/bob/evil", true),
    ("/user/ada/..\\..\\bob\\evil", true),
    ("/user/ada/%5c..%5cbob", true),
    ("/user/ada/%00/../bob", true),
    ("/user/ada/%c0%ae%c0%ae/bob/evil", true),
    ("/user/ada/%252e%252e/bob/evil", true),
    ("/user/ada/?/../../user/bob/evil", true),
    ("/user/ada/#/../../user/bob/evil", true),
    ("/user/ada/http://h/user/bob/evil", true),
    ("/user/ada/../bob/evil", false),
    ("/user/ada/x/../../bob/evil", false),
    ("/user/ada/%2e%2e/bob/evil", false),
    ("/user/ada/.%2E/bob/evil", false),
    ("/user/ada/%2e./bob/evil", false),
    ("/user/ada/./../bob/evil", false),
    ("/user/ada//../../bob/evil", false),
    ("/user/ada%2F..%2Fbob/evil", false),
    ("/user/ada%2f../bob/evil", false),
    ("/user/ada/..", false),
    ("/user/ada\\..\\bob\\evil", false),
    ("/user/ada;/../bob/evil", false),
    ("/user/ada%00/../bob/evil", false),
    ("/user/ada%00", false),
    ("/user/ada%0d%0aGET%20/user/bob/evil", false),
    ("/user/%c1%a1da/../bob/evil", false),
    ("/user%2Fada/", false),
    ("/user/./bob/evil", false),
    ("/user//bob/evil", false),
    ("//user/bob/evil", false),
    ("/./user/bob/evil", false),
    ("/user/bob%2fevil", false),
    ("/user/bob\\evil", false),
    ("/%75ser%2fbob/evil", false),
    ("user/bob/evil", false),
    ("bob:80", false),
    ("*", false),
    ("http://h/user/bob/evil", false),
    ("http://h/user/ada/", false),
    ("//h/user/bob/evil", false),
    ("\u{e9}/user/bob/evil", false),
];

both_ways! {
    async fn no_target_of_one_user_is_anothers(reach) {
        let mut both = Neighbours::open(reach).await;
        for method in ["GET", "POST", "OPTIONS", "CONNECT", "BREW"] {
            for (target, is_adas) in TARGETS {
                both.begin();
                let request = format!("{method} {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
                both.attack(request.as_bytes()).await;
                let (ada, bob) = both.check(&request);
                assert_eq!(bob, Vec::<String>::new(), "{method} {target}");
                assert_eq!(ada.len(), usize::from(*is_adas && method != "CONNECT"), "{method} {target}: {ada:?}");
            }
        }
        both.honest_ones_are_served("all of them").await;
    }

    async fn no_framing_hides_a_second_request(reach) {
        let mut both = Neighbours::open(reach).await;
        let framings = framings();
        assert!(framings.len() > 60, "the framings are missing");
        for Framing { what, bytes, at_ada } in framings {
            both.begin();
            both.attack(&bytes).await;
            both.honest_ones_are_served(&what).await;
            let (ada, bob) = both.check(&what);
            assert_eq!(bob, Vec::<String>::new(), "{what}");
            assert_eq!(ada.len(), at_ada, "{what}: {ada:?}");
        }
    }

    async fn requests_in_a_row_go_each_to_its_own_server(reach) {
        let mut both = Neighbours::open(reach).await;
        both.begin();
        let row = ["ada/1", "bob/2", "ada/3", "bob/4", "ada/5"]
            .map(|path| format!("POST /user/{path} HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"));
        both.attack(row.concat().as_bytes()).await;
        let (mut ada, mut bob) = both.check("a row of requests");
        ada.sort();
        bob.sort();
        assert_eq!((ada, bob), (
            vec!["/user/ada/1".to_owned(), "/user/ada/3".to_owned(), "/user/ada/5".to_owned()],
            vec!["/user/bob/2".to_owned(), "/user/bob/4".to_owned()],
        ));
    }
}

/// Bytes for Ada's server with something inside, and how many requests it may see.
struct Framing {
    what: String,
    bytes: Vec<u8>,
    at_ada: usize,
}

/// One request whose head has these lines and which is followed by this.
fn post(lines: &str, after: &str) -> Vec<u8> {
    format!("POST /user/ada/x HTTP/1.1\r\nHost: h\r\n{lines}\r\n\r\n{after}").into_bytes()
}

fn framings() -> Vec<Framing> {
    let mut all = Vec::new();
    let mut add = |at_ada: usize, bytes: Vec<u8>| {
        all.push(Framing { what: format!("{:?}", String::from_utf8_lossy(&bytes)), bytes, at_ada });
    };
    let evil_chunk = format!("{:x}\r\n{EVIL}\r\n0\r\n\r\n", EVIL.len());
    let evil_length = EVIL.len();

    // What is plain passes whole, whatever is in the body.
    add(1, post(&format!("Content-Length: {evil_length}"), EVIL));
    add(1, post("Transfer-Encoding: chunked", &evil_chunk));
    add(1, post("Transfer-Encoding: Chunked", &evil_chunk));
    add(1, post(&format!("Content-Length: 000{evil_length}"), EVIL));

    // Both framings: chunks count, and the connection ends with them.
    for lines in
        ["Content-Length: 0\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 0"]
    {
        add(1, post(lines, &evil_chunk));
        add(1, post(lines, &format!("0\r\n\r\n{EVIL}")));
    }
    add(
        1,
        post(
            &format!("Content-Length: {}\r\nTransfer-Encoding: chunked", evil_length + 5),
            &format!("0\r\n\r\n{EVIL}"),
        ),
    );
    add(1, post(&format!("Transfer-Encoding: chunked\r\nContent_Length: {evil_length}"), &evil_chunk));

    // A coding that some do not know, and lengths that some read otherwise: not even the head passes.
    for coding in [
        "chunked, identity",
        "identity, chunked",
        "identity",
        "gzip",
        "gzip, chunked, x",
        "xchunked",
        "chunked;q=1",
        "\"chunked\"",
        "chunked\0",
        "chunked chunked",
        "chu nked",
        "chunked\r\nTransfer-Encoding: identity",
        "identity\r\nTransfer-Encoding: x",
        "\x0bchunked",
        "chunked\x0b",
        "chunk\u{e9}d",
    ] {
        add(0, post(&format!("Transfer-Encoding: {coding}"), &format!("0\r\n\r\n{EVIL}")));
        add(0, post(&format!("Content-Length: {evil_length}\r\nTransfer-Encoding: {coding}"), EVIL));
    }
    for length in [
        "+3",
        "-3",
        "0x3",
        "3 ,3",
        "3, 4",
        "3;3",
        "3 3",
        "\"3\"",
        "3.0",
        "1e1",
        "99999999999999999999999",
        "3\0",
        "\x0b3",
    ] {
        add(0, post(&format!("Content-Length: {length}"), &format!("abc{EVIL}")));
    }
    add(0, post("Content-Length: 3\r\nContent-Length: 4", "abcd"));
    add(0, post(&format!("Content-Length: 0\r\nContent-Length: {evil_length}"), EVIL));

    // Lines that some read as one more field, or as none.
    for lines in [
        "Transfer-Encoding : chunked",
        "Transfer-Encoding\t: chunked",
        " Transfer-Encoding: chunked",
        "\tTransfer-Encoding: chunked",
        "X: y\r\n Transfer-Encoding: chunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding\r\n: chunked",
        ": chunked",
        "X: y\rTransfer-Encoding: chunked",
        "X: y\0Transfer-Encoding: chunked",
        "Transfer\0-Encoding: chunked",
        "no colon",
        "Content-Length : 3",
        "Content-Length\0: 3",
        "X y: z",
        "Host: bob",
        "Host : bob",
        "(X): y",
        "X: \x7f\r\n\x01: y",
    ] {
        add(0, post(lines, &format!("0\r\n\r\n{EVIL}")));
    }

    // Chunks that some read shorter or longer than others.
    for chunks in [
        format!("3;a\nb\r\nabc\r\n0\r\n\r\n{EVIL}"),
        format!("3\nabc\r\n0\r\n\r\n{EVIL}"),
        format!("3;\rabc\r\n0\r\n\r\n{EVIL}"),
        format!("0x3\r\nabc\r\n0\r\n\r\n{EVIL}"),
        format!("+3\r\nabc\r\n0\r\n\r\n{EVIL}"),
        format!("-1\r\nabc\r\n0\r\n\r\n{EVIL}"),
        format!("\r\n3\r\nabc\r\n0\r\n\r\n{EVIL}"),
        format!("3\r\nabcd\r\n0\r\n\r\n{EVIL}"),
        format!("3\r\nabc0\r\n\r\n{EVIL}"),
        format!("10000000000000003\r\nabc\r\n0\r\n\r\n{EVIL}"),
        format!("g\r\n{EVIL}"),
        format!("3\r\nabc\n0\r\n\r\n{EVIL}"),
    ] {
        add(0, post("Transfer-Encoding: chunked", &chunks));
    }

    // An upgrade: nothing after its head is HTTP for anybody but the server that agreed, and only once it has.
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket";
    let switch = |lines: &str, after: &str| {
        format!("GET /user/ada/switch HTTP/1.1\r\nHost: h\r\n{lines}\r\n\r\n{after}").into_bytes()
    };
    add(1, switch(upgrade, EVIL));
    add(1, switch(&format!("{upgrade}\r\nContent-Length: {evil_length}"), EVIL));
    add(1, switch(&format!("{upgrade}\r\nTransfer-Encoding: chunked"), &evil_chunk));
    add(1, switch("Connection: Upgrade\r\nUpgrade: h2c, websocket", ""));
    add(
        1,
        switch("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__", ""),
    );
    add(1, post(&format!("{upgrade}\r\nContent-Length: {evil_length}"), EVIL));

    // What is on the way must not be turned into something else by naming it in `Connection`.
    for name in ["Content-Length", "Host", "Transfer-Encoding", "Upgrade", "Cookie", "Expect"] {
        add(1, post(&format!("Connection: {name}\r\nContent-Length: {evil_length}"), EVIL));
    }

    // Trailers are no head.
    for trailer in ["Host: bob", "Content-Length: 500", "Transfer-Encoding: gzip", "Connection: close"] {
        add(
            1,
            post(
                "Transfer-Encoding: chunked\r\nTrailer: Host, Content-Length, Transfer-Encoding, Connection\r\nTE: trailers\r\nConnection: TE",
                &format!("3\r\nabc\r\n0\r\n{trailer}\r\n\r\n"),
            ),
        );
    }

    // Lines that are no requests of HTTP/1.
    for first in [
        "GET /user/ada/x HTTP/1.1 HTTP/1.1",
        "GET /user/ada/x",
        "GET  /user/bob/evil HTTP/1.1",
        "GET\t/user/bob/evil\tHTTP/1.1",
        "GET /user/ada/ /user/bob/evil HTTP/1.1",
        "GET /user/ada/x HTTP/2.0",
        "GET /user/ada/x http/1.1",
        "PRI * HTTP/2.0",
        "GET\0 /user/ada/x HTTP/1.1",
        "G\u{e9}T /user/ada/x HTTP/1.1",
    ] {
        add(0, format!("{first}\r\nHost: h\r\n\r\n{EVIL}").into_bytes());
    }
    add(0, format!("GET /user/ada/{} HTTP/1.1\r\nHost: h\r\n\r\n", "x".repeat(70_000)).into_bytes());
    add(0, post(&format!("X: {}", "y".repeat(100_000)), ""));
    add(0, post(&(0..300).map(|n| format!("X{n}: y\r\n")).collect::<String>(), ""));
    all
}

/// Requests put together from what is odd, now and then damaged.
fn odd_bytes() -> impl Strategy<Value = Vec<u8>> {
    let first = (
        prop::sample::select(vec!["GET", "POST", "PUT", "HEAD", "OPTIONS"]),
        prop_oneof![
            6 => Just("/user/ada/x"),
            1 => Just("/user/ada/switch"),
            1 => Just("/user/ada/../bob/evil"),
            1 => Just("http://h/user/bob/evil"),
        ],
        prop_oneof![8 => Just("HTTP/1.1\r\n"), 1 => Just("HTTP/1.0\r\n"), 1 => Just("HTTP/1.1\n"), 1 => Just("HTTP/1.1\r")],
    );
    let lines = prop::collection::vec((line(), line_end()), 0..3);
    let damage = (
        any::<prop::sample::Index>(),
        0_u8..3,
        prop::sample::select(b"\r\n\0 \t:;,0x3+_\x0b\x7f\xff".to_vec()),
    );
    let damages = prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec(damage, 1..3)];
    (prop::collection::vec((first, lines, framing()), 1..3), damages).prop_map(|(requests, damages)| {
        let mut bytes = Vec::new();
        for ((method, target, version), lines, (framing, body)) in requests {
            let lines: String = lines.iter().map(|(line, end)| format!("{line}{end}")).collect();
            let head = format!("{method} {target} {version}Host: h\r\n{lines}{framing}\r\n");
            bytes.extend_from_slice(format!("{head}{body}").as_bytes());
        }
        for (at, kind, byte) in damages {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => drop(bytes.remove(at)),
            }
        }
        bytes
    })
}

fn line() -> impl Strategy<Value = &'static str> {
    let harmless = prop::sample::select(vec![
        "X: y",
        "Connection: close",
        "TE: trailers",
        "Trailer: Host",
        "Upgrade: h2c",
    ]);
    let odd = prop::sample::select(vec![
        "Content-Length : 3",
        "Content_Length: 3",
        "Content-Length: 3, 3",
        "Content-Length: 3",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: chunked",
        "Transfer-Encoding:\x0bchunked",
        "Transfer_Encoding: chunked",
        "\tContent-Length: 3",
        "Connection: Upgrade\r\nUpgrade: websocket",
        "Connection: Content-Length, Transfer-Encoding, TE",
        "X: \ry",
        "no colon",
        "Host: bob",
    ]);
    prop_oneof![3 => harmless, 2 => odd]
}

fn line_end() -> impl Strategy<Value = &'static str> {
    prop_oneof![8 => Just("\r\n"), 1 => prop::sample::select(vec!["\n", "\r", "\n\r", "\r\r\n"])]
}

/// Lines that say how long the body is, and a body: one that fits or one that does not.
fn framing() -> impl Strategy<Value = (String, String)> {
    let sized = |length: usize| format!("Content-Length: {length}\r\n");
    let chunked = || "Transfer-Encoding: chunked\r\n".to_owned();
    let chunk = format!("{:x}\r\n{EVIL}\r\n0\r\n", EVIL.len());
    let fitting = vec![
        (String::new(), String::new()),
        (sized(EVIL.len()), EVIL.to_owned()),
        (sized(3), "abc".into()),
        (chunked(), format!("{chunk}\r\n")),
        (chunked(), format!("{chunk}Host: bob\r\n\r\n")),
    ];
    let odd = vec![
        (sized(0), EVIL.to_owned()),
        (sized(3), format!("0\r\n\r\n{EVIL}")),
        (chunked(), format!("3;x\nabc\r\n0\r\n\r\n{EVIL}")),
        (chunked(), format!("0\r\n{EVIL}")),
        (chunked() + &sized(5), format!("0\r\n\r\n{EVIL}")),
        (sized(EVIL.len()) + &chunked(), format!("{chunk}\r\n")),
        (String::new(), format!("{chunk}\r\n")),
    ];
    prop_oneof![2 => prop::sample::select(fitting), 1 => prop::sample::select(odd)]
}

/// However a request is put together and damaged: what arrives is what the standard's reading of it sends there.
#[test]
fn no_bytes_for_one_user_make_a_request_of_another() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for reach in [Reach::Direct, Reach::Link] {
        let both = Arc::new(tokio::sync::Mutex::new(runtime.block_on(Neighbours::open(reach))));
        let arrived = std::cell::Cell::new(0_usize);
        let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
        proptest!(config, |(bytes in odd_bytes())| {
            let what = format!("{:?}", String::from_utf8_lossy(&bytes));
            let (ada, bob) = runtime.block_on(async {
                let mut both = both.lock().await;
                both.begin();
                both.attack(&bytes).await;
                both.honest_ones_are_served(&what).await;
                both.check(&what)
            });
            arrived.set(arrived.get() + ada.len());
            let reached: Vec<String> = ada.into_iter().chain(bob).collect();
            let meant = read_by_standard(&bytes).iter().any(|reading| reading.asks_for(&reached));
            prop_assert!(meant, "{:?} reached servers by {}", reached, what);
        });
        assert!(arrived.get() > 50, "only {} requests passed: these bytes try nothing", arrived.get());
    }
    runtime.shutdown_timeout(Duration::from_secs(1));
}
