//! Large reads for a reader that asks for little: rustls reads one TLS record at a time, of 16 KiB at most (RFC 8446,
//! section 5.1), and a system call for each costs bulk more than the copy that this spares them by.

use std::cell::RefCell;
use std::io;
use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// What is read of the connection at once.
const GULP_BYTES: usize = 128 * 1024;

thread_local! {
    /// Empty; for the next connection of this thread that has something to read.
    static SPARE: RefCell<BytesMut> = RefCell::default();
}

/// A connection that is read in large pieces. It holds a buffer while its reader has not taken all of a piece, and none
/// while it is idle.
#[derive(Debug)]
pub struct Gulp<IO> {
    io: IO,
    /// Read, not yet taken.
    held: BytesMut,
}

impl<IO> Gulp<IO> {
    /// Reads `io` in large pieces from now on.
    pub fn new(io: IO) -> Self {
        Gulp { io, held: BytesMut::new() }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Gulp<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Gulp { io, held } = &mut *self;
        if held.is_empty() {
            let mut space = SPARE.take();
            space.clear();
            space.reserve(GULP_BYTES);
            let read = poll_read_buf(Pin::new(io), cx, &mut space);
            if !matches!(read, Poll::Ready(Ok(1..))) {
                SPARE.replace(space);
                return read.map_ok(|_| ());
            }
            *held = space;
        }
        let count = held.len().min(buf.remaining());
        buf.put_slice(&held[..count]);
        held.advance(count);
        if held.is_empty() {
            SPARE.replace(std::mem::take(held));
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Gulp<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn who_asks_for_little_gets_all_of_it_from_few_reads_and_nothing_is_held_then() {
        let sent: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
        let (near, mut far) = tokio::io::duplex(1 << 20);
        far.write_all(&sent).await.unwrap();
        let mut gulp = Gulp::new(near);
        let mut got = vec![0; 1000];
        gulp.read_exact(&mut got).await.unwrap();
        assert_eq!(gulp.held.len(), GULP_BYTES - 1000, "one read brought more than was asked for");
        got.resize(sent.len(), 0);
        for piece in got[1000..].chunks_mut(777) {
            gulp.read_exact(piece).await.unwrap();
        }
        assert!(got == sent);
        assert_eq!(gulp.held.capacity(), 0, "an idle connection holds a buffer");
        drop(far);
        assert_eq!(gulp.read(&mut got).await.unwrap(), 0);
    }
}
