//! Held against another implementation, against whoever breaks the rules, and against every way to cut bytes.

use futures_util::{SinkExt as _, StreamExt as _};
use proptest::prelude::*;
use tokio::io::{AsyncWriteExt as _, DuplexStream, duplex};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Message, protocol};

use super::*;

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Another implementation of the same RFC at the other end.
async fn other(io: DuplexStream, role: Role) -> WebSocketStream<DuplexStream> {
    let role = match role {
        Role::Server => protocol::Role::Client,
        Role::Client { .. } => protocol::Role::Server,
    };
    WebSocketStream::from_raw_socket(io, role, None).await
}

const ROLES: [Role; 3] = [Role::Server, Role::Client { under_tls: false }, Role::Client { under_tls: true }];

#[test]
fn another_implementation_reads_what_is_written_and_writes_what_is_read() {
    run(async {
        for role in ROLES {
            let (here, there) = duplex(1 << 20);
            let (mut socket, mut other) = (WebSocket::new(here, role), other(there, role).await);
            for length in [0, 1, 125, 126, 127, 65_535, 65_536, 200_000] {
                let message: Bytes = (0..length).map(|n| (n * 7 % 251) as u8).collect();
                socket.send(&message).await.unwrap();
                assert_eq!(other.next().await.unwrap().unwrap(), Message::Binary(message.clone()));
                other.send(Message::Binary(message.clone())).await.unwrap();
                assert_eq!(socket.receive().await.unwrap(), message);
            }
            socket.close().await.unwrap();
            assert!(matches!(other.next().await, Some(Ok(Message::Close(None)))));
        }
    });
}

#[test]
fn a_ping_is_answered_and_a_goodbye_is_heard() {
    run(async {
        for role in ROLES {
            let (here, there) = duplex(1 << 20);
            let (mut socket, mut other) = (WebSocket::new(here, role), other(there, role).await);
            other.send(Message::Ping(Bytes::from_static(b"you?"))).await.unwrap();
            other.send(Message::Binary(Bytes::from_static(b"one"))).await.unwrap();
            assert_eq!(socket.receive().await.unwrap(), "one");
            socket.send(b"two").await.unwrap();
            assert_eq!(other.next().await.unwrap().unwrap(), Message::Pong(Bytes::from_static(b"you?")));
            assert_eq!(other.next().await.unwrap().unwrap(), Message::Binary(Bytes::from_static(b"two")));
            let _ = other.close(None).await;
            assert!(matches!(socket.receive().await, Err(SocketEnd::Closed)));
        }
    });
}

#[test]
fn a_connection_that_takes_little_gets_every_message_whole() {
    run(async {
        let (here, there) = duplex(1000);
        let mut socket = WebSocket::new(here, Role::Server);
        let mut other = other(there, Role::Server).await;
        let mut reading = tokio::task::JoinSet::new();
        reading.spawn(async move {
            let mut lengths = Vec::new();
            while let Some(Ok(Message::Binary(message))) = other.next().await {
                assert!(message.iter().all(|byte| *byte == 7));
                lengths.push(message.len());
            }
            lengths
        });
        let wanted: Vec<usize> = vec![10, 5000, 0, 40_000, 1];
        for length in wanted.clone() {
            std::future::poll_fn(|cx| {
                ready!(socket.poll_unsent(cx)).unwrap();
                let sent = socket.send_with(cx, |out| {
                    out.extend_from_slice(&vec![7; length]);
                    true
                });
                assert!(sent.unwrap());
                Poll::Ready(())
            })
            .await;
        }
        socket.close().await.unwrap();
        assert_eq!(reading.join_next().await.unwrap().unwrap(), wanted);
    });
}

#[test]
fn whoever_breaks_the_rules_is_told_which() {
    let cases: [(&[u8], &str); 9] = [
        (&[0x82, 0x00], "masked"),
        (&[0xc2, 0x80, 0, 0, 0, 0], "extension"),
        (&[0x83, 0x80, 0, 0, 0, 0], "unknown kind"),
        (&[0x81, 0x80, 0, 0, 0, 0], "text"),
        (&[0x80, 0x80, 0, 0, 0, 0], "out of order"),
        (&[0x02, 0x80, 0, 0, 0, 0, 0x82, 0x80, 0, 0, 0, 0], "out of order"),
        (&[0x09, 0x80, 0, 0, 0, 0], "control frame"),
        (&[0x89, 0xfe, 0, 126, 0, 0, 0, 0], "control frame"),
        (&[0x82, 0xff, 0, 0, 0, 0, 0, 4, 0, 1], "too long"),
    ];
    for (raw, rule) in cases {
        let end = run(async {
            let (here, mut there) = duplex(1 << 10);
            there.write_all(raw).await.unwrap();
            drop(there);
            let mut socket = WebSocket::new(here, Role::Server);
            loop {
                if let Err(end) = socket.receive().await {
                    break end;
                }
            }
        });
        assert!(
            matches!(end, SocketEnd::Rule(_) | SocketEnd::Text) && end.to_string().contains(rule),
            "{raw:x?}: {end}"
        );
    }
}

#[test]
fn fragments_beyond_the_longest_message_are_refused_before_they_are_kept() {
    run(async {
        let (here, there) = duplex(1 << 20);
        let (mut socket, mut other) = (WebSocket::new(here, Role::Server), other(there, Role::Server).await);
        use protocol::frame::{
            Frame,
            coding::{Data, OpCode},
        };
        for part in 0..3 {
            let opcode = OpCode::Data(if part == 0 { Data::Binary } else { Data::Continue });
            let frame = Frame::message(vec![1; MAX_MESSAGE_BYTES / 2], opcode, false);
            other.send(Message::Frame(frame)).await.unwrap();
        }
        assert!(matches!(socket.receive().await, Err(SocketEnd::Rule("a message is too long"))));
    });
}

proptest! {
    /// However the bytes are cut: the same messages, in order, each once, wherever the reader pauses.
    #[test]
    fn messages_come_whole_however_their_bytes_are_cut(
        lengths in prop::collection::vec(prop_oneof![0usize..300, 60_000usize..70_000], 1..8),
        cuts in prop::collection::vec(1usize..40_000, 1..20),
        fragments in 1usize..4,
        pauses in prop::collection::vec(any::<bool>(), 8),
    ) {
        let messages: Vec<Bytes> = lengths.iter().enumerate()
            .map(|(at, length)| (0..*length).map(|n| (n * 13 + at * 5) as u8).collect())
            .collect();
        let read = run(async {
            let (here, raw) = duplex(1 << 22);
            let mut other = other(raw, Role::Server).await;
            use protocol::frame::{Frame, coding::{Data, OpCode}};
            for message in &messages {
                let size = message.len().div_ceil(fragments).max(1);
                let parts: Vec<Bytes> = match message.len() {
                    0 => vec![Bytes::new()],
                    _ => message.chunks(size).map(Bytes::copy_from_slice).collect(),
                };
                for (at, part) in parts.iter().enumerate() {
                    let opcode = OpCode::Data(if at == 0 { Data::Binary } else { Data::Continue });
                    let frame = Frame::message(part.clone(), opcode, at + 1 == parts.len());
                    other.send(Message::Frame(frame)).await.unwrap();
                    other.send(Message::Ping(Bytes::new())).await.unwrap();
                }
            }
            drop(other);
            // The same bytes again, in pieces.
            let mut whole = Vec::new();
            let mut here = here;
            tokio::io::AsyncReadExt::read_to_end(&mut here, &mut whole).await.unwrap();
            let (near, mut far) = duplex(1 << 22);
            let mut socket = WebSocket::new(near, Role::Server);
            let mut read = Vec::new();
            let (mut rest, mut cuts) = (&whole[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let piece = (*cuts.next().unwrap()).min(rest.len());
                far.write_all(&rest[..piece]).await.unwrap();
                rest = &rest[piece..];
                std::future::poll_fn(|cx| {
                    loop {
                        let taken = socket.poll_receive(cx, |message| {
                            read.push(Bytes::copy_from_slice(&message));
                            match pauses[read.len() % pauses.len()] {
                                true => ControlFlow::Break(()),
                                false => ControlFlow::Continue(()),
                            }
                        });
                        match taken {
                            Poll::Pending => return Poll::Ready(()),
                            Poll::Ready(Ok(_)) => {}
                            Poll::Ready(Err(end)) => panic!("{end}"),
                        }
                    }
                })
                .await;
            }
            read
        });
        prop_assert!(read == messages, "{} of {} messages", read.len(), messages.len());
    }
}

#[test]
fn an_idle_connection_holds_no_buffer() {
    run(async {
        let (here, there) = duplex(1 << 20);
        let (mut socket, mut other) = (WebSocket::new(here, Role::Server), other(there, Role::Server).await);
        for _ in 0..3 {
            other.send(Message::Binary(vec![1; 100_000].into())).await.unwrap();
            socket.receive().await.unwrap();
            socket.send(&[1; 100_000]).await.unwrap();
        }
        assert_eq!((socket.rest.capacity(), socket.unsent.capacity()), (0, 0));
    });
}

#[test]
fn hanging_up_in_the_middle_of_a_message_is_an_end_and_no_message() {
    run(async {
        let (here, mut there) = duplex(1 << 10);
        there.write_all(&[0x82, 0x85, 0, 0, 0, 0, 1, 2]).await.unwrap();
        drop(there);
        let mut socket = WebSocket::new(here, Role::Server);
        assert!(matches!(socket.receive().await, Err(SocketEnd::Closed)));
    });
}

/// What a client writes for this message, byte by byte.
async fn written(under_tls: bool, message: &[u8]) -> Vec<u8> {
    let (here, mut there) = duplex(1 << 10);
    WebSocket::new(here, Role::Client { under_tls }).send(message).await.unwrap();
    let mut raw = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut there, &mut raw).await.unwrap();
    raw
}

#[test]
fn what_a_client_writes_in_the_clear_is_masked_by_another_key_each_time() {
    run(async {
        let message = [7; 64];
        let (one, two) = (written(false, &message).await, written(false, &message).await);
        assert_ne!(one[6..], message[..], "masked");
        assert_ne!(one, two, "by another key");
        let under_tls = written(true, &message).await;
        assert_eq!((&under_tls[2..6], &under_tls[6..]), (&[0; 4][..], &message[..]), "nobody else sees it");
    });
}
