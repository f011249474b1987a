//! Frames as bytes: a message is a row of frames, a frame is a type, a length and a body.
//!
//! Numbers are variable-length integers of 1, 2, 4 or 8 bytes whose first two bits tell the length. A frame
//! of an unknown type from 0x40 upwards is skipped, one below is an error: that is how the protocol grows.

use bytes::{BufMut, Bytes, BytesMut};

/// The largest number a frame can carry.
pub(crate) const MAX_NUMBER: u64 = (1 << 62) - 1;
/// The longest purpose of a stream.
pub(crate) const MAX_PURPOSE_BYTES: usize = 255;
/// The longest sentence in a CLOSE or REFUSED frame.
pub(crate) const MAX_SENTENCE_BYTES: usize = 1024;

pub(crate) const OPEN: u8 = 0x01;
pub(crate) const DATA: u8 = 0x02;
pub(crate) const FIN: u8 = 0x03;
pub(crate) const RESET: u8 = 0x04;
pub(crate) const STOP: u8 = 0x05;
pub(crate) const CREDIT: u8 = 0x06;
pub(crate) const STREAMS: u8 = 0x07;
pub(crate) const PING: u8 = 0x08;
pub(crate) const PONG: u8 = 0x09;
pub(crate) const LANE_ACK: u8 = 0x0a;
pub(crate) const LANE_GONE: u8 = 0x0b;
pub(crate) const CLOSE: u8 = 0x0c;
/// Types from here on may be skipped by who does not know them.
const FIRST_OPTIONAL: u8 = 0x40;

/// What lanes carry once a link is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    Open { stream: u64, purpose: String },
    Data { stream: u64, offset: u64, bytes: Bytes },
    Fin { stream: u64, end: u64 },
    Reset { stream: u64 },
    Stop { stream: u64 },
    Credit { stream: u64, limit: u64 },
    Streams { limit: u64 },
    Ping { echo: u64 },
    Pong { echo: u64 },
    LaneAck { received: u64, delay_us: u64 },
    LaneGone { lane: u64, received: u64 },
    Close { kind: CloseKind, reason: String },
}

/// How much a CLOSE ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseKind {
    /// This lane; the dialler comes again soon.
    Away,
    /// The link, for good.
    Link,
    /// The link's session: the other end broke the protocol.
    Protocol,
}

/// Bytes that are not the protocol. Ends the link.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Broken {
    #[error("a frame ends in its middle")]
    Short,
    #[error("a frame of the unknown type {0:#04x}")]
    UnknownType(u8),
    #[error("a {0} frame with a bad field")]
    BadField(&'static str),
    #[error("{0}")]
    Rule(&'static str),
}

/// Takes the next frame off a message; `None` at its end.
pub(crate) fn next(message: &mut Bytes) -> Result<Option<Frame>, Broken> {
    while let Some((kind, mut body)) = split(message)? {
        let body = &mut body;
        let frame = match kind {
            OPEN => {
                let stream = number(body)?;
                Frame::Open { stream, purpose: purpose(body)? }
            }
            DATA => Frame::Data { stream: number(body)?, offset: number(body)?, bytes: std::mem::take(body) },
            FIN => Frame::Fin { stream: number(body)?, end: number(body)? },
            RESET => Frame::Reset { stream: number(body)? },
            STOP => Frame::Stop { stream: number(body)? },
            CREDIT => Frame::Credit { stream: number(body)?, limit: number(body)? },
            STREAMS => Frame::Streams { limit: number(body)? },
            PING => Frame::Ping { echo: number(body)? },
            PONG => Frame::Pong { echo: number(body)? },
            LANE_ACK => Frame::LaneAck { received: number(body)?, delay_us: number(body)? },
            LANE_GONE => Frame::LaneGone { lane: number(body)?, received: number(body)? },
            CLOSE => {
                let kind = match number(body)? {
                    0 => CloseKind::Away,
                    1 => CloseKind::Link,
                    2 => CloseKind::Protocol,
                    _ => return Err(Broken::BadField("CLOSE")),
                };
                Frame::Close { kind, reason: sentence(&std::mem::take(body)) }
            }
            kind if kind >= FIRST_OPTIONAL => continue,
            kind => return Err(Broken::UnknownType(kind)),
        };
        // Fields that a later version appends to a frame are not an error: what is left of the body is skipped.
        return Ok(Some(frame));
    }
    Ok(None)
}

/// Takes type and body of the next frame off a message, whatever the type is.
pub(crate) fn split(message: &mut Bytes) -> Result<Option<(u8, Bytes)>, Broken> {
    if message.is_empty() {
        return Ok(None);
    }
    let kind = message.split_to(1)[0];
    let length = usize::try_from(number(message)?).map_err(|_| Broken::Short)?;
    if length > message.len() {
        return Err(Broken::Short);
    }
    Ok(Some((kind, message.split_to(length))))
}

/// Takes a number off the front.
pub(crate) fn number(bytes: &mut Bytes) -> Result<u64, Broken> {
    let first = *bytes.first().ok_or(Broken::Short)?;
    let length = 1 << (first >> 6);
    if bytes.len() < length {
        return Err(Broken::Short);
    }
    let raw = bytes.split_to(length);
    Ok(raw[1..].iter().fold(u64::from(first & 0x3f), |sum, byte| (sum << 8) | u64::from(*byte)))
}

/// Text from outside: capped, without control characters.
pub(crate) fn sentence(raw: &[u8]) -> String {
    let raw = &raw[..raw.len().min(MAX_SENTENCE_BYTES)];
    String::from_utf8_lossy(raw).chars().filter(|c| !c.is_control()).collect()
}

/// Whether a stream may have this purpose.
pub(crate) fn is_purpose(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_PURPOSE_BYTES && !text.chars().any(char::is_control)
}

fn purpose(body: &Bytes) -> Result<String, Broken> {
    std::str::from_utf8(body)
        .ok()
        .filter(|text| is_purpose(text))
        .map(str::to_owned)
        .ok_or(Broken::BadField("OPEN"))
}

/// Bytes that a number takes.
pub(crate) fn number_len(value: u64) -> usize {
    match value {
        0..0x40 => 1,
        0x40..0x4000 => 2,
        0x4000..0x4000_0000 => 4,
        _ => 8,
    }
}

/// Appends a number. Larger ones than [`MAX_NUMBER`] are held to it.
pub(crate) fn put_number(out: &mut BytesMut, value: u64) {
    match number_len(value) {
        1 => out.put_u8(value as u8),
        2 => out.put_u16(value as u16 | 0x4000),
        4 => out.put_u32(value as u32 | 0x8000_0000),
        _ => out.put_u64(value.min(MAX_NUMBER) | 0xc000_0000_0000_0000),
    }
}

/// Appends a frame of numbers.
pub(crate) fn put_numbers(out: &mut BytesMut, kind: u8, numbers: &[u64]) {
    out.put_u8(kind);
    put_number(out, numbers.iter().map(|value| number_len(*value) as u64).sum());
    for value in numbers {
        put_number(out, *value);
    }
}

/// Appends a frame of numbers and what follows them.
pub(crate) fn put_with(out: &mut BytesMut, kind: u8, numbers: &[u64], rest: &[u8]) {
    let head: usize = numbers.iter().map(|value| number_len(*value)).sum();
    out.put_u8(kind);
    put_number(out, (head + rest.len()) as u64);
    for value in numbers {
        put_number(out, *value);
    }
    out.put_slice(rest);
}

impl Frame {
    /// Appends the frame.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn put(&self, out: &mut BytesMut) {
        match self {
            Frame::Open { stream, purpose } => put_with(out, OPEN, &[*stream], purpose.as_bytes()),
            Frame::Data { stream, offset, bytes } => put_with(out, DATA, &[*stream, *offset], bytes),
            Frame::Fin { stream, end } => put_numbers(out, FIN, &[*stream, *end]),
            Frame::Reset { stream } => put_numbers(out, RESET, &[*stream]),
            Frame::Stop { stream } => put_numbers(out, STOP, &[*stream]),
            Frame::Credit { stream, limit } => put_numbers(out, CREDIT, &[*stream, *limit]),
            Frame::Streams { limit } => put_numbers(out, STREAMS, &[*limit]),
            Frame::Ping { echo } => put_numbers(out, PING, &[*echo]),
            Frame::Pong { echo } => put_numbers(out, PONG, &[*echo]),
            Frame::LaneAck { received, delay_us } => put_numbers(out, LANE_ACK, &[*received, *delay_us]),
            Frame::LaneGone { lane, received } => put_numbers(out, LANE_GONE, &[*lane, *received]),
            Frame::Close { kind, reason } => put_close(out, *kind, reason),
        }
    }
}

/// Appends a CLOSE frame.
pub(crate) fn put_close(out: &mut BytesMut, kind: CloseKind, reason: &str) {
    let kind = match kind {
        CloseKind::Away => 0,
        CloseKind::Link => 1,
        CloseKind::Protocol => 2,
    };
    put_with(out, CLOSE, &[kind], sentence(reason.as_bytes()).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn back(frame: &Frame) -> Result<Option<Frame>, Broken> {
        let mut out = BytesMut::new();
        frame.put(&mut out);
        next(&mut out.freeze())
    }

    #[test]
    fn every_frame_comes_back_as_it_went() {
        let frames = [
            Frame::Open { stream: 1, purpose: "server".into() },
            Frame::Data { stream: 63, offset: MAX_NUMBER, bytes: Bytes::from_static(b"abc") },
            Frame::Data { stream: 64, offset: 0, bytes: Bytes::new() },
            Frame::Fin { stream: 16_383, end: 16_384 },
            Frame::Reset { stream: 1 << 30 },
            Frame::Stop { stream: (1 << 30) - 1 },
            Frame::Credit { stream: 5, limit: 1 << 40 },
            Frame::Streams { limit: 77 },
            Frame::Ping { echo: 1 },
            Frame::Pong { echo: 2 },
            Frame::LaneAck { received: 3, delay_us: 4 },
            Frame::LaneGone { lane: 5, received: 6 },
            Frame::Close { kind: CloseKind::Link, reason: "enough".into() },
        ];
        for frame in frames {
            assert_eq!(back(&frame), Ok(Some(frame)));
        }
    }

    #[test]
    fn an_unknown_optional_frame_is_skipped_and_an_unknown_required_one_is_an_error() {
        let mut skipped = Bytes::from_static(&[0x40, 2, 9, 9, PING, 1, 7]);
        assert_eq!(next(&mut skipped), Ok(Some(Frame::Ping { echo: 7 })));
        let mut refused = Bytes::from_static(&[0x3f, 0]);
        assert_eq!(next(&mut refused), Err(Broken::UnknownType(0x3f)));
    }

    #[test]
    fn a_field_that_a_later_version_appends_is_skipped() {
        let mut message = Bytes::from_static(&[PING, 3, 7, 1, 2, PONG, 1, 8]);
        assert_eq!(next(&mut message), Ok(Some(Frame::Ping { echo: 7 })));
        assert_eq!(next(&mut message), Ok(Some(Frame::Pong { echo: 8 })));
    }

    #[test]
    fn a_frame_that_ends_in_its_middle_is_an_error() {
        for raw in [&[DATA][..], &[DATA, 5, 1], &[PING, 1, 0x40], &[PING, 0], &[FIN, 1, 1], &[DATA, 0xc0, 1]]
        {
            assert_eq!(next(&mut Bytes::copy_from_slice(raw)), Err(Broken::Short), "{raw:?}");
        }
    }

    #[test]
    fn a_purpose_with_a_line_break_or_without_a_letter_is_an_error() {
        for purpose in [&b""[..], b"a\nb", &[0xff], &[b'a'; 256]] {
            let mut out = BytesMut::new();
            put_with(&mut out, OPEN, &[1], purpose);
            assert_eq!(next(&mut out.freeze()), Err(Broken::BadField("OPEN")));
        }
    }
}
