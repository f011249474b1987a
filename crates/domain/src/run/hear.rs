//! Notes what was heard. Decides nothing.

use super::{Answer, Event, Job, LinkNow, Moment, Phase, Run, Stop, Submit, Try};
use crate::backend::JobState;
use crate::run::{EndReason, State};

impl Run {
    /// Takes down one event. Of an attempt that is not the current one, only what its clean-up needs.
    pub(super) fn hear(&mut self, event: Event, now: Moment) {
        match event {
            Event::SubmitDone(n) => self.submit_returned(n, Submit::Done, None, now),
            Event::SubmitRefused(n, why) => self.submit_returned(n, Submit::Refused, Some(why), now),
            Event::NoPlace(n, why) => self.submit_returned(n, Submit::NoPlace, Some(why), now),
            Event::SubmitUnknown(n, why) => self.submit_returned(n, Submit::Unsure, Some(why), now),
            Event::JobSeen(n, state) => {
                if let Some(attempt) = self.any(n) {
                    attempt.silent_since = None;
                    attempt.job_seen(state, now);
                }
            }
            Event::JobAbsent(n, asked) => {
                if let Some(attempt) = self.any(n) {
                    attempt.silent_since = None;
                    attempt.job_absent(asked, now);
                }
            }
            Event::SiteSilent(n) => {
                if let Some(attempt) = self.any(n) {
                    attempt.silent_since.get_or_insert(now);
                }
            }
            Event::CancelDone(n) => {
                if let Some(attempt) = self.any(n) {
                    attempt.cancelled = true;
                }
            }
            Event::ForgetDone(n) => {
                if let Some(attempt) = self.any(n) {
                    attempt.cleaned = attempt.fenced;
                }
            }
            Event::Linked(n) => {
                if let Some(attempt) = self.any(n) {
                    attempt.is_there(now); // whatever the submit said: here is its agent
                    attempt.linked |= !attempt.fenced;
                    attempt.now.link = LinkNow::Up; // a fenced one too: it came too late, and its link is to be closed
                    (attempt.now.launch_sent, attempt.now.stop_sent) = (false, false);
                    attempt.now.close_sent = false;
                }
            }
            Event::LinkBack(n) => {
                if let Some(attempt) = self.valid(n).filter(|attempt| attempt.linked) {
                    attempt.now.link = LinkNow::Up;
                }
            }
            Event::LinkCut(n) | Event::LinkClosed(n) => {
                if let Some(attempt) = self.valid(n).filter(|attempt| attempt.now.link == LinkNow::Up) {
                    attempt.now.link = LinkNow::Down(now);
                }
            }
            Event::Report(n, phase, lines) => {
                if let Some(attempt) = self.valid(n).filter(|attempt| attempt.linked) {
                    attempt.reported(phase, lines);
                }
            }
            Event::Answered(n, status) => {
                if let Some(attempt) = self.valid(n) {
                    attempt.now.answer = Some(Answer::Status(status));
                }
            }
            Event::Silent(n, why) => {
                if let Some(attempt) = self.valid(n) {
                    attempt.now.answer = Some(Answer::Silent(why));
                }
            }
            Event::StopAsked { why, now: at_once } => self.stop_asked(why, at_once, now),
            Event::Tick => {}
        }
    }

    /// The attempt with this number, whatever became of it.
    fn any(&mut self, number: u32) -> Option<&mut Try> {
        self.tries.iter_mut().find(|attempt| attempt.number == number)
    }

    /// The current attempt, if this is its number and it may speak for the run.
    fn valid(&mut self, number: u32) -> Option<&mut Try> {
        self.tries.last_mut().filter(|attempt| attempt.number == number && !attempt.fenced)
    }

    fn submit_returned(&mut self, number: u32, came_to: Submit, why: Option<String>, now: Moment) {
        let Some(attempt) = self.any(number) else { return };
        attempt.now.submitting = false;
        attempt.heard_of = Some(now);
        // What is known to be there stays there: a repeated submit that went wrong says nothing about the first.
        if attempt.submit != Submit::Done {
            attempt.submit = came_to;
        }
        if !attempt.fenced {
            attempt.trouble = why;
        }
    }

    fn stop_asked(&mut self, why: String, at_once: bool, now: Moment) {
        if self.state == State::Ended {
            return;
        }
        match &mut self.stop {
            Some(stop) => stop.now |= at_once,
            None => {
                let reason = if self.ready_at.is_some() { EndReason::Stopped } else { EndReason::Cancelled };
                self.stop = Some(Stop { reason, why, now: at_once, at: now });
            }
        }
    }
}

impl Try {
    /// There is a job, for sure, whatever its submit came to.
    fn is_there(&mut self, now: Moment) {
        (self.submit, self.heard_of) = (Submit::Done, Some(now));
        if self.cleaned {
            self.cleaned = false; // it was thought to be gone: clean up again
            self.now.forget_asked = None;
        }
    }

    fn job_seen(&mut self, state: JobState, now: Moment) {
        self.is_there(now);
        self.job = match (state, &self.job) {
            (JobState::Queued { position, predicted_wait_s }, _) => {
                Job::Queued { position, predicted_wait_s }
            }
            (JobState::Running { .. }, _) => Job::Running,
            (JobState::Stuck(words), _) => Job::Stuck(words),
            (JobState::Ended(end), Job::Gone { at, .. }) => Job::Gone { end: Some(end), at: *at },
            (JobState::Ended(end), _) => Job::Gone { end: Some(end), at: now },
        };
    }

    fn job_absent(&mut self, asked: Moment, now: Moment) {
        let can_tell = !self.now.submitting && self.heard_of.is_some_and(|heard| asked > heard);
        let known = matches!(self.submit, Submit::Done) || self.fenced || self.cancelled;
        if can_tell && known && !matches!(self.job, Job::Gone { .. }) {
            self.job = Job::Gone { end: None, at: now };
        }
    }

    fn reported(&mut self, phase: Phase, lines: Vec<String>) {
        // An agent's last word stands, whatever is repeated after it.
        if !matches!(self.now.phase, Some(Phase::Ended(_))) {
            self.now.phase = Some(phase);
        }
        self.now.lines = lines;
    }
}
