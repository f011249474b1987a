//! Kept inputs of the fuzz targets, replayed and then changed a little: what an ordinary test does of fuzzing. At length
//! it is done by `make fuzz`, with the same functions and the same inputs.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

/// Words that matter to one parser or another.
const WORDS: &[&[u8]] = &[
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\0",
    b" ",
    b":",
    b";",
    b",",
    b"..",
    b"%2f",
    b"%2e",
    b"//",
    b"0",
    b"\xff\xff\xff\xff",
    b"\xc0",
    b"chunked",
    b"Content-Length: 1\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Host: h\r\n",
    b"Connection: Upgrade\r\n",
    b"HTTP/1.1",
    b"[[site]]\n",
    b" = ",
    b"\"",
];

/// Runs a target with each kept input, then with so many changes of them. Always the same changes.
#[expect(clippy::panic, reason = "for tests alone: this is how they fail")]
pub fn replay(target: &str, changes: usize, run: impl Fn(&[u8])) {
    let inputs = kept(target);
    assert!(inputs.len() >= 5, "fuzz/corpus/{target} has {} inputs: it was not found", inputs.len());
    let tried = |input: &[u8]| {
        if let Err(cause) = catch_unwind(AssertUnwindSafe(|| run(input))) {
            let path = std::env::temp_dir().join(format!("glidepath-fuzz-{target}"));
            match std::fs::write(&path, input) {
                Ok(()) => panic!("{target} fails with {}: {}", path.display(), input.escape_ascii()),
                Err(_) => resume_unwind(cause),
            }
        }
    };
    inputs.iter().for_each(|input| tried(input));
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for _ in 0..changes {
        tried(&random.change(&inputs));
    }
}

/// The kept inputs of a target, in the order of their names.
fn kept(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths.iter().filter_map(|path| std::fs::read(path).ok()).collect()
}

/// Numbers that look random and are the same at each run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }

    /// One of the inputs, changed in one to six places.
    fn change(&mut self, inputs: &[Vec<u8>]) -> Vec<u8> {
        let mut input = inputs[self.below(inputs.len())].clone();
        for _ in 0..1 + self.below(6) {
            let at = self.below(input.len());
            match self.below(8) {
                0 if !input.is_empty() => input[at] = self.below(256) as u8,
                1 if !input.is_empty() => input[at] ^= 1 << self.below(8),
                2 => input.truncate(at),
                3 => input.insert(at, self.below(256) as u8),
                4 => {
                    let other = &inputs[self.below(inputs.len())];
                    let from = self.below(other.len());
                    input.splice(at.., other[from..].iter().copied());
                }
                5 => {
                    let word = WORDS[self.below(WORDS.len())];
                    input.splice(at..at, word.iter().copied());
                }
                6 => {
                    let end = (at + self.below(16)).min(input.len());
                    let piece: Vec<u8> = input[at..end].to_vec();
                    input.splice(at..at, piece);
                }
                _ => {
                    let end = (at + self.below(16)).min(input.len());
                    input.drain(at..end);
                }
            }
        }
        input
    }
}
