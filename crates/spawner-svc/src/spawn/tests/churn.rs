//! Crashes at random points of a churn of servers.

use std::collections::BTreeSet;
use std::time::Duration;

use glidepath_domain::backend::Backend as _;
use glidepath_domain::names::RunId;
use glidepath_domain::run::State;
use glidepath_testkit::backend::FakeBackend;
use glidepath_testkit::postgres::Cluster;
use glidepath_testkit::wait::until;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::store::Database;

use super::house::{Agent, House, LONG, Plan, Server, hub, key};

const ROUNDS: usize = 25;
const USERS: usize = 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_at_random_points_submit_nothing_twice_and_leave_nothing() {
    crashes(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_at_random_points_with_the_store_in_postgresql_submit_nothing_twice_and_leave_nothing() {
    let cluster = Cluster::start(&[]);
    cluster.make("churn", "churns");
    let url = cluster.url("churn:churns", "churn");
    crashes(Some(Database::postgresql(url.into(), cluster.url("churn", "churn")))).await;
}

async fn crashes(database: Option<Database>) {
    let mut dice = StdRng::seed_from_u64(7);
    let (here, far) = (FakeBackend::accepting(), FakeBackend::queueing());
    let mut house = House::build(Plan { database, ..Plan::with(&[("here", &here), ("far", &far)]) }).await;
    let mut runs: BTreeSet<RunId> = BTreeSet::new();
    let mut agents: Vec<Agent> = Vec::new();
    for round in 0..ROUNDS {
        for _ in 0..6 {
            let user = format!("user{}", dice.random_range(0..USERS));
            match dice.random_range(0..10) {
                0..5 => {
                    let spawn_id = format!("{round}-{user}");
                    let started = house.try_start(&user, &spawn_id);
                    if let Ok(Ok(started)) = tokio::time::timeout(Duration::from_millis(50), started).await {
                        runs.insert(started.view.run);
                    }
                }
                5..7 => {
                    let at_once = dice.random_bool(0.3);
                    let key = key(&user);
                    let stop = house.spawner.stop(&key, None, at_once);
                    let _ = tokio::time::timeout(Duration::from_millis(20), stop).await;
                }
                7 => here.refuse_submits(dice.random_bool(0.5).then_some("no")),
                8 => here.lose_submit_replies(dice.random_range(0..2)),
                _ => {
                    let views = house.spawner.list(&hub());
                    let new = views.into_iter().find(|view| view.state == State::Dialling);
                    let attempt = new.and_then(|view| Some(super::house::attempt(view.run, view.attempt?)));
                    if let Some(attempt) = attempt.filter(|attempt| here.spec(*attempt).is_some()) {
                        agents.push(Agent::of(&here, attempt, Server::Answers(200)));
                    }
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(dice.random_range(0..60))).await;
        house = house.crash().await;
    }
    runs.extend(house.spawner.list(&hub()).iter().map(|view| view.run));
    here.refuse_submits(None);
    for view in house.spawner.list(&hub()) {
        house.spawner.stop(&view.key, None, true).await.unwrap();
    }
    until(LONG, "every run is over and settled", || async {
        let over = house.spawner.list(&hub()).iter().all(|view| view.state == State::Ended);
        over && house.store.unsettled().await.unwrap().is_empty()
    })
    .await;
    until(LONG, "no job is left", || async {
        here.list().await.unwrap().is_empty() && far.list().await.unwrap().is_empty()
    })
    .await;
    let mut tried = 0;
    for backend in [&here, &far] {
        for attempt in backend.attempts() {
            tried += 1;
            assert!(backend.made(attempt) <= 1, "{attempt} was submitted twice");
        }
    }
    assert!(tried >= runs.len() && runs.len() > USERS / 2, "{tried} attempts of {} runs", runs.len());
}
