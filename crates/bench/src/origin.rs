//! A server that costs little: what stands behind the agent, in the place of a user's.
//!
//! `/bulk?n=&stream=` sends a pattern, `/upload?stream=` checks one, `/small?k=` answers what fits `k`, `/ws` echoes,
//! `/drip?n=&ms=` sends lines one by one; anything else is answered by a small page. Paths count from their end: what
//! is in front of them does not matter.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};

use crate::pattern::{PIECE_BYTES, Pattern};
use crate::wire::{Frame, Head, accept, unmask};

/// Of a small answer's body.
pub(crate) const SMALL_BYTES: u64 = 128;
/// What is written at once: then an echo beside it has its turn.
const TURN_BYTES: u64 = 128 * 1024;

#[derive(Debug, clap::Args)]
pub(crate) struct OriginArgs {
    #[arg(long, default_value = "127.0.0.1:9000")]
    listen: SocketAddr,
    /// A socket's path to listen at instead, as a user's server does.
    #[arg(long)]
    unix: Option<PathBuf>,
}

/// Serves until it is killed.
pub(crate) async fn origin(args: &OriginArgs) -> anyhow::Result<()> {
    if let Some(path) = &args.unix {
        let listener = UnixListener::bind(path)?;
        loop {
            tokio::spawn(until_closed(listener.accept().await?.0));
        }
    }
    let listener = TcpListener::bind(args.listen).await?;
    loop {
        let (tcp, _) = listener.accept().await?;
        tcp.set_nodelay(true)?;
        tokio::spawn(until_closed(tcp));
    }
}

/// One connection, request after request.
pub(crate) async fn until_closed(user: impl User) {
    let _ = serve(user).await; // the other end sees that it ended
}

/// One connection.
pub(crate) trait User: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> User for T {}

async fn serve(mut user: impl User) -> anyhow::Result<()> {
    let page = format!("{}\n", "x".repeat(SMALL_BYTES as usize - 1));
    let mut buffer = Vec::with_capacity(8192);
    while let Some(head) = Head::read(&mut user, &mut buffer).await? {
        let pattern = Pattern::of_stream(head.asked("stream").unwrap_or_default());
        match head.path().rsplit('/').next().unwrap_or_default() {
            "ws" => return web_socket(&mut user, buffer, &head).await,
            "bulk" => bulk(&mut user, head.asked("n").unwrap_or(1 << 20), pattern).await?,
            "upload" => upload(&mut user, &mut buffer, &head, pattern).await?,
            "drip" => drip(&mut user, &head).await?,
            "small" => {
                let key = head.asked("k").unwrap_or_default();
                answer(&mut user, "200 OK", Pattern::of_stream(0).at(key, SMALL_BYTES), false).await?;
            }
            _ => answer(&mut user, "200 OK", page.as_bytes(), head.closes()).await?,
        }
        if head.closes() {
            user.shutdown().await?;
            break;
        }
    }
    Ok(())
}

async fn answer(user: &mut impl User, status: &str, body: &[u8], closes: bool) -> anyhow::Result<()> {
    let close = if closes { "Connection: close\r\n" } else { "" };
    let length = body.len();
    let mut out =
        format!("HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n{close}\r\n")
            .into_bytes();
    out.extend_from_slice(body);
    Ok(user.write_all(&out).await?)
}

async fn bulk(user: &mut impl User, bytes: u64, pattern: Pattern) -> anyhow::Result<()> {
    let kind = "application/octet-stream";
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {bytes}\r\n\r\n");
    user.write_all(head.as_bytes()).await?;
    let mut sent = 0;
    while sent < bytes {
        sent += user.write(pattern.at(sent, TURN_BYTES.min(bytes - sent))).await? as u64;
        tokio::task::yield_now().await;
    }
    Ok(())
}

async fn upload(
    user: &mut impl User,
    buffer: &mut Vec<u8>,
    head: &Head,
    pattern: Pattern,
) -> anyhow::Result<()> {
    let bytes = head.length().unwrap_or_default();
    let first = std::mem::take(buffer);
    let (mut got, mut whole) = (first.len() as u64, pattern.holds(0, &first));
    let mut piece = vec![0; PIECE_BYTES];
    while got < bytes {
        let read = user.read(&mut piece).await?;
        ensure!(read > 0, "a short upload");
        whole &= pattern.holds(got, piece.get(..read).unwrap_or_default());
        got += read as u64;
    }
    let (status, body) =
        if whole && got == bytes { ("200 OK", "whole") } else { ("400 Bad Request", "not what was sent") };
    answer(user, status, body.as_bytes(), false).await
}

async fn drip(user: &mut impl User, head: &Head) -> anyhow::Result<()> {
    let every = Duration::from_millis(head.asked("ms").unwrap_or(50));
    user.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await?;
    for number in 0..head.asked("n").unwrap_or(100) {
        user.write_all(format!("9\r\n{number:08}\n\r\n").as_bytes()).await?;
        tokio::time::sleep(every).await;
    }
    Ok(user.write_all(b"0\r\n\r\n").await?)
}

/// Sends back every frame.
async fn web_socket(user: &mut impl User, mut buffer: Vec<u8>, head: &Head) -> anyhow::Result<()> {
    let accept = accept(head.header("sec-websocket-key").unwrap_or_default());
    let upgrade = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade";
    user.write_all(format!("{upgrade}\r\nSec-WebSocket-Accept: {accept}\r\n\r\n").as_bytes()).await?;
    let mut out = Vec::with_capacity(4096);
    loop {
        let (mut done, mut closed) = (0, false);
        while let Some(frame) = Frame::parse(buffer.get(done..).unwrap_or_default())? {
            let begin = done + frame.head;
            done = begin + frame.payload;
            let payload = buffer.get_mut(begin..done).unwrap_or_default();
            if let Some(mask) = frame.mask {
                unmask(payload, mask);
            }
            Frame::write(&mut out, if frame.kind == 9 { 10 } else { frame.kind }, payload, None);
            closed |= frame.kind == 8;
        }
        buffer.drain(..done);
        user.write_all(&out).await?;
        out.clear();
        if closed || user.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}
