//! What a store must do, whichever database it is in: each test runs with both.

use super::*;

both! {
    what_was_written_is_there_after_a_crash,
    what_is_on_disk_is_counted_and_what_was_refused_is_not,
    launch_orders_are_sealed_in_the_tables,
    one_server_has_one_live_run,
    many_changes_at_once_are_all_written_and_told_in_order,
    an_agent_that_dials_again_is_known_while_nothing_can_be_written,
    a_change_waits_for_somebody_who_holds_the_tables_and_is_then_written_once,
    a_key_is_bound_once_and_the_same_key_may_come_again,
    two_keys_at_once_have_one_winner,
    a_fence_is_never_lifted_and_keeps_out,
    a_ticket_is_not_redeemed_for_the_first_time_when_its_time_is_over,
    events_are_read_back_after_an_id_and_ids_never_come_again,
    a_run_is_found_by_the_beginning_of_its_id,
    old_ends_go_but_the_last_of_each_server_stays,
    a_closed_store_says_so,
    a_database_of_a_newer_version_is_refused_in_a_sentence,
    when_all_readers_are_busy_one_more_waits_then_is_told_so,
}

async fn what_was_written_is_there_after_a_crash(house: House) {
    house.store.create(row(1, "main.ada."), &order()).await.unwrap();
    let house = house.crashed().await;
    let kept = house.store.unsettled().await.unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].doc, "{\"n\":1}");
    assert_eq!(house.store.order(run(1)).await.unwrap().unwrap().expose_secret(), order().expose_secret());
}

async fn what_is_on_disk_is_counted_and_what_was_refused_is_not(house: House) {
    assert_eq!(house.store.written(), Written { transactions: 0, changes: 0 });
    house.store.create(row(1, "main.ada."), &order()).await.unwrap();
    house.store.save(row(1, "main.ada."), true, false).await.unwrap();
    assert_eq!(house.store.written(), Written { transactions: 2, changes: 2 });
    assert!(house.store.create(row(2, "main.ada."), &order()).await.is_err());
    assert_eq!(house.store.written().changes, 2);
    let (bob, eve) = (row(3, "main.bob."), row(4, "main.eve."));
    let (sealed, other) = (order(), order());
    let (one, two) = tokio::join!(house.store.create(bob, &sealed), house.store.create(eve, &other));
    one.and(two).unwrap();
    assert_eq!(house.store.written().changes, 4);
}

async fn launch_orders_are_sealed_in_the_tables(house: House) {
    house.store.create(row(1, "main.ada."), &order()).await.unwrap();
    let rows = sqlx::query("SELECT sealed FROM orders").fetch_all(&house.store.inner.readers).await.unwrap();
    let sealed: Vec<u8> = get(&rows[0], "sealed").unwrap();
    assert!(order().expose_secret().contains("s3cret"));
    assert!(sealed.len() > 16 && !sealed.windows(6).any(|w| w == b"s3cret"));
}

async fn a_run_is_found_by_the_beginning_of_its_id(house: House) {
    for n in [1, 2] {
        house.store.create(row(n, &format!("main.u{n}.")), &order()).await.unwrap();
    }
    let look = Look::open(house.database.clone()).unwrap();
    let id = run(2).to_string();
    for (beginning, meant) in [(&id[..], vec![run(2)]), (&id[..1], vec![run(1), run(2)]), ("7", vec![])] {
        let found = look.named(beginning).await.unwrap();
        assert_eq!(found.iter().map(|row| row.run).collect::<Vec<_>>(), meant, "{beginning}");
    }
}

async fn one_server_has_one_live_run(house: House) {
    house.store.create(row(1, "main.ada."), &order()).await.unwrap();
    let twice = house.store.create(row(2, "main.ada."), &order()).await;
    assert!(matches!(twice, Err(StoreError::AlreadyAlive)));
    house.store.create(row(3, "main.bob."), &order()).await.unwrap();
    house.store.save(ended(1, "main.ada.", 5), true, true).await.unwrap();
    house.store.create(row(4, "main.ada."), &order()).await.unwrap();
    let last: Vec<RunId> = house.store.last_runs().await.unwrap().iter().map(|row| row.run).collect();
    assert_eq!(last, [run(3), run(4)]);
}

async fn many_changes_at_once_are_all_written_and_told_in_order(house: House) {
    let mut events = house.store.subscribe();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..200 {
        let store = house.store.clone();
        tasks.spawn(async move { store.create(row(n, &format!("main.u{n}.")), &order()).await });
    }
    // One that fails among them spoils no other.
    let store = house.store.clone();
    tasks.spawn(async move {
        store.create(row(1000, "main.same."), &order()).await.unwrap();
        match store.create(row(1001, "main.same."), &order()).await {
            Err(StoreError::AlreadyAlive) => Ok(()),
            other => panic!("{other:?}"),
        }
    });
    while let Some(done) = tasks.join_next().await {
        done.unwrap().unwrap();
    }
    assert_eq!(house.store.unsettled().await.unwrap().len(), 201);
    let told: Vec<u64> = std::iter::from_fn(|| events.try_recv().ok()).map(|event| event.id).collect();
    assert_eq!(told, (1..=201).collect::<Vec<_>>());
}

async fn an_agent_that_dials_again_is_known_while_nothing_can_be_written(house: House) {
    house.store.create(row(1, "main.ada."), &order()).await.unwrap();
    let ours = house.store.bind(attempt(1, 1), &KEY, true).await.unwrap();
    let _held = house.held().await;
    let again = timeout(Duration::from_secs(5), house.store.bind(attempt(1, 1), &KEY, true));
    assert_eq!(again.await.expect("it waits for no writer").unwrap(), ours);
    assert_eq!(house.store.bind(attempt(1, 1), &OTHER_KEY, true).await.unwrap(), Bound::ToAnotherKey);
}

async fn a_change_waits_for_somebody_who_holds_the_tables_and_is_then_written_once(house: House) {
    let (held, order) = (house.held().await, order());
    let create = house.store.create(row(1, "main.ada."), &order);
    tokio::pin!(create);
    assert!(timeout(Duration::from_millis(500), &mut create).await.is_err(), "it waits");
    held.close().await.unwrap();
    create.await.unwrap();
    assert_eq!(house.store.unsettled().await.unwrap().len(), 1);
}

async fn a_key_is_bound_once_and_the_same_key_may_come_again(house: House) {
    house.store.create(row(1, "main.ada."), &order()).await.unwrap();
    let ours = Bound::ToThisKey { server_key: "main.ada.".to_owned() };
    assert_eq!(house.store.bind(attempt(1, 1), &KEY, true).await.unwrap(), ours);
    assert_eq!(
        house.store.bind(attempt(1, 1), &KEY, false).await.unwrap(),
        ours,
        "also when its time is over"
    );
    assert_eq!(house.store.bind(attempt(1, 1), &OTHER_KEY, true).await.unwrap(), Bound::ToAnotherKey);
    let house = house.crashed().await;
    assert_eq!(house.store.bind(attempt(1, 1), &OTHER_KEY, true).await.unwrap(), Bound::ToAnotherKey);
    assert_eq!(house.store.bind(attempt(1, 1), &KEY, true).await.unwrap(), ours);
}

async fn two_keys_at_once_have_one_winner(house: House) {
    house.store.create(row(1, "main.ada."), &order()).await.unwrap();
    let bind = |key| house.store.bind(attempt(1, 1), key, true);
    let (one, other) = tokio::join!(bind(&KEY), bind(&OTHER_KEY));
    let winners =
        [one.unwrap(), other.unwrap()].iter().filter(|b| matches!(b, Bound::ToThisKey { .. })).count();
    assert_eq!(winners, 1);
}

async fn a_fence_is_never_lifted_and_keeps_out(house: House) {
    house.store.create(row(1, "main.ada."), &order()).await.unwrap();
    let mut fenced = row(1, "main.ada.");
    fenced.attempts[0].fenced = true;
    house.store.save(fenced, false, false).await.unwrap();
    house.store.save(row(1, "main.ada."), false, false).await.unwrap();
    assert_eq!(house.store.bind(attempt(1, 1), &KEY, true).await.unwrap(), Bound::Fenced);
    assert_eq!(house.store.bind(attempt(1, 2), &KEY, true).await.unwrap(), Bound::Unknown);
    assert_eq!(house.store.bind(attempt(9, 1), &KEY, true).await.unwrap(), Bound::Unknown);
}

async fn a_ticket_is_not_redeemed_for_the_first_time_when_its_time_is_over(house: House) {
    house.store.create(row(1, "main.ada."), &order()).await.unwrap();
    assert_eq!(house.store.bind(attempt(1, 1), &KEY, false).await.unwrap(), Bound::TooLate);
}

async fn events_are_read_back_after_an_id_and_ids_never_come_again(house: House) {
    for n in 0..5 {
        house.store.create(row(n, &format!("main.u{n}.")), &order()).await.unwrap();
    }
    let after: Vec<u64> =
        house.store.events_after("main", 2, 10).await.unwrap().iter().map(|event| event.id).collect();
    assert_eq!(after, [3, 4, 5]);
    assert!(house.store.events_after("other", 0, 10).await.unwrap().is_empty());
    house.store.prune(0, 0).await.unwrap();
    assert_eq!(house.store.event_ids().await.unwrap(), None);
    let house = house.crashed().await;
    house.store.create(row(9, "main.late."), &order()).await.unwrap();
    assert_eq!(house.store.event_ids().await.unwrap(), Some((6, 6)));
}

async fn old_ends_go_but_the_last_of_each_server_stays(house: House) {
    for (n, key) in [(1, "main.ada."), (2, "main.ada."), (3, "main.bob.")] {
        house.store.create(row(n, key), &order()).await.unwrap();
        house.store.save(ended(n, key, 100), true, true).await.unwrap();
    }
    house.store.create(row(4, "main.eve."), &order()).await.unwrap();
    house.store.prune(1000, 100).await.unwrap();
    let kept: Vec<RunId> = house.store.last_runs().await.unwrap().iter().map(|row| row.run).collect();
    assert_eq!(kept, [run(2), run(3), run(4)]);
    assert_eq!(house.store.is_wanted(attempt(1, 1)).await.unwrap(), None, "it is gone");
    assert_eq!(house.store.is_wanted(attempt(3, 1)).await.unwrap(), Some(false));
    assert_eq!(house.store.is_wanted(attempt(4, 1)).await.unwrap(), Some(true));
    assert_eq!(house.store.is_wanted(attempt(4, 2)).await.unwrap(), None, "no such attempt");
}

async fn a_closed_store_says_so(house: House) {
    house.store.create(row(1, "main.ada."), &order()).await.unwrap();
    assert!(house.store.healthy().await);
    house.store.close().await;
    assert!(!house.store.healthy().await);
    let late =
        tokio::time::timeout(Duration::from_secs(5), house.store.save(row(1, "x"), false, false)).await;
    assert!(matches!(late, Ok(Err(StoreError::Closed))));
}

async fn a_database_of_a_newer_version_is_refused_in_a_sentence(house: House) {
    house.store.close().await;
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (9999, 'later', $1, $2, 0)";
    let mut elsewhere = house.elsewhere().await;
    sqlx::query(newer).bind(true).bind(vec![0_u8]).execute(&mut elsewhere).await.unwrap();
    elsewhere.close().await.unwrap();
    let error = refused(&house.database, house.dir.path()).await;
    assert!(error.contains("newer version"), "{error}");
}

async fn when_all_readers_are_busy_one_more_waits_then_is_told_so(house: House) {
    house.store.create(row(1, "main.ada."), &order()).await.unwrap();
    house.store.close().await;
    let seal = Seal::in_state_dir(house.dir.path()).unwrap();
    let store = Store::opened(house.database.clone(), seal, Duration::from_secs(1)).await.unwrap();
    let mut busy = Vec::new();
    for _ in 0..database::READERS {
        busy.push(store.inner.readers.acquire().await.unwrap());
    }
    let told = store.unsettled().await.unwrap_err().to_string();
    let why = "the database could not be read: all 4 connections for reading were in use for 1 seconds";
    assert_eq!(told, why);
    store.save(row(1, "main.ada."), true, false).await.expect("the writer has a connection of its own");
    let waits = store.unsettled();
    let frees = async { drop(busy.pop()) };
    let (rows, ()) = tokio::join!(waits, frees);
    assert_eq!(rows.unwrap().len(), 1, "one was let go in time");
    drop(busy);
    assert!(store.healthy().await);
}
