//! WebSocket messages over a connection that was upgraded (RFC 6455, sections 5 to 7): binary messages both ways.
//!
//! In: bytes from the connection, messages to send. Out: whole messages, in place where they were read. A connection
//! that is idle holds no buffer: all connections of a thread read into one and write from one, and keep only the part of
//! a message that has not come yet, or did not get out.
//!
//! Not here: the upgrade (`upgrade`), what messages mean.

use std::cell::RefCell;
use std::io;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

/// The largest message that either end takes.
pub(crate) const MAX_MESSAGE_BYTES: usize = 256 * 1024;
/// What a thread reads before it looks at it: several messages of bulk in one system call.
const INBOX_BYTES: usize = 256 * 1024;
/// The longest head of a frame.
const MAX_HEAD_BYTES: usize = 14;
/// The most that a control frame may carry (section 5.5).
const MAX_CONTROL_BYTES: usize = 125;

const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;
const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;

thread_local! {
    static INBOX: RefCell<BytesMut> = RefCell::default();
    static OUTBOX: RefCell<BytesMut> = RefCell::default();
}

/// Which end of the WebSocket this is; the client masks what it sends (section 5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Was asked for the upgrade.
    Server,
    /// Asked for it. `under_tls`: nobody between the ends sees the bytes, so the key of the mask is zero and costs nothing.
    Client { under_tls: bool },
}

/// Why no message can come or go any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketEnd {
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The other end closed it, in order or by hanging up.
    #[error("the connection was closed")]
    Closed,
    /// What came is no WebSocket, by this rule.
    #[error("the connection carries no WebSocket: {0}")]
    Rule(&'static str),
    /// A text message: a WebSocket, but no link.
    #[error("a text message")]
    Text,
}

/// One end of a WebSocket.
#[derive(Debug)]
pub(crate) struct WebSocket<IO> {
    io: IO,
    role: Role,
    /// The beginning of a frame whose end has not come, or, after [`WebSocket::poll_receive`] was told to stop, frames
    /// that nobody has looked at.
    rest: BytesMut,
    /// `rest` may hold a whole frame.
    looked_away: bool,
    /// What came of a message that comes in several frames.
    fragments: Option<BytesMut>,
    /// Whole frames or the ends of frames, which the connection has not taken.
    unsent: BytesMut,
    pong: Option<Bytes>,
    hung_up: bool,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> WebSocket<IO> {
    pub(crate) fn new(io: IO, role: Role) -> Self {
        WebSocket {
            io,
            role,
            rest: BytesMut::new(),
            looked_away: false,
            fragments: None,
            unsent: BytesMut::new(),
            pong: None,
            hung_up: false,
        }
    }

    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn get_mut(&mut self) -> &mut IO {
        &mut self.io
    }

    /// Reads what is there and hands out the messages that it completes, until `take` breaks off. A message must not be
    /// kept: it keeps the thread's buffer from being used again. `Ready(Ok(None))` when there may be more to read.
    pub(crate) fn poll_receive<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut take: impl FnMut(Bytes) -> ControlFlow<T>,
    ) -> Poll<Result<Option<T>, SocketEnd>> {
        if self.looked_away {
            self.looked_away = false;
            let mut rest = std::mem::take(&mut self.rest);
            if let Some(broke) = self.look(&mut rest, &mut take)? {
                return Poll::Ready(Ok(Some(broke)));
            }
        }
        INBOX.with_borrow_mut(|inbox| {
            inbox.clear();
            inbox.reserve(INBOX_BYTES);
            let mut drained = false;
            while !self.hung_up && inbox.len() < INBOX_BYTES {
                match poll_read_buf(Pin::new(&mut self.io), cx, inbox) {
                    Poll::Ready(Ok(0)) => self.hung_up = true,
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                    Poll::Pending => {
                        drained = true;
                        break;
                    }
                }
            }
            if let Some(broke) = self.look(inbox, &mut take)? {
                return Poll::Ready(Ok(Some(broke)));
            }
            match (drained, self.hung_up) {
                (true, _) => Poll::Pending,
                (false, true) => Poll::Ready(Err(SocketEnd::Closed)),
                (false, false) => Poll::Ready(Ok(None)),
            }
        })
    }

    /// Takes frames off `bytes`, the first one of which may have begun in `rest`. What is no whole frame becomes `rest`.
    fn look<T>(
        &mut self,
        bytes: &mut BytesMut,
        take: &mut impl FnMut(Bytes) -> ControlFlow<T>,
    ) -> Result<Option<T>, SocketEnd> {
        while !self.rest.is_empty() && !bytes.is_empty() {
            let missing = match Head::parse(&self.rest, self.role)? {
                Some(head) => head.whole() - self.rest.len(),
                None => 1,
            };
            self.rest.extend_from_slice(&bytes.split_to(missing.min(bytes.len())));
            if let Some(head) = Head::parse(&self.rest, self.role)?.filter(|h| h.whole() == self.rest.len()) {
                let frame = std::mem::take(&mut self.rest);
                if let ControlFlow::Break(broke) = self.on_frame(&head, frame, take)? {
                    self.look_away(bytes);
                    return Ok(Some(broke));
                }
            }
        }
        while let Some(head) = Head::parse(bytes, self.role)?.filter(|head| head.whole() <= bytes.len()) {
            let frame = bytes.split_to(head.whole());
            if let ControlFlow::Break(broke) = self.on_frame(&head, frame, take)? {
                self.look_away(bytes);
                return Ok(Some(broke));
            }
        }
        self.rest.extend_from_slice(bytes);
        bytes.clear();
        Ok(None)
    }

    fn look_away(&mut self, bytes: &mut BytesMut) {
        self.looked_away = !bytes.is_empty();
        self.rest.extend_from_slice(bytes);
        bytes.clear();
    }

    fn on_frame<T>(
        &mut self,
        head: &Head,
        mut frame: BytesMut,
        take: &mut impl FnMut(Bytes) -> ControlFlow<T>,
    ) -> Result<ControlFlow<T>, SocketEnd> {
        frame.advance(head.length);
        if let Some(key) = head.key {
            mask(&mut frame, key);
        }
        match (head.opcode, head.is_last, self.fragments.take()) {
            (BINARY, true, None) => return Ok(take(frame.freeze())),
            (BINARY, false, None) => self.fragments = Some(BytesMut::from(&frame[..])),
            (CONTINUATION, is_last, Some(mut fragments)) => {
                if fragments.len() + frame.len() > MAX_MESSAGE_BYTES {
                    return Err(SocketEnd::Rule("a message is too long"));
                }
                fragments.extend_from_slice(&frame);
                if is_last {
                    return Ok(take(fragments.freeze()));
                }
                self.fragments = Some(fragments);
            }
            // Between the fragments of a message there may be control frames (section 5.4).
            (PING, _, fragments) => {
                self.fragments = fragments;
                self.pong = Some(Bytes::copy_from_slice(&frame));
            }
            (PONG, _, fragments) => self.fragments = fragments,
            (CLOSE, ..) => return Err(SocketEnd::Closed),
            (TEXT, ..) => return Err(SocketEnd::Text),
            _ => return Err(SocketEnd::Rule("fragments of messages out of order")),
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Sends what did not get out. Ready when the connection took all of it.
    pub(crate) fn poll_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.put_pong();
        while !self.unsent.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.unsent))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.unsent.advance(count),
            }
        }
        self.unsent = BytesMut::new();
        Poll::Ready(Ok(()))
    }

    /// Sends the message that `fill` writes, or keeps what the connection does not take; false when `fill` wrote none.
    /// Only after [`WebSocket::poll_unsent`] was ready.
    pub(crate) fn send_with(
        &mut self,
        cx: &mut Context<'_>,
        fill: impl FnOnce(&mut BytesMut) -> bool,
    ) -> io::Result<bool> {
        OUTBOX.with_borrow_mut(|outbox| {
            outbox.clear();
            // The length of the head is known when the message is: it is written in front of it then.
            outbox.extend_from_slice(&[0; MAX_HEAD_BYTES]);
            if !fill(outbox) {
                return Ok(false);
            }
            let (head, message) = outbox.split_at_mut(MAX_HEAD_BYTES);
            let head_length = self.seal(BINARY, head, message);
            let mut frame = &outbox[MAX_HEAD_BYTES - head_length..];
            while !frame.is_empty() {
                match Pin::new(&mut self.io).poll_write(cx, frame) {
                    Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(count)) => frame = &frame[count..],
                    Poll::Ready(Err(error)) => return Err(error),
                    Poll::Pending => {
                        self.unsent.extend_from_slice(frame);
                        break;
                    }
                }
            }
            Ok(true)
        })
    }

    /// Pushes out what the layers below hold.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// The next message. Nothing is lost when it is dropped half way.
    pub(crate) async fn receive(&mut self) -> Result<Bytes, SocketEnd> {
        std::future::poll_fn(|cx| {
            loop {
                // Pings before the first message want their answer.
                if let Poll::Ready(Err(error)) = self.poll_unsent(cx) {
                    return Poll::Ready(Err(error.into()));
                }
                let whole = |message: Bytes| ControlFlow::Break(Bytes::copy_from_slice(&message));
                if let Some(message) = ready!(self.poll_receive(cx, whole))? {
                    return Poll::Ready(Ok(message));
                }
            }
        })
        .await
    }

    /// Sends one message. Dropped half way, a part of it may be sent.
    pub(crate) async fn send(&mut self, message: &[u8]) -> io::Result<()> {
        self.put_pong();
        self.append(BINARY, message);
        self.flush().await
    }

    /// Says goodbye; what the other end says after it can still be received.
    pub(crate) async fn close(&mut self) -> io::Result<()> {
        self.append(CLOSE, &[]);
        self.flush().await
    }

    async fn flush(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| {
            ready!(self.poll_unsent(cx))?;
            self.poll_flush(cx)
        })
        .await
    }

    /// Only the latest ping is answered (section 5.5.3): a flood of them costs no memory.
    fn put_pong(&mut self) {
        if let Some(pong) = self.pong.take() {
            self.append(PONG, &pong);
        }
    }

    fn append(&mut self, opcode: u8, payload: &[u8]) {
        let mut head = [0; MAX_HEAD_BYTES];
        let mut payload = BytesMut::from(payload);
        let length = self.seal(opcode, &mut head, &mut payload);
        self.unsent.extend_from_slice(&head[MAX_HEAD_BYTES - length..]);
        self.unsent.extend_from_slice(&payload);
    }

    /// Writes a frame's head so that it ends where `head` ends, and masks the payload if this end has to. Answers the
    /// head's length.
    fn seal(&self, opcode: u8, head: &mut [u8], payload: &mut [u8]) -> usize {
        let key = match self.role {
            Role::Server => None,
            Role::Client { under_tls: true } => Some([0; 4]),
            Role::Client { under_tls: false } => Some(rand::random()),
        };
        let mut raw = [0; MAX_HEAD_BYTES];
        let masked = if key.is_some() { MASKED } else { 0 };
        raw[0] = FIN | opcode;
        let mut length = match payload.len() {
            short @ 0..=125 => {
                raw[1] = masked | short as u8;
                2
            }
            medium @ 126..=0xffff => {
                raw[1] = masked | 126;
                raw[2..4].copy_from_slice(&(medium as u16).to_be_bytes());
                4
            }
            long => {
                raw[1] = masked | 127;
                raw[2..10].copy_from_slice(&(long as u64).to_be_bytes());
                10
            }
        };
        if let Some(key) = key {
            raw[length..length + 4].copy_from_slice(&key);
            length += 4;
            mask(payload, key);
        }
        let start = head.len() - length;
        head[start..].copy_from_slice(&raw[..length]);
        length
    }
}

/// The head of a frame.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    opcode: u8,
    is_last: bool,
    key: Option<[u8; 4]>,
    /// Of the head, and of what follows it.
    length: usize,
    payload: usize,
}

impl Head {
    /// Reads the head at the front of `bytes`; `None` when it has not come as a whole.
    fn parse(bytes: &[u8], role: Role) -> Result<Option<Head>, SocketEnd> {
        let [first, second, rest @ ..] = bytes else { return Ok(None) };
        let (opcode, is_last, masked) = (first & 0x0f, first & FIN != 0, second & MASKED != 0);
        if first & 0x70 != 0 {
            return Err(SocketEnd::Rule("a frame of an extension that nobody asked for"));
        }
        if masked != (role == Role::Server) {
            return Err(SocketEnd::Rule("what the client sends is masked, and nothing else"));
        }
        let is_control = match opcode {
            CONTINUATION | TEXT | BINARY => false,
            CLOSE | PING | PONG => true,
            _ => return Err(SocketEnd::Rule("a frame of an unknown kind")),
        };
        let (payload, length_bytes) = match second & 0x7f {
            126 => match rest {
                [high, low, ..] => (u64::from(u16::from_be_bytes([*high, *low])), 2),
                _ => return Ok(None),
            },
            127 => match rest.first_chunk::<8>() {
                Some(length) => (u64::from_be_bytes(*length), 8),
                None => return Ok(None),
            },
            short => (u64::from(short), 0),
        };
        if is_control && (!is_last || payload > MAX_CONTROL_BYTES as u64) {
            return Err(SocketEnd::Rule("a control frame is longer than 125 bytes, or in parts"));
        }
        let payload = usize::try_from(payload).ok().filter(|length| *length <= MAX_MESSAGE_BYTES);
        let payload = payload.ok_or(SocketEnd::Rule("a message is too long"))?;
        let (key, key_bytes) = match (masked, rest.get(length_bytes..).and_then(|rest| rest.first_chunk())) {
            (false, _) => (None, 0),
            (true, Some(key)) => (Some(*key), 4),
            (true, None) => return Ok(None),
        };
        Ok(Some(Head { opcode, is_last, key, length: 2 + length_bytes + key_bytes, payload }))
    }

    fn whole(&self) -> usize {
        self.length + self.payload
    }
}

/// Masks, or takes the mask off again (section 5.3).
fn mask(bytes: &mut [u8], key: [u8; 4]) {
    if key == [0; 4] {
        return;
    }
    let (words, tail) = bytes.as_chunks_mut::<4>();
    let key_word = u32::from_ne_bytes(key);
    for word in words {
        *word = (u32::from_ne_bytes(*word) ^ key_word).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(key) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests;
