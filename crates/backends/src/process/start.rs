//! Starts a job, at most once: the intent is on the disk before, the claim makes the process itself ask whether it may.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Stdio;

use glidepath_domain::backend::{BackendError, JobEnd};
use tokio::process::{Child, Command};

use super::config::CgroupUse;
use super::keeper::Keeper;
use super::record::{Phase, Record};
use super::render::{Around, Launch, launch};
use super::{Moment, files, procs};

/// What the agent itself wrote, in the job's folder.
pub(crate) const LOG: &str = "agent.log";

impl Keeper {
    /// Starts a queued job. A start that the system refuses is the job's end; one that cannot be written down does
    /// not happen, and is tried again.
    pub(crate) fn start(&self, job: &mut Record) -> Result<(), BackendError> {
        let cgroups = match self.job_cgroups(job) {
            Ok(cgroups) => cgroups,
            Err(why) => {
                self.not_started(job, &why);
                return Ok(());
            }
        };
        let claim = files::random_hex::<8>();
        let claim_path = self.claim_path(job.attempt, &claim);
        job.phase = Phase::Starting { claim };
        if let Err(why) = files::write_new(&claim_path, b"", 0o600).and_then(|()| self.write(job)) {
            tracing::warn!(job.id = %job.attempt, "a job cannot be started yet: {why}");
            let _ = files::remove_file(&claim_path);
            job.phase = Phase::Queued;
            return Ok(());
        }
        self.failpoint.passes(Moment::AfterClaim)?;
        let around = Around {
            config: &self.config,
            folder: &self.root.job(job.attempt),
            claim: &claim_path,
            cgroups: &cgroups,
            processes_held: !cgroups.is_empty()
                && self.cgroups.as_ref().is_some_and(|all| !all.missing().contains(&"pids")),
            mark: self.root.mark(&job.key, job.attempt),
        };
        match self.spawn(&launch(job, &around), job) {
            Ok(child) => self.started(job, child),
            Err(why) => {
                let _ = files::remove_file(&claim_path);
                self.not_started(job, &why);
                Ok(())
            }
        }
    }

    fn started(&self, job: &mut Record, child: Child) -> Result<(), BackendError> {
        self.failpoint.passes(Moment::AfterSpawn)?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        self.children.adopt(job.attempt, child, self.wake.clone());
        // Not yet collected, so the number cannot have gone to another process.
        let agent = pid.map(|pid| procs::identify(pid, &self.boot)).transpose();
        if let Ok(Some(Some(agent))) = agent {
            tracing::info!(job.id = %job.attempt, pid = agent.pid, "job started");
            job.phase = Phase::Running { agent };
            self.keep(job);
        }
        Ok(())
    }

    fn not_started(&self, job: &mut Record, why: &io::Error) {
        tracing::warn!(job.id = %job.attempt, "a job cannot be started: {why}");
        let detail = Some(format!("the agent cannot be started: {why}"));
        job.phase = Phase::Ended { end: JobEnd { exit_code: None, signal: None, detail } };
        self.keep(job);
    }

    fn job_cgroups(&self, job: &Record) -> io::Result<Vec<PathBuf>> {
        let Some(cgroups) = &self.cgroups else { return Ok(Vec::new()) };
        match cgroups.make(job.attempt, &job.resources, self.config.processes_max) {
            Ok(()) => Ok(cgroups.groups(job.attempt)),
            Err(why) if self.config.cgroup == CgroupUse::On => Err(why),
            Err(why) => {
                tracing::warn!(job.id = %job.attempt, "the job runs without a cgroup: {why}");
                let _ = cgroups.remove(job.attempt);
                Ok(Vec::new())
            }
        }
    }

    fn spawn(&self, launch: &Launch, job: &Record) -> io::Result<Child> {
        let log = self.root.job(job.attempt).join(LOG);
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(log)?;
        fs::metadata(&launch.program)?;
        Command::new(&launch.program)
            .args(&launch.arguments)
            .env_clear()
            .envs(&launch.environment)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(false)
            .spawn()
    }
}
