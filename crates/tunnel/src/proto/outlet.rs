//! The near end of a stream that is carried: a connection of this machine, which takes bytes where they arrive.
//!
//! A lane that brings bytes for it writes them there and then: they are copied to no buffer, and no other task has to
//! wake for them. Only `tokio`'s trait is known here, no socket and no runtime.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::AsyncWrite;

/// Takes a stream's bytes in their order. Whoever writes holds the session's lock, so nobody can come between.
pub(crate) struct Outlet(Box<dyn AsyncWrite + Send + Unpin>);

impl Outlet {
    pub(crate) fn new(to: impl AsyncWrite + Send + Unpin + 'static) -> Self {
        Outlet(Box::new(to))
    }

    /// Takes what it can without waiting; says how much. A failure is none here: the next to write meets it too.
    ///
    /// Nobody is woken when it could take more. That is for [`Outlet::poll_take`], which the stream's reader calls when
    /// something was left for it.
    pub(crate) fn take_now(&mut self, bytes: &[u8]) -> usize {
        let mut cx = Context::from_waker(Waker::noop());
        match Pin::new(&mut self.0).poll_write(&mut cx, bytes) {
            Poll::Ready(taken) => taken.unwrap_or(0),
            Poll::Pending => 0,
        }
    }

    /// Takes bytes as soon as it can.
    pub(crate) fn poll_take(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes).map(|taken| match taken {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            taken => taken,
        })
    }

    /// Tells it that nothing more comes.
    pub(crate) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Outlet")
    }
}
