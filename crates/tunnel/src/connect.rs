//! One dial in two halves: TCP and the proxy's CONNECT; then TLS, the WebSocket upgrade, the handshake. One try, no
//! repetition, no deadline: both are the caller's.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::StatusCode;
use rustls_pki_types::ServerName;
use secrecy::ExposeSecret as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::TlsConnector;

use crate::dial::{BadDial, DialConfig};
use crate::gulp::Gulp;
use crate::link::PeerInfo;
use crate::proto::handshake::{
    self, CAPABILITIES, Hello, Key, Refused, VERSIONS, Verdict, Welcome, decode_challenge, decode_verdict,
};
use crate::proxy::{self, Proxy};
use crate::trust;
use crate::upgrade::{self, Answer, LINK_PATH};
use crate::websocket::{Role, WebSocket};

/// The next address is tried after this, beside the ones before it.
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);
/// The longest that a `Retry-After` keeps a dialler away.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);

/// A connection in the clear or under TLS.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Where home is and what it takes to get in. Checked; made once.
#[derive(Debug)]
pub(crate) struct Way {
    host: String,
    port: u16,
    tls: Option<(Arc<rustls::ClientConfig>, ServerName<'static>)>,
    path: String,
    proxy: Option<Proxy>,
    credential: secrecy::SecretString,
    software: String,
    key: Key,
}

/// A lane that home welcomed.
pub(crate) struct Established {
    pub(crate) socket: WebSocket<Box<dyn Io>>,
    pub(crate) welcome: Welcome,
    pub(crate) about: PeerInfo,
}

/// Why a dial came to nothing.
#[derive(Debug)]
pub(crate) enum Failed {
    /// Home said no, for good or for a while.
    Refused(Refused),
    /// Nobody listens at home's own address: every connection was refused there, and no proxy stands between.
    Nobody(String),
    /// Anything else, in words.
    Trouble(String),
}

impl From<String> for Failed {
    fn from(sentence: String) -> Self {
        Failed::Trouble(sentence)
    }
}

impl Way {
    pub(crate) fn check(config: &DialConfig) -> Result<Self, BadDial> {
        let bad = |text: &str| BadDial::HomeUrl(format!("{text}; it must be wss://host[:port][/link]"));
        let uri: http::Uri = config.home_url.parse().map_err(|_| bad("not a URL"))?;
        let tls = match uri.scheme_str() {
            Some("wss") => true,
            Some("ws") => false,
            _ => return Err(bad("neither wss:// nor ws://")),
        };
        let authority = uri.authority().ok_or_else(|| bad("no host"))?;
        if authority.as_str().contains('@') {
            return Err(bad("a user name has no place in it"));
        }
        let (host, port) = proxy::split_port(authority.as_str()).ok_or_else(|| bad("no host or no port"))?;
        let port = port.unwrap_or(if tls { 443 } else { 80 });
        let tls = if tls {
            let client = trust::client_config(&config.trust).map_err(BadDial::Trust)?;
            let name = ServerName::try_from(host.to_owned()).map_err(|_| bad("its host is no name"))?;
            Some((client, name))
        } else {
            None
        };
        if config.credential.expose_secret().len() > handshake::MAX_CREDENTIAL_BYTES {
            return Err(BadDial::Limit("the credential is longer than 8 KiB".to_owned()));
        }
        let path = match uri.path() {
            "" | "/" => LINK_PATH.to_owned(),
            path => path.to_owned(),
        };
        Ok(Way {
            proxy: proxy::choose(&config.proxy, tls.is_some(), host, port).map_err(BadDial::Proxy)?,
            host: host.to_owned(),
            port,
            tls,
            path,
            credential: config.credential.clone(),
            software: config.software.chars().filter(|c| !c.is_control()).take(64).collect(),
            key: Key::generate().ok_or(BadDial::Key)?,
        })
    }

    /// `host:port`, an IPv6 address in brackets.
    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The first half of a dial: a connection to home's port. Home has done nothing for it yet. May be dropped half way.
    pub(crate) async fn connect(&self) -> Result<TcpStream, Failed> {
        let (host, port) = match &self.proxy {
            Some(proxy) => (proxy.host.as_str(), proxy.port),
            None => (self.host.as_str(), self.port),
        };
        let mut tcp =
            connect_tcp(host, port).await.map_err(|unreached| match (&self.proxy, unreached.refused) {
                (None, true) => Failed::Nobody(unreached.sentence),
                _ => Failed::Trouble(unreached.sentence),
            })?;
        if let Some(proxy) = &self.proxy {
            proxy::connect(&mut tcp, proxy, &self.authority()).await?;
        }
        Ok(tcp)
    }

    /// The second half: makes a lane of that connection. May be dropped half way.
    pub(crate) async fn meet(&self, tcp: TcpStream, session: [u8; 16]) -> Result<Established, Failed> {
        let io: Box<dyn Io> = match &self.tls {
            None => Box::new(tcp),
            Some((client, name)) => {
                let tls = TlsConnector::from(Arc::clone(client)).connect(name.clone(), Gulp::new(tcp)).await;
                Box::new(tls.map_err(|error| format!("TLS with home failed: {error}"))?)
            }
        };
        let mut socket = self.upgrade(io).await?;
        let (welcome, about) = self.shake_hands(&mut socket, session).await?;
        Ok(Established { socket, welcome, about })
    }

    async fn upgrade(&self, mut io: Box<dyn Io>) -> Result<WebSocket<Box<dyn Io>>, Failed> {
        match upgrade::ask(&mut io, &self.authority(), &self.path).await {
            Ok(Answer::Link) => Ok(WebSocket::new(io, Role::Client { under_tls: self.tls.is_some() })),
            Ok(Answer::Else { status, retry_after }) => Err(refused_by_http(status, retry_after)),
            Err(error) => Err(Failed::Trouble(format!("the WebSocket upgrade failed: {error}"))),
        }
    }

    async fn shake_hands(
        &self,
        socket: &mut WebSocket<Box<dyn Io>>,
        session: [u8; 16],
    ) -> Result<(Welcome, PeerInfo), Failed> {
        let broken =
            |error: crate::proto::frame::Broken| format!("home does not speak the link protocol: {error}");
        let hello = Hello {
            versions: VERSIONS,
            key: self.key.public(),
            session,
            credential: self.credential.expose_secret().to_owned(),
            home: self.authority(),
            software: self.software.clone(),
            capabilities: CAPABILITIES.iter().map(|&name| name.to_owned()).collect(),
        }
        .encode();
        let unsent = |error| format!("the connection broke during the handshake: {error}");
        let silent = |end| format!("the handshake was not finished: {end}");
        socket.send(&hello).await.map_err(unsent)?;
        let raw_challenge = socket.receive().await.map_err(silent)?;
        let challenge = decode_challenge(&raw_challenge).map_err(broken)?.map_err(Failed::Refused)?;
        if challenge.version < VERSIONS.0 || challenge.version > VERSIONS.1 {
            return Err(Failed::Trouble(format!(
                "home chose version {} which was not offered",
                challenge.version
            )));
        }
        socket.send(&self.key.prove(&hello, &raw_challenge)).await.map_err(unsent)?;
        let verdict = socket.receive().await.map_err(silent)?;
        match decode_verdict(&verdict).map_err(broken)? {
            Verdict::Welcome(welcome) => {
                let (software, version) = (challenge.software, challenge.version);
                Ok((welcome, PeerInfo { software, version, capabilities: challenge.capabilities }))
            }
            Verdict::Refused(refused) => Err(Failed::Refused(refused)),
        }
    }
}

/// An HTTP answer instead of the upgrade. Only 503 and 429 say when to come again.
fn refused_by_http(status: StatusCode, after: Option<Duration>) -> Failed {
    let sentence = format!("home answered {status} instead of the link");
    match (status, after) {
        (StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS, Some(after)) => {
            Failed::Refused(Refused { after: Some(after.min(MAX_RETRY_AFTER)), sentence })
        }
        _ => Failed::Trouble(sentence),
    }
}

/// Why no connection came about.
struct Unreached {
    sentence: String,
    /// Every address of the host refused it.
    refused: bool,
}

/// Tries a host's addresses one beside the other, each a little later, so that a dead one costs no dial.
async fn connect_tcp(host: &str, port: u16) -> Result<TcpStream, Unreached> {
    let unknown = |error| Unreached { sentence: format!("{host} has no address: {error}"), refused: false };
    let addresses: Vec<SocketAddr> = lookup_host((host, port)).await.map_err(unknown)?.collect();
    let mut tries: FuturesUnordered<_> = addresses
        .iter()
        .enumerate()
        .map(|(index, address)| async move {
            tokio::time::sleep(NEXT_ADDRESS_AFTER * index as u32).await;
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            Ok::<_, std::io::Error>(tcp)
        })
        .collect();
    let mut unreached =
        Unreached { sentence: format!("{host} has no address"), refused: !addresses.is_empty() };
    while let Some(tried) = tries.next().await {
        match tried {
            Ok(tcp) => return Ok(tcp),
            Err(error) => {
                unreached.refused &= error.kind() == ErrorKind::ConnectionRefused;
                unreached.sentence = format!("connecting to {host}:{port} failed: {error}");
            }
        }
    }
    Err(unreached)
}
