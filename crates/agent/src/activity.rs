//! Whether anything goes on in a server: asks Jupyter for its kernels and terminals, over the server's own socket.
//!
//! In: where the server listens, the path of its API, a token that `hub` answers for. Out: a [`Look`] at a time, or
//! nothing when the server cannot be asked. What counts is what `docs/operator.md` says under "Walltime and idle":
//! a kernel that computes, anything new that a kernel or terminal did, a change that a person made through the server
//! (home tells of those). A page that is open and asks again and again does not. Times are compared with those of the
//! look before and never with a clock.
//!
//! A server that has no such API is no Jupyter: bytes that come to it from home count then, each of them. Where home
//! reaches it without this agent, none is seen, and then nothing can be said.

use std::collections::{HashMap, VecDeque};
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use glidepath_api_types::agent as wire;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::time::{Instant, sleep_until, timeout};

use crate::launch::Target;
use crate::limits::{Limits, Look, News};
use crate::server::connect;

/// One look.
const LOOK_WITHIN: Duration = Duration::from_secs(10);
/// Longest list that is read.
const LIST_MAX_BYTES: usize = 4 * 1024 * 1024;

/// Bytes that came from home for the server.
pub type Carried = Arc<AtomicU64>;

/// Tells the news of a server's limits, as they come.
pub struct Watchman {
    limits: Limits,
    looks: Looks,
    /// `None` until the server listens.
    look_at: Option<Instant>,
    news: VecDeque<News>,
}

impl Watchman {
    /// Over a server that starts now.
    pub fn new(walltime: Duration, order: &wire::Limits, looks: Looks) -> Self {
        let limits = Limits::new(walltime, order, Instant::now());
        Watchman { look_at: None, limits, looks, news: VecDeque::new() }
    }

    /// The server takes connections: from now on it can be asked.
    pub fn listens(&mut self) {
        self.look_at = self.limits.need_looks().then(Instant::now);
    }

    /// A person changed something through the server.
    pub fn used(&mut self) {
        self.looks.used = true;
    }

    /// Waits for the next news. May be dropped half way: a look is then made again.
    pub async fn next(&mut self) -> News {
        loop {
            if let Some(news) = self.news.pop_front() {
                return news;
            }
            let now = Instant::now();
            if let Some(news) = self.limits.pass(now) {
                return news;
            }
            let look_at = self.look_at;
            let looks = &mut self.looks;
            let look = async {
                match look_at {
                    Some(at) => sleep_until(at).await,
                    None => pending().await,
                }
                looks.look().await
            };
            tokio::select! {
                () = sleep_until(self.limits.pass_due(now)) => {}
                look = look => {
                    let now = Instant::now();
                    self.news.extend(self.limits.see(look, now));
                    self.look_at = Some(now + self.limits.look_again(now));
                }
            }
        }
    }
}

/// Looks at one server, again and again.
pub struct Looks {
    target: Target,
    api: String,
    token: SecretString,
    carried: Carried,
    carried_before: u64,
    used: bool,
    /// What each kernel and terminal did last, by its address.
    last: HashMap<String, String>,
    /// It has listed its kernels before.
    lists: bool,
    unseen: bool,
}

#[derive(Deserialize)]
struct Kernel {
    id: String,
    execution_state: String,
    last_activity: String,
    #[serde(default)]
    connections: i64,
}

#[derive(Deserialize)]
struct Terminal {
    name: String,
    last_activity: String,
}

/// What a server answers that is asked for a list.
enum Listed<T> {
    These(Vec<T>),
    /// It has no such list.
    No,
}

impl Looks {
    /// At the server behind this socket, whose path begins so.
    pub fn new(target: Target, prefix: &str, token: SecretString, carried: Carried) -> Self {
        Looks {
            target,
            api: format!("{}/api", prefix.trim_end_matches('/')),
            token,
            carried_before: carried.load(Ordering::Relaxed),
            carried,
            used: false,
            last: HashMap::new(),
            lists: false,
            unseen: false,
        }
    }

    /// One look; `None` when the server could not be asked, which is told once in the log.
    async fn look(&mut self) -> Option<Look> {
        let asked = timeout(LOOK_WITHIN, self.ask()).await;
        let look = asked.unwrap_or_else(|_| Err("no answer in time".to_owned()));
        if look.is_err() != self.unseen {
            self.unseen = look.is_err();
            match &look {
                Ok(_) => tracing::info!("the server can be asked again what goes on in it"),
                Err(why) => tracing::warn!(why, "what goes on in the server is not known: it is not idle"),
            }
        }
        let look = look.ok()?;
        self.used = false;
        Some(look)
    }

    async fn ask(&mut self) -> Result<Look, String> {
        let kernels = match self.list::<Kernel>("kernels").await? {
            Listed::These(kernels) => kernels,
            // A Jupyter server stays one: its kernels may compute while its bytes say nothing.
            Listed::No if self.lists => return Err("it lists no kernels any more".to_owned()),
            Listed::No => return self.bytes(),
        };
        self.lists = true;
        let terminals = match self.list::<Terminal>("terminals").await? {
            Listed::These(terminals) => terminals,
            Listed::No => Vec::new(), // switched off
        };
        let busy = kernels.iter().any(|kernel| kernel.execution_state == "busy");
        let connected = kernels.iter().any(|kernel| kernel.connections > 0);
        let before = std::mem::take(&mut self.last);
        let mut new = |address: String, did: String| {
            let differs = before.get(&address) != Some(&did);
            self.last.insert(address, did);
            differs
        };
        let mut look = Look { busy, connected, kernels: false, others: self.used };
        for kernel in kernels {
            look.kernels |= new(format!("kernels/{}", kernel.id), kernel.last_activity);
        }
        for terminal in terminals {
            look.others |= new(format!("terminals/{}", terminal.name), terminal.last_activity);
        }
        Ok(look)
    }

    /// Of a server that is no Jupyter.
    fn bytes(&mut self) -> Result<Look, String> {
        let carried = self.carried.load(Ordering::Relaxed);
        if carried == 0 {
            return Err("it is no Jupyter server, and none of its users' bytes come by here".to_owned());
        }
        let came = carried != self.carried_before;
        self.carried_before = carried;
        Ok(Look { others: came || self.used, ..Look::default() })
    }

    async fn list<T: DeserializeOwned>(&self, what: &str) -> Result<Listed<T>, String> {
        let (status, body) = self.get(what).await?;
        match status {
            StatusCode::OK => {
                listed(&body).map_err(|why| format!("its list of {what} is not understood: {why}"))
            }
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::BAD_REQUEST => {
                Ok(Listed::No)
            }
            other => Err(format!("it answers with status {other}")),
        }
    }

    async fn get(&self, what: &str) -> Result<(StatusCode, Bytes), String> {
        let request = Request::get(format!("{}/{what}?no_track_activity=1", self.api))
            .header(header::HOST, "127.0.0.1")
            .header(header::AUTHORIZATION, format!("token {}", self.token.expose_secret()))
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let stream = connect(&self.target).await.map_err(|error| error.to_string())?;
        let shaken = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = shaken.map_err(|error| error.to_string())?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
            let status = response.status();
            let body = Limited::new(response.into_body(), LIST_MAX_BYTES).collect().await;
            Ok((status, body.map_err(|error| error.to_string())?.to_bytes()))
        };
        tokio::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            // The connection ends once it has been read; what it brought is still to be taken.
            _ = connection => answer.await,
        }
    }
}

/// What an answer lists. A text that is no JSON list is none: any path of a server that is no Jupyter may answer.
fn listed<T: DeserializeOwned>(body: &[u8]) -> Result<Listed<T>, serde_json::Error> {
    if serde_json::from_slice::<Vec<IgnoredAny>>(body).is_err() {
        return Ok(Listed::No);
    }
    serde_json::from_slice(body).map(Listed::These)
}
