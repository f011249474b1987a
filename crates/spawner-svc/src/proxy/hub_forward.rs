//! Carries the servers' own Hub API calls home.
//!
//! In: streams that an agent opened for [`PURPOSE_HUB_API`], with plain HTTP/1.1 on them. Out: the same calls to the
//! Hub of the link's own server, whose address is the operator's config; the replies. Everything on such a stream may
//! come from a hostile job: paths are checked ([`path`]), sizes, rates and times are bounded, redirects are handed
//! back without being followed, and no credential is added: the call is worth what the job's own token is worth.

mod path;

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use glidepath_api_types::agent::PURPOSE_HUB_API;
use glidepath_domain::names::{HubName, ServerKey};
use glidepath_tunnel::link::{Incoming as Opened, Link};
use glidepath_tunnel::stream::Stream;
use http::header::{self, HeaderMap, HeaderName};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use reqwest::{Client, Url, redirect};
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::body::drain;
use super::bucket::{Bucket, Rate};
use super::headers::{dashed, has_odd_coding, remove_named, strip_hop_by_hop, upgrade_wanted};
use super::refusal::Refusal;
use crate::arrivals::upstream::told;
use crate::arrivals::{AgentStreams, Arrived};
use crate::config::HubApi;
use crate::notable::{About, Notes, Refusal as Refused};

/// Largest call.
const REQUEST_MAX_BYTES: usize = 1024 * 1024;

/// Largest reply: a Hub with many thousands of users lists them in pages below that.
const REPLY_MAX_BYTES: usize = 8 * 1024 * 1024;

/// Bytes of a call's head.
const HEAD_MAX_BYTES: usize = 32 * 1024;

/// Streams of one link at a time; further ones are reset.
const STREAMS_MAX: usize = 32;

/// Calls of one link that are with the Hub at a time; further ones wait.
const CALLS_MAX: usize = 8;

/// Calls of one link per second.
const RATE: Rate = Rate { burst: 60.0, per_s: 20.0 };

/// How long a call waits for its turn before it is refused.
const TURN_WAIT: Duration = Duration::from_secs(10);

/// One deadline over the call's body, the Hub's work and its reply.
const CALL_WAIT: Duration = Duration::from_secs(60);

/// Longest time for a call's head to arrive, and for an idle stream to stay.
const HEAD_WAIT: Duration = Duration::from_secs(60);

/// Where one Hub's API is, from the operator's config.
#[derive(Debug, Clone)]
pub struct HubTarget {
    /// Whose links lead there.
    pub name: HubName,
    /// Where its API is.
    pub api: HubApi,
    /// The Hub's `base_url`, such as `/` or `/jhub/`: what the servers' own calls start with.
    pub base_url: String,
}

/// Why calls cannot be carried.
#[derive(Debug, thiserror::Error)]
pub enum BadTarget {
    /// The HTTP client cannot be made.
    #[error("the client for the Hub's API cannot be made")]
    Client(#[source] reqwest::Error),
    /// TLS towards the Hub cannot be set up.
    #[error("TLS towards the Hub's API cannot be set up")]
    Tls(#[source] rustls::Error),
}

/// Carries the calls of all links, each to its own Hub.
#[derive(Debug)]
pub struct HubForward {
    hubs: HashMap<HubName, Arc<Hub>>,
    stop: CancellationToken,
    notes: Notes,
    /// One task per link.
    links: Mutex<JoinSet<()>>,
}

#[derive(Debug)]
struct Hub {
    name: HubName,
    api: Url,
    base_url: String,
    client: Client,
}

impl HubForward {
    /// Ends all links' calls when the service is to stop.
    pub fn new(
        targets: Vec<HubTarget>,
        notes: Notes,
        stop: CancellationToken,
    ) -> Result<Arc<Self>, BadTarget> {
        let client = client()?;
        let mut hubs = HashMap::new();
        for target in targets {
            let HubTarget { name, api, base_url } = target;
            let api = api.url().clone();
            hubs.insert(name.clone(), Arc::new(Hub { name, api, base_url, client: client.clone() }));
        }
        Ok(Arc::new(Self { hubs, stop, notes, links: Mutex::default() }))
    }
}

impl AgentStreams for HubForward {
    fn carry(&self, arrived: Arrived) {
        let Some(hub) = self.hubs.get(&arrived.key.hub) else {
            return self.notes.refused(Refused::HubCallNoHub, &About::new().key(&arrived.key));
        };
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        while links.try_join_next().is_some() {}
        let (hub, notes, turns) = (Arc::clone(hub), self.notes.clone(), Turns::new());
        let calls = Calls { hub, key: arrived.key, notes, turns };
        links.spawn(carry_link(Arc::new(calls), arrived.link, self.stop.clone()));
    }
}

/// Without the environment's proxy: the Hub is near, and its calls carry tokens.
pub fn client() -> Result<Client, BadTarget> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(BadTarget::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .redirect(redirect::Policy::none())
        .referer(false)
        .connect_timeout(Duration::from_secs(10))
        .pool_max_idle_per_host(32)
        .build()
        .map_err(BadTarget::Client)
}

/// The calls of one link's server.
struct Calls {
    hub: Arc<Hub>,
    key: ServerKey,
    notes: Notes,
    turns: Turns,
}

async fn carry_link(calls: Arc<Calls>, link: Link, stop: CancellationToken) {
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = streams.join_next(), if !streams.is_empty() => {}
            opened = link.accept() => match opened {
                None => break,
                Some(Opened { purpose, stream }) if purpose == PURPOSE_HUB_API && streams.len() < STREAMS_MAX => {
                    streams.spawn(serve(Arc::clone(&calls), stream));
                }
                Some(Opened { purpose, .. }) => {
                    let why = format!("{} streams open, this one for {purpose:?}", streams.len());
                    calls.notes.refused(Refused::HubCallStream, &About::new().key(&calls.key).why(&why));
                }
            }
        }
    }
}

async fn serve(calls: Arc<Calls>, stream: Stream) {
    let service = service_fn(|request| {
        let calls = Arc::clone(&calls);
        async move { Ok::<_, Infallible>(answer(&calls, request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WAIT)
        .max_header_size(HEAD_MAX_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(server.key = %calls.key, %error, "a stream with Hub API calls ended early");
    }
}

async fn answer(calls: &Calls, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let answered = match check(&calls.hub, &request) {
        Ok(url) => {
            timeout(CALL_WAIT, call(&calls.hub, &calls.turns, url, request)).await.unwrap_or_else(|_| {
                let status = StatusCode::GATEWAY_TIMEOUT;
                Err(refusal(Refused::HubCallSlow, status, "the Hub did not answer in time"))
            })
        }
        Err(why) => Err(refusal(Refused::HubCallPath, StatusCode::FORBIDDEN, why)),
    };
    match answered {
        Ok(reply) => reply.map(Full::new),
        Err(refusal) => {
            calls.notes.refused(refusal.note, &About::new().key(&calls.key).why(&refusal.sentence));
            refusal.response(&HeaderMap::new()).map(Full::new)
        }
    }
}

/// The address that this call goes to: this Hub's API and what the call names below it.
fn check(hub: &Hub, request: &Request<Incoming>) -> Result<Url, &'static str> {
    let uri = request.uri();
    if request.method() == Method::CONNECT || uri.scheme().is_some() || uri.authority().is_some() {
        return Err("only paths are served here");
    }
    if upgrade_wanted(request.headers()).is_some() {
        return Err("no upgrade is served here");
    }
    if has_odd_coding(request.headers()) {
        return Err("the only transfer encoding is chunked, said once");
    }
    let rest = path::below_api(uri.path(), &hub.base_url)?;
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let url = Url::parse(&format!("{}{rest}{query}", hub.api)).map_err(|_| "the path is malformed")?;
    let stayed = url.origin() == hub.api.origin()
        && url
            .path()
            .strip_prefix(hub.api.path())
            .is_some_and(|below| below.is_empty() || below.starts_with('/'));
    if stayed { Ok(url) } else { Err("only the Hub's API is served here") }
}

async fn call(
    hub: &Hub,
    turns: &Turns,
    url: Url,
    request: Request<Incoming>,
) -> Result<Response<Bytes>, Refusal> {
    let (parts, body) = request.into_parts();
    let _turn = turns.wait().await?;
    let body = whole(body).await?;
    let mut headers = parts.headers;
    strip_hop_by_hop(&mut headers);
    strip_claims(&mut headers);
    let mut call = hub.client.request(parts.method, url).headers(headers);
    if !body.is_empty() {
        call = call.body(body);
    }
    let reply = call.send().await.map_err(|error| no_reply(hub, &error))?;
    read(hub, reply).await
}

async fn whole(mut body: Incoming) -> Result<Bytes, Refusal> {
    let error = match Limited::new(&mut body, REQUEST_MAX_BYTES).collect().await {
        Ok(body) => return Ok(body.to_bytes()),
        Err(error) => error,
    };
    if error.downcast_ref::<LengthLimitError>().is_none() {
        return Err(refusal(Refused::HubCallBroken, StatusCode::BAD_REQUEST, "the call's body broke off"));
    }
    drain(&mut body).await;
    Err(refusal(
        Refused::HubCallTooLarge,
        StatusCode::PAYLOAD_TOO_LARGE,
        "the call's body is longer than 1 MiB",
    ))
}

/// What a job may not tell the Hub: who forwarded it, which host it means, browser state. The length is counted anew.
fn strip_claims(headers: &mut HeaderMap) {
    const CLAIMS: [HeaderName; 7] = [
        header::HOST,
        header::COOKIE,
        header::CONTENT_LENGTH,
        header::EXPECT,
        header::FORWARDED,
        header::ORIGIN,
        header::PROXY_AUTHORIZATION,
    ];
    remove_named(headers, |name| {
        let name = dashed(name);
        let forwarding = ["x-forwarded", "x-real", "x-scheme", "x-glidepath"];
        CLAIMS.iter().any(|claim| claim.as_str() == name)
            || forwarding.iter().any(|claim| name.starts_with(claim))
    });
}

async fn read(hub: &Hub, mut reply: reqwest::Response) -> Result<Response<Bytes>, Refusal> {
    let mut out = Response::new(Bytes::new());
    *out.status_mut() = reply.status();
    *out.headers_mut() = std::mem::take(reply.headers_mut());
    strip_hop_by_hop(out.headers_mut());
    for name in [header::SET_COOKIE, header::CONTENT_LENGTH] {
        out.headers_mut().remove(name);
    }
    let mut body = Vec::new();
    while let Some(chunk) = reply.chunk().await.map_err(|error| no_reply(hub, &error))? {
        if body.len() + chunk.len() > REPLY_MAX_BYTES {
            return Err(refusal(
                Refused::HubCallTooLarge,
                StatusCode::BAD_GATEWAY,
                "the Hub's reply is longer than 8 MiB",
            ));
        }
        body.extend_from_slice(&chunk);
    }
    *out.body_mut() = Bytes::from(body);
    Ok(out)
}

fn no_reply(hub: &Hub, error: &reqwest::Error) -> Refusal {
    tracing::debug!(hub = %hub.name, error = told(error), "a server's call did not reach its Hub");
    let (note, status) = (Refused::HubCallUnreachable, StatusCode::BAD_GATEWAY);
    Refusal { retry_after_s: Some(5), ..refusal(note, status, "the Hub cannot be reached now") }
}

fn refusal(note: Refused, status: StatusCode, sentence: &str) -> Refusal {
    Refusal { note, status, title: "Hub API call", sentence: sentence.to_owned(), retry_after_s: None }
}

/// Bounds what one link asks of its Hub.
#[derive(Debug)]
struct Turns {
    seats: Semaphore,
    bucket: Mutex<Bucket>,
}

impl Turns {
    fn new() -> Self {
        Self { seats: Semaphore::new(CALLS_MAX), bucket: Mutex::new(Bucket::full(RATE, Instant::now())) }
    }

    /// Waits for a turn, or refuses after [`TURN_WAIT`].
    async fn wait(&self) -> Result<tokio::sync::SemaphorePermit<'_>, Refusal> {
        let turn = async {
            let seat = self.seats.acquire().await.ok()?;
            loop {
                let taken =
                    self.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(RATE, Instant::now());
                match taken {
                    Ok(()) => return Some(seat),
                    Err(wait) => sleep(wait).await,
                }
            }
        };
        timeout(TURN_WAIT, turn).await.ok().flatten().ok_or_else(|| Refusal {
            retry_after_s: Some(10),
            ..refusal(
                Refused::HubCallTooMany,
                StatusCode::TOO_MANY_REQUESTS,
                "too many calls at once from this server",
            )
        })
    }
}
