//! The protocol of one session between two ends, as a state machine: given messages, losses and the time, it says
//! what to send on which lane and when to look again. No sockets, no clock, no runtime.
//!
//! Every frame may come twice or late; what was sent on a lane is kept until the other end confirmed it (LANE_ACK),
//! and when a lane is lost both ends say how much of it arrived (LANE_GONE) and send the rest on another one. So a
//! resume is nothing but a lane that came back.

pub(crate) mod frame;
pub(crate) mod handshake;
pub(crate) mod lane;
pub(crate) mod mux;
pub(crate) mod outlet;
pub(crate) mod pace;
pub(crate) mod ranges;
pub(crate) mod receive;
#[cfg(test)]
mod rules;
pub(crate) mod send;
#[cfg(test)]
mod simulation;
pub(crate) mod stream;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod world;

use std::collections::BTreeMap;
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use frame::{Broken, CloseKind, Frame};
use lane::{Gone, Health, Lane, Record};
use mux::{Limits, Mux, Side};

/// An acknowledgement waits this long for company, or for this many bytes: well below the least bound of a lane, or
/// a sender at its bound would wait for an end that waits for more.
const ACK_DELAY: Duration = Duration::from_millis(10);
const ACK_BYTES: u64 = 8 * 1024;
/// Sparse streams and control may go beyond a lane's bound by this.
const HEADROOM_BYTES: u64 = 64 * 1024;
/// Lanes remembered after their end.
const MAX_GONE: usize = 128;
/// With so many good lanes all that is small goes over two of them.
const COPIED_FROM_LANES: usize = 4;
/// What waits for the second of them. More is not copied: that lane does not get rid of it.
const MAX_COPIED_BYTES: usize = 64 * 1024;

/// Why a session is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// The link is over with it; else the agent end may begin another session.
    pub(crate) for_good: bool,
    pub(crate) reason: String,
}

/// What a message did beside what streams notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// Nothing that the lane's shell must know.
    Nothing,
    /// The lane is no longer part of the session.
    NoLane,
    /// The other end closes this lane and wants to be dialled again.
    Away,
}

/// One end of a session.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) mux: Mux,
    lanes: BTreeMap<u64, Lane>,
    gone: BTreeMap<u64, Gone>,
    /// Lanes below this are settled and forgotten.
    forgotten_lanes: u64,
    heartbeat: Duration,
    born: Instant,
    goodbye: Option<(CloseKind, String)>,
    ended: Option<Ended>,
    /// Since when no lane is good; since when there is none at all.
    cut_since: Option<Instant>,
    bare_since: Instant,
    /// What `good_lanes`, `cut_since` or `ended` say has changed.
    pub(crate) changed: bool,
    pub(crate) lanes_ever: u64,
    pub(crate) resumes: u64,
    records: Vec<Record>,
    /// Small frames that went over the first lane and go over the second one, too.
    copies: BytesMut,
}

impl Core {
    pub(crate) fn new(side: Side, limits: Limits, heartbeat: Duration, now: Instant) -> Self {
        Core {
            mux: Mux::new(side, limits),
            lanes: BTreeMap::new(),
            gone: BTreeMap::new(),
            forgotten_lanes: 0,
            heartbeat,
            born: now,
            goodbye: None,
            ended: None,
            cut_since: None,
            bare_since: now,
            changed: false,
            lanes_ever: 0,
            resumes: 0,
            records: Vec::new(),
            copies: BytesMut::new(),
        }
    }

    // ---- what the owner asks ----

    pub(crate) fn ended(&self) -> Option<&Ended> {
        self.ended.as_ref()
    }

    /// Lanes that can be relied on.
    pub(crate) fn good_lanes(&self) -> usize {
        self.lanes.values().filter(|lane| lane.health == Health::Good).count()
    }

    /// Their numbers, eldest first.
    pub(crate) fn good_lane_ids(&self) -> Vec<u64> {
        self.lanes.iter().filter(|(_, lane)| lane.health == Health::Good).map(|(id, _)| *id).collect()
    }

    /// Lanes of any health.
    pub(crate) fn lane_count(&self) -> usize {
        self.lanes.len()
    }

    /// Since when no lane is good; `None` while one is, or before the first.
    pub(crate) fn cut_since(&self) -> Option<Instant> {
        self.cut_since
    }

    /// Since when there is no lane, however bad.
    pub(crate) fn bare_since(&self) -> Option<Instant> {
        self.lanes.is_empty().then_some(self.bare_since)
    }

    /// The shortest smoothed round trip of the lanes.
    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.lanes.values().filter_map(|lane| lane.pace.rtt()).min()
    }

    /// Ends the session; streams hear of it at once, the other end as soon as a lane can tell.
    pub(crate) fn end(&mut self, kind: CloseKind, reason: &str) {
        if self.ended.is_some() {
            return;
        }
        self.ended = Some(Ended { for_good: kind == CloseKind::Link, reason: reason.to_owned() });
        self.goodbye = Some((kind, reason.to_owned()));
        self.finish_ending();
    }

    /// Ends the session because the other end said so, or can no longer be asked.
    pub(crate) fn end_quietly(&mut self, for_good: bool, reason: &str) {
        if self.ended.is_none() {
            self.ended = Some(Ended { for_good, reason: reason.to_owned() });
            self.finish_ending();
        }
    }

    fn finish_ending(&mut self) {
        self.mux.end();
        self.changed = true;
        self.mux.wants_lane = true;
    }

    /// Asks the other end to dial again: said on every lane.
    pub(crate) fn say_away(&mut self, reason: &str) {
        if self.goodbye.is_none() {
            self.goodbye = Some((CloseKind::Away, reason.to_owned()));
            self.mux.wants_lane = true;
        }
    }

    /// Wakes lanes that wait for something to send.
    pub(crate) fn wake_lanes(&mut self) {
        for lane in self.lanes.values_mut() {
            self.mux.wakes.extend(lane.waker.take());
        }
    }

    // ---- lanes come and go ----

    /// A lane came up. Refused when it is known as gone, or after the end.
    pub(crate) fn add_lane(&mut self, id: u64, now: Instant) -> bool {
        let known = self.lanes.contains_key(&id) || self.gone.contains_key(&id) || id < self.forgotten_lanes;
        if known || self.ended.is_some() {
            return false;
        }
        if self.lanes_ever > 0 && self.good_lanes() == 0 {
            self.resumes += 1;
        }
        self.lanes_ever += 1;
        self.lanes.insert(id, Lane::new(now));
        self.cut_since = None;
        self.changed = true;
        self.mux.wants_lane = true;
        true
    }

    /// A lane is over, for whatever reason.
    pub(crate) fn lose_lane(&mut self, id: u64, now: Instant) {
        let Some(mut lane) = self.lanes.remove(&id) else { return };
        self.mux.wakes.extend(lane.waker.take());
        let gone = Gone { received: lane.received, sent: Some(lane.sent), tell: true, told: false };
        self.gone.insert(id, gone);
        // What was told on this lane may be lost with it. Waiting for the other end to say so could be in vain: it may
        // be waiting likewise.
        for gone in self.gone.values_mut() {
            gone.tell = !gone.told;
        }
        if self.lanes.is_empty() {
            self.bare_since = now;
        }
        self.note_health(now);
        self.mux.wants_lane = true;
        self.changed = true;
        self.forget_lanes();
    }

    /// Silent lanes go as soon as a good one is there.
    pub(crate) fn drop_silent_lanes(&mut self, now: Instant) {
        let silent: Vec<u64> =
            self.lanes.iter().filter(|(_, lane)| lane.health != Health::Good).map(|(id, _)| *id).collect();
        for id in silent {
            self.lose_lane(id, now);
        }
    }

    fn note_health(&mut self, now: Instant) {
        match self.good_lanes() {
            0 if self.cut_since.is_none() && self.lanes_ever > 0 => self.cut_since = Some(now),
            0 => {}
            _ => self.cut_since = None,
        }
        self.changed = true;
        // Another lane may be the one for control and small streams.
        self.mux.wants_lane = true;
    }

    fn on_lane_gone(&mut self, id: u64, received: u64, now: Instant) -> Result<(), Broken> {
        if self.lanes.contains_key(&id) {
            self.lose_lane(id, now);
        }
        if id < self.forgotten_lanes {
            return Ok(());
        }
        // A lane that never came up at this end: nothing of it arrived here.
        let gone = self.gone.entry(id).or_insert(Gone { received: 0, sent: None, tell: true, told: false });
        if gone.tell {
            self.mux.wants_lane = true;
        }
        if let Some(mut sent) = gone.sent.take() {
            let mut confirmed = Vec::new();
            sent.confirm(received, |record| confirmed.push(record))?;
            for record in confirmed {
                confirm(&mut self.mux, &mut self.gone, record, now);
            }
            for record in sent.into_unconfirmed() {
                self.mux.on_lost(record, now);
            }
            self.mux.wants_lane = true;
        }
        self.forget_lanes();
        Ok(())
    }

    fn forget_lanes(&mut self) {
        while self.gone.len() > MAX_GONE
            && let Some((id, gone)) = self.gone.first_key_value()
            && gone.is_settled()
        {
            self.forgotten_lanes = self.forgotten_lanes.max(id + 1);
            self.gone.pop_first();
        }
        if self.gone.len() > MAX_GONE * 2 {
            self.end(CloseKind::Protocol, "too many lanes were lost and never settled");
        }
    }

    // ---- time ----

    /// Looks at a lane's silence. Says its health.
    pub(crate) fn check(&mut self, id: u64, now: Instant) -> Health {
        let heartbeat = self.heartbeat;
        let Some(lane) = self.lanes.get_mut(&id) else { return Health::Dead };
        let health = lane.verdict(now, heartbeat);
        if health != lane.health {
            lane.health = health;
            self.note_health(now);
        }
        health
    }

    fn ping_at(&self, lane: &Lane) -> Instant {
        // The agent end asks; the home end, which has many, only if it does not.
        let idle = if self.mux.side == Side::Agent { self.heartbeat } else { self.heartbeat * 3 / 2 };
        match lane.ping_sent {
            Some(sent) => sent.max(lane.last_heard) + idle,
            None => lane.last_heard + idle,
        }
    }

    /// When to look at a lane again if nothing happens on it; `blocked` when its socket takes nothing.
    pub(crate) fn next_look(&self, id: u64, blocked: bool) -> Option<Instant> {
        let lane = self.lanes.get(&id)?;
        let ping = self.ping_at(lane);
        let verdict = lane.next_verdict(self.heartbeat);
        if blocked {
            return Some(verdict);
        }
        Some([lane.ack_due.unwrap_or(ping), ping, verdict].into_iter().min().unwrap_or(ping))
    }

    // ---- messages ----

    /// Takes a message that came in on a lane. An error ends the session.
    pub(crate) fn receive(&mut self, id: u64, mut message: Bytes, now: Instant) -> Result<Received, Broken> {
        let size = message.len() as u64;
        let Some(lane) = self.lanes.get_mut(&id) else { return Ok(Received::NoLane) };
        lane.last_heard = now;
        if lane.health != Health::Good {
            lane.health = Health::Good;
            self.note_health(now);
        }
        let mut answer = Received::Nothing;
        let mut wants_ack = false;
        while let Some(frame) = frame::next(&mut message)? {
            if self.ended.is_some() {
                return Ok(Received::Nothing);
            }
            wants_ack |= !matches!(
                frame,
                Frame::Ping { .. } | Frame::Pong { .. } | Frame::LaneAck { .. } | Frame::Close { .. }
            );
            match frame {
                Frame::Open { stream, purpose } => self.mux.on_open(stream, purpose, now)?,
                Frame::Data { stream, offset, bytes } => self.mux.on_data(stream, offset, bytes, now)?,
                Frame::Fin { stream, end } => self.mux.on_fin(stream, end, now)?,
                Frame::Reset { stream } => self.mux.on_reset(stream, now)?,
                Frame::Stop { stream } => self.mux.on_stop(stream, now)?,
                Frame::Credit { stream, limit } => self.mux.on_credit(stream, limit, now)?,
                Frame::Streams { limit } => self.mux.on_streams(limit, now),
                Frame::LaneGone { lane, received } => self.on_lane_gone(lane, received, now)?,
                Frame::Ping { echo } => {
                    if let Some(lane) = self.lanes.get_mut(&id) {
                        lane.pong = Some(echo);
                    }
                }
                Frame::Pong { echo } => self.on_pong(id, echo, now),
                Frame::LaneAck { received, delay_us } => self.on_lane_ack(id, received, delay_us, now)?,
                Frame::Close { kind: CloseKind::Away, .. } => answer = Received::Away,
                Frame::Close { kind, reason } => {
                    self.end_quietly(kind == CloseKind::Link, &reason);
                    return Ok(Received::Nothing);
                }
            }
        }
        let Some(lane) = self.lanes.get_mut(&id) else { return Ok(Received::NoLane) };
        lane.received += size;
        lane.last_arrival = now;
        if wants_ack {
            lane.unacknowledged += size;
            if lane.ack_due.is_none() {
                lane.ack_due = Some(now + ACK_DELAY);
            }
        }
        Ok(answer)
    }

    fn on_pong(&mut self, id: u64, echo: u64, now: Instant) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let age = now.saturating_duration_since(self.born);
        if lane.ping_sent.take().is_some()
            && let Some(trip) = age.checked_sub(Duration::from_micros(echo))
        {
            lane.pace.trip(now, trip);
            self.mux.rtt = lane.pace.rtt().unwrap_or(trip);
        }
    }

    fn on_lane_ack(&mut self, id: u64, received: u64, delay_us: u64, now: Instant) -> Result<(), Broken> {
        let Some(lane) = self.lanes.get_mut(&id) else { return Ok(()) };
        let (mux, gone) = (&mut self.mux, &mut self.gone);
        if let Some((bytes, last)) = lane.sent.confirm(received, |record| confirm(mux, gone, record, now))? {
            lane.pace.arrived(now, bytes, last, Duration::from_micros(delay_us));
            mux.rtt = lane.pace.rtt().unwrap_or(mux.rtt);
        }
        self.forget_lanes();
        Ok(())
    }

    /// Writes the next message for a lane, if there is one; else keeps the waker. At most one message per call.
    pub(crate) fn transmit(&mut self, id: u64, now: Instant, out: &mut BytesMut, waker: &Waker) -> bool {
        let express = self.express_lane();
        let good = self.good_lanes();
        let second = self.second_lane(good);
        if second.is_none() {
            self.copies = BytesMut::new();
        }
        let ping_due = self.lanes.get(&id).is_some_and(|lane| now >= self.ping_at(lane));
        let Some(lane) = self.lanes.get_mut(&id) else { return false };
        let start = out.len();

        if lane.unacknowledged > 0 {
            let delay = now.saturating_duration_since(lane.last_arrival).as_micros() as u64;
            frame::put_numbers(out, frame::LANE_ACK, &[lane.received, delay]);
        }
        let ack_end = out.len();
        if let Some(echo) = lane.pong.take() {
            frame::put_numbers(out, frame::PONG, &[echo]);
        }
        if ping_due {
            lane.ping_sent = Some(now);
            let echo = now.saturating_duration_since(self.born).as_micros() as u64;
            frame::put_numbers(out, frame::PING, &[echo]);
        }
        if let Some((kind, reason)) = &self.goodbye
            && !lane.said_close
        {
            lane.said_close = true;
            frame::put_close(out, *kind, reason);
        }
        let usable = self.ended.is_none() && (lane.health == Health::Good || good == 0);
        if usable {
            let (in_flight, bound) = (lane.sent.in_flight(), lane.pace.bound());
            let sparse_room = (bound + HEADROOM_BYTES).saturating_sub(in_flight);
            let bulk_room = bound.saturating_sub(in_flight).min(lane.pace.message_bytes());
            if express == Some(id) {
                let small = out.len();
                for (lane, gone) in self.gone.iter_mut().filter(|(_, gone)| gone.tell) {
                    gone.tell = false;
                    frame::put_numbers(out, frame::LANE_GONE, &[*lane, gone.received]);
                    self.records.push(Record::LaneGone(*lane));
                }
                self.mux.fill_control(out, &mut self.records);
                if sparse_room > 0 {
                    self.mux.fill_sparse(out, &mut self.records, sparse_room, now);
                }
                if second.is_some() && self.copies.len() + out.len() - small <= MAX_COPIED_BYTES {
                    self.copies.extend_from_slice(&out[small..]);
                    self.mux.wants_lane |= !self.copies.is_empty();
                }
            }
            if second == Some(id) {
                // Not recorded: it is the first lane that has to bring it.
                out.extend_from_slice(&std::mem::take(&mut self.copies));
            } else if (good <= 1 || express != Some(id)) && bulk_room > 0 {
                self.mux.fill_bulk(out, &mut self.records, bulk_room, now);
            }
        }

        let ack_now = lane.unacknowledged >= ACK_BYTES || lane.ack_due.is_some_and(|due| now >= due);
        if out.len() == ack_end && !ack_now {
            out.truncate(start);
            lane.keep(waker);
            return false;
        }
        lane.unacknowledged = 0;
        lane.ack_due = None;
        let bytes = (out.len() - start) as u64;
        let departure = lane.pace.depart(now, lane.sent.in_flight());
        lane.sent.push(bytes, &mut self.records, departure);
        true
    }

    /// Whether there is nothing left to carry but a goodbye.
    pub(crate) fn is_over(&self) -> bool {
        self.ended.is_some() || self.goodbye.is_some()
    }

    /// The lane's socket takes nothing: keeps the waker for what else may happen to the lane.
    pub(crate) fn keep_waker(&mut self, id: u64, waker: &Waker) {
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.keep(waker);
        }
    }

    /// Whether a lane's shell should end, once what it has is flushed: the lane is no longer part of the session,
    /// or there was a goodbye and it has been said.
    pub(crate) fn is_leaving(&self, id: u64) -> bool {
        match (self.lanes.get(&id), &self.goodbye) {
            (None, _) => true,
            (Some(lane), Some(_)) => lane.said_close,
            (Some(_), None) => self.ended.is_some(),
        }
    }

    /// The lane for control and sparse streams: the eldest good one.
    fn express_lane(&self) -> Option<u64> {
        let good = self.lanes.iter().find(|(_, lane)| lane.health == Health::Good);
        good.or_else(|| self.lanes.first_key_value()).map(|(id, _)| *id)
    }

    /// The lane that carries all that is small once more, and no bulk. A link has so many lanes only where a single
    /// one carries less, because segments are lost: what waits behind a lost one on the first lane comes by this.
    fn second_lane(&self, good: usize) -> Option<u64> {
        let mut eldest = self.lanes.iter().filter(|(_, lane)| lane.health == Health::Good);
        if good >= COPIED_FROM_LANES { eldest.nth(1).map(|(id, _)| *id) } else { None }
    }

    /// Bytes on their way on a lane and the bound on them.
    #[cfg(test)]
    pub(crate) fn in_flight(&self, id: u64) -> (u64, u64) {
        self.lanes.get(&id).map_or((0, 0), |lane| (lane.sent.in_flight(), lane.pace.bound()))
    }
}

/// Passes on what a lane confirmed.
fn confirm(mux: &mut Mux, gone: &mut BTreeMap<u64, Gone>, record: Record, now: Instant) {
    match record {
        Record::LaneGone(id) => {
            if let Some(gone) = gone.get_mut(&id) {
                gone.told = true;
            }
        }
        record => mux.on_confirmed(record, now),
    }
}
