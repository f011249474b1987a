//! One conversation inside a link: ordered bytes both ways, each way with its own credit and its own end.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// One conversation inside a link. Reading ends at the other end's shutdown; shutting down says so to the
/// other end and leaves the way back open. Dropped before both ways have ended it resets: the other end
/// reads and writes `ConnectionReset`. A cut of the link that is resumed in time is only a pause.
#[derive(Debug)]
pub struct Stream {
    id: u64,
}

impl Stream {
    /// The stream's number inside its link, for logs.
    pub fn id(&self) -> u64 {
        self.id
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, _cx: &mut Context<'_>, _buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, _cx: &mut Context<'_>, _data: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
