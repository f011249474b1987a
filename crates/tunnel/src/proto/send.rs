//! The sending half of a stream: bytes wait here until they are sent, and stay until the other end has them.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::ranges::Ranges;

/// Writes are gathered into chunks of this size.
const CHUNK_BYTES: usize = 64 * 1024;

/// Bytes of one direction, from the first unacknowledged one to the last written one.
#[derive(Debug, Default)]
pub(crate) struct SendBuffer {
    /// Whole chunks with their offsets, in order, from `base` on.
    chunks: VecDeque<(u64, Bytes)>,
    /// What was written after the last chunk.
    tail: BytesMut,
    /// Everything before is acknowledged.
    base: u64,
    /// What is acknowledged after `base`.
    acked: Ranges,
    /// What was sent on a lane that is gone and must be sent again.
    lost: Ranges,
    /// The first byte that was never sent.
    next: u64,
    /// The end of what was written.
    end: u64,
}

impl SendBuffer {
    /// Written, never sent.
    pub(crate) fn unsent(&self) -> u64 {
        self.end - self.next
    }

    /// Sent, and the other end has not said that it has it.
    pub(crate) fn unconfirmed(&self) -> u64 {
        self.next - self.base
    }

    /// The first byte that was never sent.
    pub(crate) fn sent(&self) -> u64 {
        self.next
    }

    pub(crate) fn has_lost(&self) -> bool {
        !self.lost.is_empty()
    }

    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Bytes held in memory.
    #[cfg(test)]
    pub(crate) fn held(&self) -> u64 {
        self.end - self.base
    }

    pub(crate) fn all_acked(&self) -> bool {
        self.base == self.end
    }

    pub(crate) fn all_sent(&self) -> bool {
        self.next == self.end && self.lost.is_empty()
    }

    /// Whether there is something that credit up to `limit` allows to send.
    pub(crate) fn can_send(&self, limit: u64) -> bool {
        !self.lost.is_empty() || self.next < self.end.min(limit)
    }

    pub(crate) fn write(&mut self, data: &[u8]) {
        self.tail.extend_from_slice(data);
        self.end += data.len() as u64;
        if self.tail.len() >= CHUNK_BYTES {
            self.seal();
        }
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            let offset = self.end - self.tail.len() as u64;
            self.chunks.push_back((offset, self.tail.split().freeze()));
        }
    }

    /// Takes the next piece to send, lost ones first: at most `most` bytes, none beyond `limit`. Says whether it
    /// was lost before.
    pub(crate) fn take(&mut self, most: usize, limit: u64) -> Option<(u64, Bytes, bool)> {
        let (start, end, again) = match self.lost.first() {
            Some(range) => (range.start, range.end, true),
            None if self.next < self.end.min(limit) => (self.next, self.end.min(limit), false),
            None => return None,
        };
        if self.end - (self.tail.len() as u64) <= start {
            self.seal();
        }
        let index = self.chunks.partition_point(|(offset, _)| *offset <= start).checked_sub(1)?;
        let (offset, chunk) = &self.chunks[index];
        let from = (start - offset) as usize;
        let length = (chunk.len() - from).min(most).min((end - start) as usize);
        let bytes = chunk.slice(from..from + length);
        let end = start + length as u64;
        if again {
            self.lost.remove(start..end);
        } else {
            self.next = end;
        }
        Some((start, bytes, again))
    }

    /// The other end has these bytes.
    pub(crate) fn ack(&mut self, range: Range<u64>) {
        self.lost.remove(range.clone());
        if range.start > self.base {
            self.acked.insert(range);
            return;
        }
        self.base = self.base.max(range.end);
        while let Some(first) = self.acked.first()
            && first.start <= self.base
        {
            self.base = self.base.max(first.end);
            self.acked.remove(first);
        }
        while let Some((offset, chunk)) = self.chunks.front()
            && offset + chunk.len() as u64 <= self.base
        {
            self.chunks.pop_front();
        }
    }

    /// These bytes went down with their lane, unless they were acknowledged otherwise.
    pub(crate) fn lose(&mut self, range: Range<u64>) {
        let start = range.start.max(self.base);
        if start < range.end {
            for part in self.acked.missing(start..range.end) {
                self.lost.insert(part);
            }
        }
    }

    /// Forgets everything: the direction was reset.
    pub(crate) fn clear(&mut self) {
        self.chunks.clear();
        self.tail = BytesMut::new();
        self.acked.clear();
        self.lost.clear();
        self.base = self.end;
        self.next = self.end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_is_sent_again_and_what_was_acked_is_not() {
        let mut buffer = SendBuffer::default();
        buffer.write(b"0123456789");
        assert_eq!(buffer.take(4, 100).unwrap(), (0, Bytes::from_static(b"0123"), false));
        assert_eq!(buffer.take(4, 6).unwrap(), (4, Bytes::from_static(b"45"), false));
        assert_eq!(buffer.take(4, 6), None);
        buffer.ack(2..4);
        buffer.lose(0..6);
        assert_eq!(buffer.take(9, 6).unwrap(), (0, Bytes::from_static(b"01"), true));
        assert_eq!(buffer.take(9, 6).unwrap(), (4, Bytes::from_static(b"45"), true));
        buffer.ack(0..2);
        buffer.ack(4..6);
        assert_eq!(buffer.held(), 4);
        assert_eq!(buffer.take(9, 100).unwrap(), (6, Bytes::from_static(b"6789"), false));
        assert!(buffer.all_sent());
        buffer.ack(6..10);
        assert!(buffer.all_acked());
        buffer.lose(0..10);
        assert!(buffer.all_sent(), "an acknowledged byte is never lost");
    }
}
