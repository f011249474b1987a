//! The talk with one agent over its link's control stream.
//!
//! In: a link, and what the run wants to say. Out: where the link stands, and the agent's reports, capped. The stream
//! is opened anew when it breaks on a link that stands; the run then says again what it said.

use std::time::Duration;

use glidepath_api_types::agent::{
    CONTROL_LINE_MAX_BYTES, EndCause as WireCause, FromAgent, PURPOSE_CONTROL, Phase as WirePhase, Report,
    ToAgent, Warning,
};
use glidepath_domain::run::{EndCause, EndReason, Event, Moment, Phase, ServerEnd};
use glidepath_svc_kit::crash;
use glidepath_tunnel::link::{Link, LinkState};
use glidepath_tunnel::stream::Stream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use super::driver::{AgentSelf, Message, Said};
use super::view::{NearEnd, UsedSoFar};

/// What an agent may be told and has not taken yet.
pub(super) const WORDS_WAITING: usize = 8;
/// Before the control stream is opened anew.
const OPEN_AGAIN: Duration = Duration::from_secs(1);
/// The last lines that are kept of a server, and of each.
const LINES_MAX: usize = 40;
const LINE_MAX_CHARS: usize = 400;
/// Warnings of one server; there are three limits.
const WARNINGS_MAX: usize = 8;
const READ_BYTES: usize = 16 * 1024;

/// One agent, as long as its link stands.
pub(super) struct Session {
    number: u32,
    link: Link,
    session: u64,
    tell: mpsc::Sender<Said>,
    words: mpsc::Receiver<ToAgent>,
}

enum Over {
    /// The stream broke; the link may stand.
    Stream,
    /// Nobody listens any more, or the link is closed.
    All,
}

impl Session {
    /// The session, and where the run leaves its words for the agent.
    pub(super) fn new(
        number: u32,
        link: Link,
        session: u64,
        tell: mpsc::Sender<Said>,
    ) -> (Self, mpsc::Sender<ToAgent>) {
        let (words_in, words) = mpsc::channel(WORDS_WAITING);
        (Self { number, link, session, tell, words }, words_in)
    }

    /// Talks until the link is over or the run drops its end. May be dropped half way.
    pub(super) async fn run(mut self) {
        let mut states = self.link.watch();
        let (number, session, tell) = (self.number, self.session, self.tell.clone());
        let watching = async {
            let mut up = true;
            loop {
                let state = states.borrow_and_update().clone();
                let event = match state {
                    LinkState::Up { .. } if !up => Some(Event::LinkBack(number)),
                    LinkState::Cut { .. } | LinkState::Dialling if up => Some(Event::LinkCut(number)),
                    LinkState::Closed { .. } => break,
                    LinkState::Up { .. } | LinkState::Cut { .. } | LinkState::Dialling => None,
                };
                up = matches!(state, LinkState::Up { .. });
                if let Some(event) = event
                    && tell.send((session, Message::Heard(event))).await.is_err()
                {
                    return;
                }
                if states.changed().await.is_err() {
                    break;
                }
            }
            let _ = tell.send((session, Message::LinkClosed(number))).await; // the run may be over
        };
        let talking = async {
            while let Ok(stream) = self.link.open(PURPOSE_CONTROL) {
                if self.tell.send((session, Message::Heard(Event::Linked(number)))).await.is_err() {
                    return;
                }
                match self.talk(stream).await {
                    Over::All => return,
                    Over::Stream => tokio::time::sleep(OPEN_AGAIN).await,
                }
            }
            std::future::pending().await // the link is closed: `watching` tells
        };
        tokio::select! {
            () = watching => {}
            () = talking => {}
        }
    }

    async fn talk(&mut self, stream: Stream) -> Over {
        let (mut from, mut to) = tokio::io::split(stream);
        let mut heard = Vec::new();
        let mut chunk = vec![0; READ_BYTES];
        loop {
            tokio::select! {
                word = self.words.recv() => {
                    let Some(word) = word else { return Over::All };
                    let Ok(mut line) = serde_json::to_vec(&word) else { continue };
                    line.push(b'\n');
                    crash::point("word.before");
                    if to.write_all(&line).await.is_err() || to.flush().await.is_err() {
                        return Over::Stream;
                    }
                    crash::point("word.after");
                }
                read = from.read(&mut chunk) => match read {
                    Ok(0) | Err(_) => return Over::Stream,
                    Ok(count) => {
                        let known = heard.len();
                        heard.extend_from_slice(&chunk[..count]);
                        if !self.take_lines(&mut heard, known).await {
                            return Over::All;
                        }
                    }
                },
            }
        }
    }

    /// Takes the whole lines out of what was heard; the first `known` bytes hold no line's end. False when the talk is
    /// over.
    async fn take_lines(&self, heard: &mut Vec<u8>, mut known: usize) -> bool {
        while let Some(line) = next_line(heard, &mut known) {
            match serde_json::from_slice::<FromAgent>(&line) {
                Ok(FromAgent::Report(report)) => {
                    if self.tell.send((self.session, report_message(self.number, report))).await.is_err() {
                        return false;
                    }
                }
                // An agent of a later version may say more than this one understands.
                Err(error) => tracing::debug!(%error, "an agent said something that was not understood"),
            }
        }
        if heard.len() > CONTROL_LINE_MAX_BYTES {
            self.link.close("a line on the control stream is too long");
            return false;
        }
        true
    }
}

/// Takes the first line out. Each byte is looked at once: an agent may send a long line byte by byte.
fn next_line(heard: &mut Vec<u8>, known: &mut usize) -> Option<Vec<u8>> {
    let from = std::mem::take(known);
    let end = heard.iter().skip(from).position(|byte| *byte == b'\n')?;
    Some(heard.drain(..=from + end).collect())
}

fn report_message(number: u32, report: Report) -> Message {
    let usage = report.usage.map(|usage| UsedSoFar {
        cpu_s: if usage.cpu_s.is_finite() { usage.cpu_s.max(0.0) } else { 0.0 },
        memory_bytes: usage.memory_bytes,
        memory_peak_bytes: usage.memory_peak_bytes,
    });
    let lines = plain_lines(&report.last_lines);
    let agent = AgentSelf { host: plain_line(&report.host), version: plain_line(&report.agent_version) };
    let warnings = near_ends(&report.warnings);
    Message::Reported { event: Event::Report(number, phase(report.phase), lines), usage, warnings, agent }
}

/// The warnings of an agent that are of a limit, soonest end first.
fn near_ends(warnings: &[Warning]) -> Vec<NearEnd> {
    let near = warnings.iter().take(WARNINGS_MAX).filter_map(|warning| {
        let reason = match warning.cause {
            WireCause::Walltime => EndReason::Walltime,
            WireCause::Idle => EndReason::Idle,
            WireCause::Unattended => EndReason::Unattended,
            WireCause::ByItself | WireCause::Asked | WireCause::HomeAbsent | WireCause::CannotStart => {
                return None;
            }
        };
        let ends_at = Moment(warning.ends_at.saturating_mul(1000));
        Some(NearEnd { reason, ends_at, before_s: warning.before_s })
    });
    let mut near: Vec<NearEnd> = near.collect();
    near.sort_by_key(|end| end.ends_at);
    near
}

fn phase(phase: WirePhase) -> Phase {
    match phase {
        WirePhase::Waiting => Phase::Waiting,
        WirePhase::Starting => Phase::Starting,
        WirePhase::Listening => Phase::Listening,
        WirePhase::Ending => Phase::Ending,
        WirePhase::Ended(end) => Phase::Ended(ServerEnd {
            exit_code: end.exit_code,
            signal: end.signal,
            why: end.why.map(|why| plain_line(&why)),
            cause: match end.cause {
                WireCause::ByItself => EndCause::ByItself,
                WireCause::Asked => EndCause::Asked,
                WireCause::Walltime => EndCause::Walltime,
                WireCause::Idle => EndCause::Idle,
                WireCause::Unattended => EndCause::Unattended,
                WireCause::HomeAbsent => EndCause::HomeAbsent,
                WireCause::CannotStart => EndCause::CannotStart,
            },
        }),
    }
}

fn plain_lines(lines: &[String]) -> Vec<String> {
    let skipped = lines.len().saturating_sub(LINES_MAX);
    lines.iter().skip(skipped).map(|line| plain_line(line)).collect()
}

/// A job's text as plain text: without control characters, capped.
fn plain_line(line: &str) -> String {
    let mut plain = String::new();
    let mut count = 0;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        if count == LINE_MAX_CHARS {
            plain.push('…');
            break;
        }
        if c == '\u{1b}' && chars.peek() == Some(&'[') {
            chars.by_ref().skip(1).find(|c| ('@'..='~').contains(c)); // a terminal's colour
            continue;
        }
        if c == '\t' || !c.is_control() {
            plain.push(c);
            count += 1;
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_however_they_are_cut_and_no_byte_is_looked_at_twice() {
        let (mut heard, mut lines) = (Vec::new(), Vec::new());
        for piece in ["a", "b\nc\n\nd", "", "e\n", "f"] {
            let mut known = heard.len();
            heard.extend_from_slice(piece.as_bytes());
            while let Some(line) = next_line(&mut heard, &mut known) {
                lines.push(String::from_utf8(line).unwrap());
            }
        }
        assert_eq!((lines.concat().as_str(), heard.as_slice()), ("ab\nc\n\nde\n", b"f".as_slice()));
        assert_eq!(next_line(&mut b"looked at\n".to_vec(), &mut 10), None);
    }

    #[test]
    fn text_of_a_job_is_capped_and_plain() {
        assert_eq!(plain_line("\u{1b}[31mboom\u{1b}[0m\u{7}\r"), "boom");
        assert_eq!(plain_line("<img onerror=x>"), "<img onerror=x>", "escaping belongs to whoever shows it");
        assert_eq!(plain_line(&"x".repeat(1000)).chars().count(), LINE_MAX_CHARS + 1);
        let lines: Vec<String> = (0..100).map(|n| n.to_string()).collect();
        let kept = plain_lines(&lines);
        assert_eq!((kept.len(), kept[0].as_str()), (LINES_MAX, "60"), "the last ones");
    }
}
