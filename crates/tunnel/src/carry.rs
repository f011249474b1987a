//! Both ways between a stream and a connection of this machine, with no buffer of their own.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::link::now;
use crate::proto::outlet::Outlet;
use crate::stream::{Stream, answer};

/// The most that is read of the connection at once.
const READ_BYTES: usize = 64 * 1024;

thread_local! {
    /// What one read brings is in the stream's hands before the next one, whichever stream it is for.
    static READ: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

impl Stream {
    /// Carries bytes both ways, each way to its own end, until both have ended or one has failed. Dropped before, it
    /// resets the stream.
    ///
    /// What comes for `to` is written where it arrives, under the lock of the link, as far as `to` takes it without
    /// waiting: `to` must hold nothing back that is only sent by a flush, and must not lead into a link itself.
    ///
    /// # Errors
    /// What failed first, of the connection or of the stream.
    pub async fn carry<R, W>(self, mut from: R, to: W) -> io::Result<()>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        self.session.with(|core| core.mux.set_outlet(self.id, Outlet::new(to)));
        let (mut is_read, mut is_written) = (false, false);
        poll_fn(|cx| {
            if !is_read {
                is_read = self.poll_fill(cx, Pin::new(&mut from))?.is_ready();
            }
            if !is_written {
                is_written = self.poll_pass(cx)?.is_ready();
            }
            if is_read && is_written { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await
    }

    /// Takes what `from` has, up to its end.
    fn poll_fill<R: AsyncRead>(&self, cx: &mut Context<'_>, mut from: Pin<&mut R>) -> Poll<io::Result<()>> {
        loop {
            let room = ready!(self.session.with(|core| {
                let room = core.mux.room(self.id, cx);
                answer(core, room)
            }))?;
            let count = READ.with_borrow_mut(|read| {
                let mut space = ReadBuf::new(&mut read[..room.min(READ_BYTES)]);
                ready!(from.as_mut().poll_read(cx, &mut space))?;
                // There is room for all of it: nobody else writes to this stream.
                self.session.with(|core| {
                    let written = match space.filled() {
                        [] => core.mux.finish(self.id),
                        bytes => core.mux.write(self.id, bytes, now(), cx),
                    };
                    answer(core, written)
                })
            });
            if ready!(count)? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Hands on what no lane could hand on, up to the stream's end.
    fn poll_pass(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let passed = self.session.with(|core| {
                let outcome = ready!(core.mux.poll_pass(self.id, now(), cx))?;
                answer(core, outcome)
            });
            if ready!(passed)? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}
