//! Small requests whose answers are checked: that what a rate is measured with afterwards is right, and times of each.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::figures::{Times, tell};
use crate::origin::SMALL_BYTES;
use crate::pattern::Pattern;
use crate::wire::Target;

#[derive(Debug, clap::Args)]
pub(crate) struct RequestsArgs {
    #[command(flatten)]
    target: Target,
    /// Connections, each with one request under way.
    #[arg(long, default_value_t = 1)]
    conns: u64,
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// A new connection for every request.
    #[arg(long)]
    fresh: bool,
}

pub(crate) async fn requests(args: &RequestsArgs) -> anyhow::Result<()> {
    let reply_bytes = Asker::new(&args.target, 0).page().await?;
    let began = Instant::now();
    let end = began + Duration::from_secs_f64(args.seconds);
    let mut askers = JoinSet::new();
    for number in 0..args.conns {
        let (mut asker, fresh) = (Asker::new(&args.target, number), args.fresh);
        askers.spawn(async move {
            let mut times = Times::default();
            while Instant::now() < end {
                let asked = Instant::now();
                asker.small().await?;
                times.add(asked.elapsed());
                if fresh {
                    asker.tcp = None;
                }
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Times::default();
    while let Some(ended) = askers.join_next().await {
        times.join(ended??);
    }
    let (requests, took_s) = (times.count(), began.elapsed().as_secs_f64());
    let mut figure = times.quantiles();
    figure["requests"] = json!(requests);
    figure["per_s"] = json!(requests as f64 / took_s);
    figure["reply_bytes"] = json!(reply_bytes);
    tell(&figure);
    Ok(())
}

/// One client with one connection at a time.
struct Asker {
    target: Target,
    tcp: Option<TcpStream>,
    buffer: Vec<u8>,
    key: u64,
}

impl Asker {
    fn new(target: &Target, number: u64) -> Self {
        // Keys of two clients never meet in one run.
        Self { target: target.clone(), tcp: None, buffer: Vec::new(), key: number << 32 }
    }

    /// What the small page has, head and body, as it arrives here.
    async fn page(&mut self) -> anyhow::Result<usize> {
        let (head, body) = self.get("/").await?;
        ensure!(body.ends_with(b"x\n"), "not the origin's page");
        Ok(head + body.len())
    }

    async fn small(&mut self) -> anyhow::Result<()> {
        self.key += 1;
        let (_, body) = self.get(&format!("/small?k={}", self.key)).await?;
        ensure!(Pattern::of_stream(0).holds(self.key, &body), "an answer to something else");
        Ok(())
    }

    /// Bytes of the head, and the body.
    async fn get(&mut self, path: &str) -> anyhow::Result<(usize, Vec<u8>)> {
        let mut tcp = match self.tcp.take() {
            Some(tcp) => tcp,
            None => self.target.connect().await?,
        };
        let head = self.target.ask(&mut tcp, &self.target.head("GET", path, ""), &mut self.buffer).await?;
        ensure!(head.status() == 200, "{path}: {}", head.first_line());
        ensure!(head.length() == Some(SMALL_BYTES), "{path}: a body of {:?} bytes", head.length());
        while self.buffer.len() < SMALL_BYTES as usize {
            ensure!(tcp.read_buf(&mut self.buffer).await? > 0, "{path}: a short body");
        }
        ensure!(self.buffer.len() == SMALL_BYTES as usize, "{path}: more than was asked for");
        self.tcp = Some(tcp);
        Ok((head.bytes(), std::mem::take(&mut self.buffer)))
    }
}
