//! Runs whose agents come home over a real tunnel.

use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use glidepath_api_types::agent::{EndCause, Phase, Usage};
use glidepath_domain::backend::{Backend as _, JobEnd, JobState, ServerAddress};
use glidepath_domain::run::{EndReason, State};
use glidepath_testkit::backend::FakeBackend;
use glidepath_testkit::wait::{holds, until};
use glidepath_tunnel::dial::DialEnd;
use secrecy::ExposeSecret as _;

use super::house::{Agent, House, LONG, Plan, Server, attempt, ended, hub, key};
use crate::arrivals::routes::Found;
use crate::notable::Refusal;
use crate::spawn::UsedSoFar;

async fn ready(backend: &FakeBackend) -> (House, Agent) {
    let house = House::with(backend).await;
    let run = house.start("ada").await.view.run;
    house.reaches("ada", State::Dialling).await;
    let agent = Agent::of(backend, attempt(run, 1), Server::Answers(200));
    house.reaches("ada", State::Ready).await;
    (house, agent)
}

fn is_routed(house: &House) -> bool {
    matches!(house.routes.find(&hub(), "/user/ada/lab"), Found::Ready(_))
}

#[tokio::test]
async fn a_server_is_ready_when_it_answers_and_then_it_is_routed() {
    let backend = FakeBackend::accepting();
    let (house, mut agent) = ready(&backend).await;
    until(LONG, "it is routed", || async { is_routed(&house) }).await;
    let order = agent.orders.recv().await.unwrap();
    assert_eq!(order.argv, ["jupyterhub-singleuser", "--ServerApp.sock={socket}"]);
    assert_eq!(order.env["JUPYTERHUB_API_TOKEN"].expose_secret(), "token-of-spawn-ada");
    assert_eq!(order.env["JUPYTERHUB_SERVICE_URL"].expose_secret(), "http://127.0.0.1:8888/user/ada/");
    assert_eq!(order.hub_url_vars, ["JUPYTERHUB_API_URL"]);
}

/// Somebody on another core, who asks in the same moment. It is a race: many servers, so that one loses it.
#[tokio::test]
async fn whoever_hears_that_a_server_is_ready_finds_it_at_the_relay() {
    const SERVERS: usize = 40;
    let backend = FakeBackend::accepting();
    let house = House::with(&backend).await;
    let mut told = house.spawner.events(&hub(), None);
    let (routes, runtime) = (house.routes.clone(), tokio::runtime::Handle::current());
    let hasty = std::thread::spawn(move || {
        let _in_runtime = runtime.enter();
        let (mut ready, mut without_route) = (0, 0);
        while ready < SERVERS {
            let Some((_, view)) = told.next().now_or_never().map(Option::unwrap) else { continue };
            if view.state == State::Ready {
                let found = routes.find(&hub(), &format!("/user/{}/api", view.key.user.as_str()));
                ready += 1;
                without_route += usize::from(!matches!(found, Found::Ready(_)));
            }
        }
        without_route
    });
    let mut agents = Vec::new();
    for number in 0..SERVERS {
        let user = format!("user{number}");
        let run = house.start(&user).await.view.run;
        house.reaches(&user, State::Dialling).await;
        agents.push(Agent::of(&backend, attempt(run, 1), Server::Answers(200)));
    }
    for number in 0..SERVERS {
        house.reaches(&format!("user{number}"), State::Ready).await;
    }
    assert_eq!(hasty.join().unwrap(), 0);
}

#[tokio::test]
async fn the_relay_knows_a_server_of_before_from_its_first_moment() {
    let backend = FakeBackend::accepting();
    let (house, _agent) = ready(&backend).await;
    assert!(matches!(house.ada_at_load, Found::Unknown));
    let house = house.crash().await;
    assert!(matches!(house.ada_at_load, Found::Away { .. }), "it is waited for, not refused");
}

#[tokio::test]
async fn a_stop_is_kind_and_leaves_nothing() {
    let backend = FakeBackend::accepting();
    let (house, agent) = ready(&backend).await;
    house.stop("ada").await;
    let end = house.spawner.wait_ended(&key("ada"), LONG).await.unwrap().end.unwrap();
    assert_eq!((end.reason, end.exit_code), (EndReason::Stopped, Some(0)));
    until(LONG, "no job is left", || async { backend.list().await.unwrap().is_empty() }).await;
    assert!(!is_routed(&house));
    assert!(matches!(agent.end.await.unwrap(), DialEnd::Closed(_)));
}

#[tokio::test]
async fn a_stop_works_in_starting_too() {
    let backend = FakeBackend::accepting();
    let house = House::with(&backend).await;
    let run = house.start("ada").await.view.run;
    house.reaches("ada", State::Dialling).await;
    let _agent = Agent::of(&backend, attempt(run, 1), Server::NeverListens);
    house.reaches("ada", State::Starting).await;
    house.stop("ada").await;
    assert_eq!(house.reaches("ada", State::Ended).await.end.unwrap().reason, EndReason::Cancelled);
    until(LONG, "no job is left", || async { backend.list().await.unwrap().is_empty() }).await;
}

#[tokio::test]
async fn a_stop_works_while_dialling_and_while_submitting() {
    let backend = FakeBackend::accepting();
    backend.slow(Duration::from_millis(200));
    let house = House::with(&backend).await;
    house.start("ada").await;
    house.stop("ada").await;
    assert_eq!(house.reaches("ada", State::Ended).await.end.unwrap().reason, EndReason::Cancelled);
    house.try_start("ada", "again").await.unwrap();
    house.reaches("ada", State::Dialling).await;
    house.stop("ada").await;
    house.reaches("ada", State::Ended).await;
    backend.slow(Duration::ZERO);
    until(LONG, "no job is left", || async { backend.list().await.unwrap().is_empty() }).await;
}

#[tokio::test]
async fn a_child_that_exits_before_it_listens_ends_the_run_at_once_with_code_and_lines() {
    let (here, far) = (FakeBackend::accepting(), FakeBackend::accepting());
    let house = House::build(Plan::with(&[("here", &here), ("far", &far)])).await;
    let run = house.start("ada").await.view.run;
    house.reaches("ada", State::Dialling).await;
    let _agent = Agent::of(&here, attempt(run, 1), Server::Exits(3));
    let end = house.reaches("ada", State::Ended).await.end.unwrap();
    assert_eq!((end.reason, end.exit_code), (EndReason::Exited, Some(3)));
    assert_eq!(end.last_lines, ["hello from the server"]);
    assert_eq!(far.made_in_all(), 0, "it is its user's matter");
    house.try_start("ada", "again").await.unwrap();
}

#[tokio::test]
async fn a_server_that_never_listens_is_mute_or_answers_500_ends_by_the_deadline() {
    for (server, says) in [
        (Server::NeverListens, "does not listen"),
        (Server::Mute, "does not answer"),
        (Server::Answers(500), "500"),
    ] {
        let backend = FakeBackend::accepting();
        let mut plan = Plan::with(&[("here", &backend)]);
        plan.deadlines.starting = Duration::from_millis(1500);
        let house = House::build(plan).await;
        let run = house.start("ada").await.view.run;
        house.reaches("ada", State::Dialling).await;
        let _agent = Agent::of(&backend, attempt(run, 1), server);
        let end = house.reaches("ada", State::Ended).await.end.unwrap();
        assert_eq!(end.reason, EndReason::StartDeadline);
        assert!(end.message.contains(says), "{}", end.message);
        until(LONG, "no job is left", || async { backend.list().await.unwrap().is_empty() }).await;
    }
}

#[tokio::test]
async fn a_killed_server_is_told_at_once() {
    let backend = FakeBackend::accepting();
    let (house, agent) = ready(&backend).await;
    agent.reports(ended(None, Some(9), EndCause::ByItself), &["last words <img onerror=x>"]).await;
    let end = house.reaches("ada", State::Ended).await.end.unwrap();
    assert_eq!((end.reason, end.signal), (EndReason::Killed, Some(9)));
    assert_eq!(end.last_lines, ["last words <img onerror=x>"], "text stays text");
}

#[tokio::test]
async fn a_killed_agent_is_told_within_seconds_and_what_it_left_is_removed() {
    let backend = FakeBackend::accepting();
    let (house, agent) = ready(&backend).await;
    let run = house.view("ada").run;
    drop(agent);
    backend.end(attempt(run, 1), JobEnd { signal: Some(9), ..JobEnd::default() });
    let begun = std::time::Instant::now();
    let end = house.reaches("ada", State::Ended).await.end.unwrap();
    assert_eq!((end.reason, end.signal), (EndReason::AgentLost, Some(9)));
    assert_eq!(end.last_lines, ["hello from the server"]);
    assert!(begun.elapsed() < Duration::from_secs(15));
    until(LONG, "a cancel removes leftovers", || async { !backend.cancels(attempt(run, 1)).is_empty() })
        .await;
    house.try_start("ada", "again").await.unwrap();
}

#[tokio::test]
async fn unknown_ends_no_ready_run() {
    let backend = FakeBackend::accepting();
    let (house, agent) = ready(&backend).await;
    backend.silent(true);
    drop(agent);
    until(LONG, "it is told", || async { house.view("ada").message.contains("not answering since") }).await;
    holds(Duration::from_secs(3), "it stays ready", || async { house.view("ada").state == State::Ready })
        .await;
    assert!(is_routed(&house), "the relay answers that it waits");
}

#[tokio::test]
async fn a_crashed_service_shows_a_ready_run_at_once_and_routes_it_when_its_agent_is_back() {
    let backend = FakeBackend::accepting();
    let (house, mut agent) = ready(&backend).await;
    let run = house.view("ada").run;
    agent.orders.recv().await.unwrap();
    let house = house.crash().await;
    assert_eq!((house.view("ada").state, house.view("ada").run), (State::Ready, run));
    until(LONG, "it is routed again", || async { is_routed(&house) }).await;
    until(LONG, "it is well", || async { house.view("ada").message.contains("runs at") }).await;
    assert_eq!(backend.made_in_all(), 1);
    assert!((&mut agent.end).now_or_never().is_none(), "its agent dials on");
}

#[tokio::test]
async fn a_server_behind_a_link_is_reached_after_an_attempt_at_a_direct_site() {
    let (here, far) = (FakeBackend::accepting(), FakeBackend::accepting());
    let mut plan = Plan::with(&[("here", &here), ("far", &far)]);
    plan.direct = &["here"];
    plan.deadlines.dialling = Duration::from_secs(2);
    let house = House::build(plan).await;
    let run = house.start("ada").await.view.run;
    house.reaches("ada", State::Dialling).await;
    let nobody = ServerAddress::Tcp("127.0.0.1:1".to_owned());
    here.set_state(attempt(run, 1), JobState::Running { direct: Some(nobody) });
    until(LONG, "its job runs at the next site", || async {
        let view = house.view("ada");
        view.attempt == Some(2) && view.state == State::Dialling
    })
    .await;
    let _agent = Agent::of(&far, attempt(run, 2), Server::Answers(200));
    house.reaches("ada", State::Ready).await;
    until(LONG, "it is routed", || async { is_routed(&house) }).await;
}

#[tokio::test]
async fn a_direct_server_is_reached_by_its_address_also_before_its_agent_is_back() {
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
    plan.direct = &["here"];
    let house = House::build(plan).await;
    let run = house.start("ada").await.view.run;
    house.reaches("ada", State::Dialling).await;
    let uid = nix::unistd::getuid().as_raw();
    let direct = Some(ServerAddress::Unix { path, uid });
    backend.set_state(attempt(run, 1), JobState::Running { direct });
    let agent = Agent::of(&backend, attempt(run, 1), Server::Mute);
    house.reaches("ada", State::Ready).await;
    drop(agent);
    let house = house.crash().await;
    until(LONG, "it is routed without its agent", || async { is_routed(&house) }).await;
}

#[tokio::test]
async fn a_crash_while_dialling_lets_the_agent_in_later() {
    let backend = FakeBackend::accepting();
    let house = House::with(&backend).await;
    let run = house.start("ada").await.view.run;
    house.reaches("ada", State::Dialling).await;
    let house = house.crash().await;
    let _agent = Agent::of(&backend, attempt(run, 1), Server::Answers(200));
    house.reaches("ada", State::Ready).await;
    assert_eq!(backend.made_in_all(), 1);
}

#[tokio::test]
async fn a_crash_while_starting_goes_on_starting() {
    let backend = FakeBackend::accepting();
    let house = House::with(&backend).await;
    let run = house.start("ada").await.view.run;
    house.reaches("ada", State::Dialling).await;
    let agent = Agent::of(&backend, attempt(run, 1), Server::NeverListens);
    house.reaches("ada", State::Starting).await;
    let house = house.crash().await;
    assert_eq!(house.view("ada").state, State::Starting);
    until(LONG, "its agent is back", || async { house.arrivals.link(attempt(run, 1)).is_some() }).await;
    until(LONG, "the end is heard", || async {
        // As agents do, again and again: one report may go into the stream of before.
        agent.reports(ended(Some(1), None, EndCause::ByItself), &["too late"]).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        house.view("ada").state == State::Ended
    })
    .await;
    assert_eq!(house.view("ada").end.unwrap().last_lines, ["too late"]);
}

#[tokio::test]
async fn a_crash_while_a_ready_server_stops_ends_it() {
    let backend = FakeBackend::accepting();
    let (house, agent) = ready(&backend).await;
    drop(agent);
    backend.ignore_cancels(true);
    house.stop("ada").await;
    let house = house.crash().await;
    assert_eq!(house.view("ada").state, State::Stopping);
    backend.ignore_cancels(false);
    assert_eq!(house.reaches("ada", State::Ended).await.end.unwrap().reason, EndReason::Stopped);
    until(LONG, "no job is left", || async { backend.list().await.unwrap().is_empty() }).await;
}

#[tokio::test]
async fn a_ticket_shown_again_with_another_key_is_refused_and_counted_and_gets_no_order() {
    let backend = FakeBackend::accepting();
    let (house, _agent) = ready(&backend).await;
    let mut thief = Agent::of(&backend, attempt(house.view("ada").run, 1), Server::Answers(200));
    assert!(matches!((&mut thief.end).await.unwrap(), DialEnd::Refused(_)));
    assert!(thief.orders.try_recv().is_err());
    assert_eq!(house.notes.counted(Refusal::KnockOtherKey), 1);
    assert_eq!(house.view("ada").state, State::Ready);
}

#[tokio::test]
async fn a_ticket_of_another_service_or_of_nobody_is_refused() {
    let backend = FakeBackend::accepting();
    let house = House::with(&backend).await;
    let run = house.start("ada").await.view.run;
    house.reaches("ada", State::Dialling).await;
    let elsewhere = House::with(&backend).await;
    let foreign = backend.spec(attempt(run, 1)).unwrap().dial_file;
    let file: glidepath_api_types::agent::DialFile = serde_json::from_str(foreign.expose_secret()).unwrap();
    for ticket in [file.ticket.expose_secret(), "no.ticket.at-all"] {
        let agent = Agent::dial(&elsewhere.home_url, ticket.into(), Server::Answers(200), None);
        assert!(matches!(agent.end.await.unwrap(), DialEnd::Refused(_)));
    }
}

#[tokio::test]
async fn an_agent_of_an_older_attempt_comes_too_late() {
    let (here, far) = (FakeBackend::accepting(), FakeBackend::accepting());
    let mut plan = Plan::with(&[("here", &here), ("far", &far)]);
    plan.deadlines.dialling = Duration::from_millis(400);
    here.ignore_cancels(true);
    let house = House::build(plan).await;
    let run = house.start("ada").await.view.run;
    until(LONG, "the second attempt is there", || async { far.spec(attempt(run, 2)).is_some() }).await;
    let mut late = Agent::of(&here, attempt(run, 1), Server::Answers(200));
    let _agent = Agent::of(&far, attempt(run, 2), Server::Answers(200));
    assert!(matches!((&mut late.end).await.unwrap(), DialEnd::Refused(_)));
    assert!(late.orders.try_recv().is_err());
    let view = house.reaches("ada", State::Ready).await;
    assert_eq!((view.attempt, view.site.unwrap().as_str()), (Some(2), "far"));
    here.ignore_cancels(false);
    until(LONG, "the older job is removed", || async { here.list().await.unwrap().is_empty() }).await;
}

#[tokio::test]
async fn an_agent_of_an_ended_run_is_refused() {
    let backend = FakeBackend::accepting();
    let house = House::with(&backend).await;
    let run = house.start("ada").await.view.run;
    house.reaches("ada", State::Dialling).await;
    let file = backend.spec(attempt(run, 1)).unwrap().dial_file;
    let file: glidepath_api_types::agent::DialFile = serde_json::from_str(file.expose_secret()).unwrap();
    house.stop("ada").await;
    house.reaches("ada", State::Ended).await;
    let late = Agent::dial(&house.home_url, file.ticket, Server::Answers(200), None);
    assert!(matches!(late.end.await.unwrap(), DialEnd::Refused(_)));
}

#[tokio::test]
async fn an_agent_that_comes_while_the_store_is_away_comes_again() {
    let backend = FakeBackend::accepting();
    let house = House::with(&backend).await;
    let run = house.start("ada").await.view.run;
    house.reaches("ada", State::Dialling).await;
    let file = backend.spec(attempt(run, 1)).unwrap().dial_file;
    house.store.close().await;
    let file: glidepath_api_types::agent::DialFile = serde_json::from_str(file.expose_secret()).unwrap();
    let mut agent = Agent::dial(&house.home_url, file.ticket, Server::Answers(200), None);
    let ended = tokio::time::timeout(Duration::from_secs(1), &mut agent.end).await;
    assert!(ended.is_err(), "it is not refused: {ended:?}");
}

#[tokio::test]
async fn a_server_that_outlives_its_walltime_is_ended_by_the_service() {
    let backend = FakeBackend::accepting();
    let house = House::with(&backend).await;
    let mut order = super::house::order("ada", "short");
    order.request.resources.walltime_min = 0; // the launch order's own clock is the agent's matter
    let run = house.spawner.start(order).await.unwrap().view.run;
    house.reaches("ada", State::Dialling).await;
    let _agent = Agent::of(&backend, attempt(run, 1), Server::Answers(200));
    let end = house.reaches("ada", State::Ended).await.end.unwrap();
    assert_eq!(end.reason, EndReason::Walltime);
}

#[tokio::test]
async fn usage_is_shown_and_reports_of_phases_change_no_ready_state() {
    let backend = FakeBackend::accepting();
    let (house, agent) = ready(&backend).await;
    assert_eq!(house.view("ada").usage, None);
    for (cpu_s, memory_bytes) in [(1.5, 200), (2.5, 100)] {
        agent.used(Usage { cpu_s, memory_bytes, memory_peak_bytes: 300, gpus: vec![] }).await;
        let shown = Some(UsedSoFar { cpu_s, memory_bytes, memory_peak_bytes: 300 });
        until(LONG, "the usage is shown", || async { house.view("ada").usage == shown }).await;
    }
    agent.reports(Phase::Starting, &["it repeats itself"]).await;
    holds(Duration::from_millis(300), "it stays", || async { house.view("ada").state == State::Ready }).await;
}
