use std::time::Duration;

use super::*;
use crate::backend::{CancelHow, JobEnd, JobState};
use crate::names::{RunId, SiteName};
use crate::policy::{Bound, Granted};

mod any_order;

const WALLTIME_S: u64 = 7200;

fn deadlines() -> Deadlines {
    let s = Duration::from_secs;
    Deadlines { queued: s(3600), dialling: s(120), starting: s(180), doubt: s(60), grace: s(10) }
}

fn choice(site: &str) -> Choice {
    Choice { site: SiteName::parse(site).unwrap(), title: site.to_uppercase(), granted: Granted::default() }
}

/// A run and the time, told like a story.
#[derive(Clone)]
struct Story {
    run: Run,
    now: Moment,
    out: Vec<Effect>,
}

impl Story {
    fn at(sites: &[&str]) -> Self {
        let now = Moment(1_700_000_000_000);
        let id = RunId::from_parts(now.0, 7);
        let run = Run::requested(id, sites.iter().map(|site| choice(site)).collect(), WALLTIME_S, now);
        let mut story = Self { run, now, out: vec![] };
        story.hears(Event::Tick);
        story
    }

    fn hears(&mut self, event: Event) -> &mut Self {
        self.out = self.run.step(event, self.now, &deadlines());
        self
    }

    /// A list that was asked for now does not have the job.
    fn hears_absent(&mut self, number: u32) -> &mut Self {
        self.hears(Event::JobAbsent(number, self.now.after(Duration::from_millis(1))))
    }

    fn after(&mut self, seconds: u64) -> &mut Self {
        self.now = self.now.after(Duration::from_secs(seconds));
        self.hears(Event::Tick)
    }

    fn queued(sites: &[&str]) -> Self {
        let mut story = Self::at(sites);
        story.hears(Event::SubmitDone(1));
        story
    }

    fn starting(sites: &[&str]) -> Self {
        let mut story = Self::queued(sites);
        story.hears(running(1)).hears(Event::Linked(1));
        story
    }

    fn ready(sites: &[&str]) -> Self {
        let mut story = Self::starting(sites);
        story.hears(Event::Report(1, Phase::Listening, vec!["ready to serve".to_owned()]));
        story.hears(Event::Answered(1, 200));
        assert_eq!(story.run.state, State::Ready);
        story
    }

    fn end(&self) -> &End {
        self.run.end.as_ref().expect("it ended")
    }
}

fn running(n: u32) -> Event {
    Event::JobSeen(n, JobState::Running { direct: None })
}

fn ended(code: Option<i32>, signal: Option<i32>, cause: EndCause) -> Phase {
    Phase::Ended(ServerEnd { exit_code: code, signal, why: None, cause })
}

#[test]
fn a_run_goes_through_its_states_in_order() {
    let mut story = Story::at(&["here"]);
    assert_eq!(story.run.state, State::Submitting);
    assert_eq!(story.out, [Effect::Submit(1)]);
    assert_eq!(story.hears(Event::SubmitDone(1)).run.state, State::Queued);
    assert_eq!(story.hears(running(1)).run.state, State::Dialling);
    assert_eq!(story.hears(Event::Linked(1)).out, [Effect::SendLaunch(1)]);
    assert_eq!(story.run.state, State::Starting);
    assert_eq!(story.run.probes(), None, "nothing listens yet");
    story.hears(Event::Report(1, Phase::Listening, vec![]));
    assert_eq!(story.run.probes(), Some(1));
    assert_eq!(story.hears(Event::Answered(1, 500)).run.state, State::Starting, "500 is no life");
    assert_eq!(story.hears(Event::Answered(1, 302)).run.state, State::Ready);
    story.hears(Event::StopAsked { why: "it was stopped".to_owned(), now: false });
    assert_eq!(story.run.state, State::Stopping);
    assert_eq!(story.out, [Effect::SendStop(1, "it was stopped".to_owned())]);
    story.hears(Event::Report(1, ended(Some(0), None, EndCause::Asked), vec![]));
    assert_eq!(story.out, [Effect::Cancel(1, CancelHow::Kindly)], "whatever it left is removed");
    story.hears(Event::CancelDone(1)).hears_absent(1);
    assert_eq!((story.run.state, story.end().reason), (State::Ended, EndReason::Stopped));
    assert!(story.out.contains(&Effect::Forget(1)), "{:?}", story.out);
    story.hears(Event::ForgetDone(1));
    assert!(story.run.is_settled());
}

#[test]
fn an_agent_that_dials_before_its_submit_returns_is_taken() {
    let mut story = Story::at(&["here"]);
    story.hears(Event::Linked(1));
    assert_eq!(story.run.state, State::Starting);
    story.hears(Event::SubmitUnknown(1, "timeout".to_owned()));
    assert_eq!(story.run.state, State::Starting);
}

#[test]
fn a_refused_submit_goes_to_the_next_site_and_the_last_refusal_ends() {
    let mut story = Story::at(&["here", "far"]);
    story.hears(Event::SubmitRefused(1, "no account for ada".to_owned()));
    assert_eq!(story.run.state, State::Submitting);
    assert!(story.out.contains(&Effect::Submit(2)), "{:?}", story.out);
    assert!(!story.out.iter().any(|e| matches!(e, Effect::Cancel(1, _))), "there is no job to cancel");
    story.hears(Event::SubmitRefused(2, "too large".to_owned()));
    assert_eq!(story.end().reason, EndReason::Refused);
    assert!(story.end().message.contains("too large"), "{}", story.end().message);
    assert!(story.end().message.contains("no account for ada"), "{}", story.end().message);
}

#[test]
fn a_full_site_is_left_for_the_next_and_not_blamed() {
    let mut story = Story::at(&["here", "far"]);
    story.hears(Event::NoPlace(1, "all places are taken".to_owned()));
    assert_eq!(story.out, [Effect::Submit(2)], "no job to cancel, and no site that failed");
    story.hears(Event::SubmitRefused(2, "too large".to_owned()));
    assert!(story.end().message.contains("HERE: all places are taken"), "{}", story.end().message);
    assert!(story.run.is_settled());
}

#[test]
fn an_unsure_submit_is_asked_again_as_the_same_attempt() {
    let mut story = Story::at(&["here"]);
    story.hears(Event::SubmitUnknown(1, "no answer".to_owned()));
    assert_eq!(story.out, [], "not at once");
    assert_eq!(story.after(5).out, [Effect::Submit(1)]);
    assert!(story.run.message().contains("not answering"));
}

#[test]
fn a_site_that_stays_silent_is_left_for_the_next_and_cleaned_up_later() {
    let mut story = Story::at(&["here", "far"]);
    story.hears(Event::SubmitUnknown(1, "no answer".to_owned()));
    story.after(61);
    assert!(story.out.contains(&Effect::Submit(2)), "{:?}", story.out);
    assert!(story.out.contains(&Effect::Cancel(1, CancelHow::Kindly)), "{:?}", story.out);
    assert!(story.run.tries[0].fenced);
}

#[test]
fn no_dial_home_within_the_deadline_tries_the_next_site() {
    let mut story = Story::queued(&["here", "far"]);
    story.hears(running(1)).after(119);
    assert_eq!(story.run.state, State::Dialling);
    story.after(2);
    assert_eq!(story.run.current().unwrap().number, 2);
    story.hears(Event::Linked(1));
    assert_ne!(story.run.state, State::Starting, "the fenced agent comes too late");
}

#[test]
fn a_lone_site_without_a_dial_home_ends_by_its_deadline() {
    let mut story = Story::queued(&["here"]);
    story.hears(running(1)).after(121);
    assert_eq!(story.end().reason, EndReason::DialDeadline);
    assert!(story.end().message.contains("within 2 minutes"), "{}", story.end().message);
}

#[test]
fn a_job_that_goes_before_its_agent_is_home_tries_the_next_site() {
    let mut story = Story::queued(&["here", "far"]);
    story.hears(Event::JobAbsent(1, Moment(0)));
    assert_eq!(story.run.current().unwrap().number, 1, "that list was asked for before the submit returned");
    story.hears_absent(1);
    assert_eq!(story.run.current().unwrap().number, 2);
}

#[test]
fn a_server_that_exits_before_it_is_ready_is_not_tried_elsewhere() {
    let mut story = Story::starting(&["here", "far"]);
    story.hears(Event::Report(1, ended(Some(3), None, EndCause::ByItself), vec!["boom".to_owned()]));
    assert_eq!((story.end().reason, story.end().exit_code), (EndReason::Exited, Some(3)));
    assert_eq!(story.end().last_lines, ["boom"]);
}

#[test]
fn a_command_that_is_missing_at_a_site_is_tried_elsewhere() {
    let mut story = Story::starting(&["here", "far"]);
    story.hears(Event::Report(1, ended(None, None, EndCause::CannotStart), vec![]));
    assert_eq!(story.run.current().unwrap().number, 2);
}

#[test]
fn an_agent_lost_while_starting_is_tried_elsewhere() {
    let mut story = Story::starting(&["here", "far"]);
    story.hears(Event::LinkCut(1)).hears_absent(1);
    assert_eq!(story.run.state, State::Starting, "its last report may be on its way");
    story.after(2);
    assert_eq!(story.run.current().unwrap().number, 2);
}

#[test]
fn the_walltime_of_a_second_attempt_counts_from_its_own_launch() {
    let mut story = Story::starting(&["here", "far"]);
    let walltime_s = 600;
    story.run.walltime_s = walltime_s;
    story.hears(Event::Report(1, ended(None, None, EndCause::CannotStart), vec![]));
    story.hears(Event::SubmitDone(2)).after(walltime_s + 60);
    story.hears(running(2)).hears(Event::Linked(2));
    story.hears(Event::Report(2, Phase::Listening, vec![])).hears(Event::Answered(2, 200));
    assert_eq!(story.run.state, State::Ready, "it has just begun to live");
    assert_eq!(story.after(walltime_s).run.state, State::Ready);
    assert_eq!(story.after(11).run.state, State::Stopping);
}

#[test]
fn a_server_that_only_answers_500_ends_by_the_deadline_and_says_so() {
    let mut story = Story::starting(&["here", "far"]);
    story.hears(Event::Report(1, Phase::Listening, vec!["traceback".to_owned()]));
    story.hears(Event::Answered(1, 503)).after(181);
    assert_eq!(story.end().reason, EndReason::StartDeadline);
    assert!(story.end().message.contains("503"), "{}", story.end().message);
    assert_eq!(story.end().last_lines, ["traceback"]);
}

#[test]
fn a_killed_agent_ends_a_ready_run_with_what_is_known() {
    let mut story = Story::ready(&["here", "far"]);
    story.hears(Event::LinkCut(1));
    let end = JobEnd { exit_code: None, signal: Some(9), detail: None };
    story.hears(Event::JobSeen(1, JobState::Ended(end))).after(2);
    assert_eq!((story.end().reason, story.end().signal), (EndReason::AgentLost, Some(9)));
    assert_eq!(story.end().last_lines, ["ready to serve"]);
    assert!(
        story.out.contains(&Effect::Cancel(1, CancelHow::Kindly)),
        "leftovers are removed: {:?}",
        story.out
    );
}

#[test]
fn a_killed_server_ends_at_once_with_its_signal() {
    let mut story = Story::ready(&["here"]);
    story.hears(Event::Report(1, ended(None, Some(9), EndCause::ByItself), vec!["oops".to_owned()]));
    assert_eq!((story.end().reason, story.end().signal), (EndReason::Killed, Some(9)));
}

#[test]
fn an_agent_that_is_heard_is_believed_rather_than_its_batch_system() {
    let mut story = Story::ready(&["here"]);
    story.hears_absent(1).after(3600);
    assert_eq!(story.run.state, State::Ready);
    story.hears(running(1)).after(60);
    assert_eq!(story.run.state, State::Ready, "it was seen again");
    story.hears_absent(1).after(60).hears(Event::LinkCut(1)).after(59);
    assert_eq!(story.run.state, State::Ready, "it was heard after that list, and may come back");
    story.hears(Event::LinkBack(1)).after(60).hears(Event::LinkCut(1)).after(59);
    assert_eq!(story.run.state, State::Ready, "it came back");
    story.after(2);
    assert_eq!(story.end().reason, EndReason::AgentLost, "neither its job nor its agent is heard of");
}

#[test]
fn an_agent_that_contradicted_its_batch_system_may_come_back_after_a_restart_of_the_service() {
    let mut story = Story::ready(&["here"]);
    story.hears_absent(1).after(600);
    story.run = reread(&story.run);
    story.run.resume(story.now, &deadlines());
    assert_eq!(story.after(50).run.state, State::Ready);
    story.hears(Event::Linked(1)).after(600);
    assert_eq!(story.run.state, State::Ready);
}

#[test]
fn a_cut_link_leaves_a_ready_server_ready_and_says_since_when() {
    let mut story = Story::ready(&["here"]);
    story.hears(Event::LinkCut(1)).after(300);
    assert_eq!(story.run.state, State::Ready);
    assert!(story.run.message().contains("not answering since"));
    assert_eq!(story.run.life(story.now, &deadlines()), Life::Alive, "its job is known to run");
    story.hears(Event::SiteSilent(1)).after(300);
    assert_eq!(story.run.life(story.now, &deadlines()), Life::Unknown);
    story.hears(Event::LinkBack(1));
    assert_eq!(story.run.life(story.now, &deadlines()), Life::Alive);
}

#[test]
fn the_service_ends_what_outlives_its_walltime() {
    let mut story = Story::ready(&["here"]);
    story.after(WALLTIME_S + 11);
    assert_eq!(story.run.state, State::Stopping);
    story.hears(Event::Report(1, ended(Some(0), None, EndCause::Walltime), vec![]));
    story.hears_absent(1);
    assert_eq!(story.end().reason, EndReason::Walltime);
}

#[test]
fn a_server_that_its_agent_ended_is_told_with_the_limit_and_whose_it_is() {
    let bound = |most| Some(Bound { most, group: Some("staff".to_owned()) });
    let with = |cause, stopped: bool| {
        let mut story = Story::ready(&["here"]);
        for attempt in &mut story.run.tries {
            attempt.at.granted =
                Granted { idle_s: bound(3600), unattended_s: bound(86_400), ..Granted::default() };
        }
        if stopped {
            story.hears(Event::LinkCut(1));
            story.hears(Event::StopAsked { why: "bye".to_owned(), now: false });
            story.hears(Event::LinkBack(1));
        }
        story.hears(Event::Report(1, ended(Some(0), None, cause), vec![]));
        story.hears_absent(1);
        (story.end().reason, story.end().message.clone())
    };
    let idle = "no kernel, terminal or notebook of the server was active for 1 hour, the limit of HERE (for members of \
                staff)";
    assert_eq!(with(EndCause::Idle, false), (EndReason::Idle, idle.to_owned()));
    assert_eq!(with(EndCause::Idle, true).0, EndReason::Idle, "it had ended when the stop was asked");
    let alone = "a kernel of the server computed for 1 day with nobody connected, the limit of HERE (for members of staff)";
    assert_eq!(with(EndCause::Unattended, false), (EndReason::Unattended, alone.to_owned()));
    assert_eq!(with(EndCause::Asked, true).0, EndReason::Stopped);
}

#[test]
fn an_agent_that_was_never_heard_again_tells_by_its_exit_code_why_it_ended_its_server() {
    for (code, reason) in [(81, EndReason::Walltime), (82, EndReason::Idle), (83, EndReason::Unattended)] {
        let mut story = Story::ready(&["here"]);
        story.hears(Event::LinkCut(1));
        let end = JobEnd { exit_code: Some(code), signal: None, detail: None };
        story.hears(Event::JobSeen(1, JobState::Ended(end))).after(5);
        assert_eq!(story.end().reason, reason);
    }
}

#[test]
fn a_stop_becomes_less_kind_with_time() {
    let mut story = Story::ready(&["here"]);
    story.hears(Event::StopAsked { why: "bye".to_owned(), now: false });
    assert_eq!(story.out, [Effect::SendStop(1, "bye".to_owned())]);
    assert_eq!(story.after(12).out, [Effect::Cancel(1, CancelHow::Kindly)]);
    assert_eq!(story.after(10).out, [Effect::Cancel(1, CancelHow::Now)]);
    story.after(200);
    assert_eq!((story.run.state, story.end().reason), (State::Ended, EndReason::Stopped));
    assert!(!story.run.is_settled(), "its job is still to be cleaned up");
}

#[test]
fn a_stop_at_once_does_not_ask_the_agent() {
    let mut story = Story::ready(&["here"]);
    story.hears(Event::StopAsked { why: "bye".to_owned(), now: true });
    assert_eq!(story.out, [Effect::Cancel(1, CancelHow::Now)]);
}

#[test]
fn a_cancel_during_the_submit_waits_for_its_answer_and_leaves_no_job() {
    let mut story = Story::at(&["here"]);
    story.hears(Event::StopAsked { why: "bye".to_owned(), now: false });
    assert_eq!((story.run.state, story.out.len()), (State::Stopping, 0));
    story.hears(Event::SubmitDone(1));
    assert_eq!(story.out, [Effect::Cancel(1, CancelHow::Kindly)]);
    story.hears(Event::CancelDone(1)).hears_absent(1);
    assert_eq!(story.end().reason, EndReason::Cancelled);
}

#[test]
fn the_time_that_nobody_watched_counts_for_no_deadline_of_dialling() {
    let mut story = Story::queued(&["here"]);
    story.hears(running(1));
    story.now = story.now.after(Duration::from_secs(1000));
    story.run.resume(story.now, &deadlines());
    assert_eq!(story.run.state, State::Dialling);
    assert_eq!(story.after(119).run.state, State::Dialling);
    assert_eq!(story.after(2).run.state, State::Ended);
}

#[test]
fn a_run_that_was_being_submitted_is_submitted_again_as_the_same_attempt() {
    let story = Story::at(&["here"]);
    let mut read = reread(&story.run);
    assert_eq!(read.resume(story.now, &deadlines()), [Effect::Submit(1)]);
}

#[test]
fn an_attempt_that_is_begun_when_the_queue_deadline_is_over_leaves_nothing_to_clean_up() {
    let mut story = Story::at(&["here", "far"]);
    story.now = story.now.after(deadlines().queued);
    story.hears(Event::SubmitRefused(1, "no".to_owned()));
    assert_eq!(story.end().reason, EndReason::QueueDeadline);
    assert!(story.run.is_settled(), "the second site was never asked: {:?}", story.run.tries);
}

#[test]
fn the_walltime_counts_from_the_launch_order_that_came_through() {
    let mut story = Story::starting(&["here"]);
    story.run = reread(&story.run); // the service died with the order in its hands
    story.now = story.now.after(Duration::from_secs(WALLTIME_S - 60));
    story.run.resume(story.now, &deadlines());
    assert_eq!(story.hears(Event::Linked(1)).out, [Effect::SendLaunch(1)]);
    story.hears(Event::Report(1, Phase::Listening, vec![])).hears(Event::Answered(1, 200));
    assert_eq!(story.after(WALLTIME_S).run.state, State::Ready, "its server lives since the second order");
    assert_eq!(story.after(11).run.state, State::Stopping);
}

#[test]
fn a_list_that_was_asked_for_before_the_job_was_seen_does_not_say_that_it_is_gone() {
    let mut story = Story::at(&["here", "far"]);
    story.hears(Event::SubmitUnknown(1, "no answer".to_owned()));
    let asked = story.now.after(Duration::from_secs(1));
    story.now = story.now.after(Duration::from_secs(2));
    story.hears(running(1)).hears(Event::JobAbsent(1, asked));
    assert_eq!((story.run.state, story.run.tries.len()), (State::Dialling, 1));
    story.hears_absent(1);
    assert_eq!(story.run.tries.len(), 2);
}

#[test]
fn a_list_that_was_asked_for_before_the_agent_came_home_does_not_say_that_its_job_is_gone() {
    let mut story = Story::at(&["here", "far"]);
    story.hears(Event::SubmitUnknown(1, "no answer".to_owned()));
    let asked = story.now.after(Duration::from_secs(1));
    story.now = story.now.after(Duration::from_secs(2));
    story.hears(Event::Linked(1)).hears(Event::JobAbsent(1, asked)).hears(Event::LinkCut(1)).after(2);
    assert_eq!(story.run.state, State::Starting);
}

#[test]
fn an_agent_that_is_home_only_after_its_attempt_was_fenced_is_sent_away() {
    let mut story = Story::queued(&["here", "far"]);
    story.hears(running(1)).after(121);
    assert!(story.run.tries[0].fenced);
    assert_eq!(story.hears(Event::Linked(1)).out, [Effect::CloseLink(1, "this attempt is over".to_owned())]);
    assert!(!story.run.tries[0].linked);
}

#[test]
fn an_agent_of_a_refused_submit_shows_that_there_is_a_job_to_clean_up() {
    let mut story = Story::at(&["here", "far"]);
    story.hears(Event::SubmitRefused(1, "no".to_owned()));
    assert!(story.run.tries[0].cleaned);
    story.hears(Event::Linked(1));
    assert!(story.out.contains(&Effect::Cancel(1, CancelHow::Kindly)), "{:?}", story.out);
}

fn reread(run: &Run) -> Run {
    serde_json::from_str(&serde_json::to_string(run).unwrap()).unwrap()
}
