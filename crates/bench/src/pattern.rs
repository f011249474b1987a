//! Bytes that tell where they belong: what is sent in bulk, and the check of what arrives.
//!
//! Pseudo-random, repeated after an odd number of bytes, so that neither a lost nor a repeated nor a moved piece fits.
//! Every stream begins somewhere else, so that pieces of two streams cannot change places. Checking is one comparison
//! of memory.

use std::sync::OnceLock;

/// A prime: no power of two, as sizes of buffers and frames are, ever lines up with it.
const PERIOD: usize = 1_048_573;
/// What can be had in one piece.
pub(crate) const PIECE_BYTES: usize = 256 * 1024;
/// Where one more stream begins: far from its neighbours, and no multiple of any buffer.
const APART: u64 = 130_003;

/// The bytes of one stream, from where it begins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pattern {
    begin: u64,
    bytes: &'static [u8],
}

impl Pattern {
    /// Of a stream whose number both ends know.
    pub(crate) fn of_stream(number: u64) -> Self {
        static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
        Self { begin: number.wrapping_mul(APART) % PERIOD as u64, bytes: BYTES.get_or_init(noise) }
    }

    /// What stands at this offset: at most `bytes`, at most a piece.
    pub(crate) fn at(&self, offset: u64, bytes: u64) -> &'static [u8] {
        let begin = ((self.begin + offset) % PERIOD as u64) as usize;
        let length = bytes.min(PIECE_BYTES as u64) as usize;
        self.bytes.get(begin..begin + length).unwrap_or_default()
    }

    /// Whether this is what stands at this offset.
    pub(crate) fn holds(&self, offset: u64, arrived: &[u8]) -> bool {
        let mut offset = offset;
        arrived.chunks(PIECE_BYTES).all(|piece| {
            let fits = self.at(offset, piece.len() as u64) == piece;
            offset += piece.len() as u64;
            fits
        })
    }
}

fn noise() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes: Vec<u8> = (0..PERIOD)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect();
    bytes.extend_from_within(..PIECE_BYTES); // so that a piece may begin anywhere
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_in_order_fits_however_it_is_cut() {
        let pattern = Pattern::of_stream(7);
        let mut sent = Vec::new();
        while sent.len() < 3 * PERIOD {
            sent.extend_from_slice(pattern.at(sent.len() as u64, 100_000));
        }
        assert!(pattern.holds(0, &sent));
        assert!(pattern.holds(1, &sent[1..]));
        assert!(sent.chunks(65_536).enumerate().all(|(n, piece)| pattern.holds(n as u64 * 65_536, piece)));
    }

    #[test]
    fn a_byte_that_differs_a_piece_that_moved_and_another_stream_do_not_fit() {
        let pattern = Pattern::of_stream(0);
        let mut sent = pattern.at(0, 65_536).to_vec();
        assert!(!pattern.holds(65_536, &sent), "repeated");
        assert!(!pattern.holds(0, &sent[4096..]), "lost");
        assert!(!Pattern::of_stream(1).holds(0, &sent), "of another stream");
        sent[40_000] ^= 1;
        assert!(!pattern.holds(0, &sent), "changed");
    }
}
