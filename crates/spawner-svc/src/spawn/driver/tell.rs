//! What a driver tells the operator: each state, and all that is notable. Decides nothing.

use glidepath_domain::names::SiteName;
use glidepath_domain::run::{EndReason, Event, Life, Run, State, Submit};

use super::{AgentSelf, Driver};
use crate::clock;
use crate::notable::{About, Doubt, Doubting, Notes, Refusal, Retry};
use crate::spawn::diary::{AgentSeen, Happened};
use crate::spawn::view::RunView;

/// How a run stood before a step.
pub(super) struct Before {
    state: State,
    tries: usize,
}

impl Before {
    pub(super) fn of(run: &Run) -> Self {
        Self { state: run.state, tries: run.tries.len() }
    }
}

/// What nobody can tell of a run at present.
#[derive(Default)]
pub(super) struct Doubts {
    /// Whether it lives.
    life: Option<Doubting>,
    /// What its agent does.
    agent: Option<Doubting>,
}

impl Driver {
    /// Tells what a step changed. True when another attempt was begun.
    pub(super) fn tell_step(&mut self, before: &Before) -> bool {
        let run = &self.record.run;
        let further = before.tries != run.tries.len();
        if let Some(former) = before.tries.checked_sub(1).and_then(|n| run.tries.get(n)).filter(|_| further) {
            let what = match (former.submit, before.state) {
                (Submit::Refused | Submit::NoPlace, _) => Retry::NextRefused,
                (_, State::Submitting) => Retry::NextSilent,
                (_, State::Starting) => Retry::NextNotStarted,
                (_, State::Dialling) if former.job == glidepath_domain::run::Job::Running => {
                    Retry::NextNotHome
                }
                (_, _) => Retry::NextLost,
            };
            let why = former.trouble.as_deref().unwrap_or_default();
            let about = self.about().attempt(self.record.attempt(former.number));
            self.shared.notes.retries(what, &about.site(&former.at.site).why(why));
        }
        if before.state != run.state {
            self.tell_state();
            let (since, state) = (run.since, run.state);
            self.record.happened(since, Happened::Reached(state));
        }
        further
    }

    fn tell_state(&self) {
        let run = &self.record.run;
        let site = run.current().map(|attempt| attempt.at.site.as_str());
        let key = self.record.key();
        let attempt = run.tries.len();
        let Some(end) = &run.end else {
            let state = format!("{:?}", run.state).to_lowercase();
            tracing::info!(run = %run.id, server.key = %key, attempt, site, "the run is {state}");
            return;
        };
        let (reason, why, exit_code, signal) =
            (end.reason.as_str(), end.message.as_str(), end.exit_code, end.signal);
        if is_for_the_operator(end.reason) {
            tracing::warn!(run = %run.id, server.key = %key, attempt, site, reason, why, exit_code, signal, "the run is ended");
        } else {
            tracing::info!(run = %run.id, server.key = %key, attempt, site, reason, why, exit_code, signal, "the run is ended");
        }
    }

    /// Tells what came of a submit, unless all went well.
    pub(super) fn tell_submit(&self, number: u32, event: &Event) {
        let site = self.record.run.attempt(number).map(|attempt| attempt.at.site.clone());
        let about = self.about().attempt(self.record.attempt(number));
        let about = About { site: site.as_ref(), ..about };
        let notes = &self.shared.notes;
        match event {
            Event::SubmitRefused(_, why) => notes.refused(Refusal::SubmitRefused, &about.why(why)),
            Event::NoPlace(_, why) => notes.refused(Refusal::SubmitNoPlace, &about.why(why)),
            Event::SubmitUnknown(_, why) => notes.retries(Retry::SubmitAgain, &about.why(why)),
            _ => {}
        }
    }

    /// Tells of each doubt when it begins and when it is over. One that ends with the run has the run's end for it.
    pub(super) fn tell_doubts(&mut self, view: &RunView) {
        if view.state == State::Ended {
            self.doubts = Doubts::default();
            return;
        }
        let unknown = view.life == Life::Unknown;
        let unheard = matches!(view.state, State::Starting | State::Ready)
            && self.record.run.current().is_some_and(|attempt| attempt.linked && !attempt.is_up());
        let mut doubts = std::mem::take(&mut self.doubts);
        let stood = (doubts.life.is_some(), doubts.agent.is_some());
        let about = self.about();
        let about = About { attempt: view.attempt, site: view.site.as_ref(), ..about };
        let about = about.why(&view.message);
        let notes = &self.shared.notes;
        turn(notes, Doubt::RunUnknown, unknown, &mut doubts.life, &about);
        turn(notes, Doubt::AgentUnheard, unheard, &mut doubts.agent, &about);
        let stand = (doubts.life.is_some(), doubts.agent.is_some());
        self.doubts = doubts;
        let now = clock::now();
        for (before, after, began, over) in [
            (stood.0, stand.0, Happened::Unknown, Happened::Known),
            (stood.1, stand.1, Happened::AgentUnheard, Happened::AgentBack),
        ] {
            if before != after {
                self.record.happened(now, if after { began } else { over });
            }
        }
    }

    /// Remembers who the agent is and that it was heard.
    pub(super) fn heard_of(&mut self, attempt: u32, agent: AgentSelf) {
        let now = clock::now();
        let AgentSelf { host, version } = agent;
        let known = self.record.agent.take().filter(|seen| seen.attempt == attempt);
        let first = known.map_or(now, |seen| seen.first);
        self.record.agent = Some(AgentSeen { attempt, host, version, first, last: now });
    }

    /// Whom it is about.
    pub(super) fn about(&self) -> About<'_> {
        About::new().key(self.record.key()).run(self.record.run.id)
    }

    /// The site of an attempt.
    pub(super) fn site_of(&self, number: u32) -> Option<&SiteName> {
        self.record.run.attempt(number).map(|attempt| &attempt.at.site)
    }
}

fn turn(notes: &Notes, what: Doubt, stands: bool, doubt: &mut Option<Doubting>, about: &About<'_>) {
    match (stands, doubt.take()) {
        (true, None) => *doubt = Some(notes.doubts(what, about)),
        (true, still) => *doubt = still,
        (false, Some(over)) => over.over(about),
        (false, None) => {}
    }
}

/// Whether an end tells of a site or of the way home, and not of a user or their program.
fn is_for_the_operator(reason: EndReason) -> bool {
    match reason {
        EndReason::NoSite
        | EndReason::QueueDeadline
        | EndReason::DialDeadline
        | EndReason::StartDeadline
        | EndReason::AgentLost
        | EndReason::Refused
        | EndReason::HomeAbsent => true,
        EndReason::Stopped
        | EndReason::Cancelled
        | EndReason::Exited
        | EndReason::Killed
        | EndReason::Walltime
        | EndReason::Idle
        | EndReason::Unattended => false,
    }
}
