//! What a site grants of its time: as the agent is told it, the ends that come near, and the end that is kept.

use std::time::Duration;

use futures_util::StreamExt as _;
use glidepath_api_types::agent::{DialFile, EndCause, Limits as Told, Warning};
use glidepath_domain::backend::{JobState, ServerAddress};
use glidepath_domain::names::Attempt;
use glidepath_domain::policy::{Patience, Policy};
use glidepath_domain::run::{EndReason, Moment, State};
use glidepath_domain::site::Limits;
use glidepath_testkit::backend::FakeBackend;
use glidepath_testkit::chaos::Proxy as Weather;
use glidepath_testkit::wait::until;
use glidepath_tunnel::link::LinkState;
use secrecy::ExposeSecret as _;
use tokio::time::timeout;

use super::house::{Agent, House, LONG, Plan, Server, attempt, ended, hub, order};
use crate::arrivals::routes::Found;
use crate::spawn::NearEnd;

/// An hour for everybody, two for staff.
fn bounded() -> Limits {
    let patience = |seconds| Some(Patience::Seconds(seconds));
    let everybody = Policy { idle: patience(3600), ..Policy::default() };
    let groups = vec!["staff".to_owned()];
    let staff = Policy { groups, idle: patience(7200), unattended: patience(86_400), walltime_min: None };
    Limits { policies: vec![everybody, staff], ..Limits::default() }
}

async fn ready(backend: &FakeBackend, limits: Limits, spawn_id: &str) -> (House, Agent, Attempt) {
    let mut plan = Plan::with(&[("here", backend)]);
    plan.sites[0].2 = limits;
    let house = House::build(plan).await;
    let (agent, attempt) = again(&house, backend, spawn_id).await;
    (house, agent, attempt)
}

async fn again(house: &House, backend: &FakeBackend, spawn_id: &str) -> (Agent, Attempt) {
    let mut order = order("ada", spawn_id);
    order.request.groups = vec!["staff".to_owned()];
    let run = house.spawner.start(order).await.unwrap().view.run;
    house.reaches("ada", State::Dialling).await;
    let agent = Agent::of(backend, attempt(run, 1), Server::Answers(200));
    house.reaches("ada", State::Ready).await;
    (agent, attempt(run, 1))
}

#[tokio::test]
async fn the_agent_is_told_what_its_users_groups_are_granted() {
    let backend = FakeBackend::accepting();
    let (house, mut agent, _) = ready(&backend, bounded(), "s").await;
    let told = agent.orders.recv().await.unwrap().limits;
    let wanted = Told { idle_s: Some(7200), unattended_s: Some(86_400), warn_before_s: vec![1800, 600, 60] };
    assert_eq!(told, wanted);
    let view = house.view("ada");
    assert!(view.granted.in_words().unwrap().contains("for members of staff"), "{:?}", view.granted);
    let lives = view.lives_until.unwrap().since(view.requested_at).as_secs();
    assert!((view.walltime_s..view.walltime_s + LONG.as_secs()).contains(&lives), "{lives}");
}

#[tokio::test]
async fn ends_that_come_near_are_events_and_so_is_taking_them_back() {
    let backend = FakeBackend::accepting();
    let (house, agent, _) = ready(&backend, bounded(), "s").await;
    let mut events = house.spawner.events(&hub(), None);
    let mut near_ends = async |wanted: &[NearEnd]| {
        let seen = async {
            while let Some((_, view)) = events.next().await {
                if view.near_ends == wanted && view.state == State::Ready {
                    return;
                }
            }
        };
        timeout(LONG, seen).await.unwrap_or_else(|_| panic!("no event with {wanted:?}"));
    };
    let warning = |cause, before_s, ends_at| Warning { cause, before_s, ends_at };
    let near = |reason, before_s, ends_at: u64| NearEnd { reason, before_s, ends_at: Moment(ends_at * 1000) };
    near_ends(&[]).await;
    agent
        .warns(vec![
            warning(EndCause::Walltime, 1800, 2_000_000_900),
            warning(EndCause::Idle, 600, 2_000_000_600),
        ])
        .await;
    let both = [near(EndReason::Idle, 600, 2_000_000_600), near(EndReason::Walltime, 1800, 2_000_000_900)];
    near_ends(&both).await;
    agent.warns(vec![warning(EndCause::Walltime, 1800, 2_000_000_900)]).await;
    near_ends(&both[1..]).await;
    agent.warns(vec![]).await;
    near_ends(&[]).await;
}

#[tokio::test]
async fn a_limited_agent_is_told_when_somebody_changes_something() {
    let backend = FakeBackend::accepting();
    let (house, mut agent, _) = ready(&backend, bounded(), "s").await;
    let Found::Ready(upstream) = house.routes.find(&hub(), "/user/ada/") else { panic!("it is ready") };
    upstream.used();
    timeout(LONG, agent.uses.recv()).await.expect("it is told").unwrap();
    upstream.used();
    timeout(LONG, agent.uses.recv()).await.expect("and again").unwrap();
}

/// A server at its own address is used while nobody can speak with its agent.
#[tokio::test]
async fn an_agent_that_was_away_is_told_what_it_missed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            super::house::answer(stream, 200).await;
        }
    });
    let backend = FakeBackend::accepting();
    let mut plan = Plan::with(&[("here", &backend)]);
    plan.sites[0].2 = bounded();
    plan.direct = &["here"];
    let house = House::build(plan).await;
    let run = house.start("ada").await.view.run;
    house.reaches("ada", State::Dialling).await;
    let direct = Some(ServerAddress::Unix { path, uid: nix::unistd::getuid().as_raw() });
    backend.set_state(attempt(run, 1), JobState::Running { direct });
    let home = house.home_url.strip_prefix("ws://").unwrap().strip_suffix("/link").unwrap();
    let weather = Weather::to(home.parse().unwrap()).await.unwrap();
    let file = backend.spec(attempt(run, 1)).unwrap().dial_file;
    let file: DialFile = serde_json::from_str(file.expose_secret()).unwrap();
    let through = format!("ws://{}/link", weather.address());
    let mut agent = Agent::dial(&through, file.ticket, Server::Mute, None);
    house.reaches("ada", State::Ready).await;
    let Found::Ready(upstream) = house.routes.find(&hub(), "/user/ada/") else { panic!("it is ready") };
    weather.refuse(true);
    weather.drop_connections();
    let link = house.arrivals.link(attempt(run, 1)).unwrap();
    let closed = || matches!(link.state(), LinkState::Closed { .. });
    until(LONG, "its link is over", || async { closed() }).await;
    upstream.used();
    let missed = timeout(Duration::from_millis(500), agent.uses.recv()).await;
    assert!(missed.is_err(), "nobody can tell it");
    weather.refuse(false);
    timeout(LONG, agent.uses.recv()).await.expect("it is told").unwrap();
}

#[tokio::test]
async fn an_idle_end_is_kept_with_its_limit_once_and_a_new_start_works_at_once() {
    let backend = FakeBackend::accepting();
    let (house, agent, first) = ready(&backend, bounded(), "s").await;
    agent.warns(vec![Warning { cause: EndCause::Idle, before_s: 60, ends_at: 2_000_000_600 }]).await;
    until(LONG, "it is shown", || async { !house.view("ada").near_ends.is_empty() }).await;
    agent.reports(ended(Some(0), None, EndCause::Idle), &[]).await;
    let view = house.reaches("ada", State::Ended).await;
    let end = view.end.unwrap();
    assert_eq!(end.reason, EndReason::Idle);
    let said = "no kernel, terminal or notebook of the server was active for 2 hours, the limit of here (for members of \
                staff)";
    assert_eq!((end.message.as_str(), view.near_ends), (said, vec![]));
    let (_agent, second) = again(&house, &backend, "t").await;
    assert_ne!(first.run, second.run);
}
