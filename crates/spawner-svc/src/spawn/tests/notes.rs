//! What the operator hears of the life cycle: one line and one count for each refusal, retry, doubt and repair.

use std::time::Duration;

use glidepath_domain::backend::{Backend as _, JobEnd, JobLabel, JobSpec, JobState};
use glidepath_domain::names::RunId;
use glidepath_domain::run::State;
use glidepath_domain::site::Limits;
use glidepath_testkit::backend::FakeBackend;
use glidepath_testkit::log::Log;
use glidepath_testkit::wait::{holds, until};
use secrecy::SecretString;
use serde_json::Value;

use super::house::{Agent, House, LONG, Plan, Server, attempt, key, order};
use crate::notable::{Doubt, Notable, Refusal, Repair, Retry};

/// The one line of this, which was counted once too.
fn once(log: &Log, house: &House, what: impl Notable) -> Value {
    let entry = what.entry();
    let mut lines = log.of(entry.kind.word(), entry.what, entry.reason);
    lines.retain(|line| line["lasted_s"].is_null());
    assert_eq!((lines.len(), house.notes.counted(what)), (1, 1), "{entry:?}: {lines:?}");
    lines.remove(0)
}

/// The lines that say that this is over.
fn over(log: &Log, what: Doubt) -> usize {
    let entry = what.entry();
    let lines = log.of("doubt", entry.what, entry.reason);
    lines.iter().filter(|line| line["lasted_s"].is_u64()).count()
}

async fn ready(backend: &FakeBackend) -> (House, Agent) {
    let house = House::with(backend).await;
    let run = house.start("ada").await.view.run;
    house.reaches("ada", State::Dialling).await;
    let agent = Agent::of(backend, attempt(run, 1), Server::Answers(200));
    house.reaches("ada", State::Ready).await;
    (house, agent)
}

#[tokio::test]
async fn a_silent_site_is_a_doubt_that_begins_once_and_ends_once_however_often_it_is_asked() {
    let log = Log::begin();
    let backend = FakeBackend::queueing();
    let mut plan = Plan::with(&[("here", &backend)]);
    plan.deadlines.doubt = Duration::from_millis(300);
    let house = House::build(plan).await;
    let run = house.start("ada").await.view.run;
    house.reaches("ada", State::Queued).await;
    backend.silent(true);
    let open = || house.notes.open().iter().filter(|(_, _, open)| *open > 0).count();
    until(LONG, "three doubts stand", || async { open() == 3 }).await;
    let asked = backend.lists();
    until(LONG, "it is asked again and again", || async { backend.lists() > asked + 5 }).await;
    let line = once(&log, &house, Doubt::SiteSilent);
    assert_eq!((line["site"].as_str(), line["level"].as_str()), (Some("here"), Some("WARN")));
    once(&log, &house, Doubt::SiteUnlisted);
    let line = once(&log, &house, Doubt::RunUnknown);
    assert_eq!(
        (line["run"].as_str(), line["server.key"].as_str()),
        (Some(&*run.to_string()), Some("main.ada."))
    );
    assert!(line["why"].as_str().unwrap().contains("the site is not answering since"), "{line}");
    backend.silent(false);
    until(LONG, "no doubt stands", || async { open() == 0 }).await;
    for what in [Doubt::SiteSilent, Doubt::SiteUnlisted, Doubt::RunUnknown] {
        once(&log, &house, what);
        assert_eq!(over(&log, what), 1, "{what:?}");
    }
}

#[tokio::test]
async fn a_site_that_refuses_is_told_and_so_is_the_attempt_that_moves_on() {
    let log = Log::begin();
    let (first, second) = (FakeBackend::refusing("no account"), FakeBackend::queueing());
    let house = House::build(Plan::with(&[("here", &first), ("far", &second)])).await;
    let run = house.start("ada").await.view.run;
    house.reaches("ada", State::Queued).await;
    let line = once(&log, &house, Refusal::SubmitRefused);
    assert_eq!((line["site"].as_str(), line["why"].as_str()), (Some("here"), Some("no account")));
    let line = once(&log, &house, Retry::NextRefused);
    assert_eq!((line["run"].as_str(), line["attempt"].as_u64()), (Some(&*run.to_string()), Some(1)));
    assert_eq!(line["next"], "the next site is tried");
    assert_eq!(house.notes.counted(Refusal::SubmitNoPlace), 0);
}

#[tokio::test]
async fn each_way_to_the_next_site_has_its_own_reason() {
    for (what, spoil) in [
        (Retry::NextSilent, "silent"),
        (Retry::NextLost, "lost"),
        (Retry::NextNotHome, "not home"),
        (Retry::NextNotStarted, "not started"),
    ] {
        let log = Log::begin();
        let (first, second) = (FakeBackend::accepting(), FakeBackend::queueing());
        let mut plan = Plan::with(&[("here", &first), ("far", &second)]);
        match spoil {
            "silent" => {
                first.fail_submits(Some("no answer"));
                plan.deadlines.doubt = Duration::from_millis(500);
            }
            "lost" => first.hold_in_queue(true),
            "not home" => plan.deadlines.dialling = Duration::from_millis(300),
            _ => {}
        }
        let house = House::build(plan).await;
        let run = house.start("ada").await.view.run;
        let mut agent = None;
        match spoil {
            "lost" => {
                house.reaches("ada", State::Queued).await;
                first.end(attempt(run, 1), JobEnd::default());
            }
            "not started" => {
                house.reaches("ada", State::Dialling).await;
                agent = Some(Agent::of(&first, attempt(run, 1), Server::CannotStart));
            }
            _ => {}
        }
        until(LONG, spoil, || async { house.notes.counted(what) == 1 }).await;
        let line = once(&log, &house, what);
        assert_eq!((line["site"].as_str(), line["attempt"].as_u64()), (Some("here"), Some(1)), "{line}");
        assert!(line["why"].is_string(), "{line}");
        drop(agent);
    }
}

#[tokio::test]
async fn a_full_site_a_lost_reply_and_a_site_that_rests_are_told() {
    let log = Log::begin();
    let (first, second) = (FakeBackend::accepting(), FakeBackend::queueing());
    first.lose_submit_replies(1);
    let mut plan = Plan::with(&[("here", &first), ("far", &second)]);
    plan.sites[1].2 = Limits { servers: Some(1), ..Limits::default() };
    let house = House::build(plan).await;
    house.start("ada").await;
    house.reaches("ada", State::Dialling).await;
    let line = once(&log, &house, Retry::SubmitAgain);
    assert_eq!(line["next"], "the same is submitted again; there will be one job");
    first.refuse_submits(Some("closed for work"));
    for user in ["bob", "eve", "joe"] {
        house.start(user).await;
    }
    until(LONG, "the site rests", || async { house.notes.counted(Retry::SiteRests) == 1 }).await;
    let line = once(&log, &house, Retry::SiteRests);
    assert!(line["why"].as_str().unwrap().starts_with("for 30 s: "), "{line}");
    until(LONG, "the other one is full", || async { house.notes.counted(Refusal::SubmitNoPlace) == 2 }).await;
    assert_eq!(log.of("refusal", "submit", "no_place").len(), 2, "bob has the one place");
}

#[tokio::test]
async fn agents_that_are_not_let_in_are_told_with_the_reason() {
    let log = Log::begin();
    let backend = FakeBackend::accepting();
    let (house, agent) = ready(&backend).await;
    let run = house.view("ada").run;
    let mut thief = Agent::of(&backend, attempt(run, 1), Server::Answers(200));
    (&mut thief.end).await.unwrap();
    let line = once(&log, &house, Refusal::KnockOtherKey);
    assert_eq!((line["run"].as_str(), line["peer"].as_str()), (Some(&*run.to_string()), Some("127.0.0.1")));
    assert_eq!(line["level"], "WARN");
    let mut stranger = Agent::dial(&house.home_url, SecretString::from("x.y.z"), Server::Mute, None);
    (&mut stranger.end).await.unwrap();
    once(&log, &house, Refusal::KnockNoTicket);
    let ticket = backend.spec(attempt(run, 1)).unwrap();
    drop(agent);
    house.stop("ada").await;
    house.reaches("ada", State::Ended).await;
    let file: Value = serde_json::from_str(secrecy::ExposeSecret::expose_secret(&ticket.dial_file)).unwrap();
    let ticket = SecretString::from(file["ticket"].as_str().unwrap());
    let mut again = Agent::dial(&house.home_url, ticket, Server::Mute, None);
    (&mut again.end).await.unwrap();
    assert_eq!(house.notes.counted(Refusal::KnockOtherKey), 2, "the first key was bound, over or not");
    assert!(!log.lines().iter().any(|line| line.to_string().contains("x.y.z")), "no ticket is written");
}

#[tokio::test]
async fn a_restart_tells_what_it_takes_up_and_when_the_server_can_be_reached_again() {
    let backend = FakeBackend::accepting();
    let (house, agent) = ready(&backend).await;
    let run = house.view("ada").run.to_string();
    let log = Log::begin();
    let house = house.crash().await;
    let line = once(&log, &house, Repair::RunTakenUp);
    assert_eq!((line["run"].as_str(), line["why"].as_str()), (Some(&*run), Some("ready")));
    until(LONG, "its agent is back", || async { over(&log, Doubt::AgentUnheard) == 1 }).await;
    once(&log, &house, Doubt::AgentUnheard);
    until(LONG, "it is routed", || async { house.notes.counted(Repair::Rerouted) == 1 }).await;
    once(&log, &house, Repair::Rerouted);
    house.stop("ada").await;
    house.reaches("ada", State::Ended).await;
    let line = once(&log, &house, Repair::OrderErased);
    assert_eq!((line["run"].as_str(), line["level"].as_str()), (Some(&*run), Some("DEBUG")));
    drop(agent);
}

#[tokio::test]
async fn a_job_that_no_run_wants_is_told_once() {
    let log = Log::begin();
    let backend = FakeBackend::accepting();
    backend.ignore_cancels(true);
    let lost = attempt(RunId::from_parts(1_700_000_000_000, 7), 1);
    let spec = JobSpec {
        label: JobLabel { key: key("bob"), attempt: lost },
        resources: order("bob", "x").request.resources,
        dial_file: SecretString::from("{}"),
        grace_s: 1,
    };
    backend.submit(&spec).await.unwrap();
    let house = House::with(&backend).await;
    house.start("ada").await;
    until(LONG, "it is cancelled again and again", || async { backend.cancels(lost).len() > 3 }).await;
    let line = once(&log, &house, Repair::Orphan);
    assert_eq!((line["server.key"].as_str(), line["site"].as_str()), (Some("main.bob."), Some("here")));
}

#[tokio::test]
async fn a_store_that_takes_nothing_is_told_once_in_a_while_and_counted_each_time() {
    let log = Log::begin();
    let backend = FakeBackend::queueing();
    let house = House::with(&backend).await;
    let run = house.start("ada").await.view.run;
    house.reaches("ada", State::Queued).await;
    house.database("CREATE TRIGGER no BEFORE UPDATE ON runs BEGIN SELECT RAISE(ABORT, 'no'); END").await;
    backend.start(attempt(run, 1));
    until(LONG, "it is tried again", || async { house.notes.counted(Retry::StoreAgain) >= 3 }).await;
    let lines = log.of("retry", "store", "write");
    assert_eq!((lines.len(), lines[0]["run"].as_str()), (1, Some(&*run.to_string())), "{lines:?}");
    house.database("DROP TRIGGER no").await;
    house.reaches("ada", State::Dialling).await;
}

#[tokio::test]
async fn a_removal_that_waits_for_its_site_is_told() {
    let log = Log::begin();
    let backend = FakeBackend::accepting();
    let (house, agent) = ready(&backend).await;
    backend.silent(true);
    drop(agent);
    house.stop("ada").await;
    until(LONG, "a removal failed", || async { house.notes.counted(Retry::RemovalAgain) >= 2 }).await;
    let lines = log.of("retry", "removal", "unsure");
    assert_eq!((lines.len(), lines[0]["site"].as_str()), (1, Some("here")), "{lines:?}");
}

#[tokio::test]
async fn a_calm_life_is_no_refusal_no_retry_no_doubt_and_no_repair_but_the_erased_order() {
    let log = Log::begin();
    let backend = FakeBackend::accepting();
    let (house, agent) = ready(&backend).await;
    let noted = |log: &Log| log.lines().iter().filter(|line| line["note"].is_string()).count();
    holds(Duration::from_millis(500), "nothing is noted", || async { noted(&log) == 0 }).await;
    house.stop("ada").await;
    house.reaches("ada", State::Ended).await;
    assert_eq!(noted(&log), 1, "{:?}", log.lines());
    once(&log, &house, Repair::OrderErased);
    drop(agent);
}

#[tokio::test]
async fn what_a_batch_system_says_of_a_job_stays_one_short_plain_line() {
    let backend = FakeBackend::queueing();
    let house = House::with(&backend).await;
    let run = house.start("ada").await.view.run;
    house.reaches("ada", State::Queued).await;
    let said = format!("held\u{1b}[31m by\r\n\r\nevent: ended <img src=x>\u{0} {}", "long ".repeat(2000));
    let is_plain = |message: &str| {
        assert!(message.contains("held [31m by    event: ended <img src=x>"), "{message}");
        assert!(!message.chars().any(char::is_control) && message.chars().count() < 1000, "{message}");
    };
    backend.set_state(attempt(run, 1), JobState::Stuck(said.clone()));
    until(LONG, "it is told", || async { house.view("ada").message.contains("is held up") }).await;
    is_plain(&house.view("ada").message);
    backend.end(attempt(run, 1), JobEnd { exit_code: None, signal: None, detail: Some(said) });
    let end = house.reaches("ada", State::Ended).await.end.unwrap();
    is_plain(&end.message);
}
