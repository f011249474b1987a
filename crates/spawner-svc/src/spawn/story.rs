//! One run as the operator is told it: from its record as it is kept. No secret is in that.

use glidepath_domain::names::{RunId, ServerKey};
use glidepath_domain::placement::Verdict;
use glidepath_domain::run::{Moment, Run, State};

use super::diary::{AgentSeen, Diary};
use super::record::{Record, read_view};
use super::view::RunView;
use crate::store::{RunRow, StoreError};

/// One run, with all that is kept of it.
#[derive(Debug, Clone)]
pub struct Story {
    /// As its Hub was told last.
    pub view: RunView,
    /// The state machine's own record.
    pub run: Run,
    /// What happened, and when.
    pub diary: Diary,
    /// The last agent that was heard, when one was.
    pub agent: Option<AgentSeen>,
    /// What placement said of the sites, best first.
    pub verdicts: Vec<Verdict>,
    /// Sites behind those, whose verdicts are not kept.
    pub sites_left_out: usize,
    /// What batch systems call its jobs, by attempt.
    pub jobs: Vec<(u32, String)>,
    /// True once nothing is left of it at any site.
    pub settled: bool,
}

impl Story {
    /// From a row of the store.
    pub fn read(row: &RunRow) -> Result<Self, StoreError> {
        let (record, view) = (Record::read(row)?, read_view(&row.view)?);
        let job = |attempt: &crate::store::AttemptRow| Some((attempt.number, attempt.job.clone()?));
        Ok(Self {
            view,
            run: record.run,
            diary: record.diary,
            agent: record.agent,
            verdicts: record.verdicts,
            sites_left_out: record.sites_left_out,
            jobs: row.attempts.iter().filter_map(job).collect(),
            settled: row.settled,
        })
    }

    /// Which life.
    #[must_use]
    pub fn id(&self) -> RunId {
        self.run.id
    }

    /// Whose server.
    #[must_use]
    pub fn key(&self) -> &ServerKey {
        &self.view.key
    }

    /// When its walltime is over, while it is known to count.
    #[must_use]
    pub fn walltime_end(&self) -> Option<Moment> {
        let counts = matches!(self.run.state, State::Starting | State::Ready);
        let from = self.run.launched_at.or(self.run.ready_at).filter(|_| counts)?;
        Some(from.after(std::time::Duration::from_secs(self.run.walltime_s)))
    }

    /// What is still to be removed, attempt by attempt, in sentences.
    #[must_use]
    pub fn left(&self) -> Vec<String> {
        if self.run.state != State::Ended {
            return Vec::new();
        }
        let left = self.run.tries.iter().filter(|attempt| !attempt.cleaned);
        let told = left.map(|attempt| {
            let what = match (attempt.cancelled, &attempt.job) {
                (_, glidepath_domain::run::Job::Gone { .. }) => "what its job left there",
                (true, _) => "its job, which was told to end",
                (false, _) => "its job, which the site has not been told to end yet",
            };
            format!("of attempt {} at {}: {what}", attempt.number, attempt.at.title)
        });
        told.collect()
    }
}
