//! The doors of the fuzz targets: any bytes into the decoders, the handshake and the state machine. Each returns when
//! its input is used up or was refused, and panics only when something is wrong. Not for use.

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::proto::Core;
use crate::proto::frame::{self, CloseKind, Frame};
use crate::proto::handshake::{Hello, Verdict, decode_challenge, decode_verdict, verify};
use crate::proto::mux::{Limits, Side};
use crate::proto::world::{Step, World};
use crate::upgrade::{self, Asked};
use crate::websocket::{MAX_MESSAGE_BYTES, Role, WebSocket};

/// A message: whatever is read of it is written as what is read again.
pub fn frames(input: &[u8]) {
    let whole = Bytes::copy_from_slice(input);
    let mut rest = whole.clone();
    let mut read: Vec<Frame> = Vec::new();
    while let Ok(Some(frame)) = frame::next(&mut rest) {
        read.push(frame);
    }
    let mut written = BytesMut::new();
    read.iter().for_each(|frame| frame.put(&mut written));
    let mut again = written.freeze();
    for frame in &read {
        assert_eq!(frame::next(&mut again).as_ref(), Ok(&Some(frame.clone())));
    }
    assert_eq!(frame::next(&mut again), Ok(None));

    if let Ok(hello) = Hello::decode(&whole) {
        assert!(Hello::decode(&hello.encode()).is_ok_and(|again| again == hello));
    }
    match decode_challenge(&whole) {
        Ok(Ok(challenge)) => assert_eq!(decode_challenge(&challenge.encode()), Ok(Ok(challenge))),
        Ok(Err(refused)) => assert_eq!(decode_challenge(&refused.encode()), Ok(Err(refused))),
        Err(_) => {}
    }
    match decode_verdict(&whole) {
        Ok(Verdict::Welcome(welcome)) => {
            assert_eq!(decode_verdict(&welcome.encode()), Ok(Verdict::Welcome(welcome)));
        }
        Ok(Verdict::Refused(refused)) => {
            assert_eq!(decode_verdict(&refused.encode()), Ok(Verdict::Refused(refused)));
        }
        Err(_) => {}
    }
    // Whoever has no private key proves nothing.
    assert_ne!(verify(&[7; 32], &whole, &whole, &whole), Ok(true));
}

/// What a WebSocket's other end may send, in two pieces: the same messages as in one, or the same end.
pub fn websocket(input: &[u8]) {
    let [cut, raw @ ..] = input else { return };
    let cut = usize::from(*cut).min(raw.len());
    for role in [Role::Server, Role::Client { under_tls: true }] {
        assert_eq!(heard(role, &[raw]), heard(role, &[&raw[..cut], &raw[cut..]]));
    }
}

/// The messages in these pieces, and what ended them.
fn heard(role: Role, pieces: &[&[u8]]) -> (Vec<Bytes>, Option<String>) {
    let mut cx = Context::from_waker(Waker::noop());
    let mut messages = Vec::new();
    let mut socket = WebSocket::new(Pieces::default(), role);
    for piece in pieces {
        socket.get_mut().0.push_back(Bytes::copy_from_slice(piece));
        loop {
            let taken = socket.poll_receive(&mut cx, |message| {
                assert!(message.len() <= MAX_MESSAGE_BYTES);
                messages.push(Bytes::copy_from_slice(&message));
                ControlFlow::<()>::Continue(())
            });
            match taken {
                Poll::Pending => break,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(end)) => return (messages, Some(end.to_string())),
            }
        }
        let _ = socket.poll_unsent(&mut cx);
    }
    (messages, None)
}

/// A connection that hands out what was put in, and takes everything.
#[derive(Debug, Default)]
struct Pieces(VecDeque<Bytes>);

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(front) = self.0.front_mut() else { return Poll::Pending };
        buf.put_slice(&front.split_to(front.len().min(buf.remaining())));
        if front.is_empty() {
            self.0.pop_front();
            if buf.filled().is_empty() {
                return Poll::Pending; // an empty piece is no end
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pieces {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The head of a request at the link's door: a link is given for a whole head and for no part of one.
pub fn upgrade(input: &[u8]) {
    let input = &input[..input.len().min(2048)];
    if !matches!(upgrade::parse(input), Some(Asked::Link { .. })) {
        return;
    }
    assert!(input.ends_with(b"\n\r\n") || input.ends_with(b"\n\n"), "a link before its head's end");
    for end in 0..input.len() {
        assert_eq!(upgrade::parse(&input[..end]), None, "answered after {end} bytes");
    }
}

/// Steps of two honest ends and the lanes between them: in the end every byte has arrived once and in order.
pub fn resume(input: &[u8]) {
    let mut world = World::new();
    for step in input.chunks_exact(4).take(60) {
        let [kind, which, high, low] = *step else { return };
        let (side, which) = (usize::from(which >> 7), usize::from(which & 0x7f));
        let length = u16::from_be_bytes([high, low]);
        world.take(match kind % 8 {
            0 => Step::Open(side),
            1 => Step::Write(side, which, usize::from(length)),
            2 => Step::Read(side, which, usize::from(length) * 4),
            3 => Step::Finish(side, which),
            4 => Step::Release(side, which),
            5 => Step::Lane(u64::from(length % 200)),
            6 => {
                let notice = |delay: u8| (delay != 0).then(|| u64::from(delay) * 12);
                Step::Cut(which, notice(high), notice(low))
            }
            _ => Step::Pass(u64::from(length % 20_000)),
        });
    }
    world.finish_all();
}

/// What a hostile end may say, to a home end and to an agent end with two lanes each and some streams of their own: the
/// bounds of what an end holds stand.
///
/// The input is a row of steps: a byte that says what happens, two that say how long the piece after it is.
pub fn protocol(input: &[u8]) {
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
            while core.transmit(lane, now, &mut out, Waker::noop()) {
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
    use std::path::Path;

    use glidepath_testkit::corpus::replay;

    use super::*;
    use crate::proto::handshake::{Challenge, Refused, Welcome};

    #[test]
    fn a_hostile_end_breaks_nothing_by_what_was_kept_or_by_changes_of_it() {
        replay("protocol", 30_000, protocol);
    }

    #[test]
    fn every_message_that_was_kept_or_changed_is_written_as_it_was_read() {
        replay("frames", 50_000, frames);
    }

    #[test]
    fn no_part_of_a_head_that_was_kept_or_changed_opens_a_link() {
        replay("upgrade", 20_000, upgrade);
    }

    #[test]
    fn a_websocket_that_was_kept_or_changed_says_the_same_however_it_is_cut() {
        replay("websocket", 50_000, websocket);
    }

    #[test]
    fn bytes_arrive_once_and_in_order_by_every_history_that_was_kept_or_changed() {
        replay("resume", 200, resume);
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
        let open_frame = |stream| Frame::Open { stream, purpose: "server".into() };
        let talk = |odd: u64| {
            [
                step(0, message(&[open_frame(odd), data(odd, 0, "hello")])),
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
        let challenge =
            Challenge { version: 1, nonce: [9; 32], software: "home/1".into(), capabilities: vec![] };
        let welcome = Welcome { incarnation: 7, lane: 1, resume_for: Duration::from_secs(60) };
        let refused = Refused { after: Some(Duration::from_secs(3)), sentence: "not now".into() };
        let close = Frame::Close { kind: CloseKind::Away, reason: "the service stops".into() };
        let credit = [Frame::Credit { stream: 2, limit: 1 << 20 }, Frame::Streams { limit: 1 << 40 }, close];
        let upgrade = "GET /link HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        let steps = |steps: &[[u8; 4]]| steps.concat();
        let (open, lane, pass) = ([0, 0, 0, 0], [5, 0, 0, 20], [7, 0, 1, 0]);
        for (target, name, seed) in [
            ("protocol", "talk-to-home", talk(1)),
            ("protocol", "talk-to-agent", talk(0)),
            ("protocol", "lanes", lanes),
            ("protocol", "ends", ends),
            ("protocol", "holes", holes),
            ("frames", "hello", hello.encode().to_vec()),
            ("frames", "challenge", challenge.encode().to_vec()),
            ("frames", "welcome", welcome.encode().to_vec()),
            ("frames", "refused", refused.encode().to_vec()),
            (
                "frames",
                "talk",
                message(&[open_frame(1), data(1, 0, "hello"), Frame::Fin { stream: 1, end: 5 }]),
            ),
            ("frames", "control", message(&credit)),
            ("upgrade", "link", upgrade.into()),
            ("upgrade", "bare", upgrade.replace("\r\n", "\n").into()),
            ("upgrade", "query", upgrade.replace("/link", "/link?x").into()),
            ("upgrade", "plain", "GET / HTTP/1.1\r\nHost: h\r\n\r\n".into()),
            ("upgrade", "more", format!("{upgrade}x").into()),
            ("websocket", "message", [&[9, 0x82, 0x85, 1, 2, 3, 4][..], b"hello"].concat()),
            ("websocket", "of-home", [&[3, 0x82, 5][..], b"hello", &[0x89, 0]].concat()),
            (
                "websocket",
                "fragments",
                vec![7, 0x02, 0x81, 0, 0, 0, 0, 1, 0x89, 0x80, 9, 9, 9, 9, 0x80, 0x81, 1, 1, 1, 1, 0],
            ),
            ("websocket", "long", [&[2, 0x82, 0xfe, 1, 0, 7, 7, 7, 7][..], &[1; 256]].concat()),
            ("websocket", "goodbye", vec![1, 0x88, 0x82, 0, 0, 0, 0, 3, 0xe8]),
            (
                "resume",
                "talk",
                steps(&[
                    lane,
                    open,
                    pass,
                    [1, 0, 90, 0],
                    pass,
                    [2, 128, 90, 0],
                    [1, 128, 1, 0],
                    pass,
                    [2, 0, 9, 9],
                ]),
            ),
            (
                "resume",
                "cut",
                steps(&[
                    lane,
                    open,
                    [1, 0, 255, 0],
                    pass,
                    [6, 0, 9, 0],
                    [1, 0, 255, 0],
                    pass,
                    lane,
                    pass,
                    [2, 128, 255, 0],
                ]),
            ),
            (
                "resume",
                "lanes",
                steps(&[
                    lane,
                    lane,
                    open,
                    [1, 0, 255, 0],
                    pass,
                    [6, 1, 0, 9],
                    [7, 0, 0, 1],
                    lane,
                    [2, 128, 9, 0],
                ]),
            ),
            (
                "resume",
                "silence",
                steps(&[lane, open, [1, 0, 90, 0], [6, 0, 0, 0], [7, 0, 60, 0], lane, [3, 0, 0, 0], pass]),
            ),
            (
                "resume",
                "release",
                steps(&[
                    lane,
                    open,
                    [1, 0, 90, 0],
                    pass,
                    [4, 128, 0, 0],
                    [6, 0, 1, 1],
                    [4, 0, 0, 0],
                    lane,
                    pass,
                ]),
            ),
        ] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(name), seed).unwrap();
        }
    }
}
