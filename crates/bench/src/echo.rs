//! Round trips of small WebSocket messages: alone, beside bulk, and beside readers that stopped reading.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, ensure};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::bulk::Download;
use crate::figures::{Times, tell};
use crate::pattern::Pattern;
use crate::wire::{Frame, Target};

/// What a bulk stream beside an echo asks for: more than it ever gets.
const ENDLESS_BYTES: u64 = 1 << 42;
/// Before anything counts.
const WARM_UP: Duration = Duration::from_millis(300);
/// Bulk runs before the first echo.
const LEAD_MS: u64 = 700;
/// Nobody waits longer for one answer.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, clap::Args)]
pub(crate) struct EchoArgs {
    #[command(flatten)]
    target: Target,
    /// WebSockets, each with one message under way.
    #[arg(long, default_value_t = 1)]
    conns: u64,
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Bytes of a message.
    #[arg(long, default_value_t = 256)]
    size: usize,
    /// Microseconds from one message to the next, give or take half; 0 is at once.
    #[arg(long, default_value_t = 0)]
    every_us: u64,
    /// Bulk streams beside.
    #[arg(long, default_value_t = 0)]
    bulk: u64,
    /// MB/s that all of these read together; 0 is as much as comes.
    #[arg(long, default_value_t = 0.0)]
    bulk_mb_per_s: f64,
    /// Milliseconds that bulk runs before the first echo.
    #[arg(long, default_value_t = LEAD_MS)]
    lead_ms: u64,
}

pub(crate) async fn echo(args: &EchoArgs) -> anyhow::Result<()> {
    let beside = (args.bulk > 0).then(|| Beside::start(args)).transpose()?;
    if beside.is_some() {
        tokio::time::sleep(Duration::from_millis(args.lead_ms)).await;
    }
    let before = beside.as_ref().map_or(0, Beside::bytes);
    let began = Instant::now();
    let warm = began + WARM_UP;
    let end = warm + Duration::from_secs_f64(args.seconds);
    let mut sockets = JoinSet::new();
    for number in 0..args.conns {
        let (target, size, every_us) = (args.target.clone(), args.size, args.every_us);
        sockets.spawn(async move {
            let first = Duration::from_micros(number.wrapping_mul(7919) % every_us.max(1));
            tokio::time::sleep(first).await;
            Echo::open(&target, number, size).await?.run(warm, end, every_us).await
        });
    }
    let mut times = Times::default();
    while let Some(ended) = sockets.join_next().await {
        times.join(ended??);
    }
    let took_s = began.elapsed().as_secs_f64();
    let mut bulk_mb_per_s = None;
    if let Some(beside) = beside {
        let moved = beside.bytes() - before;
        beside.stop()?;
        ensure!(moved > 0, "the bulk beside the echo stood still");
        bulk_mb_per_s = Some(moved as f64 / took_s / 1e6);
    }
    let messages = times.count();
    ensure!(messages > 0, "no message came back in time");
    let mut figure = times.quantiles();
    figure["messages"] = json!(messages);
    figure["per_s"] = json!(messages as f64 / args.seconds);
    figure["bulk_mb_per_s"] = json!(bulk_mb_per_s);
    tell(&figure);
    Ok(())
}

/// Bulk streams, on a thread of their own: reading them must not delay the echo's clock.
struct Beside {
    count: Arc<AtomicU64>,
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<anyhow::Result<()>>,
}

impl Beside {
    fn start(args: &EchoArgs) -> anyhow::Result<Self> {
        let count = Arc::new(AtomicU64::new(0));
        let (stop, mut stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let downloads: Vec<_> = (0..args.bulk)
            .map(|number| Download {
                target: args.target.clone(),
                number,
                bytes: ENDLESS_BYTES,
                rate: args.bulk_mb_per_s * 1e6 / args.bulk as f64,
                count: Arc::clone(&count),
            })
            .collect();
        let thread = thread::Builder::new().name("bulk".into()).spawn(move || {
            runtime.block_on(async {
                let mut streams: JoinSet<_> = downloads.into_iter().map(Download::run).collect();
                tokio::select! {
                    _ = &mut stopped => Ok(()),
                    Some(ended) = streams.join_next() => {
                        ended??;
                        Err(anyhow!("bulk without an end has ended"))
                    }
                }
            })
        })?;
        Ok(Self { count, stop, thread })
    }

    fn bytes(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// An error when any stream had ended, or had wrong bytes, before now.
    fn stop(self) -> anyhow::Result<()> {
        let _ = self.stop.send(());
        self.thread.join().map_err(|_| anyhow!("the bulk's thread panicked"))?.context("beside the echo")
    }
}

/// One WebSocket whose messages must come back as they went.
struct Echo {
    tcp: TcpStream,
    arrived: Vec<u8>,
    payload: Vec<u8>,
    sent: u64,
    random: u64,
}

impl Echo {
    async fn open(target: &Target, number: u64, size: usize) -> anyhow::Result<Self> {
        let (tcp, arrived) = target.web_socket().await?;
        let payload = Pattern::of_stream(number).at(0, size as u64).to_vec();
        ensure!((8..=usize::from(u16::MAX)).contains(&payload.len()), "a message has 8 to 65,535 bytes");
        Ok(Self {
            tcp,
            arrived,
            payload,
            sent: 0,
            random: (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        })
    }

    async fn run(mut self, warm: Instant, end: Instant, every_us: u64) -> anyhow::Result<Times> {
        let mut times = Times::default();
        while Instant::now() < end {
            let asked = Instant::now();
            tokio::time::timeout(PATIENCE, self.once()).await.context("a message never came back")??;
            let now = Instant::now();
            if now > warm {
                times.add(now - asked);
            }
            if every_us > 0 {
                let wait = every_us / 2 + self.random() % every_us;
                tokio::time::sleep(Duration::from_micros(wait)).await;
            }
        }
        Ok(times)
    }

    /// There and back. Every message has its number in it.
    async fn once(&mut self) -> anyhow::Result<()> {
        self.sent += 1;
        if let Some(number) = self.payload.first_chunk_mut() {
            *number = self.sent.to_be_bytes();
        }
        let mut out = Vec::with_capacity(self.payload.len() + 16);
        Frame::write(&mut out, 2, &self.payload, Some([0x11, 0x22, 0x33, 0x44]));
        self.tcp.write_all(&out).await?;
        loop {
            if let Some(frame) = Frame::parse(&self.arrived)? {
                let end = frame.head + frame.payload;
                ensure!(frame.kind == 2 && frame.mask.is_none(), "a frame that nobody sent");
                ensure!(
                    self.arrived.get(frame.head..end) == Some(&self.payload),
                    "an echo of something else"
                );
                self.arrived.drain(..end);
                return Ok(());
            }
            ensure!(self.tcp.read_buf(&mut self.arrived).await? > 0, "the WebSocket ended");
        }
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct StallArgs {
    #[command(flatten)]
    target: Target,
    /// Streams that ask for a body without end and never read it.
    #[arg(long, default_value_t = 4)]
    stalled: u64,
    /// How long an echo runs beside them.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// How long all stays as it is after the figure, for memory to be looked at.
    #[arg(long, default_value_t = 1.0)]
    hold_s: f64,
}

pub(crate) async fn stall(args: &StallArgs) -> anyhow::Result<()> {
    let mut stalled = Vec::new();
    for number in 0..args.stalled {
        let mut tcp = args.target.connect().await?;
        let path = format!("/bulk?n={ENDLESS_BYTES}&stream={number}");
        tcp.write_all(args.target.head("GET", &path, "").as_bytes()).await?;
        stalled.push(tcp);
    }
    tokio::time::sleep(Duration::from_millis(2 * LEAD_MS)).await;
    let warm = Instant::now() + WARM_UP;
    let echo = Echo::open(&args.target, 0, 256);
    let echo = tokio::time::timeout(PATIENCE, echo).await.context("beside readers that stopped")??;
    let times = echo.run(warm, warm + Duration::from_secs_f64(args.seconds), 2000).await?;
    tell(&times.quantiles());
    tokio::time::sleep(Duration::from_secs_f64(args.hold_s)).await;
    drop(stalled);
    Ok(())
}

#[derive(Debug, clap::Args)]
pub(crate) struct HoldArgs {
    #[command(flatten)]
    target: Target,
    /// WebSockets that are open and say nothing.
    #[arg(long, default_value_t = 100)]
    conns: u64,
    /// How long, once all are open.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

/// Opens WebSockets, holds them, and sees each echo once at the end.
pub(crate) async fn hold(args: &HoldArgs) -> anyhow::Result<()> {
    let mut held = Vec::new();
    for number in 0..args.conns {
        held.push(Echo::open(&args.target, number, 256).await.with_context(|| format!("after {number}"))?);
    }
    tell(&json!({ "held": held.len() }));
    tokio::time::sleep(Duration::from_secs_f64(args.seconds)).await;
    for echo in &mut held {
        tokio::time::timeout(PATIENCE, echo.once()).await.context("a held WebSocket is dead")??;
    }
    Ok(())
}
