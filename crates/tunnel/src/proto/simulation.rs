//! What must hold for two ends whatever happens to their lanes; see [`super::world`].

use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use proptest::prelude::*;

use super::Core;
use super::frame::{CloseKind, Frame};
use super::mux::{FIRST_WINDOW_BYTES, Limits, MAX_STREAMS, Side};
use super::stream::CHUNK_BYTES;
use super::world::{HEARTBEAT, Step, World};

fn step() -> impl Strategy<Value = Step> {
    let side = 0usize..2;
    let which = 0usize..8;
    let notice = || prop_oneof![Just(None), (0u64..3_000).prop_map(Some)];
    prop_oneof![
        3 => side.clone().prop_map(Step::Open),
        8 => (side.clone(), which.clone(), prop_oneof![1usize..200, 1usize..200_000])
            .prop_map(|(s, w, n)| Step::Write(s, w, n)),
        8 => (side.clone(), which.clone(), 1usize..400_000).prop_map(|(s, w, n)| Step::Read(s, w, n)),
        1 => (side.clone(), which.clone()).prop_map(|(s, w)| Step::Finish(s, w)),
        1 => (side, which.clone()).prop_map(|(s, w)| Step::Release(s, w)),
        2 => (0u64..200).prop_map(Step::Lane),
        2 => (which, notice(), notice()).prop_map(|(w, a, b)| Step::Cut(w, a, b)),
        6 => prop_oneof![0u64..30, 0u64..2_000, 0u64..20_000].prop_map(Step::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn every_byte_arrives_once_and_in_order_whatever_happens_to_the_lanes(
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut world = World::new();
        for step in steps {
            world.take(step);
        }
        world.finish_all();
    }

    #[test]
    fn tight_bounds_on_what_is_unconfirmed_stop_no_stream_for_good(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let tight = Limits {
            max_unconfirmed_of_stream: 40 << 10,
            max_unconfirmed: 64 << 10,
            ..Limits::default()
        };
        let mut world = World::with(tight);
        for step in steps {
            world.take(step);
        }
        world.finish_all();
    }
}

#[test]
fn an_end_that_grants_much_and_confirms_nothing_makes_the_other_keep_little() {
    let now = Instant::now();
    let limits = Limits { max_unconfirmed_of_stream: 1 << 20, max_unconfirmed: 2 << 20, ..Limits::default() };
    let (unsent, most) = (limits.max_unsent, limits.max_unconfirmed);
    let mut core = Core::new(Side::Home, limits, HEARTBEAT, now);
    let mut cx = Context::from_waker(Waker::noop());
    let ids: Vec<u64> = (0..4).map(|_| core.mux.open("bulk", now).unwrap()).collect();
    for lane in 0..100 {
        core.add_lane(lane, now);
        for id in &ids {
            let mut grant = BytesMut::new();
            Frame::Credit { stream: *id, limit: 1 << 61 }.put(&mut grant);
            core.receive(lane, grant.freeze(), now).unwrap();
        }
        let mut out = BytesMut::new();
        for _ in 0..50 {
            for id in &ids {
                core.mux.write(*id, &[7; 64 * 1024], now, &mut cx);
            }
            while core.transmit(lane, now, &mut out, Waker::noop()) {
                out.clear();
            }
        }
        core.lose_lane(lane, now);
    }
    let held: u64 = core.mux.streams.values().map(|stream| stream.send.held()).sum();
    assert!(held > most && held <= most + CHUNK_BYTES as u64 + unsent * 4, "{held} bytes held");
}

#[test]
fn a_lane_that_falls_silent_is_left_for_a_fresh_one_and_nothing_is_sent_twice() {
    let mut world = World::new();
    let old = world.add_lane(Duration::from_millis(10));
    let id = world.open(0).unwrap();
    world.write(0, id, 100_000);
    world.pass(Duration::from_millis(100));
    world.read(1, id, 40_000);
    world.cut(old, [None, None]);
    world.write(0, id, 50_000);
    world.pass(Duration::from_secs(8));
    assert_eq!(world.ends[0].good_lanes(), 0, "data without answer");
    assert_eq!(world.ends[1].good_lanes(), 0, "a ping without answer");
    assert!(world.ends[1].cut_since().is_some());
    world.add_lane(Duration::from_millis(10));
    world.pass(Duration::from_millis(100));
    assert_eq!(world.ends[0].mux.bytes_repeated, 50_000, "only what was lost");
    world.finish_all();
}

#[test]
fn an_echo_does_not_wait_behind_the_bulk_that_was_there_before_it() {
    let mut world = World::new();
    let lane = world.add_lane(Duration::from_millis(20));
    let bulk: Vec<u64> = (0..8).map(|_| world.open(0).unwrap()).collect();
    for _ in 0..40 {
        for id in &bulk {
            world.write(0, *id, 128 * 1024);
            world.read(1, *id, 1 << 20);
        }
        world.pass(Duration::from_millis(5));
    }
    let echo = world.open(0).unwrap();
    for id in &bulk {
        world.write(0, *id, 128 * 1024);
    }
    world.write(0, echo, 256);
    let (in_flight, bound) = world.ends[0].in_flight(lane);
    assert!(in_flight <= bound + 64 * 1024, "{in_flight} in flight, {bound} allowed");
    // However full the lane is with bulk, the very next message carries the echo, before any bulk in it.
    let mut out = BytesMut::new();
    assert!(world.ends[0].transmit(lane, world.now, &mut out, Waker::noop()));
    let mut message = out.freeze();
    let mut first_data = None;
    while let Some(frame) = super::frame::next(&mut message).unwrap() {
        if let Frame::Data { stream, .. } = frame {
            first_data = first_data.or(Some(stream));
        }
    }
    assert_eq!(first_data, Some(echo));
}

#[test]
fn with_two_lanes_bulk_keeps_off_the_one_that_small_streams_use() {
    let mut world = World::new();
    let (express, other) =
        (world.add_lane(Duration::from_millis(5)), world.add_lane(Duration::from_millis(5)));
    let bulk = world.open(0).unwrap();
    for _ in 0..60 {
        world.write(0, bulk, 64 * 1024);
        world.pass(Duration::from_millis(1));
        world.read(1, bulk, 1 << 20);
    }
    let bulk_on = |world: &mut World, lane: u64| {
        let mut out = BytesMut::new();
        world.ends[0].transmit(lane, world.now, &mut out, Waker::noop());
        let mut message = out.freeze();
        let mut found = false;
        while let Some(frame) = super::frame::next(&mut message).unwrap() {
            found |= matches!(frame, Frame::Data { .. });
        }
        found
    };
    world.pass(Duration::from_millis(40));
    world.read(1, bulk, 1 << 20);
    world.pass(Duration::from_millis(20));
    world.write(0, bulk, 64 * 1024);
    assert!(!bulk_on(&mut world, express));
    assert!(bulk_on(&mut world, other));
}

#[test]
fn with_four_lanes_what_is_small_comes_by_the_second_while_the_first_is_late() {
    for (lanes, comes) in [(3, false), (4, true)] {
        let mut world = World::new();
        world.add_lane(Duration::from_millis(500));
        for _ in 1..lanes {
            world.add_lane(Duration::from_millis(5));
        }
        let (small, bulk) = (world.open(0).unwrap(), world.open(0).unwrap());
        world.pass(Duration::from_secs(2));
        world.write(0, bulk, 128 * 1024);
        world.write(0, small, 100);
        world.pass(Duration::from_millis(7));
        world.read(1, small, 1000);
        assert_eq!(world.handles[1][&small].read, if comes { 100 } else { 0 }, "{lanes} lanes");
        world.finish_all();
        let [sender, receiver] = &world.ends;
        assert_eq!(
            (receiver.mux.bytes_in, sender.mux.bytes_repeated),
            (128 * 1024 + 100, 0),
            "each byte counts once"
        );
    }
}

#[test]
fn the_second_lane_of_four_carries_no_bulk() {
    let mut world = World::new();
    for _ in 0..4 {
        world.add_lane(Duration::from_millis(5));
    }
    let bulk = world.open(0).unwrap();
    world.pass(Duration::from_secs(1));
    let mut carried = [false; 4];
    for _ in 0..100 {
        world.write(0, bulk, 64 * 1024);
        world.pass(Duration::from_millis(1));
        world.read(1, bulk, 1 << 20);
        for lane in 0..4 {
            carried[lane as usize] |= world.ends[0].in_flight(lane).0 > 0;
        }
    }
    assert_eq!(carried, [false, false, true, true]);
}

#[test]
fn a_fast_reader_is_granted_a_wider_window_and_all_windows_stay_in_their_pool() {
    let mut world = World::new();
    world.add_lane(Duration::from_millis(50));
    let ids: Vec<u64> = (0..3).map(|_| world.open(0).unwrap()).collect();
    for _ in 0..120 {
        for id in &ids {
            world.write(0, *id, 128 * 1024);
            world.read(1, *id, 1 << 20);
        }
        world.pass(Duration::from_millis(10));
    }
    let windows: Vec<u64> = world.ends[1].mux.streams.values().map(|stream| stream.window).collect();
    assert!(windows.iter().any(|window| *window >= 1 << 20), "{windows:?}");
    let beyond: u64 = windows.iter().map(|window| window - FIRST_WINDOW_BYTES).sum();
    assert!(beyond <= world.ends[1].mux.limits.window_pool);
}

#[test]
fn as_many_streams_open_at_once_as_may_and_one_more_is_refused_rather_than_waiting() {
    let mut world = World::new();
    world.add_lane(Duration::from_millis(1));
    let ids: Vec<u64> = (0..MAX_STREAMS).map(|_| world.open(0).unwrap()).collect();
    assert_eq!(world.open(0), None);
    for id in &ids {
        world.write(0, *id, 10);
    }
    world.pass(Duration::from_secs(1));
    assert_eq!(world.handles[1].len() as u64, MAX_STREAMS, "each arrives while none has ended");
    for id in &ids[..40] {
        for side in 0..2 {
            world.finish(side, *id);
            world.pass(Duration::from_millis(50));
        }
        for side in 0..2 {
            world.read(side, *id, 100);
            world.read(side, *id, 100);
            world.release(side, *id);
        }
    }
    world.pass(Duration::from_secs(1));
    for _ in 0..40 {
        world.open(0).unwrap();
    }
    world.pass(Duration::from_secs(1));
    assert_eq!(world.handles[1].len() as u64, MAX_STREAMS);
    for end in &mut world.ends {
        assert_eq!(end.mux.streams_ever(), MAX_STREAMS + 40);
    }
    world.finish_all();
}

#[test]
fn streams_are_counted_once_also_when_the_session_is_over() {
    let mut world = World::new();
    world.add_lane(Duration::from_millis(1));
    for side in [0, 1, 1] {
        world.open(side).unwrap();
    }
    world.pass(Duration::from_millis(100));
    world.ends[0].end_quietly(true, "over");
    assert_eq!(world.ends[0].mux.streams_ever(), 3);
}

#[test]
fn an_idle_lane_is_pinged_often_enough_for_any_proxy_and_stays_good() {
    let mut world = World::new();
    let lane = world.add_lane(Duration::from_millis(40));
    for _ in 0..30 {
        let before = world.delivered;
        world.pass(Duration::from_secs(6));
        assert!(world.delivered > before, "a lane was idle for 6 s");
    }
    assert_eq!([world.ends[0].good_lanes(), world.ends[1].good_lanes()], [1, 1]);
    let rtt = world.ends[1].rtt().unwrap();
    assert!(rtt >= Duration::from_millis(80) && rtt < Duration::from_millis(90), "{rtt:?}");
    assert_eq!(world.ends[1].in_flight(lane).0, 0);
}

#[test]
fn a_goodbye_is_said_on_the_lane_and_ends_the_other_side() {
    let mut world = World::new();
    let lane = world.add_lane(Duration::from_millis(1));
    let id = world.open(0).unwrap();
    world.pass(Duration::from_millis(50));
    world.ends[0].end(CloseKind::Link, "enough");
    world.pass(Duration::from_millis(50));
    assert!(world.ends[0].is_leaving(lane) && world.ends[1].is_leaving(lane));
    assert_eq!(world.ends[1].ended().unwrap().reason, "enough");
    assert!(world.ends[1].ended().unwrap().for_good);
    world.read(1, id, 10);
    assert!(world.handles[1][&id].reset);
}
