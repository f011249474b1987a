//! One run with everything that belongs to it: what is written down, and what everybody may see.

use glidepath_domain::names::{Attempt, ServerKey, SiteName};
use glidepath_domain::placement::Verdict;
use glidepath_domain::request::SpawnRequest;
use glidepath_domain::run::{Choice, Deadlines, Moment, Run, State};
use serde::{Deserialize, Serialize};

use super::diary::{AgentSeen, Diary, Happened};
use super::view::{NearEnd, RunView, UsedSoFar};
use crate::store::{AttemptRow, RunRow, StoreError};

/// A run with what it was asked with. No secret: that is in the sealed launch order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) run: Run,
    pub(super) request: SpawnRequest,
    pub(super) spawn_id: String,
    pub(super) prefix: String,
    pub(super) verdicts: Vec<Verdict>,
    /// Sites behind those, whose verdicts are not kept.
    #[serde(default)]
    pub(super) sites_left_out: usize,
    /// Empty in what an older version wrote.
    #[serde(default)]
    pub(super) diary: Diary,
    #[serde(default)]
    pub(super) agent: Option<AgentSeen>,
    #[serde(skip)]
    pub(super) usage: Option<UsedSoFar>,
    /// The ends that its user was warned of, as its agent told last.
    #[serde(skip)]
    pub(super) warnings: Vec<NearEnd>,
    /// Names that batch systems gave to its jobs, by attempt.
    #[serde(skip)]
    pub(super) jobs: Vec<(u32, String)>,
}

impl Record {
    pub(super) fn key(&self) -> &ServerKey {
        &self.request.key
    }

    pub(super) fn attempt(&self, number: u32) -> Attempt {
        Attempt { run: self.run.id, number }
    }

    /// The site that it takes a place at: while it lives.
    pub(super) fn site(&self) -> Option<&SiteName> {
        self.run.current().filter(|_| self.run.state != State::Ended).map(|attempt| &attempt.at.site)
    }

    /// Notes in which attempt this happened.
    pub(super) fn happened(&mut self, at: Moment, what: Happened) {
        let attempt = self.run.current().map(|attempt| attempt.number);
        self.diary.add(at, attempt, what);
    }

    pub(super) fn view(&self, now: Moment, deadlines: &Deadlines) -> RunView {
        let (queue_position, predicted_wait_s) = self.run.queue();
        RunView {
            key: self.key().clone(),
            run: self.run.id,
            attempt: self.run.current().map(|attempt| attempt.number),
            state: self.run.state,
            life: self.run.life(now, deadlines),
            site: self.run.current().map(|attempt| attempt.at.site.clone()),
            message: self.run.message(),
            progress: self.run.progress(),
            queue_position,
            predicted_wait_s,
            end: self.run.end.clone(),
            verdicts: self.verdicts.clone(),
            requested_at: self.run.requested_at,
            since: self.run.since,
            usage: self.usage.clone(),
            walltime_s: self.run.walltime_s,
            lives_until: self.run.lives_until(),
            granted: self.run.current().map(|attempt| attempt.at.granted.clone()).unwrap_or_default(),
            near_ends: if self.run.state == State::Ready { self.warnings.clone() } else { Vec::new() },
        }
    }

    /// As the store keeps it.
    pub(super) fn row(&self, view: &RunView) -> Result<RunRow, StoreError> {
        let text = |text: serde_json::Result<String>| text.map_err(|error| unfit("written", &error));
        let ended = self.run.end.as_ref().map(|end| end.at);
        Ok(RunRow {
            run: self.run.id,
            hub: self.key().hub.to_string(),
            server_key: self.key().full(),
            spawn_id: self.spawn_id.clone(),
            state: format!("{:?}", self.run.state).to_lowercase(),
            alive: self.run.state != State::Ended,
            settled: self.run.is_settled(),
            requested_ms: ms(self.run.requested_at),
            ended_ms: ended.map(ms),
            doc: text(serde_json::to_string(self))?,
            view: text(serde_json::to_string(view))?,
            attempts: self
                .run
                .tries
                .iter()
                .map(|attempt| AttemptRow {
                    number: attempt.number,
                    site: attempt.at.site.to_string(),
                    fenced: attempt.fenced,
                    job: self.jobs.iter().find(|(n, _)| *n == attempt.number).map(|(_, job)| job.clone()),
                })
                .collect(),
        })
    }

    pub(super) fn read(row: &RunRow) -> Result<Self, StoreError> {
        serde_json::from_str(&row.doc).map_err(|error| unfit("read", &error))
    }
}

/// The sites that fit, best first: the run's plan.
pub(super) fn plan(verdicts: &[Verdict]) -> Vec<Choice> {
    let fits = verdicts.iter().filter(|verdict| verdict.fits);
    let choice = |verdict: &Verdict| Choice {
        site: verdict.site.clone(),
        title: verdict.title.clone(),
        granted: verdict.granted.clone(),
    };
    fits.map(choice).collect()
}

pub(super) fn read_view(json: &str) -> Result<RunView, StoreError> {
    serde_json::from_str(json).map_err(|error| unfit("read", &error))
}

fn unfit(step: &'static str, error: &serde_json::Error) -> StoreError {
    StoreError::Database { step, why: format!("a run's record does not fit: {error}") }
}

fn ms(at: Moment) -> i64 {
    i64::try_from(at.0).unwrap_or(i64::MAX)
}
