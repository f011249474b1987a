//! What is known of one stream: both directions, their ends, what must still be said about them.

use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::frame;
use super::lane::Record;
use super::mux::FIRST_WINDOW_BYTES;
use super::outlet::Outlet;
use super::receive::ReceiveBuffer;
use super::send::SendBuffer;

/// Most bytes of one DATA frame.
pub(crate) const CHUNK_BYTES: usize = 64 * 1024;
/// A stream that sent more than this lately is bulk.
const SPARSE_BYTES: u64 = 64 * 1024;
/// So is one with more than this to send at once, or bulk over a slow line would count as the opposite.
const BACKLOG_BYTES: u64 = 16 * 1024;
/// What was sent lately counts half after this.
const HALF_LIFE: Duration = Duration::from_millis(50);

/// The queue that a stream waits in for a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queued {
    No,
    Sparse,
    Bulk,
    /// In neither: too much is unconfirmed.
    Parked,
}

#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one fact of the protocol, set and cleared by one frame"
)]
pub(crate) struct StreamState {
    /// Own stream: for its OPEN frame. Stream of the other end: until it is accepted.
    pub(crate) purpose: Option<String>,
    /// An OPEN frame must go out.
    pub(crate) open_due: bool,
    /// The other end has not granted this stream yet.
    pub(crate) held_back: bool,
    /// An OPEN frame came in.
    pub(crate) opened: bool,
    /// Somebody holds the stream, or may yet accept it. Not before its OPEN frame came: a stream that is given up
    /// early may never get one.
    pub(crate) handle: bool,

    pub(crate) send: SendBuffer,
    pub(crate) send_limit: u64,
    pub(crate) finished: bool,
    pub(crate) fin_sent: bool,
    pub(crate) fin_acked: bool,
    /// This direction ends by reset.
    pub(crate) reset: bool,
    pub(crate) reset_due: bool,
    pub(crate) reset_acked: bool,
    pub(crate) writer: Option<Waker>,
    pub(crate) writer_waits: bool,

    pub(crate) receive: ReceiveBuffer,
    pub(crate) receive_limit: u64,
    pub(crate) receive_end: Option<u64>,
    pub(crate) window: u64,
    pub(crate) credit_due: bool,
    credit_at: Instant,
    pub(crate) peer_reset: bool,
    /// Nobody will read what still comes.
    pub(crate) stopped: bool,
    pub(crate) stop_due: bool,
    pub(crate) reader: Option<Waker>,
    /// Where what comes goes on to at once, while nothing waits before it.
    pub(crate) outlet: Option<Outlet>,

    pub(crate) in_control: bool,
    pub(crate) queued: Queued,
    lately: u64,
    lately_at: Instant,
}

impl StreamState {
    pub(crate) fn new(now: Instant) -> Self {
        StreamState {
            purpose: None,
            open_due: false,
            held_back: false,
            opened: false,
            handle: false,
            send: SendBuffer::default(),
            send_limit: FIRST_WINDOW_BYTES,
            finished: false,
            fin_sent: false,
            fin_acked: false,
            reset: false,
            reset_due: false,
            reset_acked: false,
            writer: None,
            writer_waits: false,
            receive: ReceiveBuffer::default(),
            receive_limit: FIRST_WINDOW_BYTES,
            receive_end: None,
            window: FIRST_WINDOW_BYTES,
            credit_due: false,
            credit_at: now,
            peer_reset: false,
            stopped: false,
            stop_due: false,
            reader: None,
            outlet: None,
            in_control: false,
            queued: Queued::No,
            lately: 0,
            lately_at: now,
        }
    }

    pub(crate) fn send_done(&self) -> bool {
        if self.reset { self.reset_acked } else { self.fin_acked && self.send.all_acked() }
    }

    pub(crate) fn receive_done(&self) -> bool {
        self.peer_reset
            || match self.receive_end {
                Some(end) => self.stopped || self.receive.read_offset() == end,
                None => false,
            }
    }

    pub(crate) fn is_over(&self) -> bool {
        !self.handle && self.send_done() && self.receive_done()
    }

    pub(crate) fn start_reset(&mut self) {
        self.reset = true;
        self.reset_due = true;
        self.send.clear();
    }

    pub(crate) fn fin_due(&self) -> bool {
        self.finished && !self.reset && !self.fin_sent && self.send.all_sent()
    }

    pub(crate) fn has_control(&self) -> bool {
        !self.held_back
            && (self.open_due || self.reset_due || self.stop_due || self.credit_due || self.fin_due())
    }

    pub(crate) fn can_send(&self, most_unconfirmed: u64) -> bool {
        !self.held_back && !self.reset && self.send.can_send(self.may_send_to(most_unconfirmed))
    }

    /// How far this direction may go: its credit, and what may be unconfirmed of it. The other end decides on the
    /// first alone, and could keep any number of bytes here by never confirming one.
    pub(crate) fn may_send_to(&self, most_unconfirmed: u64) -> u64 {
        let confirmed = self.send.sent() - self.send.unconfirmed();
        self.send_limit.min(confirmed + most_unconfirmed)
    }

    /// Puts every frame that is due, beside data.
    pub(crate) fn put_control(&mut self, id: u64, out: &mut BytesMut, records: &mut Vec<Record>) {
        if std::mem::take(&mut self.open_due) {
            let purpose = self.purpose.as_deref().unwrap_or_default();
            frame::put_with(out, frame::OPEN, &[id], purpose.as_bytes());
            records.push(Record::Open(id));
        }
        if std::mem::take(&mut self.reset_due) {
            frame::put_numbers(out, frame::RESET, &[id]);
            records.push(Record::Reset(id));
        }
        if std::mem::take(&mut self.stop_due) {
            frame::put_numbers(out, frame::STOP, &[id]);
            records.push(Record::Stop(id));
        }
        if std::mem::take(&mut self.credit_due)
            && self.receive_end.is_none()
            && !self.stopped
            && !self.peer_reset
        {
            frame::put_numbers(out, frame::CREDIT, &[id, self.receive_limit]);
            records.push(Record::Credit(id));
        }
        if self.fin_due() {
            self.fin_sent = true;
            frame::put_numbers(out, frame::FIN, &[id, self.send.end()]);
            records.push(Record::Fin(id));
        }
    }

    /// Hands on what just came, as far as the outlet takes it at once; says how much. What it does not take waits for
    /// the one who reads, and everything after it.
    pub(crate) fn pass(&mut self, offset: u64, bytes: &[u8]) -> u64 {
        match &mut self.outlet {
            Some(outlet) => self.receive.pass(offset, bytes, |next| outlet.take_now(next)),
            None => 0,
        }
    }

    /// After a read: grants more when half of the window is used, and a wider window, as far as `room` allows, to
    /// a sender who used the last grant up within two round trips. Says whether a CREDIT frame is due.
    pub(crate) fn renew_credit(&mut self, now: Instant, rtt: Duration, max_window: u64, room: u64) -> bool {
        if self.receive_end.is_some() || self.stopped {
            return false;
        }
        let read = self.receive.read_offset();
        if self.receive_limit - read > self.window / 2 {
            return false;
        }
        let passed = now.saturating_duration_since(self.credit_at);
        if passed < rtt * 2 + Duration::from_millis(1) && self.window < max_window {
            let wider = (self.window * 2).min(max_window).min(self.window + room);
            self.window = wider;
        }
        self.credit_at = now;
        self.receive_limit = self.receive_limit.max(read + self.window);
        self.credit_due = true;
        true
    }

    pub(crate) fn note_sent(&mut self, length: u64, now: Instant) {
        self.decay(now);
        self.lately += length;
    }

    pub(crate) fn queue_for(&mut self, now: Instant) -> Queued {
        self.decay(now);
        let is_bulk = self.lately > SPARSE_BYTES || self.send.unsent() > BACKLOG_BYTES;
        if is_bulk { Queued::Bulk } else { Queued::Sparse }
    }

    fn decay(&mut self, now: Instant) {
        let halves = now.saturating_duration_since(self.lately_at).as_millis() / HALF_LIFE.as_millis();
        if halves > 0 {
            self.lately = self.lately.checked_shr(halves.min(63) as u32).unwrap_or(0);
            self.lately_at = now;
        }
    }
}
