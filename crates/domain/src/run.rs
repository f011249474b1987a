//! One life of a server, with its attempts, as a pure state machine.
//!
//! In: what was seen and asked ([`Event`]), with the time. Out: the next state, and what is to be done ([`Effect`]).
//! No clock, no network, no store; who does what is asked is `spawn`, after it has written the new state down.
//!
//! ```text
//! requested ─► placed ─► submitting ─► queued ─► dialling ─► starting ─► ready ─► stopping ─► ended(reason)
//!                ▲            │           │          │           │
//!                └────────────┴───────────┴──────────┴───────────┘ the site failed: fence the attempt, try the next
//! ```
//!
//! Each step first notes what was heard (`hear`), then decides from what is known (`decide`): a decision never hangs
//! on the order or the number of messages. Only the current attempt's messages count; an older one is fenced, and all
//! that is heard of it serves to clean it up. An ended run stays in hand until each of its jobs is known to be gone.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backend::{CancelHow, JobEnd, JobState};
use crate::names::{RunId, SiteName};
use crate::policy::Granted;

mod decide;
mod hear;
#[cfg(test)]
mod tests;
mod values;
mod words;

pub use values::{Deadlines, End, EndReason, Life, Moment, State};

/// One life of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Which life.
    pub id: RunId,
    /// Where it stands.
    pub state: State,
    /// When it got there.
    pub since: Moment,
    /// When it was asked for.
    pub requested_at: Moment,
    /// Seconds that the server may live, from its launch.
    pub walltime_s: u64,
    /// The sites that can take it, best first; an attempt at each in turn.
    pub plan: Vec<Choice>,
    /// All attempts; the last is the current one. At most one is not fenced.
    pub tries: Vec<Try>,
    /// Why it is to end, once that was asked.
    pub stop: Option<Stop>,
    /// When the launch order of the attempt that was launched last went out last while no server was known to run there.
    pub launched_at: Option<Moment>,
    /// When the server first answered.
    pub ready_at: Option<Moment>,
    /// How it ended.
    pub end: Option<End>,
    /// From when the current state's deadline counts: `since`, or the last start of the service.
    clock: Moment,
}

/// A site that placement found fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// Its name.
    pub site: SiteName,
    /// What users read.
    pub title: String,
    /// What the user is granted of its time.
    #[serde(default)]
    pub granted: Granted,
}

/// That and why a run is to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// The reason that its end will carry.
    pub reason: EndReason,
    /// In a sentence for the user.
    pub why: String,
    /// At once instead of kindly.
    pub now: bool,
    /// When it was asked.
    pub at: Moment,
}

/// One submit of the run to one site, and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Try {
    /// Counts from 1.
    pub number: u32,
    /// Where.
    pub at: Choice,
    /// When it was begun.
    pub begun: Moment,
    /// What became of the submit.
    pub submit: Submit,
    /// When last a submit returned, its job was seen or its agent came home: only a list that was asked for later and
    /// lacks the job says that it is gone.
    pub heard_of: Option<Moment>,
    /// True once it may not attach: another attempt follows, or the run is over.
    pub fenced: bool,
    /// True once its agent has been home.
    pub linked: bool,
    /// Why it failed, for the user.
    pub trouble: Option<String>,
    /// What the last successful list said of its job.
    pub job: Job,
    /// When the site stopped answering, while it does not.
    pub silent_since: Option<Moment>,
    /// True once the backend has taken a cancel.
    pub cancelled: bool,
    /// True once nothing is left of it at the site.
    pub cleaned: bool,
    #[serde(skip)]
    now: Now,
}

/// What a submit came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Submit {
    /// Asked, or about to be.
    Asked,
    /// There may be a job or not; asking again is harmless.
    Unsure,
    /// The batch system has it.
    Done,
    /// The batch system said no: there is no job.
    Refused,
    /// It was not asked, since the site's limits have no place left: there is no job.
    NoPlace,
}

impl Submit {
    /// True when there is no job for sure.
    #[must_use]
    pub fn made_nothing(self) -> bool {
        matches!(self, Self::Refused | Self::NoPlace)
    }
}

/// What lists say of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Job {
    /// Nothing yet.
    NotSeen,
    /// It waits for a slot.
    Queued {
        /// Place in the queue, from 1, when known.
        position: Option<u32>,
        /// Seconds until it starts, when known.
        predicted_wait_s: Option<u32>,
    },
    /// It has a slot.
    Running,
    /// Alive and not going on, in the system's words.
    Stuck(String),
    /// Over, or not in a whole and successful list.
    Gone {
        /// How it ended, when the system tells.
        end: Option<JobEnd>,
        /// When that was seen first.
        at: Moment,
    },
}

/// What is known only while this service runs: after a restart it is found out anew.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Now {
    submitting: bool,
    submit_again: Option<Moment>,
    link: LinkNow,
    launch_sent: bool,
    stop_sent: bool,
    close_sent: bool,
    phase: Option<Phase>,
    lines: Vec<String>,
    answer: Option<Answer>,
    cancel_asked: Option<(Asked, CancelHow)>,
    forget_asked: Option<Asked>,
}

/// When something was asked last, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asked {
    at: Moment,
    times: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum LinkNow {
    #[default]
    None,
    Up,
    Down(Moment),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Status(u16),
    Silent(String),
}

/// What an agent says of its server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// No launch order yet.
    Waiting,
    /// The process runs; nothing listens yet.
    Starting,
    /// Its socket takes connections.
    Listening,
    /// It was told to end and has not yet.
    Ending,
    /// It ended, or could not be started.
    Ended(ServerEnd),
}

/// How a server ended, in its agent's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerEnd {
    /// Its exit code, when it exited.
    pub exit_code: Option<i32>,
    /// The signal that killed it, when one did.
    pub signal: Option<i32>,
    /// Why the agent ended it or could not start it; plain text.
    pub why: Option<String>,
    /// The same as a word.
    pub cause: EndCause,
}

/// What brought a server's end about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndCause {
    /// It exited or was killed, and nobody here asked for that.
    ByItself,
    /// Home or the batch system asked for it.
    Asked,
    /// It lived as long as it was granted.
    Walltime,
    /// Nothing in it was active for too long.
    Idle,
    /// A kernel computed for too long with nobody connected.
    Unattended,
    /// Home was absent for too long.
    HomeAbsent,
    /// It could not be started at all.
    CannotStart,
}

/// What was seen or asked. The number is the attempt's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A submit returned: the batch system has the job.
    SubmitDone(u32),
    /// A submit returned: no, and there is no job.
    SubmitRefused(u32, String),
    /// No submit was made: others took the last place that the site's limits allow.
    NoPlace(u32, String),
    /// A submit returned nothing that was understood.
    SubmitUnknown(u32, String),
    /// A list showed the job.
    JobSeen(u32, JobState),
    /// A whole and successful list, asked for at that moment, did not have it.
    JobAbsent(u32, Moment),
    /// The site did not answer.
    SiteSilent(u32),
    /// The backend took a cancel.
    CancelDone(u32),
    /// The backend keeps nothing of it any more.
    ForgetDone(u32),
    /// Its agent has a new link home.
    Linked(u32),
    /// That link has no lane at present.
    LinkCut(u32),
    /// That link has a lane again.
    LinkBack(u32),
    /// That link is over; the agent may come with another.
    LinkClosed(u32),
    /// The agent reported, with the server's last lines.
    Report(u32, Phase, Vec<String>),
    /// The server answered a probe with this status.
    Answered(u32, u16),
    /// The server did not answer a probe, and why.
    Silent(u32, String),
    /// The run is to end.
    StopAsked {
        /// The sentence for the user.
        why: String,
        /// At once instead of kindly.
        now: bool,
    },
    /// Time has passed.
    Tick,
}

/// What is to be done, once the new state is written down. The number is the attempt's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Hand it to the batch system; may be asked again.
    Submit(u32),
    /// Ask for the end of its job and all it left; may be asked again.
    Cancel(u32, CancelHow),
    /// Let the batch system forget its ended job; may be asked again.
    Forget(u32),
    /// Send the launch order over its link.
    SendLaunch(u32),
    /// Tell the agent to end its server kindly, with the sentence for its log.
    SendStop(u32, String),
    /// Close its link for good, with the reason for the agent.
    CloseLink(u32, String),
    /// The site failed in this attempt; placement should know.
    SiteFailed {
        /// The attempt.
        number: u32,
        /// In a sentence.
        why: String,
        /// True when it may be this request's own matter: refused, or its command is not there.
        personal: bool,
    },
    /// The site did well in this attempt.
    SiteDidWell(u32),
    /// No attempt needs the launch order again.
    EraseOrder,
}

impl Run {
    /// A run that was asked for, with the sites that can take it, best first.
    #[must_use]
    pub fn requested(id: RunId, plan: Vec<Choice>, walltime_s: u64, now: Moment) -> Self {
        Self {
            id,
            state: State::Requested,
            since: now,
            requested_at: now,
            walltime_s,
            plan,
            tries: Vec::new(),
            stop: None,
            launched_at: None,
            ready_at: None,
            end: None,
            clock: now,
        }
    }

    /// Takes one event in. What comes out is to be done after the new state has been written down.
    pub fn step(&mut self, event: Event, now: Moment, deadlines: &Deadlines) -> Vec<Effect> {
        self.hear(event, now);
        self.decide(now, deadlines)
    }

    /// Goes on after the service was started again: links, probes and calls under way are gone with the old process,
    /// and the time that nobody watched counts for no deadline of dialling, starting or stopping.
    pub fn resume(&mut self, now: Moment, deadlines: &Deadlines) -> Vec<Effect> {
        self.clock = match self.state {
            State::Requested | State::Placed | State::Submitting | State::Queued | State::Ended => self.clock,
            State::Dialling | State::Starting | State::Ready | State::Stopping => self.clock.max(now),
        };
        for attempt in &mut self.tries {
            attempt.now = Now::default();
            attempt.heard_of.get_or_insert(now);
            if attempt.linked {
                attempt.now.link = LinkNow::Down(now);
            }
        }
        self.decide(now, deadlines)
    }

    /// The current attempt, if there was one.
    #[must_use]
    pub fn current(&self) -> Option<&Try> {
        self.tries.last()
    }

    /// The attempt with this number.
    #[must_use]
    pub fn attempt(&self, number: u32) -> Option<&Try> {
        self.tries.iter().find(|attempt| attempt.number == number)
    }

    /// True when it is over and nothing is left of it at any site.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.state == State::Ended && self.tries.iter().all(|attempt| attempt.cleaned)
    }

    /// When its walltime is over; `None` unless its server runs.
    #[must_use]
    pub fn lives_until(&self) -> Option<Moment> {
        let runs = matches!(self.state, State::Ready | State::Stopping);
        let from = self.launched_at.or(self.ready_at).filter(|_| runs)?;
        Some(from.after(Duration::from_secs(self.walltime_s)))
    }

    /// The attempt whose server should be asked whether it answers.
    #[must_use]
    pub fn probes(&self) -> Option<u32> {
        let current = self.current().filter(|_| self.state == State::Starting)?;
        (current.now.phase == Some(Phase::Listening) && current.now.link != LinkNow::None)
            .then_some(current.number)
    }

    /// True while its site should be listed often: something starts, stops or is being cleaned up. What takes long
    /// is looked at as seldom as what is calm.
    #[must_use]
    pub fn is_moving(&self, now: Moment) -> bool {
        match self.state {
            State::Ready => self.current().is_some_and(|attempt| match attempt.now.link {
                LinkNow::Down(since) => now.since(since) < HURRY,
                LinkNow::None | LinkNow::Up => false,
            }),
            State::Queued => now.since(self.since) < HURRY,
            State::Ended => !self.is_settled() && now.since(self.since) < HURRY,
            State::Requested
            | State::Placed
            | State::Submitting
            | State::Dialling
            | State::Starting
            | State::Stopping => true,
        }
    }
}

/// How long a change is awaited eagerly.
const HURRY: Duration = Duration::from_secs(60);

impl Try {
    fn begin(number: u32, at: Choice, now: Moment) -> Self {
        Self {
            number,
            at,
            begun: now,
            submit: Submit::Asked,
            heard_of: None,
            fenced: false,
            linked: false,
            trouble: None,
            job: Job::NotSeen,
            silent_since: None,
            cancelled: false,
            cleaned: false,
            now: Now::default(),
        }
    }

    /// True while its agent's link has a lane.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.now.link == LinkNow::Up
    }
}
