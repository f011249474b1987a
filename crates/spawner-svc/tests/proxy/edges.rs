//! The corners of HTTP/1.x, in raw bytes.

use std::time::Duration;

use crate::house::{House, Reach, SOON, both_ways};
use crate::server::{Scripted, Server};

const DIRECT: Reach = Reach::Direct;

both_ways! {
    async fn an_http_1_0_client_gets_no_chunks_and_an_end(reach) {
        let server = Scripted::saying(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        );
        let house = House::with(reach, server.socket.clone()).await;
        let reply = house.told("GET /user/ada/ HTTP/1.0\r\n\r\n").await;
        assert!(reply.starts_with("HTTP/1.0 200 OK\r\n"), "{reply}");
        assert!(!reply.to_lowercase().contains("transfer-encoding"), "{reply}");
        assert!(reply.ends_with("\r\n\r\nabcde"), "{reply}");
    }

    async fn an_http_1_0_client_may_keep_its_connection(reach) {
        let server = Server::start();
        let house = House::with(reach, server.socket.clone()).await;
        let mut client = house.client().await;
        for _ in 0..2 {
            client.send("GET /user/ada/slow HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
            let head = client.until("\r\n\r\n").await.to_lowercase();
            assert!(head.contains("connection: keep-alive") && head.contains("content-length: 7"), "{head}");
            client.until("at last").await;
        }
    }

    async fn an_http_1_0_server_is_understood(reach) {
        let mut server = Scripted::saying("HTTP/1.0 200 OK\r\nServer: old\r\n\r\nto the end");
        let house = House::with(reach, server.socket.clone()).await;
        let reply = house.told("GET /user/ada/ HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
        assert!(reply.starts_with("HTTP/1.1 200 OK\r\n") && reply.contains("to the end"), "{reply}");
        assert!(server.head().await.starts_with("GET /user/ada/ HTTP/1.1\r\n"));
    }

    async fn expect_waits_for_the_servers_word(reach) {
        let mut server = Scripted::acting("HTTP/1.1 100 Continue\r\n\r\n", |mut stream| {
            Box::pin(async move {
                use tokio::io::{AsyncReadExt, AsyncWriteExt};
                let mut body = [0; 5];
                stream.read_exact(&mut body).await.unwrap();
                let reply =
                    format!("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n{}", String::from_utf8_lossy(&body));
                stream.write_all(reply.as_bytes()).await.unwrap();
            })
        });
        let house = House::with(reach, server.socket.clone()).await;
        let mut client = house.client().await;
        client
            .send("PUT /user/ada/f HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-Continue\r\n\r\n")
            .await;
        client.until("HTTP/1.1 100 Continue\r\n\r\n").await;
        assert!(server.head().await.to_lowercase().contains("expect: 100-continue"));
        client.send("hello").await;
        assert!(client.until("hello").await.starts_with("HTTP/1.1 200 OK"));
    }

    async fn expect_is_answered_by_the_servers_refusal_without_the_body(reach) {
        let server =
            Scripted::saying("HTTP/1.1 413 Too Much\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno");
        let house = House::with(reach, server.socket.clone()).await;
        let mut client = house.client().await;
        client
            .send(
                "PUT /user/ada/f HTTP/1.1\r\nHost: h\r\nContent-Length: 5000000\r\nExpect: 100-continue\r\n\r\n",
            )
            .await;
        let reply = client.rest().await;
        assert!(reply.starts_with("HTTP/1.1 413 ") && reply.ends_with("no"), "{reply}");
    }

    async fn a_body_is_sent_when_the_server_knows_no_expect(reach) {
        let server = Scripted::acting("", |mut stream| {
            Box::pin(async move {
                use tokio::io::{AsyncReadExt, AsyncWriteExt};
                stream.read_exact(&mut [0; 5]).await.unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            })
        });
        let house = House::with(reach, server.socket.clone()).await;
        let request = "PUT /user/ada/f HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\nhello";
        assert!(house.told(request).await.ends_with("\r\n\r\nok"));
    }
}

#[tokio::test]
async fn responses_without_a_body_have_none() {
    let server = Server::start();
    let house = House::with(DIRECT, server.socket.clone()).await;
    let mut client = house.client().await;
    for (request, status) in [
        ("HEAD /user/ada/bulk?1000", "200"),
        ("GET /user/ada/empty", "204"),
        ("GET /user/ada/unchanged", "304"),
        ("HEAD /user/ada/nothing", "200"),
    ] {
        client.send(format!("{request} HTTP/1.1\r\nHost: h\r\n\r\n")).await;
        let head = client.until("\r\n\r\n").await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {head}");
        assert_eq!(head.contains("content-length: 1000"), request.contains("bulk"), "{head}");
    }
    client.send("GET /user/ada/slow HTTP/1.1\r\nHost: h\r\n\r\n").await;
    client.until("at last").await; // nothing was left over in between
}

#[tokio::test]
async fn a_get_may_have_a_body_with_and_without_length() {
    let server = Server::start();
    let house = House::with(DIRECT, server.socket.clone()).await;
    let reply = house
        .told("GET /user/ada/echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n")
        .await;
    assert!(reply.contains("\r\n4\r\nbody\r\n0\r\n\r\n"), "{reply}");
    let reply = house
        .told("GET /user/ada/echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody")
        .await;
    assert!(reply.contains("body"), "{reply}");
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let mut server = Scripted::acting("", |mut stream| {
        Box::pin(async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let mut body = Vec::new();
            while !body.ends_with(b"x-sum: 1\r\n\r\n") {
                assert_ne!(
                    stream.read_buf(&mut body).await.unwrap(),
                    0,
                    "{}",
                    String::from_utf8_lossy(&body)
                );
            }
            let reply = "HTTP/1.1 200 OK\r\ntrailer: x-back\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-back: 2\r\n\r\n";
            stream.write_all(reply.as_bytes()).await.unwrap();
        })
    });
    let house = House::with(DIRECT, server.socket.clone()).await;
    let reply = house
        .told(
            "POST /user/ada/ HTTP/1.1\r\nHost: h\r\nConnection: close, TE\r\nTE: trailers\r\nTrailer: x-sum\r\n\
             Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n",
        )
        .await;
    assert!(reply.ends_with("2\r\nok\r\n0\r\nx-back: 2\r\n\r\n"), "{reply}");
    assert!(server.head().await.contains("\r\nte: trailers\r\n"));
}

#[tokio::test]
async fn nothing_ambiguous_reaches_a_server() {
    for request in [
        // two lengths
        "POST /user/ada/ HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "POST /user/ada/ HTTP/1.1\r\nHost: h\r\nContent-Length: 3, 4\r\n\r\nabcd",
        "POST /user/ada/ HTTP/1.1\r\nHost: h\r\nContent-Length: +3\r\n\r\nabc",
        "POST /user/ada/ HTTP/1.1\r\nHost: h\r\nContent-Length: 0x3\r\n\r\nabc",
        // a coding that hides the length
        "POST /user/ada/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\nabc",
        "POST /user/ada/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "POST /user/ada/ HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        // folded and misspelled lines
        "GET /user/ada/ HTTP/1.1\r\nHost: h\r\nX-A: b\r\n c\r\n\r\n",
        "GET /user/ada/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "GET /user/ada/ HTTP/1.1\r\nHost: h\r\nno colon\r\n\r\n",
        "GET /user/ada/ HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n",
        // another target than a path
        "GET http://127.0.0.1:1/user/ada/ HTTP/1.1\r\nHost: h\r\n\r\n",
        "CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: h\r\n\r\n",
        // no host, two hosts
        "GET /user/ada/ HTTP/1.1\r\n\r\n",
        "GET /user/ada/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        // not HTTP
        "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n",
        "GET /user/ada/ HTTP/3.7\r\nHost: h\r\n\r\n",
    ] {
        let mut server = Scripted::saying("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        let house = House::with(DIRECT, server.socket.clone()).await;
        let mut client = house.client().await;
        client.send(request).await;
        client.half_close().await;
        let reply = client.rest().await;
        assert!(
            reply.starts_with("HTTP/1.1 400 ") || reply.starts_with("HTTP/1.0 400 ") || reply.is_empty(),
            "{request:?}: {reply}"
        );
        assert!(server.heard_nothing(), "{request:?} reached the server");
    }
}

/// Chunks win over a length that comes along (RFC 9112, 6.3), the length goes no further, the connection ends.
#[tokio::test]
async fn a_length_beside_chunks_goes_no_further_and_hides_no_second_request() {
    for fields in
        ["Content-Length: 6\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 6"]
    {
        let mut server =
            Scripted::saying("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok");
        let house = House::with(DIRECT, server.socket.clone()).await;
        let request = format!(
            "POST /user/ada/ HTTP/1.1\r\nHost: h\r\n{fields}\r\n\r\n0\r\n\r\nGET /user/ada/second HTTP/1.1\r\nHost: h\r\n\r\n"
        );
        let reply = house.told(&request).await;
        assert_eq!(reply.matches("HTTP/1.1").count(), 1, "{reply}");
        let head = server.head().await.to_lowercase();
        assert!(!head.contains("content-length: 6"), "{head}");
        assert!(server.heard_nothing(), "the second request passed");
    }
}

#[tokio::test]
async fn a_servers_odd_responses_are_not_passed_on() {
    for reply in [
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n\r\n",
        "",
    ] {
        let server = Scripted::saying(reply);
        let house = House::with(DIRECT, server.socket.clone()).await;
        let told = house.told("GET /user/ada/ HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
        assert!(told.starts_with("HTTP/1.1 502 "), "{reply:?}: {told}");
        assert!(told.to_lowercase().contains("x-glidepath: relay"), "{told}");
    }
}

#[tokio::test]
async fn a_server_cannot_speak_in_the_relays_name() {
    let server = Scripted::saying("HTTP/1.1 500 Oh\r\nx-glidepath: relay\r\ncontent-length: 0\r\n\r\n");
    let house = House::with(DIRECT, server.socket.clone()).await;
    let reply = house.told("GET /user/ada/ HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
    assert!(reply.starts_with("HTTP/1.1 500 ") && !reply.contains("x-glidepath"), "{reply}");
}

#[tokio::test]
async fn a_head_without_bounds_is_cut_off() {
    let mut server = Scripted::saying("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    let house = House::with(DIRECT, server.socket.clone()).await;
    let mut client = house.client().await;
    client.send("GET /user/ada/ HTTP/1.1\r\nHost: h\r\n").await;
    for number in 0..2000 {
        let line = format!("X-{number}: {}\r\n", "x".repeat(100));
        if tokio::io::AsyncWriteExt::write_all(&mut client.stream, line.as_bytes()).await.is_err() {
            break;
        }
    }
    let reply = client.try_rest().await.unwrap_or_default();
    assert!(reply.is_empty() || reply.starts_with("HTTP/1.1 431 "), "{reply}");
    assert!(server.heard_nothing());
}

#[tokio::test]
async fn a_server_that_answers_before_it_has_read_all_is_heard() {
    let server = Server::start();
    let house = House::with(DIRECT, server.socket.clone()).await;
    let mut client = house.client().await;
    client.send("POST /user/ada/early HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\npart").await;
    let reply = client.until("too much").await;
    assert!(reply.starts_with("HTTP/1.1 413 "), "{reply}");
}

#[tokio::test]
async fn http_2_is_not_switched_to() {
    let mut server = Scripted::saying("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let house = House::with(DIRECT, server.socket.clone()).await;
    let request = "GET /user/ada/ HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
    assert!(house.told(request).await.ends_with("ok"));
    let head = server.head().await.to_lowercase();
    assert!(!head.contains("upgrade") && !head.contains("http2-settings"), "{head}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_let_go() {
    let house = House::empty("main").await;
    let mut client = house.client().await;
    client.send("GET /user/ada/ HT").await;
    let before = tokio::time::Instant::now();
    let mut rest = Vec::new();
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut client.stream, &mut rest).await;
    assert!(before.elapsed() >= Duration::from_secs(30), "{:?}", before.elapsed());
    assert!(before.elapsed() <= SOON + Duration::from_secs(60), "{:?}", before.elapsed());
}
