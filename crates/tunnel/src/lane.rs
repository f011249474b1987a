//! The shell around one connection: moves messages between a WebSocket and the session, and keeps its timer.

use std::future::{Future, poll_fn};
use std::io::ErrorKind;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::{Message, WebSocketConfig};

use crate::link::{Session, now};
use crate::proto::Received;
use crate::proto::frame::CloseKind;
use crate::proto::lane::Health;

/// The largest message that either end takes.
pub(crate) const MAX_MESSAGE_BYTES: usize = 256 * 1024;
/// Messages taken in before anything is sent, and rounds before other tasks get their turn.
const READ_BURST: usize = 32;
const ROUNDS: usize = 8;
/// A goodbye must be out after this.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);

/// The WebSocket limits of both ends.
pub(crate) fn websocket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(16 * 1024)
        .write_buffer_size(64 * 1024)
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES))
}

/// Why a lane ended.
#[derive(Debug)]
pub(crate) enum LaneEnd {
    /// The connection fell silent, or the network failed it.
    Lost(String),
    /// Whoever holds its other end closed or reset it.
    Closed(String),
    /// The other end wants to be dialled again.
    Away,
    /// The session is over or no longer wants this lane.
    Left,
    /// The other end broke the protocol; the session is over.
    Broken(String),
}

impl LaneEnd {
    fn of(error: &Error) -> Self {
        let closed = match error {
            Error::Io(error) => matches!(
                error.kind(),
                ErrorKind::ConnectionReset
                    | ErrorKind::ConnectionAborted
                    | ErrorKind::BrokenPipe
                    | ErrorKind::UnexpectedEof
            ),
            Error::ConnectionClosed
            | Error::AlreadyClosed
            | Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => true,
            _ => false,
        };
        if closed { Self::Closed(error.to_string()) } else { Self::Lost(error.to_string()) }
    }
}

/// A lane that was added to its session. Its drop takes it off again, whatever stopped the shell.
#[derive(Debug)]
pub(crate) struct LaneGuard {
    session: Arc<Session>,
    pub(crate) id: u64,
}

impl LaneGuard {
    /// Adds a lane; `None` when the session is over or knows the lane as lost.
    pub(crate) fn add(session: Arc<Session>, id: u64) -> Option<Self> {
        session.with(|core| core.add_lane(id, now())).then_some(LaneGuard { session, id })
    }
}

impl Drop for LaneGuard {
    fn drop(&mut self) {
        self.session.with(|core| core.lose_lane(self.id, now()));
    }
}

/// Carries a lane until its end. Dropping it loses the lane, no more.
pub(crate) async fn carry<IO>(socket: WebSocketStream<IO>, lane: LaneGuard) -> LaneEnd
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut timer = pin!(sleep_until(Instant::now()));
    let mut shell =
        Shell { socket, session: &lane.session, id: lane.id, out: BytesMut::new(), leave_by: None };
    let end = poll_fn(|cx| shell.poll(cx, timer.as_mut())).await;
    let mut socket = shell.socket;
    // A courtesy: the other end learns at once instead of by a broken connection.
    let _ = tokio::time::timeout(Duration::from_millis(200), socket.close(None)).await;
    end
}

struct Shell<'a, IO> {
    socket: WebSocketStream<IO>,
    session: &'a Session,
    id: u64,
    out: BytesMut,
    leave_by: Option<Instant>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Shell<'_, IO> {
    fn poll(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Poll<LaneEnd> {
        for _ in 0..ROUNDS {
            let more_to_read = match self.poll_in(cx) {
                Ok(more) => more,
                Err(end) => return Poll::Ready(end),
            };
            let blocked = match self.poll_out(cx) {
                Poll::Ready(Err(end)) => return Poll::Ready(end),
                Poll::Ready(Ok(())) => false,
                Poll::Pending => true,
            };
            if more_to_read {
                continue;
            }
            let (health, next) =
                self.session.with(|core| (core.check(self.id, now()), core.next_look(self.id, blocked)));
            if health == Health::Dead {
                return Poll::Ready(LaneEnd::Lost("the other end is silent".to_owned()));
            }
            let next = next.map_or_else(Instant::now, Instant::from_std);
            let next = self.leave_by.map_or(next, |leave_by| leave_by.min(next));
            if timer.deadline() != next {
                timer.as_mut().reset(next);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes in what is there; says whether there may be more.
    fn poll_in(&mut self, cx: &mut Context<'_>) -> Result<bool, LaneEnd> {
        for _ in 0..READ_BURST {
            let message = match Pin::new(&mut self.socket).poll_next(cx) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Some(Ok(message))) => message,
                Poll::Ready(Some(Err(error))) => return Err(LaneEnd::of(&error)),
                Poll::Ready(None) => return Err(LaneEnd::Closed("the connection was closed".to_owned())),
            };
            match message {
                Message::Binary(bytes) => self.take(bytes)?,
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
                Message::Close(_) => return Err(LaneEnd::Closed("the connection was closed".to_owned())),
                Message::Text(_) => return Err(self.broken("a text message")),
            }
        }
        Ok(true)
    }

    fn take(&mut self, message: bytes::Bytes) -> Result<(), LaneEnd> {
        match self.session.with(|core| core.receive(self.id, message, now())) {
            Ok(Received::Nothing) => Ok(()),
            Ok(Received::NoLane) => Err(LaneEnd::Left),
            Ok(Received::Away) => Err(LaneEnd::Away),
            Err(broken) => Err(self.broken(&broken.to_string())),
        }
    }

    /// Ends the session and tells the other end, as far as the socket takes it at once.
    fn broken(&mut self, what: &str) -> LaneEnd {
        let reason = format!("the other end broke the protocol: {what}");
        self.session.with(|core| core.end(CloseKind::Protocol, &reason));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let _ = self.poll_out(&mut cx);
        LaneEnd::Broken(reason)
    }

    /// Sends what there is; pending when the socket takes no more.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneEnd>> {
        let lost = |error: Error| LaneEnd::of(&error);
        loop {
            match Pin::new(&mut self.socket).poll_ready(cx) {
                Poll::Ready(ready) => ready.map_err(lost)?,
                Poll::Pending => return self.poll_blocked(cx),
            }
            if !self.session.with(|core| core.transmit(self.id, now(), &mut self.out, cx)) {
                break;
            }
            let message = Message::Binary(self.out.split().freeze());
            Pin::new(&mut self.socket).start_send(message).map_err(lost)?;
        }
        match Pin::new(&mut self.socket).poll_flush(cx) {
            Poll::Ready(flushed) => flushed.map_err(lost)?,
            Poll::Pending => return self.poll_blocked(cx),
        }
        let leaving = self.session.with(|core| core.is_leaving(self.id));
        Poll::Ready(if leaving { Err(LaneEnd::Left) } else { Ok(()) })
    }

    fn poll_blocked(&mut self, cx: &Context<'_>) -> Poll<Result<(), LaneEnd>> {
        let over = self.session.with(|core| {
            core.keep_waker(self.id, cx);
            core.is_over()
        });
        if over { self.poll_leave() } else { Poll::Pending }
    }

    /// The goodbye does not get out: the wait for it is bounded.
    fn poll_leave(&mut self) -> Poll<Result<(), LaneEnd>> {
        let leave_by = *self.leave_by.get_or_insert_with(|| Instant::now() + LEAVE_WITHIN);
        if Instant::now() >= leave_by { Poll::Ready(Err(LaneEnd::Left)) } else { Poll::Pending }
    }
}
