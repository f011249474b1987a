//! One lane as the protocol sees it: what was sent on it and not yet confirmed, what came in, when it spoke.

use std::collections::VecDeque;
use std::ops::Range;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::frame::Broken;
use super::pace::{Departure, Pace};

/// Something sent that must be sent again if its lane is lost before the other end had it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    Open(u64),
    Data(u64, Range<u64>),
    Fin(u64),
    Reset(u64),
    Stop(u64),
    Credit(u64),
    Streams,
    LaneGone(u64),
}

/// What was sent on a lane, in order, until the other end confirms it.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    messages: VecDeque<Message>,
    records: VecDeque<Record>,
    /// Bytes of all messages ever sent.
    total: u64,
    confirmed: u64,
    in_flight: u64,
}

#[derive(Debug)]
struct Message {
    end: u64,
    bytes: u64,
    records: u32,
    departure: Departure,
}

impl Sent {
    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// When the oldest unconfirmed message left.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.messages.front().map(|message| message.departure.at)
    }

    /// Notes a message; one without records is not confirmed by itself and does not count as in flight.
    pub(crate) fn push(&mut self, bytes: u64, records: &mut Vec<Record>, departure: Departure) {
        self.total += bytes;
        if records.is_empty() {
            return;
        }
        self.in_flight += bytes;
        self.messages.push_back(Message { end: self.total, bytes, records: records.len() as u32, departure });
        self.records.extend(records.drain(..));
    }

    /// The other end has everything up to `received`. Hands over what that confirms; answers its bytes and the
    /// newest departure among it.
    pub(crate) fn confirm(
        &mut self,
        received: u64,
        mut each: impl FnMut(Record),
    ) -> Result<Option<(u64, Departure)>, Broken> {
        if received > self.total {
            return Err(Broken::Rule("a lane confirmed what was never sent on it"));
        }
        self.confirmed = self.confirmed.max(received);
        let (mut bytes, mut last) = (0, None);
        while let Some(message) = self.messages.front()
            && message.end <= received
        {
            bytes += message.bytes;
            last = Some(message.departure);
            for record in self.records.drain(..message.records as usize) {
                each(record);
            }
            self.messages.pop_front();
        }
        self.in_flight -= bytes;
        Ok(last.map(|departure| (bytes, departure)))
    }

    /// Everything that was never confirmed.
    pub(crate) fn into_unconfirmed(self) -> VecDeque<Record> {
        self.records
    }
}

/// Whether a lane can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    /// It spoke lately, or nothing was asked.
    Good,
    /// It owes an answer. The dialler dials another one beside it.
    Silent,
    /// It is given up.
    Dead,
}

/// A lane that is up.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) sent: Sent,
    pub(crate) pace: Pace,
    /// Bytes of messages received.
    pub(crate) received: u64,
    /// Bytes received that call for an acknowledgement, and the last moment one came.
    pub(crate) unacknowledged: u64,
    pub(crate) last_arrival: Instant,
    pub(crate) ack_due: Option<Instant>,
    pub(crate) last_heard: Instant,
    pub(crate) pong: Option<u64>,
    pub(crate) ping_sent: Option<Instant>,
    pub(crate) health: Health,
    pub(crate) said_close: bool,
    pub(crate) waker: Option<Waker>,
}

/// An answer is late after this, or after four round trips if that is longer.
const LATE: Duration = Duration::from_millis(2_500);

impl Lane {
    pub(crate) fn new(now: Instant) -> Self {
        Lane {
            sent: Sent::default(),
            pace: Pace::new(now),
            received: 0,
            unacknowledged: 0,
            last_arrival: now,
            ack_due: None,
            last_heard: now,
            pong: None,
            ping_sent: None,
            health: Health::Good,
            said_close: false,
            waker: None,
        }
    }

    /// Keeps the waker of the lane's shell.
    pub(crate) fn keep(&mut self, waker: &Waker) {
        match &self.waker {
            Some(kept) if kept.will_wake(waker) => {}
            _ => self.waker = Some(waker.clone()),
        }
    }

    /// When this end last began to wait for an answer.
    fn waits_since(&self) -> Option<Instant> {
        let asked = match (self.sent.oldest(), self.ping_sent) {
            (Some(a), Some(b)) => a.min(b),
            (a, b) => a.or(b)?,
        };
        Some(asked.max(self.last_heard))
    }

    fn late_after(&self) -> Duration {
        self.pace.rtt().map_or(LATE, |rtt| LATE.max(rtt * 4))
    }

    /// When silence turns the lane worse, if nothing is heard.
    pub(crate) fn next_verdict(&self, heartbeat: Duration) -> Instant {
        let dead = self.last_heard + heartbeat * 3;
        match (self.health, self.waits_since()) {
            (Health::Good, Some(since)) => dead.min(since + self.late_after()),
            _ => dead,
        }
    }

    /// What silence until now says of the lane.
    pub(crate) fn verdict(&self, now: Instant, heartbeat: Duration) -> Health {
        if now >= self.last_heard + heartbeat * 3 {
            return Health::Dead;
        }
        match self.waits_since() {
            Some(since) if now >= since + self.late_after() => Health::Silent,
            _ => Health::Good,
        }
    }
}

/// A lane that is over but not settled: each end tells the other how much of it arrived.
#[derive(Debug)]
pub(crate) struct Gone {
    /// What arrived here.
    pub(crate) received: u64,
    /// What left here and may be lost; `None` once the other end said what arrived there.
    pub(crate) sent: Option<Sent>,
    /// The other end must still be told.
    pub(crate) tell: bool,
    /// The other end has been told and has confirmed that.
    pub(crate) told: bool,
}

impl Gone {
    pub(crate) fn is_settled(&self) -> bool {
        self.told && self.sent.is_none()
    }
}
