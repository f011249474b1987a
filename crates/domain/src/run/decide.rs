//! Decides from what is known. Hears nothing.

use std::time::Duration;

use super::{
    Answer, Asked, Deadlines, Effect, End, EndCause, EndReason, HURRY, Job, LinkNow, Moment, Phase, Run,
    ServerEnd, State, Stop, Submit, Try, words,
};
use crate::backend::{CancelHow, JobEnd};

/// How long an agent's last report may still be on its way when its job is seen to be over.
const SETTLE: Duration = Duration::from_secs(1);

/// The longest wait between two asks of the same thing.
const ASK_AT_LEAST_EVERY: Duration = Duration::from_secs(60);

/// Exit codes of an agent, as its job's end shows them.
const AGENT_SERVER_ENDED: i32 = 0;
const AGENT_TICKET_REFUSED: i32 = 77;
const AGENT_CANNOT_START: i32 = 78;
const AGENT_NEVER_HOME: i32 = 79;
const AGENT_HOME_ABSENT: i32 = 80;
const AGENT_WALLTIME: i32 = 81;
const AGENT_IDLE: i32 = 82;
const AGENT_UNATTENDED: i32 = 83;

/// What a state's rule came to.
enum Next {
    /// Nothing changes.
    Stay,
    /// Another state is reached.
    Go(State),
    /// The site failed: the next one is tried, or the run ends so.
    Fail(End),
    /// The run is over.
    Finish(End),
}

impl Run {
    /// Moves on as far as what is known allows, and tells what is to be done.
    pub(super) fn decide(&mut self, now: Moment, deadlines: &Deadlines) -> Vec<Effect> {
        let mut out = Vec::new();
        loop {
            match self.next(now, deadlines, &mut out) {
                Next::Stay => break,
                Next::Go(state) => self.reach(state, now, &mut out),
                Next::Fail(end) => self.fail(end, now, &mut out),
                Next::Finish(end) => self.finish(end, now, &mut out),
            }
        }
        for attempt in self.tries.iter_mut().filter(|attempt| attempt.fenced && !attempt.cleaned) {
            attempt.clean_up(now, deadlines, &mut out);
        }
        out
    }

    /// The one rule per state.
    fn next(&mut self, now: Moment, deadlines: &Deadlines, out: &mut Vec<Effect>) -> Next {
        if self.stop.is_some() && !matches!(self.state, State::Stopping | State::Ended) {
            return Next::Go(State::Stopping);
        }
        match self.state {
            State::Requested if self.plan.is_empty() => {
                Next::Finish(plain_end(EndReason::NoSite, "no site can take this request".to_owned(), now))
            }
            State::Requested => Next::Go(State::Placed),
            State::Placed => Next::Go(State::Submitting),
            State::Submitting => self.submitting(now, deadlines, out),
            State::Queued => self.queued(now, deadlines),
            State::Dialling => self.dialling(now, deadlines),
            State::Starting => self.starting(now, deadlines, out),
            State::Ready => self.ready(now, deadlines, out),
            State::Stopping => self.stopping(now, deadlines, out),
            State::Ended => Next::Stay,
        }
    }

    fn submitting(&mut self, now: Moment, deadlines: &Deadlines, out: &mut Vec<Effect>) -> Next {
        let queue_end = self.clock_of_asking().after(deadlines.queued);
        let elsewhere = self.tries.len() < self.plan.len();
        let Some(attempt) = self.tries.last_mut() else { return Next::Go(State::Placed) };
        if attempt.linked {
            return Next::Go(State::Starting);
        }
        match attempt.submit {
            Submit::Done => return Next::Go(State::Queued),
            Submit::Refused => {
                let why = attempt.trouble.clone().unwrap_or_default();
                let sentence = words::join(&format!("{} refused the request", attempt.at.title), &why);
                return Next::Fail(plain_end(EndReason::Refused, sentence, now));
            }
            Submit::NoPlace => {
                let why = attempt.trouble.clone().unwrap_or_default();
                return Next::Fail(plain_end(
                    EndReason::Refused,
                    format!("{}: {why}", attempt.at.title),
                    now,
                ));
            }
            Submit::Asked | Submit::Unsure => {}
        }
        if elsewhere && now >= attempt.begun.after(deadlines.doubt) {
            let sentence = format!("{} did not answer", attempt.at.title);
            return Next::Fail(plain_end(EndReason::QueueDeadline, sentence, now));
        }
        if now >= queue_end {
            return Next::Finish(self.queue_end(now, deadlines));
        }
        if !attempt.now.submitting && attempt.now.submit_again.is_none_or(|at| now >= at) {
            attempt.now.submitting = true;
            attempt.now.submit_again = Some(now.after(repeat(deadlines)));
            out.push(Effect::Submit(attempt.number));
        }
        Next::Stay
    }

    fn queued(&self, now: Moment, deadlines: &Deadlines) -> Next {
        let Some(attempt) = self.current() else { return Next::Go(State::Placed) };
        if attempt.linked {
            return Next::Go(State::Starting);
        }
        match &attempt.job {
            Job::Gone { end, .. } => return Next::Fail(attempt.lost_before_home(end.as_ref(), now)),
            Job::Running => return Next::Go(State::Dialling),
            Job::NotSeen | Job::Queued { .. } | Job::Stuck(_) => {}
        }
        if now >= self.clock_of_asking().after(deadlines.queued) {
            return Next::Finish(self.queue_end(now, deadlines));
        }
        Next::Stay
    }

    fn dialling(&self, now: Moment, deadlines: &Deadlines) -> Next {
        let Some(attempt) = self.current() else { return Next::Go(State::Placed) };
        if attempt.linked {
            return Next::Go(State::Starting);
        }
        match &attempt.job {
            Job::Gone { end, .. } => return Next::Fail(attempt.lost_before_home(end.as_ref(), now)),
            Job::Queued { .. } | Job::Stuck(_) => return Next::Go(State::Queued), // it lost its slot again
            Job::NotSeen | Job::Running => {}
        }
        if now >= self.clock.after(deadlines.dialling) {
            let sentence = words::dial_deadline(&attempt.at.title, deadlines);
            return Next::Fail(plain_end(EndReason::DialDeadline, sentence, now));
        }
        Next::Stay
    }

    fn starting(&mut self, now: Moment, deadlines: &Deadlines, out: &mut Vec<Effect>) -> Next {
        let (clock, walltime_s) = (self.clock, self.walltime_s);
        let Some(attempt) = self.tries.last_mut() else { return Next::Go(State::Placed) };
        if let Some(Phase::Ended(end)) = &attempt.now.phase {
            let ended = attempt.server_ended(end, None, walltime_s, now);
            // A command that is not there at all is the site's failure; one that ran and ended is its user's matter.
            let sites_fault = end.cause == EndCause::CannotStart;
            return if sites_fault { Next::Fail(ended) } else { Next::Finish(ended) };
        }
        if let Some(end) = attempt.is_lost(now, deadlines) {
            return Next::Fail(attempt.lost(end.as_ref(), walltime_s, now));
        }
        if matches!(attempt.now.answer, Some(Answer::Status(status)) if status < 500) {
            out.push(Effect::SiteDidWell(attempt.number));
            return Next::Go(State::Ready);
        }
        if now >= clock.after(deadlines.starting) {
            let last = match &attempt.now.answer {
                Some(Answer::Status(status)) => format!("it answers with status {status}"),
                Some(Answer::Silent(why)) => words::join("it does not answer", why),
                None if attempt.now.phase == Some(Phase::Listening) => "it does not answer".to_owned(),
                None => "it does not listen".to_owned(),
            };
            let mut end = plain_end(EndReason::StartDeadline, words::start_deadline(deadlines, &last), now);
            end.last_lines.clone_from(&attempt.now.lines);
            return Next::Finish(end);
        }
        // An order may be lost with its link: the server lives from the last one that can have started it.
        let runs = !matches!(attempt.now.phase, None | Some(Phase::Waiting));
        if attempt.send_launch(out) && !runs {
            self.launched_at = Some(now);
        }
        Next::Stay
    }

    fn ready(&mut self, now: Moment, deadlines: &Deadlines, out: &mut Vec<Effect>) -> Next {
        let (lived_out, walltime_s) = (self.walltime_end(deadlines), self.walltime_s);
        let Some(attempt) = self.tries.last_mut() else { return Next::Go(State::Placed) };
        if let Some(Phase::Ended(end)) = &attempt.now.phase {
            return Next::Finish(attempt.server_ended(end, None, walltime_s, now));
        }
        if let Some(end) = attempt.is_lost(now, deadlines) {
            return Next::Finish(attempt.lost(end.as_ref(), walltime_s, now));
        }
        if now >= lived_out {
            let why = words::walltime(walltime_s);
            self.stop = Some(Stop { reason: EndReason::Walltime, why, now: false, at: now });
            return Next::Go(State::Stopping);
        }
        attempt.send_launch(out); // an agent that has started its server ignores it
        Next::Stay
    }

    fn stopping(&mut self, now: Moment, deadlines: &Deadlines, out: &mut Vec<Effect>) -> Next {
        let Some(stop) = self.stop.clone() else { return Next::Stay };
        let (clock, walltime_s) = (self.clock, self.walltime_s);
        let Some(attempt) = self.tries.last_mut() else {
            return Next::Finish(plain_end(stop.reason, words::stopped(&stop), now));
        };
        let given_up = clock.after(deadlines.grace * 3 + deadlines.doubt);
        let submit_waits = attempt.now.submitting && attempt.submit != Submit::Done;
        if attempt.fenced || (attempt.submit.made_nothing() && !submit_waits) {
            return Next::Finish(attempt.stopped(&stop, walltime_s, now));
        }
        if matches!(attempt.job, Job::Gone { .. }) || now >= given_up {
            return Next::Finish(attempt.stopped(&stop, walltime_s, now));
        }
        if submit_waits {
            return Next::Stay;
        }
        let server_over = matches!(attempt.now.phase, Some(Phase::Ended(_)));
        let kindly_until = clock.after(deadlines.grace + SETTLE);
        let by_agent = attempt.linked && !stop.now && !server_over && now < kindly_until;
        if by_agent {
            if attempt.is_up() && !attempt.now.stop_sent {
                attempt.now.stop_sent = true;
                out.push(Effect::SendStop(attempt.number, stop.why));
            }
        } else {
            let unkind = stop.now || now >= clock.after(deadlines.grace * 2 + SETTLE);
            attempt.cancel(if unkind { CancelHow::Now } else { CancelHow::Kindly }, now, deadlines, out);
        }
        Next::Stay
    }

    /// Enters a state, and does what belongs to entering it.
    fn reach(&mut self, state: State, now: Moment, out: &mut Vec<Effect>) {
        (self.state, self.since, self.clock) = (state, now, now);
        match state {
            State::Submitting => match self.plan.get(self.tries.len()) {
                Some(choice) => {
                    let number = u32::try_from(self.tries.len()).unwrap_or(u32::MAX).saturating_add(1);
                    self.tries.push(Try::begin(number, choice.clone(), now));
                }
                None => {
                    let sentence = "no site is left to try".to_owned();
                    self.finish(plain_end(EndReason::NoSite, sentence, now), now, out);
                }
            },
            State::Ready => {
                self.ready_at.get_or_insert(now);
            }
            State::Requested
            | State::Placed
            | State::Queued
            | State::Dialling
            | State::Starting
            | State::Stopping
            | State::Ended => {}
        }
    }

    /// The site failed, or was full: fences the attempt, then the next site or the end.
    fn fail(&mut self, mut end: End, now: Moment, out: &mut Vec<Effect>) {
        if let Some(attempt) = self.tries.last_mut() {
            attempt.fenced = true;
            attempt.trouble = Some(end.message.clone());
            let personal = matches!(end.reason, EndReason::Refused | EndReason::Exited);
            if attempt.submit != Submit::NoPlace {
                out.push(Effect::SiteFailed { number: attempt.number, why: end.message.clone(), personal });
            }
        }
        if self.tries.len() < self.plan.len() {
            return self.reach(State::Placed, now, out);
        }
        end.message = self.with_history(end.message);
        self.finish(end, now, out);
    }

    /// How a run ends that waited too long for a slot.
    fn queue_end(&self, now: Moment, deadlines: &Deadlines) -> End {
        let sentence = self.with_history(words::queue_deadline(deadlines));
        plain_end(EndReason::QueueDeadline, sentence, now)
    }

    /// A sentence, and why the attempts before the current one failed.
    fn with_history(&self, sentence: String) -> String {
        let before = self.tries.iter().rev().skip(1).rev();
        let before: Vec<&str> = before.filter_map(|attempt| attempt.trouble.as_deref()).collect();
        if before.is_empty() { sentence } else { format!("{sentence} (before that: {})", before.join("; ")) }
    }

    /// The run is over: no attempt may attach any more, and each is cleaned up.
    fn finish(&mut self, end: End, now: Moment, out: &mut Vec<Effect>) {
        (self.state, self.since, self.clock) = (State::Ended, now, now);
        self.end = Some(End { message: words::plain(&end.message), ..end });
        for attempt in &mut self.tries {
            attempt.fenced = true;
        }
        out.push(Effect::EraseOrder);
    }

    /// From when the queue's deadline counts.
    fn clock_of_asking(&self) -> Moment {
        self.requested_at
    }

    /// When the service itself ends a server that its agent should have ended before.
    fn walltime_end(&self, deadlines: &Deadlines) -> Moment {
        let from = self.launched_at.or(self.ready_at).unwrap_or(self.since);
        from.after(Duration::from_secs(self.walltime_s)).after(deadlines.grace)
    }

    /// When to say [`super::Event::Tick`] next, if nothing is heard before.
    #[must_use]
    pub fn due(&self, now: Moment, deadlines: &Deadlines) -> Option<Moment> {
        let mut times = Vec::new();
        match self.state {
            State::Requested | State::Placed => times.push(now),
            State::Submitting | State::Queued => {
                times.push(self.clock_of_asking().after(deadlines.queued));
                if let Some(attempt) = self.current() {
                    times.push(attempt.begun.after(deadlines.doubt));
                    times.extend(attempt.now.submit_again);
                }
            }
            State::Dialling => times.push(self.clock.after(deadlines.dialling)),
            State::Starting => times.push(self.clock.after(deadlines.starting)),
            State::Ready => times.push(self.walltime_end(deadlines)),
            State::Stopping => {
                times.extend([1, 2].map(|n| self.clock.after(deadlines.grace * n + SETTLE)));
                times.push(self.clock.after(deadlines.grace * 3 + deadlines.doubt));
            }
            State::Ended => {}
        }
        for attempt in self.tries.iter().filter(|attempt| !attempt.cleaned) {
            times.extend(attempt.silent_since.map(|since| since.after(words::quiet(deadlines))));
            times.extend(attempt.now.cancel_asked.map(|(asked, _)| asked.again(deadlines)));
            times.extend(attempt.now.forget_asked.map(|asked| asked.again(deadlines)));
            if let LinkNow::Down(since) = attempt.now.link {
                times.extend([HURRY, SETTLE, deadlines.doubt].map(|wait| since.after(wait)));
            }
            times.extend([deadlines.grace, HURRY].map(|wait| self.since.after(wait)));
            if let Job::Gone { at, .. } = attempt.job {
                times.push(at.after(SETTLE));
            }
        }
        times.into_iter().filter(|at| *at > now).min()
    }
}

impl Try {
    /// Sends the launch order once per link. True when it goes out.
    fn send_launch(&mut self, out: &mut Vec<Effect>) -> bool {
        let sends = self.is_up() && !self.now.launch_sent;
        if sends {
            self.now.launch_sent = true;
            out.push(Effect::SendLaunch(self.number));
        }
        sends
    }

    /// Asks for the job's end: when it was not asked so before, or was long ago.
    fn cancel(&mut self, how: CancelHow, now: Moment, deadlines: &Deadlines, out: &mut Vec<Effect>) {
        let asked = match self.now.cancel_asked {
            Some((asked, before)) if before == how => match asked.once_more(now, deadlines) {
                Some(asked) => asked,
                None => return,
            },
            Some(_) | None => Asked { at: now, times: 1 },
        };
        self.now.cancel_asked = Some((asked, how));
        out.push(Effect::Cancel(self.number, how));
    }

    /// Sees to it that nothing is left of a fenced attempt: link, job, what the batch system keeps.
    fn clean_up(&mut self, now: Moment, deadlines: &Deadlines, out: &mut Vec<Effect>) {
        if self.now.link != LinkNow::None && !self.now.close_sent {
            self.now.close_sent = true;
            out.push(Effect::CloseLink(self.number, "this attempt is over".to_owned()));
        }
        if self.now.submitting {
            return; // its answer decides whether there is a job
        }
        // Begun and fenced in one decision, it was not asked for at all: no list would ever be late enough to tell.
        let never_asked = self.submit == Submit::Asked && self.heard_of.is_none();
        if self.submit.made_nothing() || never_asked {
            self.cleaned = true;
            return;
        }
        let gone = matches!(self.job, Job::Gone { .. });
        if !(gone && self.cancelled) {
            // Also when the job is gone: a killed agent leaves its server behind.
            let late = self.now.cancel_asked.is_some_and(|(asked, _)| now >= asked.at.after(deadlines.grace));
            let unkind = late || matches!(self.now.cancel_asked, Some((_, CancelHow::Now)));
            self.cancel(if unkind { CancelHow::Now } else { CancelHow::Kindly }, now, deadlines, out);
            return;
        }
        let asked = match self.now.forget_asked {
            None => Some(Asked { at: now, times: 1 }),
            Some(asked) => asked.once_more(now, deadlines),
        };
        if let Some(asked) = asked {
            self.now.forget_asked = Some(asked);
            out.push(Effect::Forget(self.number));
        }
    }

    /// Its job is over and its agent with it: how, if the system told. An agent that is heard is believed rather than
    /// its batch system. When it falls silent after it has contradicted the list so, it has the window of doubt to come
    /// back; otherwise its last report may still be on its way for a moment.
    fn is_lost(&self, now: Moment, deadlines: &Deadlines) -> Option<Option<JobEnd>> {
        let Job::Gone { end, at } = &self.job else { return None };
        let silent_since = match self.now.link {
            LinkNow::Up => return None,
            LinkNow::Down(since) => since,
            LinkNow::None => *at,
        };
        let contradicted = silent_since > at.after(SETTLE);
        let patience = if contradicted { deadlines.doubt } else { SETTLE };
        (now >= silent_since.max(*at).after(patience)).then(|| end.clone())
    }

    /// How a run ends whose job went before its agent was home.
    fn lost_before_home(&self, end: Option<&JobEnd>, now: Moment) -> End {
        let title = &self.at.title;
        let (reason, sentence) = match end.and_then(|end| end.exit_code) {
            Some(AGENT_TICKET_REFUSED) => {
                (EndReason::Refused, format!("the ticket of the job at {title} was refused"))
            }
            Some(AGENT_NEVER_HOME) => {
                (EndReason::DialDeadline, format!("the job at {title} could not reach home"))
            }
            _ => (EndReason::AgentLost, format!("the job at {title} ended before it could call home")),
        };
        let detail = end.and_then(|end| end.detail.clone()).unwrap_or_default();
        self.with_lines(plain_end(reason, words::join(&sentence, &detail), now))
    }

    /// How a run ends whose job went after its agent had been home, without a last report.
    fn lost(&self, end: Option<&JobEnd>, walltime_s: u64, now: Moment) -> End {
        let title = &self.at.title;
        let code = end.and_then(|end| end.exit_code);
        let signal = end.and_then(|end| end.signal);
        let (reason, sentence) = match code {
            Some(AGENT_HOME_ABSENT) => (EndReason::HomeAbsent, words::home_absent(title)),
            Some(AGENT_WALLTIME) => (EndReason::Walltime, words::walltime(walltime_s)),
            Some(AGENT_IDLE) => (EndReason::Idle, words::idle(&self.at)),
            Some(AGENT_UNATTENDED) => (EndReason::Unattended, words::unattended(&self.at)),
            Some(AGENT_SERVER_ENDED) => (EndReason::Exited, format!("the server at {title} ended")),
            Some(AGENT_CANNOT_START) => {
                (EndReason::Exited, format!("the server could not be started at {title}"))
            }
            Some(AGENT_TICKET_REFUSED) => {
                (EndReason::Refused, format!("the ticket of the job at {title} was refused"))
            }
            _ => (EndReason::AgentLost, words::agent_lost(title, code, signal)),
        };
        let detail = end.and_then(|end| end.detail.clone()).unwrap_or_default();
        let end = plain_end(reason, words::join(&sentence, &detail), now);
        self.with_lines(End { exit_code: code.filter(|_| reason == EndReason::AgentLost), signal, ..end })
    }

    /// How a run ends whose agent reported the server's end.
    fn server_ended(&self, end: &ServerEnd, stop: Option<&Stop>, walltime_s: u64, now: Moment) -> End {
        let title = &self.at.title;
        let why = end.why.clone().unwrap_or_default();
        let (reason, sentence) = match (stop, end.cause) {
            // Its agent ended it before it heard of the stop: that is how it ended, whoever asked for what meanwhile.
            (_, EndCause::Walltime) => (EndReason::Walltime, words::walltime(walltime_s)),
            (_, EndCause::Idle) => (EndReason::Idle, words::idle(&self.at)),
            (_, EndCause::Unattended) => (EndReason::Unattended, words::unattended(&self.at)),
            (Some(stop), _) => (stop.reason, words::stopped(stop)),
            (None, EndCause::HomeAbsent) => (EndReason::HomeAbsent, words::home_absent(title)),
            (None, EndCause::Asked) => {
                (EndReason::Killed, words::join(&format!("{title} ended the server's job"), &why))
            }
            (None, EndCause::CannotStart) => {
                (EndReason::Exited, words::join(&format!("the server could not be started at {title}"), &why))
            }
            (None, EndCause::ByItself) => match (end.signal, end.exit_code) {
                (Some(signal), _) => (EndReason::Killed, words::killed(title, signal)),
                (None, code) => (EndReason::Exited, words::exited(title, code)),
            },
        };
        let ended = plain_end(reason, sentence, now);
        self.with_lines(End { exit_code: end.exit_code, signal: end.signal, ..ended })
    }

    /// How a run ends that was told to.
    fn stopped(&self, stop: &Stop, walltime_s: u64, now: Moment) -> End {
        match &self.now.phase {
            Some(Phase::Ended(end)) => self.server_ended(end, Some(stop), walltime_s, now),
            _ => self.with_lines(plain_end(stop.reason, words::stopped(stop), now)),
        }
    }

    fn with_lines(&self, end: End) -> End {
        End { last_lines: self.now.lines.clone(), ..end }
    }
}

impl Asked {
    /// When it may be asked again: later each time.
    fn again(self, deadlines: &Deadlines) -> Moment {
        let wait = repeat(deadlines).saturating_mul(1 << self.times.min(8));
        self.at.after(wait.min(ASK_AT_LEAST_EVERY))
    }

    fn once_more(self, now: Moment, deadlines: &Deadlines) -> Option<Self> {
        (now >= self.again(deadlines)).then(|| Self { at: now, times: self.times.saturating_add(1) })
    }
}

fn plain_end(reason: EndReason, message: String, at: Moment) -> End {
    End { reason, message, exit_code: None, signal: None, last_lines: Vec::new(), at }
}

/// Between two asks of the same thing: a fraction of the grace, in bounds.
fn repeat(deadlines: &Deadlines) -> Duration {
    (deadlines.grace / 2).clamp(Duration::from_millis(100), Duration::from_secs(5))
}
