//! A TCP proxy that breaks connections on purpose.
//!
//! Stands between two ends of a test and carries bytes until it is told to be a bad network: silent, slow, or cut.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Bytes taken at once; small, so that a cut takes effect soon.
const CHUNK_BYTES: usize = 16 * 1024;
/// Connections at a time; more wait at the door.
const CONNECTIONS_MAX: usize = 4096;

/// A proxy on a free port of 127.0.0.1. Dropping it ends its listener and all its connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    counts: Arc<Counts>,
    _tasks: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Counts {
    accepted: AtomicU64,
    carried_bytes: AtomicU64,
}

#[derive(Debug, Clone)]
struct Weather {
    cut: bool,
    delay: Duration,
    target: SocketAddr,
    /// Connections of an older generation are dropped.
    generation: u64,
    refuse: bool,
}

impl Proxy {
    /// Carries everything to `target`.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn to(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let fair = Weather { cut: false, delay: Duration::ZERO, target, generation: 0, refuse: false };
        let (weather, forecast) = watch::channel(fair);
        let counts = Arc::new(Counts::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, forecast, counts.clone()));
        Ok(Self { address, weather, counts, _tasks: tasks })
    }

    /// Where to connect instead of the target.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From here on nothing arrives any more, and nobody is told: as when a cable is pulled. What was sent waits.
    pub fn cut(&self) {
        self.weather.send_modify(|weather| weather.cut = true);
    }

    /// The cable is back: what waited arrives, in order and whole.
    pub fn restore(&self) {
        self.weather.send_modify(|weather| weather.cut = false);
    }

    /// Ends every connection on both sides, as when a middlebox restarts. New ones are taken.
    pub fn drop_connections(&self) {
        self.weather.send_modify(|weather| weather.generation += 1);
    }

    /// New connections are closed at once; those that stand go on.
    pub fn refuse(&self, on: bool) {
        self.weather.send_modify(|weather| weather.refuse = on);
    }

    /// What is sent arrives this much later, in each direction.
    pub fn delay(&self, each_way: Duration) {
        self.weather.send_modify(|weather| weather.delay = each_way);
    }

    /// New connections go there: the target was started again on another port.
    pub fn retarget(&self, target: SocketAddr) {
        self.weather.send_modify(|weather| weather.target = target);
    }

    /// Connections taken so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.counts.accepted.load(Ordering::Relaxed)
    }

    /// Bytes that arrived, of both directions.
    #[must_use]
    pub fn carried_bytes(&self) -> u64 {
        self.counts.carried_bytes.load(Ordering::Relaxed)
    }
}

async fn serve(listener: TcpListener, weather: watch::Receiver<Weather>, counts: Arc<Counts>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS_MAX {
            connections.join_next().await;
        }
        let Ok((near, _)) = listener.accept().await else { continue };
        if weather.borrow().refuse {
            continue;
        }
        counts.accepted.fetch_add(1, Ordering::Relaxed);
        connections.spawn(carry(near, weather.clone(), counts.clone()));
    }
}

/// One connection, until both directions are done or it is dropped.
async fn carry(near: TcpStream, weather: watch::Receiver<Weather>, counts: Arc<Counts>) {
    let generation = weather.borrow().generation;
    let both = async {
        // While the cable is out, a connection cannot be made either.
        connected(&mut weather.clone()).await;
        let target = weather.borrow().target;
        let Ok(far) = TcpStream::connect(target).await else { return };
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        let (near_read, near_write) = near.into_split();
        let (far_read, far_write) = far.into_split();
        let there = pipe(near_read, far_write, weather.clone(), &counts);
        let back = pipe(far_read, near_write, weather.clone(), &counts);
        tokio::join!(there, back);
    };
    let dropped = {
        let mut weather = weather.clone();
        async move {
            let gone = weather.wait_for(|weather| weather.generation != generation).await.is_err();
            if gone {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        () = both => {}
        () = dropped => {}
    }
}

/// One direction. A half-close is passed on.
async fn pipe(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut weather: watch::Receiver<Weather>,
    counts: &Counts,
) {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        // A cut line takes nothing: the sender's own buffers fill up, as they would.
        connected(&mut weather).await;
        let Ok(length) = from.read(&mut chunk).await else { return };
        let delay = weather.borrow().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        connected(&mut weather).await;
        if length == 0 {
            let _ = to.shutdown().await;
            return;
        }
        if to.write_all(&chunk[..length]).await.is_err() {
            return;
        }
        counts.carried_bytes.fetch_add(length as u64, Ordering::Relaxed);
    }
}

/// Waits while the line is cut.
async fn connected(weather: &mut watch::Receiver<Weather>) {
    let _ = weather.wait_for(|weather| !weather.cut).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait;

    /// Sends back what it gets, and closes when the other side does.
    async fn echo(tasks: &mut JoinSet<()>) -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(async move {
                    let (mut read, mut write) = stream.into_split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        address
    }

    async fn ask(stream: &mut TcpStream, text: &[u8; 4]) -> io::Result<[u8; 4]> {
        stream.write_all(text).await?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await.map(|_| answer)
    }

    #[tokio::test]
    async fn a_cut_is_silent_and_loses_nothing() {
        let mut tasks = JoinSet::new();
        let proxy = Proxy::to(echo(&mut tasks).await).await.unwrap();
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut stream, b"one ").await.unwrap(), *b"one ");

        proxy.cut();
        let silent = tokio::time::timeout(Duration::from_millis(200), ask(&mut stream, b"two ")).await;
        assert!(silent.is_err(), "a cut line answers: {silent:?}");

        proxy.restore();
        let mut late = [0; 4];
        let arrived = tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut late)).await;
        assert_eq!((arrived.unwrap().unwrap(), late), (4, *b"two "));
        assert_eq!(proxy.carried_bytes(), 16);
    }

    #[tokio::test]
    async fn dropped_connections_end_and_new_ones_are_taken() {
        let mut tasks = JoinSet::new();
        let proxy = Proxy::to(echo(&mut tasks).await).await.unwrap();
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        ask(&mut stream, b"one ").await.unwrap();

        proxy.drop_connections();
        let ended = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut [0; 1])).await.unwrap();
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");

        let mut again = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut again, b"two ").await.unwrap(), *b"two ");
        wait::until(Duration::from_secs(5), "both were counted", async || proxy.accepted() == 2).await;
    }

    #[tokio::test]
    async fn a_delay_is_felt_in_both_directions() {
        let mut tasks = JoinSet::new();
        let proxy = Proxy::to(echo(&mut tasks).await).await.unwrap();
        proxy.delay(Duration::from_millis(60));
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        let began = tokio::time::Instant::now();
        ask(&mut stream, b"one ").await.unwrap();
        assert!(began.elapsed() >= Duration::from_millis(120), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn a_half_close_is_passed_on() {
        let mut tasks = JoinSet::new();
        let proxy = Proxy::to(echo(&mut tasks).await).await.unwrap();
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        stream.write_all(b"bye").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut all = Vec::new();
        tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut all)).await.unwrap().unwrap();
        assert_eq!(all, b"bye");
    }
}
