//! The promises of [`Backend`] as test functions. Every backend's tests call all of them, against the real system.
//!
//! A backend brings a [`Bench`]: how to reach its system from the outside, so that nothing is taken from the
//! backend's own word. A broken promise is a panic with a sentence. Not part of any shipped binary.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use glidepath_domain::backend::{
    Backend, BackendError, CancelHow, JobEnd, JobLabel, JobSeen, JobSpec, JobState,
};
use glidepath_domain::names::{Attempt, HubName, RunId, ServerKey, ServerName, UserName};

/// How a job behaves that a bench submits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Has a child, runs until it is asked to end, then ends with its child and exit code 0.
    Calm,
    /// Has a child, and neither hears a kind request.
    Stubborn,
    /// Ends at once with this exit code.
    Exits(i32),
    /// Ends when asked, and leaves a process behind that has gone its own way and hears no kind request.
    Litters,
}

/// A real system with one backend on it, and a way to look at it past the backend.
#[async_trait]
pub trait Bench: Send {
    /// The backend under test.
    fn backend(&self) -> Arc<dyn Backend>;
    /// A job of this server's first attempt of a fresh run, with a grace of 1 s. Its dial file holds `secret`.
    fn spec(&self, key: &ServerKey, manner: Manner, secret: &str) -> JobSpec;
    /// The service is killed and comes back: another backend over the same system.
    async fn restart(&mut self);
    /// Moments at which a service can be killed while it submits, by name.
    fn deaths(&self) -> &'static [&'static str];
    /// Submits, is killed at that moment, and comes back.
    async fn submit_and_die(&mut self, spec: &JobSpec, death: &str);
    /// Processes of the job that exist now, leftovers too.
    async fn processes(&self, label: &JobLabel) -> usize;
    /// How often the job was started, ever.
    async fn starts(&self, label: &JobLabel) -> usize;
    /// Ends the job's first process in the worst way, past the backend.
    async fn strike(&self, label: &JobLabel);
    /// Where somebody without the job's account could read this text now: one line per place.
    async fn exposures(&self, label: &JobLabel, secret: &str) -> Vec<String>;
    /// What the system still holds of the job: one line per thing.
    async fn remains(&self, label: &JobLabel) -> Vec<String>;
    /// Puts a file into the user's home, or looks for it.
    async fn leave_file(&self, key: &ServerKey);
    /// Whether that file is there.
    async fn has_file(&self, key: &ServerKey) -> bool;
    /// Longest time that the system takes for anything.
    fn patience(&self) -> Duration;
}

/// Between two looks.
const EVERY: Duration = Duration::from_millis(50);
/// Long enough to see what must not happen.
const A_WHILE: Duration = Duration::from_millis(1500);

/// Submit makes one job per attempt: asked again, asked by many at once, asked after a restart.
pub async fn submits_once_per_attempt(bench: &mut dyn Bench) {
    let spec = bench.spec(&key("ada"), Manner::Calm, "s");
    let backend = bench.backend();
    let all = (0..8).map(|_| {
        let (backend, spec) = (backend.clone(), spec.clone());
        async move { backend.submit(&spec).await.expect("a submit of many at once") }
    });
    let ids = futures(all).await;
    assert!(ids.windows(2).all(|two| two[0] == two[1]), "one job, several names: {ids:?}");
    until(bench, "the job runs", async |bench| bench.starts(&spec.label).await > 0).await;
    drop(backend);
    bench.restart().await;
    assert_eq!(bench.backend().submit(&spec).await.expect("a submit after the restart"), ids[0]);
    stays(bench, "one start", async |bench| bench.starts(&spec.label).await == 1).await;
    assert_eq!(seen(bench).await.len(), 1, "one job in the list");
}

/// The list has every job that was submitted, with the label it was given, whatever the user is called.
pub async fn lists_every_job_with_its_label(bench: &mut dyn Bench) {
    let long = "ü".repeat(255);
    let users = ["ada", "ada@example.org", "..", "-rf", "ünïcode", "A b\"c'd$e`f\\", long.as_str()];
    let mut labels = Vec::new();
    for user in users {
        for server in ["", "lab", "."] {
            let key = ServerKey { server: ServerName::parse(server).expect("a server name"), ..key(user) };
            let spec = bench.spec(&key, Manner::Exits(0), "s");
            bench.backend().submit(&spec).await.expect("an odd name is a name");
            labels.push(spec.label);
        }
    }
    let mut listed: Vec<JobLabel> = seen(bench).await.into_iter().map(|seen| seen.label).collect();
    listed.sort_by_key(|label| label.attempt);
    labels.sort_by_key(|label| label.attempt);
    assert_eq!(listed, labels);
}

/// Cancel and forget succeed when there never was a job, and make none.
pub async fn ending_what_never_was_succeeds(bench: &mut dyn Bench) {
    let spec = bench.spec(&key("ada"), Manner::Calm, "s");
    for how in [CancelHow::Kindly, CancelHow::Now] {
        bench.backend().cancel(&spec.label, how).await.expect("cancel of nothing");
    }
    bench.backend().forget(&spec.label).await.expect("forget of nothing");
    assert_eq!(seen(bench).await, []);
}

/// A job that ended by itself is shown with its exit code until it is forgotten.
pub async fn tells_how_a_job_ended(bench: &mut dyn Bench) {
    let spec = bench.spec(&key("ada"), Manner::Exits(3), "s");
    bench.backend().submit(&spec).await.expect("submit");
    until(bench, "the job has ended", async |bench| end(bench, &spec.label).await.is_some()).await;
    let end = end(bench, &spec.label).await.expect("an end");
    assert_eq!((end.exit_code, end.signal), (Some(3), None));
    bench.backend().cancel(&spec.label, CancelHow::Kindly).await.expect("cancel of an ended job");
    bench.backend().forget(&spec.label).await.expect("forget");
    bench.backend().forget(&spec.label).await.expect("forget again");
    assert_eq!(seen(bench).await, []);
}

/// A kind cancel lets the job end by itself, and returns before it has.
pub async fn cancels_kindly(bench: &mut dyn Bench) {
    let spec = running(bench, Manner::Calm).await;
    bench.backend().cancel(&spec.label, CancelHow::Kindly).await.expect("cancel");
    until(bench, "the job has ended", async |bench| end(bench, &spec.label).await.is_some()).await;
    assert_eq!(end(bench, &spec.label).await.expect("an end").exit_code, Some(0), "its own end, not a kill");
    until(bench, "nothing is left", async |bench| bench.processes(&spec.label).await == 0).await;
}

/// A job that hears no kind request is ended without asking once its grace is over, also by a restarted service.
pub async fn cancels_unkindly_after_the_grace(bench: &mut dyn Bench) {
    let spec = running(bench, Manner::Stubborn).await;
    bench.backend().cancel(&spec.label, CancelHow::Kindly).await.expect("cancel");
    assert!(bench.processes(&spec.label).await > 0, "it has its grace");
    bench.restart().await;
    until(bench, "nothing is left", async |bench| bench.processes(&spec.label).await == 0).await;
    until(bench, "the list tells", async |bench| over(bench, &spec.label).await).await;
}

/// Cancel at once takes everything with it.
pub async fn cancels_at_once(bench: &mut dyn Bench) {
    let spec = running(bench, Manner::Stubborn).await;
    bench.backend().cancel(&spec.label, CancelHow::Now).await.expect("cancel");
    until(bench, "nothing is left", async |bench| bench.processes(&spec.label).await == 0).await;
    until(bench, "the list tells", async |bench| over(bench, &spec.label).await).await;
}

/// A job that waits and is cancelled never starts, also when the slot comes free and the service is restarted.
/// Needs a bench with one slot.
pub async fn a_job_cancelled_in_the_queue_never_starts(bench: &mut dyn Bench) {
    let first = running(bench, Manner::Calm).await;
    let waiting = bench.spec(&key("bob"), Manner::Calm, "s");
    bench.backend().submit(&waiting.clone()).await.expect("submit");
    assert!(matches!(state(bench, &waiting.label).await, Some(JobState::Queued { .. })));
    bench.backend().cancel(&waiting.label, CancelHow::Kindly).await.expect("cancel");
    assert!(over(bench, &waiting.label).await);
    bench.backend().cancel(&first.label, CancelHow::Now).await.expect("cancel");
    bench.restart().await;
    stays(bench, "no start", async |bench| bench.starts(&waiting.label).await == 0).await;
}

/// Who came first starts first; places are told; a restarted service goes on with the queue; each starts once.
/// Needs a bench with one slot.
pub async fn keeps_its_queue(bench: &mut dyn Bench) {
    let first = running(bench, Manner::Calm).await;
    let snapshot = bench.backend().snapshot().await.expect("snapshot");
    assert_eq!(
        (snapshot.free_slots, snapshot.predicted_wait_s),
        (Some(0), None),
        "an unknown wait is not zero"
    );
    let mut specs = Vec::new();
    for user in ["bob", "cyd", "dan"] {
        let spec = bench.spec(&key(user), Manner::Calm, "s");
        bench.backend().submit(&spec).await.expect("submit");
        specs.push(spec);
    }
    bench.restart().await;
    for (spec, place) in specs.iter().zip(1..) {
        let place = JobState::Queued { position: Some(place), predicted_wait_s: None };
        assert_eq!(state(bench, &spec.label).await, Some(place));
    }
    assert_eq!(bench.backend().snapshot().await.expect("snapshot").waiting, 3);
    let mut leaving = first;
    for next in specs {
        bench.backend().cancel(&leaving.label, CancelHow::Now).await.expect("cancel");
        until(bench, "the next one has started", async |bench| bench.starts(&next.label).await > 0).await;
        leaving = next;
    }
    stays(bench, "one start", async |bench| bench.starts(&leaving.label).await == 1).await;
}

/// When a job's first process is killed from outside, the list tells, and what it left behind goes.
pub async fn removes_what_a_killed_job_left(bench: &mut dyn Bench) {
    let spec = running(bench, Manner::Litters).await;
    bench.strike(&spec.label).await;
    until(bench, "the list tells", async |bench| over(bench, &spec.label).await).await;
    until(bench, "nothing is left", async |bench| bench.processes(&spec.label).await == 0).await;
}

/// What a job leaves behind when it ends kindly goes too.
pub async fn removes_what_a_job_left(bench: &mut dyn Bench) {
    let spec = running(bench, Manner::Litters).await;
    bench.backend().cancel(&spec.label, CancelHow::Kindly).await.expect("cancel");
    until(bench, "the list tells", async |bench| over(bench, &spec.label).await).await;
    until(bench, "nothing is left", async |bench| bench.processes(&spec.label).await == 0).await;
}

/// Forget leaves nothing of the job, and everything of the home.
pub async fn forgets_the_job_and_keeps_the_home(bench: &mut dyn Bench) {
    let spec = running(bench, Manner::Calm).await;
    bench.leave_file(&spec.label.key).await;
    assert!(bench.backend().forget(&spec.label).await.is_err(), "a running job is not forgotten");
    assert!(bench.processes(&spec.label).await > 0, "and goes on");
    bench.backend().cancel(&spec.label, CancelHow::Kindly).await.expect("cancel");
    until(bench, "the job has ended", async |bench| over(bench, &spec.label).await).await;
    bench.backend().forget(&spec.label).await.expect("forget");
    assert_eq!(bench.remains(&spec.label).await, Vec::<String>::new());
    assert_eq!(seen(bench).await, []);
    let again = running(bench, Manner::Calm).await;
    assert!(bench.has_file(&again.label.key).await, "kept between two servers");
}

/// Deleting a home removes that user's files and no other's, is refused while a server may use them, and may be repeated.
pub async fn deletes_one_home(bench: &mut dyn Bench) {
    let spec = running(bench, Manner::Calm).await;
    let bob = bench.spec(&key("bob"), Manner::Exits(0), "s");
    bench.backend().submit(&bob).await.expect("submit");
    until(bench, "bob's job has ended", async |bench| over(bench, &bob.label).await).await;
    for key in [&spec.label.key, &bob.label.key] {
        bench.leave_file(key).await;
    }
    let early = bench.backend().delete_home(&spec.label.key).await;
    assert!(matches!(early, Err(BackendError::Refused(_))), "{early:?}");
    bench.backend().cancel(&spec.label, CancelHow::Now).await.expect("cancel");
    until(bench, "the job has ended", async |bench| over(bench, &spec.label).await).await;
    for _ in 0..2 {
        bench.backend().delete_home(&spec.label.key).await.expect("delete the home");
    }
    assert!(!bench.has_file(&spec.label.key).await);
    assert!(bench.has_file(&bob.label.key).await);
}

/// The content of the dial file is for the job's account alone, at every moment of the job.
pub async fn shows_the_dial_file_to_nobody(bench: &mut dyn Bench) {
    let secret = "glidepath-contract-secret-4711";
    let spec = bench.spec(&key("ada"), Manner::Calm, secret);
    let nowhere = Vec::<String>::new();
    bench.backend().submit(&spec).await.expect("submit");
    assert_eq!(bench.exposures(&spec.label, secret).await, nowhere, "just submitted");
    until(bench, "the job runs", async |bench| bench.starts(&spec.label).await > 0).await;
    assert_eq!(bench.exposures(&spec.label, secret).await, nowhere, "while it runs");
    bench.backend().cancel(&spec.label, CancelHow::Now).await.expect("cancel");
    until(bench, "the job has ended", async |bench| over(bench, &spec.label).await).await;
    assert_eq!(bench.exposures(&spec.label, secret).await, nowhere, "ended");
}

/// A restarted service finds what runs, without disturbing it, and can end it.
pub async fn finds_its_jobs_after_a_restart(bench: &mut dyn Bench) {
    let spec = running(bench, Manner::Calm).await;
    let before = bench.processes(&spec.label).await;
    bench.restart().await;
    assert!(matches!(state(bench, &spec.label).await, Some(JobState::Running { .. })));
    assert_eq!((bench.processes(&spec.label).await, bench.starts(&spec.label).await), (before, 1));
    bench.backend().cancel(&spec.label, CancelHow::Kindly).await.expect("cancel");
    until(bench, "nothing is left", async |bench| bench.processes(&spec.label).await == 0).await;
    until(bench, "the list tells", async |bench| over(bench, &spec.label).await).await;
}

/// Killed at any moment between intent and act, the service that comes back has one job, which is started once.
pub async fn never_starts_a_job_twice(bench: &mut dyn Bench) {
    for death in bench.deaths() {
        let spec = bench.spec(&key("ada"), Manner::Calm, "s");
        bench.submit_and_die(&spec, death).await;
        bench.backend().submit(&spec).await.expect("a submit after the restart");
        until(bench, "the job runs", async |bench| bench.starts(&spec.label).await > 0).await;
        stays(bench, death, async |bench| bench.starts(&spec.label).await == 1).await;
        assert!(matches!(state(bench, &spec.label).await, Some(JobState::Running { .. })), "{death}");
    }
}

/// The same user of two Hubs is two users.
pub async fn keeps_the_users_of_two_hubs_apart(bench: &mut dyn Bench) {
    let here = bench.spec(&key("ada"), Manner::Calm, "s");
    let there = ServerKey { hub: HubName::parse("other").expect("a hub"), ..key("ada") };
    let there = bench.spec(&there, Manner::Calm, "s");
    for spec in [&here, &there] {
        bench.backend().submit(spec).await.expect("submit");
        until(bench, "it runs", async |bench| bench.processes(&spec.label).await > 0).await;
    }
    bench.leave_file(&here.label.key).await;
    assert!(!bench.has_file(&there.label.key).await);
    let mixed =
        JobSpec { label: JobLabel { key: here.label.key.clone(), ..there.label.clone() }, ..there.clone() };
    assert!(bench.backend().submit(&mixed).await.is_err(), "an attempt is of one server");
    assert!(bench.backend().cancel(&mixed.label, CancelHow::Now).await.is_err());
    assert!(bench.processes(&there.label).await > 0);
}

/// The default server of this user on the Hub `main`.
pub fn key(user: &str) -> ServerKey {
    ServerKey {
        hub: HubName::parse("main").expect("a hub name"),
        user: UserName::parse(user).expect("a user name"),
        server: ServerName::default(),
    }
}

/// The label of the first attempt of a run that nobody had before.
pub fn fresh_label(key: &ServerKey, unix_ms: u64, random: u128) -> JobLabel {
    JobLabel { key: key.clone(), attempt: Attempt { run: RunId::from_parts(unix_ms, random), number: 1 } }
}

/// Submits a job of ada's and waits until it runs, its child and what it litters too.
async fn running(bench: &mut dyn Bench, manner: Manner) -> JobSpec {
    let spec = bench.spec(&key("ada"), manner, "s");
    bench.backend().submit(&spec).await.expect("submit");
    let whole = async |bench: &dyn Bench| {
        bench.processes(&spec.label).await > 1 && bench.starts(&spec.label).await == 1
    };
    until(bench, "the job runs", whole).await;
    spec
}

async fn seen(bench: &dyn Bench) -> Vec<JobSeen> {
    bench.backend().list().await.expect("a whole list")
}

async fn state(bench: &dyn Bench, label: &JobLabel) -> Option<JobState> {
    seen(bench).await.into_iter().find(|seen| seen.label == *label).map(|seen| seen.state)
}

async fn end(bench: &dyn Bench, label: &JobLabel) -> Option<JobEnd> {
    match state(bench, label).await {
        Some(JobState::Ended(end)) => Some(end),
        _ => None,
    }
}

/// Ended, or no longer shown.
async fn over(bench: &dyn Bench, label: &JobLabel) -> bool {
    matches!(state(bench, label).await, None | Some(JobState::Ended(_)))
}

#[expect(clippy::panic, reason = "this is how a broken promise is told")]
async fn until(bench: &dyn Bench, what: &str, look: impl AsyncFn(&dyn Bench) -> bool) {
    let deadline = tokio::time::Instant::now() + bench.patience();
    while !look(bench).await {
        if tokio::time::Instant::now() > deadline {
            panic!("not within {:?}: {what}; listed: {:?}", bench.patience(), bench.backend().list().await);
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn stays(bench: &dyn Bench, what: &str, look: impl AsyncFn(&dyn Bench) -> bool) {
    let end = tokio::time::Instant::now() + A_WHILE;
    while tokio::time::Instant::now() < end {
        assert!(look(bench).await, "did not stay: {what}");
        tokio::time::sleep(EVERY).await;
    }
}

/// Waits for all, which run side by side.
async fn futures<T: Send + 'static>(
    all: impl Iterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let mut set = tokio::task::JoinSet::new();
    for each in all {
        set.spawn(each);
    }
    set.join_all().await
}
