//! A batch system made of memory, with a switch for each fault that a real one has.
//!
//! [`FakeBackend`] is a handle: clone it, give one clone to the code under test as `Arc<dyn Backend>`, keep the other
//! to turn switches and read counters. It keeps the promises of the trait (one job per attempt, cancel of nothing
//! succeeds) unless a switch breaks them; what jobs do (start, end, vanish) happens when the test says so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use glidepath_domain::backend::{
    Backend, BackendError, CancelHow, JobEnd, JobId, JobLabel, JobSeen, JobSpec, JobState,
};
use glidepath_domain::names::{Attempt, ServerKey};
use glidepath_domain::site::{Health, Snapshot};

/// A batch system made of memory.
#[derive(Clone)]
pub struct FakeBackend {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    jobs: BTreeMap<Attempt, FakeJob>,
    submits: BTreeMap<Attempt, usize>,
    made: BTreeMap<Attempt, usize>,
    cancels: Vec<(Attempt, CancelHow)>,
    forgets: Vec<Attempt>,
    homes_deleted: Vec<ServerKey>,
    lists: usize,
    snapshots: usize,
    next_seq: u64,
    snapshot: Snapshot,
    // switches
    silent: bool,
    silent_list: bool,
    refuse_submits: Option<String>,
    fail_submits: Option<String>,
    lose_submit_replies: usize,
    slow: Duration,
    hold_in_queue: bool,
    ignore_cancels: bool,
}

struct FakeJob {
    seq: u64,
    spec: JobSpec,
    state: JobState,
}

impl FakeBackend {
    /// Takes every job and starts it at once; ends it when it is cancelled.
    #[must_use]
    pub fn accepting() -> Self {
        let snapshot = Snapshot {
            health: Health::Well,
            free_slots: None,
            waiting: 0,
            predicted_wait_s: Some(0),
            servers: 0,
        };
        let inner = Inner {
            jobs: BTreeMap::new(),
            submits: BTreeMap::new(),
            made: BTreeMap::new(),
            cancels: Vec::new(),
            forgets: Vec::new(),
            homes_deleted: Vec::new(),
            lists: 0,
            snapshots: 0,
            next_seq: 1,
            snapshot,
            silent: false,
            silent_list: false,
            refuse_submits: None,
            fail_submits: None,
            lose_submit_replies: 0,
            slow: Duration::ZERO,
            hold_in_queue: false,
            ignore_cancels: false,
        };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// Takes every job and lets it wait until [`FakeBackend::start`].
    #[must_use]
    pub fn queueing() -> Self {
        let fake = Self::accepting();
        fake.hold_in_queue(true);
        fake
    }

    /// Answers every submit with [`BackendError::Refused`].
    #[must_use]
    pub fn refusing(why: &str) -> Self {
        let fake = Self::accepting();
        fake.refuse_submits(Some(why));
        fake
    }

    /// This handle as the code under test takes it.
    #[must_use]
    pub fn shared(&self) -> Arc<dyn Backend> {
        Arc::new(self.clone())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The switches.
impl FakeBackend {
    /// Every call answers [`BackendError::Unknown`] and does nothing.
    pub fn silent(&self, on: bool) {
        self.inner().silent = on;
    }

    /// Only [`Backend::list`] answers [`BackendError::Unknown`].
    pub fn silent_list(&self, on: bool) {
        self.inner().silent_list = on;
    }

    /// Submits are refused with this sentence; no job is made.
    pub fn refuse_submits(&self, why: Option<&str>) {
        self.inner().refuse_submits = why.map(str::to_owned);
    }

    /// Submits answer [`BackendError::Unknown`] with this sentence; no job is made.
    pub fn fail_submits(&self, why: Option<&str>) {
        self.inner().fail_submits = why.map(str::to_owned);
    }

    /// The next `count` submits make their job, and their reply is lost: the caller gets [`BackendError::Unknown`].
    pub fn lose_submit_replies(&self, count: usize) {
        self.inner().lose_submit_replies = count;
    }

    /// Every call takes this long before anything happens.
    pub fn slow(&self, each_call: Duration) {
        self.inner().slow = each_call;
    }

    /// New jobs wait in the queue, with their place in it, until [`FakeBackend::start`].
    pub fn hold_in_queue(&self, on: bool) {
        self.inner().hold_in_queue = on;
    }

    /// Cancels are counted and answered well, and nothing ends.
    pub fn ignore_cancels(&self, on: bool) {
        self.inner().ignore_cancels = on;
    }

    /// What [`Backend::snapshot`] answers; `waiting` and `servers` are counted from the jobs.
    pub fn set_snapshot(&self, snapshot: Snapshot) {
        self.inner().snapshot = snapshot;
    }

    /// The queued job gets its slot.
    pub fn start(&self, attempt: Attempt) {
        self.set_state(attempt, JobState::Running { direct: None });
    }

    /// The job ends and is still shown.
    pub fn end(&self, attempt: Attempt, end: JobEnd) {
        self.set_state(attempt, JobState::Ended(end));
    }

    /// The job does this from here on. Nothing happens when there is no such job.
    pub fn set_state(&self, attempt: Attempt, state: JobState) {
        if let Some(job) = self.inner().jobs.get_mut(&attempt) {
            job.state = state;
        }
    }

    /// The job vanishes: the next list does not have it.
    pub fn lose_job(&self, attempt: Attempt) {
        self.inner().jobs.remove(&attempt);
    }
}

/// The counters.
impl FakeBackend {
    /// Calls of submit for this attempt, refused and repeated ones too.
    #[must_use]
    pub fn submits(&self, attempt: Attempt) -> usize {
        self.inner().submits.get(&attempt).copied().unwrap_or(0)
    }

    /// Jobs that were really made for this attempt: more than one breaks the promise.
    #[must_use]
    pub fn made(&self, attempt: Attempt) -> usize {
        self.inner().made.get(&attempt).copied().unwrap_or(0)
    }

    /// Jobs made, of all attempts.
    #[must_use]
    pub fn made_in_all(&self) -> usize {
        self.inner().made.values().sum()
    }

    /// The attempts that submit was called for, oldest run first.
    #[must_use]
    pub fn attempts(&self) -> Vec<Attempt> {
        self.inner().submits.keys().copied().collect()
    }

    /// What the last submit of this attempt was given (its dial file too), while its job exists.
    #[must_use]
    pub fn spec(&self, attempt: Attempt) -> Option<JobSpec> {
        self.inner().jobs.get(&attempt).map(|job| job.spec.clone())
    }

    /// What the job does, while it exists.
    #[must_use]
    pub fn state(&self, attempt: Attempt) -> Option<JobState> {
        self.inner().jobs.get(&attempt).map(|job| job.state.clone())
    }

    /// How the attempt was cancelled, call by call.
    #[must_use]
    pub fn cancels(&self, attempt: Attempt) -> Vec<CancelHow> {
        self.inner().cancels.iter().filter(|(of, _)| *of == attempt).map(|(_, how)| *how).collect()
    }

    /// Calls of forget for this attempt.
    #[must_use]
    pub fn forgets(&self, attempt: Attempt) -> usize {
        self.inner().forgets.iter().filter(|of| **of == attempt).count()
    }

    /// The keys whose homes were deleted, in order.
    #[must_use]
    pub fn homes_deleted(&self) -> Vec<ServerKey> {
        self.inner().homes_deleted.clone()
    }

    /// Calls of list, unanswered ones too.
    #[must_use]
    pub fn lists(&self) -> usize {
        self.inner().lists
    }

    /// Calls of snapshot, unanswered ones too.
    #[must_use]
    pub fn snapshots(&self) -> usize {
        self.inner().snapshots
    }
}

impl FakeBackend {
    /// What stands before every call: the wait, then the silence.
    async fn knock(&self) -> Result<(), BackendError> {
        let slow = self.inner().slow;
        if !slow.is_zero() {
            tokio::time::sleep(slow).await;
        }
        if self.inner().silent { Err(no_answer()) } else { Ok(()) }
    }
}

fn no_answer() -> BackendError {
    BackendError::Unknown("the batch system did not answer".to_owned())
}

#[async_trait]
impl Backend for FakeBackend {
    async fn submit(&self, spec: &JobSpec) -> Result<JobId, BackendError> {
        let attempt = spec.label.attempt;
        *self.inner().submits.entry(attempt).or_default() += 1;
        self.knock().await?;
        let mut inner = self.inner();
        if let Some(why) = &inner.refuse_submits {
            return Err(BackendError::Refused(why.clone()));
        }
        if let Some(why) = &inner.fail_submits {
            return Err(BackendError::Unknown(why.clone()));
        }
        if !inner.jobs.contains_key(&attempt) {
            let seq = inner.next_seq;
            inner.next_seq += 1;
            let state = if inner.hold_in_queue {
                JobState::Queued { position: None, predicted_wait_s: None }
            } else {
                JobState::Running { direct: None }
            };
            inner.jobs.insert(attempt, FakeJob { seq, spec: spec.clone(), state });
            *inner.made.entry(attempt).or_default() += 1;
        }
        if inner.lose_submit_replies > 0 {
            inner.lose_submit_replies -= 1;
            return Err(no_answer());
        }
        Ok(job_id(attempt))
    }

    async fn list(&self) -> Result<Vec<JobSeen>, BackendError> {
        self.inner().lists += 1;
        self.knock().await?;
        let inner = self.inner();
        if inner.silent_list {
            return Err(no_answer());
        }
        let mut jobs: Vec<(&Attempt, &FakeJob)> = inner.jobs.iter().collect();
        jobs.sort_by_key(|(_, job)| job.seq);
        let mut place = 0;
        let seen = jobs.into_iter().map(|(attempt, job)| {
            let state = match &job.state {
                JobState::Queued { position: None, predicted_wait_s } => {
                    place += 1;
                    JobState::Queued { position: Some(place), predicted_wait_s: *predicted_wait_s }
                }
                other => other.clone(),
            };
            JobSeen { label: job.spec.label.clone(), id: job_id(*attempt), state }
        });
        Ok(seen.collect())
    }

    async fn cancel(&self, label: &JobLabel, how: CancelHow) -> Result<(), BackendError> {
        self.knock().await?;
        let mut inner = self.inner();
        inner.cancels.push((label.attempt, how));
        if inner.ignore_cancels {
            return Ok(());
        }
        if let Some(job) = inner.jobs.get_mut(&label.attempt)
            && !matches!(job.state, JobState::Ended(_))
        {
            job.state = JobState::Ended(JobEnd::default());
        }
        Ok(())
    }

    async fn forget(&self, label: &JobLabel) -> Result<(), BackendError> {
        self.knock().await?;
        let mut inner = self.inner();
        inner.forgets.push(label.attempt);
        inner.jobs.remove(&label.attempt);
        Ok(())
    }

    async fn snapshot(&self) -> Result<Snapshot, BackendError> {
        self.inner().snapshots += 1;
        self.knock().await?;
        let inner = self.inner();
        let count = |wanted: fn(&JobState) -> bool| {
            u32::try_from(inner.jobs.values().filter(|job| wanted(&job.state)).count()).unwrap_or(u32::MAX)
        };
        Ok(Snapshot {
            waiting: count(|state| matches!(state, JobState::Queued { .. })),
            servers: count(|state| !matches!(state, JobState::Ended(_))),
            ..inner.snapshot.clone()
        })
    }

    async fn delete_home(&self, key: &ServerKey) -> Result<(), BackendError> {
        self.knock().await?;
        self.inner().homes_deleted.push(key.clone());
        Ok(())
    }
}

fn job_id(attempt: Attempt) -> JobId {
    JobId(format!("fake-{attempt}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use glidepath_domain::names::{HubName, RunId, ServerName, UserName};
    use glidepath_domain::resources::{Gpus, Resources};
    use secrecy::SecretString;

    fn spec(number: u32) -> JobSpec {
        let key = ServerKey {
            hub: HubName::parse("main").unwrap(),
            user: UserName::parse("ada").unwrap(),
            server: ServerName::default(),
        };
        let attempt = Attempt { run: RunId::from_parts(1_700_000_000_000, 7), number };
        let resources =
            Resources { cores: 1, memory_mb: 512, gpus: Gpus::default(), arch: None, walltime_min: 60 };
        let label = JobLabel { key, attempt };
        JobSpec { label, resources, dial_file: SecretString::from("{}"), grace_s: 5 }
    }

    #[tokio::test]
    async fn a_lost_reply_leaves_one_job_however_often_it_is_asked() {
        let fake = FakeBackend::accepting();
        fake.lose_submit_replies(1);
        assert!(matches!(fake.submit(&spec(1)).await, Err(BackendError::Unknown(_))));
        let first = fake.submit(&spec(1)).await.unwrap();
        assert_eq!(fake.submit(&spec(1)).await.unwrap(), first);
        let attempt = spec(1).label.attempt;
        assert_eq!((fake.submits(attempt), fake.made(attempt)), (3, 1));
        assert_eq!(fake.list().await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn waiting_jobs_have_places_until_they_start() {
        let fake = FakeBackend::queueing();
        fake.submit(&spec(1)).await.unwrap();
        fake.submit(&spec(2)).await.unwrap();
        fake.start(spec(1).label.attempt);
        let states: Vec<JobState> = fake.list().await.unwrap().into_iter().map(|seen| seen.state).collect();
        let second = JobState::Queued { position: Some(1), predicted_wait_s: None };
        assert_eq!(states, [JobState::Running { direct: None }, second]);
        assert_eq!(fake.snapshot().await.unwrap().waiting, 1);
    }

    #[tokio::test]
    async fn a_silent_system_does_nothing_and_says_nothing() {
        let fake = FakeBackend::accepting();
        fake.silent(true);
        assert!(matches!(fake.submit(&spec(1)).await, Err(BackendError::Unknown(_))));
        assert!(matches!(fake.list().await, Err(BackendError::Unknown(_))));
        fake.silent(false);
        assert_eq!(fake.list().await.unwrap(), []);
        fake.cancel(&spec(1).label, CancelHow::Now).await.unwrap();
    }
}
