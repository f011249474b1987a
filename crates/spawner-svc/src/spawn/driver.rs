//! Drives one run: hears, lets `domain::run` decide, writes down, then acts.
//!
//! In: messages (lists, the agent, stops) and what its own acts came to. Out: acts at the backend, words for the
//! agent, the route, the view. What is to be done is done only after the state that asks for it is on disk; after a
//! crash the same state asks for the same again.

use std::sync::Arc;
use std::time::Duration;

use glidepath_api_types::agent::ToAgent;
use glidepath_domain::backend::{Backend, JobLabel, JobState, ServerAddress};
use glidepath_domain::names::{RunId, SiteName};
use glidepath_domain::run::{Deadlines, Effect, Event, State};
use glidepath_domain::site::Reach;
use glidepath_tunnel::link::{Link, LinkState};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

mod tell;

use super::Shared;
use super::acts::{self, Came};
use super::launch::limits;
use super::record::Record;
use super::session::Session;
use super::used::Used;
use super::view::{NearEnd, RunView, UsedSoFar};
use crate::arrivals::routes::RouteState;
use crate::arrivals::upstream::Upstream;
use crate::clock;
use crate::notable::{About, Refusal, Repair, Retry};
use crate::sites::SiteSetup;
use crate::store::StoreError;
use tell::{Before, Doubts};

/// Messages that may wait for a driver. Lists leave room for what comes only once.
pub(super) const MAILBOX: usize = 256;
/// Changes that ask for nothing (a place in the queue) are written down and told within this time, with all that came
/// since: of somebody far behind within the longer one.
const SOFT_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// The part of a wait after which it is told anew.
const SOFT_PART: u32 = 20;
/// Before a change is written down again that the store did not take.
const WRITE_AGAIN: Duration = Duration::from_secs(1);

/// What a driver hears.
pub(super) enum Message {
    /// The run's server is to end. Answered once that is written down.
    Stop { why: String, now: bool, taken: oneshot::Sender<()> },
    /// A list showed the job of this attempt.
    Listed { number: u32, state: JobState },
    /// Something else that the state machine understands.
    Heard(Event),
    /// An agent's report, with what its server used and which ends are near.
    Reported { event: Event, usage: Option<UsedSoFar>, warnings: Vec<NearEnd>, agent: AgentSelf },
    /// The link of this attempt is over.
    LinkClosed(u32),
    /// The agent of this attempt is home, with a new link.
    Arrived { number: u32, link: Link },
}

/// Who an agent says it is: text from outside, capped.
pub(super) struct AgentSelf {
    pub(super) host: String,
    pub(super) version: String,
}

/// One run's driver.
pub(super) struct Driver {
    shared: Arc<Shared>,
    record: Record,
    mailbox: mpsc::Receiver<Message>,
    /// What the session with the agent says, with the number of the session.
    inner: (mpsc::Sender<Said>, mpsc::Receiver<Said>),
    views: watch::Sender<Arc<RunView>>,
    acts: JoinSet<Came>,
    sessions: JoinSet<()>,
    session: u64,
    agent: Option<Agent>,
    direct: Option<ServerAddress>,
    upstream: Option<Arc<Upstream>>,
    routed: Option<Routed>,
    written: String,
    soft: Option<Instant>,
    probing: bool,
    stops: Vec<oneshot::Sender<()>>,
    used: Used,
    doubts: Doubts,
}

/// A message of one session: an older session's words count no more.
pub(super) type Said = (u64, Message);

struct Agent {
    number: u32,
    link: Link,
    words: mpsc::Sender<ToAgent>,
}

/// What the routes were told last.
#[derive(PartialEq)]
enum Routed {
    Ready(usize),
    Away(String),
    Waiting(String),
    Ended(String),
}

impl Driver {
    pub(super) fn new(
        shared: Arc<Shared>,
        record: Record,
        mailbox: mpsc::Receiver<Message>,
        views: watch::Sender<Arc<RunView>>,
    ) -> Self {
        Self {
            shared,
            record,
            mailbox,
            inner: mpsc::channel(MAILBOX),
            views,
            acts: JoinSet::new(),
            sessions: JoinSet::new(),
            session: 0,
            agent: None,
            direct: None,
            upstream: None,
            routed: None,
            written: String::new(),
            soft: None,
            probing: false,
            stops: Vec::new(),
            used: Used::default(),
            doubts: Doubts::default(),
        }
    }

    pub(super) fn run_id(&self) -> RunId {
        self.record.run.id
    }

    /// The site that its run takes a place at.
    pub(super) fn site(&self) -> Option<&SiteName> {
        self.record.site()
    }

    /// Drives until the run is settled. May be dropped at any time: the store knows how to go on.
    pub(super) async fn run(mut self, first: Vec<Effect>) {
        self.follow(first).await;
        while !self.record.run.is_settled() {
            let effects = self.next().await;
            self.follow(effects).await;
        }
        self.shared.book().close(self.record.run.id);
    }

    /// Waits for something to happen, and decides.
    async fn next(&mut self) -> Vec<Effect> {
        let now = clock::now();
        let due = self.record.run.due(now, self.deadlines());
        let due = due.map(|due| Instant::now() + due.since(now)).into_iter().chain(self.soft).min();
        let time = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(message) = self.mailbox.recv() => self.take(message),
            Some((session, message)) = self.inner.1.recv() => {
                if session == self.session { self.take(message) } else { Vec::new() }
            }
            Some(came) = self.acts.join_next() => match came {
                Ok(came) => self.came(came),
                Err(error) => {
                    self.shared.notes.retries(Retry::ActAgain, &self.about().why(&error.to_string()));
                    self.step(Event::Tick)
                }
            },
            Some(_) = self.sessions.join_next() => Vec::new(),
            uses = self.used.next(self.upstream.as_deref()), if self.is_limited() => {
                self.tell_of_use(uses);
                Vec::new()
            }
            () = time => self.step(Event::Tick),
        }
    }

    fn take(&mut self, message: Message) -> Vec<Effect> {
        match message {
            Message::Stop { why, now, taken } => {
                self.stops.push(taken);
                self.step(Event::StopAsked { why, now })
            }
            Message::Listed { number, state } => {
                if let JobState::Running { direct: Some(address) } = &state
                    && self.is_current(number)
                {
                    self.reach_directly(address.clone());
                }
                self.step(Event::JobSeen(number, state))
            }
            Message::Heard(event) => self.step(event),
            Message::Reported { event, usage, warnings, agent } => {
                if let Event::Report(number, ..) = event
                    && self.is_current(number)
                {
                    self.record.usage = usage.or(self.record.usage.take());
                    self.record.warnings = warnings;
                    self.heard_of(number, agent);
                }
                self.step(event)
            }
            Message::LinkClosed(number) => {
                if self.agent.as_ref().is_some_and(|agent| agent.number == number) {
                    self.agent = None;
                }
                self.step(Event::LinkClosed(number))
            }
            Message::Arrived { number, link } => {
                self.meet(number, link);
                Vec::new()
            }
        }
    }

    /// Takes an agent's new link; the one before is over.
    fn meet(&mut self, number: u32, link: Link) {
        if !self.is_current(number) || self.record.run.attempt(number).is_none_or(|attempt| attempt.fenced) {
            link.close("this attempt is over");
            return;
        }
        self.sessions.abort_all();
        self.session += 1;
        let (session, words) = Session::new(number, link.clone(), self.session, self.inner.0.clone());
        self.sessions.spawn(session.run());
        if self.direct.is_none() {
            self.upstream = Some(Upstream::new(self.record.run.id, link.clone(), None));
            self.used = Used::default();
        }
        self.agent = Some(Agent { number, link, words });
    }

    fn reach_directly(&mut self, address: ServerAddress) {
        let site = self.record.site().and_then(|name| self.shared.sites.get(name));
        let direct = site.is_some_and(|setup| setup.site.reach == Reach::Direct);
        if direct && self.direct.as_ref() != Some(&address) {
            self.upstream = Some(Upstream::direct(self.record.run.id, address.clone()));
            self.used = Used::default();
            self.direct = Some(address);
        }
    }

    /// An act of ours came to something.
    fn came(&mut self, came: Came) -> Vec<Effect> {
        match came {
            Came::Submitted { number, job, event } => {
                if let Some(job) = job {
                    self.record.jobs.push((number, job.0));
                }
                self.tell_submit(number, &event);
                self.step(event)
            }
            Came::Probed(event) => {
                self.probing = false;
                self.step(event)
            }
            Came::Order { number, order } => {
                match order {
                    Ok(order) => {
                        self.tell(number, ToAgent::Launch(order));
                    }
                    Err(error) => {
                        self.shared.notes.retries(Retry::OrderAgain, &self.about().why(&error.to_string()));
                    }
                }
                Vec::new()
            }
            Came::Done(event) => self.step(event),
            Came::NotRemoved { number, why } => {
                let about = self.about().attempt(self.record.attempt(number)).why(&why);
                let about = About { site: self.site_of(number), ..about };
                self.shared.notes.retries(Retry::RemovalAgain, &about);
                Vec::new()
            }
        }
    }

    fn step(&mut self, event: Event) -> Vec<Effect> {
        let deadlines = self.shared.settings.deadlines;
        let before = Before::of(&self.record.run);
        let effects = self.record.run.step(event, clock::now(), &deadlines);
        if self.tell_step(&before) {
            // The way to an earlier attempt's server leads nowhere for the next one, whatever each site's reach is.
            (self.direct, self.upstream) = (None, None);
            self.record.warnings.clear();
        }
        effects
    }

    /// Writes down what changed, shows it, and does what is asked.
    async fn follow(&mut self, effects: Vec<Effect>) {
        let now = clock::now();
        let mut view = self.record.view(now, self.deadlines());
        let before = self.views.borrow().clone();
        self.tell_doubts(&view);
        // What was used is shown and not told.
        let usage = std::mem::replace(&mut view.usage, before.usage.clone());
        let told = view != *before;
        view.usage = usage;
        let hard = !effects.is_empty() || view.state != before.state || view.life != before.life;
        let hard = hard || self.written.is_empty() || !self.stops.is_empty() || self.record.run.is_settled();
        let soft_due = self.soft.is_some_and(|due| Instant::now() >= due);
        // Written down is told: whoever hears that a server is ready asks the relay at once.
        self.route(&view);
        let waits = told && !hard && !soft_due;
        if waits {
            let due = Instant::now() + soft_after(view.queue_position, view.predicted_wait_s);
            self.soft = Some(self.soft.map_or(due, |soft| soft.min(due)));
        } else if hard || soft_due {
            self.write_down(&view, told, &effects).await;
        }
        self.show(if waits { before } else { Arc::new(view) });
        for stop in self.stops.drain(..) {
            let _ = stop.send(()); // the asker may have gone
        }
        for effect in effects {
            self.act(effect);
        }
        self.probe();
    }

    /// Returns once the state is on disk, however long that takes: nothing may be done before.
    async fn write_down(&mut self, view: &RunView, told: bool, effects: &[Effect]) {
        self.soft = None;
        let erase = effects.contains(&Effect::EraseOrder);
        loop {
            let written = match self.record.row(view) {
                Ok(row) if row.doc == self.written && !told && !erase => return,
                Ok(row) => {
                    let doc = row.doc.clone();
                    self.shared.store.save(row, told, erase).await.map(|()| self.written = doc)
                }
                Err(error) => Err(error),
            };
            let Err(error) = written else { return };
            // That the database is away is told by the store, once for all runs.
            if !matches!(error, StoreError::Away(_)) {
                self.shared.notes.retries(Retry::StoreAgain, &self.about().why(&error.to_string()));
            }
            tokio::time::sleep(WRITE_AGAIN).await;
        }
    }

    /// Enters the run as it stands, and what is to be seen of it: what is told later is seen later.
    fn show(&mut self, view: Arc<RunView>) {
        let run = &self.record.run;
        let left = run.tries.iter().filter(|attempt| !attempt.cleaned);
        let watched: Vec<(u32, SiteName)> =
            left.map(|attempt| (attempt.number, attempt.at.site.clone())).collect();
        let sites: Vec<SiteName> = watched.iter().map(|(_, site)| site.clone()).collect();
        let wakes =
            self.shared.book().update(&view, self.record.site(), watched, run.is_moving(clock::now()));
        let changed = **self.views.borrow() != *view;
        if changed {
            self.views.send_replace(view);
        }
        if wakes {
            sites.iter().for_each(|site| self.shared.look_at(site));
        }
    }

    /// Tells the relay how the server can be reached, when that changed.
    pub(super) fn route(&mut self, view: &RunView) {
        let message = view.message.clone();
        let (routed, state) = match (view.state, &self.upstream) {
            (State::Ready, Some(upstream)) => {
                (Routed::Ready(Arc::as_ptr(upstream) as usize), RouteState::Ready(Arc::clone(upstream)))
            }
            (State::Ready, None) => (Routed::Away(message.clone()), RouteState::Away { message }),
            (State::Ended, _) => (Routed::Ended(message.clone()), RouteState::Ended { message }),
            (_, _) => (Routed::Waiting(message.clone()), RouteState::Waiting { message }),
        };
        if self.routed.as_ref() == Some(&routed) {
            return;
        }
        let key = self.record.key();
        if let Err(error) = self.shared.routes.put(&key.hub, &self.record.prefix, self.record.run.id, state) {
            self.shared.notes.refused(Refusal::RecordRoute, &self.about().why(&error.to_string()));
        }
        if matches!((&self.routed, &routed), (Some(Routed::Ready(_) | Routed::Away(_)), Routed::Ready(_))) {
            self.shared.notes.repaired(Repair::Rerouted, &self.about());
        }
        self.routed = Some(routed);
    }

    fn act(&mut self, effect: Effect) {
        match effect {
            Effect::Submit(number) => self.submit(number),
            Effect::Cancel(number, how) => {
                if let Some((backend, label)) = self.job(number) {
                    self.acts.spawn(acts::cancel(backend, label, how));
                }
            }
            Effect::Forget(number) => {
                self.shared.arrivals.dismiss(self.record.attempt(number), "this attempt is over");
                if let Some((backend, label)) = self.job(number) {
                    self.acts.spawn(acts::forget(backend, label));
                }
            }
            Effect::SendLaunch(number) => {
                let Some(listen_on) = self.setup(number).map(|setup| setup.listen_on) else { return };
                let (store, deadlines) = (self.shared.store.clone(), self.shared.settings.deadlines);
                let (run, walltime_s) = (self.record.run.id, self.record.run.walltime_s);
                let granted = self.record.run.attempt(number).map(|attempt| attempt.at.granted.clone());
                let limits = limits(&granted.unwrap_or_default(), &self.shared.settings.warn_before_s);
                self.acts.spawn(acts::order(store, run, number, listen_on, walltime_s, limits, deadlines));
            }
            Effect::SendStop(number, reason) => {
                let grace_s = u32::try_from(self.deadlines().grace.as_secs()).unwrap_or(u32::MAX).max(1);
                self.tell(number, ToAgent::Stop { grace_s, reason });
            }
            Effect::CloseLink(number, reason) => {
                if self.agent.as_ref().is_some_and(|agent| agent.number == number)
                    && let Some(agent) = self.agent.take()
                {
                    agent.link.close(&reason);
                    self.sessions.abort_all();
                }
                self.shared.arrivals.dismiss(self.record.attempt(number), &reason);
                (self.direct, self.upstream) = (None, None);
            }
            Effect::SiteFailed { number, why, personal } => {
                if let Some(setup) = self.setup(number) {
                    let asker = personal.then(|| self.record.key().user.as_str());
                    self.shared.sites.failed(&setup.site.name, &why, asker);
                }
            }
            Effect::SiteDidWell(number) => {
                if let Some(setup) = self.setup(number) {
                    self.shared.sites.did_well(&setup.site.name);
                }
            }
            Effect::EraseOrder => self.shared.notes.repaired(Repair::OrderErased, &self.about()), // with the writing
        }
    }

    fn submit(&mut self, number: u32) {
        let Some(setup) = self.setup(number) else {
            let gone = "the site is no longer configured".to_owned();
            let event = Event::SubmitRefused(number, gone);
            self.acts.spawn(async move { Came::Submitted { number, job: None, event } });
            return;
        };
        let name = &setup.site.name;
        if !self.shared.book().take_place(self.record.run.id, name, &self.shared.sites) {
            let event = Event::NoPlace(number, "all places are taken".to_owned());
            self.acts.spawn(async move { Came::Submitted { number, job: None, event } });
            return;
        }
        let label = JobLabel { key: self.record.key().clone(), attempt: self.record.attempt(number) };
        let act = acts::Submit {
            shared: Arc::clone(&self.shared),
            setup,
            label,
            request: self.record.request.clone(),
            walltime_s: self.record.run.walltime_s,
            requested_at: self.record.run.requested_at,
        };
        self.acts.spawn(act.run());
    }

    /// Asks the server whether it answers, while somebody needs to know. One probe at a time.
    fn probe(&mut self) {
        let Some(number) = self.record.run.probes().filter(|_| !self.probing) else { return };
        let Some(upstream) = self.upstream.clone() else { return };
        self.probing = true;
        self.acts.spawn(acts::probe(upstream, self.record.prefix.clone(), number));
    }

    /// True when it is on its way. What is not is said again with the next link or stream.
    fn tell(&self, number: u32, word: ToAgent) -> bool {
        let Some(agent) = self.agent.as_ref().filter(|agent| agent.number == number) else { return false };
        let sent = agent.words.try_send(word);
        if let Err(error) = &sent {
            let why = error.to_string();
            let about = self.about().attempt(self.record.attempt(number));
            self.shared.notes.retries(Retry::WordAgain, &about.why(&why));
        }
        sent.is_ok()
    }

    /// Once the agent can hear it: nobody says again what is lost with a link.
    fn tell_of_use(&mut self, uses: u64) {
        let hears = |agent: &&Agent| matches!(agent.link.state(), LinkState::Up { .. });
        let number = self.agent.as_ref().filter(hears).map(|agent| agent.number);
        if number.is_some_and(|number| self.tell(number, ToAgent::Used)) {
            self.used.told(uses);
        } else {
            self.used.later();
        }
    }

    fn setup(&self, number: u32) -> Option<SiteSetup> {
        self.record.run.attempt(number).and_then(|attempt| self.shared.sites.get(&attempt.at.site))
    }

    fn job(&self, number: u32) -> Option<(Arc<dyn Backend>, JobLabel)> {
        let setup = self.setup(number)?;
        Some((
            setup.backend,
            JobLabel { key: self.record.key().clone(), attempt: self.record.attempt(number) },
        ))
    }

    /// True when its agent wants to know that a person used it.
    fn is_limited(&self) -> bool {
        let granted = self.record.run.current().map(|attempt| &attempt.at.granted);
        self.record.run.state == State::Ready
            && granted.is_some_and(|granted| granted.idle_s.is_some() || granted.unattended_s.is_some())
    }

    fn is_current(&self, number: u32) -> bool {
        self.record.run.current().is_some_and(|attempt| attempt.number == number)
    }

    fn deadlines(&self) -> &Deadlines {
        &self.shared.settings.deadlines
    }
}

/// How long a change in the queue may wait to be told: a part of what is still to be waited, a place counted as a second.
/// A thousand who wait for hours, each with a prediction that counts down, are not written down every few seconds; who
/// comes to the front meanwhile is told at the pace of the front.
fn soft_after(position: Option<u32>, wait_s: Option<u32>) -> Duration {
    let still = u64::from(position.max(wait_s).unwrap_or_default());
    (Duration::from_secs(still) / SOFT_PART).clamp(SOFT_AFTER.0, SOFT_AFTER.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_next_hears_it_at_once_and_who_waits_for_hours_now_and_then() {
        let after = |position, wait_s| soft_after(position, wait_s).as_secs();
        assert_eq!((after(None, None), after(Some(1), Some(15)), after(Some(12), None)), (1, 1, 1));
        assert_eq!((after(Some(3), Some(200)), after(Some(400), Some(200))), (10, 20));
        assert_eq!((after(Some(3), Some(86_400)), after(Some(10_000), None)), (60, 60));
    }
}
