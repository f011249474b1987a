//! One conversation inside a link: ordered bytes both ways, each way with its own credit and its own end.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::link::{Session, now};
use crate::proto::Core;
use crate::proto::mux::Outcome;

/// One conversation inside a link. Reading ends at the other end's shutdown; shutting down says so to the
/// other end and leaves the way back open. Dropped before a way has ended it resets that way: the other end
/// reads or writes `ConnectionReset`. A cut of the link that is resumed in time is only a pause; after a longer
/// one, or when home was restarted, both ways end with `ConnectionReset`.
#[derive(Debug)]
pub struct Stream {
    pub(crate) id: u64,
    pub(crate) session: Arc<Session>,
}

impl Stream {
    pub(crate) fn new(id: u64, session: Arc<Session>) -> Self {
        Stream { id, session }
    }

    /// The stream's number inside its link, for logs.
    pub fn id(&self) -> u64 {
        self.id
    }
}

pub(crate) fn answer(core: &Core, outcome: Outcome) -> Poll<io::Result<usize>> {
    match outcome {
        Outcome::Done(count) => Poll::Ready(Ok(count)),
        Outcome::Wait => Poll::Pending,
        Outcome::Finished => {
            Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, "written after shutdown")))
        }
        Outcome::Reset => {
            let reason = match core.ended() {
                Some(ended) => format!("the link's session is over: {}", ended.reason),
                None => "the other end reset the stream".to_owned(),
            };
            Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, reason)))
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        self.session.with(|core| {
            let outcome = core.mux.read(self.id, now(), cx, |bytes| {
                let count = bytes.len().min(buf.remaining());
                buf.put_slice(&bytes[..count]);
                count
            });
            answer(core, outcome).map_ok(|_| ())
        })
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.session.with(|core| {
            let outcome = core.mux.write(self.id, data, now(), cx);
            answer(core, outcome)
        })
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.session.with(|core| {
            let mut total = 0;
            for slice in slices.iter().filter(|slice| !slice.is_empty()) {
                match core.mux.write(self.id, slice, now(), cx) {
                    Outcome::Done(count) => {
                        total += count;
                        if count < slice.len() {
                            break;
                        }
                    }
                    _ if total > 0 => break,
                    outcome => return answer(core, outcome),
                }
            }
            Poll::Ready(Ok(total))
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Nothing is held back: what was written is sent as soon as a lane can take it.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.session.with(|core| {
            let outcome = core.mux.finish(self.id);
            answer(core, outcome).map_ok(|_| ())
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.session.with(|core| core.mux.release(self.id));
    }
}
