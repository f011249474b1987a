//! Two ends joined by simulated lanes that are late, break, and are noticed broken at different times. No socket, no
//! clock: a test is a list of steps.
#![allow(clippy::unwrap_used, reason = "for tests and the fuzzer alone: this is how they fail")]

use std::collections::{BTreeMap, VecDeque};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::lane::Health;
use super::mux::{Limits, MAX_STREAMS, Outcome, Side};
use super::stream::CHUNK_BYTES;
use super::{Core, Received};

pub(super) const HEARTBEAT: Duration = Duration::from_secs(5);

pub(super) struct Pipe {
    pub(super) latency: Duration,
    pub(super) broken: bool,
    /// Whether each end still thinks that the lane is up.
    pub(super) known: [bool; 2],
    /// When each end notices the break by itself.
    pub(super) notice: [Option<Instant>; 2],
    /// What is under way to each end.
    pub(super) to: [VecDeque<(Instant, Bytes)>; 2],
}

/// What a handle did with its stream so far.
#[derive(Default)]
pub(super) struct Handle {
    pub(super) written: u64,
    pub(super) finished: bool,
    pub(super) read: u64,
    pub(super) ended: bool,
    pub(super) reset: bool,
}

pub(crate) struct World {
    pub(super) now: Instant,
    pub(super) ends: [Core; 2],
    pub(super) handles: [BTreeMap<u64, Handle>; 2],
    pub(super) pipes: BTreeMap<u64, Pipe>,
    pub(super) next_lane: u64,
    pub(super) delivered: u64,
}

pub(super) fn byte_at(id: u64, from: usize, offset: u64) -> u8 {
    (offset.wrapping_mul(31) ^ (offset >> 9) ^ id.wrapping_mul(101) ^ from as u64) as u8
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(Limits::default())
    }

    pub(crate) fn with(limits: Limits) -> Self {
        let now = Instant::now();
        let end = |side| Core::new(side, limits.clone(), HEARTBEAT, now);
        World {
            now,
            ends: [end(Side::Home), end(Side::Agent)],
            handles: Default::default(),
            pipes: BTreeMap::new(),
            next_lane: 0,
            delivered: 0,
        }
    }

    pub(crate) fn add_lane(&mut self, latency: Duration) -> u64 {
        let id = self.next_lane;
        self.next_lane += 1;
        for end in &mut self.ends {
            assert!(end.add_lane(id, self.now));
            end.drop_silent_lanes(self.now);
        }
        let pipe =
            Pipe { latency, broken: false, known: [true; 2], notice: [None; 2], to: Default::default() };
        self.pipes.insert(id, pipe);
        id
    }

    /// A lane breaks; what is under way is lost. Each end notices after its delay, or by silence.
    pub(crate) fn cut(&mut self, id: u64, notice: [Option<Duration>; 2]) {
        if let Some(pipe) = self.pipes.get_mut(&id) {
            pipe.broken = true;
            pipe.to.iter_mut().for_each(VecDeque::clear);
            pipe.notice = notice.map(|delay| delay.map(|delay| self.now + delay));
        }
    }

    pub(crate) fn open(&mut self, side: usize) -> Option<u64> {
        let id = self.ends[side].mux.open("test", self.now)?;
        self.handles[side].insert(id, Handle::default());
        Some(id)
    }

    pub(crate) fn write(&mut self, side: usize, id: u64, length: usize) {
        let Some(handle) = self.handles[side].get_mut(&id) else { return };
        if handle.finished {
            return;
        }
        let data: Vec<u8> = (0..length as u64).map(|n| byte_at(id, side, handle.written + n)).collect();
        let mut cx = Context::from_waker(Waker::noop());
        match self.ends[side].mux.write(id, &data, self.now, &mut cx) {
            Outcome::Done(count) => handle.written += count as u64,
            Outcome::Reset => handle.reset = true,
            Outcome::Wait | Outcome::Finished => {}
        }
    }

    pub(crate) fn finish(&mut self, side: usize, id: u64) {
        if let Some(handle) = self.handles[side].get_mut(&id) {
            handle.finished = true;
            self.ends[side].mux.finish(id);
        }
    }

    pub(crate) fn read(&mut self, side: usize, id: u64, most: usize) {
        let Some(handle) = self.handles[side].get_mut(&id) else { return };
        let (mut room, mut offset) = (most, handle.read);
        let mut cx = Context::from_waker(Waker::noop());
        let outcome = self.ends[side].mux.read(id, self.now, &mut cx, |bytes| {
            let count = bytes.len().min(room);
            for byte in &bytes[..count] {
                assert_eq!(*byte, byte_at(id, 1 - side, offset), "stream {id} at {offset}");
                offset += 1;
            }
            room -= count;
            count
        });
        handle.read = offset;
        match outcome {
            Outcome::Done(0) => handle.ended = true,
            Outcome::Reset => handle.reset = true,
            _ => {}
        }
    }

    pub(crate) fn release(&mut self, side: usize, id: u64) {
        if self.handles[side].remove(&id).is_some() {
            self.ends[side].mux.release(id);
        }
    }

    /// Lets time pass and everything happen that happens by itself.
    pub(crate) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            while self.settle() {}
            let next = self.next_event().filter(|next| *next <= until);
            match next {
                Some(next) => self.now = next.max(self.now + Duration::from_micros(50)).min(until),
                None => break,
            }
            if self.now >= until {
                break;
            }
        }
        self.now = until;
        while self.settle() {}
    }

    pub(crate) fn next_event(&self) -> Option<Instant> {
        let mut events = Vec::new();
        for (id, pipe) in &self.pipes {
            for side in 0..2 {
                events.extend(pipe.to[side].front().map(|(at, _)| *at));
                events.extend(pipe.notice[side]);
                if pipe.known[side] {
                    events.extend(self.ends[side].next_look(*id, false));
                }
            }
        }
        events.into_iter().min()
    }

    /// Everything that can happen at this moment; says whether anything did.
    pub(crate) fn settle(&mut self) -> bool {
        let mut happened = false;
        for id in self.pipes.keys().copied().collect::<Vec<_>>() {
            for side in 0..2 {
                let pipe = self.pipes.get_mut(&id).unwrap();
                if !pipe.known[side] {
                    continue;
                }
                let noticed = pipe.notice[side].is_some_and(|at| at <= self.now);
                if noticed || self.ends[side].check(id, self.now) == Health::Dead {
                    pipe.known[side] = false;
                    pipe.notice[side] = None;
                    pipe.to[side].clear();
                    // Like a socket: the other end sees it close, later.
                    if !pipe.broken {
                        pipe.broken = true;
                        pipe.notice[1 - side] = Some(self.now + pipe.latency);
                    }
                    self.ends[side].lose_lane(id, self.now);
                    happened = true;
                    continue;
                }
                while let Some((_, message)) = pipe.to[side].pop_front_if(|(at, _)| *at <= self.now) {
                    self.delivered += message.len() as u64;
                    happened = true;
                    let received = self.ends[side].receive(id, message, self.now).expect("honest ends");
                    if received == Received::NoLane {
                        break;
                    }
                }
                let mut out = BytesMut::new();
                while self.ends[side].transmit(id, self.now, &mut out, Waker::noop()) {
                    happened = true;
                    let message = out.split().freeze();
                    assert!(message.len() <= 256 * 1024);
                    if !pipe.broken {
                        let after_last = pipe.to[1 - side].back().map_or(self.now, |(at, _)| *at);
                        pipe.to[1 - side].push_back(((self.now + pipe.latency).max(after_last), message));
                    }
                }
            }
        }
        for side in 0..2 {
            while let Some((id, purpose)) = self.ends[side].mux.accept() {
                assert_eq!(purpose, "test");
                self.handles[side].insert(id, Handle::default());
                happened = true;
            }
        }
        happened
    }

    /// No end holds more than credit allows.
    pub(crate) fn check_memory(&self) {
        for end in &self.ends {
            for stream in end.mux.streams.values() {
                assert!(stream.receive.held() <= stream.receive_limit - stream.receive.read_offset());
                assert!(stream.window <= end.mux.limits.max_window);
                assert!(stream.send.unconfirmed() <= end.mux.limits.max_unconfirmed_of_stream);
            }
            let unconfirmed: u64 = end.mux.streams.values().map(|stream| stream.send.unconfirmed()).sum();
            assert_eq!(unconfirmed, end.mux.unconfirmed);
            assert!(unconfirmed < end.mux.limits.max_unconfirmed + CHUNK_BYTES as u64);
            assert!(end.mux.streams.len() <= end.mux.limits.max_open + MAX_STREAMS as usize);
        }
    }

    /// Ends every stream in order on a good lane and checks that nothing is missing, and nothing left behind.
    pub(crate) fn finish_all(&mut self) {
        self.pass(Duration::from_secs(20));
        self.add_lane(Duration::from_millis(10));
        for side in 0..2 {
            for id in self.handles[side].keys().copied().collect::<Vec<_>>() {
                self.finish(side, id);
            }
        }
        for round in 0.. {
            assert!(round < 3_000, "the ends hang");
            let mut waits = false;
            for side in 0..2 {
                for id in self.handles[side].keys().copied().collect::<Vec<_>>() {
                    self.finish(side, id);
                    self.read(side, id, 1 << 20);
                    let handle = &self.handles[side][&id];
                    waits |= !handle.ended && !handle.reset;
                }
            }
            self.check_memory();
            self.pass(Duration::from_millis(100));
            if !waits {
                break;
            }
        }
        for side in 0..2 {
            for (id, handle) in &self.handles[side] {
                if let Some(other) = self.handles[1 - side].get(id)
                    && !handle.reset
                    && !other.reset
                {
                    assert_eq!(handle.read, other.written, "stream {id}");
                }
            }
            for id in self.handles[side].keys().copied().collect::<Vec<_>>() {
                self.release(side, id);
            }
        }
        self.pass(Duration::from_secs(2));
        for (side, end) in self.ends.iter().enumerate() {
            let left: Vec<_> = end.mux.streams.iter().collect();
            assert!(left.is_empty(), "end {side} keeps {left:?}");
            assert!(end.gone.values().all(super::lane::Gone::is_settled), "end {side}: {:?}", end.gone);
        }
    }
}

/// What may happen to the two ends.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// A stream, by this side.
    Open(usize),
    Write(usize, usize, usize),
    Read(usize, usize, usize),
    Finish(usize, usize),
    Release(usize, usize),
    Lane(u64),
    Cut(usize, Option<u64>, Option<u64>),
    Pass(u64),
}

impl World {
    pub(crate) fn take(&mut self, step: Step) {
        let nth = |keys: Vec<u64>, n: usize| (!keys.is_empty()).then(|| keys[n % keys.len()]);
        match step {
            Step::Open(side) => {
                self.open(side);
            }
            Step::Write(side, n, length) => {
                if let Some(id) = nth(self.handles[side].keys().copied().collect(), n) {
                    self.write(side, id, length);
                }
            }
            Step::Read(side, n, most) => {
                if let Some(id) = nth(self.handles[side].keys().copied().collect(), n) {
                    self.read(side, id, most);
                }
            }
            Step::Finish(side, n) => {
                if let Some(id) = nth(self.handles[side].keys().copied().collect(), n) {
                    self.finish(side, id);
                }
            }
            Step::Release(side, n) => {
                if let Some(id) = nth(self.handles[side].keys().copied().collect(), n) {
                    self.release(side, id);
                }
            }
            Step::Lane(latency_ms) => {
                self.add_lane(Duration::from_millis(latency_ms));
            }
            Step::Cut(n, a, b) => {
                let up = self.pipes.iter().filter(|(_, pipe)| !pipe.broken).map(|(id, _)| *id).collect();
                if let Some(id) = nth(up, n) {
                    self.cut(id, [a.map(Duration::from_millis), b.map(Duration::from_millis)]);
                }
            }
            Step::Pass(ms) => self.pass(Duration::from_millis(ms)),
        }
        self.check_memory();
    }
}
