//! The shell around one connection: moves messages between a WebSocket and the session, and keeps its timer.

use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind};
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::link::{Session, now};
use crate::proto::Received;
use crate::proto::frame::CloseKind;
use crate::proto::lane::Health;
use crate::websocket::{SocketEnd, WebSocket};

/// Rounds of reading and sending before other tasks get their turn.
const ROUNDS: usize = 8;
/// A goodbye must be out after this.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);

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
    fn of(error: &io::Error) -> Self {
        let closed = matches!(
            error.kind(),
            ErrorKind::ConnectionReset
                | ErrorKind::ConnectionAborted
                | ErrorKind::BrokenPipe
                | ErrorKind::UnexpectedEof
                | ErrorKind::WriteZero
        );
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
pub(crate) async fn carry<IO>(socket: WebSocket<IO>, lane: LaneGuard) -> LaneEnd
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut timer = pin!(sleep_until(Instant::now()));
    let mut shell = Shell { socket, session: &lane.session, id: lane.id, leave_by: None, gathered: false };
    let end = poll_fn(|cx| shell.poll(cx, timer.as_mut())).await;
    let mut socket = shell.socket;
    // A courtesy: the other end learns at once instead of by a broken connection.
    let _ = tokio::time::timeout(Duration::from_millis(200), socket.close()).await;
    end
}

struct Shell<'a, IO> {
    socket: WebSocket<IO>,
    session: &'a Session,
    id: u64,
    leave_by: Option<Instant>,
    /// Other tasks had their turn to add to what is sent next.
    gathered: bool,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Shell<'_, IO> {
    fn poll(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Poll<LaneEnd> {
        for _ in 0..ROUNDS {
            let more_to_read = match self.poll_in(cx) {
                Ok(more) => more,
                Err(end) => return Poll::Ready(end),
            };
            if !more_to_read && !self.gathered && self.session.with(|core| core.mux.gathers()) {
                // Several streams say little each, and some of them just now: they go first, and it all leaves in one message.
                self.gathered = true;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
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
                self.gathered = false;
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes in what is there; says whether there may be more.
    fn poll_in(&mut self, cx: &mut Context<'_>) -> Result<bool, LaneEnd> {
        let (session, id) = (self.session, self.id);
        let received = self.socket.poll_receive(cx, |message| {
            match session.with(|core| core.receive(id, message, now())) {
                Ok(Received::Nothing) => ControlFlow::Continue(()),
                Ok(Received::NoLane) => ControlFlow::Break(Ok(LaneEnd::Left)),
                Ok(Received::Away) => ControlFlow::Break(Ok(LaneEnd::Away)),
                Err(broken) => ControlFlow::Break(Err(broken.to_string())),
            }
        });
        match received {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(None)) => Ok(true),
            Poll::Ready(Ok(Some(Ok(end)))) => Err(end),
            Poll::Ready(Ok(Some(Err(broken)))) => Err(self.broken(&broken)),
            Poll::Ready(Err(text @ SocketEnd::Text)) => Err(self.broken(&text.to_string())),
            // Whatever stands between the ends: another connection may carry the session.
            Poll::Ready(Err(rule @ SocketEnd::Rule(_))) => Err(LaneEnd::Lost(rule.to_string())),
            Poll::Ready(Err(SocketEnd::Io(error))) => Err(LaneEnd::of(&error)),
            Poll::Ready(Err(closed @ SocketEnd::Closed)) => Err(LaneEnd::Closed(closed.to_string())),
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
        let lost = |error: io::Error| LaneEnd::of(&error);
        let (session, id) = (self.session, self.id);
        loop {
            match self.socket.poll_unsent(cx) {
                Poll::Ready(sent) => sent.map_err(lost)?,
                Poll::Pending => return self.poll_blocked(cx),
            }
            let waker = cx.waker().clone();
            let fill = |out: &mut _| session.with(|core| core.transmit(id, now(), out, &waker));
            if !self.socket.send_with(cx, fill).map_err(lost)? {
                break;
            }
        }
        match self.socket.poll_flush(cx) {
            Poll::Ready(flushed) => flushed.map_err(lost)?,
            Poll::Pending => return self.poll_blocked(cx),
        }
        let leaving = self.session.with(|core| core.is_leaving(self.id));
        Poll::Ready(if leaving { Err(LaneEnd::Left) } else { Ok(()) })
    }

    fn poll_blocked(&mut self, cx: &Context<'_>) -> Poll<Result<(), LaneEnd>> {
        let over = self.session.with(|core| {
            core.keep_waker(self.id, cx.waker());
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
