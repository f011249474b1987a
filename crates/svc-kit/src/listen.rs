//! Listening sockets, a sentence when there can be none, and a bound on what is let in.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::files::in_words;

/// Reads `127.0.0.1:8000` or `[::1]:8000`; port 0 takes a free one.
pub fn parse(raw: &str) -> Result<SocketAddr, &'static str> {
    raw.trim().parse().map_err(|_| "must be an address and a port, like 127.0.0.1:8000 or [::1]:8000")
}

/// Binds; the error names address and reason.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address)
        .await
        .map_err(|error| format!("cannot listen on {address}: {}", in_words(&error)))
}

/// A listener that lets in so many connections at a time; the others wait at the door.
#[derive(Debug)]
pub struct Bounded {
    listener: TcpListener,
    free: Arc<Semaphore>,
}

impl Bounded {
    /// At most `connections` at a time.
    #[must_use]
    pub fn new(listener: TcpListener, connections: usize) -> Self {
        Self { listener, free: Arc::new(Semaphore::new(connections)) }
    }
}

impl Listener for Bounded {
    type Io = Admitted;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Admitted, SocketAddr) {
        let permit = Arc::clone(&self.free).acquire_owned().await.ok(); // never closed, so always there
        let (stream, peer) = Listener::accept(&mut self.listener).await;
        (Admitted { stream, _permit: permit }, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that holds its place until it is dropped.
#[derive(Debug)]
pub struct Admitted {
    stream: TcpStream,
    _permit: Option<OwnedSemaphorePermit>,
}

impl AsyncRead for Admitted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Admitted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_told_in_one_sentence() {
        let first = bind(parse("[::1]:0").unwrap()).await.unwrap();
        let address = first.local_addr().unwrap();
        let told = bind(address).await.unwrap_err();
        assert_eq!(told, format!("cannot listen on {address}: another process listens there"));
    }

    #[tokio::test]
    async fn no_more_than_the_bound_are_let_in_at_a_time() {
        let listener = bind(parse("127.0.0.1:0").unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut bounded = Bounded::new(listener, 1);
        let _both = (TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap());
        let (first, _) = bounded.accept().await;
        let patience = std::time::Duration::from_millis(50);
        assert!(tokio::time::timeout(patience, bounded.accept()).await.is_err(), "the second waits");
        drop(first);
        let patience = std::time::Duration::from_secs(5);
        tokio::time::timeout(patience, bounded.accept()).await.expect("the second is let in");
    }

    #[test]
    fn an_address_without_brackets_or_port_is_refused() {
        for bad in ["::1:80", "127.0.0.1", "localhost:80", "[::1]", ""] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
