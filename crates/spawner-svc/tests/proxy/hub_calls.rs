//! A server's calls to its Hub, from the agent's end of a real link.

use std::sync::Arc;

use glidepath_domain::names::{Attempt, HubName, ServerKey, ServerName, UserName};
use glidepath_spawner::arrivals::{AgentStreams, Arrived};
use glidepath_spawner::config::HubApi;
use glidepath_spawner::notable::Notes;
use glidepath_spawner::proxy::hub_forward::{HubForward, HubTarget};
use glidepath_tunnel::link::Link;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::house::{SOON, leave, linked, run};

/// A Hub that writes down what it is asked and answers with its name.
pub(crate) struct Hub {
    pub(crate) name: HubName,
    address: std::net::SocketAddr,
    heard: mpsc::Receiver<String>,
}

impl Hub {
    pub(crate) async fn start(name: &str, reply: fn(&str) -> String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (hears, heard) = mpsc::channel(256);
        leave(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                leave(hub_answers(stream, hears.clone(), reply));
            }
        });
        Self { name: HubName::parse(name).unwrap(), address, heard }
    }

    pub(crate) fn target(&self, base_url: &str) -> HubTarget {
        HubTarget {
            name: self.name.clone(),
            api: HubApi::parse(&format!("http://{}", self.address), base_url).unwrap(),
            base_url: base_url.to_owned(),
        }
    }

    async fn heard(&mut self) -> String {
        timeout(SOON, self.heard.recv()).await.unwrap().unwrap()
    }
}

async fn hub_answers(mut stream: TcpStream, hears: mpsc::Sender<String>, reply: fn(&str) -> String) {
    let mut seen = Vec::new();
    loop {
        let Some(head_end) = seen.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4) else {
            match stream.read_buf(&mut seen).await {
                Ok(0) | Err(_) => return,
                Ok(_) => continue,
            }
        };
        let head = String::from_utf8_lossy(&seen[..head_end]).into_owned();
        let length =
            head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        let length: usize = length.unwrap_or(0);
        while seen.len() < head_end + length {
            stream.read_buf(&mut seen).await.unwrap();
        }
        let request = String::from_utf8_lossy(&seen[..head_end + length]).into_owned();
        seen.drain(..head_end + length);
        let reply = reply(&request);
        hears.send(request).await.unwrap();
        stream.write_all(reply.as_bytes()).await.unwrap();
    }
}

pub(crate) fn ok(_: &str) -> String {
    "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nset-cookie: a=b\r\nx-hub: 1\r\n\r\nok".to_owned()
}

/// The agent's end of a link whose server belongs to this hub.
pub(crate) async fn agent_of(hub: &HubName, forward: &Arc<HubForward>) -> Link {
    let (home, agent) = linked().await;
    let key = ServerKey {
        hub: hub.clone(),
        user: UserName::parse("ada").unwrap(),
        server: ServerName::parse("").unwrap(),
    };
    forward.carry(Arrived { attempt: Attempt { run: run(1), number: 1 }, key, link: home });
    agent
}

pub(crate) async fn call(agent: &Link, request: &str) -> String {
    let mut stream = agent.open("hub-api").unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = Vec::new();
    let read = timeout(SOON, stream.read_to_end(&mut reply)).await.expect("no end of the reply");
    if let Err(error) = read {
        return format!("{error}");
    }
    String::from_utf8_lossy(&reply).into_owned()
}

pub(crate) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
}

#[tokio::test]
async fn a_call_reaches_the_api_with_its_own_token_and_no_claims() {
    let mut hub = Hub::start("main", ok).await;
    let forward =
        HubForward::new(vec![hub.target("/jhub/")], Notes::new(), CancellationToken::new()).unwrap();
    let agent = agent_of(&hub.name, &forward).await;
    let reply = call(
        &agent,
        "POST /jhub/hub/api/users/ada%40example.org/activity?x=%2F..&y HTTP/1.1\r\nHost: evil.example\r\n\
         Authorization: token t0k3n\r\nCookie: jupyterhub-session-id=x\r\nX-Forwarded-For: 10.0.0.1\r\n\
         X-Real-IP: 10.0.0.1\r\nForwarded: for=10.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\
         Connection: close, X-Hop\r\nX-Hop: 1\r\n\r\n{}",
    )
    .await;
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n") && reply.ends_with("\r\n\r\nok"), "{reply}");
    assert!(reply.contains("x-hub: 1") && !reply.contains("set-cookie"), "{reply}");
    let heard = hub.heard().await;
    assert!(
        heard.starts_with("POST /jhub/hub/api/users/ada%40example.org/activity?x=%2F..&y HTTP/1.1\r\n"),
        "{heard}"
    );
    assert!(heard.contains("authorization: token t0k3n\r\n") && heard.ends_with("\r\n\r\n{}"), "{heard}");
    assert!(heard.contains(&format!("host: {}\r\n", hub.address)), "{heard}");
    for name in ["cookie", "x-forwarded-for", "x-real-ip", "forwarded", "x-hop", "connection"] {
        assert!(!heard.contains(&format!("\r\n{name}:")), "{name} in {heard}");
    }
}

#[tokio::test]
async fn only_the_own_hubs_api_is_reached_and_by_no_trick() {
    let mut one = Hub::start("one", ok).await;
    let mut two = Hub::start("two", ok).await;
    let forward =
        HubForward::new(vec![one.target("/"), two.target("/")], Notes::new(), CancellationToken::new())
            .unwrap();
    let agent = agent_of(&one.name, &forward).await;
    for request in [
        get("/hub/home"),
        get("/"),
        get("/user/bob/api"),
        get("/hub/api/../home"),
        get("/hub/api/%2e%2e/home"),
        get("/hub/api%2f..%2fhome"),
        get("//hub/api/user"),
        get("/hub/api//user"),
        get("/hub/api/%252e%252e/home"),
        get("/hub/api/..\\home"),
        get(&format!("http://{}/hub/api/user", two.address)),
        format!("CONNECT {} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", two.address),
        format!("OPTIONS * HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", two.address),
        "GET /hub/api/user HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n"
            .into(),
    ] {
        let reply = call(&agent, &request).await;
        let refused = reply.starts_with("HTTP/1.1 40") || reply.contains("reset the stream");
        assert!(refused, "{request:?}: {reply}");
    }
    for host in [two.address.to_string(), "two".into()] {
        call(&agent, &format!("GET /hub/api/user HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
            .await;
        assert!(one.heard().await.starts_with("GET /hub/api/user "));
    }
    assert!(one.heard.try_recv().is_err() && two.heard.try_recv().is_err());
}

#[tokio::test]
async fn a_redirect_is_handed_back_and_not_followed() {
    let mut hub = Hub::start("main", |_| {
        "HTTP/1.1 302 Found\r\nlocation: /hub/login\r\ncontent-length: 0\r\n\r\n".to_owned()
    })
    .await;
    let forward = HubForward::new(vec![hub.target("/")], Notes::new(), CancellationToken::new()).unwrap();
    let agent = agent_of(&hub.name, &forward).await;
    assert!(call(&agent, &get("/hub/api/user")).await.starts_with("HTTP/1.1 302 "));
    hub.heard().await;
    assert!(hub.heard.try_recv().is_err());
}

#[tokio::test]
async fn calls_and_replies_are_bounded() {
    let hub = Hub::start("main", |_| {
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{}", 9_000_000, "x".repeat(9_000_000))
    })
    .await;
    let forward = HubForward::new(vec![hub.target("/")], Notes::new(), CancellationToken::new()).unwrap();
    let agent = agent_of(&hub.name, &forward).await;
    let reply = call(&agent, &get("/hub/api/users")).await;
    assert!(reply.starts_with("HTTP/1.1 502 "), "{}", &reply[..reply.len().min(300)]);
    let long = format!(
        "POST /hub/api/x HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 2000000\r\n\r\n{}",
        "x".repeat(2_000_000)
    );
    let reply = call(&agent, &long).await;
    assert!(reply.starts_with("HTTP/1.1 413 "), "{reply}");
}

#[tokio::test]
async fn many_calls_at_once_take_turns() {
    let mut hub = Hub::start("main", ok).await;
    let forward = HubForward::new(vec![hub.target("/")], Notes::new(), CancellationToken::new()).unwrap();
    let agent = agent_of(&hub.name, &forward).await;
    let before = std::time::Instant::now();
    for _ in 0..100 {
        assert!(call(&agent, &get("/hub/api/user")).await.starts_with("HTTP/1.1 200 "));
        hub.heard().await;
    }
    assert!(before.elapsed().as_secs_f64() > 1.5, "100 calls took only {:?}", before.elapsed());
}

#[tokio::test]
async fn a_hub_that_is_down_is_a_502_and_another_purpose_is_reset() {
    let target = HubTarget {
        name: HubName::parse("main").unwrap(),
        api: HubApi::parse("http://127.0.0.1:9/hub/api", "/").unwrap(),
        base_url: "/".into(),
    };
    let forward = HubForward::new(vec![target], Notes::new(), CancellationToken::new()).unwrap();
    let agent = agent_of(&HubName::parse("main").unwrap(), &forward).await;
    let reply = call(&agent, &get("/hub/api/user")).await;
    assert!(reply.starts_with("HTTP/1.1 502 ") && reply.contains("retry-after"), "{reply}");
    let mut stream = agent.open("shell").unwrap();
    let _ = stream.write_all(b"ls\n").await;
    let ended = timeout(SOON, stream.read(&mut [0; 1])).await.unwrap();
    assert!(!matches!(ended, Ok(1)));
}
