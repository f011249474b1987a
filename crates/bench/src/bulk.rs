//! Bulk: bodies of known bytes, down or up, over some streams at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use crate::figures::tell;
use crate::pattern::{PIECE_BYTES, Pattern};
use crate::wire::{Head, Target};

/// A reader that keeps to a rate sleeps no shorter: the timer's grain.
const GRAIN: Duration = Duration::from_millis(1);

#[derive(Debug, clap::Args)]
pub(crate) struct BulkArgs {
    #[command(flatten)]
    target: Target,
    #[arg(long, default_value_t = 1)]
    streams: u64,
    /// Of all streams together.
    #[arg(long, default_value_t = 1 << 30)]
    bytes: u64,
    /// To the origin instead of from it.
    #[arg(long)]
    upload: bool,
}

pub(crate) async fn bulk(args: &BulkArgs) -> anyhow::Result<()> {
    let bytes = args.bytes / args.streams.max(1);
    Pattern::of_stream(0); // made before the clock runs
    let began = Instant::now();
    let mut streams = JoinSet::new();
    for number in 0..args.streams {
        let (target, upload) = (args.target.clone(), args.upload);
        streams.spawn(async move {
            match upload {
                true => send(&target, number, bytes).await,
                false => Download { target, number, bytes, ..Download::default() }.run().await,
            }
        });
    }
    while let Some(ended) = streams.join_next().await {
        ended??;
    }
    let took_s = began.elapsed().as_secs_f64();
    let bytes = bytes * args.streams;
    tell(&json!({ "seconds": took_s, "bytes": bytes, "mb_per_s": bytes as f64 / took_s / 1e6 }));
    Ok(())
}

/// One body from the origin, checked as it arrives.
#[derive(Debug)]
pub(crate) struct Download {
    pub(crate) target: Target,
    pub(crate) number: u64,
    pub(crate) bytes: u64,
    /// Bytes a second that are read at most; 0 is as many as come.
    pub(crate) rate: f64,
    /// Where what has arrived is counted.
    pub(crate) count: Arc<AtomicU64>,
}

impl Default for Download {
    fn default() -> Self {
        let target = Target { target: String::new(), prefix: String::new(), header: Vec::new() };
        Self { target, number: 0, bytes: 0, rate: 0.0, count: Arc::default() }
    }
}

impl Download {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let pattern = Pattern::of_stream(self.number);
        let (mut tcp, mut buffer) = (self.target.connect().await?, Vec::new());
        let path = format!("/bulk?n={}&stream={}", self.bytes, self.number);
        let head = self.target.ask(&mut tcp, &self.target.head("GET", &path, ""), &mut buffer).await?;
        ensure!(head.status() == 200 && head.length() == Some(self.bytes), "bulk: {}", head.first_line());
        let mut got = self.take(pattern, 0, &buffer)?;
        let mut piece = vec![0; PIECE_BYTES];
        let began = Instant::now();
        while got < self.bytes {
            self.keep_to_rate(began, got).await;
            let read = tcp.read(&mut piece).await.with_context(|| format!("after {got} bytes of bulk"))?;
            ensure!(read > 0, "a short body: {got} of {} bytes", self.bytes);
            got = self.take(pattern, got, piece.get(..read).unwrap_or_default())?;
        }
        ensure!(got == self.bytes, "a long body: {got} of {} bytes", self.bytes);
        Ok(())
    }

    fn take(&self, pattern: Pattern, offset: u64, arrived: &[u8]) -> anyhow::Result<u64> {
        let (number, end) = (self.number, offset + arrived.len() as u64);
        ensure!(pattern.holds(offset, arrived), "stream {number}: wrong bytes between {offset} and {end}");
        self.count.fetch_add(arrived.len() as u64, Ordering::Relaxed);
        Ok(end)
    }

    async fn keep_to_rate(&self, began: Instant, got: u64) {
        if self.rate > 0.0 {
            let early = Duration::from_secs_f64(got as f64 / self.rate).saturating_sub(began.elapsed());
            if early > GRAIN {
                tokio::time::sleep(early).await;
            }
        }
    }
}

/// One body to the origin, which checks it.
async fn send(target: &Target, number: u64, bytes: u64) -> anyhow::Result<()> {
    let pattern = Pattern::of_stream(number);
    let mut tcp = target.connect().await?;
    let head =
        target.head("POST", &format!("/upload?stream={number}"), &format!("Content-Length: {bytes}\r\n"));
    tcp.write_all(head.as_bytes()).await?;
    let mut sent = 0;
    while sent < bytes {
        sent += tcp.write(pattern.at(sent, bytes - sent)).await? as u64;
    }
    let head = Head::read(&mut tcp, &mut Vec::new()).await?.context("no answer to an upload")?;
    ensure!(head.status() == 200, "stream {number}: the origin says {}", head.first_line());
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::origin::until_closed;

    const BYTES: u64 = 3_000_000;

    /// Answers one request with a body that `spoil` has had in its hands.
    async fn spoilt(spoil: impl FnOnce(&mut Vec<u8>) + Send + 'static) -> Target {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = aimed_at(&listener);
        tokio::spawn(async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            Head::read(&mut tcp, &mut Vec::new()).await.unwrap().unwrap();
            let mut body = Vec::new();
            while (body.len() as u64) < BYTES {
                let at = body.len() as u64;
                body.extend_from_slice(Pattern::of_stream(3).at(at, BYTES - at));
            }
            spoil(&mut body);
            tcp.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n").as_bytes())
                .await
                .unwrap();
            let _ = tcp.write_all(&body).await;
        });
        target
    }

    fn aimed_at(listener: &TcpListener) -> Target {
        let target = listener.local_addr().unwrap().to_string();
        Target { target, prefix: "/user/ada".into(), header: Vec::new() }
    }

    async fn downloaded(target: Target) -> Result<(), String> {
        let download = Download { target, number: 3, bytes: BYTES, ..Download::default() };
        download.run().await.map_err(|error| format!("{error:#}"))
    }

    #[tokio::test]
    async fn a_whole_body_is_taken_and_a_spoilt_one_never() {
        assert_eq!(downloaded(spoilt(|_| ()).await).await, Ok(()));
        let changed = downloaded(spoilt(|body| body[2_000_000] ^= 1).await).await.unwrap_err();
        assert!(changed.contains("stream 3: wrong bytes"), "{changed}");
        let moved = downloaded(spoilt(|body| body[..200_000].rotate_left(65_536)).await).await.unwrap_err();
        assert!(moved.contains("wrong bytes"), "{moved}");
        let lost = downloaded(spoilt(|body| drop(body.drain(70_000..70_001))).await).await.unwrap_err();
        assert!(lost.contains("wrong bytes"), "{lost}");
        let short = downloaded(spoilt(|body| body.truncate(2_999_999)).await).await.unwrap_err();
        assert!(short.contains("a short body"), "{short}");
    }

    #[tokio::test]
    async fn the_origin_sends_and_takes_what_is_whole_and_refuses_the_rest() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = aimed_at(&listener);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::spawn(until_closed(tcp));
            }
        });
        downloaded(target.clone()).await.unwrap();
        send(&target, 3, BYTES).await.unwrap();
        let mut tcp = target.connect().await.unwrap();
        let wrong = target.head("POST", "/upload?stream=4", "Content-Length: 1000\r\n");
        let body = Pattern::of_stream(3).at(0, 1000);
        tcp.write_all(&[wrong.as_bytes(), body].concat()).await.unwrap();
        let answer = Head::read(&mut tcp, &mut Vec::new()).await.unwrap().unwrap();
        assert_eq!(answer.status(), 400);
    }
}
