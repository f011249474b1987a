//! What a driver does in the world: one future per act, each with a deadline, each saying what it came to.

use std::sync::Arc;
use std::time::Duration;

use glidepath_api_types::agent::{LaunchOrder, Limits, ListenOn};
use glidepath_domain::backend::{Backend, BackendError, CancelHow, JobId, JobLabel, JobSpec};
use glidepath_domain::names::RunId;
use glidepath_domain::request::SpawnRequest;
use glidepath_domain::run::{Deadlines, Event, Moment};
use glidepath_svc_kit::crash;

use super::Shared;
use super::launch::{SealedOrder, dial_file};
use crate::arrivals::upstream::{self, Probe, Upstream};
use crate::clock;
use crate::sites::SiteSetup;
use crate::store::{Store, StoreError};

/// One submit, its wait for its turn not counted.
const SUBMIT_WITHIN: Duration = Duration::from_secs(60);
/// One cancel, one forget.
const REMOVE_WITHIN: Duration = Duration::from_secs(30);
/// Before the launch order is read again while the database is away.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// Between two probes of a server that is not well yet.
const PROBE_AGAIN: Duration = Duration::from_millis(300);

/// What an act came to.
pub(super) enum Came {
    /// A submit returned.
    Submitted { number: u32, job: Option<JobId>, event: Event },
    /// The server was asked whether it answers.
    Probed(Event),
    /// The launch order was read.
    Order { number: u32, order: Result<Box<LaunchOrder>, StoreError> },
    /// Something was done.
    Done(Event),
    /// It was not, for this reason, and will be asked for again.
    NotRemoved { number: u32, why: String },
}

/// Hands one attempt to its batch system.
pub(super) struct Submit {
    pub(super) shared: Arc<Shared>,
    pub(super) setup: SiteSetup,
    pub(super) label: JobLabel,
    pub(super) request: SpawnRequest,
    pub(super) walltime_s: u64,
    pub(super) requested_at: Moment,
}

impl Submit {
    pub(super) async fn run(self) -> Came {
        let number = self.label.attempt.number;
        let (job, event) = match self.spec() {
            Err(why) => (None, Event::SubmitRefused(number, why)),
            Ok(spec) => {
                let turn = self.shared.turn(&self.setup.site.name).await;
                crash::point("submit.before");
                let answer = tokio::time::timeout(SUBMIT_WITHIN, self.setup.backend.submit(&spec)).await;
                crash::point("submit.after");
                drop(turn);
                match answer {
                    Ok(Ok(job)) => (Some(job), Event::SubmitDone(number)),
                    Ok(Err(BackendError::Refused(why))) => (None, Event::SubmitRefused(number, why)),
                    Ok(Err(BackendError::Unknown(why))) => (None, Event::SubmitUnknown(number, why)),
                    Err(_) => (None, Event::SubmitUnknown(number, "no answer in time".to_owned())),
                }
            }
        };
        Came::Submitted { number, job, event }
    }

    fn spec(&self) -> Result<JobSpec, String> {
        let settings = &self.shared.settings;
        let deadlines = &settings.deadlines;
        // As long as its job may be there at all: each deadline before is kept by fencing the attempt, and one that a
        // restart of the service has put off must not find its ticket past.
        let at_most = deadlines.queued + deadlines.dialling + deadlines.doubt;
        let until = self.requested_at.after(at_most + Duration::from_secs(self.walltime_s));
        let ticket = self.shared.arrivals.issue(self.label.attempt, clock::now(), until);
        let ticket = ticket.map_err(|error| format!("no ticket can be signed: {error}"))?;
        let absence_limit_s = self.setup.absence_limit_s.unwrap_or(self.walltime_s);
        let attempt = self.label.attempt;
        let dial_file =
            dial_file(attempt, ticket, &settings.home_url, &settings.trust, absence_limit_s, deadlines)
                .map_err(|error| format!("no dial file can be written: {error}"))?;
        Ok(JobSpec {
            label: self.label.clone(),
            resources: self.request.resources.clone(),
            dial_file,
            grace_s: u32::try_from(deadlines.grace.as_secs()).unwrap_or(u32::MAX).max(1),
        })
    }
}

pub(super) async fn cancel(backend: Arc<dyn Backend>, label: JobLabel, how: CancelHow) -> Came {
    crash::point("cancel.before");
    let cancelled = tokio::time::timeout(REMOVE_WITHIN, backend.cancel(&label, how)).await;
    crash::point("cancel.after");
    match cancelled {
        Ok(Ok(())) => Came::Done(Event::CancelDone(label.attempt.number)),
        Ok(Err(error)) => not_removed(&label, &error.to_string()),
        Err(_) => not_removed(&label, "no answer in time"),
    }
}

pub(super) async fn forget(backend: Arc<dyn Backend>, label: JobLabel) -> Came {
    crash::point("forget.before");
    let forgotten = tokio::time::timeout(REMOVE_WITHIN, backend.forget(&label)).await;
    crash::point("forget.after");
    match forgotten {
        Ok(Ok(())) => Came::Done(Event::ForgetDone(label.attempt.number)),
        Ok(Err(error)) => not_removed(&label, &error.to_string()),
        Err(_) => not_removed(&label, "no answer in time"),
    }
}

fn not_removed(label: &JobLabel, why: &str) -> Came {
    Came::NotRemoved { number: label.attempt.number, why: why.to_owned() }
}

pub(super) async fn order(
    store: Store,
    run: RunId,
    number: u32,
    listen_on: ListenOn,
    walltime_s: u64,
    limits: Limits,
    deadlines: Deadlines,
) -> Came {
    let order = loop {
        match read_order(&store, run).await {
            Err(StoreError::Away(_)) => tokio::time::sleep(READ_AGAIN).await, // the attempt's deadline bounds it
            read => break read,
        }
    };
    Came::Order {
        number,
        order: order.map(|order| Box::new(order.launch(listen_on, walltime_s, limits, &deadlines))),
    }
}

/// The launch order of a run, opened.
async fn read_order(store: &Store, run: RunId) -> Result<SealedOrder, StoreError> {
    kept_order(store, run).await?.ok_or_else(|| StoreError::Sealed("it is not kept".to_owned()))
}

/// The launch order of a run, opened; `None` once it is erased.
pub(super) async fn kept_order(store: &Store, run: RunId) -> Result<Option<SealedOrder>, StoreError> {
    let Some(text) = store.order(run).await? else { return Ok(None) };
    let read = SealedOrder::read(&text).map_err(|_| StoreError::Sealed("it does not read".to_owned()))?;
    Ok(Some(read))
}

pub(super) async fn probe(upstream: Arc<Upstream>, prefix: String, number: u32) -> Came {
    let event = match upstream::probe(&upstream, &prefix).await {
        Probe::Answers(status) => Event::Answered(number, status),
        Probe::Silent(why) => Event::Silent(number, why),
    };
    if !matches!(event, Event::Answered(_, status) if status < 500) {
        tokio::time::sleep(PROBE_AGAIN).await;
    }
    Came::Probed(event)
}
