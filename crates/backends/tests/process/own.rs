//! What only processes have: accounts, cgroups, numbers that are used again, disks that are full.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use glidepath_backends::contract::{Bench, Manner, key};
use glidepath_backends::process::{Moment, ProcessBackend};
use glidepath_domain::backend::{
    Backend, BackendError, CancelHow, JobEnd, JobLabel, JobSpec, JobState, ServerAddress,
};
use glidepath_domain::names::Attempt;
use glidepath_domain::site::Health;
use glidepath_testkit::wait;
use nix::sys::signal::Signal;
use secrecy::SecretString;

use crate::bench::{FIRST_ACCOUNT, ProcessBench, cgroups, config, kill, lives, needs_root, spec_of};

const SOON: Duration = Duration::from_secs(20);
/// On a machine that cannot make cgroups the backend does not open, and its words fail the test.
const MUST_HAVE_CGROUP: &str = "cgroup = 'on'";

async fn running(bench: &ProcessBench, user: &str, manner: Manner, secret: &str) -> JobSpec {
    let spec = bench.spec(&key(user), manner, secret);
    bench.process().submit(&spec).await.unwrap();
    wait::until(SOON, "the job runs", async || {
        bench.starts(&spec.label).await == 1 && bench.processes(&spec.label).await > 1
    })
    .await;
    spec
}

async fn state(bench: &ProcessBench, label: &JobLabel) -> Option<JobState> {
    let seen = bench.process().list().await.unwrap();
    seen.into_iter().find(|seen| seen.label == *label).map(|seen| seen.state)
}

async fn end(bench: &ProcessBench, label: &JobLabel) -> JobEnd {
    wait::until_some(SOON, "the job has ended", async || match state(bench, label).await {
        Some(JobState::Ended(end)) => Some(end),
        _ => None,
    })
    .await
}

/// Runs Python as an account; its standard output.
fn python_as(uid: u32, program: &str, arguments: &[String]) -> String {
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-ISc", program]).args(arguments).env_clear().current_dir("/").uid(uid).gid(uid);
    let done = command.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn ada_reaches_nothing_of_bobs() {
    needs_root();
    let bench = ProcessBench::new("");
    let ada = running(&bench, "ada", Manner::Calm, "s").await;
    let bob = running(&bench, "bob", Manner::Calm, "bobs-ticket").await;
    bench.leave_file(&bob.label.key).await;
    let uid_of = |spec: &JobSpec| fs::metadata(format!("/proc/{}", bench.agent(&spec.label))).unwrap().uid();
    let (ada_uid, bob_uid) = (uid_of(&ada), uid_of(&bob));
    assert!(ada_uid >= FIRST_ACCOUNT && bob_uid >= FIRST_ACCOUNT && ada_uid != bob_uid);

    let Some(JobState::Running { direct: Some(ServerAddress::Unix { path: socket, uid }) }) =
        state(&bench, &bob.label).await
    else {
        panic!("bob's server has no address");
    };
    assert_eq!(uid, bob_uid);
    let job = bench.root().join("jobs").join(bob.label.attempt.to_string());
    let proc = PathBuf::from(format!("/proc/{}", bench.agent(&bob.label)));
    let files = [
        job.join("own/dial.json"),
        job.join("job.json"),
        job.join("agent.log"),
        proc.join("environ"),
        proc.join("mem"),
        proc.join("cwd/kept.txt"),
        proc.join("fd/0"),
        bench.home(&bob.label.key).join("kept.txt"),
        bench.root().join("id"),
        bench.root().join("accounts.json"),
    ];
    let program = "
import os, socket, sys
address, pid, *paths = sys.argv[1:]
for path in paths:
    for mode in (os.O_RDONLY, os.O_WRONLY):
        try:
            os.open(path, mode)
            print('opened', path)
        except OSError:
            pass
for folder in {os.path.dirname(path) for path in paths if not path.startswith('/proc')}:
    try:
        os.listdir(folder); print('listed', folder)
    except OSError:
        pass
    try:
        os.symlink('/etc/passwd', folder + '/planted'); print('planted in', folder)
    except OSError:
        pass
try:
    socket.socket(socket.AF_UNIX).connect(address); print('connected')
except OSError:
    pass
try:
    os.kill(int(pid), 0); print('signalled')
except OSError:
    pass
print('done')
";
    let mut arguments = vec![socket.display().to_string(), bench.agent(&bob.label).to_string()];
    arguments.extend(files.iter().map(|path| path.display().to_string()));
    assert_eq!(python_as(ada_uid, program, &arguments), "done\n");
    let bobs = python_as(bob_uid, program, &arguments);
    assert!(
        bobs.contains("connected") && bobs.contains("dial.json") && bobs.contains("kept.txt"),
        "a test that can fail: {bobs}"
    );
    assert!(
        !bobs.contains("job.json") && !bobs.contains("agent.log"),
        "the service's records are not the job's: {bobs}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mapped_user_has_the_account_of_the_map() {
    needs_root();
    let bench = ProcessBench::new("accounts = { mode = 'map', map = { ada = 'games' } }");
    let spec = running(&bench, "ada", Manner::Calm, "s").await;
    assert_eq!(ids_of(bench.agent(&spec.label)), ids("games"));
    let told = bench.process().submit(&bench.spec(&key("bob"), Manner::Calm, "s")).await;
    assert!(matches!(&told, Err(BackendError::Refused(why)) if why.contains("has no account")), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_mode_user_a_user_has_the_account_and_home_of_the_same_name() {
    needs_root();
    let person = Person::new();
    let bench = ProcessBench::new("accounts = { mode = 'user' }");
    let spec = bench.spec(&key(&person.name), Manner::Calm, "s");
    bench.process().submit(&spec).await.unwrap();
    let note = person.home.join(format!("agent-{}", spec.label.attempt));
    let agent = wait::until_some(SOON, "the job runs in the account's home", async || {
        fs::read_to_string(&note).ok()?.trim().parse::<i32>().ok()
    })
    .await;
    assert_eq!(ids_of(agent), ids(&person.name));
    let told = bench.process().delete_home(&spec.label.key).await;
    assert!(
        matches!(&told, Err(BackendError::Refused(why)) if why.contains("the account's own")),
        "{told:?}"
    );
    bench.process().cancel(&spec.label, CancelHow::Now).await.unwrap();
    end(&bench, &spec.label).await;
}

/// Owner and group of a process, as the kernel tells.
fn ids_of(pid: i32) -> (u32, u32) {
    let owner = fs::metadata(format!("/proc/{pid}")).unwrap();
    (owner.uid(), owner.gid())
}

fn ids(account: &str) -> (u32, u32) {
    let account = nix::unistd::User::from_name(account).unwrap().unwrap();
    (account.uid.as_raw(), account.gid.as_raw())
}

/// An account of this machine for as long as the test runs.
struct Person {
    name: String,
    home: PathBuf,
}

impl Person {
    fn new() -> Self {
        let name = format!("gptest{}", std::process::id());
        let home = PathBuf::from("/tmp").join(&name);
        let made =
            Command::new("useradd").args(["--create-home", "--home-dir"]).arg(&home).arg(&name).status();
        assert!(made.unwrap().success(), "no account can be made");
        Self { name, home }
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        let _ = Command::new("userdel").args(["--force", "--remove", &self.name]).output();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_outlive_a_service_that_is_killed() {
    let mut bench = ProcessBench::new("");
    bench.stop().await; // the other process is the service here
    let spec = bench.spec(&key("ada"), Manner::Calm, "s");
    let mut service = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "own::the_service_of_another_test"])
        .env("GLIDEPATH_TEST_ROOT", bench.root())
        .env("GLIDEPATH_TEST_ATTEMPT", spec.label.attempt.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait::until(SOON, "the job runs", async || bench.starts(&spec.label).await == 1).await;
    let agent = bench.agent(&spec.label);
    service.kill().unwrap();
    service.wait().unwrap();
    bench.restart().await;
    wait::holds(Duration::from_secs(1), "the job lives", async || {
        lives(agent) && matches!(state(&bench, &spec.label).await, Some(JobState::Running { .. }))
    })
    .await;
    kill(agent, Signal::SIGKILL);
    let end = end(&bench, &spec.label).await;
    assert_eq!((end.exit_code, end.signal), (None, None), "nobody saw its end");
    wait::until(SOON, "nothing is left", async || bench.processes(&spec.label).await == 0).await;
    assert_eq!(bench.starts(&spec.label).await, 1);
}

/// No test of its own: a service that lives until it is killed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by jobs_outlive_a_service_that_is_killed"]
async fn the_service_of_another_test() {
    let Some(root) = std::env::var_os("GLIDEPATH_TEST_ROOT") else { return };
    let attempt = std::env::var("GLIDEPATH_TEST_ATTEMPT").unwrap();
    let backend = ProcessBackend::new(config(Path::new(&root), &ProcessBench::standin(), "")).unwrap();
    let label = JobLabel { key: key("ada"), attempt: Attempt::parse(&attempt).unwrap() };
    let spec = JobSpec { label, ..spec_of(&key("ada"), Manner::Calm, "s") };
    backend.submit(&spec).await.unwrap();
    std::future::pending::<()>().await;
}

/// The service is killed before its child comes to its claim; the next service decides first.
#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_comes_late_to_its_claim_does_not_start() {
    let mut bench = ProcessBench::new("");
    let spec = bench.spec(&key("ada"), Manner::Calm, "s");
    let late = bench.root().join("late");
    fs::write(&late, "").unwrap();
    bench.submit_and_die(&spec, "after the spawn").await;
    wait::until(SOON, "the first child is on its way", async || !late.exists()).await;
    wait::until(SOON, "the second child runs", async || bench.starts(&spec.label).await == 1).await;
    wait::holds(Duration::from_secs(3), "the first one does not", async || {
        bench.starts(&spec.label).await == 1
    })
    .await;
    let job = bench.root().join("jobs").join(spec.label.attempt.to_string());
    assert!(
        fs::read_dir(job)
            .unwrap()
            .flatten()
            .all(|entry| !entry.file_name().to_string_lossy().starts_with("claim"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_took_the_number_of_a_dead_agent_is_left_alone() {
    let mut bench = ProcessBench::new("");
    let spec = running(&bench, "ada", Manner::Calm, "s").await;
    bench.stop().await;
    let agent = bench.agent(&spec.label);
    kill(agent, Signal::SIGKILL);
    wait::until(SOON, "the agent is dead", async || !lives(agent)).await;
    let mut bystander = Command::new("/bin/sleep").arg("60").spawn().unwrap();
    let record = bench.root().join("jobs").join(spec.label.attempt.to_string()).join("job.json");
    let mut text: serde_json::Value = serde_json::from_str(&fs::read_to_string(&record).unwrap()).unwrap();
    text["phase"]["agent"]["pid"] = bystander.id().into();
    fs::write(&record, text.to_string()).unwrap();
    bench.restart().await;
    bench.process().cancel(&spec.label, CancelHow::Now).await.unwrap();
    end(&bench, &spec.label).await;
    assert!(bystander.try_wait().unwrap().is_none(), "somebody else's process was ended");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_takes_more_memory_than_it_asked_for_is_ended_and_told_why() {
    let bench = ProcessBench::new(MUST_HAVE_CGROUP);
    let mut spec = bench.spec(&key("ada"), Manner::Calm, "s");
    spec.dial_file = SecretString::from(r#"{"manner": "calm", "hog_mb": 600}"#);
    bench.process().submit(&spec).await.unwrap();
    let end = end(&bench, &spec.label).await;
    assert_eq!(end.signal, Some(9));
    assert!(end.detail.as_ref().is_some_and(|detail| detail.contains("memory")), "{end:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_lost_a_process_to_its_memory_and_ended_well_is_told_to_have_ended_well() {
    let bench = ProcessBench::new(MUST_HAVE_CGROUP);
    let mut spec = bench.spec(&key("ada"), Manner::Calm, "s");
    spec.dial_file = SecretString::from(r#"{"manner": "calm", "child_hog_mb": 600}"#);
    bench.process().submit(&spec).await.unwrap();
    let hog = bench.home(&spec.label.key).join(format!("hog-{}", spec.label.attempt));
    wait::until(SOON, "the hog was ended", async || fs::read(&hog).is_ok_and(|how| how == b"9\n")).await;
    bench.process().cancel(&spec.label, CancelHow::Kindly).await.unwrap();
    let end = end(&bench, &spec.label).await;
    assert_eq!(end, JobEnd { exit_code: Some(0), signal: None, detail: None });
}

/// As many processes as it may have, each at work, each replaced at once when it ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_forks_as_fast_as_it_can_is_ended() {
    let bench = ProcessBench::new(&format!("{MUST_HAVE_CGROUP}\nprocesses_max = 100"));
    let mut spec = bench.spec(&key("ada"), Manner::Calm, "s");
    spec.dial_file = SecretString::from(r#"{"manner": "bomb"}"#);
    bench.process().submit(&spec).await.unwrap();
    wait::until(SOON, "it runs", async || {
        matches!(state(&bench, &spec.label).await, Some(JobState::Running { .. }))
    })
    .await;
    let groups = job_groups(&bench, &spec.label);
    let members = || {
        let members =
            groups.iter().map(|group| fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default());
        members.map(|members| members.lines().count()).max().unwrap_or(0)
    };
    wait::until(SOON, "it has all the processes that it may", async || members() > 90).await;
    bench.process().cancel(&spec.label, CancelHow::Now).await.unwrap();
    end(&bench, &spec.label).await;
    wait::until(Duration::from_secs(5), "nothing is left", async || members() == 0).await;
    wait::until(SOON, "it is forgotten", async || bench.process().forget(&spec.label).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_record_that_cannot_be_read_makes_the_list_unknown() {
    let bench = ProcessBench::new("");
    let spec = bench.spec(&key("ada"), Manner::Exits(0), "s");
    bench.process().submit(&spec).await.unwrap();
    end(&bench, &spec.label).await;
    let record = bench.root().join("jobs").join(spec.label.attempt.to_string()).join("job.json");
    let whole = fs::read(&record).unwrap();
    fs::write(&record, &whole[..whole.len() / 2]).unwrap();
    let told = bench.process().list().await;
    assert!(
        matches!(&told, Err(BackendError::Unknown(why)) if why.contains("record of the job")),
        "{told:?}"
    );
    fs::write(&record, &whole).unwrap();
    assert_eq!(bench.process().list().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_is_warned_where_users_are_not_isolated() {
    let bench = ProcessBench::new(
        "allow_shared_account = true\naccounts = { mode = 'map', map = { ada = 'games', bob = 'games' } }",
    );
    let told = bench.process().warnings().to_vec();
    assert!(told.iter().any(|told| told.contains("not isolated") && told.contains("games")), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_cgroup_the_limits_are_the_processes_own_and_the_operator_is_told() {
    let bench = ProcessBench::new("cgroup = 'off'");
    let warned = bench.process().warnings().iter().any(|warning| warning.contains("no cgroup"));
    assert!(warned, "{:?}", bench.process().warnings());
    let spec = running(&bench, "ada", Manner::Calm, "s").await;
    let limits = fs::read_to_string(format!("/proc/{}/limits", bench.agent(&spec.label))).unwrap();
    let limit = |name: &str| -> Vec<&str> {
        limits.lines().find_map(|line| line.strip_prefix(name)).unwrap().split_whitespace().take(2).collect()
    };
    assert_eq!(limit("Max core file size"), ["0", "0"]);
    assert_eq!(limit("Max data size"), ["268435456", "268435456"]);
}

/// The job's groups, at least one.
fn job_groups(bench: &ProcessBench, label: &JobLabel) -> Vec<PathBuf> {
    let id: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(bench.root().join("id")).unwrap()).unwrap();
    let groups = cgroups(id["id"].as_str().unwrap()).into_iter();
    let groups: Vec<PathBuf> = groups.map(|group| group.join(label.attempt.to_string())).collect();
    assert!(!groups.is_empty());
    groups
}

/// A process of the job that hides its label and its session is still in the job's cgroup.
#[tokio::test(flavor = "multi_thread")]
async fn who_hides_the_label_is_found_by_the_cgroup() {
    let bench = ProcessBench::new(MUST_HAVE_CGROUP);
    let spec = running(&bench, "ada", Manner::Calm, "s").await;
    let mut hidden = Command::new("/usr/bin/setsid");
    let mut hidden = hidden.args(["--fork", "--wait", "/bin/sleep", "77"]).env_clear().spawn().unwrap();
    for group in job_groups(&bench, &spec.label) {
        fs::write(group.join("cgroup.procs"), hidden.id().to_string()).unwrap();
    }
    bench.process().cancel(&spec.label, CancelHow::Now).await.unwrap();
    end(&bench, &spec.label).await;
    let ended = tokio::task::spawn_blocking(move || hidden.wait().unwrap());
    tokio::time::timeout(SOON, ended).await.expect("the hidden process lives").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_cgroup_stays_is_not_forgotten() {
    let bench = ProcessBench::new(MUST_HAVE_CGROUP);
    let spec = running(&bench, "ada", Manner::Calm, "s").await;
    let group = job_groups(&bench, &spec.label).remove(0);
    let inner = group.join("inner");
    fs::create_dir(&inner).unwrap();
    let mut lodger = Command::new("/bin/sleep").arg("60").spawn().unwrap();
    fs::write(inner.join("cgroup.procs"), lodger.id().to_string()).unwrap();
    bench.process().cancel(&spec.label, CancelHow::Now).await.unwrap();
    end(&bench, &spec.label).await;
    let told = bench.process().forget(&spec.label).await;
    let still = state(&bench, &spec.label).await;
    lodger.kill().unwrap();
    lodger.wait().unwrap();
    assert!(matches!(&told, Err(BackendError::Unknown(why)) if why.contains("cgroup")), "{told:?}");
    assert!(matches!(still, Some(JobState::Ended(_))), "{still:?}");
    wait::until(SOON, "it is forgotten", async || bench.process().forget(&spec.label).await.is_ok()).await;
    assert_eq!(bench.remains(&spec.label).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_whose_folder_is_gone_are_listed_and_can_be_ended() {
    let mut bench = ProcessBench::new("");
    let spec = running(&bench, "ada", Manner::Calm, "s").await;
    bench.stop().await;
    fs::remove_dir_all(bench.root().join("jobs").join(spec.label.attempt.to_string())).unwrap();
    bench.restart().await;
    assert_eq!(state(&bench, &spec.label).await, Some(JobState::Running { direct: None }));
    bench.process().cancel(&spec.label, CancelHow::Now).await.unwrap();
    wait::until(SOON, "the list tells", async || state(&bench, &spec.label).await.is_none()).await;
    wait::until(SOON, "nothing is left", async || bench.processes(&spec.label).await == 0).await;
    bench.process().forget(&spec.label).await.unwrap();
}

/// The job's own folder belongs to the user, who may put anything there.
#[tokio::test(flavor = "multi_thread")]
async fn forgetting_follows_no_link_of_the_user() {
    let bench = ProcessBench::new("");
    let spec = running(&bench, "ada", Manner::Calm, "s").await;
    let treasure = bench.folder.path().join("treasure");
    fs::create_dir(&treasure).unwrap();
    fs::write(treasure.join("kept.txt"), "kept").unwrap();
    let own = bench.root().join("jobs").join(spec.label.attempt.to_string()).join("own");
    symlink(&treasure, own.join("link")).unwrap();
    fs::remove_dir_all(own.join("s")).unwrap();
    symlink(&treasure, own.join("s")).unwrap();
    symlink(&treasure, bench.home(&spec.label.key).join("link")).unwrap();
    bench.process().cancel(&spec.label, CancelHow::Now).await.unwrap();
    end(&bench, &spec.label).await;
    bench.process().forget(&spec.label).await.unwrap();
    bench.process().delete_home(&spec.label.key).await.unwrap();
    assert!(treasure.join("kept.txt").exists());
    assert!(!own.exists() && !bench.home(&spec.label.key).exists());
}

/// Below a folder of the user's own, where a link may take the place of anything at any moment.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_made_or_removed_as_root_where_a_user_could_put_a_link_in_the_way() {
    needs_root();
    let users = tempfile::Builder::new().prefix("gp-").tempdir_in("/tmp").unwrap();
    fs::set_permissions(users.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let bench =
        ProcessBench::new(&format!("homes = '{}/{{user}}/{{hub}}/notebooks'", users.path().display()));
    let spec = bench.spec(&key("ada"), Manner::Exits(0), "s");
    let ada = users.path().join("ada");
    fs::create_dir(&ada).unwrap();
    std::os::unix::fs::chown(&ada, Some(FIRST_ACCOUNT), Some(FIRST_ACCOUNT)).unwrap();
    symlink("/etc", ada.join("main")).unwrap();
    let told = bench.process().submit(&spec).await;
    assert!(matches!(&told, Err(BackendError::Refused(why)) if why.contains("is a link")), "{told:?}");
    fs::remove_file(ada.join("main")).unwrap();
    let told = bench.process().submit(&spec).await;
    assert!(
        matches!(&told, Err(BackendError::Refused(why)) if why.contains("belongs to the account")),
        "{told:?}"
    );
    let home = ada.join("main/notebooks");
    fs::create_dir_all(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(FIRST_ACCOUNT), Some(FIRST_ACCOUNT)).unwrap();
    let told = bench.process().delete_home(&spec.label.key).await;
    assert!(
        matches!(&told, Err(BackendError::Refused(why)) if why.contains("belongs to the account")),
        "{told:?}"
    );
    assert!(home.exists() && !Path::new("/etc/notebooks").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_answers_while_a_large_home_goes() {
    let bench = ProcessBench::new("");
    let spec = bench.spec(&key("ada"), Manner::Exits(0), "s");
    bench.process().submit(&spec).await.unwrap();
    end(&bench, &spec.label).await;
    let home = bench.home(&spec.label.key);
    for folder in 0..100 {
        let folder = home.join(folder.to_string());
        fs::create_dir(&folder).unwrap();
        (0..400).for_each(|file| fs::write(folder.join(file.to_string()), "").unwrap());
    }
    let backend = bench.process();
    let mut removal = tokio::task::JoinSet::new();
    removal.spawn(async move { backend.delete_home(&key("ada")).await });
    wait::until(SOON, "the home is out of the way", async || !home.exists()).await;
    let another = bench.spec(&key("ada"), Manner::Calm, "s");
    bench.process().submit(&another).await.unwrap();
    bench.process().list().await.unwrap();
    assert!(removal.try_join_next().is_none(), "a test that can fail: the home was not large enough");
    removal.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(fs::read_dir(home.parent().unwrap()).unwrap().count(), 1, "the new home and nothing else");
    assert_eq!(fs::read_dir(bench.root().join("staging")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_service_removes_what_a_killed_one_was_removing() {
    let mut bench = ProcessBench::new("");
    bench.stop().await;
    let homes = bench.root().join("homes/main");
    let (home, apart) = (homes.join("ada"), homes.join(".glidepath-removed-1"));
    fs::create_dir_all(apart.join("deep/er")).unwrap();
    fs::create_dir(&home).unwrap();
    let staging = bench.root().join("staging");
    let note = serde_json::json!({ "home": home, "apart": apart });
    fs::write(staging.join("home-1"), note.to_string()).unwrap();
    let forged = serde_json::json!({ "home": home, "apart": home });
    fs::write(staging.join("home-2"), forged.to_string()).unwrap();
    fs::create_dir_all(staging.join("half-a-job/own")).unwrap();
    bench.restart().await;
    wait::until(SOON, "staging is empty", async || fs::read_dir(&staging).unwrap().next().is_none()).await;
    assert!(!apart.exists() && home.exists());
}

/// A folder where a user's home would be, of somebody who is not that user.
#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_another_account_is_not_removed_as_a_users_home() {
    needs_root();
    let bench = ProcessBench::new("");
    let home = bench.home(&key("carl"));
    fs::create_dir_all(&home).unwrap();
    fs::write(home.join("thesis.txt"), "years").unwrap();
    std::os::unix::fs::chown(&home, Some(12_345), Some(12_345)).unwrap();
    let told = bench.process().delete_home(&key("carl")).await;
    assert!(matches!(&told, Err(BackendError::Refused(why)) if why.contains("12345")), "{told:?}");
    assert!(home.join("thesis.txt").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_makes_no_half_job_and_keeps_none_alive() {
    needs_root(); // for a disk of its own
    let disk = SmallDisk::new();
    let mut bench = ProcessBench::new("");
    bench.stop().await;
    let root = disk.path.join("w");
    let file = format!("homes = '{}/homes/{{hub}}/{{user}}'", bench.root().display());
    let small = ProcessBackend::new(config(&root, &ProcessBench::standin(), &file)).unwrap();
    let spec = bench.spec(&key("ada"), Manner::Stubborn, "s");
    small.submit(&spec).await.unwrap();
    wait::until(SOON, "the job runs", async || bench.starts(&spec.label).await == 1).await;

    disk.fill();
    let late = bench.spec(&key("bob"), Manner::Calm, "s");
    let told = small.submit(&late).await;
    assert!(matches!(&told, Err(BackendError::Refused(why)) if why.contains("No space left")), "{told:?}");
    assert_eq!(small.list().await.unwrap().len(), 1, "and the list is whole");
    assert_eq!(fs::read_dir(root.join("staging")).unwrap().count(), 0);
    assert_eq!(
        small.snapshot().await.unwrap().health,
        Health::Resting("the disk of this site is full".to_owned())
    );
    let _ = small.cancel(&spec.label, CancelHow::Now).await;
    wait::until(SOON, "the job is gone", async || bench.processes(&spec.label).await == 0).await;
    wait::until(SOON, "the list tells", async || {
        matches!(small.list().await.unwrap()[0].state, JobState::Ended(_))
    })
    .await;

    disk.empty();
    small.submit(&late).await.unwrap();
    wait::until(SOON, "the late job runs", async || bench.starts(&late.label).await == 1).await;
    for label in [&spec.label, &late.label] {
        small.cancel(label, CancelHow::Now).await.unwrap();
        wait::until(SOON, "it is forgotten", async || small.forget(label).await.is_ok()).await;
    }
}

/// A disk that is soon full.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    fn new() -> Self {
        let path = PathBuf::from(format!("/tmp/gp-disk-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=24m,mode=0711", "tmpfs"])
            .arg(&path)
            .status()
            .unwrap();
        assert!(mounted.success(), "a tmpfs cannot be mounted");
        Self { path }
    }

    fn fill(&self) {
        let mut filler = fs::File::create(self.path.join("filler")).unwrap();
        for size in [65536, 4096, 1] {
            while filler.write_all(&vec![0; size]).is_ok() {}
        }
    }

    fn empty(&self) {
        fs::remove_file(self.path.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
        let _ = fs::remove_dir(&self.path);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_run_once_each() {
    let bench = ProcessBench::new("");
    let mut submits = tokio::task::JoinSet::new();
    let specs: Vec<JobSpec> =
        (0..64).map(|n| bench.spec(&key(&format!("user{n}")), Manner::Exits(0), "s")).collect();
    for spec in specs.clone() {
        let backend = bench.process();
        submits.spawn(async move { backend.submit(&spec).await.unwrap() });
    }
    assert_eq!(submits.join_all().await.len(), 64);
    for spec in &specs {
        assert_eq!(end(&bench, &spec.label).await.exit_code, Some(0));
        assert_eq!(bench.starts(&spec.label).await, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_delay_is_waited_and_told() {
    let bench = ProcessBench::new("queue_delay_s = 2\nslots = 1");
    assert_eq!(bench.process().snapshot().await.unwrap().predicted_wait_s, Some(2));
    let spec = bench.spec(&key("ada"), Manner::Exits(0), "s");
    let began = tokio::time::Instant::now();
    bench.process().submit(&spec).await.unwrap();
    let told = state(&bench, &spec.label).await;
    assert_eq!(told, Some(JobState::Queued { position: Some(1), predicted_wait_s: Some(2) }));
    wait::until(SOON, "the job starts", async || bench.starts(&spec.label).await == 1).await;
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submit_that_nobody_waits_for_makes_no_late_job() {
    let bench = ProcessBench::new("");
    for pause_us in [0, 200, 1_000, 3_000, 10_000] {
        let spec = bench.spec(&key("ada"), Manner::Calm, "s");
        let backend = bench.process();
        let given_up = tokio::time::timeout(Duration::from_micros(pause_us), backend.submit(&spec)).await;
        let before = state(&bench, &spec.label).await;
        backend.cancel(&spec.label, CancelHow::Now).await.unwrap();
        if given_up.is_err() && before.is_none() {
            wait::holds(Duration::from_millis(300), "no job comes", async || {
                matches!(state(&bench, &spec.label).await, None | Some(JobState::Ended(_)))
            })
            .await;
            assert_eq!(bench.starts(&spec.label).await, 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_of_another_account_is_refused() {
    needs_root();
    let bench = ProcessBench::new("");
    let spec = bench.spec(&key("ada"), Manner::Calm, "s");
    let home = bench.home(&spec.label.key);
    fs::create_dir_all(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(12_345), Some(12_345)).unwrap();
    let told = bench.process().submit(&spec).await;
    assert!(
        matches!(&told, Err(BackendError::Refused(why)) if why.contains("belongs to the account 12345")),
        "{told:?}"
    );
    assert_eq!(bench.remains(&spec.label).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_cannot_run_is_told_as_the_jobs_end() {
    let folder = tempfile::tempdir().unwrap();
    let agent = folder.path().join("agent");
    fs::write(&agent, "not a program").unwrap();
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).unwrap();
    let bench = ProcessBench::with_agent(&agent, "");
    let spec = bench.spec(&key("ada"), Manner::Calm, "s");
    bench.process().submit(&spec).await.unwrap();
    let detail = end(&bench, &spec.label).await.detail.unwrap();
    assert!(detail.contains("the agent cannot be started"), "{detail}");
    bench.process().forget(&spec.label).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_words_of_a_failed_agent_are_told() {
    let bench = ProcessBench::new("");
    let spec = bench.spec(&key("ada"), Manner::Exits(5), "s");
    bench.process().submit(&spec).await.unwrap();
    let end = end(&bench, &spec.label).await;
    assert_eq!(end.detail.as_deref(), Some("the last words of a job that exits"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_work_root_has_its_sockets_elsewhere() {
    let mut bench = ProcessBench::new("");
    bench.stop().await;
    let long = bench.root().join("a-long-way-down".repeat(6));
    let file = format!("homes = '{}/homes/{{hub}}/{{user}}'", bench.root().display());
    let backend = ProcessBackend::new(config(&long, &ProcessBench::standin(), &file)).unwrap();
    let spec = bench.spec(&key("ada"), Manner::Calm, "s");
    backend.submit(&spec).await.unwrap();
    wait::until(SOON, "the server listens", async || bench.starts(&spec.label).await == 1).await;
    let JobState::Running { direct: Some(ServerAddress::Unix { path, .. }) } =
        backend.list().await.unwrap().remove(0).state
    else {
        panic!("no address");
    };
    assert!(path.as_os_str().len() <= 100 && path.exists(), "{}", path.display());
    let folder = fs::metadata(path.parent().unwrap()).unwrap();
    assert_eq!(folder.mode() & 0o777, 0o700);
    backend.cancel(&spec.label, CancelHow::Now).await.unwrap();
    wait::until(SOON, "it is forgotten", async || backend.forget(&spec.label).await.is_ok()).await;
    assert!(!path.parent().unwrap().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_killed_while_it_made_a_job_leaves_no_folder_elsewhere() {
    let mut bench = ProcessBench::new("");
    bench.stop().await;
    let long = bench.root().join("a-long-way-down".repeat(6));
    let file = format!("homes = '{}/homes/{{hub}}/{{user}}'", bench.root().display());
    let config = config(&long, &ProcessBench::standin(), &file);
    let killed = ProcessBackend::new(config.clone()).unwrap();
    killed.die_at(Moment::BeforeIntent);
    assert!(killed.submit(&bench.spec(&key("ada"), Manner::Calm, "s")).await.is_err());
    drop(killed);
    let staging = long.join("staging");
    let left = fs::read_dir(&staging).unwrap().next().expect("a job that is being made").unwrap().path();
    let record: serde_json::Value =
        serde_json::from_slice(&fs::read(left.join("job.json")).unwrap()).unwrap();
    let elsewhere = Path::new(record["socket_dir"].as_str().unwrap());
    assert!(elsewhere.is_dir() && !elsewhere.starts_with(&long), "{}", elsewhere.display());

    let _next =
        wait::until_some(SOON, "the root is free", async || ProcessBackend::new(config.clone()).ok()).await;
    wait::until(SOON, "both are gone", async || !left.exists() && !elsewhere.exists()).await;
}

/// The whole contract again, as an account without any privilege.
#[test]
fn the_contract_holds_without_privilege() {
    needs_root();
    let skipped = ["own::", "real::", "mapped::", "with_privilege::"];
    without_privilege(&[], &skipped.map(|tests| ["--skip", tests]).concat());
}

#[test]
fn jobs_are_found_where_other_accounts_are_hidden() {
    needs_root();
    let hides = "mount -t proc -o hidepid=1 proc /proc && exec \"$@\"";
    without_privilege(
        &["unshare", "--mount", "sh", "-c", hides, "sh"],
        &["--exact", "finds_its_jobs_after_a_restart", "removes_what_a_killed_job_left"],
    );
}

/// Runs these tests again as an account without any privilege; `around` is a command that becomes the one behind it.
fn without_privilege(around: &[&str], which: &[&str]) {
    let folder = tempfile::Builder::new().prefix("gp-").tempdir_in("/tmp").unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let tests = folder.path().join("tests");
    let standin = folder.path().join("standin");
    fs::copy(std::env::current_exe().unwrap(), &tests).unwrap();
    fs::copy(ProcessBench::standin(), &standin).unwrap();
    let become_nobody = ["setpriv", "--reuid", "79900", "--regid", "79900", "--clear-groups"];
    let words = [around, &become_nobody, &[tests.to_str().unwrap(), "--test-threads", "4"], which].concat();
    let done = Command::new(words[0])
        .args(&words[1..])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("GLIDEPATH_TEST_STANDIN", &standin)
        .current_dir("/")
        .output()
        .unwrap();
    let told = [done.stdout, done.stderr].concat();
    let told = String::from_utf8_lossy(&told);
    assert!(
        done.status.success() && told.contains(" 0 failed") && !told.contains("running 0 tests"),
        "{told}"
    );
}
