//! A hostile job at its way to the Hub: the agent's end of a real link says what it likes, the Hub keeps every byte.

use std::sync::Arc;

use glidepath_domain::names::HubName;
use glidepath_spawner::config::HubApi;
use glidepath_spawner::notable::Notes;
use glidepath_spawner::proxy::hub_forward::{HubForward, HubTarget};
use glidepath_tunnel::link::Link;
use tokio_util::sync::CancellationToken;

use crate::hub_calls::{agent_of, call};
use crate::recorder::Recorder;

/// A job of hub `one`, and beside it a Hub that it has no business with.
struct Scene {
    own: Recorder,
    other: Recorder,
    agent: Link,
    other_address: std::net::SocketAddr,
    _forward: Arc<HubForward>,
}

impl Scene {
    async fn open() -> Self {
        let (own, own_address) = Recorder::on_a_port("one").await;
        let (other, other_address) = Recorder::on_a_port("two").await;
        let target = |name: &str, address| HubTarget {
            name: HubName::parse(name).unwrap(),
            api: HubApi::parse(&format!("http://{address}"), "/jhub/").unwrap(),
            base_url: "/jhub/".into(),
        };
        let targets = vec![target("one", own_address), target("two", other_address)];
        let forward = HubForward::new(targets, Notes::new(), CancellationToken::new()).unwrap();
        let agent = agent_of(&HubName::parse("one").unwrap(), &forward).await;
        Self { own, other, agent, other_address, _forward: forward }
    }

    async fn calls(&self, request: &str) -> String {
        call(&self.agent, request).await
    }

    /// What the own Hub was asked; the other must have been asked nothing, and no reader finds more.
    fn asked(&self, what: &str) -> Vec<String> {
        self.own.check_all_readers_agree(what);
        assert_eq!(self.other.text(), "", "{what} came to another hub");
        let asked = self.own.targets();
        assert!(asked.iter().all(|target| target.starts_with("/jhub/hub/api")), "{what}: {asked:?}");
        asked
    }
}

const EVIL: &str = "GET /jhub/hub/home HTTP/1.1\r\nHost: h\r\n\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_target_leads_out_of_the_own_hubs_api() {
    let scene = Scene::open().await;
    let absolute = format!("http://{}/jhub/hub/api/user", scene.other_address);
    let authority = scene.other_address.to_string();
    let relative = format!("//{}/jhub/hub/api/user", scene.other_address);
    let at = format!("/jhub/hub/api@{}/", scene.other_address);
    for target in [
        "/jhub/hub/home",
        "/jhub/hub/api/../home",
        "/jhub/hub/api/%2e%2e/home",
        "/jhub/hub/api/..%2fhome",
        "/jhub/hub/api%2F..%2Fhome",
        "/jhub/hub/api/..;/home",
        "/jhub/hub/api/..\\home",
        "/jhub/hub/api/%5c..%5chome",
        "/jhub/hub/api/%252e%252e/home",
        "/jhub/hub/api//home",
        "//jhub/hub/api/user",
        "/jhub//hub/api/user",
        "/jhub/hub/api/%00",
        "/jhub/hub/api/%c0%ae%c0%ae/home",
        "/jhub/hub/api/a%0d%0aX-Forwarded-For:x",
        "/jhub/hub/apiary",
        "/hub/api/user",
        "/",
        "*",
        "jhub/hub/api/user",
        "/jhub/hub/api/./user",
        &absolute,
        &authority,
        &relative,
        &at,
    ] {
        for method in ["GET", "CONNECT", "OPTIONS", "POST"] {
            let reply = scene
                .calls(&format!("{method} {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"))
                .await;
            assert!(!reply.starts_with("HTTP/1.1 2"), "{method} {target}: {reply}");
            assert_eq!(scene.asked(target), Vec::<String>::new(), "{method} {target}");
        }
    }
    let allowed = "GET /jhub/hub/api/user HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    assert!(scene.calls(allowed).await.ends_with("one"));
    assert_eq!(scene.asked("the API"), ["/jhub/hub/api/user"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_brings_no_field_that_speaks_for_another_and_gets_no_credential() {
    let scene = Scene::open().await;
    let mut lines = String::new();
    let claims = [
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "X-Forwarded-Prefix",
        "X-Forwarded-User",
        "X_Forwarded_For",
        "X-Real-IP",
        "X-Real_IP",
        "X-Scheme",
        "X_Scheme",
        "Forwarded",
        "Cookie",
        "Origin",
        "Proxy-Authorization",
        "Proxy_Authorization",
        "X-Glidepath",
        "X-Glidepath-Hub",
        "Content_Length",
        "Transfer_Encoding",
        "Keep-Alive",
        "Proxy-Connection",
        "TE",
        "Expect",
    ];
    for name in claims {
        lines.push_str(&format!("{name}: claimed\r\n")); // no number: it could stand in a port
    }
    let request = format!(
        "POST /jhub/hub/api/users/ada/activity HTTP/1.1\r\nHost: {}\r\n{lines}Connection: close, Content-Length, Host\r\nContent-Length: 2\r\n\r\n{{}}",
        scene.other_address
    );
    assert!(scene.calls(&request).await.ends_with("one"));
    assert_eq!(scene.asked("claims"), ["/jhub/hub/api/users/ada/activity"]);
    let heard = scene.own.text().to_ascii_lowercase();
    assert!(!heard.contains("claimed"), "{heard}");
    assert!(!heard.contains(&scene.other_address.to_string()), "{heard}");
    assert!(!heard.contains("authorization") && !heard.contains("cookie"), "{heard}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_framing_hides_a_second_call() {
    let scene = Scene::open().await;
    let length = EVIL.len();
    let chunk = format!("{length:x}\r\n{EVIL}\r\n0\r\n\r\n");
    let mut calls = 0;
    for (lines, body, passes) in [
        (format!("Content-Length: {length}"), EVIL.to_owned(), true),
        ("Transfer-Encoding: chunked".into(), chunk.clone(), true),
        ("Content-Length: 0\r\nTransfer-Encoding: chunked".into(), chunk.clone(), true),
        (format!("Transfer-Encoding: chunked\r\nContent_Length: {length}"), chunk.clone(), true),
        ("Transfer-Encoding: identity, chunked".into(), format!("0\r\n\r\n{EVIL}"), false),
        ("Transfer-Encoding: chunked, identity".into(), format!("0\r\n\r\n{EVIL}"), false),
        ("Transfer-Encoding : chunked".into(), format!("0\r\n\r\n{EVIL}"), false),
        ("Content-Length: 0\r\nContent-Length: 40".into(), EVIL.to_owned(), false),
        ("Content-Length: +40".into(), EVIL.to_owned(), false),
        ("X: y\r\n Content-Length: 40".into(), EVIL.to_owned(), false),
        ("X: y\rTransfer-Encoding: chunked".into(), chunk.clone(), false),
        ("Connection: Upgrade\r\nUpgrade: websocket".into(), EVIL.to_owned(), false),
    ] {
        let request =
            format!("POST /jhub/hub/api/x HTTP/1.1\r\nHost: h\r\n{lines}\r\nConnection: close\r\n\r\n{body}");
        let reply = scene.calls(&request).await;
        calls += usize::from(passes);
        assert_eq!(reply.ends_with("one"), passes, "{lines:?}: {reply}");
        assert_eq!(scene.asked(&lines).len(), calls, "{lines:?}");
    }
}
