//! Keeps the jobs: starts those whose turn it is, notices ends, finishes cancels, finds again what ran before.
//!
//! Everything is read from the job folders and from `/proc` each time; one lock makes it one after the other. All
//! calls block and belong on a blocking thread. What only lives in memory is how a child of *this* service ended.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use glidepath_domain::backend::{BackendError, CancelHow, JobEnd, JobId, JobLabel, JobSeen, JobSpec};
use glidepath_domain::names::{Attempt, ServerKey};
use glidepath_domain::site::{Health, Snapshot};
use nix::sys::signal::Signal;
use tokio::sync::Notify;

use super::accounts::AccountBook;
use super::cgroup::Cgroups;
use super::children::Children;
use super::config::ProcessConfig;
use super::record::{Cancel, Phase, ProcessId, Record};
use super::root::WorkRoot;
use super::submit::{Prepared, now_ms, prepare};
use super::{files, homes, procs, queue, readback};

/// Seconds beyond a job's grace that the agent has for its own end.
const GRACE_MARGIN_S: u64 = 5;
/// Looks at the processes in one go: a process that just forked is found by the next.
const KILL_ROUNDS: usize = 5;
/// Below this the disk takes no more jobs.
const DISK_FULL_BYTES: u64 = 16 * 1024 * 1024;

/// The jobs of one work root.
pub(crate) struct Keeper {
    pub(crate) config: ProcessConfig,
    pub(crate) root: WorkRoot,
    pub(crate) book: AccountBook,
    pub(crate) cgroups: Option<Cgroups>,
    pub(crate) boot: String,
    pub(crate) children: Children,
    /// Rings when there may be something to do.
    pub(crate) wake: std::sync::Arc<Notify>,
    /// Held by whoever reads and changes job folders.
    pub(crate) turn: Mutex<Turn>,
    pub(crate) failpoint: super::Failpoint,
}

/// What must be remembered between two calls.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    last_seq: u64,
    /// Submits that are making their folder, and whether somebody cancelled the attempt meanwhile.
    in_hand: BTreeMap<Attempt, InHand>,
    /// Homes whose files are being removed, out of turn.
    removing: BTreeSet<PathBuf>,
}

#[derive(Debug, Default)]
struct InHand {
    submits: usize,
    cancelled: bool,
    /// The home that these submits make or found, when it is one that could be removed meanwhile.
    home: Option<PathBuf>,
}

/// The jobs after a look at them.
pub(crate) struct Tended {
    pub(crate) jobs: Vec<Record>,
    /// True while something ends or is unsettled, so that the next look should be soon.
    pub(crate) busy: bool,
}

impl Keeper {
    /// Makes a job, or finds the one that is there. `given_up` is set when nobody waits for the reply any more.
    pub(crate) fn submit(&self, spec: &JobSpec, given_up: &AtomicBool) -> Result<JobId, BackendError> {
        let attempt = spec.label.attempt;
        {
            let mut turn = self.turn()?;
            if let Some(there) = self.existing(&spec.label)? {
                return Ok(there);
            }
            let in_hand = turn.in_hand.entry(attempt).or_default();
            in_hand.submits += 1;
            in_hand.home = self.config.homes.removable(&spec.label.key).ok();
        }
        let prepared = prepare(spec, &self.config, &self.root, &self.book);
        self.failpoint.passes(super::Moment::BeforeIntent)?;
        let mut turn = self.turn()?;
        let cancelled = turn.let_go(attempt);
        let prepared = prepared?;
        if let Some(there) = self.existing(&spec.label)? {
            prepared.discard();
            return Ok(there);
        }
        if cancelled || given_up.load(Ordering::SeqCst) {
            prepared.discard();
            return Err(BackendError::Refused("the job was cancelled while it was submitted".to_owned()));
        }
        self.place(&mut turn, prepared)?;
        self.failpoint.passes(super::Moment::AfterIntent)?;
        drop(turn);
        self.wake.notify_one();
        Ok(job_id(attempt))
    }

    fn place(&self, turn: &mut Turn, prepared: Prepared) -> Result<(), BackendError> {
        if turn.last_seq == 0 {
            turn.last_seq = self.read_jobs()?.iter().map(|job| job.seq).max().unwrap_or(0);
        }
        turn.last_seq += 1;
        prepared.commit(turn.last_seq, &self.root)
    }

    /// The job of this attempt, if it is there. It must be of the same server.
    fn existing(&self, label: &JobLabel) -> Result<Option<JobId>, BackendError> {
        match self.find(label)? {
            Some(_) => Ok(Some(job_id(label.attempt))),
            None => Ok(None),
        }
    }

    fn find(&self, label: &JobLabel) -> Result<Option<Record>, BackendError> {
        match Record::read(&self.root.job(label.attempt)) {
            Ok(record) if record.key == label.key => Ok(Some(record)),
            Ok(_) => {
                Err(BackendError::Refused(format!("the attempt {} is of another server", label.attempt)))
            }
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(why) => Err(unknown("a job's record cannot be read", &why)),
        }
    }

    /// Looks at every job and does what is due.
    pub(crate) fn tend(&self) -> Result<Tended, BackendError> {
        let _turn = self.turn()?;
        self.tend_in_turn()
    }

    fn tend_in_turn(&self) -> Result<Tended, BackendError> {
        let mut jobs = self.read_jobs()?;
        let mut busy = false;
        for job in &mut jobs {
            busy |= self.settle(job)?;
        }
        let rule = self.rule();
        let now = now_ms();
        for turn in queue::waiting(&jobs, rule, now).into_iter().filter(|waiting| waiting.may_start) {
            if let Some(job) = jobs.iter_mut().find(|job| job.attempt == turn.attempt) {
                self.start(job)?;
            }
        }
        Ok(Tended { jobs, busy })
    }

    /// Everything that runs, waits or ended here, and processes of ours whose folder is gone.
    pub(crate) fn list(&self) -> Result<Vec<JobSeen>, BackendError> {
        let _turn = self.turn()?;
        let jobs = self.tend_in_turn()?.jobs;
        let all = procs::all().map_err(|why| unknown("the processes cannot be listed", &why))?;
        let rule = self.rule();
        let mut seen = readback::jobs(&jobs, rule, now_ms(), self.config.reach);
        seen.extend(readback::strays(&jobs, &all, |key, attempt| self.root.mark(key, attempt)));
        Ok(seen)
    }

    /// Asks for the end of a job.
    pub(crate) fn cancel(&self, label: &JobLabel, how: CancelHow) -> Result<(), BackendError> {
        let mut turn = self.turn()?;
        if let Some(in_hand) = turn.in_hand.get_mut(&label.attempt) {
            in_hand.cancelled = true;
        }
        let Some(mut job) = self.find(label)? else {
            self.kill_all(label.attempt, None, None)?;
            return Ok(());
        };
        self.settle(&mut job)?;
        match job.phase.clone() {
            Phase::Queued | Phase::Starting { .. } => {
                // Written or not done: a cancel that a full disk forgot would let the job start later.
                job.cancel = Some(Cancel { since_uptime_s: self.uptime()?, now: true });
                self.write(&job).map_err(|why| unknown("the cancel cannot be written down", &why))?;
                self.settle(&mut job)?;
            }
            Phase::Running { agent } => self.cancel_running(&mut job, &agent, how)?,
            Phase::Ended { .. } => {
                self.kill_all(job.attempt, None, Some(job.account.uid))?;
            }
        }
        drop(turn);
        self.wake.notify_one();
        Ok(())
    }

    /// Acts first and writes it down then: a full disk must not keep a job alive.
    fn cancel_running(
        &self,
        job: &mut Record,
        agent: &ProcessId,
        how: CancelHow,
    ) -> Result<(), BackendError> {
        let now = how == CancelHow::Now || job.cancel.as_ref().is_some_and(|cancel| cancel.now);
        if now {
            self.kill_all(job.attempt, Some(agent), Some(job.account.uid))?;
        } else if job.cancel.is_none() && self.lives(agent)? {
            procs::signal(agent.pid, agent.started, Signal::SIGTERM)
                .map_err(|why| unknown("the agent cannot be asked to end", &why))?;
        }
        let since_uptime_s = match &job.cancel {
            Some(cancel) => cancel.since_uptime_s,
            None => self.uptime()?,
        };
        job.cancel = Some(Cancel { since_uptime_s, now });
        self.write(job).map_err(|why| unknown("the cancel cannot be written down", &why))?;
        self.settle(job).map(|_| ())
    }

    /// Removes all that is kept of an ended job.
    pub(crate) fn forget(&self, label: &JobLabel) -> Result<(), BackendError> {
        let turn = self.turn()?;
        let mut apart = None;
        if let Some(mut job) = self.find(label)? {
            self.settle(&mut job)?;
            if !matches!(job.phase, Phase::Ended { .. }) {
                return Err(BackendError::Unknown(format!("the job {} has not ended", job.attempt)));
            }
            if self.kill_all(job.attempt, None, Some(job.account.uid))? > 0 {
                return Err(BackendError::Unknown(format!("processes of the job {} still end", job.attempt)));
            }
            // Before the folder: as long as that is there, the job is listed and somebody tries again.
            self.remove_cgroup(job.attempt)?;
            let moved = self.put_apart(&job);
            let moved = moved.map_err(|why| unknown("the job's folder cannot be removed", &why))?;
            apart = Some((moved, job.outer_socket_dir()));
        } else {
            self.remove_cgroup(label.attempt)?;
        }
        self.children.forget(label.attempt);
        drop(turn); // a job may have left millions of files: nobody else waits for their end
        if let Some((folder, outer)) = apart {
            remove_apart(&folder, outer.as_deref());
        }
        Ok(())
    }

    fn remove_cgroup(&self, attempt: Attempt) -> Result<(), BackendError> {
        let Some(cgroups) = &self.cgroups else { return Ok(()) };
        cgroups.remove(attempt).map_err(|why| unknown("the job's cgroup cannot be removed", &why))
    }

    /// Moves the folder away in one step, so that a crash before it is removed leaves no half job. The next start of
    /// the service removes what is left there.
    fn put_apart(&self, job: &Record) -> io::Result<PathBuf> {
        let apart = self.root.staging(job.attempt);
        fs::rename(self.root.job(job.attempt), &apart)?;
        files::sync_folder(&self.root.jobs())?;
        Ok(apart)
    }

    /// What the site can take.
    pub(crate) fn snapshot(&self) -> Result<Snapshot, BackendError> {
        let jobs = {
            let _turn = self.turn()?;
            self.read_jobs()?
        };
        let rule = self.rule();
        let free_slots = queue::free_slots(&jobs, rule);
        let count = |wanted: fn(&Record) -> bool| {
            u32::try_from(jobs.iter().filter(|job| wanted(job)).count()).unwrap_or(u32::MAX)
        };
        let waiting = count(Record::is_queued);
        let known = free_slots.is_none_or(|free| free > waiting);
        let full = self.root.free_bytes().is_some_and(|free| free < DISK_FULL_BYTES);
        let health =
            if full { Health::Resting("the disk of this site is full".to_owned()) } else { Health::Well };
        Ok(Snapshot {
            health,
            free_slots: free_slots.map(|free| free.saturating_sub(waiting)),
            waiting,
            predicted_wait_s: known.then_some(self.config.queue_delay_s),
            servers: count(|job| !matches!(job.phase, Phase::Ended { .. })),
        })
    }

    /// Removes a user's home, unless a server there may still use it. It is moved away in one step: its files may be
    /// millions, and nobody else waits for their end.
    pub(crate) fn delete_home(&self, key: &ServerKey) -> Result<(), BackendError> {
        let home = self.config.homes.removable(key)?;
        let mut turn = self.turn()?;
        let mut used = turn.in_hand.values().any(|in_hand| in_hand.home.as_ref() == Some(&home));
        used |=
            self.read_jobs()?.iter().any(|job| job.home == home && !matches!(job.phase, Phase::Ended { .. }));
        if used {
            return Err(BackendError::Refused("a server of this user is still running here".to_owned()));
        }
        let stays = |why: io::Error| {
            BackendError::Unknown(format!("the home {} is not wholly removed: {why}", home.display()))
        };
        let moved = if homes::removes(&home, || self.book.account(key))? {
            Some(self.root.put_home_apart(&home).map_err(stays)?)
        } else {
            None
        };
        if !turn.removing.insert(home.clone()) {
            return Err(BackendError::Unknown(format!("the home {} is still being removed", home.display())));
        }
        drop(turn);
        let removed = self.root.remove_homes_apart(&home, moved);
        self.turn()?.removing.remove(&home);
        removed.map_err(stays)
    }

    /// Brings one job's record in line with the world. True while it is on its way to an end.
    fn settle(&self, job: &mut Record) -> Result<bool, BackendError> {
        match job.phase.clone() {
            Phase::Queued if job.cancel.is_some() => {
                let detail = Some("cancelled before it started".to_owned());
                self.end(job, JobEnd { exit_code: None, signal: None, detail });
                Ok(false)
            }
            Phase::Queued | Phase::Ended { .. } => Ok(false),
            Phase::Starting { claim } => self.settle_starting(job, &claim),
            Phase::Running { agent } => self.settle_running(job, &agent),
        }
    }

    /// The service was killed between intent and knowledge. Whoever removes the claim decides: if it is still there,
    /// no process has begun and none ever can; if not, one has, and it is found or it is over.
    fn settle_starting(&self, job: &mut Record, claim: &str) -> Result<bool, BackendError> {
        match fs::remove_file(self.claim_path(job.attempt, claim)) {
            Ok(()) => {
                job.phase = Phase::Queued;
                self.keep(job);
                if job.cancel.is_some() { self.settle(job) } else { Ok(true) }
            }
            Err(why) if why.kind() == io::ErrorKind::NotFound => {
                let all = procs::all().map_err(|why| unknown("the processes cannot be listed", &why))?;
                let members = self.members(job.attempt)?;
                let ours = procs::of_job(&all, job.attempt, None, &members, Some(job.account.uid));
                match procs::eldest(&ours) {
                    Some(agent) => {
                        let agent =
                            ProcessId { pid: agent.pid, started: agent.started, boot: self.boot.clone() };
                        job.phase = Phase::Running { agent };
                        self.keep(job);
                    }
                    None => self.end(job, readback::unseen_end()),
                }
                Ok(true)
            }
            Err(why) => Err(unknown("a start cannot be revoked", &why)),
        }
    }

    fn settle_running(&self, job: &mut Record, agent: &ProcessId) -> Result<bool, BackendError> {
        if self.lives(agent)? {
            let Some(cancel) = &job.cancel else { return Ok(false) };
            let grace_over = cancel.since_uptime_s + u64::from(job.grace_s) + GRACE_MARGIN_S;
            if cancel.now || self.uptime()? >= grace_over {
                self.kill_all(job.attempt, Some(agent), Some(job.account.uid))?;
            }
            return Ok(true);
        }
        if self.children.is_awaited(job.attempt) {
            return Ok(true); // dead, and its exit code arrives in a moment
        }
        if self.kill_all(job.attempt, Some(agent), Some(job.account.uid))? > 0 {
            return Ok(true);
        }
        let mut end = self.children.end_of(job.attempt).unwrap_or_else(readback::unseen_end);
        // A job that lost one process and ended well later did not end of that.
        if end.exit_code != Some(0) {
            if self.cgroups.as_ref().is_some_and(|cgroups| cgroups.ran_out_of_memory(job.attempt)) {
                end.detail = Some("a process was ended because the memory of the job was used up".to_owned());
            } else if end.exit_code.is_some() {
                end.detail = readback::last_line(&self.root.job(job.attempt).join(super::start::LOG));
            }
        }
        self.end(job, end);
        Ok(false)
    }

    /// Kills what belongs to the job; says how many processes are still there afterwards.
    fn kill_all(
        &self,
        attempt: Attempt,
        agent: Option<&ProcessId>,
        uid: Option<u32>,
    ) -> Result<usize, BackendError> {
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        let mut left = 0;
        for _ in 0..KILL_ROUNDS {
            let all = procs::all().map_err(|why| unknown("the processes cannot be listed", &why))?;
            let members = self.members(attempt)?;
            let mut ours = procs::of_job(&all, attempt, agent, &members, uid);
            ours.retain(|process| process.pid != own && self.may_signal(process.uid));
            left = ours.len();
            if left == 0 {
                break;
            }
            for process in ours {
                procs::signal(process.pid, process.started, Signal::SIGKILL)
                    .map_err(|why| unknown("a process of the job cannot be ended", &why))?;
            }
        }
        Ok(left)
    }

    /// Without privilege, what runs under another account is not a job of this root.
    fn may_signal(&self, uid: u32) -> bool {
        let effective = nix::unistd::Uid::effective();
        effective.is_root() || effective.as_raw() == uid
    }

    fn members(&self, attempt: Attempt) -> Result<std::collections::BTreeSet<i32>, BackendError> {
        match &self.cgroups {
            Some(cgroups) => {
                cgroups.members(attempt).map_err(|why| unknown("a job's cgroup cannot be read", &why))
            }
            None => Ok(Default::default()),
        }
    }

    fn lives(&self, process: &ProcessId) -> Result<bool, BackendError> {
        procs::lives(process, &self.boot).map_err(|why| unknown("a process cannot be looked at", &why))
    }

    fn uptime(&self) -> Result<u64, BackendError> {
        procs::uptime_s().map_err(|why| unknown("the machine's clock cannot be read", &why))
    }

    fn end(&self, job: &mut Record, end: JobEnd) {
        job.phase = Phase::Ended { end };
        self.keep(job);
    }

    /// Writes a record that the world shows anyway: when that fails, the next look finds out again.
    pub(crate) fn keep(&self, job: &Record) {
        if let Err(why) = self.write(job) {
            tracing::warn!(job.id = %job.attempt, "a job's record cannot be written: {why}");
        }
    }

    pub(crate) fn write(&self, job: &Record) -> io::Result<()> {
        job.write(&self.root.job(job.attempt))
    }

    pub(crate) fn claim_path(&self, attempt: Attempt, claim: &str) -> PathBuf {
        self.root.job(attempt).join(format!("claim-{claim}"))
    }

    fn rule(&self) -> queue::Rule {
        queue::Rule { slots: self.config.slots, delay_ms: u64::from(self.config.queue_delay_s) * 1000 }
    }

    /// All records, in the order of submits. One that cannot be read makes the answer less than whole.
    fn read_jobs(&self) -> Result<Vec<Record>, BackendError> {
        let trouble = |why: io::Error| unknown("the jobs cannot be read", &why);
        let mut jobs = Vec::new();
        for entry in fs::read_dir(self.root.jobs()).map_err(trouble)? {
            let entry = entry.map_err(trouble)?;
            let Some(attempt) = entry.file_name().to_str().and_then(|name| Attempt::parse(name).ok()) else {
                continue;
            };
            let record = Record::read(&entry.path())
                .map_err(|why| unknown(&format!("the record of the job {attempt} cannot be read"), &why))?;
            if record.attempt != attempt {
                return Err(BackendError::Unknown(format!(
                    "the folder of the job {attempt} holds another job"
                )));
            }
            jobs.push(record);
        }
        jobs.sort_by_key(|job| job.seq);
        Ok(jobs)
    }

    fn turn(&self) -> Result<MutexGuard<'_, Turn>, BackendError> {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.failpoint.alive()?; // here, because the dead do not wait for their turn either
        Ok(turn)
    }
}

impl Turn {
    /// A submit is no longer in hand. True when somebody cancelled it meanwhile.
    fn let_go(&mut self, attempt: Attempt) -> bool {
        let Some(in_hand) = self.in_hand.get_mut(&attempt) else { return false };
        in_hand.submits = in_hand.submits.saturating_sub(1);
        let cancelled = in_hand.cancelled;
        if in_hand.submits == 0 {
            self.in_hand.remove(&attempt);
        }
        cancelled
    }
}

/// The socket's folder first: where it is stands in the other one.
fn remove_apart(folder: &Path, outer: Option<&Path>) {
    let removed = outer.map_or(Ok(()), files::remove_tree).and_then(|()| files::remove_tree(folder));
    if let Err(why) = removed {
        tracing::warn!(folder = %folder.display(), "an ended job's folder is not wholly removed: {why}");
    }
}

fn job_id(attempt: Attempt) -> JobId {
    JobId(attempt.to_string())
}

pub(crate) fn unknown(what: &str, why: &io::Error) -> BackendError {
    BackendError::Unknown(format!("{what}: {why}"))
}
