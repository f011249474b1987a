//! The HTTP request that begins a lane, a WebSocket upgrade of `/link`: asked by the agent end, and read by the home end,
//! which upgrades or answers what was wrong with it.

use std::io;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::tungstenite::handshake::{client::generate_key, derive_accept_key};

/// The path of every link.
pub(crate) const LINK_PATH: &str = "/link";
/// The largest head of a request.
const MAX_HEAD_BYTES: usize = 8 * 1024;
const MAX_HEADERS: usize = 64;

/// What a request asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// The link; the text answers its `Sec-WebSocket-Key`.
    Link { accept: String },
    /// Something else, to be refused with this status and sentence.
    Else { status: &'static str, sentence: &'static str },
}

/// What the other end said to the request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The link begins.
    Link,
    /// Something else than the upgrade.
    Else { status: StatusCode, retry_after: Option<Duration> },
}

/// Asks for the link and reads the head of the answer. The home end says nothing after it before it is spoken to.
pub(crate) async fn ask<IO>(io: &mut IO, authority: &str, path: &str) -> io::Result<Answer>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let key = generate_key();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    );
    io.write_all(request.as_bytes()).await?;
    io.flush().await?;
    let mut head = Vec::with_capacity(512);
    loop {
        if head.len() >= MAX_HEAD_BYTES {
            return Err(io::Error::other("the head of the answer is too large"));
        }
        let mut part = [0; 1024];
        let count = io.read(&mut part).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.extend_from_slice(&part[..count]);
        if let Some(answer) = parse_answer(&head, &derive_accept_key(key.as_bytes()))? {
            return Ok(answer);
        }
    }
}

/// `None` until the head is complete.
fn parse_answer(raw: &[u8], accept: &str) -> io::Result<Option<Answer>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(raw) {
        Ok(httparse::Status::Partial) => return Ok(None),
        Ok(httparse::Status::Complete(length)) => length,
        Err(error) => return Err(io::Error::other(format!("the answer is not HTTP: {error}"))),
    };
    let header = |name: &str| {
        let found = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(found.value).ok().map(str::trim)
    };
    let status = response.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or_else(|| io::Error::other("the answer has no status"))?;
    if status != StatusCode::SWITCHING_PROTOCOLS {
        let retry_after = header("retry-after").and_then(|text| text.parse().ok()).map(Duration::from_secs);
        return Ok(Some(Answer::Else { status, retry_after }));
    }
    let upgrades = header("upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket"));
    if !upgrades || header("sec-websocket-accept") != Some(accept) {
        return Err(io::Error::other("the answer upgrades to something else than the WebSocket asked for"));
    }
    if length != raw.len() {
        return Err(io::Error::other("something follows the answer before it was spoken to"));
    }
    Ok(Some(Answer::Link))
}

/// Reads a request's head. Nothing may follow it before it is answered.
pub(crate) async fn read<IO: AsyncRead + Unpin>(io: &mut IO) -> io::Result<Asked> {
    let mut head = Vec::with_capacity(1024);
    loop {
        if head.len() >= MAX_HEAD_BYTES {
            return Ok(bad("431 Request Header Fields Too Large", "the head of the request is too large"));
        }
        let mut part = [0; 1024];
        let count = io.read(&mut part).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.extend_from_slice(&part[..count]);
        if let Some(asked) = parse(&head) {
            return Ok(asked);
        }
    }
}

/// Answers that the link begins.
pub(crate) async fn accept<IO: AsyncWrite + Unpin>(io: &mut IO, accept: &str) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    io.write_all(head.as_bytes()).await?;
    io.flush().await
}

/// Answers that it does not, and closes.
pub(crate) async fn refuse<IO: AsyncWrite + Unpin>(
    io: &mut IO,
    status: &str,
    header: &str,
    sentence: &str,
) -> io::Result<()> {
    let answer = format!(
        "HTTP/1.1 {status}\r\n{header}Connection: close\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Length: {}\r\n\r\n{sentence}\n",
        sentence.len() + 1
    );
    io.write_all(answer.as_bytes()).await?;
    io.shutdown().await
}

fn bad(status: &'static str, sentence: &'static str) -> Asked {
    Asked::Else { status, sentence }
}

/// `None` until the head is complete.
pub(crate) fn parse(raw: &[u8]) -> Option<Asked> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(raw) {
        Ok(httparse::Status::Partial) => return None,
        Ok(httparse::Status::Complete(length)) if length == raw.len() => {}
        Ok(_) => return Some(bad("400 Bad Request", "something follows the request before its answer")),
        Err(_) => return Some(bad("400 Bad Request", "this is no HTTP request")),
    }
    let path = request.path.unwrap_or_default().split('?').next().unwrap_or_default();
    if path != LINK_PATH {
        return Some(bad("404 Not Found", "links are at /link"));
    }
    let header = |name: &str| {
        let found = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(found.value).ok().map(str::trim)
    };
    let has = |name: &str, token: &str| {
        header(name).is_some_and(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
    };
    let key = header("sec-websocket-key").filter(|key| STANDARD.decode(key).is_ok_and(|raw| raw.len() == 16));
    let upgrades = request.method == Some("GET")
        && request.version == Some(1)
        && has("connection", "upgrade")
        && has("upgrade", "websocket")
        && header("sec-websocket-version") == Some("13");
    Some(match key {
        Some(key) if upgrades => Asked::Link { accept: derive_accept_key(key.as_bytes()) },
        _ => bad("426 Upgrade Required", "a link is a WebSocket"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "GET /link HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
                        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

    #[test]
    fn an_upgrade_of_the_links_path_is_accepted_with_the_key_of_the_standard() {
        assert_eq!(
            parse(GOOD.as_bytes()),
            Some(Asked::Link { accept: "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".into() })
        );
    }

    #[test]
    fn anything_else_is_refused_with_its_status() {
        let cases = [
            (GOOD.replace("/link", "/"), "404 Not Found"),
            (GOOD.replace("/link", "/link/x"), "404 Not Found"),
            (GOOD.replace("Upgrade: websocket", "Upgrade: h2c"), "426 Upgrade Required"),
            (GOOD.replace("GET", "POST"), "426 Upgrade Required"),
            (GOOD.replace("dGhl", "!!!!"), "426 Upgrade Required"),
            (GOOD.replace(": 13", ": 8"), "426 Upgrade Required"),
            (format!("{GOOD}x"), "400 Bad Request"),
            ("\x16\x03\x01\r\n\r\n".to_owned(), "400 Bad Request"),
        ];
        for (raw, expected) in cases {
            match parse(raw.as_bytes()) {
                Some(Asked::Else { status, .. }) => assert_eq!(status, expected, "{raw}"),
                other => panic!("{raw}: {other:?}"),
            }
        }
        assert_eq!(parse(&GOOD.as_bytes()[..GOOD.len() - 2]), None);
    }
}
