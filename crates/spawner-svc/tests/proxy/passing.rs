//! What must pass unharmed, straight and through a link.

use std::sync::atomic::Ordering;

use crate::house::{House, SOON, both_ways, own, run};
use crate::server::{PatternReader, Scripted, Server, pattern_stream};
use glidepath_spawner::arrivals::routes::{Found, Routes};
use glidepath_spawner::arrivals::upstream::Upstream;
use glidepath_testkit::wait;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_relay_closes_who_waits_longest_without_a_request_and_nobody_else() {
    let server = Server::start();
    let house = House::narrow(Routes::new(), "main", 3).await;
    house.ready("/user/ada/", Upstream::direct(run(1), own(server.socket.clone())));
    let mut busy = house.client().await;
    busy.send("GET /user/ada/stream HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
    busy.until("data: 0\n\n").await;
    let mut silent = house.client().await;
    let mut done = house.client().await;
    done.send("GET /user/ada/1 HTTP/1.1\r\nHost: h\r\n\r\n").await;
    done.until("host: h\n").await;
    let newcomer = "GET /user/ada/2 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    assert!(house.told(newcomer).await.contains("GET /user/ada/2\n"));
    assert_eq!(silent.rest().await, "", "it has waited longest");
    done.send("GET /user/ada/3 HTTP/1.1\r\nHost: h\r\n\r\n").await;
    done.until("GET /user/ada/3\n").await;
    server.seen.go.notify_one();
    busy.until("data: 1\n\n").await;
}

both_ways! {
    async fn path_host_and_end_to_end_headers_arrive_as_sent(reach) {
        let mut server = Scripted::saying("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi");
        let house = House::with(reach, server.socket.clone()).await;
        let reply = house
            .told(
                "GET /user/ada/a%2Fb//c;d=%e2%82%ac/../e?q=%20&r=a+b%2F HTTP/1.1\r\nHost: hub.example.org:8443\r\n\
                 X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\nCookie: a=b; c=d\r\nX-Mine: 1\r\n\
                 Keep-Alive: timeout=5\r\nConnection: close, X-Mine\r\n\r\n",
            )
            .await;
        assert!(reply.starts_with("HTTP/1.1 200 OK\r\n") && reply.ends_with("\r\n\r\nhi"), "{reply}");
        let head = server.head().await;
        assert!(head.starts_with("GET /user/ada/a%2Fb//c;d=%e2%82%ac/../e?q=%20&r=a+b%2F HTTP/1.1\r\n"), "{head}");
        for line in ["host: hub.example.org:8443", "x-forwarded-for: 192.0.2.7", "x-forwarded-proto: https", "cookie: a=b; c=d"] {
            assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} in {head}");
        }
        for name in ["x-mine", "keep-alive", "connection"] {
            assert!(!head.contains(&format!("\r\n{name}:")), "{name} in {head}");
        }
    }

    async fn odd_methods_pass(reach) {
        let server = Server::start();
        let house = House::with(reach, server.socket.clone()).await;
        for method in ["PROPFIND", "OPTIONS", "DELETE", "PATCH", "M-SEARCH", "BREW"] {
            let request = format!("{method} /user/ada/x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
            let reply = house.told(&request).await;
            assert!(reply.contains(&format!("\r\n\r\n{method} /user/ada/x\n")), "{reply}");
        }
    }

    async fn what_a_server_refuses_or_only_shows_is_not_counted_as_use_of_it(reach) {
        let server = Server::start();
        let house = House::with(reach, server.socket.clone()).await;
        let Found::Ready(upstream) = house.routes.find(&house.hub, "/user/ada/") else { panic!("it is ready") };
        let mut counted = 0;
        for (request, is_use) in [
            ("POST /user/ada/error", false),
            ("POST /user/ada/early", false),
            ("GET /user/ada/x", false),
            ("PUT /user/ada/x", true),
            ("DELETE /user/ada/empty", true),
        ] {
            house.told(&format!("{request} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")).await;
            counted += u64::from(is_use);
            let now = upstream.uses_other_than(u64::MAX).await;
            assert_eq!(now, counted, "{request}");
        }
    }

    async fn many_requests_share_a_connection_on_both_sides(reach) {
        let server = Server::start();
        let house = House::with(reach, server.socket.clone()).await;
        let mut client = house.client().await;
        for number in 0..20 {
            client.send(format!("GET /user/ada/{number} HTTP/1.1\r\nHost: h\r\n\r\n")).await;
            client.until(&format!("GET /user/ada/{number}\n")).await;
            client.until("host: h\n").await;
        }
        assert!(server.seen.connections.load(Ordering::Relaxed) <= 2);
    }

    async fn a_server_that_closes_idle_connections_costs_no_request(reach) {
        let mut server = Scripted::acting("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", |stream| {
            Box::pin(async move {
                tokio::time::sleep(std::time::Duration::from_millis(30)).await;
                drop(stream);
            })
        });
        let house = House::with(reach, server.socket.clone()).await;
        for pause_ms in [0, 10, 20, 25, 28, 29, 30, 31, 32, 35, 40, 60] {
            let reply = house.told("GET /user/ada/ HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
            assert!(reply.ends_with("\r\n\r\nhi"), "after {pause_ms} ms: {reply}");
            tokio::time::sleep(std::time::Duration::from_millis(pause_ms)).await;
        }
        assert!(!server.heard_nothing());
    }

    async fn events_pass_as_they_come(reach) {
        let server = Server::start();
        let house = House::with(reach, server.socket.clone()).await;
        let mut client = house.client().await;
        client.send("GET /user/ada/stream HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
        let first = client.until("data: 0\n\n").await;
        assert!(first.contains("transfer-encoding: chunked"), "{first}");
        server.seen.go.notify_one();
        client.until("data: 1\n\n").await;
        assert!(client.rest().await.ends_with("0\r\n\r\n"));
    }

    async fn an_upgraded_connection_carries_both_ways_to_each_ones_end(reach) {
        let server = Server::start();
        let house = House::with(reach, server.socket.clone()).await;
        let mut client = house.client().await;
        // The first bytes come along with the request's head: none may be lost.
        client
            .send(
                "GET /user/ada/switch HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Key: x\r\n\r\nearly ",
            )
            .await;
        let head = client.until("\r\n\r\n").await.to_lowercase();
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        assert!(head.contains("\r\nconnection: upgrade\r\n") && head.contains("\r\nupgrade: websocket\r\n"), "{head}");
        assert!(head.contains("\r\nsec-websocket-accept: yes\r\n"), "{head}");
        client.until("EARLY ").await;
        client.send("later").await;
        client.until("LATER").await;
        client.half_close().await;
        assert_eq!(client.rest().await, "goodbye");
    }

    async fn what_a_server_says_along_with_its_101_comes_first(reach) {
        let server = Scripted::acting(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello ",
            |mut stream| {
                Box::pin(async move {
                    let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"again").await;
                })
            },
        );
        let house = House::with(reach, server.socket.clone()).await;
        let mut client = house.client().await;
        client
            .send(
                "GET /user/ada/ HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Key: x\r\n\r\n",
            )
            .await;
        client.until("\r\n\r\n").await;
        client.until("hello again").await;
    }

    async fn a_client_that_half_closes_gets_its_answer(reach) {
        let server = Server::start();
        let house = House::with(reach, server.socket.clone()).await;
        let mut client = house.client().await;
        client.send("POST /user/ada/slow HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc").await;
        client.half_close().await;
        assert!(client.rest().await.ends_with("at last"));
    }

    async fn a_200_mb_upload_arrives_whole(reach) {
        const TOTAL: usize = 200_000_000;
        let server = Server::start();
        let house = House::with(reach, server.socket.clone()).await;
        let body = reqwest::Body::wrap_stream(pattern_stream(TOTAL));
        let reply = http_client().put(house.url("/user/ada/length")).body(body).send().await.unwrap();
        assert_eq!(reply.text().await.unwrap(), TOTAL.to_string());
    }

    async fn a_200_mb_download_arrives_whole(reach) {
        const TOTAL: usize = 200_000_000;
        let server = Server::start();
        let house = House::with(reach, server.socket.clone()).await;
        let url = house.url(&format!("/user/ada/bulk?{TOTAL}"));
        let mut reply = http_client().get(url).send().await.unwrap();
        assert_eq!(reply.content_length(), Some(TOTAL as u64));
        let mut reader = PatternReader::default();
        while let Some(chunk) = reply.chunk().await.unwrap() {
            reader.read(&chunk);
        }
        assert_eq!(reader.seen, TOTAL);
    }

    async fn bulk_passes_both_ways_at_once_without_being_kept(reach) {
        const TOTAL: usize = 100_000_000;
        let server = Server::start();
        let house = House::with(reach, server.socket.clone()).await;
        let body = reqwest::Body::wrap_stream(pattern_stream(TOTAL));
        let mut reply = http_client().post(house.url("/user/ada/echo")).body(body).send().await.unwrap();
        let mut reader = PatternReader::default();
        while let Some(chunk) = reply.chunk().await.unwrap() {
            reader.read(&chunk);
        }
        assert_eq!(reader.seen, TOTAL);
    }

    async fn a_slow_reader_holds_the_server_back(reach) {
        let server = Server::start();
        let house = House::with(reach, server.socket.clone()).await;
        let before = memory_mb();
        let mut client = house.client().await;
        client.send("GET /user/ada/bulk?2000000000 HTTP/1.1\r\nHost: h\r\n\r\n").await;
        client.until("\r\n\r\n").await;
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        let grown = memory_mb().saturating_sub(before);
        assert!(grown < 150, "{grown} MB kept for a client that does not read");
    }

    async fn a_client_that_goes_away_ends_the_servers_work(reach) {
        let server = Server::start();
        let house = House::with(reach, server.socket.clone()).await;
        let mut client = house.client().await;
        client.send("GET /user/ada/stream HTTP/1.1\r\nHost: h\r\n\r\n").await;
        client.until("data: 0\n\n").await;
        client.stream.set_zero_linger().unwrap();
        drop(client);
        let seen = &server.seen;
        wait::until(SOON, "the server's response to be dropped", || async { seen.abandoned.load(Ordering::Relaxed) == 1 }).await;
    }
}

/// What this process holds in memory now.
fn memory_mb() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() / 1024
}

pub(crate) fn http_client() -> reqwest::Client {
    use rustls::{ClientConfig, RootCertStore, crypto::ring};
    let tls = ClientConfig::builder_with_provider(std::sync::Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build().unwrap()
}
