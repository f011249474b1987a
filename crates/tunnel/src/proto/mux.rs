//! The streams of a link: opening, credit, order, ends, and in `turns` which of them may send next.
//!
//! In: calls of stream handles, frames, what lanes confirmed or lost. Out: frames into messages, wakers to wake.
//! Lanes are not known here.

use std::collections::{HashMap, VecDeque};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::frame::Broken;
use super::lane::Record;
use super::ranges::Ranges;
use super::stream::StreamState;

mod pass;
mod turns;

/// Credit that every stream has from the start.
pub(crate) const FIRST_WINDOW_BYTES: u64 = 256 * 1024;
/// Streams that each end may open before it is granted more.
pub(crate) const FIRST_STREAMS: u64 = 128;
/// Streams that each end may have open at one time.
pub(crate) const MAX_STREAMS: u64 = 512;
/// A message is closed when it reaches this size.
pub(crate) const MESSAGE_BYTES: usize = 128 * 1024;

/// What one end allows.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Largest credit of one stream.
    pub(crate) max_window: u64,
    /// What the credits of all streams of the link may exceed their first ones by.
    pub(crate) window_pool: u64,
    /// Bytes that a stream takes from its writer before they are sent.
    pub(crate) max_unsent: u64,
    /// Bytes of one stream, and of all streams of the link, that may be sent and not yet confirmed.
    pub(crate) max_unconfirmed_of_stream: u64,
    pub(crate) max_unconfirmed: u64,
    /// Streams that this end may have open at one time.
    pub(crate) max_open: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_window: 8 << 20,
            window_pool: 32 << 20,
            max_unsent: 128 << 10,
            max_unconfirmed_of_stream: 16 << 20,
            max_unconfirmed: 64 << 20,
            max_open: MAX_STREAMS as usize,
        }
    }
}

/// Which end of the link this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Home,
    Agent,
}

/// Answer to a stream handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// So many bytes moved; 0 for a read is the end.
    Done(usize),
    /// Nothing possible; the waker is kept.
    Wait,
    /// The stream was reset by the other end, or the link's session is over.
    Reset,
    /// Written after the end was announced.
    Finished,
}

#[derive(Debug)]
pub(crate) struct Mux {
    pub(crate) side: Side,
    pub(crate) limits: Limits,
    pub(crate) streams: HashMap<u64, StreamState>,
    /// How many streams this end opened, and how many it may.
    opened: u64,
    may_open: u64,
    own_alive: usize,
    waiting: VecDeque<u64>,
    /// Which streams of the other end have been seen, by number; how many it may open, and have been forgotten.
    seen: Ranges,
    seen_ever: u64,
    granted: u64,
    forgotten: u64,
    grant_due: bool,
    accept: VecDeque<u64>,
    control: VecDeque<u64>,
    sparse: VecDeque<u64>,
    bulk: VecDeque<u64>,
    /// Streams that wait until less is unconfirmed.
    parked: VecDeque<u64>,
    /// Bytes of all streams that were sent and are not confirmed.
    pub(crate) unconfirmed: u64,
    /// What credits exceed their first ones by.
    pool_used: u64,
    pub(crate) rtt: Duration,
    pub(crate) wakes: Vec<Waker>,
    /// There may be something to send.
    pub(crate) wants_lane: bool,
    /// A stream of the other end can be accepted.
    pub(crate) has_incoming: bool,
    /// The session is over; handles may still read what came.
    over: bool,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) bytes_repeated: u64,
}

impl Mux {
    pub(crate) fn new(side: Side, limits: Limits) -> Self {
        Mux {
            side,
            limits,
            streams: HashMap::new(),
            opened: 0,
            may_open: FIRST_STREAMS,
            own_alive: 0,
            waiting: VecDeque::new(),
            seen: Ranges::default(),
            seen_ever: 0,
            granted: FIRST_STREAMS,
            forgotten: 0,
            grant_due: false,
            accept: VecDeque::new(),
            control: VecDeque::new(),
            sparse: VecDeque::new(),
            bulk: VecDeque::new(),
            parked: VecDeque::new(),
            unconfirmed: 0,
            pool_used: 0,
            rtt: Duration::from_millis(50),
            wakes: Vec::new(),
            wants_lane: false,
            has_incoming: false,
            over: false,
            bytes_in: 0,
            bytes_out: 0,
            bytes_repeated: 0,
        }
    }

    fn own_bit(&self) -> u64 {
        u64::from(self.side == Side::Agent)
    }

    pub(crate) fn streams_ever(&self) -> u64 {
        self.opened + self.seen_ever
    }

    // ---- the handles' side ----

    /// Opens a stream; `None` when this end has its most open already.
    pub(crate) fn open(&mut self, purpose: &str, now: Instant) -> Option<u64> {
        if self.over || self.own_alive >= self.limits.max_open {
            return None;
        }
        let id = self.opened * 2 + self.own_bit();
        let may = self.opened < self.may_open;
        self.opened += 1;
        self.own_alive += 1;
        let mut stream = StreamState::new(now);
        stream.handle = true;
        stream.purpose = Some(purpose.to_owned());
        stream.open_due = may;
        stream.held_back = !may;
        self.streams.insert(id, stream);
        if may {
            self.queue_control(id);
        } else {
            self.waiting.push_back(id);
        }
        Some(id)
    }

    pub(crate) fn accept(&mut self) -> Option<(u64, String)> {
        while let Some(id) = self.accept.pop_front() {
            if let Some(stream) = self.streams.get_mut(&id) {
                return Some((id, stream.purpose.take().unwrap_or_default()));
            }
        }
        None
    }

    pub(crate) fn read(
        &mut self,
        id: u64,
        now: Instant,
        cx: &mut Context<'_>,
        put: impl FnMut(&[u8]) -> usize,
    ) -> Outcome {
        let Some(stream) = self.streams.get_mut(&id) else { return Outcome::Reset };
        if stream.peer_reset {
            return Outcome::Reset;
        }
        let count = stream.receive.read(put);
        if count > 0 {
            self.renew_credit(id, now);
            return Outcome::Done(count);
        }
        if stream.receive_end == Some(stream.receive.read_offset()) {
            return Outcome::Done(0);
        }
        if self.over && !stream.receive.has_unread() {
            return Outcome::Reset;
        }
        keep(&mut stream.reader, cx);
        Outcome::Wait
    }

    /// After a read: grants the sender more, if it is time.
    fn renew_credit(&mut self, id: u64, now: Instant) {
        let room = self.limits.window_pool.saturating_sub(self.pool_used);
        let Some(stream) = self.streams.get_mut(&id).filter(|_| !self.over) else { return };
        let before = stream.window;
        if stream.renew_credit(now, self.rtt, self.limits.max_window, room) {
            self.pool_used += stream.window - before;
            self.queue_control(id);
        }
    }

    /// How much a write would take now.
    pub(crate) fn room(&mut self, id: u64, cx: &Context<'_>) -> Outcome {
        let max_unsent = self.limits.max_unsent;
        let Some(stream) = self.streams.get_mut(&id) else { return Outcome::Reset };
        if stream.reset {
            return Outcome::Reset;
        }
        if stream.finished {
            return Outcome::Finished;
        }
        let room = max_unsent.saturating_sub(stream.send.unsent()) as usize;
        if room == 0 {
            stream.writer_waits = true;
            keep(&mut stream.writer, cx);
            return Outcome::Wait;
        }
        Outcome::Done(room)
    }

    pub(crate) fn write(&mut self, id: u64, data: &[u8], now: Instant, cx: &mut Context<'_>) -> Outcome {
        let room = match self.room(id, cx) {
            Outcome::Done(room) => room,
            Outcome::Wait if data.is_empty() => 0,
            no_room => return no_room,
        };
        let Some(stream) = self.streams.get_mut(&id) else { return Outcome::Reset };
        let count = room.min(data.len());
        stream.send.write(&data[..count]);
        self.schedule(id, now);
        Outcome::Done(count)
    }

    /// Announces the end of this direction.
    pub(crate) fn finish(&mut self, id: u64) -> Outcome {
        let Some(stream) = self.streams.get_mut(&id) else { return Outcome::Reset };
        if stream.reset {
            return Outcome::Reset;
        }
        if !stream.finished {
            stream.finished = true;
            if stream.fin_due() {
                self.queue_control(id);
            }
        }
        Outcome::Done(0)
    }

    /// The handle is gone: what it did not finish is reset, what it did not read is stopped.
    pub(crate) fn release(&mut self, id: u64) {
        if self.over {
            self.streams.remove(&id);
            return;
        }
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.handle = false;
        stream.reader = None;
        stream.writer = None;
        stream.outlet = None;
        if !stream.finished && !stream.reset {
            self.unconfirmed -= stream.send.unconfirmed();
            stream.start_reset();
        }
        if !stream.receive_done() {
            stream.stopped = true;
            stream.stop_due = stream.receive_end.is_none();
            stream.receive.clear();
        }
        self.queue_control(id);
        self.forget_if_done(id);
    }

    // ---- frames ----

    /// Finds a stream that a frame speaks of. A new one of the other end is made; one of the past is `None`.
    fn spoken_of(&mut self, id: u64, now: Instant) -> Result<Option<&mut StreamState>, Broken> {
        if self.streams.contains_key(&id) {
            return Ok(self.streams.get_mut(&id));
        }
        let index = id / 2;
        if id % 2 == self.own_bit() {
            return match index < self.opened {
                true => Ok(None),
                false => Err(Broken::Rule("a frame for a stream that was never opened")),
            };
        }
        if self.seen.contains(index) {
            return Ok(None);
        }
        if index >= self.granted {
            return Err(Broken::Rule("more streams than were granted"));
        }
        self.seen.insert(index..index + 1);
        self.seen_ever += 1;
        self.grant();
        Ok(Some(self.streams.entry(id).or_insert_with(|| StreamState::new(now))))
    }

    pub(crate) fn on_open(&mut self, id: u64, purpose: String, now: Instant) -> Result<(), Broken> {
        if id % 2 == self.own_bit() {
            return Err(Broken::Rule("the other end opened a stream with a number of this end"));
        }
        let Some(stream) = self.spoken_of(id, now)? else { return Ok(()) };
        if !stream.opened {
            stream.opened = true;
            stream.handle = true;
            stream.purpose = Some(purpose);
            self.accept.push_back(id);
            self.has_incoming = true;
        }
        Ok(())
    }

    pub(crate) fn on_data(&mut self, id: u64, offset: u64, bytes: Bytes, now: Instant) -> Result<(), Broken> {
        let Some(stream) = self.spoken_of(id, now)? else { return Ok(()) };
        let end = offset.checked_add(bytes.len() as u64).ok_or(Broken::BadField("DATA"))?;
        if end > stream.receive_limit {
            return Err(Broken::Rule("a stream went beyond its credit"));
        }
        if stream.receive_end.is_some_and(|last| end > last) {
            return Err(Broken::Rule("a stream went on after its end"));
        }
        if stream.stopped || stream.peer_reset {
            return Ok(());
        }
        let had = stream.receive.has_unread();
        let passed = stream.pass(offset, &bytes);
        let fresh = stream.receive.push(offset, bytes)?;
        let at_end = stream.receive_end == Some(stream.receive.read_offset());
        let wake = if (!had && stream.receive.has_unread()) || at_end { stream.reader.take() } else { None };
        self.bytes_in += passed + fresh;
        self.wakes.extend(wake);
        if passed > 0 {
            self.renew_credit(id, now);
        }
        Ok(())
    }

    pub(crate) fn on_fin(&mut self, id: u64, end: u64, now: Instant) -> Result<(), Broken> {
        let Some(stream) = self.spoken_of(id, now)? else { return Ok(()) };
        if end > stream.receive_limit || stream.receive.furthest() > end {
            return Err(Broken::Rule("a stream ends where it cannot"));
        }
        match stream.receive_end {
            Some(known) if known != end => {
                return Err(Broken::Rule("a stream ends twice, at different places"));
            }
            Some(_) => {}
            None => {
                stream.receive_end = Some(end);
                stream.stop_due = false;
                let wake = stream.reader.take();
                self.wakes.extend(wake);
                self.forget_if_done(id);
            }
        }
        Ok(())
    }

    pub(crate) fn on_reset(&mut self, id: u64, now: Instant) -> Result<(), Broken> {
        let Some(stream) = self.spoken_of(id, now)? else { return Ok(()) };
        if !stream.peer_reset {
            // What came whole before is not taken away from its reader.
            if stream.receive_end != Some(stream.receive.received()) {
                stream.peer_reset = true;
                stream.receive.clear();
            }
            stream.stop_due = false;
            let wakes = [stream.reader.take(), stream.writer.take()];
            self.wakes.extend(wakes.into_iter().flatten());
            self.forget_if_done(id);
        }
        Ok(())
    }

    pub(crate) fn on_stop(&mut self, id: u64, now: Instant) -> Result<(), Broken> {
        let Some(stream) = self.spoken_of(id, now)? else { return Ok(()) };
        if !stream.reset && !stream.send_done() {
            let unconfirmed = stream.send.unconfirmed();
            stream.start_reset();
            let wake = stream.writer.take();
            self.unconfirmed -= unconfirmed;
            self.wakes.extend(wake);
            self.queue_control(id);
        }
        Ok(())
    }

    pub(crate) fn on_credit(&mut self, id: u64, limit: u64, now: Instant) -> Result<(), Broken> {
        let Some(stream) = self.spoken_of(id, now)? else { return Ok(()) };
        if limit > stream.send_limit {
            stream.send_limit = limit;
            self.schedule(id, now);
        }
        Ok(())
    }

    pub(crate) fn on_streams(&mut self, limit: u64, now: Instant) {
        self.may_open = self.may_open.max(limit);
        while let Some(id) = self.waiting.front().copied()
            && id / 2 < self.may_open
        {
            self.waiting.pop_front();
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.held_back = false;
                stream.open_due = true;
                self.queue_control(id);
                self.schedule(id, now);
            }
        }
    }

    // ---- what lanes report ----

    pub(crate) fn on_confirmed(&mut self, record: Record, now: Instant) {
        let (Record::Data(id, _) | Record::Fin(id) | Record::Reset(id)) = record else { return };
        let Some(stream) = self.streams.get_mut(&id) else { return };
        match record {
            Record::Data(_, range) => {
                let before = stream.send.unconfirmed();
                stream.send.ack(range);
                self.unconfirmed -= before - stream.send.unconfirmed();
                self.schedule(id, now);
            }
            Record::Fin(_) => stream.fin_acked = true,
            _ => stream.reset_acked = true,
        }
        self.forget_if_done(id);
    }

    pub(crate) fn on_lost(&mut self, record: Record, now: Instant) {
        let id = match &record {
            Record::Streams => {
                self.grant_due = true;
                self.wants_lane = true;
                return;
            }
            // Told again when a lane is lost, whether or not it carried this.
            Record::LaneGone(_) => return,
            Record::Open(id)
            | Record::Data(id, _)
            | Record::Fin(id)
            | Record::Reset(id)
            | Record::Stop(id)
            | Record::Credit(id) => *id,
        };
        let Some(stream) = self.streams.get_mut(&id) else { return };
        match record {
            Record::Open(_) => stream.open_due = true,
            Record::Data(_, range) if !stream.reset => {
                self.bytes_repeated += range.end - range.start;
                stream.send.lose(range);
            }
            Record::Fin(_) => stream.fin_sent = false,
            Record::Reset(_) => stream.reset_due = true,
            Record::Stop(_) => stream.stop_due = !stream.receive_done(),
            Record::Credit(_) => stream.credit_due = true,
            _ => {}
        }
        self.unpark_one(id);
        self.queue_control(id);
        self.schedule(id, now);
    }

    /// The session is over: every handle is woken and hears of a reset.
    pub(crate) fn end(&mut self) {
        for id in std::mem::take(&mut self.accept) {
            self.streams.remove(&id);
        }
        self.streams.retain(|_, stream| stream.handle);
        for stream in self.streams.values_mut() {
            stream.reset = true;
            stream.send.clear();
            self.wakes.extend(stream.reader.take());
            self.wakes.extend(stream.writer.take());
        }
        self.over = true;
        for queue in
            [&mut self.control, &mut self.sparse, &mut self.bulk, &mut self.parked, &mut self.waiting]
        {
            queue.clear();
        }
        self.unconfirmed = 0;
        self.own_alive = 0;
        self.has_incoming = true;
    }

    fn forget_if_done(&mut self, id: u64) {
        let Some(stream) = self.streams.get(&id) else { return };
        if !stream.is_over() {
            return;
        }
        self.pool_used -= stream.window - FIRST_WINDOW_BYTES;
        let held_back = stream.held_back;
        self.streams.remove(&id);
        if id % 2 == self.own_bit() {
            self.own_alive -= 1;
            if held_back {
                self.waiting.retain(|other| *other != id);
            }
        } else {
            self.forgotten += 1;
            self.grant();
        }
    }

    /// Grants more streams as those granted are used, up to the most at one time.
    fn grant(&mut self) {
        let open = self.seen_ever - self.forgotten;
        let granted = self.forgotten + (open + FIRST_STREAMS).min(MAX_STREAMS);
        let few_left = self.granted - self.seen_ever < FIRST_STREAMS / 4;
        if granted >= self.granted + FIRST_STREAMS / 4 || (few_left && granted > self.granted) {
            self.granted = granted;
            self.grant_due = true;
            self.wants_lane = true;
        }
    }

    // ---- what goes out ----
}

fn keep(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) if waker.will_wake(cx.waker()) => {}
        _ => *slot = Some(cx.waker().clone()),
    }
}
