use std::time::Duration;

use glidepath_domain::names::{Attempt, RunId};
use secrecy::{ExposeSecret as _, SecretString};

use super::*;
use crate::seal::Seal;

const KEY: [u8; 32] = [7; 32];
const OTHER_KEY: [u8; 32] = [8; 32];

struct House {
    dir: tempfile::TempDir,
    store: Store,
}

impl House {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = opened(dir.path()).await;
        Self { dir, store }
    }

    /// What a crash leaves: the old handles are dropped, nothing is closed.
    async fn crashed(self) -> Self {
        drop(self.store);
        let store = opened(self.dir.path()).await;
        Self { dir: self.dir, store }
    }
}

async fn opened(dir: &Path) -> Store {
    Store::open(dir, Seal::in_state_dir(dir).unwrap()).await.unwrap()
}

fn run(n: u64) -> RunId {
    RunId::from_parts(1_700_000_000_000 + n, u128::from(n))
}

fn row(n: u64, server_key: &str) -> RunRow {
    RunRow {
        run: run(n),
        hub: "main".to_owned(),
        server_key: server_key.to_owned(),
        spawn_id: format!("spawn-{n}"),
        state: "submitting".to_owned(),
        alive: true,
        settled: false,
        requested_ms: 1,
        ended_ms: None,
        doc: format!("{{\"n\":{n}}}"),
        view: format!("{{\"view\":{n}}}"),
        attempts: vec![AttemptRow { number: 1, site: "here".to_owned(), fenced: false, job: None }],
    }
}

fn ended(n: u64, server_key: &str, at_ms: i64) -> RunRow {
    let mut row = row(n, server_key);
    row.attempts[0].fenced = true;
    RunRow { alive: false, settled: true, ended_ms: Some(at_ms), state: "ended".to_owned(), ..row }
}

fn order() -> SecretString {
    SecretString::from("{\"token\":\"s3cret\"}")
}

fn attempt(n: u64, number: u32) -> Attempt {
    Attempt { run: run(n), number }
}

#[tokio::test]
async fn what_was_written_is_there_after_a_crash() {
    let house = House::new().await;
    house.store.create(row(1, "main.ada."), &order()).await.unwrap();
    let house = house.crashed().await;
    let kept = house.store.unsettled().await.unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].doc, "{\"n\":1}");
    assert_eq!(house.store.order(run(1)).await.unwrap().unwrap().expose_secret(), order().expose_secret());
}

#[tokio::test]
async fn launch_orders_are_not_readable_in_the_files_and_are_erased() {
    let house = House::new().await;
    house.store.create(row(1, "main.ada."), &order()).await.unwrap();
    for file in std::fs::read_dir(house.dir.path()).unwrap().flatten().filter(|file| file.path().is_file()) {
        let mode = std::os::unix::fs::MetadataExt::mode(&file.metadata().unwrap());
        assert_eq!(mode & 0o777, 0o600, "{:?}", file.path());
        let bytes = std::fs::read(file.path()).unwrap();
        assert!(!bytes.windows(6).any(|w| w == b"s3cret"), "{:?}", file.path());
    }
    house.store.save(ended(1, "main.ada.", 5), true, true).await.unwrap();
    assert!(house.store.order(run(1)).await.unwrap().is_none());
}

#[tokio::test]
async fn of_an_erased_launch_order_no_byte_is_left_in_the_files() {
    let house = House::new().await;
    let long = SecretString::from("{\"token\":\"s3cret\"}".repeat(2000)); // more than a page holds
    house.store.create(row(1, "main.ada."), &long).await.unwrap();
    let sealed =
        sqlx::query("SELECT sealed FROM orders").fetch_one(&house.store.inner.readers).await.unwrap();
    let sealed: Vec<u8> = get(&sealed, "sealed").unwrap();
    let parts = || sealed.chunks(1000).map(|part| &part[..32.min(part.len())]);
    let left = || {
        let files = std::fs::read_dir(house.dir.path()).unwrap().flatten();
        let read: Vec<Vec<u8>> = files.filter_map(|file| std::fs::read(file.path()).ok()).collect();
        parts().filter(|part| read.iter().any(|file| file.windows(part.len()).any(|w| w == *part))).count()
    };
    assert_eq!(left(), parts().count(), "all of it, while it may be needed");
    house.store.prune(0, 100).await.unwrap();
    assert_eq!(left(), parts().count(), "also in the database's own file");
    house.store.save(ended(1, "main.ada.", 5), true, true).await.unwrap();
    house.store.prune(0, 100).await.unwrap();
    house.store.prune(0, 100).await.unwrap(); // answered after what follows the first one
    assert_eq!(left(), 0);
}

#[tokio::test]
async fn the_database_is_opened_as_it_must_be() {
    let house = House::new().await;
    let mut connection = options(&house.dir.path().join("glidepath.db")).connect().await.unwrap();
    let full = "2";
    for (pragma, value) in
        [("journal_mode", "wal"), ("synchronous", full), ("foreign_keys", "1"), ("secure_delete", "1")]
    {
        let query = format!("SELECT CAST({pragma} AS TEXT) AS value FROM pragma_{pragma}");
        let row = sqlx::query(sqlx::AssertSqlSafe(query)).fetch_one(&mut connection).await.unwrap();
        assert_eq!(get::<String>(&row, "value").unwrap(), value, "{pragma}");
    }
}

#[tokio::test]
async fn what_is_asked_at_once_is_written_together() {
    let create = |house: &House, n: u64| {
        let store = house.store.clone();
        async move { store.create(row(n, &format!("main.u{n}.")), &order()).await.unwrap() }
    };
    let written = |house: &House| std::fs::metadata(house.dir.path().join("glidepath.db-wal")).unwrap().len();
    let (one_by_one, at_once) = (House::new().await, House::new().await);
    for n in 0..40 {
        create(&one_by_one, n).await;
    }
    futures_util::future::join_all((0..40).map(|n| create(&at_once, n))).await;
    assert_eq!(at_once.store.unsettled().await.unwrap().len(), 40);
    let (one_by_one, at_once) = (written(&one_by_one), written(&at_once));
    assert!(at_once * 3 < one_by_one, "{at_once} bytes at once, {one_by_one} one by one");
}

#[tokio::test]
async fn one_server_has_one_live_run() {
    let house = House::new().await;
    house.store.create(row(1, "main.ada."), &order()).await.unwrap();
    let twice = house.store.create(row(2, "main.ada."), &order()).await;
    assert!(matches!(twice, Err(StoreError::AlreadyAlive)));
    house.store.create(row(3, "main.bob."), &order()).await.unwrap();
    house.store.save(ended(1, "main.ada.", 5), true, true).await.unwrap();
    house.store.create(row(4, "main.ada."), &order()).await.unwrap();
    let last: Vec<RunId> = house.store.last_runs().await.unwrap().iter().map(|row| row.run).collect();
    assert_eq!(last, [run(3), run(4)]);
}

#[tokio::test]
async fn many_changes_at_once_are_all_written_and_told_in_order() {
    let house = House::new().await;
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

#[tokio::test]
async fn an_agent_that_dials_again_is_known_while_nothing_can_be_written() {
    let house = House::new().await;
    house.store.create(row(1, "main.ada."), &order()).await.unwrap();
    let ours = house.store.bind(attempt(1, 1), &KEY, true).await.unwrap();
    let elsewhere = SqliteConnectOptions::new().filename(house.dir.path().join("glidepath.db"));
    let mut elsewhere = elsewhere.connect().await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut elsewhere).await.unwrap();
    let again = tokio::time::timeout(BUSY / 2, house.store.bind(attempt(1, 1), &KEY, true));
    assert_eq!(again.await.expect("it waits for no writer").unwrap(), ours);
    assert_eq!(house.store.bind(attempt(1, 1), &OTHER_KEY, true).await.unwrap(), Bound::ToAnotherKey);
}

#[tokio::test]
async fn a_key_is_bound_once_and_the_same_key_may_come_again() {
    let house = House::new().await;
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

#[tokio::test]
async fn two_keys_at_once_have_one_winner() {
    let house = House::new().await;
    house.store.create(row(1, "main.ada."), &order()).await.unwrap();
    let bind = |key| house.store.bind(attempt(1, 1), key, true);
    let (one, other) = tokio::join!(bind(&KEY), bind(&OTHER_KEY));
    let winners =
        [one.unwrap(), other.unwrap()].iter().filter(|b| matches!(b, Bound::ToThisKey { .. })).count();
    assert_eq!(winners, 1);
}

#[tokio::test]
async fn a_fence_is_never_lifted_and_keeps_out() {
    let house = House::new().await;
    house.store.create(row(1, "main.ada."), &order()).await.unwrap();
    let mut fenced = row(1, "main.ada.");
    fenced.attempts[0].fenced = true;
    house.store.save(fenced, false, false).await.unwrap();
    house.store.save(row(1, "main.ada."), false, false).await.unwrap();
    assert_eq!(house.store.bind(attempt(1, 1), &KEY, true).await.unwrap(), Bound::Fenced);
    assert_eq!(house.store.bind(attempt(1, 2), &KEY, true).await.unwrap(), Bound::Unknown);
    assert_eq!(house.store.bind(attempt(9, 1), &KEY, true).await.unwrap(), Bound::Unknown);
}

#[tokio::test]
async fn a_ticket_is_not_redeemed_for_the_first_time_when_its_time_is_over() {
    let house = House::new().await;
    house.store.create(row(1, "main.ada."), &order()).await.unwrap();
    assert_eq!(house.store.bind(attempt(1, 1), &KEY, false).await.unwrap(), Bound::TooLate);
}

#[tokio::test]
async fn events_are_read_back_after_an_id_and_ids_never_come_again() {
    let house = House::new().await;
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

#[tokio::test]
async fn old_ends_go_but_the_last_of_each_server_stays() {
    let house = House::new().await;
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

#[tokio::test]
async fn a_closed_store_says_so() {
    let house = House::new().await;
    house.store.create(row(1, "main.ada."), &order()).await.unwrap();
    assert!(house.store.healthy().await);
    house.store.close().await;
    assert!(!house.store.healthy().await);
    let late =
        tokio::time::timeout(Duration::from_secs(5), house.store.save(row(1, "x"), false, false)).await;
    assert!(matches!(late, Ok(Err(StoreError::Closed))));
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused_in_a_sentence() {
    let house = House::new().await;
    house.store.close().await;
    let options = SqliteConnectOptions::new().filename(house.dir.path().join("glidepath.db"));
    let mut connection = options.connect().await.unwrap();
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (9999, 'later', 1, x'00', 0)";
    sqlx::query(newer).execute(&mut connection).await.unwrap();
    drop(connection);
    let seal = Seal::in_state_dir(house.dir.path()).unwrap();
    let error = Store::open(house.dir.path(), seal).await.err().unwrap().to_string();
    assert!(error.contains("newer version"), "{error}");
}

#[tokio::test]
async fn a_disk_that_is_full_at_the_start_is_no_newer_version() {
    let dir = tempfile::tempdir().unwrap();
    let full = options(&dir.path().join("glidepath.db")).pragma("max_page_count", "2");
    let mut connection = full.connect().await.unwrap();
    let error = sqlx::migrate!("./migrations").run(&mut connection).await.unwrap_err();
    let told = not_migrated(&error).to_string();
    assert_eq!(told, "the database could not be opened: the disk is full: make room in the state folder");
}

#[tokio::test]
async fn a_full_disk_is_told_in_a_sentence() {
    let house = House::new().await;
    let options = SqliteConnectOptions::new().filename(house.dir.path().join("glidepath.db"));
    let mut connection = options.pragma("max_page_count", "1").connect().await.unwrap();
    let much = "INSERT INTO events (hub, run, view) VALUES ('main', 'x', hex(zeroblob(1000000)))";
    let error = sqlx::query(much).execute(&mut connection).await.unwrap_err();
    assert!(failed("written", &error).to_string().contains("the disk is full"), "{error}");
}

#[tokio::test]
async fn when_the_disk_fills_up_nothing_is_written_that_is_told_to_have_failed() {
    let house = House::new().await;
    house.store.create(row(1, "main.before."), &order()).await.unwrap();
    let mut events = house.store.subscribe();
    let writer = full_writer_of(&house).await;
    let seal = |n| house.store.inner.seal.close(&run(n).to_string(), &order()).unwrap();
    let create = |n, key: &str, sealed| Change::Create { row: Box::new(row(n, key)), sealed };
    let batch = [
        create(2, "main.ada.", seal(2)),
        create(3, "main.big.", vec![7; 1_000_000]),
        create(4, "main.bob.", seal(4)),
        create(5, "main.eve.", seal(5)),
    ];
    for done in written_together(writer, batch).await {
        assert!(done.is_err_and(|error| error.to_string().contains("the disk is full")));
    }
    let kept: Vec<RunId> = house.store.unsettled().await.unwrap().iter().map(|row| row.run).collect();
    assert_eq!(kept, [run(1)], "what was told to have failed is not there");
    assert!(events.try_recv().is_err());

    let writer = full_writer_of(&house).await;
    let done = written_together(writer, [create(6, "main.small.", seal(6))]).await;
    assert!(done[0].is_ok(), "what fits is written");
}

#[tokio::test]
async fn a_store_that_could_not_write_is_unwell_until_it_can() {
    let house = House::new().await;
    let seal = house.store.inner.seal.close(&run(1).to_string(), &order()).unwrap();
    let big = Change::Create { row: Box::new(row(1, "main.big.")), sealed: vec![7; 1_000_000] };
    written_together(full_writer_of(&house).await, [big]).await;
    assert!(!house.store.inner.able.load(Ordering::Relaxed));
    let probed = written_together(full_writer_of(&house).await, [Change::Probe]).await;
    assert!(probed[0].is_err(), "a start would not find room");
    assert!(house.store.healthy().await, "the house's own writer has room");
    assert!(house.store.inner.able.load(Ordering::Relaxed));
    assert!(house.store.events_after("", 0, 10).await.unwrap().is_empty(), "nothing of the try is left");
    let create = Change::Create { row: Box::new(row(1, "main.ada.")), sealed: seal };
    assert!(written_together(full_writer_of(&house).await, [create]).await[0].is_ok());
    assert!(matches!(house.store.create(row(2, "main.ada."), &order()).await, Err(StoreError::AlreadyAlive)));
    assert!(house.store.inner.able.load(Ordering::Relaxed), "a refusal is no failure");
}

/// A second writer of the house's database, for which no page can be added to it.
async fn full_writer_of(house: &House) -> (mpsc::Sender<Job>, Writer) {
    let options = options(&house.dir.path().join("glidepath.db")).pragma("max_page_count", "1");
    let connection = options.connect().await.unwrap();
    let (changes, jobs) = mpsc::channel(CHANGES_WAITING);
    let (events, able) = (house.store.inner.events.clone(), Arc::clone(&house.store.inner.able));
    (changes, Writer { connection, jobs, events, able })
}

/// Has changes written that all wait before the writer looks.
async fn written_together<const N: usize>(
    (changes, writer): (mpsc::Sender<Job>, Writer),
    batch: [Change; N],
) -> Vec<Result<Done, StoreError>> {
    let mut answers = Vec::new();
    for change in batch {
        let (reply, answer) = oneshot::channel();
        changes.send(Job { change, reply }).await.unwrap();
        answers.push(answer);
    }
    drop(changes);
    writer.run().await;
    let mut done = Vec::new();
    for answer in answers {
        done.push(answer.await.unwrap());
    }
    done
}

#[tokio::test]
async fn a_damaged_database_is_told_in_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("glidepath.db"), "this is no database, it is a poem of some length")
        .unwrap();
    let error =
        Store::open(dir.path(), Seal::in_state_dir(dir.path()).unwrap()).await.err().unwrap().to_string();
    assert!(error.contains("damaged"), "{error}");
}
