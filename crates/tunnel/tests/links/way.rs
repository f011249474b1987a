//! The way to home: TLS and its trust, the proxy, addresses.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use glidepath_tunnel::dial::{DialConfig, ProxyEnv, Trust};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PublicKeyData as _};
use ring::digest::{SHA256, digest};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::house::{Agent, House, config, quick, soon, up};

/// An authority and the certificate of a home at `localhost`.
struct Papers {
    acceptor: TlsAcceptor,
    ca_pem: String,
    pin: String,
}

fn papers() -> Papers {
    let mut ca = CertificateParams::new(vec![]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let home = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into(), "::1".into()]).unwrap();
    let home = home.signed_by(&key, &ca).unwrap();
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let server = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![home.der().clone()], private)
        .unwrap();
    let pin =
        base64::engine::general_purpose::STANDARD.encode(digest(&SHA256, &key.subject_public_key_info()));
    Papers { acceptor: TlsAcceptor::from(Arc::new(server)), ca_pem: ca.pem(), pin }
}

async fn tls_house(papers: &Papers, listen: &str) -> House {
    House::build(quick(), Some(papers.acceptor.clone()), TcpListener::bind(listen).await.unwrap())
}

fn tls_config(house: &House, host: &str, trust: Trust) -> DialConfig {
    let mut config = config(&format!("wss://{host}:{}", house.address.port()), "ticket-ada");
    config.trust = trust;
    config
}

async fn echoes(house: &mut House, config: DialConfig) {
    let _agent = Agent::dial(config).echoes();
    let link = house.arrival().await;
    let mut stream = link.open("server").unwrap();
    stream.write_all(b"x").await.unwrap();
    assert_eq!(soon("the echo", stream.read_u8()).await.unwrap(), b'x');
}

async fn trouble(agent: &Agent) -> String {
    soon("trouble", async {
        loop {
            if let Some(trouble) = agent.link.trouble() {
                break trouble;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn home_is_reached_by_its_authority_or_by_its_pinned_key_at_name_and_addresses() {
    let papers = papers();
    let mut house = tls_house(&papers, "127.0.0.1:0").await;
    for host in ["localhost", "127.0.0.1"] {
        let config = tls_config(&house, host, Trust::CaPem(papers.ca_pem.clone()));
        echoes(&mut house, DialConfig { credential: format!("ticket-ca-{host}").into(), ..config }).await;
        let config = tls_config(&house, host, Trust::KeyPin(papers.pin.clone()));
        echoes(&mut house, DialConfig { credential: format!("ticket-pin-{host}").into(), ..config }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn home_is_reached_at_an_ipv6_address() {
    let papers = papers();
    let mut house = tls_house(&papers, "[::1]:0").await;
    let config = tls_config(&house, "[::1]", Trust::CaPem(papers.ca_pem.clone()));
    echoes(&mut house, config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_of_another_authority_key_or_name_is_never_told_the_ticket() {
    let (ours, theirs) = (papers(), papers());
    let house = tls_house(&theirs, "127.0.0.1:0").await;
    let nameless = tls_house(&theirs, "127.0.0.2:0").await;
    let wrong_trusts = [
        (&house, "localhost", Trust::CaPem(ours.ca_pem.clone())),
        (&house, "localhost", Trust::KeyPin(ours.pin.clone())),
        (&nameless, "127.0.0.2", Trust::CaPem(theirs.ca_pem.clone())),
    ];
    for (house, host, trust) in wrong_trusts {
        let agent = Agent::dial(tls_config(house, host, trust));
        let trouble = trouble(&agent).await;
        assert!(trouble.contains("TLS with home failed"), "{trouble}");
    }
    assert_eq!(house.door.knocks.load(Ordering::SeqCst) + nameless.door.knocks.load(Ordering::SeqCst), 0);
}

/// A proxy for CONNECT that asks for a password and counts.
async fn proxy() -> (String, Arc<AtomicUsize>, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut ways = JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            let counted = counted.clone();
            ways.spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(near.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                if !head.contains("Proxy-Authorization: Basic YWRhOnBhc3M=\r\n") {
                    let answer = "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n";
                    near.write_all(answer.as_bytes()).await.unwrap();
                    return;
                }
                let target = head.strip_prefix("CONNECT ").unwrap().split(' ').next().unwrap();
                let mut far = TcpStream::connect(target).await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                near.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    (address.to_string(), count, task)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_of_the_environment_is_used_with_its_password_and_no_proxy_is_honoured() {
    let papers = papers();
    let mut house = tls_house(&papers, "127.0.0.1:0").await;
    let (address, count, _task) = proxy().await;
    let through = |user: &str, no_proxy: Option<&str>, ticket: &str| DialConfig {
        proxy: ProxyEnv {
            https_proxy: Some(format!("http://{user}@{address}")),
            http_proxy: None,
            no_proxy: no_proxy.map(str::to_owned),
        },
        credential: ticket.to_owned().into(),
        ..tls_config(&house, "localhost", Trust::CaPem(papers.ca_pem.clone()))
    };
    let (good, bad, around) = (
        through("ada:pass", None, "ticket-through"),
        through("ada:wrong", None, "ticket-wrong"),
        through("ada:wrong", Some("example.org, localhost"), "ticket-around"),
    );
    echoes(&mut house, good).await;
    assert_eq!(count.load(Ordering::SeqCst), 1);
    let agent = Agent::dial(bad);
    let trouble = trouble(&agent).await;
    assert!(trouble.contains("407") && !trouble.contains("wrong"), "{trouble}");
    drop(agent);
    echoes(&mut house, around).await;
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_of_two_lanes_under_tls_comes_up() {
    let papers = papers();
    let mut house = tls_house(&papers, "127.0.0.1:0").await;
    let mut two = tls_config(&house, "localhost", Trust::CaPem(papers.ca_pem.clone()));
    two.lanes = 2;
    let agent = Agent::dial(two);
    let link = house.arrival().await;
    up(&agent.link, 2).await;
    up(&link, 2).await;
}
