//! A link as its owner sees it: open and accept streams, watch whether lanes are up, close.
//!
//! A link's streams live in a session: the protocol's state behind a lock that is never held while waiting. At the
//! home end a link is one session; at the agent end it goes on with a new one when home has forgotten the old.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use crate::proto::frame::{self, CloseKind};
use crate::proto::mux::{Limits, Side};
use crate::proto::{Core, Ended};
use crate::stream::Stream;

/// Either end of a link. Cheap to clone; all clones are the same link. Dropping clones does not close it.
#[derive(Clone, Debug)]
pub struct Link(pub(crate) Arc<Inner>);

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
        if !frame::is_purpose(purpose) {
            return Err(OpenError::BadPurpose);
        }
        loop {
            if let LinkState::Closed { reason } = self.state() {
                return Err(OpenError::Closed(reason));
            }
            let session = self.session();
            let (opened, ended, most) = session.with(|core| {
                let opened = core.mux.open(purpose, now());
                (opened, core.ended().cloned(), core.mux.limits.max_open)
            });
            match (opened, ended) {
                (Some(id), _) => return Ok(Stream::new(id, session)),
                (None, None) => return Err(OpenError::TooMany(most)),
                (None, Some(ended)) if ended.for_good || self.0.events.side == Side::Home => {
                    return Err(OpenError::Closed(ended.reason));
                }
                // The agent end begins the next session here rather than make its caller wait for the dialler.
                (None, Some(_)) => self.renew(&session, rand::random()),
            }
        }
    }

    /// Waits for a stream that the other end opens; `None` once the link is closed. May be dropped half way.
    pub async fn accept(&self) -> Option<Incoming> {
        loop {
            let mut incoming = pin!(self.0.events.incoming.notified());
            incoming.as_mut().enable();
            let session = self.session();
            if let Some((id, purpose)) = session.with(|core| core.mux.accept()) {
                return Some(Incoming { purpose, stream: Stream::new(id, session) });
            }
            if matches!(self.state(), LinkState::Closed { .. }) {
                return None;
            }
            incoming.await;
        }
    }

    /// Where the link stands.
    pub fn state(&self) -> LinkState {
        self.0.events.state.borrow().clone()
    }

    /// Follows where the link stands.
    pub fn watch(&self) -> watch::Receiver<LinkState> {
        self.0.events.state.subscribe()
    }

    /// Closes for good and tells the other end why. Open streams end with `ConnectionReset`, and what was written
    /// but not yet sent is lost: shut streams down and read to their end before.
    pub fn close(&self, reason: &str) {
        let reason = frame::sentence(reason.as_bytes());
        self.session().with(|core| core.end(CloseKind::Link, &reason));
        self.0.events.set(LinkState::Closed { reason });
    }

    /// Waits until the link is over; says why. May be dropped half way.
    pub async fn closed(&self) -> String {
        let mut state = self.watch();
        match state.wait_for(|state| matches!(state, LinkState::Closed { .. })).await.as_deref() {
            Ok(LinkState::Closed { reason }) => reason.clone(),
            _ => String::new(),
        }
    }

    /// What the other end said of itself; `None` before the first handshake.
    pub fn peer(&self) -> Option<PeerInfo> {
        lock(&self.0.peer).clone()
    }

    /// Why the last dial failed, in words; `None` while there is a lane. Agent end only.
    pub fn trouble(&self) -> Option<String> {
        lock(&self.0.trouble).clone()
    }

    /// The latest smoothed round trip; `None` before the first one.
    pub fn rtt(&self) -> Option<Duration> {
        self.session().with(|core| core.rtt())
    }

    /// What went over the link since it was made.
    pub fn counters(&self) -> Counters {
        let mut sum = *lock(&self.0.past);
        sum.dials = self.0.dials.load(Ordering::Relaxed);
        sum.plus(self.session().counters())
    }

    pub(crate) fn new(side: Side, limits: Limits, heartbeat: Duration) -> Self {
        let (state, _) = watch::channel(LinkState::Dialling);
        let events = Arc::new(Events { side, limits, heartbeat, state, incoming: Notify::new() });
        Link(Arc::new(Inner {
            session: Mutex::new(Session::new(&events, rand::random())),
            events,
            peer: Mutex::new(None),
            trouble: Mutex::new(None),
            past: Mutex::new(Counters::default()),
            dials: AtomicU64::new(0),
        }))
    }

    pub(crate) fn session(&self) -> Arc<Session> {
        Arc::clone(&lock(&self.0.session))
    }

    /// Puts a fresh session of this name in the place of `old`, unless somebody did already.
    pub(crate) fn renew(&self, old: &Arc<Session>, id: [u8; 16]) {
        let fresh = Session::new(&self.0.events, id);
        {
            let mut current = lock(&self.0.session);
            if !Arc::ptr_eq(&current, old) {
                return;
            }
            *current = Arc::clone(&fresh);
        }
        old.detached.store(true, Ordering::Release);
        old.with(|core| core.end_quietly(false, "the other end no longer knows it"));
        {
            let mut past = lock(&self.0.past);
            *past = past.plus(old.counters());
        }
        fresh.with(|core| core.changed = true);
        self.0.events.incoming.notify_waiters();
    }

    pub(crate) fn set_peer(&self, peer: PeerInfo) {
        *lock(&self.0.peer) = Some(peer);
    }

    pub(crate) fn set_trouble(&self, trouble: Option<String>) {
        *lock(&self.0.trouble) = trouble;
    }

    pub(crate) fn note_dial(&self) {
        self.0.dials.fetch_add(1, Ordering::Relaxed);
    }

    /// The link is over; handles hear of it.
    pub(crate) fn set_closed(&self, reason: &str) {
        self.session().with(|core| core.end_quietly(true, reason));
        self.0.events.set(LinkState::Closed { reason: reason.to_owned() });
    }
}

#[derive(Debug)]
pub(crate) struct Inner {
    events: Arc<Events>,
    session: Mutex<Arc<Session>>,
    peer: Mutex<Option<PeerInfo>>,
    trouble: Mutex<Option<String>>,
    /// What sessions before the current one carried.
    past: Mutex<Counters>,
    dials: AtomicU64,
}

/// What a link and its sessions share.
#[derive(Debug)]
struct Events {
    side: Side,
    limits: Limits,
    heartbeat: Duration,
    state: watch::Sender<LinkState>,
    incoming: Notify,
}

impl Events {
    /// Closed stays closed.
    fn set(&self, next: LinkState) {
        let closed = matches!(next, LinkState::Closed { .. });
        self.state.send_if_modified(|state| {
            let change = *state != next && !matches!(state, LinkState::Closed { .. });
            if change {
                *state = next;
            }
            change
        });
        if closed {
            self.incoming.notify_waiters();
        }
    }
}

/// The protocol's state of one session behind its lock.
#[derive(Debug)]
pub(crate) struct Session {
    core: Mutex<Core>,
    events: Arc<Events>,
    /// The link goes on with another session: this one must not speak for it.
    detached: AtomicBool,
    /// What names it in handshakes (agent end).
    pub(crate) id: [u8; 16],
    /// Home's name for its end of the session, 0 before the first welcome (agent end).
    pub(crate) incarnation: AtomicU64,
}

impl Session {
    fn new(events: &Arc<Events>, id: [u8; 16]) -> Arc<Self> {
        Arc::new(Session {
            core: Mutex::new(Core::new(events.side, events.limits.clone(), events.heartbeat, now())),
            events: Arc::clone(events),
            detached: AtomicBool::new(false),
            id,
            incarnation: AtomicU64::new(0),
        })
    }

    /// Does something to the state, then wakes whom it concerns.
    pub(crate) fn with<R>(&self, act: impl FnOnce(&mut Core) -> R) -> R {
        let mut core = lock(&self.core);
        let result = act(&mut core);
        if std::mem::take(&mut core.mux.wants_lane) {
            core.wake_lanes();
        }
        if std::mem::take(&mut core.changed) && !self.detached.load(Ordering::Acquire) {
            self.events.set(self.state(&core));
        }
        let wakes = std::mem::take(&mut core.mux.wakes);
        let incoming = std::mem::take(&mut core.mux.has_incoming);
        drop(core);
        for waker in wakes {
            waker.wake();
        }
        if incoming {
            self.events.incoming.notify_waiters();
        }
        result
    }

    fn state(&self, core: &Core) -> LinkState {
        match (core.ended(), core.good_lanes(), core.cut_since()) {
            (Some(Ended { for_good, reason }), ..) if *for_good || self.events.side == Side::Home => {
                LinkState::Closed { reason: reason.clone() }
            }
            (Some(_), ..) => LinkState::Dialling,
            (None, 0, Some(since)) => LinkState::Cut { since },
            (None, 0, None) => LinkState::Dialling,
            (None, lanes, _) => LinkState::Up { lanes },
        }
    }

    fn counters(&self) -> Counters {
        self.with(|core| Counters {
            bytes_out: core.mux.bytes_out,
            bytes_in: core.mux.bytes_in,
            bytes_repeated: core.mux.bytes_repeated,
            streams: core.mux.streams_ever(),
            lanes: core.lanes_ever,
            resumes: core.resumes,
            dials: 0,
        })
    }
}

impl Counters {
    fn plus(self, other: Counters) -> Counters {
        Counters {
            bytes_out: self.bytes_out + other.bytes_out,
            bytes_in: self.bytes_in + other.bytes_in,
            bytes_repeated: self.bytes_repeated + other.bytes_repeated,
            streams: self.streams + other.streams,
            lanes: self.lanes + other.lanes,
            resumes: self.resumes + other.resumes,
            dials: self.dials + other.dials,
        }
    }
}

/// The time as the runtime has it, so that tests can pause it.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// No state here is left half-changed by a panic that could be caught: the lock is taken on.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
