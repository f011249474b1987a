//! A server that keeps every byte of every connection, answers what a strict reader finds, and can be asked whether
//! a loose one would have found something else.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use glidepath_testkit::readers::{Asked, STRICT, loose, read};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};

use crate::house::leave;

/// One connection to the server.
#[derive(Default)]
struct Heard {
    bytes: Vec<u8>,
    /// Requests that were answered.
    answered: usize,
    /// Where the connection became another protocol's.
    switched_at: Option<usize>,
}

pub(crate) struct Recorder {
    /// Where it listens; empty for one that listens on a port.
    pub(crate) socket: PathBuf,
    heard: Arc<Mutex<Vec<Heard>>>,
    _folder: TempDir,
}

impl Recorder {
    /// Answers with its name.
    pub(crate) fn start(name: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let heard = Arc::default();
        let all = Arc::clone(&heard);
        leave(async move {
            loop {
                leave(record(listener.accept().await.unwrap().0, Arc::clone(&all), name));
            }
        });
        Self { socket, heard, _folder: folder }
    }

    /// The same on a port.
    pub(crate) async fn on_a_port(name: &'static str) -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::default();
        let all = Arc::clone(&heard);
        leave(async move {
            loop {
                leave(record(listener.accept().await.unwrap().0, Arc::clone(&all), name));
            }
        });
        (Self { socket: PathBuf::new(), heard, _folder: tempfile::tempdir().unwrap() }, address)
    }

    /// Everything that came, as text.
    pub(crate) fn text(&self) -> String {
        let heard = self.heard.lock().unwrap();
        heard.iter().map(|heard| String::from_utf8_lossy(&heard.bytes).into_owned()).collect()
    }

    /// The targets of all requests so far, those of one connection in a row.
    pub(crate) fn targets(&self) -> Vec<String> {
        let heard = self.heard.lock().unwrap();
        heard.iter().flat_map(|heard| read(plain(heard), STRICT).requests).map(|asked| asked.target).collect()
    }

    /// Fails when any reader of what came here finds other requests than a strict one, or a strict one refuses it.
    pub(crate) fn check_all_readers_agree(&self, after: &str) {
        for heard in self.heard.lock().unwrap().iter() {
            let strict = read(plain(heard), STRICT);
            let text = String::from_utf8_lossy(&heard.bytes);
            assert_eq!(strict.refused, None, "{after} let this through: {text:?}");
            for rules in loose() {
                let found = read(plain(heard), rules);
                assert_eq!(found.targets(), strict.targets(), "{after}: {rules:?} reads {text:?} otherwise");
            }
        }
    }

    /// Forgets what came before the present requests.
    pub(crate) fn forget(&self) {
        for heard in self.heard.lock().unwrap().iter_mut() {
            let done = read(plain(heard), STRICT).requests.last().map_or(0, |asked| asked.end);
            heard.bytes.drain(..done);
            heard.answered = 0;
            heard.switched_at = heard.switched_at.map(|_| 0);
        }
    }
}

/// What is HTTP of a connection.
fn plain(heard: &Heard) -> &[u8] {
    &heard.bytes[..heard.switched_at.unwrap_or(heard.bytes.len())]
}

async fn record<IO>(mut stream: IO, all: Arc<Mutex<Vec<Heard>>>, name: &'static str)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let number = {
        let mut all = all.lock().unwrap();
        all.push(Heard::default());
        all.len() - 1
    };
    let mut part = vec![0; 64 * 1024];
    loop {
        let Ok(count @ 1..) = stream.read(&mut part).await else { return };
        let fresh: Vec<Asked> = {
            let mut all = all.lock().unwrap();
            let heard = &mut all[number];
            heard.bytes.extend_from_slice(&part[..count]);
            if heard.switched_at.is_some() {
                continue;
            }
            let requests = read(&heard.bytes, STRICT).requests;
            let fresh = requests[heard.answered.min(requests.len())..].to_vec();
            heard.answered = requests.len();
            heard.switched_at = fresh.iter().find(|asked| switches(asked)).map(|asked| asked.end);
            fresh
        };
        for asked in fresh {
            if stream.write_all(answer(&asked, name).as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

fn switches(asked: &Asked) -> bool {
    asked.upgrade && asked.target.ends_with("/switch")
}

fn answer(asked: &Asked, name: &str) -> String {
    if switches(asked) {
        return "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
            .into();
    }
    let status = if asked.upgrade { "403 Forbidden" } else { "200 OK" };
    let body = if asked.method == "HEAD" { "" } else { name };
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", name.len())
}
