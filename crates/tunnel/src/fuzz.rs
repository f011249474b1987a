//! The door of the fuzz target: any bytes into the decoder, the handshake and the state machine. Not for use.

use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use crate::proto::Core;
use crate::proto::frame::CloseKind;
use crate::proto::handshake::{Hello, decode_challenge, decode_verdict, verify};
use crate::proto::mux::{Limits, Side};

/// Feeds `input` to a home end and to an agent end with two lanes each and some streams of their own. Returns when
/// it is used up or was refused; panics only when something is wrong.
///
/// The input is a row of steps: a byte that says what happens, two that say how long the piece after it is.
pub fn run(input: &[u8]) {
    let whole = Bytes::copy_from_slice(input);
    let _ = (Hello::decode(&whole).is_ok(), decode_challenge(&whole).is_ok(), decode_verdict(&whole).is_ok());
    let _ = verify(&[7; 32], &whole, &whole, &whole).is_ok();
    for side in [Side::Home, Side::Agent] {
        feed(side, input);
    }
}

fn feed(side: Side, mut input: &[u8]) {
    let mut now = Instant::now();
    // So small that a short input reaches every bound.
    let limits =
        Limits { max_unsent: 512, max_unconfirmed_of_stream: 600, max_unconfirmed: 700, ..Limits::default() };
    let mut core = Core::new(side, limits, Duration::from_secs(5), now);
    let mut cx = Context::from_waker(Waker::noop());
    let mut streams: Vec<u64> = (0..3).filter_map(|_| core.mux.open("fuzz", now)).collect();
    for lane in 0..2 {
        core.add_lane(lane, now);
    }
    let mut out = BytesMut::new();
    while let [step, high, low, rest @ ..] = input {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (piece, rest) = rest.split_at(length);
        input = rest;
        let lane = u64::from(step >> 7);
        match step & 0x7f {
            0..100 => {
                if let Err(broken) = core.receive(lane, Bytes::copy_from_slice(piece), now) {
                    core.end(CloseKind::Protocol, &broken.to_string());
                }
            }
            100..105 => now += Duration::from_millis(length as u64),
            105 => core.lose_lane(lane, now),
            106 => {
                core.add_lane(length as u64, now);
            }
            107..112 => {
                for id in &streams {
                    core.mux.write(*id, piece, now, &mut cx);
                }
            }
            112..118 => {
                for id in &streams {
                    core.mux.read(*id, now, &mut cx, |bytes| bytes.len().min(length));
                }
            }
            118 => {
                if let Some(id) = streams.pop() {
                    core.mux.release(id);
                }
            }
            119 => streams.iter().for_each(|id| {
                core.mux.finish(*id);
            }),
            _ => {
                while let Some((id, _)) = core.mux.accept() {
                    streams.push(id);
                }
            }
        }
        for lane in 0..2 {
            core.check(lane, now);
            core.next_look(lane, false);
            while core.transmit(lane, now, &mut out, &cx) {
                assert!(out.len() <= 256 * 1024, "a message that the other end would refuse");
                out.clear();
            }
        }
        core.mux.wakes.clear();
        check(&core);
    }
}

/// What no input may break: nobody makes this end hold more than its credit, or keep more than its own bounds.
fn check(core: &Core) {
    let limits = &core.mux.limits;
    assert!(core.mux.streams.len() <= 2_000);
    for stream in core.mux.streams.values() {
        let room = stream.receive_limit - stream.receive.read_offset();
        assert!(
            stream.receive.held() <= room,
            "{} bytes held where {room} are allowed",
            stream.receive.held()
        );
        assert!(stream.send.unsent() <= limits.max_unsent, "{} bytes unsent", stream.send.unsent());
        let unconfirmed = stream.send.unconfirmed();
        assert!(unconfirmed <= limits.max_unconfirmed_of_stream, "{unconfirmed} bytes unconfirmed");
    }
    let unconfirmed: u64 = core.mux.streams.values().map(|stream| stream.send.unconfirmed()).sum();
    assert_eq!(unconfirmed, core.mux.unconfirmed);
    // The bound on all is looked at before each piece, and a piece is no larger than the bound of its stream.
    let most = limits.max_unconfirmed + limits.max_unconfirmed_of_stream;
    assert!(unconfirmed < most, "{unconfirmed} bytes unconfirmed in all");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::frame::Frame;

    /// The seeds: conversations that are nearly right.
    fn seeds() -> Vec<(String, Vec<u8>)> {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
        let mut seeds: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.display().to_string(), std::fs::read(&path).unwrap()))
            .collect();
        seeds.sort();
        assert!(seeds.len() >= 5, "the seeds are missing");
        seeds
    }

    #[test]
    fn the_seeds_and_half_a_hundred_thousand_changes_of_them_break_nothing() {
        let seeds = seeds();
        let mut state = 0x2545_f491_4f6c_dd1du64;
        let mut random = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below.max(1) as u64) as usize
        };
        for (_, seed) in &seeds {
            run(seed);
        }
        for _ in 0..50_000 {
            let mut input = seeds[random(seeds.len())].1.clone();
            for _ in 0..1 + random(6) {
                let at = random(input.len());
                match random(5) {
                    0 => input[at] = random(256) as u8,
                    1 => input[at] ^= 1 << random(8),
                    2 => input.truncate(at.max(1)),
                    3 => input.insert(at, random(256) as u8),
                    _ => {
                        let other = &seeds[random(seeds.len())].1;
                        input.splice(at.., other[random(other.len())..].iter().copied());
                    }
                }
                if input.is_empty() {
                    input.push(0);
                }
            }
            run(&input);
        }
    }

    /// Writes the seeds anew. Run it by hand when frames change.
    #[test]
    #[ignore = "writes files"]
    fn write_the_seeds() {
        let message = |frames: &[Frame]| {
            let mut out = BytesMut::new();
            frames.iter().for_each(|frame| frame.put(&mut out));
            out.to_vec()
        };
        let step = |kind: u8, piece: Vec<u8>| {
            let mut out = vec![kind];
            out.extend((piece.len() as u16).to_be_bytes());
            out.extend(piece);
            out
        };
        let data =
            |stream, offset, text: &'static str| Frame::Data { stream, offset, bytes: Bytes::from(text) };
        let open = |stream| Frame::Open { stream, purpose: "server".into() };
        let talk = |odd: u64| {
            [
                step(0, message(&[open(odd), data(odd, 0, "hello")])),
                step(120, vec![]),
                step(112, vec![0; 64]),
                step(107, b"answer".to_vec()),
                step(128, message(&[data(odd, 5, " world"), Frame::Fin { stream: odd, end: 11 }])),
                step(112, vec![0; 64]),
                step(0, message(&[Frame::LaneAck { received: 10, delay_us: 5 }, Frame::Ping { echo: 77 }])),
                step(119, vec![]),
                step(118, vec![]),
            ]
            .concat()
        };
        let lanes = [
            step(107, vec![9; 300]),
            step(105, vec![]),
            step(128, message(&[Frame::LaneGone { lane: 0, received: 12 }])),
            step(106, vec![0; 2]),
            step(100, vec![0; 900]),
            step(
                128,
                message(&[Frame::LaneAck { received: 20, delay_us: 0 }, Frame::Streams { limit: 400 }]),
            ),
        ]
        .concat();
        let ends = [
            step(
                0,
                message(&[Frame::Reset { stream: 0 }, Frame::Stop { stream: 2 }, Frame::Stop { stream: 1 }]),
            ),
            step(0, message(&[Frame::Credit { stream: 0, limit: 1 << 20 }, Frame::Pong { echo: 3 }])),
            step(0, message(&[Frame::Close { kind: CloseKind::Link, reason: "enough".into() }])),
        ]
        .concat();
        let holes =
            step(0, message(&[data(1, 9, "late"), data(1, 3, "mid"), data(1, 5, "dle"), data(1, 0, "abc")]));
        let hello = Hello {
            versions: (1, 1),
            key: [7; 32],
            session: [8; 16],
            credential: "ticket".into(),
            home: "home:443".into(),
            software: "agent/1".into(),
            capabilities: vec!["lanes".into()],
        };
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
        std::fs::create_dir_all(&folder).unwrap();
        for (name, seed) in [
            ("talk-to-home", talk(1)),
            ("talk-to-agent", talk(0)),
            ("lanes", lanes),
            ("ends", ends),
            ("holes", holes),
            ("hello", hello.encode().to_vec()),
        ] {
            std::fs::write(folder.join(name), seed).unwrap();
        }
    }
}
