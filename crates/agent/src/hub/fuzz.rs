//! The door of the fuzz target: any bytes of a hostile child through the forwarder. Not for use.
#![allow(clippy::expect_used, reason = "for tests and the fuzzer alone: this is how they fail")]

use std::cell::OnceCell;
use std::sync::{Arc, Mutex};

use glidepath_tunnel::dial::{DialConfig, Trust, dialer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::runtime::{Builder, Runtime};

use super::*;

/// What stands before every path that is taken.
pub const PREFIX: &str = "/fuzz-prefix";

/// What the forwarder made of some bytes.
#[derive(Debug)]
pub struct Called {
    /// What would have gone home, by stream.
    pub sent: Vec<Vec<u8>>,
    /// How many calls it answered.
    pub answered: u64,
}

/// Sends the bytes on one connection to a forwarder whose calls of home are answered with `204`.
pub fn call(input: &[u8]) -> Called {
    thread_local!(static RUNTIME: OnceCell<Runtime> = const { OnceCell::new() });
    RUNTIME.with(|runtime| {
        let runtime = runtime.get_or_init(|| {
            // Time that jumps over every wait.
            Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime")
        });
        runtime.block_on(called(input))
    })
}

type Heard = Arc<Mutex<(Vec<Vec<u8>>, u64)>>;

async fn called(input: &[u8]) -> Called {
    let heard = Heard::default();
    let (mut child, near) = duplex(1 << 20);
    let forward = Arc::new(forward());
    let told = Arc::clone(&heard);
    let service = service_fn(move |request| {
        let (forward, heard) = (Arc::clone(&forward), Arc::clone(&told));
        async move {
            let response = answer(&forward, request, &heard).await;
            heard.lock().expect("no panic before").1 += 1;
            Ok::<_, Infallible>(response)
        }
    });
    let serve = http().serve_connection(TokioIo::new(near), service);
    let talk = async move {
        let _ = child.write_all(input).await; // it may be refused before it is whole
        // A child that closes its half is gone: it waits until nothing comes any more.
        let mut answers = Vec::new();
        while let Ok(Ok(1..)) = timeout(Duration::from_secs(1), child.read_buf(&mut answers)).await {}
        drop(child);
    };
    let _ = tokio::join!(serve, talk);
    let (sent, answered) = std::mem::take(&mut *heard.lock().expect("no panic before"));
    Called { sent, answered }
}

/// A forwarder whose link is never up: calls are taken over before they need it.
fn forward() -> Forward {
    let config = DialConfig::new("ws://home/link", Trust::SystemRoots, String::new().into(), "fuzz");
    let (link, _dialer) = dialer(config).expect("a link");
    let streams = Arc::new(Semaphore::new(1));
    Forward {
        link,
        prefix: PREFIX.trim_start_matches('/').to_owned(),
        streams,
        voucher: Voucher::new("ada", "[]"),
    }
}

/// As the forwarder answers, with a pipe in place of the link's stream.
async fn answer(forward: &Forward, request: Request<Incoming>, heard: &Heard) -> Response<AnyBody> {
    let target = match forward.target(&request) {
        Ok(target) => target,
        Err((status, why)) => return refusal(status, why),
    };
    let request = match checked(request, target).await {
        Ok(request) => request,
        Err(refused) => return refused,
    };
    let (near, home) = duplex(1 << 20);
    let turn = Arc::clone(&forward.streams).acquire_owned().await.expect("never closed");
    let deadline = Instant::now() + EXCHANGE_WITHIN;
    let (carried, seen) = tokio::join!(carry(near, turn, request, deadline), answer_from_home(home));
    heard.lock().expect("no panic before").0.push(seen);
    carried.unwrap_or_else(|_| refusal(StatusCode::BAD_GATEWAY, "broken"))
}

async fn answer_from_home(mut home: DuplexStream) -> Vec<u8> {
    let mut seen = Vec::new();
    // Nothing more comes once the other end waits for its answer.
    while let Ok(Ok(1..)) = timeout(Duration::from_millis(10), home.read_buf(&mut seen)).await {}
    let _ = home.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
    seen
}

#[cfg(test)]
mod tests {
    use glidepath_testkit::corpus::replay;
    use glidepath_testkit::readers::check_passed;

    use super::*;

    #[test]
    fn what_was_kept_or_changed_goes_home_as_the_standard_reads_it() {
        replay("agent_head", 1_000, |input| {
            let called = call(input);
            check_passed(input, PREFIX, &called.sent, called.answered);
        });
    }

    #[test]
    fn a_plain_call_goes_home() {
        let called = call(b"POST /fuzz-prefix/hub/api HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi");
        assert_eq!((called.sent.len(), called.answered), (1, 1));
        assert!(called.sent[0].starts_with(b"POST /hub/api HTTP/1.1\r\n") && called.sent[0].ends_with(b"hi"));
    }
}
