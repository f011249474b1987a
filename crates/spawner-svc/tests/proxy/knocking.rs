//! The link listener: TLS of the service's own CA, silence at the door, the stop.

use std::net::SocketAddr;
use std::time::Duration;

use glidepath_spawner::notable::Notes;
use glidepath_spawner::proxy::link;
use glidepath_spawner::tls::{self, LinkTls, ServerTls};
use glidepath_tunnel::dial::Trust;
use glidepath_tunnel::home::{HomeConfig, HomeEnd};
use glidepath_tunnel::link::Link;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::house::{OpenGate, SOON, dial, leave};

async fn door(tls: ServerTls, bind: &str) -> (SocketAddr, mpsc::Receiver<Link>, CancellationToken) {
    let listener = TcpListener::bind(bind).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (gate, arrived) = OpenGate::new();
    let stop = CancellationToken::new();
    let home = HomeEnd::new(HomeConfig::default(), gate);
    leave(link::run(listener, LinkTls::Own(tls), home, Notes::new(), stop.clone()));
    (address, arrived, stop)
}

#[tokio::test]
async fn an_agent_that_trusts_the_own_ca_comes_in_and_another_does_not() {
    let (ours, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let tls = tls::own_ca(ours.path(), &["127.0.0.1".into()]).unwrap();
    let ca = tls.ca_pem().unwrap().to_owned();
    let stranger = tls::own_ca(others.path(), &["127.0.0.1".into()]).unwrap().ca_pem().unwrap().to_owned();
    let (address, mut arrived, _stop) = door(tls, "127.0.0.1:0").await;
    let url = format!("wss://{address}/link");
    let wary = dial(&url, Trust::CaPem(stranger));
    let nobody = timeout(Duration::from_secs(3), arrived.recv()).await;
    assert!(nobody.is_err(), "an agent came in that does not trust this home");
    drop(wary);
    let _agent = dial(&url, Trust::CaPem(ca));
    assert!(timeout(SOON, arrived.recv()).await.unwrap().is_some());
}

#[tokio::test]
async fn an_ipv6_literal_can_be_dialled() {
    let folder = tempfile::tempdir().unwrap();
    let tls = tls::own_ca(folder.path(), &["[::1]".into()]).unwrap();
    let ca = tls.ca_pem().unwrap().to_owned();
    let (address, mut arrived, _stop) = door(tls, "[::1]:0").await;
    let _agent = dial(&format!("wss://{address}/link"), Trust::CaPem(ca));
    assert!(timeout(SOON, arrived.recv()).await.unwrap().is_some());
}

#[tokio::test]
async fn silent_peers_do_not_hold_up_the_door() {
    let folder = tempfile::tempdir().unwrap();
    let tls = tls::own_ca(folder.path(), &["127.0.0.1".into()]).unwrap();
    let ca = tls.ca_pem().unwrap().to_owned();
    let (address, mut arrived, _stop) = door(tls, "127.0.0.1:0").await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let _agent = dial(&format!("wss://{address}/link"), Trust::CaPem(ca));
    assert!(timeout(Duration::from_secs(5), arrived.recv()).await.unwrap().is_some());
}
