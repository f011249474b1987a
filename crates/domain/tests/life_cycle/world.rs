//! The world around a run. Each move is one thing that may happen; what is in flight arrives in any order, twice, late.
//!
//! Each attempt has a site of its own, as the plan names each once. Sites keep the promises of `domain::backend`: a
//! repeated submit returns the first job, a whole list tells the truth of the moment at which it was asked for, unless
//! the system has lost a job from sight. The rest is open: any answer but a submit's may come twice, any may be lost,
//! and what was asked may still be done after the asker has died.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use glidepath_domain::backend::{CancelHow, JobEnd, JobState};
use glidepath_domain::names::{RunId, SiteName};
use glidepath_domain::policy::Granted;
use glidepath_domain::run::{
    Choice, Deadlines, Effect, EndCause, EndReason, Event, Job, Moment, Phase, Run, ServerEnd, State,
};

/// Seconds that a server may live: short, so that a walk comes to it.
const WALLTIME_S: u64 = 900;
/// Between two lists of a site where something moves, and of one where all is calm.
const LISTS: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(30)];
/// A fair world brings each run to rest within this time, whatever was before: a start that succeeds at each site in
/// turn, or a stop that nobody obeys, and the longest wait between two asks of the same thing.
const REST_WITHIN: Duration = Duration::from_secs(600);

fn deadlines() -> Deadlines {
    let s = Duration::from_secs;
    Deadlines { queued: s(600), dialling: s(120), starting: s(180), doubt: s(60), grace: s(10) }
}

/// One thing that may happen. Numbers are attempts, or places in what is in flight.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Move {
    /// The service hears what is in flight to it; `again` leaves it in flight.
    Hear {
        at: usize,
        again: bool,
    },
    /// It hears, writes down, and dies before it acts.
    HearAndDie(usize),
    Die,
    Wake,
    /// A call of the service comes to this.
    Call {
        at: usize,
        came: Came,
    },
    /// What a site was asked long ago is done, or is not.
    Late {
        at: usize,
        lost: bool,
    },
    List(u32),
    SiteSilent(u32),
    JobRuns(u32),
    JobHeld(u32),
    JobOver {
        number: u32,
        code: Option<i32>,
    },
    /// The batch system shows a job no more, over or not.
    JobPurged(u32),
    Dial(u32),
    Cut(u32),
    Mend(u32),
    Close(u32),
    Listens(u32),
    ServerEnds {
        number: u32,
        cause: Ended,
    },
    Probe {
        number: u32,
        status: u16,
    },
    AskStop {
        now: bool,
    },
    Pass(u64),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Came {
    Well,
    Refused,
    NoPlace,
    /// It was done, and the answer is lost.
    Unheard,
    /// It was not done, and nobody can tell.
    Undone,
    /// Nobody can tell; it may be done later.
    Late,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Ended {
    ByItself,
    CannotStart,
    Asked,
}

#[derive(Debug, Clone)]
struct Service {
    run: Run,
    /// What its own acts have begun and not come to yet.
    calls: Vec<Effect>,
    /// What is on its way to it.
    mail: Vec<Mail>,
    /// The agent that it talks to.
    session: Option<(u32, u64)>,
}

#[derive(Debug, Clone)]
struct Mail {
    event: Event,
    /// The session that said it, if one did: an older session's words count no more.
    session: Option<u64>,
}

#[derive(Debug, Clone, PartialEq)]
enum JobIs {
    Queued,
    Held,
    Running,
    Over(JobEnd),
}

#[derive(Debug, Clone)]
struct RealJob {
    is: JobIs,
    /// Told to end.
    doomed: bool,
    purged: bool,
    forgotten: bool,
    /// Made by a submit that nobody waited for any more.
    late: bool,
    agent: Agent,
}

#[derive(Debug, Clone, Default)]
struct Agent {
    link: Option<u64>,
    cut: bool,
    server: Option<Phase>,
    launched: Option<Moment>,
    dismissed: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) broken: Vec<String>,
    pub(crate) last_heard: Option<Event>,
    now: Moment,
    doc: String,
    order_kept: bool,
    service: Option<Service>,
    jobs: BTreeMap<u32, RealJob>,
    /// What sites were asked and nobody waits for.
    late: Vec<Effect>,
    sessions: u64,
    /// The last order of each attempt that can have started its server.
    ordered: BTreeMap<u32, Moment>,
    refused: BTreeSet<u32>,
    /// The end that was promised to the user who asked for it.
    promised: Option<EndReason>,
}

impl World {
    pub(crate) fn with(sites: usize) -> Self {
        let now = Moment(1_700_000_000_000);
        let plan = ["here", "far", "away"].into_iter().take(sites).map(choice).collect();
        let run = Run::requested(RunId::from_parts(now.0, 7), plan, WALLTIME_S, now);
        let service = Service { run, calls: vec![], mail: vec![], session: None };
        let mut world = Self {
            broken: vec![],
            last_heard: None,
            now,
            doc: String::new(),
            order_kept: true,
            service: Some(service),
            jobs: BTreeMap::new(),
            late: vec![],
            sessions: 0,
            ordered: BTreeMap::new(),
            refused: BTreeSet::new(),
            promised: None,
        };
        world.hear(Event::Tick, false);
        world
    }

    /// The run as the service has it, or as the store keeps it.
    pub(crate) fn run(&self) -> Run {
        match &self.service {
            Some(service) => service.run.clone(),
            None => self.stored(),
        }
    }

    fn stored(&self) -> Run {
        serde_json::from_str(&self.doc).expect("what was written reads")
    }

    /// All that may happen next; what leads somewhere more than once.
    pub(crate) fn moves(&self) -> Vec<Move> {
        let mut moves = vec![Move::Pass(5), Move::Pass(1_000), Move::Pass(20_000), Move::Pass(200_000)];
        if matches!(self.run().state, State::Starting | State::Ready) {
            moves.push(Move::Pass(800_000)); // most of a server's life
        }
        for (at, _) in self.late.iter().enumerate() {
            moves.extend([Move::Late { at, lost: false }, Move::Late { at, lost: true }]);
        }
        match &self.service {
            None => moves.extend([Move::Wake, Move::Wake, Move::Wake]),
            Some(service) => self.moves_of_service(service, &mut moves),
        }
        for (number, job) in &self.jobs {
            self.moves_of_job(*number, job, &mut moves);
        }
        moves
    }

    fn moves_of_service(&self, service: &Service, moves: &mut Vec<Move>) {
        moves.extend([Move::Die, Move::AskStop { now: false }]);
        if service.run.stop.is_some() {
            moves.push(Move::AskStop { now: true });
        }
        for (at, mail) in service.mail.iter().enumerate() {
            moves.extend(vec![Move::Hear { at, again: false }; 3]);
            moves.push(Move::HearAndDie(at));
            moves.extend((!is_of_submit(&mail.event)).then_some(Move::Hear { at, again: true }));
        }
        for (at, call) in service.calls.iter().enumerate() {
            let call_came = |came| Move::Call { at, came };
            moves.extend([call_came(Came::Well), call_came(Came::Well), call_came(Came::Well)]);
            moves.extend([Came::Unheard, Came::Undone, Came::Late].map(call_came));
            if let Effect::Submit(number) = call
                && !self.jobs.contains_key(number)
            {
                moves.push(call_came(Came::Refused));
                moves.extend((!self.refused.contains(number)).then(|| call_came(Came::NoPlace)));
            }
        }
        for attempt in &service.run.tries {
            let number = attempt.number;
            moves.extend([Move::List(number), Move::List(number), Move::SiteSilent(number)]);
        }
        let probing =
            service.mail.iter().any(|mail| matches!(mail.event, Event::Answered(..) | Event::Silent(..)));
        if let Some(number) = service.run.probes().filter(|_| !probing) {
            moves.extend([200, 200, 200, 200, 503].map(|status| Move::Probe { number, status }));
        }
    }

    fn moves_of_job(&self, number: u32, job: &RealJob, moves: &mut Vec<Move>) {
        let over = |code| Move::JobOver { number, code };
        moves.extend((!job.purged).then_some(Move::JobPurged(number)));
        match &job.is {
            JobIs::Queued | JobIs::Held => {
                moves.extend([
                    Move::JobRuns(number),
                    Move::JobRuns(number),
                    Move::JobHeld(number),
                    over(Some(1)),
                ]);
            }
            JobIs::Over(_) => {}
            JobIs::Running => {
                moves.push(over(None));
                moves.extend(job.doomed.then(|| over(Some(0))));
                moves.extend(self.moves_of_agent(number, &job.agent));
            }
        }
    }

    fn moves_of_agent(&self, number: u32, agent: &Agent) -> Vec<Move> {
        let mut moves = Vec::new();
        match (agent.link, agent.cut) {
            (None, _) if self.service.is_some() && !agent.dismissed => {
                moves.extend(vec![Move::Dial(number); 3])
            }
            (None, _) => {}
            (Some(_), true) => moves.extend([Move::Mend(number), Move::Mend(number), Move::Close(number)]),
            (Some(_), false) => moves.extend([Move::Cut(number), Move::Close(number)]),
        }
        let ends = |cause| Move::ServerEnds { number, cause };
        match agent.server {
            Some(Phase::Starting) => {
                moves.extend([Move::Listens(number), Move::Listens(number), Move::Listens(number)]);
                moves.extend([ends(Ended::CannotStart), ends(Ended::ByItself)]);
            }
            Some(Phase::Listening) => moves.push(ends(Ended::ByItself)),
            Some(Phase::Ending) => moves.extend([ends(Ended::Asked), ends(Ended::Asked)]),
            _ => {}
        }
        moves
    }

    pub(crate) fn make(&mut self, step: &Move) {
        self.now = self.now.after(Duration::from_millis(1));
        match step {
            Move::Hear { at, again } => self.hear_mail(*at, *again, false),
            Move::HearAndDie(at) => self.hear_mail(*at, false, true),
            Move::Die => self.die(),
            Move::Wake => self.wake(),
            Move::Call { at, came } => self.call(*at, *came),
            Move::Late { at, lost } => {
                let asked = self.late.remove(*at);
                if !lost {
                    self.done_at_site(&asked, true);
                }
            }
            Move::List(number) => self.list(*number),
            Move::SiteSilent(number) => self.send(Event::SiteSilent(*number), None),
            Move::JobRuns(number) => self.job(*number).is = JobIs::Running,
            Move::JobHeld(number) => self.job(*number).is = JobIs::Held,
            Move::JobOver { number, code } => self.job_over(*number, *code),
            Move::JobPurged(number) => self.job(*number).purged = true,
            Move::Dial(number) => self.dial(*number),
            Move::Cut(number) => self.lane(*number, true, Event::LinkCut(*number)),
            Move::Mend(number) => self.lane(*number, false, Event::LinkBack(*number)),
            Move::Close(number) => self.close(*number),
            Move::Listens(number) => self.serve(*number, Phase::Listening),
            Move::ServerEnds { number, cause } => self.serve(*number, ended(*cause)),
            Move::Probe { number, status } => self.probe(*number, *status),
            Move::AskStop { now } => self.ask_stop(*now),
            Move::Pass(millis) => self.pass(*millis),
        }
        self.check();
    }

    // The service.

    fn send(&mut self, event: Event, session: Option<u64>) {
        if let Some(service) = &mut self.service {
            service.mail.push(Mail { event, session });
        }
    }

    fn hear_mail(&mut self, at: usize, again: bool, and_die: bool) {
        let Some(service) = &mut self.service else { return };
        let mail = service.mail[at].clone();
        if !again {
            service.mail.remove(at);
        }
        let current = service.session.map(|(_, session)| session);
        if matches!(mail.event, Event::LinkClosed(_)) {
            service.mail.retain(|other| other.session != mail.session); // it is a session's last word
            service.session = service.session.filter(|(_, session)| Some(*session) != mail.session);
        }
        if mail.session.is_none() || mail.session == current {
            self.hear(mail.event, and_die);
        }
    }

    /// One step as the driver makes it: decide, write down, act. Death may come before the acts.
    fn hear(&mut self, event: Event, and_die: bool) {
        let Some(service) = &mut self.service else { return };
        if service.run.is_settled() {
            return; // nobody drives it any more
        }
        self.last_heard = Some(event.clone());
        let before = service.run.clone();
        let effects = service.run.step(event.clone(), self.now, &deadlines());
        if matches!(event, Event::StopAsked { .. }) && before.stop.is_none() && before.state != State::Ended {
            let reason = if before.state == State::Ready { EndReason::Stopped } else { EndReason::Cancelled };
            self.promised = Some(reason);
        }
        self.check_step(&before, &event);
        self.follow(&effects, and_die);
    }

    fn follow(&mut self, effects: &[Effect], and_die: bool) {
        let run = self.service.as_ref().expect("it decided").run.clone();
        self.doc = serde_json::to_string(&run).expect("a run can be written");
        if effects.contains(&Effect::EraseOrder) {
            self.order_kept = false;
        }
        for effect in effects {
            self.check_effect(&run, effect);
        }
        if and_die {
            return self.die();
        }
        for effect in effects {
            self.begin(effect);
        }
    }

    fn begin(&mut self, effect: &Effect) {
        match effect {
            Effect::Submit(_) | Effect::Cancel(..) | Effect::Forget(_) | Effect::SendLaunch(_) => {
                if let Effect::Forget(number) = effect {
                    self.dismiss(*number);
                }
                self.service.as_mut().expect("it acts").calls.push(effect.clone());
            }
            Effect::SendStop(number, _) => {
                if self.talks_with(*number) && self.jobs[number].agent.server.is_some() {
                    let agent = &mut self.job(*number).agent;
                    if !matches!(agent.server, Some(Phase::Ended(_))) {
                        self.serve(*number, Phase::Ending);
                    }
                } else if self.talks_with(*number) {
                    self.serve(*number, ended(Ended::Asked));
                }
            }
            Effect::CloseLink(number, _) => self.dismiss(*number),
            Effect::SiteFailed { .. } | Effect::SiteDidWell(_) | Effect::EraseOrder => {}
        }
    }

    fn talks_with(&self, number: u32) -> bool {
        let session = self.service.as_ref().and_then(|service| service.session);
        session.is_some_and(|(whose, _)| whose == number)
    }

    fn die(&mut self) {
        let Some(service) = self.service.take() else { return };
        let left = service.calls.into_iter().filter(|call| !matches!(call, Effect::SendLaunch(_)));
        self.late.extend(left);
        for job in self.jobs.values_mut() {
            job.agent.link = None;
        }
    }

    fn wake(&mut self) {
        let mut run = self.stored();
        let before = run.clone();
        let effects = run.resume(self.now, &deadlines());
        self.service = Some(Service { run, calls: vec![], mail: vec![], session: None });
        self.check_step(&before, &Event::Tick);
        self.follow(&effects, false);
    }

    fn call(&mut self, at: usize, came: Came) {
        let call = self.service.as_mut().expect("its call").calls.remove(at);
        if let Effect::SendLaunch(number) = call {
            return self.launch(number);
        }
        if matches!(came, Came::Well | Came::Unheard) {
            self.done_at_site(&call, false);
        }
        if came == Came::Late {
            self.late.push(call.clone());
        }
        let answer = match (&call, came) {
            (Effect::Submit(n), Came::Well) => Event::SubmitDone(*n),
            (Effect::Submit(n), Came::Refused) => Event::SubmitRefused(*n, "no".to_owned()),
            (Effect::Submit(n), Came::NoPlace) => Event::NoPlace(*n, "full".to_owned()),
            (Effect::Submit(n), _) => Event::SubmitUnknown(*n, "no answer".to_owned()),
            (Effect::Cancel(n, _), Came::Well) => Event::CancelDone(*n),
            (Effect::Forget(n), Came::Well) => Event::ForgetDone(*n),
            _ => return, // it will be asked again
        };
        if let Effect::Submit(number) = call {
            self.refused.insert(number); // a place is taken with the first submit
        }
        self.send(answer, None);
    }

    fn ask_stop(&mut self, now: bool) {
        self.wake_if_dead();
        self.hear(Event::StopAsked { why: "bye".to_owned(), now }, false);
    }

    fn wake_if_dead(&mut self) {
        if self.service.is_none() {
            self.wake();
        }
    }

    /// Time passes; the service is woken by it whenever it wanted to be.
    fn pass(&mut self, millis: u64) {
        let until = self.now.after(Duration::from_millis(millis));
        while let Some(due) = self.due().filter(|due| *due <= until) {
            self.now = due;
            self.hear(Event::Tick, false);
            self.check();
        }
        self.now = until;
        let lived = |agent: &Agent| agent.launched.is_some_and(|at| until.since(at).as_secs() >= WALLTIME_S);
        let serves = |agent: &Agent| matches!(agent.server, Some(Phase::Starting | Phase::Listening));
        let lived_out: Vec<u32> = self
            .jobs
            .iter()
            .filter(|(_, job)| serves(&job.agent) && lived(&job.agent))
            .map(|(n, _)| *n)
            .collect();
        for number in lived_out {
            self.serve(number, server_end(EndCause::Walltime));
        }
    }

    fn due(&self) -> Option<Moment> {
        let service = self.service.as_ref().filter(|service| !service.run.is_settled())?;
        service.run.due(self.now, &deadlines())
    }

    // The sites.

    fn job(&mut self, number: u32) -> &mut RealJob {
        self.jobs.get_mut(&number).expect("a job that was made")
    }

    fn done_at_site(&mut self, asked: &Effect, late: bool) {
        match asked {
            Effect::Submit(number) if self.jobs.get(number).is_none_or(|job| job.forgotten) => {
                let (is, agent) = (JobIs::Queued, Agent::default());
                let job = RealJob { is, doomed: false, purged: false, forgotten: false, late, agent };
                self.jobs.insert(*number, job);
            }
            Effect::Cancel(number, how) => {
                let Some(job) = self.jobs.get_mut(number) else { return };
                job.doomed = true;
                if *how == CancelHow::Now || job.is != JobIs::Running {
                    self.job_over(*number, None);
                }
            }
            Effect::Forget(number) => {
                let Some(job) = self.jobs.get_mut(number) else { return };
                if !matches!(job.is, JobIs::Over(_)) && !job.late && !job.purged && !late {
                    self.broken.push(format!("attempt {number} is forgotten while its job lives"));
                }
                job.forgotten |= matches!(job.is, JobIs::Over(_));
            }
            _ => {}
        }
    }

    fn job_over(&mut self, number: u32, code: Option<i32>) {
        let job = self.job(number);
        if !matches!(job.is, JobIs::Over(_)) {
            job.is = JobIs::Over(JobEnd { exit_code: code, signal: None, detail: None });
        }
        job.agent.server = None;
        self.close(number);
    }

    /// The answer to a list that is asked for now, as it concerns this attempt.
    fn list(&mut self, number: u32) {
        let job = self.jobs.get(&number).filter(|job| !job.purged && !job.forgotten);
        let seen = job.map(|job| match &job.is {
            JobIs::Queued => JobState::Queued { position: None, predicted_wait_s: None },
            JobIs::Held => JobState::Stuck("held".to_owned()),
            JobIs::Running => JobState::Running { direct: None },
            JobIs::Over(end) => JobState::Ended(end.clone()),
        });
        let event = match seen {
            Some(state) => Event::JobSeen(number, state),
            None => Event::JobAbsent(number, self.now),
        };
        self.send(event, None);
    }

    // The agents.

    fn dial(&mut self, number: u32) {
        self.sessions += 1;
        let session = self.sessions;
        let Some(service) = &mut self.service else { return };
        let may = service.run.current().is_some_and(|attempt| attempt.number == number && !attempt.fenced);
        if !may {
            return self.dismiss(number);
        }
        service.session = Some((number, session));
        let agent = &mut self.job(number).agent;
        (agent.link, agent.cut) = (Some(session), false);
        let phase = agent.server.clone().unwrap_or(Phase::Waiting);
        self.send(Event::Linked(number), Some(session));
        self.send(Event::Report(number, phase, vec![]), Some(session));
    }

    fn lane(&mut self, number: u32, cut: bool, event: Event) {
        let agent = &mut self.job(number).agent;
        agent.cut = cut;
        let link = agent.link;
        self.send(event, link);
    }

    fn close(&mut self, number: u32) {
        let Some(session) = self.job(number).agent.link.take() else { return };
        self.send(Event::LinkClosed(number), Some(session));
    }

    /// The agent learns that its attempt is over, and ends its server.
    fn dismiss(&mut self, number: u32) {
        if let Some(service) = &mut self.service
            && service.session.is_some_and(|(whose, _)| whose == number)
        {
            service.session = None;
        }
        if let Some(job) = self.jobs.get_mut(&number) {
            (job.agent.link, job.agent.dismissed) = (None, true);
            job.agent.server = None;
            if job.is == JobIs::Running {
                job.doomed = true;
            }
        }
    }

    fn launch(&mut self, number: u32) {
        if !self.talks_with(number) || self.jobs.get(&number).is_none_or(|job| job.agent.link.is_none()) {
            return; // it is said again with the next link
        }
        if !self.order_kept {
            self.broken.push(format!("attempt {number} is to be launched, and its order is erased"));
        }
        let now = self.now;
        let agent = &mut self.job(number).agent;
        if agent.server.is_none() {
            agent.launched = Some(now);
            self.serve(number, Phase::Starting);
        }
    }

    fn serve(&mut self, number: u32, phase: Phase) {
        let agent = &mut self.job(number).agent;
        agent.server = Some(phase.clone());
        let link = agent.link.filter(|_| !agent.cut);
        if link.is_some() {
            self.send(Event::Report(number, phase, vec![]), link);
        }
    }

    fn probe(&mut self, number: u32, status: u16) {
        let agent = self.jobs.get(&number).map(|job| &job.agent);
        let answers = agent.is_some_and(|agent| {
            agent.server == Some(Phase::Listening) && agent.link.is_some() && !agent.cut
        });
        let event = if answers {
            Event::Answered(number, status)
        } else {
            Event::Silent(number, "no answer".to_owned())
        };
        self.send(event, None);
    }

    // The promises.

    fn check_effect(&mut self, run: &Run, effect: &Effect) {
        let fenced = |number: &u32| run.attempt(*number).is_none_or(|attempt| attempt.fenced);
        match effect {
            Effect::Submit(number) if fenced(number) => {
                self.broken.push(format!("attempt {number} is submitted and fenced"));
            }
            Effect::SendLaunch(number) => {
                if fenced(number) || run.current().is_none_or(|attempt| attempt.number != *number) {
                    self.broken.push(format!("attempt {number} is launched and fenced"));
                }
                if self.jobs.get(number).is_none_or(|job| job.agent.server.is_none()) {
                    self.ordered.insert(*number, self.now);
                }
            }
            _ => {}
        }
    }

    fn check_step(&mut self, before: &Run, event: &Event) {
        let run = self.run();
        if before.state == State::Ended && (run.end != before.end || run.state != State::Ended) {
            self.broken.push("an end changed".to_owned());
        }
        let number = before.current().map_or(0, |attempt| attempt.number);
        let job = self.jobs.get(&number);
        let serves =
            job.is_some_and(|job| matches!(job.agent.server, Some(Phase::Starting | Phase::Listening)));
        let heard = before.current().is_some_and(|attempt| attempt.is_up());
        let purged = job.is_some_and(|job| job.purged);
        let own_word = matches!(event, Event::Report(_, Phase::Ended(_), _));
        if before.state == State::Ready
            && run.state == State::Ended
            && serves
            && (heard || !purged)
            && !own_word
            && run.stop.is_none()
        {
            self.broken.push(format!("a ready run is ended while its server lives: {:?}", run.end));
        }
        if let Some(stop) = run.stop.as_ref().filter(|_| before.stop.is_none())
            && stop.reason == EndReason::Walltime
            && let Some(at) = self.ordered.get(&number).copied()
            && self.now.since(at).as_secs() < WALLTIME_S
        {
            self.broken.push(format!("the walltime is said to be over after {:?}", self.now.since(at)));
        }
        let on_its_way = matches!(
            run.state,
            State::Submitting | State::Queued | State::Dialling | State::Starting | State::Ready
        );
        let gone = |number| matches!(run.attempt(number).map(|attempt| &attempt.job), Some(Job::Gone { .. }));
        let lost =
            (run.state == State::Placed || run.tries.len() > before.tries.len() || run.state == State::Ended)
                && number > 0
                && !before.tries.last().is_some_and(|attempt| attempt.fenced)
                && before.stop.is_none();
        let alive = job.is_some_and(|job| !matches!(job.is, JobIs::Over(_)));
        if gone(number) && alive && !purged && (on_its_way || lost) && !own_word && before.stop.is_none() {
            self.broken.push(format!("the job of attempt {number} is thought to be gone and lives"));
        }
        if let (Some(end), Some(promised)) = (&run.end, self.promised)
            && end.reason != promised
        {
            self.broken.push(format!("{promised:?} was to be the end, and is {:?}", end.reason));
        }
    }

    fn check(&mut self) {
        let run = self.run();
        let open = run.tries.iter().filter(|attempt| !attempt.fenced).count();
        if open > 1 || (open == 1 && run.tries.last().is_some_and(|attempt| attempt.fenced)) {
            self.broken.push("an attempt that is not the current one may attach".to_owned());
        }
        if self.order_kept != (run.state != State::Ended) {
            self.broken.push(format!("{:?}, and that the order is kept is {}", run.state, self.order_kept));
        }
        for (number, job) in &self.jobs {
            let fenced = run.attempt(*number).is_some_and(|attempt| attempt.fenced);
            if fenced
                && job.agent.link.is_some()
                && job.agent.server == Some(Phase::Listening)
                && run.is_settled()
            {
                self.broken.push(format!("the server of attempt {number} can be reached and is fenced"));
            }
        }
        self.check_links(&run);
    }

    /// No fenced attempt keeps a link that the service has heard of.
    fn check_links(&mut self, run: &Run) {
        let Some(service) = self.service.as_ref().filter(|service| !service.run.is_settled()) else { return };
        let Some((number, session)) = service.session else { return };
        let told = |mail: &Mail| mail.session == Some(session) && matches!(mail.event, Event::Linked(_));
        let fenced = run.attempt(number).is_some_and(|attempt| attempt.fenced);
        if fenced && !service.mail.iter().any(told) {
            self.broken.push(format!("attempt {number} is fenced and its agent keeps its link"));
        }
    }

    // A fair world.

    /// Everything in flight arrives, every site answers, every agent does its work, until the run rests.
    pub(crate) fn be_fair(&mut self) -> Result<(), String> {
        let from = self.now;
        let mut calm = 0;
        let stopped_at = self.run().stop.as_ref().map(|_| self.now);
        while calm < 5 {
            self.wake_if_dead();
            self.deliver_all();
            self.work();
            self.deliver_all();
            if let Some(broken) = self.broken.first() {
                return Err(broken.clone());
            }
            let run = self.run();
            let d = deadlines();
            if stopped_at
                .is_some_and(|at| run.state != State::Ended && self.now.since(at) > d.grace * 4 + d.doubt)
            {
                return Err("a stop takes too long".to_owned());
            }
            calm = if self.rests(&run) { calm + 1 } else { 0 };
            if self.now.since(from) > REST_WITHIN {
                return Err(format!("no rest in a fair world: {run:?}, jobs {:?}", self.jobs));
            }
            let list = LISTS[usize::from(!run.is_moving(self.now))];
            self.pass(u64::try_from(list.as_millis()).expect("seconds"));
        }
        Ok(())
    }

    fn rests(&self, run: &Run) -> bool {
        match run.state {
            State::Ended => run.is_settled() && self.jobs.values().all(|job| job.forgotten),
            State::Ready => run.current().is_some_and(|attempt| {
                self.jobs.get(&attempt.number).is_some_and(|job| job.agent.server == Some(Phase::Listening))
            }),
            _ => false,
        }
    }

    fn deliver_all(&mut self) {
        loop {
            if !self.late.is_empty() {
                self.make(&Move::Late { at: 0, lost: false });
                continue;
            }
            let Some(service) = &self.service else { return };
            if !service.mail.is_empty() {
                self.make(&Move::Hear { at: 0, again: false });
            } else if !service.calls.is_empty() {
                self.make(&Move::Call { at: 0, came: Came::Well });
            } else {
                return;
            }
        }
    }

    fn work(&mut self) {
        for number in self.jobs.keys().copied().collect::<Vec<_>>() {
            self.work_at(number);
        }
        let run = self.run();
        for attempt in &run.tries {
            self.list(attempt.number);
        }
        if run.is_settled() {
            self.remove_unwanted();
        }
        if let Some(number) = run.probes() {
            self.probe(number, 200);
        }
    }

    fn work_at(&mut self, number: u32) {
        let job = self.job(number);
        match job.is {
            JobIs::Queued | JobIs::Held => job.is = JobIs::Running,
            JobIs::Running if job.doomed => self.job_over(number, Some(0)),
            JobIs::Over(_) => {}
            JobIs::Running => {
                let agent = job.agent.clone();
                match (agent.link, agent.cut) {
                    (None, _) => self.make(&Move::Dial(number)),
                    (Some(_), true) => self.make(&Move::Mend(number)),
                    (Some(_), false) => {}
                }
                match agent.server {
                    Some(Phase::Starting) => self.serve(number, Phase::Listening),
                    Some(Phase::Ending) => self.serve(number, ended(Ended::Asked)),
                    Some(Phase::Ended(_)) => {
                        self.deliver_all();
                        self.job_over(number, Some(0));
                    }
                    _ => {}
                }
            }
        }
    }

    /// What the service does with jobs that no run drives: only a submit that came through late leaves one.
    fn remove_unwanted(&mut self) {
        for (number, job) in self.jobs.clone() {
            if !job.forgotten && !job.late && !job.purged {
                self.broken.push(format!("the run is settled and the job of attempt {number} is there"));
            }
            self.done_at_site(&Effect::Cancel(number, CancelHow::Now), true);
            self.done_at_site(&Effect::Forget(number), true);
        }
    }
}

/// What a call of the service came to is a value that it returns: once.
fn is_of_submit(event: &Event) -> bool {
    matches!(
        event,
        Event::SubmitDone(_) | Event::SubmitRefused(..) | Event::NoPlace(..) | Event::SubmitUnknown(..)
    )
}

fn choice(site: &str) -> Choice {
    let granted = Granted::default();
    Choice { site: SiteName::parse(site).expect("a name"), title: site.to_uppercase(), granted }
}

fn ended(cause: Ended) -> Phase {
    server_end(match cause {
        Ended::ByItself => EndCause::ByItself,
        Ended::CannotStart => EndCause::CannotStart,
        Ended::Asked => EndCause::Asked,
    })
}

fn server_end(cause: EndCause) -> Phase {
    Phase::Ended(ServerEnd { exit_code: None, signal: None, why: None, cause })
}
