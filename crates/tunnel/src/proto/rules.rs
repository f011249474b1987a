//! One end before single frames: which are errors, which change nothing. A test is a list of frames.

use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::frame::Frame;
use super::mux::{FIRST_STREAMS, FIRST_WINDOW_BYTES, Limits, Outcome, Side};
use super::{Core, Received};

const HEARTBEAT: Duration = Duration::from_secs(5);

/// An end with one lane, to be told frames.
fn listener() -> (Core, Instant) {
    let now = Instant::now();
    let mut core = Core::new(Side::Home, Limits::default(), HEARTBEAT, now);
    core.add_lane(0, now);
    (core, now)
}

fn tell(core: &mut Core, now: Instant, frames: &[Frame]) -> Result<Received, super::frame::Broken> {
    let mut message = BytesMut::new();
    for frame in frames {
        frame.put(&mut message);
    }
    core.receive(0, message.freeze(), now)
}

fn data(stream: u64, offset: u64, length: usize) -> Frame {
    Frame::Data { stream, offset, bytes: Bytes::from(vec![7; length]) }
}

#[test]
fn frames_that_no_honest_end_sends_are_errors() {
    let window = FIRST_WINDOW_BYTES;
    let cases: Vec<(&str, Vec<Frame>)> = vec![
        ("beyond its credit", vec![data(1, window, 1)]),
        ("beyond its credit", vec![data(1, window - 10, 11)]),
        ("never opened", vec![data(0, 0, 1)]),
        ("number of this end", vec![Frame::Open { stream: 0, purpose: "x".into() }]),
        ("more streams than were granted", vec![data(FIRST_STREAMS * 2 + 1, 0, 1)]),
        ("after its end", vec![Frame::Fin { stream: 1, end: 5 }, data(1, 0, 6)]),
        ("ends where it cannot", vec![data(1, 0, 6), Frame::Fin { stream: 1, end: 5 }]),
        ("ends where it cannot", vec![Frame::Fin { stream: 1, end: window + 1 }]),
        ("ends twice", vec![Frame::Fin { stream: 1, end: 5 }, Frame::Fin { stream: 1, end: 6 }]),
        ("never sent", vec![Frame::LaneAck { received: 1, delay_us: 0 }]),
        ("never sent", vec![Frame::LaneGone { lane: 0, received: 1 }]),
    ];
    for (expected, frames) in cases {
        let (mut core, now) = listener();
        let error = tell(&mut core, now, &frames).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}; expected {expected}");
    }
}

#[test]
fn what_comes_twice_or_late_changes_nothing() {
    let (mut core, now) = listener();
    let open = Frame::Open { stream: 1, purpose: "x".into() };
    let frames = [
        data(1, 3, 3),
        open.clone(),
        data(1, 0, 4),
        data(1, 0, 4),
        open,
        Frame::Fin { stream: 1, end: 6 },
        Frame::Fin { stream: 1, end: 6 },
        data(1, 2, 4),
    ];
    tell(&mut core, now, &frames).unwrap();
    assert_eq!(core.mux.accept(), Some((1, "x".into())));
    assert_eq!(core.mux.accept(), None);
    let mut got = 0;
    let mut cx = Context::from_waker(Waker::noop());
    let mut put = |bytes: &[u8]| {
        got += bytes.len();
        bytes.len()
    };
    assert_eq!(core.mux.read(1, now, &mut cx, &mut put), Outcome::Done(6));
    assert_eq!(core.mux.read(1, now, &mut cx, &mut put), Outcome::Done(0));
    core.mux.finish(1);
    core.mux.release(1);
    let mut out = BytesMut::new();
    assert!(core.transmit(0, now, &mut out, Waker::noop()));
    tell(&mut core, now, &[Frame::LaneAck { received: out.len() as u64, delay_us: 0 }]).unwrap();
    assert!(core.mux.streams.is_empty());
    tell(&mut core, now, &[data(1, 0, 6), Frame::Reset { stream: 1 }, Frame::Credit { stream: 1, limit: 9 }])
        .unwrap();
    assert!(
        core.mux.streams.is_empty() && core.mux.accept().is_none(),
        "a stream of the past does not come back"
    );
}

/// Bytes of streams in what goes out on a lane now.
fn sent_on(core: &mut Core, lane: u64, now: Instant) -> usize {
    let (mut out, mut bytes) = (BytesMut::new(), 0);
    while core.transmit(lane, now, &mut out, Waker::noop()) {}
    let mut message = out.freeze();
    while let Some(frame) = super::frame::next(&mut message).unwrap() {
        if let Frame::Data { bytes: some, .. } = frame {
            bytes += some.len();
        }
    }
    bytes
}

#[test]
fn much_at_once_is_bulk_however_little_the_stream_said_lately() {
    let (mut core, now) = listener();
    core.add_lane(1, now);
    let mut cx = Context::from_waker(Waker::noop());
    let (small, much) = (core.mux.open("small", now).unwrap(), core.mux.open("much", now).unwrap());
    assert_eq!(core.mux.write(small, &[7; 1_000], now, &mut cx), Outcome::Done(1_000));
    assert_eq!(core.mux.write(much, &[7; 20_000], now, &mut cx), Outcome::Done(20_000));
    assert_eq!(sent_on(&mut core, 0, now), 1_000, "the lane for what is small");
    assert_eq!(sent_on(&mut core, 1, now), 20_000);
}
