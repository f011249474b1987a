//! A single-user server of a few hundred kilobytes, for tests with hundreds of them.
//!
//! Listens on the unix socket that `--ServerApp.sock=` names. Any request is answered with a line of JSON; a WebSocket
//! sends back what it is told.

use std::env;
use std::io;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

const HEAD_MAX_BYTES: usize = 32 * 1024;

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let socket = env::args().find_map(|arg| arg.strip_prefix("--ServerApp.sock=").map(str::to_owned));
    let socket = socket.ok_or_else(|| io::Error::other("--ServerApp.sock=PATH is missing"))?;
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
    let listener = UnixListener::bind(socket)?;
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        while connections.try_join_next().is_some() {}
        connections.spawn(serve(stream, answer.clone()));
    }
}

/// One connection, request after request. Bodies of requests are not expected.
async fn serve(mut stream: UnixStream, answer: String) -> Option<()> {
    loop {
        let head = read_head(&mut stream).await?;
        match header(&head, "sec-websocket-key") {
            Some(key) => return echo(stream, derive_accept_key(key.as_bytes())).await,
            None => stream.write_all(answer.as_bytes()).await.ok()?,
        }
    }
}

async fn echo(mut stream: UnixStream, accept: String) -> Option<()> {
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
async fn read_head(stream: &mut UnixStream) -> Option<String> {
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
