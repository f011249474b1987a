//! What records and processes mean in the words of the trait. Pure, but for the reading of one log line.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use glidepath_domain::backend::{JobEnd, JobId, JobLabel, JobSeen, JobState, ServerAddress};
use glidepath_domain::names::{Attempt, ServerKey};
use glidepath_domain::site::Reach;

use super::procs::Process;
use super::queue::{Rule, waiting};
use super::record::{Phase, Record};
use super::render::SOCKET;

/// Bytes at the end of a log in which its last line is looked for.
const TAIL_BYTES: u64 = 4096;
/// Longest line that is told.
const LINE_MAX_CHARS: usize = 300;

/// The jobs, in the order of their submits.
pub(crate) fn jobs(records: &[Record], rule: Rule, now_ms: u64, reach: Reach) -> Vec<JobSeen> {
    let waiting = waiting(records, rule, now_ms);
    let state = |record: &Record| match &record.phase {
        Phase::Ended { end } => JobState::Ended(end.clone()),
        Phase::Starting { .. } | Phase::Running { .. } => {
            JobState::Running { direct: address(record, reach) }
        }
        Phase::Queued => {
            let place = waiting.iter().find(|waiting| waiting.attempt == record.attempt);
            JobState::Queued {
                position: place.map(|place| place.position),
                predicted_wait_s: place.and_then(|place| place.predicted_wait_s),
            }
        }
    };
    let seen = |record: &Record| JobSeen {
        label: record.label(),
        id: JobId(record.attempt.to_string()),
        state: state(record),
    };
    records.iter().map(seen).collect()
}

/// Processes that this root made and of which it has no folder, one entry per attempt. `mark` gives what they must
/// carry: a process that calls itself something else is not believed.
pub(crate) fn strays(
    records: &[Record],
    all: &[Process],
    mark: impl Fn(&ServerKey, Attempt) -> String,
) -> Vec<JobSeen> {
    let mut known: BTreeSet<Attempt> = records.iter().map(|record| record.attempt).collect();
    let mut strays = Vec::new();
    for labels in all.iter().filter_map(|process| process.labels.as_ref()) {
        let (Some(key), Some(carried)) = (&labels.key, &labels.mark) else { continue };
        if known.contains(&labels.attempt) || *carried != mark(key, labels.attempt) {
            continue;
        }
        known.insert(labels.attempt);
        strays.push(JobSeen {
            label: JobLabel { key: key.clone(), attempt: labels.attempt },
            id: JobId(labels.attempt.to_string()),
            state: JobState::Running { direct: None },
        });
    }
    strays
}

/// The end of an agent that nobody watched.
pub(crate) fn unseen_end() -> JobEnd {
    let detail = Some("it ended while nobody watched it".to_owned());
    JobEnd { exit_code: None, signal: None, detail }
}

/// The last line of a log, as plain text.
pub(crate) fn last_line(log: &Path) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES))).ok()?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail).ok()?;
    let tail = String::from_utf8_lossy(&tail);
    let line = tail.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.chars().filter(|c| !c.is_control()).take(LINE_MAX_CHARS).collect())
}

fn address(record: &Record, reach: Reach) -> Option<ServerAddress> {
    match reach {
        Reach::Tunnel => None,
        Reach::Direct => {
            Some(ServerAddress::Unix { path: record.socket_dir.join(SOCKET), uid: record.account.uid })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::procs::Labels;
    use super::super::render::tests::record;
    use super::*;
    use std::path::PathBuf;

    const RULE: Rule = Rule { slots: None, delay_ms: 0 };

    #[test]
    fn only_a_direct_site_tells_where_the_server_listens() {
        let running = Record { phase: Phase::Starting { claim: "c".to_owned() }, ..record() };
        let state = |reach| jobs(std::slice::from_ref(&running), RULE, 0, reach).remove(0).state;
        assert_eq!(state(Reach::Tunnel), JobState::Running { direct: None });
        let path = PathBuf::from("/w/jobs/x/own/s/server.sock");
        let direct = Some(ServerAddress::Unix { path, uid: 70_001 });
        assert_eq!(state(Reach::Direct), JobState::Running { direct });
    }

    #[test]
    fn a_process_without_a_folder_is_told_only_with_the_right_mark() {
        let labels = |mark: &str| Labels {
            attempt: record().attempt,
            key: Some(record().key),
            mark: Some(mark.to_owned()),
        };
        let process = |mark: &str| Process {
            pid: 9,
            parent: 1,
            session: 9,
            started: 1,
            uid: 1,
            labels: Some(labels(mark)),
        };
        let seen = |records: &[Record], mark: &str| {
            strays(records, &[process(mark), process(mark)], |_, _| "right".to_owned())
        };
        assert_eq!(seen(&[], "right").len(), 1);
        assert_eq!(seen(&[], "forged"), []);
        assert_eq!(seen(&[record()], "right"), []);
    }

    #[test]
    fn a_log_line_is_plain_and_short() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        std::fs::write(&log, format!("first\n\x1b[31m{}\n\n", "x".repeat(2000))).unwrap();
        let line = last_line(&log).unwrap();
        assert!(line.starts_with("[31mxxx") && line.chars().count() == LINE_MAX_CHARS);
        assert_eq!(last_line(&folder.path().join("none")), None);
    }
}
