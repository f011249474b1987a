//! Finds the processes of a job in `/proc`, and ends those that outlived the server.
//!
//! The agent is a subreaper: whatever a process of the job leaves behind becomes the agent's child, so the tree below
//! the agent is the whole job. The label in the environment ([`ATTEMPT_VAR`]) finds the same from outside.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

/// Environment variable that every process of a job carries: `<run>-<number>`. No secret.
pub const ATTEMPT_VAR: &str = "GLIDEPATH_ATTEMPT";

/// How long [`sweep`] goes on with SIGKILL before it gives up.
const KILL_FOR: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(40);

/// One process, as its line in `/proc` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Its parent's.
    pub parent: i32,
    /// Ended and not collected yet.
    pub zombie: bool,
    /// CPU time of it and of the children it collected, in clock ticks.
    pub cpu_ticks: u64,
    /// Start since boot, in clock ticks: with the pid, the identity of a process.
    pub started: u64,
    /// Resident memory, in pages.
    pub resident_pages: u64,
}

/// Reads one `/proc/<pid>/stat` line. The name in brackets may hold anything, brackets and spaces too.
pub fn parse_stat(line: &str) -> Option<Process> {
    let pid = line.split(' ').next()?.parse().ok()?;
    let rest: Vec<&str> = line.get(line.rfind(')')? + 1..)?.split_whitespace().collect();
    let number = |at: usize| rest.get(at)?.parse::<u64>().ok();
    Some(Process {
        pid,
        parent: rest.get(1)?.parse().ok()?,
        zombie: matches!(*rest.first()?, "Z" | "X"),
        cpu_ticks: number(11)? + number(12)? + number(13)? + number(14)?,
        started: number(19)?,
        resident_pages: number(21)?,
    })
}

/// One process; `None` when it is gone. Its name may be no UTF-8: a process chooses it, and the kernel cuts it anywhere.
pub fn look(pid: i32) -> Option<Process> {
    parse_stat(&String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/stat")).ok()?))
}

/// Everything that runs on this machine, as far as this account may see. Reads many small files: not for a runtime
/// thread.
pub fn scan() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter_map(look).collect()
}

/// The processes below `root`, without it, from the kernel's own lists of children where it keeps them: on a busy node
/// far cheaper than [`scan`]. It may miss a process that is born meanwhile: good for sums, not for a sweep.
pub fn tree(root: i32) -> Vec<Process> {
    let Some(first) = children(root) else { return below(&scan(), root) };
    let (mut open, mut found) = (first, Vec::new());
    while let Some(pid) = open.pop() {
        found.extend(look(pid));
        open.extend(children(pid).unwrap_or_default());
    }
    found
}

/// `None` where this kernel keeps no such list, or the process is gone.
fn children(pid: i32) -> Option<Vec<i32>> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists.fold(None, |found, list| {
        let pids = list.split_whitespace().filter_map(|child| child.parse().ok());
        Some(found.into_iter().flatten().chain(pids).collect::<Vec<i32>>())
    })
}

/// The processes below `root`, without it.
pub fn below(all: &[Process], root: i32) -> Vec<Process> {
    let mut children: HashMap<i32, Vec<Process>> = HashMap::new();
    for process in all {
        children.entry(process.parent).or_default().push(*process);
    }
    let mut found = Vec::new();
    let mut open = vec![root];
    while let Some(parent) = open.pop() {
        for child in children.remove(&parent).unwrap_or_default() {
            open.push(child.pid);
            found.push(child);
        }
    }
    found
}

/// Whether the process carries the label of this attempt; `false` when its environment cannot be read.
pub fn carries(pid: i32, attempt: &str) -> bool {
    let Ok(environ) = fs::read(Path::new("/proc").join(pid.to_string()).join("environ")) else {
        return false;
    };
    let wanted = format!("{ATTEMPT_VAR}={attempt}");
    environ.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes())
}

/// Ends everything of the job but the agent: SIGTERM, and SIGKILL for what is there after `grace`. Returns the number
/// of processes that could not be ended.
pub async fn sweep(attempt: &str, grace: Duration) -> usize {
    let began = Instant::now();
    let mut asked = HashSet::new();
    loop {
        let left = leftovers(attempt).await;
        if left.is_empty() {
            return 0;
        }
        if began.elapsed() > grace + KILL_FOR {
            return left.len();
        }
        let unkindly = began.elapsed() >= grace;
        for process in left {
            let first_time = asked.insert((process.pid, process.started));
            if unkindly {
                signal_same(&process, Signal::SIGKILL);
            } else if first_time {
                signal_same(&process, Signal::SIGTERM);
            }
        }
        sleep(LOOK_EVERY).await;
    }
}

async fn leftovers(attempt: &str) -> Vec<Process> {
    let attempt = attempt.to_owned();
    tokio::task::spawn_blocking(move || alive_of_job(&attempt)).await.unwrap_or_default()
}

fn alive_of_job(attempt: &str) -> Vec<Process> {
    let me = nix::unistd::getpid().as_raw();
    let all = scan();
    let mut found = below(&all, me);
    let known: HashSet<i32> = found.iter().map(|process| process.pid).chain(above(&all, me)).collect();
    found.extend(all.iter().filter(|process| !known.contains(&process.pid) && carries(process.pid, attempt)));
    found.retain(|process| !process.zombie);
    found
}

/// The process itself and its parents up to the first: whoever started the agent may carry the label too.
fn above(all: &[Process], pid: i32) -> Vec<i32> {
    let parents: HashMap<i32, i32> = all.iter().map(|process| (process.pid, process.parent)).collect();
    let mut line = vec![pid];
    while let Some(parent) = line.last().and_then(|last| parents.get(last)).filter(|parent| **parent > 0) {
        line.push(*parent);
    }
    line
}

/// Signals a process unless its number belongs to another one by now.
fn signal_same(process: &Process, signal: Signal) {
    if look(process.pid).is_some_and(|now| now.started == process.started) {
        let _ = kill(Pid::from_raw(process.pid), signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str =
        "7 (a) b (c) S 3 7 7 0 -1 4194560 100 0 0 0 5 6 7 8 20 0 1 0 9000 1000 250 18446744073709551615";

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let process = parse_stat(LINE).unwrap();
        assert_eq!((process.pid, process.parent, process.zombie), (7, 3, false));
        assert_eq!((process.cpu_ticks, process.started, process.resident_pages), (26, 9000, 250));
    }

    #[test]
    fn a_short_line_is_no_process() {
        assert_eq!(parse_stat("7 (sh) S 3"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn the_tree_below_holds_grandchildren_and_no_neighbour() {
        let at = |pid, parent| Process { pid, parent, ..parse_stat(LINE).unwrap() };
        let all = [at(2, 1), at(3, 2), at(4, 3), at(5, 1)];
        let mut found: Vec<i32> = below(&all, 2).iter().map(|process| process.pid).collect();
        found.sort_unstable();
        assert_eq!(found, [3, 4]);
    }

    #[test]
    fn both_ways_to_a_tree_find_a_child() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let me = nix::unistd::getpid().as_raw();
        let pid = i32::try_from(child.id()).unwrap();
        let holds = |found: &[Process]| found.iter().any(|process| process.pid == pid);
        let seen = (holds(&tree(me)), holds(&below(&scan(), me)));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(seen, (true, true));
    }

    #[test]
    fn this_very_process_is_seen() {
        let me = nix::unistd::getpid().as_raw();
        assert!(scan().iter().any(|process| process.pid == me && process.resident_pages > 0));
    }
}
