//! The same with the real agent, as far as it goes without a home: set-up of the process, kind end, account, network.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use glidepath_backends::contract::{Bench, Manner, key};
use glidepath_domain::backend::{Backend, CancelHow, JobEnd, JobLabel, JobSpec, JobState};
use glidepath_testkit::wait;
use secrecy::SecretString;

use crate::bench::{FIRST_ACCOUNT, ProcessBench, needs_root};

const SOON: Duration = Duration::from_secs(20);

/// `GLIDEPATH_AGENT_BIN`, or what cargo built beside these tests.
fn agent() -> PathBuf {
    let built = || {
        let tests = std::env::current_exe().unwrap();
        tests.parent().and_then(|deps| deps.parent()).unwrap().join("glidepath-agent")
    };
    let agent = std::env::var_os("GLIDEPATH_AGENT_BIN").map_or_else(built, PathBuf::from);
    assert!(
        agent.exists(),
        "{} is not there; build it first: cargo build -p glidepath-agent, or name one in GLIDEPATH_AGENT_BIN",
        agent.display()
    );
    agent
}

/// A job whose home is a port where nobody answers: the agent goes on dialling.
fn dialling(bench: &ProcessBench, user: &str) -> JobSpec {
    let spec = bench.spec(&key(user), Manner::Calm, "");
    let dial_file = serde_json::json!({
        "version": 1,
        "home_url": "ws://127.0.0.1:1/link",
        "trust": "system_roots",
        "ticket": "glidepath-real-agent-ticket",
        "attempt": spec.label.attempt.to_string(),
        "dial_deadline_s": 600,
        "absence_limit_s": 600,
    });
    JobSpec { dial_file: SecretString::from(dial_file.to_string()), ..spec }
}

/// The agent's number, once it is itself and no longer being set up.
async fn running(bench: &ProcessBench, label: &JobLabel) -> i32 {
    let mark = format!("GLIDEPATH_ATTEMPT={}", label.attempt);
    wait::until_some(SOON, "the agent runs", async || {
        let listed = bench.process().list().await.unwrap();
        assert!(!matches!(listed[0].state, JobState::Ended(_)), "{listed:?}\n{}", log(bench, label));
        fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
            let pid = entry.file_name().to_str()?.parse::<i32>().ok()?;
            let environ = fs::read(entry.path().join("environ")).ok()?;
            let carries = environ.split(|byte| *byte == 0).any(|one| one == mark.as_bytes());
            let command = fs::read(entry.path().join("cmdline")).ok()?;
            (carries && command.split(|byte| *byte == 0).nth(1)? == b"run").then_some(pid)
        })
    })
    .await
}

fn log(bench: &ProcessBench, label: &JobLabel) -> String {
    let log = bench.root().join("jobs").join(label.attempt.to_string()).join("agent.log");
    fs::read_to_string(log).unwrap_or_default()
}

async fn end(bench: &ProcessBench, label: &JobLabel) -> JobEnd {
    wait::until_some(SOON, "the job has ended", async || {
        let listed = bench.process().list().await.unwrap();
        listed.into_iter().find(|seen| seen.label == *label).and_then(|seen| match seen.state {
            JobState::Ended(end) => Some(end),
            _ => None,
        })
    })
    .await
}

fn status(pid: i32, field: &str) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    line.trim_start_matches(':').split_whitespace().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_runs_as_the_users_account_and_nothing_more() {
    needs_root();
    let bench = ProcessBench::with_agent(&agent(), "");
    let spec = dialling(&bench, "ada");
    bench.process().submit(&spec).await.unwrap();
    let pid = running(&bench, &spec.label).await;
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let account = FIRST_ACCOUNT.to_string();
    assert_eq!(status(pid, "Uid"), vec![account.clone(); 4]);
    assert_eq!(status(pid, "Gid"), vec![account; 4]);
    assert_eq!(status(pid, "Groups"), Vec::<String>::new());
    assert_eq!(status(pid, "CapEff"), ["0000000000000000"]);
    assert_eq!(status(pid, "NoNewPrivs"), ["1"]);
    assert_eq!(fs::read_link(proc.join("cwd")).unwrap(), bench.home(&spec.label.key));
    let stat = fs::read_to_string(proc.join("stat")).unwrap();
    let session = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(3).unwrap().to_owned();
    assert_eq!(session, pid.to_string(), "a session of its own");
    let limits = fs::read_to_string(proc.join("limits")).unwrap();
    assert!(
        limits
            .lines()
            .any(|line| line.split_whitespace().take(6).eq(["Max", "core", "file", "size", "0", "0"]))
    );
    let open =
        fs::read_dir(proc.join("fd")).unwrap().flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
    let own = bench.root().join("jobs").join(spec.label.attempt.to_string()).join("own");
    let of_service =
        |to: &PathBuf| to.starts_with(bench.root()) && !to.ends_with("agent.log") && !to.starts_with(&own);
    let inherited: Vec<PathBuf> = open.filter(of_service).collect();
    assert_eq!(inherited, Vec::<PathBuf>::new(), "no file of the service");
    assert_eq!(bench.exposures(&spec.label, "glidepath-real-agent-ticket").await, Vec::<String>::new());

    bench.process().cancel(&spec.label, CancelHow::Kindly).await.unwrap();
    let end = end(&bench, &spec.label).await;
    assert!(end.signal != Some(9), "it ends when asked: {end:?}");
    bench.process().forget(&spec.label).await.unwrap();
    assert_eq!(bench.remains(&spec.label).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_lives_on_when_the_service_restarts() {
    let mut bench = ProcessBench::with_agent(&agent(), "");
    let spec = dialling(&bench, "ada");
    bench.submit_and_die(&spec, "when the job had begun").await;
    let pid = running(&bench, &spec.label).await;
    bench.restart().await;
    assert_eq!(running(&bench, &spec.label).await, pid);
    bench.process().cancel(&spec.label, CancelHow::Now).await.unwrap();
    end(&bench, &spec.label).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_far_site_is_in_its_own_network() {
    needs_root();
    let network = Network::new();
    let bench =
        ProcessBench::with_agent(&agent(), &format!("network_namespace = '{}'", network.path().display()));
    let spec = dialling(&bench, "ada");
    bench.process().submit(&spec).await.unwrap();
    let pid = running(&bench, &spec.label).await;
    let there = fs::metadata(format!("/proc/{pid}/ns/net")).unwrap().ino();
    assert_eq!(there, fs::metadata(network.path()).unwrap().ino());
    assert_ne!(there, fs::metadata("/proc/self/ns/net").unwrap().ino());
    bench.process().cancel(&spec.label, CancelHow::Now).await.unwrap();
    end(&bench, &spec.label).await;
}

/// A network namespace with nothing in it.
struct Network(String);

impl Network {
    fn new() -> Self {
        let name = format!("gp-test-{}", std::process::id());
        assert!(Command::new("ip").args(["netns", "add", &name]).status().unwrap().success());
        Self(name)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.0)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}
