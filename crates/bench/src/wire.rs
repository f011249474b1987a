//! As much of HTTP/1.1 and WebSocket as origin and load need, and no more.

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// No head of these programs is longer.
const HEAD_BYTES: usize = 16 * 1024;
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// Where load goes.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Target {
    /// Host and port to connect to.
    #[arg(long, default_value = "127.0.0.1:7001")]
    pub(crate) target: String,
    /// In front of every path.
    #[arg(long, default_value = "")]
    pub(crate) prefix: String,
    /// A header for every request, as `Name: value`.
    #[arg(long)]
    pub(crate) header: Vec<String>,
}

impl Target {
    /// A connection that sends at once.
    pub(crate) async fn connect(&self) -> anyhow::Result<TcpStream> {
        let tcp = TcpStream::connect(&self.target).await.with_context(|| self.target.clone())?;
        tcp.set_nodelay(true)?;
        Ok(tcp)
    }

    /// The head of a request, with `more` lines that each end.
    pub(crate) fn head(&self, method: &str, path: &str, more: &str) -> String {
        let mine: String = self.header.iter().map(|line| format!("{line}\r\n")).collect();
        format!("{method} {}{path} HTTP/1.1\r\nHost: {}\r\n{mine}{more}\r\n", self.prefix, self.target)
    }

    /// Asks, and reads the head of the answer; what came behind it stays in the buffer.
    pub(crate) async fn ask(
        &self,
        tcp: &mut TcpStream,
        head: &str,
        buffer: &mut Vec<u8>,
    ) -> anyhow::Result<Head> {
        tcp.write_all(head.as_bytes()).await?;
        Head::read(tcp, buffer).await?.context("the connection ended before an answer")
    }

    /// An open WebSocket, and what arrived behind the handshake.
    pub(crate) async fn web_socket(&self) -> anyhow::Result<(TcpStream, Vec<u8>)> {
        let upgrade = format!(
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n"
        );
        let (mut tcp, mut buffer) = (self.connect().await?, Vec::new());
        let head = self.ask(&mut tcp, &self.head("GET", "/ws", &upgrade), &mut buffer).await?;
        ensure!(head.status() == 101, "no WebSocket: {}", head.first_line());
        ensure!(head.header("sec-websocket-accept") == Some(&accept(KEY)), "the WebSocket's accept is wrong");
        Ok((tcp, buffer))
    }
}

/// The head of a request or an answer.
#[derive(Debug)]
pub(crate) struct Head {
    text: String,
}

impl Head {
    /// Reads one and takes it from the buffer. `None` when the connection ended between two.
    pub(crate) async fn read(
        from: &mut (impl AsyncRead + Unpin),
        buffer: &mut Vec<u8>,
    ) -> anyhow::Result<Option<Self>> {
        loop {
            if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                let rest = buffer.split_off(end + 4);
                let head = std::mem::replace(buffer, rest);
                return Ok(Some(Self { text: String::from_utf8(head)? }));
            }
            ensure!(buffer.len() < HEAD_BYTES, "a head without an end");
            if from.read_buf(buffer).await? == 0 {
                ensure!(buffer.is_empty(), "the connection ended within a head");
                return Ok(None);
            }
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.text.len()
    }

    pub(crate) fn first_line(&self) -> &str {
        self.text.lines().next().unwrap_or_default()
    }

    /// 0 when there is none.
    pub(crate) fn status(&self) -> u16 {
        self.word(1).parse().unwrap_or_default()
    }

    /// The path, without what is asked.
    pub(crate) fn path(&self) -> &str {
        self.word(1).split('?').next().unwrap_or_default()
    }

    /// A number of the query.
    pub(crate) fn asked(&self, key: &str) -> Option<u64> {
        let (_, query) = self.word(1).split_once('?')?;
        query.split('&').find_map(|part| part.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.text.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(crate) fn length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }

    pub(crate) fn closes(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    fn word(&self, number: usize) -> &str {
        self.first_line().split(' ').nth(number).unwrap_or_default()
    }
}

/// What a server answers to a WebSocket's key.
pub(crate) fn accept(key: &str) -> String {
    let mut hash = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key.as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    base64::engine::general_purpose::STANDARD.encode(hash.finish())
}

/// The head of a WebSocket frame.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame {
    /// 1 text, 2 binary, 8 close, 9 ping, 10 pong.
    pub(crate) kind: u8,
    pub(crate) mask: Option<[u8; 4]>,
    /// Of the head.
    pub(crate) head: usize,
    /// Of the payload.
    pub(crate) payload: usize,
}

impl Frame {
    /// `None` until the whole frame is there. A frame in parts or of megabytes is nobody's here.
    pub(crate) fn parse(bytes: &[u8]) -> anyhow::Result<Option<Self>> {
        let (Some(&first), Some(&second)) = (bytes.first(), bytes.get(1)) else { return Ok(None) };
        ensure!(first & 0x80 != 0, "a frame in parts");
        let (mut head, payload) = match second & 0x7f {
            126 => match bytes.get(2..4) {
                Some(&[high, low]) => (4, usize::from(u16::from_be_bytes([high, low]))),
                _ => return Ok(None),
            },
            127 => bail!("a frame of megabytes"),
            short => (2, usize::from(short)),
        };
        let mut mask = None;
        if second & 0x80 != 0 {
            let Some(&[a, b, c, d]) = bytes.get(head..head + 4) else { return Ok(None) };
            mask = Some([a, b, c, d]);
            head += 4;
        }
        Ok((bytes.len() >= head + payload).then_some(Self { kind: first & 15, mask, head, payload }))
    }

    /// Appends a whole frame.
    pub(crate) fn write(out: &mut Vec<u8>, kind: u8, payload: &[u8], mask: Option<[u8; 4]>) {
        let masked = if mask.is_some() { 0x80 } else { 0 };
        out.push(0x80 | kind);
        match u16::try_from(payload.len()) {
            Ok(length) if length < 126 => out.push(masked | length as u8),
            length => {
                out.push(masked | 126);
                out.extend_from_slice(&length.unwrap_or(u16::MAX).to_be_bytes());
            }
        }
        out.extend(mask.into_iter().flatten());
        let begin = out.len();
        out.extend_from_slice(payload);
        if let (Some(mask), Some(written)) = (mask, out.get_mut(begin..)) {
            unmask(written, mask);
        }
    }
}

/// Masks, or takes the mask away.
pub(crate) fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_standard_is_accepted() {
        assert_eq!(accept(KEY), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_frame_is_read_as_it_was_written_and_not_before_it_is_whole() {
        for length in [0, 1, 125, 126, 256, 65_535] {
            let payload: Vec<u8> = (0..length).map(|n| n as u8).collect();
            for mask in [None, Some([1, 2, 3, 4])] {
                let mut out = Vec::new();
                Frame::write(&mut out, 2, &payload, mask);
                assert!(Frame::parse(&out[..out.len() - 1]).unwrap().is_none());
                let frame = Frame::parse(&out).unwrap().unwrap();
                assert_eq!((frame.kind, frame.payload, frame.mask), (2, length, mask));
                let body = &mut out[frame.head..];
                if let Some(mask) = mask {
                    unmask(body, mask);
                }
                assert_eq!(body, payload);
            }
        }
    }
}
