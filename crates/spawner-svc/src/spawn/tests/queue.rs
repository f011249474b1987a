//! Runs up to the moment when an agent dials: nothing here needs one.

use std::time::Duration;

use futures_util::StreamExt as _;
use glidepath_domain::backend::{Backend as _, JobLabel, JobSpec, JobState};
use glidepath_domain::names::RunId;
use glidepath_domain::run::{EndReason, Life, State};
use glidepath_domain::site::Limits;
use glidepath_testkit::backend::FakeBackend;
use glidepath_testkit::wait::{holds, until};
use secrecy::{ExposeSecret as _, SecretString};

use super::house::{House, LONG, Plan, attempt, hub, key, order};
use crate::spawn::story::Story;
use crate::spawn::{StartError, StopError};

#[tokio::test]
async fn a_second_put_of_the_same_spawn_finds_the_same_run_and_submits_once() {
    let backend = FakeBackend::queueing();
    let house = House::with(&backend).await;
    let first = house.start("ada").await;
    let again = house.start("ada").await;
    assert_eq!(first.view.run, again.view.run);
    assert!(again.adopted.is_none());
    house.reaches("ada", State::Queued).await;
    assert_eq!(backend.made_in_all(), 1);
}

#[tokio::test]
async fn another_spawn_of_a_live_server_adopts_its_token() {
    let backend = FakeBackend::queueing();
    let house = House::with(&backend).await;
    let first = house.try_start("ada", "one").await.unwrap();
    let other = house.try_start("ada", "two").await.unwrap();
    assert_eq!(first.view.run, other.view.run);
    assert_eq!(other.adopted.unwrap().expose_secret(), "token-of-one");
    let house = house.crash().await;
    let later = house.try_start("ada", "three").await.unwrap();
    assert_eq!(later.adopted.unwrap().expose_secret(), "token-of-one", "also after a crash");
}

#[tokio::test]
async fn a_late_repeat_of_a_spawn_that_ended_starts_nothing() {
    let backend = FakeBackend::refusing("no account");
    let house = House::with(&backend).await;
    let first = house.start("ada").await;
    house.reaches("ada", State::Ended).await;
    let late = house.start("ada").await;
    assert_eq!((late.view.run, late.view.state), (first.view.run, State::Ended));
    let fresh = house.try_start("ada", "another").await.unwrap();
    assert_ne!(fresh.view.run, first.view.run);
}

/// The launch order goes with the end, and that is written down before it is told.
#[tokio::test]
async fn a_start_that_meets_a_run_at_its_end_is_a_new_run_and_no_error() {
    for _ in 0..12 {
        let house = House::with(&FakeBackend::refusing("no account")).await; // a fresh site does not rest
        let first = house.try_start("ada", "one").await.unwrap().view.run;
        let without_pause = async {
            for spawn in 0.. {
                let again = house.try_start("ada", &format!("again-{spawn}")).await.unwrap();
                if again.view.run != first {
                    break;
                }
                assert!(again.adopted.is_some(), "a live run is handed over with its token");
            }
        };
        tokio::time::timeout(LONG, without_pause).await.expect("the next start is a new run");
    }
}

/// As while the answer to a commit is waited for.
#[tokio::test]
async fn a_stop_that_cannot_tell_what_comes_of_a_start_says_so_and_not_that_there_is_none() {
    let house = House::with(&FakeBackend::queueing()).await;
    let in_hand = house.spawner.shared.turn_of(&key("ada")).await.unwrap();
    tokio::time::pause(); // nobody waits half a minute for it
    let ada = key("ada");
    let (stopped, started) =
        tokio::join!(house.spawner.stop(&ada, None, false), house.try_start("ada", "again"));
    tokio::time::resume();
    assert!(matches!(stopped, Err(StopError::StillStarting)), "{stopped:?}");
    assert!(matches!(started, Err(StartError::StillStarting)), "{started:?}");
    drop(in_hand);
    assert!(house.stop("ada").await.is_none());
}

#[tokio::test]
async fn a_start_whose_caller_goes_away_is_a_run_or_nothing() {
    let backend = FakeBackend::queueing();
    let house = House::with(&backend).await;
    for moment in 0..20 {
        let user = format!("user{moment}");
        {
            let mut start = std::pin::pin!(house.try_start(&user, "gone"));
            for _ in 0..=moment {
                if futures_util::poll!(start.as_mut()).is_ready() {
                    break; // a quick disk: its caller was told
                }
                tokio::task::yield_now().await;
            }
        }
        let run = house.try_start(&user, "again").await.unwrap().view.run;
        house.reaches(&user, State::Queued).await;
        assert_eq!(house.view(&user).run, run);
        house.stop(&user).await;
        house.reaches(&user, State::Ended).await;
    }
    assert_eq!(backend.made_in_all(), 20);
    until(LONG, "no job is left", || async { backend.list().await.unwrap().is_empty() }).await;
}

#[tokio::test]
async fn many_puts_of_one_server_at_once_make_one_run() {
    let backend = FakeBackend::queueing();
    let house = House::with(&backend).await;
    let starts = (0..20).map(|n| house.spawner.start(order("ada", &format!("spawn-{n}"))));
    let runs: Vec<RunId> =
        futures_util::future::join_all(starts).await.into_iter().map(|s| s.unwrap().view.run).collect();
    assert!(runs.iter().all(|run| *run == runs[0]));
    house.reaches("ada", State::Queued).await;
    assert_eq!(backend.made_in_all(), 1);
}

#[tokio::test]
async fn the_place_in_the_queue_is_told() {
    let backend = FakeBackend::queueing();
    let house = House::with(&backend).await;
    house.start("ada").await;
    house.reaches("ada", State::Queued).await;
    house.start("bob").await;
    until(LONG, "bob is told his place", || async {
        let view = house.view("bob");
        view.queue_position == Some(2) && view.message.contains("number 2 in the queue")
    })
    .await;
}

#[tokio::test]
async fn who_was_far_behind_and_comes_to_the_front_hears_it_soon() {
    let backend = FakeBackend::queueing();
    let house = House::with(&backend).await;
    house.start("ada").await;
    house.reaches("ada", State::Queued).await;
    let at = backend.attempts()[0];
    let stands = |place, wait_s| {
        backend.set_state(at, JobState::Queued { position: Some(place), predicted_wait_s: Some(wait_s) });
    };
    until(LONG, "the first place is told", || async { house.view("ada").queue_position == Some(1) }).await;
    stands(5000, 80_000);
    let heard = backend.lists();
    until(LONG, "the far place is known", || async { backend.lists() > heard + 2 }).await;
    assert_ne!(house.view("ada").queue_position, Some(5000), "what is far is told later");
    stands(2, 40);
    until(LONG, "the near place is told", || async { house.view("ada").queue_position == Some(2) }).await;
}

#[tokio::test]
async fn of_many_sites_the_best_twenty_are_kept_with_a_run_and_a_refusal_tells_of_all() {
    let backend = FakeBackend::queueing();
    let names: Vec<&'static str> = (0..30).map(|n| &*format!("site-{n:02}").leak()).collect();
    let small = Limits { memory_mb: Some(256), ..Limits::default() };
    let mut plan = Plan::with(&[]);
    plan.sites = names.iter().map(|name| (*name, backend.clone(), Limits::default())).collect();
    let house = House::build(plan.clone()).await;
    let run = house.start("ada").await.view;
    assert_eq!(run.verdicts.len(), 20);
    let row = house.store.unsettled_run(run.run).await.unwrap().unwrap();
    assert_eq!(Story::read(&row).unwrap().sites_left_out, 10);
    let house = house.crash().await;
    assert_eq!(house.reaches("ada", State::Queued).await.verdicts.len(), 20);
    plan.sites.iter_mut().for_each(|(_, _, limits)| *limits = small.clone());
    let house = House::build(plan).await;
    let refused = house.try_start("bob", "one").await.unwrap_err();
    assert!(matches!(refused, StartError::NoSite { verdicts } if verdicts.len() == 30));
}

#[tokio::test]
async fn a_crash_in_the_queue_submits_nothing_twice() {
    let backend = FakeBackend::queueing();
    let house = House::with(&backend).await;
    let run = house.start("ada").await.view.run;
    house.reaches("ada", State::Queued).await;
    let house = house.crash().await;
    assert_eq!(house.view("ada").state, State::Queued, "at once, from the store");
    holds(Duration::from_millis(500), "it stays queued", || async {
        house.view("ada").state == State::Queued
    })
    .await;
    assert_eq!((house.view("ada").run, backend.made_in_all()), (run, 1));
    house.stop("ada").await;
    assert_eq!(house.reaches("ada", State::Ended).await.end.unwrap().reason, EndReason::Cancelled);
}

#[tokio::test]
async fn a_crash_while_submitting_submits_the_same_attempt() {
    let backend = FakeBackend::queueing();
    backend.lose_submit_replies(1);
    backend.slow(Duration::from_millis(200));
    let house = House::with(&backend).await;
    let run = house.start("ada").await.view.run;
    assert_eq!(house.view("ada").state, State::Submitting);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let house = house.crash().await;
    house.reaches("ada", State::Queued).await;
    assert_eq!((backend.made(attempt(run, 1)), backend.made_in_all()), (1, 1));
}

#[tokio::test]
async fn a_lost_reply_makes_one_job() {
    let backend = FakeBackend::queueing();
    backend.lose_submit_replies(1);
    let house = House::with(&backend).await;
    let run = house.start("ada").await.view.run;
    house.reaches("ada", State::Queued).await;
    assert_eq!(backend.made(attempt(run, 1)), 1);
}

#[tokio::test]
async fn a_crash_while_stopping_ends_the_run_and_leaves_no_job() {
    let backend = FakeBackend::queueing();
    let house = House::with(&backend).await;
    house.start("ada").await;
    house.reaches("ada", State::Queued).await;
    backend.ignore_cancels(true);
    house.stop("ada").await;
    assert_eq!(house.view("ada").state, State::Stopping);
    let house = house.crash().await;
    backend.ignore_cancels(false);
    house.reaches("ada", State::Ended).await;
    until(LONG, "the job is gone", || async { backend.list().await.unwrap().is_empty() }).await;
}

#[tokio::test]
async fn a_silent_site_ends_no_queued_run() {
    let backend = FakeBackend::queueing();
    let house = House::with(&backend).await;
    house.start("ada").await;
    house.reaches("ada", State::Queued).await;
    backend.silent(true);
    until(LONG, "silence is told", || async { house.view("ada").message.contains("not answering") }).await;
    holds(Duration::from_secs(1), "it stays", || async { house.view("ada").state == State::Queued }).await;
    assert_ne!(house.view("ada").life, Life::Gone);
    backend.silent(false);
    until(LONG, "it is heard again", || async { !house.view("ada").message.contains("not answering") }).await;
}

#[tokio::test]
async fn a_refusing_site_is_left_for_the_next_and_both_reasons_are_kept() {
    let (here, far) = (FakeBackend::refusing("no account for you"), FakeBackend::queueing());
    let house = House::build(Plan::with(&[("here", &here), ("far", &far)])).await;
    let run = house.start("ada").await.view.run;
    let view = house.reaches("ada", State::Queued).await;
    assert_eq!((view.attempt, view.site.unwrap().as_str()), (Some(2), "far"));
    assert_eq!((here.made_in_all(), far.made(attempt(run, 2))), (0, 1));
    far.lose_job(attempt(run, 2));
    let end = house.reaches("ada", State::Ended).await.end.unwrap();
    assert!(end.message.contains("no account for you"), "{}", end.message);
}

#[tokio::test]
async fn no_dial_home_within_the_deadline_tries_the_next_site_and_removes_the_first_job() {
    let (here, far) = (FakeBackend::accepting(), FakeBackend::queueing());
    let mut plan = Plan::with(&[("here", &here), ("far", &far)]);
    plan.deadlines.dialling = Duration::from_millis(300);
    let house = House::build(plan).await;
    house.start("ada").await;
    until(LONG, "it waits at the next site", || async {
        let view = house.view("ada");
        view.state == State::Queued && view.site.unwrap().as_str() == "far"
    })
    .await;
    until(LONG, "the first job is removed", || async { here.list().await.unwrap().is_empty() }).await;
}

#[tokio::test]
async fn a_run_that_waits_too_long_ends_with_that_reason_and_leaves_no_job() {
    let backend = FakeBackend::queueing();
    let mut plan = Plan::with(&[("here", &backend)]);
    plan.deadlines.queued = Duration::from_millis(500);
    let house = House::build(plan).await;
    house.start("ada").await;
    assert_eq!(house.reaches("ada", State::Ended).await.end.unwrap().reason, EndReason::QueueDeadline);
    until(LONG, "no job is left", || async { backend.list().await.unwrap().is_empty() }).await;
}

#[tokio::test]
async fn an_agent_may_miss_its_home_for_the_walltime_unless_the_site_says_otherwise() {
    let backend = FakeBackend::queueing();
    let house = House::with(&backend).await;
    let run = house.start("ada").await.view.run;
    house.reaches("ada", State::Queued).await;
    let spec = backend.spec(attempt(run, 1)).unwrap();
    let file: serde_json::Value = serde_json::from_str(spec.dial_file.expose_secret()).unwrap();
    let walltime_s = u64::from(order("ada", "x").request.resources.walltime_min) * 60;
    assert_eq!(file["absence_limit_s"], walltime_s);
}

#[tokio::test]
async fn sixty_four_starts_at_once_do_not_overshoot_a_limit() {
    let backend = FakeBackend::queueing();
    let mut plan = Plan::with(&[("here", &backend)]);
    plan.sites[0].2 = Limits { servers: Some(10), ..Limits::default() };
    let house = House::build(plan).await;
    let users: Vec<String> = (0..64).map(|n| format!("user{n}")).collect();
    let starts = users.iter().map(|user| house.try_start(user, "s"));
    let started = futures_util::future::join_all(starts).await;
    let (yes, no): (Vec<_>, Vec<_>) = started.into_iter().partition(Result::is_ok);
    assert_eq!((yes.len(), no.len()), (10, 54));
    assert!(no.iter().all(|no| matches!(no, Err(StartError::NoSite { .. }))));
    until(LONG, "ten jobs", || async { backend.made_in_all() == 10 }).await;
}

#[tokio::test]
async fn a_place_is_given_back_when_a_server_ends() {
    let backend = FakeBackend::queueing();
    let mut plan = Plan::with(&[("here", &backend)]);
    plan.sites[0].2 = Limits { servers_per_user: Some(1), ..Limits::default() };
    let house = House::build(plan).await;
    let mut second = order("ada", "second");
    second.request.key.server = "lab".parse().unwrap();
    house.start("ada").await;
    assert!(matches!(house.spawner.start(second.clone()).await, Err(StartError::NoSite { .. })));
    house.stop("ada").await;
    house.reaches("ada", State::Ended).await;
    house.spawner.start(second).await.unwrap();
}

#[tokio::test]
async fn a_hundred_and_fifty_waiting_servers_do_not_keep_the_next_from_a_free_site() {
    let (here, far) = (FakeBackend::queueing(), FakeBackend::accepting());
    let house = House::build(Plan::with(&[("here", &here), ("far", &far)])).await;
    let to = |user: &str, site: &str| {
        let mut order = order(user, "s");
        order.request.site = Some(site.parse().unwrap());
        order
    };
    let starts = (0..150).map(|n| house.spawner.start(to(&format!("user{n}"), "here")));
    assert!(futures_util::future::join_all(starts).await.iter().all(Result::is_ok));
    let begun = std::time::Instant::now();
    house.spawner.start(to("ada", "far")).await.unwrap();
    house.reaches("ada", State::Dialling).await;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    until(LONG, "all wait", || async {
        house.spawner.list(&hub()).iter().filter(|view| view.state == State::Queued).count() == 150
    })
    .await;
}

#[tokio::test]
async fn a_late_cancel_of_an_older_run_touches_no_newer_one() {
    let backend = FakeBackend::queueing();
    let house = House::with(&backend).await;
    let old = house.start("ada").await.view.run;
    house.stop("ada").await;
    house.reaches("ada", State::Ended).await;
    house.try_start("ada", "newer").await.unwrap();
    assert!(house.spawner.stop(&key("ada"), Some(old), true).await.unwrap().is_none());
    house.reaches("ada", State::Queued).await;
}

#[tokio::test]
async fn a_start_while_the_last_run_stops_waits_for_its_end() {
    let backend = FakeBackend::queueing();
    let house = House::with(&backend).await;
    let old = house.start("ada").await.view.run;
    house.reaches("ada", State::Queued).await;
    backend.ignore_cancels(true);
    house.stop("ada").await;
    let (fresh, ()) = tokio::join!(house.try_start("ada", "fresh"), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        backend.ignore_cancels(false);
    });
    assert_ne!(fresh.unwrap().view.run, old);
}

#[tokio::test]
async fn jobs_that_no_run_wants_are_removed_and_only_when_the_store_answers() {
    let backend = FakeBackend::queueing();
    let stray = |n: u64| attempt(RunId::from_parts(n, n.into()), 1);
    let submit = async |attempt| {
        let label = JobLabel { key: key("eve"), attempt };
        let resources = order("eve", "x").request.resources;
        let spec = JobSpec { label, resources, dial_file: SecretString::from("{}"), grace_s: 1 };
        backend.submit(&spec).await.unwrap();
    };
    submit(stray(5)).await;
    let house = House::with(&backend).await;
    until(LONG, "the stray is cancelled", || async { !backend.cancels(stray(5)).is_empty() }).await;

    house.start("ada").await; // one that runs keeps the site looked at
    house.reaches("ada", State::Queued).await;
    house.store.close().await;
    submit(stray(6)).await;
    let before = backend.lists();
    until(LONG, "it is seen a few times", || async { backend.lists() > before + 3 }).await;
    assert!(backend.cancels(stray(6)).is_empty(), "nobody knows whether it is wanted");
}

#[tokio::test]
async fn events_tell_every_state_once_and_in_order_and_continue_after_an_id() {
    let backend = FakeBackend::queueing();
    let house = House::with(&backend).await;
    let mut live = house.spawner.events(&hub(), None);
    let listening = async {
        let mut told = Vec::new();
        while told.last().is_none_or(|(_, state)| *state != State::Ended) {
            let (id, view) = tokio::time::timeout(LONG, live.next()).await.unwrap().unwrap();
            told.push((id.unwrap(), view.state));
        }
        told
    };
    let acting = async {
        house.start("ada").await;
        house.reaches("ada", State::Queued).await;
        house.stop("ada").await;
    };
    let (told, ()) = tokio::join!(listening, acting);
    assert!(told.is_sorted_by(|(a, x), (b, y)| a < b && x <= y), "{told:?}");
    let mut missed = house.spawner.events(&hub(), Some(told[0].0));
    let (id, view) = tokio::time::timeout(LONG, missed.next()).await.unwrap().unwrap();
    assert_eq!((id.unwrap(), view.state), told[1]);
    let house = house.crash().await;
    let mut whole = house.spawner.events(&hub(), Some(u64::MAX));
    let (_, view) = tokio::time::timeout(LONG, whole.next()).await.unwrap().unwrap();
    assert_eq!(view.state, State::Ended, "an id from elsewhere: every server as it stands");
    let mut other = house.spawner.events(&"other".parse().unwrap(), None);
    assert!(tokio::time::timeout(Duration::from_millis(100), other.next()).await.is_err());
}

#[tokio::test]
async fn a_run_that_is_over_and_cleaned_up_is_settled_in_the_store() {
    let backend = FakeBackend::queueing();
    let house = House::with(&backend).await;
    let run = house.start("ada").await.view.run;
    house.reaches("ada", State::Queued).await;
    house.stop("ada").await;
    house.reaches("ada", State::Ended).await;
    until(LONG, "it is settled", || async { house.store.unsettled().await.unwrap().is_empty() }).await;
    assert_eq!(house.store.is_wanted(attempt(run, 1)).await.unwrap(), Some(false));
    assert_eq!(backend.forgets(attempt(run, 1)), 1);
    let house = house.crash().await;
    assert_eq!(house.view("ada").end.unwrap().reason, EndReason::Cancelled, "its last end is kept");
}

#[tokio::test]
async fn the_next_site_is_tried_within_its_limits_only() {
    let (here, far) = (FakeBackend::refusing("no account"), FakeBackend::queueing());
    let mut plan = Plan::with(&[("here", &here), ("far", &far)]);
    plan.sites[1].2 = Limits { servers: Some(1), ..Limits::default() };
    let house = House::build(plan).await;
    let users = ["ada", "bob", "eve"];
    futures_util::future::join_all(users.iter().map(|user| house.start(user))).await;
    until(LONG, "one waits and two ended", || async {
        let states: Vec<State> = users.iter().map(|user| house.view(user).state).collect();
        let count = |wanted| states.iter().filter(|state| **state == wanted).count();
        count(State::Queued) == 1 && count(State::Ended) == 2
    })
    .await;
    assert_eq!(far.made_in_all(), 1);
}

#[tokio::test]
async fn homes_are_removed_only_when_no_server_of_the_user_lives() {
    let backend = FakeBackend::queueing();
    let house = House::with(&backend).await;
    house.start("ada").await;
    assert!(house.spawner.forget_home(&key("ada")).await.is_err());
    house.stop("ada").await;
    house.reaches("ada", State::Ended).await;
    house.spawner.forget_home(&key("ada")).await.unwrap();
    assert_eq!(backend.homes_deleted(), [key("ada")]);
}

#[tokio::test]
async fn the_dial_file_holds_a_ticket_and_no_other_secret_and_the_order_goes_with_the_end() {
    let backend = FakeBackend::queueing();
    let house = House::with(&backend).await;
    let run = house.start("ada").await.view.run;
    house.reaches("ada", State::Queued).await;
    let spec = backend.spec(attempt(run, 1)).unwrap();
    assert!(!spec.dial_file.expose_secret().contains("token-of"));
    assert!(house.store.order(run).await.unwrap().is_some());
    house.stop("ada").await;
    house.reaches("ada", State::Ended).await;
    assert!(house.store.order(run).await.unwrap().is_none());
    assert!(house.dir().join("glidepath.db").exists());
}
