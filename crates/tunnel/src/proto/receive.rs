//! The receiving half of a stream: puts pieces in order, drops what came twice, hands out bytes once.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Buf, Bytes, BytesMut};

use super::frame::Broken;

/// Smaller pieces are gathered.
const SMALL_BYTES: usize = 4 * 1024;
/// Small pieces are gathered up to this.
const GATHER_BYTES: usize = 32 * 1024;
/// Holes between pieces that came early. More is no honest sender.
const MAX_HOLES: usize = 1024;

/// Bytes of one direction, from the first unread one on. Every piece is copied: as a slice it would keep alive the
/// message it came in, and the socket's buffer that the message came in, and both may be much larger.
#[derive(Debug, Default)]
pub(crate) struct ReceiveBuffer {
    ready: VecDeque<Bytes>,
    tail: BytesMut,
    /// Pieces behind a hole, by offset; adjacent ones are joined.
    early: BTreeMap<u64, BytesMut>,
    /// The first byte that has not come.
    next: u64,
    /// The first byte that was not read.
    read: u64,
}

impl ReceiveBuffer {
    pub(crate) fn received(&self) -> u64 {
        self.next
    }

    pub(crate) fn read_offset(&self) -> u64 {
        self.read
    }

    pub(crate) fn has_unread(&self) -> bool {
        self.read < self.next
    }

    /// Bytes held in memory.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn held(&self) -> u64 {
        self.next - self.read + self.early.values().map(|piece| piece.len() as u64).sum::<u64>()
    }

    /// The end of the furthest piece.
    pub(crate) fn furthest(&self) -> u64 {
        self.early.last_key_value().map_or(self.next, |(offset, piece)| offset + piece.len() as u64)
    }

    /// Takes a piece. Answers how many bytes of it were new.
    pub(crate) fn push(&mut self, offset: u64, mut bytes: Bytes) -> Result<u64, Broken> {
        let mut offset = offset;
        if offset < self.next {
            let known = (self.next - offset).min(bytes.len() as u64);
            bytes.advance(known as usize);
            offset += known;
        }
        if bytes.is_empty() {
            return Ok(0);
        }
        if offset > self.next {
            return self.push_early(offset, bytes);
        }
        let fresh = bytes.len() as u64;
        self.append(bytes);
        let mut joined = 0;
        while let Some(entry) = self.early.first_entry()
            && *entry.key() <= self.next
        {
            let (offset, mut piece) = entry.remove_entry();
            let known = (self.next - offset).min(piece.len() as u64);
            joined += known;
            piece.advance(known as usize);
            self.append(piece.freeze());
        }
        Ok(fresh - joined.min(fresh))
    }

    /// Offers bytes to `take` before they are kept, if they come next and nothing waits before them. Answers how many it
    /// took: they count as read.
    pub(crate) fn pass(&mut self, offset: u64, bytes: &[u8], take: impl FnOnce(&[u8]) -> usize) -> u64 {
        let known = self.next.saturating_sub(offset) as usize;
        if offset > self.next || known >= bytes.len() || self.has_unread() || !self.early.is_empty() {
            return 0;
        }
        let taken = take(&bytes[known..]) as u64;
        self.next += taken;
        self.read += taken;
        taken
    }

    fn append(&mut self, bytes: Bytes) {
        self.next += bytes.len() as u64;
        if bytes.len() < SMALL_BYTES {
            self.tail.extend_from_slice(&bytes);
            if self.tail.len() >= GATHER_BYTES {
                self.ready.push_back(self.tail.split().freeze());
            }
        } else {
            if !self.tail.is_empty() {
                self.ready.push_back(self.tail.split().freeze());
            }
            self.ready.push_back(Bytes::copy_from_slice(&bytes));
        }
    }

    fn push_early(&mut self, mut offset: u64, mut bytes: Bytes) -> Result<u64, Broken> {
        let mut fresh = 0;
        while !bytes.is_empty() {
            // What a piece before it covers already.
            let mut joins = None;
            if let Some((start, piece)) = self.early.range(..=offset).next_back() {
                let end = start + piece.len() as u64;
                if end > offset {
                    let known = (end - offset).min(bytes.len() as u64);
                    bytes.advance(known as usize);
                    offset += known;
                    continue;
                }
                if end == offset {
                    joins = Some(*start);
                }
            }
            // What lies in the hole up to the next piece.
            let room = match self.early.range(offset..).next() {
                Some((start, _)) => start - offset,
                None => u64::MAX,
            };
            let part = bytes.split_to(room.min(bytes.len() as u64) as usize);
            fresh += part.len() as u64;
            let next_offset = offset + part.len() as u64;
            match joins.and_then(|start| self.early.get_mut(&start)) {
                Some(piece) => piece.extend_from_slice(&part),
                None => {
                    self.early.insert(offset, BytesMut::from(&part[..]));
                }
            }
            offset = next_offset;
        }
        if self.early.len() > MAX_HOLES {
            return Err(Broken::Rule("a stream has too many holes"));
        }
        Ok(fresh)
    }

    /// Hands out the next bytes, as many as fit; says how many.
    pub(crate) fn read(&mut self, mut put: impl FnMut(&[u8]) -> usize) -> usize {
        let mut total = 0;
        loop {
            let taken = if let Some(front) = self.ready.front_mut() {
                let taken = put(front);
                front.advance(taken);
                if front.is_empty() {
                    self.ready.pop_front();
                }
                taken
            } else if !self.tail.is_empty() {
                let taken = put(&self.tail);
                self.tail.advance(taken);
                if self.tail.is_empty() {
                    self.tail = BytesMut::new();
                }
                taken
            } else {
                0
            };
            if taken == 0 {
                break;
            }
            total += taken;
        }
        self.read += total as u64;
        total
    }

    /// Forgets what nobody will read.
    pub(crate) fn clear(&mut self) {
        self.ready.clear();
        self.tail = BytesMut::new();
        self.early.clear();
        self.read = self.next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn drain(buffer: &mut ReceiveBuffer) -> Vec<u8> {
        let mut out = Vec::new();
        buffer.read(|bytes| {
            out.extend_from_slice(bytes);
            bytes.len()
        });
        out
    }

    proptest! {
        #[test]
        fn pieces_in_any_order_come_out_once_and_in_order(
            pieces in prop::collection::vec((0usize..30_000, 1usize..9_000, 0usize..9_000), 0..60),
        ) {
            let whole: Vec<u8> = (0..40_000u32).map(|i| (i * 7 % 251) as u8).collect();
            let mut buffer = ReceiveBuffer::default();
            let (mut out, mut fresh) = (Vec::new(), 0);
            for (start, length, passes) in pieces.into_iter().chain([(0, 40_000, 3)]) {
                // Every third piece is the one that comes next.
                let start = if length % 3 == 0 { buffer.received() as usize } else { start };
                let end = (start + length).min(whole.len());
                fresh += buffer.pass(start as u64, &whole[start..end], |next| {
                    let taken = next.len().min(passes);
                    out.extend_from_slice(&next[..taken]);
                    taken
                });
                fresh += buffer.push(start as u64, Bytes::copy_from_slice(&whole[start..end])).unwrap();
                prop_assert_eq!(fresh, buffer.held() + buffer.read_offset());
                if passes % 2 == 0 {
                    out.extend(drain(&mut buffer));
                }
            }
            out.extend(drain(&mut buffer));
            prop_assert_eq!(fresh, 40_000);
            prop_assert!(out == whole);
        }
    }

    #[test]
    fn a_piece_keeps_nothing_alive_of_the_message_that_it_came_in() {
        for offset in [0, 7] {
            let message = Bytes::from(vec![1; 256 * 1024]);
            let mut buffer = ReceiveBuffer::default();
            buffer.push(offset, message.slice(..8 * 1024)).unwrap();
            assert!(message.is_unique(), "a piece at {offset}");
        }
    }

    #[test]
    fn bytes_of_one_each_cost_no_allocation_each() {
        let mut buffer = ReceiveBuffer::default();
        for offset in 0..100_000 {
            buffer.push(offset, Bytes::from_static(b"x")).unwrap();
        }
        assert!(buffer.ready.len() < 10);
        assert_eq!(drain(&mut buffer).len(), 100_000);
    }

    #[test]
    fn a_stream_full_of_holes_is_an_error() {
        let mut buffer = ReceiveBuffer::default();
        let broken = (1..5_000).find_map(|n| buffer.push(n * 2, Bytes::from_static(b"x")).err());
        assert_eq!(broken, Some(Broken::Rule("a stream has too many holes")));
    }
}
