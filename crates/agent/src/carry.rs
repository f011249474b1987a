//! Takes the streams that home opens, and carries each to where its purpose says: the control conversation, or the
//! server's socket.

use std::sync::atomic::Ordering;
use std::time::Duration;

use glidepath_api_types::agent::{
    CONTROL_LINE_MAX_BYTES, FromAgent, PURPOSE_CONTROL, PURPOSE_SERVER, Report, ToAgent,
};
use glidepath_tunnel::link::{Incoming, Link};
use glidepath_tunnel::stream::Stream;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;
use tokio_util::io::InspectWriter;

use crate::activity::Carried;
use crate::launch::Target;
use crate::server::connect;

/// Streams to the server at one time; a further one is reset.
const MAX_SERVER_STREAMS: usize = 1024;
/// What a stream of a server that ended may still take to hand over its last bytes.
const LAST_BYTES: Duration = Duration::from_secs(2);

/// What home asked for.
#[derive(Debug)]
pub enum Order {
    /// In words that this agent knows.
    Known(ToAgent),
    /// A launch order that this agent cannot read.
    UnreadableLaunch,
}

/// Everything that carrying needs.
pub struct Carrier {
    /// Where streams come from.
    pub link: Link,
    /// What home is told on control streams.
    pub report: watch::Receiver<Report>,
    /// What home asks for on control streams.
    pub orders: mpsc::Sender<Order>,
    /// Where the server listens; `None` before its start and after its end.
    pub target: watch::Receiver<Option<Target>>,
    /// Counts what comes for it from home.
    pub carried: Carried,
}

impl Carrier {
    /// Takes streams until the link is closed.
    pub async fn run(self) {
        let mut control: Option<AbortHandle> = None;
        let mut streams = JoinSet::new();
        loop {
            let incoming = tokio::select! {
                incoming = self.link.accept() => incoming,
                Some(_) = streams.join_next() => continue,
            };
            let Some(Incoming { purpose, stream }) = incoming else { return };
            match purpose.as_str() {
                // Home opens one per link; a second one means that the first is forgotten there.
                PURPOSE_CONTROL => {
                    control.take().inspect(AbortHandle::abort);
                    let talk =
                        control_talk(stream, self.link.clone(), self.orders.clone(), self.report.clone());
                    control = Some(streams.spawn(talk));
                }
                PURPOSE_SERVER if streams.len() <= MAX_SERVER_STREAMS => {
                    streams.spawn(to_server(stream, self.target.clone(), self.carried.clone()));
                }
                PURPOSE_SERVER => {
                    tracing::warn!(limit = MAX_SERVER_STREAMS, "too many streams: one is refused")
                }
                _ => tracing::warn!(%purpose, "a stream of unknown purpose is refused"),
            }
        }
    }
}

async fn control_talk(
    stream: Stream,
    link: Link,
    orders: mpsc::Sender<Order>,
    report: watch::Receiver<Report>,
) {
    let (read, write) = tokio::io::split(stream);
    let told = tokio::select! {
        heard = hear(read, orders) => heard,
        told = tell(write, report) => told,
    };
    match told {
        Ok(()) => tracing::debug!("home ended the control stream"),
        Err(TalkError::LineTooLong) => link.close("a control line is too long"),
        Err(TalkError::Io(error)) => tracing::debug!(%error, "the control stream is over"),
    }
}

#[derive(Debug, thiserror::Error)]
enum TalkError {
    #[error("a control line is longer than {CONTROL_LINE_MAX_BYTES} bytes")]
    LineTooLong,
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Hands over every order until home ends the stream.
async fn hear(read: impl AsyncRead + Unpin, orders: mpsc::Sender<Order>) -> Result<(), TalkError> {
    let mut lines = BufReader::new(read);
    let mut line = Vec::new();
    loop {
        line.clear();
        let limit = CONTROL_LINE_MAX_BYTES as u64 + 1;
        if (&mut lines).take(limit).read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        if line.len() > CONTROL_LINE_MAX_BYTES {
            return Err(TalkError::LineTooLong);
        }
        if let Some(order) = read_order(&line)
            && orders.send(order).await.is_err()
        {
            return Ok(());
        }
    }
}

/// What a newer home says beyond this agent's words is not followed; it never ends a server. The line is not logged:
/// it may hold secrets, and so may the parser's own words.
fn read_order(line: &[u8]) -> Option<Order> {
    #[derive(Deserialize)]
    struct Kind {
        r#type: String,
    }
    match serde_json::from_slice(line) {
        Ok(order) => Some(Order::Known(order)),
        Err(error) => {
            tracing::warn!(
                column = error.column(),
                "home said something that this agent does not understand"
            );
            let kind = serde_json::from_slice::<Kind>(line).ok()?;
            (kind.r#type == "launch").then_some(Order::UnreadableLaunch)
        }
    }
}

/// Tells the report at once, and again at each change.
async fn tell(
    mut write: impl AsyncWrite + Unpin,
    mut report: watch::Receiver<Report>,
) -> Result<(), TalkError> {
    loop {
        let told = FromAgent::Report(report.borrow_and_update().clone());
        let mut line = serde_json::to_vec(&told).map_err(std::io::Error::other)?;
        line.push(b'\n');
        write.write_all(&line).await?;
        write.flush().await?;
        if report.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// Carries both ways until both are at their end. Without a server, or when it does not listen, the stream is reset.
async fn to_server(stream: Stream, mut target: watch::Receiver<Option<Target>>, carried: Carried) {
    let Some(at) = target.borrow_and_update().clone() else { return };
    let Ok(server) = connect(&at).await else { return };
    let (from, to) = tokio::io::split(server);
    let to = InspectWriter::new(to, move |bytes: &[u8]| {
        carried.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    });
    let server_over = async {
        let _ = target.wait_for(Option::is_none).await;
        sleep(LAST_BYTES).await;
    };
    tokio::select! {
        carried = stream.carry(from, to) => {
            if let Err(error) = carried {
                tracing::trace!(%error, "a stream to the server broke");
            }
        }
        () = server_over => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_word_is_passed_over_and_a_broken_launch_is_not() {
        assert!(matches!(read_order(br#"{"type":"stop","grace_s":1,"reason":"x"}"#), Some(Order::Known(_))));
        assert!(read_order(br#"{"type":"sing"}"#).is_none());
        assert!(read_order(b"\xff\n").is_none());
        let unreadable = read_order(br#"{"type":"launch","argv":3}"#);
        assert!(matches!(unreadable, Some(Order::UnreadableLaunch)));
    }

    #[tokio::test]
    async fn a_line_that_never_ends_is_given_up() {
        let (orders, _kept) = mpsc::channel(1);
        let endless = tokio::io::repeat(b'x');
        assert!(matches!(hear(endless, orders).await, Err(TalkError::LineTooLong)));
    }
}
