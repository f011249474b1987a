//! A single-user server of a few hundred kilobytes, for tests with hundreds of them.
//!
//! Listens on the unix socket that `--ServerApp.sock=` names, or at the address of `JUPYTERHUB_SERVICE_URL`, as a
//! single-user server does. Any request is answered with a line of JSON; a WebSocket sends back what it is told.

use std::env;
use std::io;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

const HEAD_MAX_BYTES: usize = 32 * 1024;
const MISSING: &str = "neither --ServerApp.sock=PATH nor JUPYTERHUB_SERVICE_URL says where to listen";

/// What a connection is made of.
trait Wire: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Wire for T {}

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let label = |name| env::var(name).unwrap_or_default();
    let body = format!(
        "{{\"version\":\"light\",\"key\":\"{}\",\"attempt\":\"{}\"}}\n",
        label("GLIDEPATH_KEY"),
        label("GLIDEPATH_ATTEMPT")
    );
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut connections = JoinSet::new();
    if let Some(socket) = env::args().find_map(|arg| arg.strip_prefix("--ServerApp.sock=").map(str::to_owned))
    {
        let listener = UnixListener::bind(socket)?;
        loop {
            let (stream, _) = listener.accept().await?;
            while connections.try_join_next().is_some() {}
            connections.spawn(serve(stream, answer.clone()));
        }
    }
    let listener = TcpListener::bind(address().ok_or_else(|| io::Error::other(MISSING))?).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        while connections.try_join_next().is_some() {}
        connections.spawn(serve(stream, answer.clone()));
    }
}

/// Host and port of the URL that a Hub names.
fn address() -> Option<String> {
    let url = env::var("JUPYTERHUB_SERVICE_URL").ok()?;
    url.strip_prefix("http://")?.split('/').next().map(str::to_owned)
}

/// One connection, request after request. Bodies of requests are not expected.
async fn serve(mut stream: impl Wire, answer: String) -> Option<()> {
    loop {
        let head = read_head(&mut stream).await?;
        match header(&head, "sec-websocket-key") {
            Some(key) => return echo(stream, derive_accept_key(key.as_bytes())).await,
            None => stream.write_all(answer.as_bytes()).await.ok()?,
        }
    }
}

async fn echo(mut stream: impl Wire, accept: String) -> Option<()> {
    let switched = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    stream.write_all(switched.as_bytes()).await.ok()?;
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
    while let Some(Ok(message)) = socket.next().await {
        if message.is_text() || message.is_binary() {
            socket.send(message).await.ok()?;
        }
    }
    Some(())
}

/// Up to the empty line; `None` when the other side is done.
async fn read_head(stream: &mut impl Wire) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > HEAD_MAX_BYTES {
            return None;
        }
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}
