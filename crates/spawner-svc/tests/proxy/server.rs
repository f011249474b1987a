//! Servers to stand behind the relay: one that speaks HTTP well, one that says exactly what it is told.

use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc};

use crate::house::leave;

type Error = Box<dyn std::error::Error + Send + Sync>;
type Body = BoxBody<Bytes, Error>;

/// Repeats with a length that no buffer has, so that a lost, doubled or swapped piece shows.
pub(crate) fn pattern(offset: usize, length: usize) -> Bytes {
    const PERIOD: usize = 65_521;
    static BLOCK: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    let block = BLOCK.get_or_init(|| {
        let once: Vec<u8> = (0..PERIOD).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        once.repeat(3)
    });
    assert!(length <= PERIOD);
    Bytes::copy_from_slice(&block[offset % PERIOD..][..length])
}

/// A stream of so many bytes of the pattern.
pub(crate) fn pattern_stream(
    total: usize,
) -> impl futures_util::Stream<Item = Result<Bytes, Error>> + Send + Sync {
    futures_util::stream::unfold(0, move |at| async move {
        let length = (total - at).min(60_000);
        (length > 0).then(|| (Ok(pattern(at, length)), at + length))
    })
}

/// Checks bytes against the pattern as they come.
#[derive(Default)]
pub(crate) struct PatternReader {
    pub(crate) seen: usize,
}

impl PatternReader {
    pub(crate) fn read(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(32_768) {
            assert!(pattern(self.seen, piece.len()) == piece, "bytes differ near {}", self.seen);
            self.seen += piece.len();
        }
    }
}

/// What a server behind the relay has seen.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) connections: AtomicUsize,
    /// Responses that were dropped before their end.
    pub(crate) abandoned: AtomicUsize,
    /// Lets `/stream` go on.
    pub(crate) go: Notify,
    /// `/slow` has been asked for.
    pub(crate) asked: Notify,
}

/// An HTTP server on a unix socket.
pub(crate) struct Server {
    pub(crate) socket: PathBuf,
    pub(crate) seen: Arc<Seen>,
    _folder: TempDir,
}

impl Server {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let seen = Arc::new(Seen::default());
        leave(serve(listener, Arc::clone(&seen)));
        Self { socket, seen, _folder: folder }
    }
}

async fn serve(listener: UnixListener, seen: Arc<Seen>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        seen.connections.fetch_add(1, Ordering::Relaxed);
        let seen = Arc::clone(&seen);
        leave(async move {
            let service = service_fn(move |request| answer(Arc::clone(&seen), request));
            let http = http1::Builder::new();
            let _ = http.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
        });
    }
}

async fn answer(seen: Arc<Seen>, mut request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let last = path.rsplit('/').next().unwrap_or_default();
    let mut response = Response::new(empty());
    match last {
        "echo" => *response.body_mut() = request.into_body().map_err(Into::into).boxed(),
        "length" => {
            let mut reader = PatternReader::default();
            let mut body = request.into_body();
            while let Some(frame) = body.frame().await {
                if let Some(data) = frame.unwrap().data_ref() {
                    reader.read(data);
                }
            }
            *response.body_mut() = text(reader.seen.to_string());
        }
        "bulk" => {
            let total = request.uri().query().unwrap().parse().unwrap();
            let frames = futures_util::StreamExt::map(pattern_stream(total), |data| data.map(Frame::data));
            *response.body_mut() = BodyExt::boxed(StreamBody::new(frames));
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(total));
        }
        "stream" => *response.body_mut() = stream(seen),
        "never" => std::future::pending().await,
        "slow" => {
            seen.asked.notify_one();
            tokio::time::sleep(Duration::from_millis(700)).await;
            *response.body_mut() = text("at last".to_owned());
        }
        "empty" => *response.status_mut() = StatusCode::NO_CONTENT,
        "unchanged" => {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response.headers_mut().insert(header::ETAG, HeaderValue::from_static("\"1\""));
        }
        "error" => *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR,
        "early" => {
            *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
            *response.body_mut() = text("too much".to_owned());
        }
        "switch" => {
            let upgrade = hyper::upgrade::on(&mut request);
            leave(async move { shout(TokioIo::new(upgrade.await.unwrap())).await });
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            response.headers_mut().insert("sec-websocket-accept", HeaderValue::from_static("yes"));
        }
        _ => {
            let mut lines = format!("{} {}\n", request.method(), request.uri());
            for (name, value) in request.headers() {
                lines.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
            }
            *response.body_mut() = text(lines);
        }
    }
    Ok(response)
}

/// Says everything back in capitals; at the other side's end, says goodbye and ends.
async fn shout<IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(mut io: IO) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match io.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(read) => {
                buffer[..read].make_ascii_uppercase();
                if io.write_all(&buffer[..read]).await.is_err() {
                    return;
                }
            }
        }
    }
    let _ = io.write_all(b"goodbye").await;
    let _ = io.shutdown().await;
}

/// One event, a wait for the test's word, another, the end.
fn stream(seen: Arc<Seen>) -> Body {
    struct Watch {
        seen: Arc<Seen>,
        whole: bool,
    }
    impl Drop for Watch {
        fn drop(&mut self) {
            if !self.whole {
                self.seen.abandoned.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    let watch = Watch { seen, whole: false };
    let frames = futures_util::stream::unfold((0, watch), |(step, mut watch)| async move {
        if step == 1 {
            watch.seen.go.notified().await;
        }
        watch.whole = step == 2;
        let event = Bytes::from(format!("data: {step}\n\n"));
        (step < 2).then(|| (Ok::<_, Error>(Frame::data(event)), (step + 1, watch)))
    });
    BodyExt::boxed(StreamBody::new(frames))
}

fn empty() -> Body {
    text(String::new())
}

fn text(text: String) -> Body {
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed()
}

/// A server that reads to the end of a request's head and then says these bytes and closes.
pub(crate) struct Scripted {
    pub(crate) socket: PathBuf,
    heads: mpsc::Receiver<String>,
    _folder: TempDir,
}

/// What a scripted server does with one connection.
pub(crate) type Act = fn(UnixStream) -> Pin<Box<dyn Future<Output = ()> + Send>>;

impl Scripted {
    pub(crate) fn saying(reply: &'static str) -> Self {
        Self::acting(reply, |_| Box::pin(std::future::ready(())))
    }

    /// Says the reply, then acts.
    pub(crate) fn acting(reply: &'static str, then: Act) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (heard, heads) = mpsc::channel(64);
        leave(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let heard = heard.clone();
                leave(async move {
                    let head = read_head(&mut stream).await;
                    let _ = heard.send(head).await;
                    let _ = stream.write_all(reply.as_bytes()).await;
                    then(stream).await;
                });
            }
        });
        Self { socket, heads, _folder: folder }
    }

    /// The next request's head, as it came.
    pub(crate) async fn head(&mut self) -> String {
        tokio::time::timeout(crate::house::SOON, self.heads.recv()).await.unwrap().unwrap()
    }

    /// True when no request has come.
    pub(crate) fn heard_nothing(&mut self) -> bool {
        self.heads.try_recv().is_err()
    }
}

pub(crate) async fn read_head(stream: &mut UnixStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}
