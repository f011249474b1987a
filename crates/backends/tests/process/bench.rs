//! A work root of its own per test, with the stand-in agent, and a look at the machine past the backend.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use glidepath_backends::contract::{Bench, Manner, fresh_label};
use glidepath_backends::process::config::{Given, ProcessConfig, check};
use glidepath_backends::process::{Moment, ProcessBackend};
use glidepath_domain::backend::{Backend, JobLabel, JobSpec};
use glidepath_domain::names::ServerKey;
use glidepath_domain::resources::{Gpus, Resources};
use glidepath_domain::site::Reach;
use glidepath_testkit::wait;
use secrecy::SecretString;

/// First account of the tests' range.
pub(crate) const FIRST_ACCOUNT: u32 = 79_000;

pub(crate) struct ProcessBench {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) config: ProcessConfig,
    backend: Option<Arc<ProcessBackend>>,
}

pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

pub(crate) fn needs_root() {
    assert!(is_root(), "this test needs root: run it as root");
}

impl ProcessBench {
    pub(crate) fn new(extra: &str) -> Self {
        Self::with_agent(&Self::standin(), extra)
    }

    /// The stand-in agent.
    pub(crate) fn standin() -> PathBuf {
        let here = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/process/standin_agent.py");
        std::env::var_os("GLIDEPATH_TEST_STANDIN").map_or_else(here, PathBuf::from)
    }

    pub(crate) fn with_agent(agent: &Path, extra: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("gp-").tempdir_in("/tmp").unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let config = config(&folder.path().join("w"), agent, extra);
        let backend = Some(Arc::new(ProcessBackend::new(config.clone()).unwrap()));
        Self { folder, config, backend }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().join("w")
    }

    pub(crate) fn process(&self) -> Arc<ProcessBackend> {
        self.backend.clone().unwrap()
    }

    pub(crate) fn home(&self, key: &ServerKey) -> PathBuf {
        // Independent of the backend's own slug for the names that tests use.
        let escaped = key.full();
        let mut parts = escaped.split('.');
        let (hub, user) = (parts.next().unwrap(), parts.next().unwrap());
        self.root().join("homes").join(hub).join(user)
    }

    /// Every process that noted itself as one of this job, and lives.
    pub(crate) fn pids(&self, label: &JobLabel) -> Vec<i32> {
        let notes = self.home(&label.key).join(format!("pids-{}", label.attempt));
        let notes = fs::read_to_string(notes).unwrap_or_default();
        notes.lines().filter_map(|line| line.parse().ok()).filter(|pid| lives(*pid)).collect()
    }

    /// The job's first process.
    pub(crate) fn agent(&self, label: &JobLabel) -> i32 {
        let note = self.home(&label.key).join(format!("agent-{}", label.attempt));
        fs::read_to_string(note).expect("the job runs").trim().parse().unwrap()
    }

    pub(crate) async fn stop(&mut self) {
        self.backend = None;
        // Calls under way hold the root a little longer.
        let lock = self.root().join("lock");
        wait::until(Duration::from_secs(10), "the old backend lets go of its root", async || {
            let file = fs::File::open(&lock).unwrap();
            nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).is_ok()
        })
        .await;
    }
}

impl Drop for ProcessBench {
    /// No test leaves a process, whatever it found.
    fn drop(&mut self) {
        self.backend = None;
        let root = self.root();
        for _ in 0..100 {
            let free = fs::File::open(root.join("lock")).is_ok_and(|file| {
                nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).is_ok()
            });
            if kill_below(&root) == 0 && free {
                break;
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        let Ok(text) = fs::read_to_string(root.join("id")) else { return };
        let id: serde_json::Value = serde_json::from_str(&text).unwrap();
        for group in cgroups(id["id"].as_str().unwrap()) {
            for _ in 0..50 {
                for job in fs::read_dir(&group).into_iter().flatten().flatten() {
                    let _ = fs::remove_dir(job.path());
                }
                if fs::remove_dir(&group).is_ok() || !group.exists() {
                    break;
                }
                std::thread::park_timeout(Duration::from_millis(20));
            }
            let _ = fs::remove_dir(group.parent().unwrap());
        }
    }
}

/// Kills every process whose home is below this folder; says how many there were.
fn kill_below(root: &Path) -> usize {
    let home = format!("HOME={}", root.display());
    let mut found = 0;
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
        if environ.split(|byte| *byte == 0).any(|one| one.starts_with(home.as_bytes())) {
            kill(pid, nix::sys::signal::Signal::SIGKILL);
            found += 1;
        }
    }
    found
}

pub(crate) fn config(root: &Path, agent: &Path, extra: &str) -> ProcessConfig {
    let accounts = if extra.contains("accounts =") {
        String::new()
    } else if is_root() {
        format!("accounts = {{ mode = 'range', first = {FIRST_ACCOUNT}, count = 100 }}")
    } else {
        "allow_shared_account = true".to_owned()
    };
    let file = format!("work_root = '{}'\npath = '/usr/bin:/bin'\n{accounts}\n{extra}", root.display());
    let given =
        Given { agent: agent.to_owned(), reach: Reach::Direct, account_book: None, several_hubs: false };
    check(toml::from_str(&file).unwrap(), &given).unwrap()
}

pub(crate) fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

pub(crate) fn kill(pid: i32, signal: nix::sys::signal::Signal) {
    assert!(pid > 1);
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
}

/// The groups of a root that exist, in every mounted hierarchy.
pub(crate) fn cgroups(root_id: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mounts =
        mounts.lines().filter(|line| line.contains(" cgroup")).filter_map(|line| line.split(' ').nth(1));
    mounts
        .map(|mount| Path::new(mount).join("glidepath").join(root_id))
        .filter(|group| group.exists())
        .collect()
}

/// A job for the stand-in.
pub(crate) fn spec_of(key: &ServerKey, manner: Manner, secret: &str) -> JobSpec {
    let manner = match manner {
        Manner::Calm => "calm".to_owned(),
        Manner::Stubborn => "stubborn".to_owned(),
        Manner::Exits(code) => format!("exits {code}"),
        Manner::Litters => "litters".to_owned(),
    };
    let dial_file = serde_json::json!({ "manner": manner, "ticket": secret });
    JobSpec {
        label: fresh_label(key, 1_800_000_000_000, rand::random()),
        resources: Resources { cores: 1, memory_mb: 256, gpus: Gpus::default(), arch: None, walltime_min: 5 },
        dial_file: SecretString::from(dial_file.to_string()),
        grace_s: 1,
    }
}

#[async_trait]
impl Bench for ProcessBench {
    fn backend(&self) -> Arc<dyn Backend> {
        self.process()
    }

    fn spec(&self, key: &ServerKey, manner: Manner, secret: &str) -> JobSpec {
        spec_of(key, manner, secret)
    }

    async fn restart(&mut self) {
        self.stop().await;
        self.backend = Some(Arc::new(ProcessBackend::new(self.config.clone()).unwrap()));
    }

    fn deaths(&self) -> &'static [&'static str] {
        &["after the intent", "after the claim", "after the spawn", "when the job had begun"]
    }

    async fn submit_and_die(&mut self, spec: &JobSpec, death: &str) {
        let moment = match death {
            "after the intent" => Moment::AfterIntent,
            "after the claim" => Moment::AfterClaim,
            _ => Moment::AfterSpawn,
        };
        self.process().die_at(moment);
        let _ = self.process().submit(spec).await;
        let backend = self.process();
        wait::until(self.patience(), "it is dead", async || backend.list().await.is_err()).await;
        drop(backend);
        if death == "when the job had begun" {
            let job = self.root().join("jobs").join(spec.label.attempt.to_string());
            wait::until(self.patience(), "the job took its claim", async || {
                let mut names = fs::read_dir(&job).unwrap().flatten().map(|entry| entry.file_name());
                names.all(|name| !name.to_string_lossy().starts_with("claim"))
            })
            .await;
        }
        self.restart().await;
    }

    async fn processes(&self, label: &JobLabel) -> usize {
        self.pids(label).len()
    }

    async fn starts(&self, label: &JobLabel) -> usize {
        let notes = self.home(&label.key).join(format!("starts-{}", label.attempt));
        fs::read_to_string(notes).unwrap_or_default().lines().count()
    }

    async fn strike(&self, label: &JobLabel) {
        kill(self.agent(label), nix::sys::signal::Signal::SIGKILL);
    }

    async fn exposures(&self, label: &JobLabel, secret: &str) -> Vec<String> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            for part in ["cmdline", "environ"] {
                let text = fs::read(entry.path().join(part)).unwrap_or_default();
                if contains(&text, secret) {
                    found.push(format!("{}/{part}", entry.path().display()));
                }
            }
        }
        let account = fs::metadata(self.home(&label.key)).unwrap().uid();
        exposed_files(&self.root(), account, secret, &mut found);
        found
    }

    async fn remains(&self, label: &JobLabel) -> Vec<String> {
        let attempt = label.attempt.to_string();
        let mut found = Vec::new();
        for part in ["jobs", "staging"] {
            let entries = fs::read_dir(self.root().join(part)).unwrap().flatten();
            let names = entries.filter(|entry| entry.file_name().to_string_lossy().contains(&attempt));
            found.extend(names.map(|entry| entry.path().display().to_string()));
        }
        let id: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(self.root().join("id")).unwrap()).unwrap();
        let groups = cgroups(id["id"].as_str().unwrap()).into_iter().map(|group| group.join(&attempt));
        found.extend(groups.filter(|group| group.exists()).map(|group| group.display().to_string()));
        found.extend(self.pids(label).iter().map(|pid| format!("process {pid}")));
        found
    }

    async fn leave_file(&self, key: &ServerKey) {
        fs::write(self.home(key).join("kept.txt"), "kept").unwrap();
    }

    async fn has_file(&self, key: &ServerKey) -> bool {
        self.home(key).join("kept.txt").exists()
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(20)
    }
}

/// Files with the secret that somebody other than the account (and root) could open, judged by permissions.
fn exposed_files(folder: &Path, account: u32, secret: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let (path, meta) = (entry.path(), entry.metadata().unwrap());
        if meta.is_dir() {
            exposed_files(&path, account, secret, found);
        } else if meta.is_file() && contains(&fs::read(&path).unwrap_or_default(), secret) {
            let own = meta.uid() == account && meta.mode() & 0o7777 == 0o600;
            let closed = fs::metadata(folder)
                .is_ok_and(|above| above.uid() == account && above.mode() & 0o777 == 0o700);
            if !own || !closed {
                found.push(format!("{} {:o} of {}", path.display(), meta.mode(), meta.uid()));
            }
        }
    }
}

fn contains(text: &[u8], part: &str) -> bool {
    text.windows(part.len()).any(|window| window == part.as_bytes())
}
