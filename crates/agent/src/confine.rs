//! Sets up a process for a job, then becomes its command.
//!
//! In: the steps of the command line. Out: nothing but the command, in this very process. What needs privilege comes
//! first, then the account, then what must be done as that account. It never starts anything as root.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use clap::Args;
use glidepath_api_types::agent::EXIT_CANNOT_CONFINE;
use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid};

/// What `glidepath-agent confine` is told.
#[derive(Debug, Args)]
pub struct ConfineArgs {
    /// Remove this file first of all; when it is not there any more, the start was revoked and nothing is done.
    #[arg(long, value_name = "PATH")]
    pub claim: Option<PathBuf>,
    /// Enter this network namespace, such as /run/netns/NAME.
    #[arg(long, value_name = "PATH")]
    pub network_namespace: Option<PathBuf>,
    /// Join this cgroup: a folder that holds cgroup.procs. May be repeated.
    #[arg(long, value_name = "DIR")]
    pub cgroup: Vec<PathBuf>,
    /// Limit a resource, such as nofile=4096 or as=2147483648 (soft and hard), or core=0:unlimited. May be repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    pub rlimit: Vec<RlimitSpec>,
    /// Start a new session, so that signals of this terminal or group do not reach the command.
    #[arg(long)]
    pub new_session: bool,
    /// File mode mask, octal, such as 077.
    #[arg(long, value_name = "MASK", value_parser = parse_umask)]
    pub umask: Option<u32>,
    /// Account to become; never 0.
    #[arg(long, value_name = "UID", requires = "gid")]
    pub uid: Option<u32>,
    /// Its group; never 0.
    #[arg(long, value_name = "GID", requires = "uid")]
    pub gid: Option<u32>,
    /// Its further groups, separated by commas; without it there are none.
    #[arg(long, value_name = "GID,...", value_delimiter = ',', requires = "uid")]
    pub groups: Vec<u32>,
    /// Folder to start in.
    #[arg(long, value_name = "DIR")]
    pub chdir: Option<PathBuf>,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// Which step failed.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// The command would run as root.
    #[error("refusing to start a command as root: give --uid and --gid of an ordinary account ({0})")]
    Root(&'static str),
    /// `--claim`.
    #[error("taking the claim {path} (without it this start was revoked): {source}")]
    Claim {
        /// As given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// `--network-namespace`.
    #[error("entering network namespace {path}: {source}")]
    Network {
        /// As given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// `--cgroup`.
    #[error("joining cgroup {path}: {source}")]
    Cgroup {
        /// As given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// `--new-session`.
    #[error("starting a new session: {0}")]
    Session(Errno),
    /// `--rlimit`.
    #[error("setting resource limit {name}: {source}")]
    Rlimit {
        /// As given.
        name: String,
        /// What the system said.
        source: Errno,
    },
    /// `--uid`, `--gid`, `--groups`.
    #[error("becoming uid {uid}, gid {gid}: {step}: {source}")]
    Account {
        /// As given.
        uid: u32,
        /// As given.
        gid: u32,
        /// The call that failed.
        step: &'static str,
        /// What the system said.
        source: Errno,
    },
    /// The account was taken, yet root could be had back.
    #[error("becoming uid {0}: root's rights were not given up")]
    StillRoot(u32),
    /// `--chdir`.
    #[error("entering folder {path}: {source}")]
    Chdir {
        /// As given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The command itself.
    #[error("starting {program}: {source}")]
    Exec {
        /// The first word of the command.
        program: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Runs [`confine`] and tells on stderr which step failed.
pub fn main(args: ConfineArgs) -> i32 {
    let Err(error) = confine(args);
    let _ = writeln!(io::stderr(), "glidepath-agent confine: {error}");
    EXIT_CANNOT_CONFINE
}

/// Does the steps in order, then becomes the command; returns only when a step failed.
pub fn confine(args: ConfineArgs) -> Result<Infallible, ConfineError> {
    let account = Account::checked(&args)?;
    if let Some(path) = args.claim {
        std::fs::remove_file(&path).map_err(|source| ConfineError::Claim { path, source })?;
    }
    if let Some(path) = args.network_namespace {
        enter_network(&path).map_err(|source| ConfineError::Network { path, source })?;
    }
    for path in args.cgroup {
        join_cgroup(&path).map_err(|source| ConfineError::Cgroup { path, source })?;
    }
    if args.new_session {
        nix::unistd::setsid().map_err(ConfineError::Session)?;
    }
    for limit in args.rlimit {
        let RlimitSpec { name, resource, soft, hard } = limit;
        setrlimit(resource, soft, hard).map_err(|source| ConfineError::Rlimit { name, source })?;
    }
    if let Some(mask) = args.umask {
        nix::sys::stat::umask(Mode::from_bits_truncate(mask));
    }
    if let Some(account) = account {
        account.become_it()?;
    }
    if let Some(path) = args.chdir {
        std::env::set_current_dir(&path).map_err(|source| ConfineError::Chdir { path, source })?;
    }
    exec(args.command)
}

/// The account to become: checked not to be root.
struct Account {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl Account {
    /// `None` when the caller is an ordinary account and stays it.
    fn checked(args: &ConfineArgs) -> Result<Option<Self>, ConfineError> {
        match (args.uid, args.gid) {
            (Some(0), _) => Err(ConfineError::Root("--uid is 0")),
            (_, Some(0)) => Err(ConfineError::Root("--gid is 0")),
            _ if args.groups.contains(&0) => Err(ConfineError::Root("--groups holds 0")),
            (Some(uid), Some(gid)) => Ok(Some(Account { uid, gid, groups: args.groups.clone() })),
            _ if Uid::effective().is_root() || Uid::current().is_root() => {
                Err(ConfineError::Root("--uid is missing and this is root"))
            }
            _ => Ok(None),
        }
    }

    /// Groups first: they need the privilege that the uid takes away. All three ids of each kind, so that nothing can
    /// be had back.
    fn become_it(&self) -> Result<(), ConfineError> {
        let failed =
            |step| move |source| ConfineError::Account { uid: self.uid, gid: self.gid, step, source };
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        if Uid::effective().is_root() {
            let groups: Vec<Gid> = self.groups.iter().copied().map(Gid::from_raw).collect();
            nix::unistd::setgroups(&groups).map_err(failed("setgroups"))?;
        }
        nix::unistd::setresgid(gid, gid, gid).map_err(failed("setresgid"))?;
        nix::unistd::setresuid(uid, uid, uid).map_err(failed("setresuid"))?;
        nix::sys::prctl::set_no_new_privs().map_err(failed("no_new_privs"))?;
        match nix::unistd::setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)) {
            Err(_) => Ok(()),
            Ok(()) => Err(ConfineError::StillRoot(self.uid)),
        }
    }
}

fn enter_network(path: &Path) -> io::Result<()> {
    Ok(nix::sched::setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?)
}

/// Works for both versions of cgroups: `0` stands for the writer.
fn join_cgroup(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).open(path.join("cgroup.procs"))?.write_all(b"0\n")
}

fn exec(command: Vec<OsString>) -> Result<Infallible, ConfineError> {
    let mut words = command.into_iter();
    let program = words.next().unwrap_or_default();
    let source = Command::new(&program).args(words).exec();
    Err(ConfineError::Exec { program: program.to_string_lossy().into_owned(), source })
}

/// One resource limit of the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RlimitSpec {
    /// Lower case, as in `ulimit`'s manual without `RLIMIT_`.
    pub name: String,
    /// The same for the system.
    pub resource: Resource,
    /// In the resource's own unit.
    pub soft: u64,
    /// In the resource's own unit; not below `soft`.
    pub hard: u64,
}

/// What is wrong with a limit or mask of the command line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLimit {
    /// No `=`.
    #[error("write it as NAME=VALUE or NAME=SOFT:HARD")]
    Shape,
    /// No such resource.
    #[error("unknown resource {0:?}; known: as, core, cpu, data, fsize, memlock, nofile, nproc, stack")]
    Name(String),
    /// Not a number.
    #[error("{0:?} is neither a number nor `unlimited`")]
    Value(String),
    /// Soft above hard.
    #[error("the soft limit is above the hard one")]
    Order,
    /// Not an octal mask.
    #[error("{0:?} is not an octal mask between 000 and 777")]
    Mask(String),
}

impl FromStr for RlimitSpec {
    type Err = BadLimit;

    fn from_str(raw: &str) -> Result<Self, BadLimit> {
        let (name, values) = raw.split_once('=').ok_or(BadLimit::Shape)?;
        let resource = match name {
            "as" => Resource::RLIMIT_AS,
            "core" => Resource::RLIMIT_CORE,
            "cpu" => Resource::RLIMIT_CPU,
            "data" => Resource::RLIMIT_DATA,
            "fsize" => Resource::RLIMIT_FSIZE,
            "memlock" => Resource::RLIMIT_MEMLOCK,
            "nofile" => Resource::RLIMIT_NOFILE,
            "nproc" => Resource::RLIMIT_NPROC,
            "stack" => Resource::RLIMIT_STACK,
            _ => return Err(BadLimit::Name(name.to_owned())),
        };
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let (soft, hard) = (limit(soft)?, limit(hard)?);
        if soft > hard {
            return Err(BadLimit::Order);
        }
        Ok(RlimitSpec { name: name.to_owned(), resource, soft, hard })
    }
}

fn limit(raw: &str) -> Result<u64, BadLimit> {
    if raw == "unlimited" {
        return Ok(RLIM_INFINITY);
    }
    raw.parse().map_err(|_| BadLimit::Value(raw.to_owned()))
}

/// Reads an octal file mode mask.
pub fn parse_umask(raw: &str) -> Result<u32, BadLimit> {
    match u32::from_str_radix(raw, 8) {
        Ok(mask) if mask <= 0o777 => Ok(mask),
        _ => Err(BadLimit::Mask(raw.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_in_both_spellings() {
        let same: RlimitSpec = "nofile=64".parse().unwrap();
        assert_eq!((same.soft, same.hard), (64, 64));
        let apart: RlimitSpec = "core=0:unlimited".parse().unwrap();
        assert_eq!((apart.soft, apart.hard), (0, RLIM_INFINITY));
    }

    #[test]
    fn bad_limits_say_what_is_wrong() {
        let told = |raw: &str| raw.parse::<RlimitSpec>().unwrap_err();
        assert_eq!(told("nofile"), BadLimit::Shape);
        assert_eq!(told("files=3"), BadLimit::Name("files".to_owned()));
        assert_eq!(told("nofile=many"), BadLimit::Value("many".to_owned()));
        assert_eq!(told("nofile=9:3"), BadLimit::Order);
        assert_eq!(parse_umask("888"), Err(BadLimit::Mask("888".to_owned())));
        assert_eq!(parse_umask("077"), Ok(0o077));
    }
}
