//! The server's calls of the Hub's API, and everything that is not one.

use std::time::Duration;

use glidepath_api_types::agent::{HUB_API_STREAMS_MAX, Phase};
use glidepath_testkit::readers::{STRICT, loose, read};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::house::{Control, Home, Job, SOON, TOKEN, script};

#[tokio::test]
async fn a_call_goes_home_without_the_prefix_and_its_answer_comes_back() {
    let house = House::open().await;
    let body = r#"{"last_activity":"now"}"#;
    let request = format!(
        "POST {}/users/a%40b/activity?x=1 HTTP/1.1\r\nHost: h\r\nAuthorization: token abc\r\nConnection: close, X-Hop\r\n\
         X-Hop: 1\r\nContent-Length: {}\r\n\r\n{body}",
        house.path,
        body.len()
    );
    let (seen, answer) = tokio::join!(
        house.home_answers("HTTP/1.1 201 Created\r\nX-Hub: yes\r\nKeep-Alive: 5\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", body),
        house.server_asks(&request)
    );
    assert!(seen.starts_with("POST /jhub/hub/api/users/a%40b/activity?x=1 HTTP/1.1\r\n"), "{seen}");
    let seen = seen.to_ascii_lowercase();
    assert!(
        seen.contains("authorization: token abc") && seen.ends_with(&body.to_ascii_lowercase()),
        "{seen}"
    );
    assert!(!seen.contains("x-hop") && !seen.contains(&house.prefix), "{seen}");
    assert!(answer.starts_with("HTTP/1.1 201 Created\r\n") && answer.contains("x-hub: yes"), "{answer}");
    assert!(!answer.contains("keep-alive: 5") && answer.contains("\r\nok\r\n"), "{answer}");
}

#[tokio::test]
async fn anything_without_the_prefix_is_not_found() {
    let house = House::open().await;
    let mut wrong = house.prefix.clone().into_bytes();
    let last = wrong.len() - 1;
    wrong[last] = if wrong[last] == b'0' { b'1' } else { b'0' };
    let wrong = String::from_utf8(wrong).unwrap();
    let prefix = &house.prefix;
    for target in [
        "/",
        "/hub/api",
        &format!("/{wrong}/hub/api"),
        &format!("/{prefix}"),
        &format!("/{prefix}x/hub/api"),
        "*",
    ] {
        let method = if target == "*" { "OPTIONS" } else { "GET" };
        let answer = house.server_asks(&format!("{method} {target} HTTP/1.1\r\nHost: h\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{target}: {answer}");
        assert!(
            answer.contains("connection: close"),
            "who does not know the prefix keeps no place: {answer}"
        );
    }
    house.nothing_went_home().await;
}

#[tokio::test]
async fn connect_and_upgrade_are_refused() {
    let house = House::open().await;
    let connect = "CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\nConnection: close\r\n\r\n";
    assert!(house.server_asks(connect).await.starts_with("HTTP/1.1 404"));
    let upgrade = format!(
        "GET {} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        house.path
    );
    assert!(house.server_asks(&upgrade).await.starts_with("HTTP/1.1 405"));
    house.nothing_went_home().await;
}

/// A child that knows the prefix says one call in two ways: home gets one, or none.
#[tokio::test]
async fn no_framing_hides_a_second_call() {
    let house = House::open().await;
    let evil = "GET /jhub/hub/home HTTP/1.1\r\nHost: h\r\n\r\n";
    let chunks = format!("{:x}\r\n{evil}\r\n0\r\n\r\n", evil.len());
    let head = format!("POST {} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n", house.path);
    for (lines, body) in [
        (format!("Content-Length: {}", evil.len()), evil),
        ("Transfer-Encoding: chunked".into(), &chunks),
        ("Transfer-Encoding: chunked\r\nContent-Length: 0".into(), &chunks),
        ("Content-Length: 0\r\nTransfer-Encoding: chunked".into(), &chunks),
    ] {
        let request = format!("{head}{lines}\r\n\r\n{body}");
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let (seen, answer) = tokio::join!(house.home_answers(answer, evil), house.server_asks(&request));
        assert!(answer.starts_with("HTTP/1.1 200"), "{lines}: {answer}");
        for rules in loose().chain([STRICT]) {
            let reading = read(seen.as_bytes(), rules);
            assert_eq!(
                (reading.requests.len(), reading.refused),
                (1, None),
                "{lines}: {rules:?} of {seen:?}"
            );
        }
    }
    let empty_and_evil = format!("0\r\n\r\n{evil}");
    for lines in [
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding : chunked",
        "Content-Length: 0\r\nContent-Length: 40",
        "Content-Length: +40",
        "X: y\r\n Content-Length: 40",
        "X: y\rTransfer-Encoding: chunked",
    ] {
        let answer = house.server_asks(&format!("{head}{lines}\r\n\r\n{empty_and_evil}")).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{lines}: {answer}");
    }
    house.nothing_went_home().await;
}

#[tokio::test]
async fn a_body_or_head_that_is_too_large_is_refused() {
    let house = House::open().await;
    let large = "x".repeat(2 * 1024 * 1024);
    let told =
        format!("POST {} HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{large}", house.path, large.len());
    assert!(house.server_asks(&told).await.starts_with("HTTP/1.1 413"));
    let untold = format!(
        "POST {} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n200000\r\n{large}\r\n0\r\n\r\n",
        house.path
    );
    assert!(house.server_asks(&untold).await.starts_with("HTTP/1.1 413"));
    let head = format!("GET {} HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", house.path, "x".repeat(80_000));
    assert!(house.server_asks(&head).await.starts_with("HTTP/1.1 431"));
    house.nothing_went_home().await;
}

#[tokio::test]
async fn a_connection_that_asks_nothing_is_closed_soon() {
    let house = House::open().await;
    let mut silent = TcpStream::connect(("127.0.0.1", house.port)).await.unwrap();
    let over = timeout(Duration::from_secs(8), silent.read_u8()).await;
    assert!(over.expect("it is closed").is_err());
}

#[tokio::test]
async fn no_more_calls_are_under_way_than_home_takes_and_the_next_has_its_turn() {
    let house = House::open().await;
    let request = format!("GET {} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", house.path);
    let mut asking = JoinSet::new();
    for _ in 0..=HUB_API_STREAMS_MAX {
        let (port, request) = (house.port, request.clone());
        asking.spawn(async move { ask(port, &request).await });
    }
    let mut calls = Vec::new();
    for _ in 0..HUB_API_STREAMS_MAX {
        calls.push(house.control.hub_call().await);
    }
    house.nothing_went_home().await;
    let mut answered = calls.pop().unwrap();
    answered.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    answered.flush().await.unwrap();
    assert!(asking.join_next().await.unwrap().unwrap().starts_with("HTTP/1.1 200"));
    house.control.hub_call().await;
}

#[tokio::test]
async fn a_call_without_credentials_arrives_without() {
    let house = House::open().await;
    let request = format!("GET {} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", house.path);
    let answer = "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n";
    let (seen, _) = tokio::join!(house.home_answers(answer, ""), house.server_asks(&request));
    let seen = seen.to_ascii_lowercase();
    assert!(!seen.contains("authorization") && !seen.contains("cookie") && !seen.contains(TOKEN), "{seen}");
}

#[tokio::test]
async fn a_home_that_breaks_off_is_a_bad_gateway() {
    let house = House::open().await;
    let request = format!("GET {} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", house.path);
    let home = async { drop(house.control.hub_call().await) };
    let ((), answer) = tokio::join!(home, house.server_asks(&request));
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
}

#[tokio::test]
async fn a_call_waits_for_a_home_that_is_briefly_away() {
    let house = House::open().await;
    let request = format!("GET {} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", house.path);
    let House { home, port, .. } = house;
    let address = home.die().await;
    let back = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut home = Home::at(address).await;
        let control = home.control().await;
        let mut call = control.hub_call().await;
        call.read_u8().await.unwrap();
        call.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        call.flush().await.unwrap();
        (home, control, call)
    };
    let (_kept, answer) = tokio::join!(back, ask(port, &request));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// A running server that told where it would call the Hub.
struct House {
    home: Home,
    _job: Job,
    control: Control,
    port: u16,
    prefix: String,
    path: String,
}

impl House {
    async fn open() -> Self {
        let mut home = Home::open().await;
        let job = Job::start(home.address);
        let mut control = home.control().await;
        control.launch(script("echo $JUPYTERHUB_API_URL > url.txt; exec sleep 1000")).await;
        control.phase(Phase::Starting).await;
        let url = job.written("url.txt").await;
        let (port, path) = url.trim_end().strip_prefix("http://127.0.0.1:").unwrap().split_once('/').unwrap();
        let prefix = path.strip_suffix("/jhub/hub/api").unwrap().to_owned();
        House { home, control, port: port.parse().unwrap(), prefix, path: format!("/{path}"), _job: job }
    }

    /// What the server would get.
    async fn server_asks(&self, request: &str) -> String {
        ask(self.port, request).await
    }

    /// Takes one call whose body is this, and answers it.
    async fn home_answers(&self, answer: &str, body: &str) -> String {
        let mut call = self.control.hub_call().await;
        let mut seen = Vec::new();
        while !(seen.windows(4).any(|four| four == b"\r\n\r\n") && seen.ends_with(body.as_bytes())) {
            assert_ne!(timeout(SOON, call.read_buf(&mut seen)).await.unwrap().unwrap(), 0);
        }
        call.write_all(answer.as_bytes()).await.unwrap();
        call.flush().await.unwrap();
        // Kept until the agent lets go: a stream that is dropped early is reset.
        let _ = timeout(SOON, call.read_to_end(&mut Vec::new())).await;
        String::from_utf8(seen).unwrap()
    }

    async fn nothing_went_home(&self) {
        assert!(timeout(Duration::from_millis(300), self.control.link.accept()).await.is_err());
    }
}

async fn ask(port: u16, request: &str) -> String {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    // The answer may come, and the connection close, before all was sent.
    let send = async {
        let _ = write.write_all(request.as_bytes()).await;
        std::future::pending::<()>().await;
    };
    let mut answer = Vec::new();
    let receive = async {
        while !finished(&answer) {
            match read.read_buf(&mut answer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    };
    tokio::select! {
        () = send => {}
        () = async { timeout(Duration::from_secs(30), receive).await.unwrap() } => {}
    }
    String::from_utf8(answer).unwrap()
}

/// A refusal's head is enough; a carried answer is read to its end.
fn finished(answer: &[u8]) -> bool {
    let refused = answer.starts_with(b"HTTP/1.1 4") || answer.starts_with(b"HTTP/1.1 5");
    refused && answer.windows(4).any(|four| four == b"\r\n\r\n")
}
