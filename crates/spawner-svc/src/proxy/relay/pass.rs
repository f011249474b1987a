//! One request through the relay: find, pass on, hand back.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::upgrade::{self, OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt as _, copy_bidirectional_with_sizes};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

use super::{LINK_WAIT, Relay, Visit};
use crate::arrivals::routes::Found;
use crate::arrivals::upstream::{
    ConnectError, Connection, Exchange, Lease, OutBody, SendError, Upstream, told,
};
use crate::notable::{About, Refusal as Refused};
use crate::proxy::body::{RelayBody, drain};
use crate::proxy::headers::{has_odd_coding, has_token, strip_hop_by_hop, upgrade_wanted};
use crate::proxy::refusal::{MARK, Refusal};

/// Segments of a path that are told in the log, and their length.
const PLACE_SEGMENTS: usize = 3;
const PLACE_MAX_CHARS: usize = 200;

/// How long a body with `Expect: 100-continue` is held back for the server's word.
const CONTINUE_WAIT: Duration = Duration::from_secs(3);

/// Interim responses (1xx) to one request; beyond that no answer is to be expected.
const INTERIM_MAX: usize = 100;

/// How long both ends have to switch protocols once the server has agreed to.
const SWITCH_WAIT: Duration = Duration::from_secs(10);

/// Buffer of each direction of an upgraded connection to a server of this machine.
const SWITCH_BUFFER_BYTES: usize = 16 * 1024;

const NOT_ANSWERING: &str = "Your server is not answering";

/// Answers one request: with the server's response, or with a refusal.
pub(super) async fn answer(visit: Arc<Visit>, request: Request<Incoming>) -> Response<RelayBody> {
    let asked_with = request.headers().clone();
    let place = place(request.uri().path());
    let response = match pass(&visit, request).await {
        Ok(response) => response,
        Err((refusal, unread)) => {
            let about = About::new().hub(&visit.relay.hub).at(&place).why(&refusal.sentence);
            visit.relay.routes.notes().refused(refusal.note, &about);
            if let Some(mut body) = unread {
                drain(&mut body).await;
            }
            refusal.response(&asked_with).map(|text| RelayBody::Own(Full::new(text)))
        }
    };
    visit.relay.routes.answered(response.status().as_u16());
    response
}

/// What a path begins with: enough to tell whose server is meant, and no more.
fn place(path: &str) -> String {
    let end = path.match_indices('/').nth(PLACE_SEGMENTS).map_or(path.len(), |(at, _)| at);
    path[..end].chars().take(PLACE_MAX_CHARS).collect()
}

type Unanswered = (Refusal, Option<Incoming>);

async fn pass(visit: &Visit, mut request: Request<Incoming>) -> Result<Response<RelayBody>, Unanswered> {
    if let Err(refusal) = check(&request) {
        return Err((refusal, Some(request.into_body())));
    }
    let upstream = match reach(&visit.relay, request.uri().path()).await {
        Ok(upstream) => upstream,
        Err(refusal) => return Err((refusal, Some(request.into_body()))),
    };
    let wanted = upgrade_wanted(request.headers()).filter(|_| request.version() == Version::HTTP_11);
    let changes = !request.method().is_safe();
    let client = wanted.is_some().then(|| hyper::upgrade::on(&mut request));
    let (request, too_much) = outward(request, wanted);
    let exchange = tokio::select! {
        exchange = upstream.send(request) => exchange.map_err(|error| (not_sent(error), None))?,
        Ok(()) = too_much => {
            let sentence = "It sent interim responses without end, and no answer.".to_owned();
            return Err((Refusal::bad_gateway(sentence), None));
        }
    };
    // What the server refuses is nobody's use of it: anybody may ask.
    if changes && exchange.response.status().is_success() {
        upstream.used();
    }
    inward(visit, exchange, client).map_err(|refusal| (refusal, None))
}

/// Refuses what no server behind the Hub's proxy is asked: another target than a path, an ambiguous host, a
/// body whose end readers may see elsewhere.
fn check(request: &Request<Incoming>) -> Result<(), Refusal> {
    if request.method() == Method::CONNECT {
        return Err(Refusal::bad_request("this is no forward proxy: CONNECT is not served"));
    }
    let uri = request.uri();
    if uri.scheme().is_some() || uri.authority().is_some() {
        return Err(Refusal::bad_request("this is no forward proxy: ask with a path"));
    }
    if has_odd_coding(request.headers()) {
        return Err(Refusal::bad_request("the only transfer encoding is chunked, said once"));
    }
    let hosts = request.headers().get_all(header::HOST).iter().count();
    match (hosts, request.version()) {
        (1, _) | (0, Version::HTTP_10) => Ok(()),
        _ => Err(Refusal::bad_request("exactly one Host is needed")),
    }
}

/// The server of this path, once it can be reached.
async fn reach(relay: &Relay, path: &str) -> Result<Arc<Upstream>, Refusal> {
    let deadline = Instant::now() + LINK_WAIT;
    let mut changes = relay.routes.changes();
    loop {
        changes.borrow_and_update();
        // The agent dials again by itself, and a new link comes as a new route: what can come back is waited for.
        let later = match relay.routes.find(&relay.hub, path) {
            Found::Ready(upstream) => match upstream.awake(deadline).await {
                Ok(()) => return Ok(upstream),
                Err(error @ ConnectError::Closed(_)) => not_answering(&error),
                Err(error) => return Err(not_answering(&error)),
            },
            Found::Away { message } => Refusal::unavailable(Refused::PageAway, NOT_ANSWERING, message, 5),
            Found::Waiting { message } => {
                let title = "Your server is starting";
                return Err(Refusal::unavailable(Refused::PageStarting, title, message, 3));
            }
            Found::Ended { message } => {
                let title = "Your server is not running";
                return Err(Refusal::unavailable(Refused::PageEnded, title, message, 30));
            }
            Found::Unknown => {
                let sentence = "There is no server at this address. Start it from the Hub's home page.";
                let (note, title) = (Refused::PageUnknown, "No such server");
                return Err(Refusal::unavailable(note, title, sentence.to_owned(), 30));
            }
        };
        if timeout_at(deadline, changes.changed()).await.is_err() {
            return Err(later);
        }
    }
}

fn not_answering(error: &ConnectError) -> Refusal {
    let sentence = match error {
        ConnectError::Cut { since } => format!(
            "It has not been answering for {} seconds: its site cannot be reached. It is not stopped for that; \
             what runs there goes on.",
            since.elapsed().as_secs().max(1)
        ),
        ConnectError::Closed(_) => {
            "It is not answering now: its site cannot be reached. It is not stopped for that; \
             what runs there goes on."
                .to_owned()
        }
        ConnectError::NoStream(_) => "It has too many connections open at this moment.".to_owned(),
        ConnectError::Connect { .. } => "It is not answering now: nobody listens at its address.".to_owned(),
        ConnectError::WrongOwner { .. } => {
            "Its address is taken by another account, so nothing is sent there.".to_owned()
        }
    };
    let note = match error {
        ConnectError::Cut { .. } | ConnectError::Closed(_) => Refused::PageAway,
        ConnectError::NoStream(_) => Refused::PageNoStream,
        ConnectError::Connect { .. } => Refused::PageConnect,
        ConnectError::WrongOwner { .. } => Refused::PageWrongOwner,
    };
    Refusal::unavailable(note, NOT_ANSWERING, sentence, 5)
}

fn not_sent(error: SendError) -> Refusal {
    match error {
        SendError::Connect(error) => not_answering(&error),
        SendError::Broken(error) => {
            tracing::debug!(error = told(&error), "an exchange broke before the response");
            Refusal::bad_gateway("The connection to it ended before it answered. Try again.".to_owned())
        }
    }
}

/// The request as the server gets it: path, host and all end-to-end fields as received. And the word that the server says
/// too much before its answer.
fn outward(
    request: Request<Incoming>,
    upgrade: Option<HeaderValue>,
) -> (Request<OutBody>, oneshot::Receiver<()>) {
    let (parts, body) = request.into_parts();
    let Parts { method, uri, mut headers, .. } = parts;
    let takes_trailers = has_token(&headers, &header::TE, "trailers");
    let expects = headers
        .get(header::EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    strip_hop_by_hop(&mut headers);
    if let Some(protocol) = upgrade {
        headers.insert(header::UPGRADE, protocol);
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    } else if takes_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("TE"));
    }
    if !headers.contains_key(header::HOST) {
        headers.insert(header::HOST, HeaderValue::from_static("127.0.0.1")); // HTTP/1.0 may leave it out, 1.1 may not
    }
    let empty = body.is_end_stream();
    if !empty && !headers.contains_key(header::CONTENT_LENGTH) {
        // Said outright, since a GET would otherwise lose a body that has no length.
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    let mut out = Request::new(OutBody::Empty);
    let Interim { wants_body, too_much } = listen(&mut out);
    if empty {
        headers.remove(header::EXPECT);
    } else if expects {
        *out.body_mut() = OutBody::Held { body, until: Some(continue_word(wants_body)) };
    } else {
        *out.body_mut() = OutBody::Through(body);
    }
    *out.method_mut() = method;
    *out.uri_mut() = uri;
    *out.headers_mut() = headers;
    (out, too_much)
}

/// What a server says before its answer.
struct Interim {
    /// Told at the first `100 Continue`.
    wants_body: oneshot::Receiver<()>,
    /// Told after [`INTERIM_MAX`] interim responses.
    too_much: oneshot::Receiver<()>,
}

/// Listens to the interim responses of this request.
fn listen(request: &mut Request<OutBody>) -> Interim {
    let (wants, wants_body) = oneshot::channel();
    let (much, too_much) = oneshot::channel();
    let heard = Mutex::new((0, Some(wants), Some(much)));
    hyper::ext::on_informational(request, move |response| {
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.0 += 1;
        let word = match response.status() {
            _ if heard.0 > INTERIM_MAX => heard.2.take(),
            StatusCode::CONTINUE => heard.1.take(),
            _ => None,
        };
        if let Some(word) = word {
            let _ = word.send(()); // nobody may wait for it
        }
    });
    Interim { wants_body, too_much }
}

/// Ready when the server says that it wants the body, or has been silent for [`CONTINUE_WAIT`].
fn continue_word(wants_body: oneshot::Receiver<()>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let _ = timeout(CONTINUE_WAIT, wants_body).await; // silence is no refusal
    })
}

/// The response as the Hub's proxy gets it.
fn inward(
    visit: &Visit,
    exchange: Exchange,
    client: Option<OnUpgrade>,
) -> Result<Response<RelayBody>, Refusal> {
    let Exchange { mut response, lease } = exchange;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(client) = client else {
            return Err(Refusal::bad_gateway("It switched protocols without being asked to.".to_owned()));
        };
        let server = hyper::upgrade::on(&mut response);
        let switch = Switch { client, server, lease };
        *visit.switch.lock().unwrap_or_else(PoisonError::into_inner) = Some(switch);
        return Ok(switched(response.headers_mut()));
    }
    if has_odd_coding(response.headers()) {
        return Err(Refusal::bad_gateway(
            "Its response has a transfer encoding other than chunked.".to_owned(),
        ));
    }
    strip_hop_by_hop(response.headers_mut());
    response.headers_mut().remove(MARK);
    *response.version_mut() = Version::HTTP_11;
    let broke = Arc::clone(&visit.broke);
    Ok(response.map(|body| RelayBody::through(body, lease, broke)))
}

fn switched(of_server: &mut HeaderMap) -> Response<RelayBody> {
    let protocol = of_server.get(header::UPGRADE).cloned();
    strip_hop_by_hop(of_server);
    let mut response = Response::new(RelayBody::Own(Full::new(Bytes::new())));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = std::mem::take(of_server);
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    if let Some(protocol) = protocol {
        response.headers_mut().insert(header::UPGRADE, protocol);
    }
    response
}

/// Two connections that are about to become one.
pub(super) struct Switch {
    client: OnUpgrade,
    server: OnUpgrade,
    lease: Lease,
}

impl Switch {
    /// Copies both ways, each to its own end, until both have ended or one broke.
    pub(super) async fn join(self) {
        let Self { client, server, lease } = self;
        let both = async { tokio::try_join!(client, server) };
        let (client, server) = match timeout(SWITCH_WAIT, both).await {
            Ok(Ok(both)) => both,
            Ok(Err(error)) => return tracing::debug!(%error, "an upgrade came to nothing"),
            Err(_) => return tracing::debug!("an upgrade was not finished in time"),
        };
        drop(lease); // its task has handed the connection over
        if let Err(error) = join(TokioIo::new(client), server).await {
            tracing::debug!(%error, "an upgraded connection broke");
        }
    }
}

async fn join(mut client: TokioIo<Upgraded>, server: Upgraded) -> io::Result<()> {
    let upgrade::Parts { io, read_buf, .. } = match server.downcast::<TokioIo<Connection>>() {
        Ok(parts) => parts,
        Err(_) => return Err(io::Error::other("a server was reached by an unknown way")),
    };
    // What the server said right after its 101.
    client.write_all(&read_buf).await?;
    match io.into_inner() {
        Connection::Link(stream) => {
            let (from, to) = tokio::io::split(client);
            stream.carry(from, to).await
        }
        mut near => {
            let size = SWITCH_BUFFER_BYTES;
            copy_bidirectional_with_sizes(&mut client, &mut near, size, size).await.map(|_| ())
        }
    }
}
