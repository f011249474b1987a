//! What a job will look like as a process. Pure: in go its record and the site, out come program, arguments, environment.
//!
//! The agent starts itself twice: `confine` sets the process up (cgroups, limits, account) while it still may, then
//! becomes `run` under the user's account. No secret is in either: the ticket is in the dial file.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::config::ProcessConfig;
use super::procs;
use super::record::Record;

/// The file in a job's own folder that tells the agent where home is, with its ticket.
pub(crate) const DIAL_FILE: &str = "dial.json";
/// The server's socket in its folder, as the agent names it.
pub(crate) const SOCKET: &str = "server.sock";

/// A command that is ready to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    /// All of it: nothing is inherited.
    pub(crate) environment: BTreeMap<String, OsString>,
}

/// What a job's command takes from around its record.
pub(crate) struct Around<'a> {
    pub(crate) config: &'a ProcessConfig,
    /// The job's folder.
    pub(crate) folder: &'a Path,
    /// The file whose removal lets the job begin.
    pub(crate) claim: &'a Path,
    /// The job's cgroups; empty where there are none.
    pub(crate) cgroups: &'a [PathBuf],
    /// Whether these bound the number of its processes.
    pub(crate) processes_held: bool,
    /// The root's mark of this attempt.
    pub(crate) mark: String,
}

/// The command that starts a job.
pub(crate) fn launch(record: &Record, around: &Around<'_>) -> Launch {
    Launch {
        program: record.agent.clone(),
        arguments: arguments(record, around),
        environment: environment(record, around),
    }
}

fn arguments(record: &Record, around: &Around<'_>) -> Vec<OsString> {
    let account = &record.account;
    let mut all: Vec<OsString> = vec!["confine".into()];
    let mut add = |flag: &str, value: OsString| all.extend([OsString::from(flag), value]);
    add("--claim", around.claim.into());
    for group in around.cgroups {
        add("--cgroup", group.into());
    }
    if let Some(namespace) = &around.config.network_namespace {
        add("--network-namespace", namespace.into());
    }
    for (name, value) in limits(record, around) {
        add("--rlimit", format!("{name}={value}").into());
    }
    if let Some((soft, hard)) = around.config.open_files {
        add("--rlimit", format!("nofile={soft}:{hard}").into());
    }
    add("--umask", "077".into());
    if account.switch {
        // Membership in root's group opens what is root's; no job needs it.
        let groups: Vec<String> =
            account.groups.iter().filter(|gid| **gid != 0).map(u32::to_string).collect();
        if !groups.is_empty() {
            add("--groups", groups.join(",").into());
        }
        add("--gid", account.gid.to_string().into());
        add("--uid", account.uid.to_string().into());
    }
    add("--chdir", record.home.clone().into());
    all.push("--new-session".into());
    all.extend(["--".into(), record.agent.clone().into(), "run".into()]);
    let mut add = |flag: &str, value: PathBuf| all.extend([OsString::from(flag), value.into()]);
    add("--dial-file", around.folder.join("own").join(DIAL_FILE));
    add("--home", record.home.clone());
    add("--socket-dir", record.socket_dir.clone());
    all
}

/// Limits of each process. Core dumps would write a user's memory, tokens included, to a disk: never. Without a
/// cgroup the memory of each single process is bounded (its data; address space alone is not memory, and programs
/// reserve far more of it than they use), so several processes together may take more than was asked for. The
/// number of processes is counted per account, so it is limited only for an account of the user's own.
fn limits(record: &Record, around: &Around<'_>) -> Vec<(&'static str, u64)> {
    let mut limits = vec![("core", 0)];
    if around.cgroups.is_empty() {
        limits.push(("data", record.resources.memory_mb.saturating_mul(1024 * 1024)));
    }
    if !around.processes_held && record.account.switch {
        limits.push(("nproc", u64::from(around.config.processes_max)));
    }
    limits
}

fn environment(record: &Record, around: &Around<'_>) -> BTreeMap<String, OsString> {
    let mut all: BTreeMap<String, OsString> =
        around.config.environment.iter().map(|(name, value)| (name.clone(), value.into())).collect();
    all.insert("HOME".to_owned(), record.home.clone().into());
    all.insert("USER".to_owned(), record.account.name.clone().into());
    all.insert("LOGNAME".to_owned(), record.account.name.clone().into());
    all.insert(procs::ATTEMPT.to_owned(), record.attempt.to_string().into());
    all.insert(procs::KEY.to_owned(), record.key.full().into());
    all.insert(procs::MARK.to_owned(), around.mark.clone().into());
    all
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::accounts::Account;
    use super::super::config::{Given, check};
    use super::super::homes::{HomeTemplate, slug};
    use super::super::record::Phase;
    use super::*;
    use glidepath_domain::names::{Attempt, HubName, RunId, ServerKey, ServerName, UserName};
    use glidepath_domain::resources::{Gpus, Resources};
    use glidepath_domain::site::Reach;
    use std::collections::BTreeSet;
    use std::path::Component;

    pub(crate) fn record() -> Record {
        let run = RunId::parse("01ARZ3NDEKTSV4RRFFQ69G5FAV").unwrap();
        let key = ServerKey {
            hub: HubName::parse("main").unwrap(),
            user: UserName::parse("ada@example.org").unwrap(),
            server: ServerName::default(),
        };
        let account = Account {
            uid: 70_001,
            gid: 70_002,
            groups: vec![5, 0, 6],
            name: "ada".to_owned(),
            home: None,
            switch: true,
        };
        Record {
            key,
            attempt: Attempt { run, number: 1 },
            seq: 1,
            submitted_ms: 0,
            account,
            home: PathBuf::from("/homes/ada"),
            socket_dir: PathBuf::from("/w/jobs/x/own/s"),
            agent: PathBuf::from("/w/bin/glidepath-agent-1"),
            resources: Resources {
                cores: 1,
                memory_mb: 512,
                gpus: Gpus::default(),
                arch: None,
                walltime_min: 5,
            },
            grace_s: 5,
            phase: Phase::Queued,
            cancel: None,
        }
    }

    fn config() -> ProcessConfig {
        let file =
            toml::from_str("work_root = '/w'\npath = '/usr/bin'\nproxy = { HTTPS_PROXY = 'http://p:1' }")
                .unwrap();
        let agent = PathBuf::from("/a");
        let given = Given { agent, reach: Reach::Tunnel, account_book: None, several_hubs: false };
        ProcessConfig { open_files: Some((1024, 4096)), ..check(file, &given).unwrap() }
    }

    fn rendered(record: &Record, config: &ProcessConfig, cgroups: &[PathBuf]) -> Launch {
        let folder = Path::new("/w/jobs/x");
        let claim = Path::new("/w/jobs/x/claim-1");
        let processes_held = cgroups.iter().any(|group| !group.starts_with("/cg/no-pids"));
        let mark = "root.mark".to_owned();
        launch(record, &Around { config, folder, claim, cgroups, processes_held, mark })
    }

    fn line(launch: &Launch) -> String {
        launch.arguments.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_job_in_a_cgroup_under_an_account_of_its_own() {
        let config = ProcessConfig { network_namespace: Some(PathBuf::from("/run/netns/far")), ..config() };
        let launch =
            rendered(&record(), &config, &[PathBuf::from("/cg/memory/x"), PathBuf::from("/cg/cpu/x")]);
        assert_eq!(launch.program, Path::new("/w/bin/glidepath-agent-1"));
        assert_eq!(
            line(&launch),
            "confine --claim /w/jobs/x/claim-1 --cgroup /cg/memory/x --cgroup /cg/cpu/x \
             --network-namespace /run/netns/far --rlimit core=0 --rlimit nofile=1024:4096 --umask 077 --groups 5,6 --gid 70002 --uid 70001 \
             --chdir /homes/ada --new-session -- /w/bin/glidepath-agent-1 run --dial-file /w/jobs/x/own/dial.json \
             --home /homes/ada --socket-dir /w/jobs/x/own/s"
        );
    }

    #[test]
    fn without_a_cgroup_each_process_is_limited() {
        let own = line(&rendered(&record(), &config(), &[]));
        assert!(own.contains("--rlimit core=0 --rlimit data=536870912 --rlimit nproc=4096 "), "{own}");
        let no_pids = line(&rendered(&record(), &config(), &[PathBuf::from("/cg/no-pids/x")]));
        assert!(no_pids.contains("nproc=4096") && !no_pids.contains("data="), "{no_pids}");
        let mut shared = record();
        shared.account.switch = false;
        let shared = line(&rendered(&shared, &config(), &[]));
        assert!(
            !shared.contains("nproc") && !shared.contains("--uid") && !shared.contains("--group"),
            "{shared}"
        );
    }

    #[test]
    fn the_environment_is_these_variables_and_no_other() {
        let environment = rendered(&record(), &config(), &[]).environment;
        let expected = [
            ("GLIDEPATH_ATTEMPT", "01ARZ3NDEKTSV4RRFFQ69G5FAV-1"),
            ("GLIDEPATH_KEY", "main.ada_40example_2eorg."),
            ("GLIDEPATH_MARK", "root.mark"),
            ("HOME", "/homes/ada"),
            ("HTTPS_PROXY", "http://p:1"),
            ("LANG", "C.UTF-8"),
            ("LOGNAME", "ada"),
            ("PATH", "/usr/bin"),
            ("USER", "ada"),
        ];
        let found: Vec<(&str, &str)> =
            environment.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(found, expected);
    }

    /// What attackers write, as names: the same table that the end-to-end tests send through the API.
    fn payloads() -> Vec<String> {
        let table: Vec<serde_json::Value> =
            serde_json::from_str(include_str!("../../../../tests/payloads.json")).unwrap();
        assert!(table.len() >= 47, "{}", table.len());
        table.iter().map(|row| row["text"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_name_is_one_word_of_the_command_one_value_and_one_folder_or_no_name() {
        let homes = HomeTemplate::parse("/homes/{hub}/{user}").unwrap();
        let plain = record();
        let (mut taken, mut refused) = (BTreeSet::new(), 0);
        for text in payloads() {
            let (Ok(user), Ok(server)) = (UserName::parse(&text), ServerName::parse(&text)) else {
                assert!(text.chars().any(|c| c.is_control() || c == '/') || text.len() > 255, "{text:?}");
                refused += 1;
                continue;
            };
            let key = ServerKey { hub: plain.key.hub.clone(), user, server };
            let home = homes.render(&key, &plain.account).unwrap();
            let below = home.strip_prefix("/homes/main").unwrap();
            assert!(matches!(below.components().collect::<Vec<_>>()[..], [Component::Normal(_)]), "{home:?}");
            let account = Account { name: slug(key.user.as_str()), ..plain.account.clone() };
            let record = Record { key: key.clone(), home: home.clone(), account, ..plain.clone() };
            let launch = rendered(&record, &config(), &[]);
            let usual = rendered(&plain, &config(), &[]);
            let differing = launch.arguments.iter().zip(&usual.arguments).filter(|(a, b)| a != b);
            assert_eq!(launch.arguments.len(), usual.arguments.len());
            assert!(differing.map(|(word, _)| Path::new(word)).all(|word| word == home), "{launch:?}");
            let told = launch.environment[procs::KEY].to_str().unwrap();
            assert_eq!(ServerKey::parse_full(told).unwrap(), key);
            let word = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            assert!(told.chars().all(word) && launch.environment["USER"].to_str().unwrap().chars().all(word));
            assert!(taken.insert(home), "two names, one home: {text:?}");
        }
        assert!(taken.len() > 30 && refused > 15, "{} {refused}", taken.len());
    }
}
