//! The processes of this machine: which belong to a job, and their end.
//!
//! In: `/proc`. Out: who lives, who carries which label, signals to exactly those. A number alone is never believed:
//! the time at which the process began and the machine's start must match.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use glidepath_domain::names::{Attempt, ServerKey};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::record::ProcessId;

/// Carries the attempt: a label, no secret.
pub(crate) const ATTEMPT: &str = "GLIDEPATH_ATTEMPT";
/// Carries the server's key.
pub(crate) const KEY: &str = "GLIDEPATH_KEY";
/// Carries the root's mark.
pub(crate) const MARK: &str = "GLIDEPATH_MARK";

/// One process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) session: i32,
    /// In ticks since the machine's start.
    pub(crate) started: u64,
    pub(crate) uid: u32,
    pub(crate) labels: Option<Labels>,
}

/// What a process carries in its environment, as far as it can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Labels {
    pub(crate) attempt: Attempt,
    pub(crate) key: Option<ServerKey>,
    pub(crate) mark: Option<String>,
}

/// Names this start of the machine.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Seconds since the machine's start.
pub(crate) fn uptime_s() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/uptime")?;
    let whole = text.split('.').next().and_then(|whole| whole.parse().ok());
    whole.ok_or_else(|| io::Error::other("/proc/uptime does not start with a number"))
}

/// The process with this number now, as one that can be found again.
pub(crate) fn identify(pid: i32, boot: &str) -> io::Result<Option<ProcessId>> {
    let stat = stat(pid)?;
    Ok(stat.map(|stat| ProcessId { pid, started: stat.started, boot: boot.to_owned() }))
}

/// True while exactly this process lives. One that ended and was not collected is dead.
pub(crate) fn lives(id: &ProcessId, boot: &str) -> io::Result<bool> {
    if id.boot != boot {
        return Ok(false);
    }
    Ok(stat(id.pid)?.is_some_and(|stat| stat.started == id.started && !stat.is_dead()))
}

/// All living processes, those of other accounts too where they may be seen. An environment that may not be read carries
/// no labels.
pub(crate) fn all() -> io::Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Some(stat) = stat(pid)? else { continue };
        if stat.is_dead() {
            continue;
        }
        let folder = Path::new("/proc").join(&name);
        let Ok(owner) = fs::metadata(&folder) else { continue };
        let labels = fs::read(folder.join("environ")).ok().and_then(|environ| labels(&environ));
        found.push(Process {
            pid,
            parent: stat.parent,
            session: stat.session,
            started: stat.started,
            uid: owner.uid(),
            labels,
        });
    }
    Ok(found)
}

/// The processes of one job among `all`: those that carry its label, those of its agent's session, those in its
/// cgroup, and the children of any of them. Only processes of `uid` (or of root: a job on its way to its account).
pub(crate) fn of_job<'a>(
    all: &'a [Process],
    attempt: Attempt,
    agent: Option<&ProcessId>,
    in_cgroup: &BTreeSet<i32>,
    uid: Option<u32>,
) -> Vec<&'a Process> {
    let may_be = |process: &Process| uid.is_none_or(|uid| process.uid == uid || process.uid == 0);
    let carries = |process: &Process| process.labels.as_ref().is_some_and(|labels| labels.attempt == attempt);
    let in_session = |process: &Process| {
        agent.is_some_and(|agent| process.session == agent.pid && process.started >= agent.started)
            && uid.is_some_and(|uid| process.uid == uid)
    };
    let mut ours: BTreeSet<i32> = all
        .iter()
        .filter(|process| {
            in_cgroup.contains(&process.pid) || (may_be(process) && (carries(process) || in_session(process)))
        })
        .map(|process| process.pid)
        .collect();
    loop {
        let before = ours.len();
        for process in all {
            if ours.contains(&process.parent) && may_be(process) {
                ours.insert(process.pid);
            }
        }
        if ours.len() == before {
            break;
        }
    }
    all.iter().filter(|process| ours.contains(&process.pid)).collect()
}

/// The first of a job's processes: the one that none of the others made.
pub(crate) fn eldest<'a>(ours: &[&'a Process]) -> Option<&'a Process> {
    let numbers: BTreeSet<i32> = ours.iter().map(|process| process.pid).collect();
    ours.iter()
        .filter(|process| !numbers.contains(&process.parent))
        .min_by_key(|process| process.started)
        .copied()
}

/// Sends a signal to exactly this process; nothing happens when it is gone.
pub(crate) fn signal(pid: i32, started: u64, signal: Signal) -> io::Result<()> {
    if pid <= 1 {
        return Ok(()); // 0 and -1 would be groups and everybody
    }
    if stat(pid)?.is_none_or(|stat| stat.started != started) {
        return Ok(());
    }
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(why) => Err(why.into()),
    }
}

struct Stat {
    state: char,
    parent: i32,
    session: i32,
    started: u64,
}

impl Stat {
    fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }
}

/// `None` when there is no such process, or when a /proc mounted with `hidepid` closes it to this account: then it is none
/// of ours. The file is read once, so that a process that ends meanwhile is either there or gone; its name may be no
/// UTF-8, as a process chooses it and the kernel cuts it anywhere.
fn stat(pid: i32) -> io::Result<Option<Stat>> {
    match fs::read(format!("/proc/{pid}/stat")) {
        Ok(line) => parse_stat(&String::from_utf8_lossy(&line))
            .map(Some)
            .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat is not in its known form"))),
        Err(why) => {
            let gone =
                why.kind() == io::ErrorKind::NotFound || why.raw_os_error() == Some(Errno::ESRCH as i32);
            let hidden = why.kind() == io::ErrorKind::PermissionDenied;
            if gone || hidden { Ok(None) } else { Err(why) }
        }
    }
}

/// The second field is the program's name in parentheses and may hold anything, so counting starts behind the last.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

fn labels(environ: &[u8]) -> Option<Labels> {
    let value = |name: &str| {
        let raw = environ
            .split(|byte| *byte == 0)
            .find_map(|entry| entry.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"=")))?;
        std::str::from_utf8(raw).ok()
    };
    Some(Labels {
        attempt: Attempt::parse(value(ATTEMPT)?).ok()?,
        key: value(KEY).and_then(|raw| ServerKey::parse_full(raw).ok()),
        mark: value(MARK).map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use glidepath_domain::names::RunId;

    const RUN: &str = "01ARZ3NDEKTSV4RRFFQ69G5FAV";

    fn attempt(number: u32) -> Attempt {
        Attempt { run: RunId::parse(RUN).unwrap(), number }
    }

    fn process(pid: i32, parent: i32, uid: u32, carries: Option<u32>) -> Process {
        let labels = carries.map(|number| Labels { attempt: attempt(number), key: None, mark: None });
        Process { pid, parent, session: pid, started: 100 + u64::from(pid.unsigned_abs()), uid, labels }
    }

    #[test]
    fn a_program_name_cannot_forge_the_fields_behind_it() {
        let text = "12 (a) R 1 1 ) Z) S 7 12 9 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1";
        let stat = parse_stat(text).unwrap();
        assert_eq!((stat.state, stat.parent, stat.session, stat.started), ('S', 7, 9, 4242));
        assert!(parse_stat("12 (a) S 7").is_none());
    }

    #[test]
    fn a_process_whose_name_is_no_text_is_one_like_any_other() {
        let program = "printf '\\344' > /proc/$$/comm; exec 1>&-; read -r line";
        let mut child = std::process::Command::new("/bin/sh");
        child.args(["-c", program]).env(ATTEMPT, format!("{RUN}-3"));
        child.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = child.spawn().unwrap();
        io::Read::read_to_end(child.stdout.as_mut().unwrap(), &mut Vec::new()).unwrap(); // it has its name
        let pid = i32::try_from(child.id()).unwrap();
        let name = fs::read(format!("/proc/{pid}/comm")).unwrap();
        let seen = all().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(name, b"\xe4\n");
        let seen = seen.iter().find(|process| process.pid == pid).unwrap();
        assert_eq!(seen.labels.as_ref().map(|labels| labels.attempt), Some(attempt(3)));
    }

    #[test]
    fn labels_are_read_from_whole_names_only() {
        let environ =
            format!("XGLIDEPATH_ATTEMPT=x\0GLIDEPATH_ATTEMPT={RUN}-2\0GLIDEPATH_KEY=main.ada.\0A=\0");
        let found = labels(environ.as_bytes()).unwrap();
        assert_eq!(
            (found.attempt, found.key.unwrap().full(), found.mark),
            (attempt(2), "main.ada.".to_owned(), None)
        );
        assert!(labels(b"GLIDEPATH_ATTEMPT=nonsense\0").is_none());
    }

    #[test]
    fn a_job_is_its_carriers_and_their_children_under_its_account() {
        let all = [
            process(10, 1, 700, Some(1)),
            process(11, 10, 700, None),
            process(12, 11, 700, None),
            process(20, 1, 700, Some(2)),
            process(30, 1, 800, Some(1)), // another user's process that claims to be of this job
            process(31, 30, 800, None),
            process(40, 1, 700, None),
        ];
        let none = BTreeSet::new();
        let pids = |in_cgroup: &BTreeSet<i32>| -> Vec<i32> {
            of_job(&all, attempt(1), None, in_cgroup, Some(700)).iter().map(|process| process.pid).collect()
        };
        assert_eq!(pids(&none), [10, 11, 12]);
        assert_eq!(pids(&BTreeSet::from([40])), [10, 11, 12, 40]);
        assert_eq!(eldest(&of_job(&all, attempt(1), None, &none, Some(700))).unwrap().pid, 10);
    }

    #[test]
    fn a_number_that_was_used_again_is_another_process() {
        let boot = boot_id().unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        let own = identify(pid, &boot).unwrap().unwrap();
        assert!(lives(&own, &boot).unwrap());
        let reused = ProcessId { started: own.started + 1, ..own.clone() };
        assert!(!lives(&reused, &boot).unwrap());
        signal(reused.pid, reused.started, Signal::SIGKILL).unwrap(); // would end this test
        assert!(!lives(&ProcessId { boot: "another".to_owned(), ..own }, &boot).unwrap());
        signal(0, 0, Signal::SIGKILL).unwrap();
        signal(-1, 0, Signal::SIGKILL).unwrap();
    }
}
