//! Takes what the server writes: into a log file of bounded size, and its last lines for reports.
//!
//! One thread reads the pipe and another writes the log, so that a disk never holds up the link, nor for long the server:
//! when it is full or does not answer, log lines are lost.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::scribe::{Scribe, Work};

/// Name of the log file in the job's folder; the one before it has `.1` added.
pub const LOG_NAME: &str = "server.log";
/// Size at which a log file is put aside. There are two, so twice this is the most.
const LOG_MAX_BYTES: u64 = 10 * 1024 * 1024;
/// Lines kept for reports.
const TAIL_LINES: usize = 50;
/// Characters kept of each.
const TAIL_LINE_CHARS: usize = 500;
/// Bytes of all lines in one report: reports go home every few seconds.
const TAIL_MAX_BYTES: usize = 8 * 1024;
/// Longest piece of output that is treated as one line.
const LINE_MAX_BYTES: usize = 8 * 1024;

/// Lines that wait for a slow disk.
const LOG_LINES_WAITING: usize = 512;
/// How long the server's output waits for room among them before lines are lost.
const DISK_PATIENCE: Duration = Duration::from_secs(2);
/// Between two tries.
const TRY_EVERY: Duration = Duration::from_millis(5);
/// How long the last lines may take to the disk.
const LAST_LINES: Duration = Duration::from_secs(1);

/// The server's output. Cheap to clone; all clones are the same output.
#[derive(Clone)]
pub struct Output {
    tail: Arc<Mutex<VecDeque<String>>>,
    log: Option<Scribe<Log>>,
}

impl Output {
    /// Opens the log in `folder`; without a folder, or where it cannot be written, only the last lines are kept.
    pub fn open(folder: Option<&Path>) -> Self {
        let log = folder.and_then(|folder| {
            let path = folder.join(LOG_NAME);
            let opened = Log::open(path.clone(), LOG_MAX_BYTES)
                .and_then(|log| Scribe::start("server log", log, LOG_LINES_WAITING));
            opened.inspect_err(|error| tracing::warn!(path = %path.display(), %error, "no server log")).ok()
        });
        Output { tail: Arc::default(), log }
    }

    /// Reads until the pipe's end in a thread of its own; the receiver tells when that is reached.
    pub fn follow(&self, pipe: io::PipeReader) -> io::Result<oneshot::Receiver<()>> {
        let (tell, told) = oneshot::channel();
        let output = self.clone();
        thread::Builder::new().name("server output".to_owned()).spawn(move || {
            let mut reader = BufReader::new(pipe);
            let mut lost = 0;
            while let Some(line) = next_line(&mut reader) {
                output.note(&line);
                lost = output.keep(line, lost);
            }
            let _ = tell.send(());
        })?;
        Ok(told)
    }

    /// Adds a line of the agent's own.
    pub fn say(&self, text: &str) {
        let line = format!("[glidepath] {text}\n").into_bytes();
        self.note(&line);
        if let Some(log) = &self.log
            && log.give(Box::new(move |log| log.write(&line))).is_err()
        {
            tracing::warn!(text, "not in the server's log: the disk does not answer");
        }
    }

    /// The last lines, oldest first: plain text, without control characters, of bounded size.
    pub fn last_lines(&self) -> Vec<String> {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let mut room = TAIL_MAX_BYTES;
        let fits = |line: &&String| room.checked_sub(line.len()).inspect(|left| room = *left).is_some();
        let mut lines: Vec<String> = tail.iter().rev().take_while(fits).cloned().collect();
        lines.reverse();
        lines
    }

    /// Waits until the log holds all that was written so far, but not for long.
    pub async fn written(&self) {
        if let Some(log) = &self.log {
            log.done(LAST_LINES).await;
        }
    }

    /// Keeps a line for reports.
    fn note(&self, line: &[u8]) {
        let text = clean_line(line);
        if !text.is_empty() {
            let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
            if tail.len() == TAIL_LINES {
                tail.pop_front();
            }
            tail.push_back(text);
        }
    }

    /// Gives a line of the server to the log; blocks for [`DISK_PATIENCE`] at most, once per stall of the disk. In and out
    /// goes how many lines the log lacks.
    fn keep(&self, line: Vec<u8>, lost: u64) -> u64 {
        let Some(log) = &self.log else { return 0 };
        let mut work: Work<Log> = Box::new(move |log| {
            if lost > 0 {
                log.write(
                    format!("[glidepath] {lost} lines are missing here: the disk was slow\n").as_bytes(),
                );
            }
            log.write(&line);
        });
        let began = Instant::now();
        while let Err(back) = log.give(work) {
            if lost > 0 || began.elapsed() > DISK_PATIENCE {
                return lost + 1;
            }
            work = back;
            thread::park_timeout(TRY_EVERY);
        }
        0
    }
}

/// The next line with its end, or what there is after [`LINE_MAX_BYTES`].
fn next_line(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    let limit = u64::try_from(LINE_MAX_BYTES).unwrap_or(u64::MAX);
    match io::Read::take(reader, limit).read_until(b'\n', &mut line) {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(line),
    }
}

/// Turns one line of output into plain text: no escape sequences, no control characters, at most 500 characters.
pub fn clean_line(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut clean = String::new();
    let mut chars = text.chars().peekable();
    let mut count = 0;
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            skip_escape(&mut chars);
        } else if count < TAIL_LINE_CHARS && (!c.is_control() || c == '\t') && !is_direction_mark(c) {
            clean.push(if c == '\t' { ' ' } else { c });
            count += 1;
        }
    }
    clean.trim_end().to_owned()
}

/// Skips the rest of a terminal's colour or cursor sequence.
fn skip_escape(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    if chars.next_if_eq(&'[').is_none() {
        return;
    }
    while chars.next_if(|c| matches!(c, '\u{20}'..='\u{3f}')).is_some() {}
    chars.next_if(|c| matches!(c, '\u{40}'..='\u{7e}'));
}

/// Characters that make text read other than it is written.
fn is_direction_mark(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
}

/// A file that is put aside when it is full.
struct Log {
    path: PathBuf,
    file: File,
    written: u64,
    max_bytes: u64,
}

impl Log {
    fn open(path: PathBuf, max_bytes: u64) -> io::Result<Self> {
        let file = create(&path)?;
        let written = file.metadata()?.len();
        Ok(Log { path, file, written, max_bytes })
    }

    fn write(&mut self, line: &[u8]) {
        let bytes = u64::try_from(line.len()).unwrap_or(u64::MAX);
        if self.written + bytes > self.max_bytes {
            self.rotate();
        }
        if self.file.write_all(line).is_ok() {
            self.written += bytes;
        }
    }

    fn rotate(&mut self) {
        let mut aside = self.path.clone().into_os_string();
        aside.push(".1");
        if std::fs::rename(&self.path, aside).is_ok()
            && let Ok(file) = create(&self.path)
        {
            self.file = file;
        } else if self.file.set_len(0).is_err() {
            return;
        }
        self.written = 0;
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn colours_and_control_characters_are_gone() {
        assert_eq!(clean_line(b"\x1b[1;31mred\x1b[0m\x07 bell\r\n"), "red bell");
        assert_eq!(clean_line("a\u{202e}b\tc\u{9b}".as_bytes()), "ab c");
        assert_eq!(clean_line(b"<img onerror=x>"), "<img onerror=x>", "escaping is the page's work");
        assert_eq!(clean_line(b"\xff\xfe"), "\u{fffd}\u{fffd}");
        assert_eq!(clean_line("é".repeat(900).as_bytes()).chars().count(), 500);
    }

    #[test]
    fn the_last_lines_are_the_last_and_bounded() {
        let output = Output::open(None);
        (0..200).for_each(|n| output.note(format!("line {n}\n").as_bytes()));
        let lines = output.last_lines();
        assert_eq!((lines.len(), lines[49].as_str()), (50, "line 199"));
        (0..50).for_each(|_| output.note("x".repeat(500).as_bytes()));
        assert!(output.last_lines().iter().map(String::len).sum::<usize>() <= TAIL_MAX_BYTES);
    }

    #[test]
    fn the_log_is_private_and_of_bounded_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(LOG_NAME);
        let mut log = Log::open(path.clone(), 100).unwrap();
        (0..30).for_each(|_| log.write(b"0123456789\n"));
        let sizes = [path.clone(), folder.path().join("server.log.1")].map(|p| p.metadata().unwrap().len());
        assert!(sizes.iter().all(|size| *size <= 100), "{sizes:?}");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_line_without_end_is_cut_into_pieces() {
        let mut endless = io::Cursor::new(vec![b'x'; 3 * LINE_MAX_BYTES]);
        assert_eq!(next_line(&mut endless).unwrap().len(), LINE_MAX_BYTES);
    }
}
