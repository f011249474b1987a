//! Forwards the server's calls of the Hub's API home.
//!
//! In: HTTP/1.1 requests of the server, on a loopback port under a prefix that only the server was told. Out: the same
//! requests without the prefix, each on a stream of its own with the purpose `hub-api`. What home lets through is
//! home's to check; no credential is added here. One question is answered here itself: whose the agent's own token
//! is ([`Voucher`]).
//!
//! Bounds: 64 connections, [`HUB_API_STREAMS_MAX`] calls that are under way, 64 KiB of headers, 1 MiB of request body, one
//! deadline over each whole exchange.

#[cfg(any(test, feature = "fuzz"))]
#[doc(hidden)]
pub mod fuzz;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use glidepath_api_types::agent::{HUB_API_STREAMS_MAX, PURPOSE_HUB_API};
use glidepath_tunnel::link::{Link, LinkState};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1 as client;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use ring::rand::{SecureRandom, SystemRandom};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout, timeout_at};

const MAX_CONNECTIONS: usize = 64;
const MAX_HEADER_BYTES: usize = 64 * 1024;
const MAX_BODY_BYTES: usize = 1024 * 1024;
/// The server is on this machine; whoever else connects holds its place no longer than this.
const HEADERS_WITHIN: Duration = Duration::from_secs(3);
/// How long a call waits for its turn when too many are under way.
const TURN_WITHIN: Duration = Duration::from_secs(15);
/// Over one whole exchange, from the request's headers to the last byte of the answer.
const EXCHANGE_WITHIN: Duration = Duration::from_secs(60);
/// How long a request waits for a link that is cut.
const LINK_WITHIN: Duration = Duration::from_secs(20);
/// Pause after an accept that failed for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Random bytes in the prefix.
const PREFIX_BYTES: usize = 24;

/// Headers that speak of one connection, not of the request.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

type AnyBody = UnsyncBoxBody<Bytes, hyper::Error>;
type ToHome = dyn Future<Output = hyper::Result<()>> + Send;

/// A token of the agent's own, which this forwarder vouches for when the server asks its Hub whose it is. So the agent
/// can ask the server what goes on in it, also while home is away, without keeping the server's own token, and no call
/// reaches the Hub. It opens nothing but this one server.
pub struct Voucher {
    token: SecretString,
    identity: Bytes,
}

impl Voucher {
    /// Of a visitor who has the rights that this server asks of its users, as its environment names them.
    pub fn new(user: &str, access_scopes: &str) -> Self {
        let scopes = serde_json::from_str(access_scopes).unwrap_or(serde_json::Value::Array(Vec::new()));
        let identity = serde_json::json!({
            "kind": "user", "name": user, "admin": false, "groups": [], "scopes": scopes,
        });
        Voucher { token: random_word().into(), identity: identity.to_string().into() }
    }

    /// What the agent shows the server.
    pub fn token(&self) -> SecretString {
        self.token.clone()
    }

    /// The answer to a call that asks whose this token is.
    fn answer(&self, method: &Method, path: &str, headers: &HeaderMap) -> Option<Response<AnyBody>> {
        let said = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let ours = said.strip_prefix("token ").is_some_and(|token| token == self.token.expose_secret());
        if !ours {
            return None;
        }
        if method != Method::GET || !path.ends_with("/hub/api/user") {
            return Some(refusal(StatusCode::FORBIDDEN, "this token is good for no call of the Hub's API"));
        }
        let body = Full::new(self.identity.clone()).map_err(|never| match never {});
        let mut response = Response::new(UnsyncBoxBody::new(body));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Some(response)
    }
}

/// The forwarder, bound and not yet running.
pub struct HubForwarder {
    listener: TcpListener,
    address: SocketAddr,
    forward: Arc<Forward>,
}

impl HubForwarder {
    /// Takes a free port on loopback and a fresh prefix.
    pub async fn bind(link: Link, voucher: Voucher) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let streams = Arc::new(Semaphore::new(HUB_API_STREAMS_MAX));
        Ok(HubForwarder {
            listener,
            address,
            forward: Arc::new(Forward { link, prefix: random_word(), streams, voucher }),
        })
    }

    /// What stands before the path of a call: scheme, address and prefix, without a slash at the end. A secret.
    pub fn base_url(&self) -> String {
        format!("http://{}/{}", self.address, self.forward.prefix)
    }

    /// Serves for ever.
    pub async fn run(self) {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let forward = Arc::clone(&self.forward);
                    connections.spawn(async move {
                        forward.serve(stream).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "taking a call of the Hub's API");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
            while connections.try_join_next().is_some() {}
        }
    }
}

/// Letters and digits that nobody can guess: 192 bits.
pub fn random_word() -> String {
    let mut bytes = [0_u8; PREFIX_BYTES];
    #[expect(clippy::expect_used, reason = "without randomness there is no secret; going on would be worse")]
    SystemRandom::new().fill(&mut bytes).expect("the system's random numbers");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Forward {
    link: Link,
    prefix: String,
    /// One for each stream that may be open.
    streams: Arc<Semaphore>,
    voucher: Voucher,
}

impl Forward {
    async fn serve(self: Arc<Self>, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let service = service_fn(move |request| {
            let forward = Arc::clone(&self);
            async move { Ok::<_, Infallible>(forward.answer(request).await) }
        });
        let served = http().serve_connection(TokioIo::new(stream), service).await;
        if let Err(error) = served {
            tracing::debug!(%error, "a call of the Hub's API broke");
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<AnyBody> {
        let target = match self.target(&request) {
            Ok(target) => target,
            Err((status, why)) => return refusal(status, why),
        };
        if let Some(known) = self.voucher.answer(request.method(), target.path(), request.headers()) {
            return known;
        }
        let deadline = Instant::now() + EXCHANGE_WITHIN;
        timeout_at(deadline, self.exchange(request, target, deadline))
            .await
            .unwrap_or_else(|_| refusal(StatusCode::GATEWAY_TIMEOUT, "the Hub did not answer in time"))
    }

    /// What home is asked for, without the prefix.
    fn target(&self, request: &Request<Incoming>) -> Result<Uri, (StatusCode, &'static str)> {
        let path = request.uri().path_and_query().map_or("", |path| path.as_str());
        let Some(target) = self.without_prefix(path).and_then(|path| path.parse::<Uri>().ok()) else {
            return Err((StatusCode::NOT_FOUND, "not found"));
        };
        if request.method() == Method::CONNECT || request.headers().contains_key(header::UPGRADE) {
            return Err((StatusCode::METHOD_NOT_ALLOWED, "CONNECT and Upgrade are not carried here"));
        }
        Ok(target)
    }

    /// What follows the prefix, when the prefix is ours. Looks at every byte, so that the time tells nothing.
    fn without_prefix<'a>(&self, path: &'a str) -> Option<&'a str> {
        let rest = path.strip_prefix('/')?;
        let (given, ours) = (rest.as_bytes(), self.prefix.as_bytes());
        let differs = ours
            .iter()
            .enumerate()
            .fold(0, |differs, (at, byte)| differs | (byte ^ given.get(at).copied().unwrap_or_default()));
        rest.get(ours.len()..).filter(|rest| differs == 0 && rest.starts_with('/'))
    }

    async fn exchange(
        &self,
        request: Request<Incoming>,
        target: Uri,
        deadline: Instant,
    ) -> Response<AnyBody> {
        let request = match checked(request, target).await {
            Ok(request) => request,
            Err(refused) => return refused,
        };
        if timeout(LINK_WITHIN, self.link_up()).await != Ok(true) {
            return refusal(
                StatusCode::SERVICE_UNAVAILABLE,
                "the Hub cannot be reached now: the link home is cut",
            );
        }
        let Ok(Ok(turn)) = timeout(TURN_WITHIN, Arc::clone(&self.streams).acquire_owned()).await else {
            return refusal(StatusCode::TOO_MANY_REQUESTS, "too many calls of the Hub's API are under way");
        };
        let stream = match self.link.open(PURPOSE_HUB_API) {
            Ok(stream) => stream,
            Err(error) => {
                return refusal(
                    StatusCode::SERVICE_UNAVAILABLE,
                    &format!("the Hub cannot be reached: {error}"),
                );
            }
        };
        match carry(stream, turn, request, deadline).await {
            Ok(response) => response,
            Err(error) => {
                tracing::debug!(%error, "carrying a call of the Hub's API");
                refusal(StatusCode::BAD_GATEWAY, "the link home broke during the call")
            }
        }
    }

    async fn link_up(&self) -> bool {
        let mut state = self.link.watch();
        let settled = |state: &LinkState| matches!(state, LinkState::Up { .. } | LinkState::Closed { .. });
        matches!(state.wait_for(settled).await.as_deref(), Ok(LinkState::Up { .. }))
    }
}

fn http() -> server::Builder {
    let mut builder = server::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .max_header_size(MAX_HEADER_BYTES)
        .max_buf_size(2 * MAX_HEADER_BYTES);
    builder
}

/// Reads the body and cleans the head: what is left goes home.
async fn checked(request: Request<Incoming>, target: Uri) -> Result<Request<Full<Bytes>>, Response<AnyBody>> {
    let (mut head, body) = request.into_parts();
    let body = match Limited::new(body, MAX_BODY_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return Err(refusal(StatusCode::PAYLOAD_TOO_LARGE, "a call of the Hub's API may carry 1 MiB"));
        }
        Err(_) => return Err(refusal(StatusCode::BAD_REQUEST, "the request's body broke off")),
    };
    head.uri = target;
    head.version = Version::HTTP_11;
    drop_hop_by_hop(&mut head.headers);
    head.headers.remove(header::EXPECT);
    head.headers.remove(header::CONTENT_LENGTH); // hyper writes the one that is right
    head.headers.insert(header::HOST, HeaderValue::from_static("hub")); // home knows the Hub's own
    Ok(Request::from_parts(head, Full::new(body)))
}

fn drop_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    // With `_` for `-` some readers take a field for one that says how long a message is.
    let looks_like_framing =
        |name: &&HeaderName| matches!(name.as_str(), "content_length" | "transfer_encoding");
    let alike: Vec<HeaderName> = headers.keys().filter(looks_like_framing).cloned().collect();
    for name in HOP_BY_HOP.iter().chain(&named).chain(&alike) {
        headers.remove(name);
    }
}

async fn carry<IO>(
    stream: IO,
    turn: OwnedSemaphorePermit,
    request: Request<Full<Bytes>>,
    deadline: Instant,
) -> hyper::Result<Response<AnyBody>>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = client::Builder::new();
    builder.max_header_size(MAX_HEADER_BYTES).max_buf_size(2 * MAX_HEADER_BYTES);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    let mut driven = Driven { connection: Some(Box::pin(connection)) };
    let response = {
        let mut sending = std::pin::pin!(sender.send_request(request));
        std::future::poll_fn(|cx| {
            driven.drive(cx);
            sending.as_mut().poll(cx)
        })
        .await?
    };
    let (mut head, body) = response.into_parts();
    drop_hop_by_hop(&mut head.headers);
    head.version = Version::HTTP_11;
    let body =
        Answer { driven, _sender: sender, body, deadline: Box::pin(sleep_until(deadline)), _turn: turn };
    Ok(Response::from_parts(head, UnsyncBoxBody::new(body)))
}

/// A client connection that is polled by whoever waits for its answer: no task of its own, gone with its owner.
struct Driven {
    connection: Option<Pin<Box<ToHome>>>,
}

impl Driven {
    fn drive(&mut self, cx: &mut Context<'_>) {
        if self.connection.as_mut().is_some_and(|connection| connection.as_mut().poll(cx).is_ready()) {
            self.connection = None;
        }
    }
}

/// The answer's body, up to the exchange's deadline.
struct Answer {
    driven: Driven,
    _sender: client::SendRequest<Full<Bytes>>,
    body: Incoming,
    deadline: Pin<Box<Sleep>>,
    /// Given back when the stream is: dropped behind it.
    _turn: OwnedSemaphorePermit,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        if this.deadline.as_mut().poll(cx).is_ready() {
            this.driven.connection = None; // the body then ends with an error, and the server sees a broken answer
        }
        this.driven.drive(cx);
        Pin::new(&mut this.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn refusal(status: StatusCode, why: &str) -> Response<AnyBody> {
    let text = Full::new(Bytes::from(format!("{why}\n"))).map_err(|never| match never {});
    let mut response = Response::new(UnsyncBoxBody::new(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    }
    // Who does not know the prefix is not the server, and keeps no place.
    if matches!(status, StatusCode::PAYLOAD_TOO_LARGE | StatusCode::NOT_FOUND) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_long_and_never_the_same() {
        assert_eq!(random_word().len(), 2 * PREFIX_BYTES);
        assert_ne!(random_word(), random_word());
    }

    #[test]
    fn headers_of_one_connection_stay_there() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Secret"),
            ("x-secret", "1"),
            ("te", "gzip"),
            ("content_length", "5"),
            ("accept", "*/*"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        drop_hop_by_hop(&mut headers);
        assert_eq!(headers.keys().collect::<Vec<_>>(), [&header::ACCEPT]);
    }
}
