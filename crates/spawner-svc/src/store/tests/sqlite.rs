//! What SQLite alone has: files, pragmas, a file that cannot grow.

use std::fs;

use super::*;

#[tokio::test]
async fn launch_orders_are_not_readable_in_the_files_and_are_erased() {
    let house = House::sqlite().await;
    house.store.create(row(1, "main.ada."), &order()).await.unwrap();
    for file in fs::read_dir(house.dir.path()).unwrap().flatten().filter(|file| file.path().is_file()) {
        let mode = std::os::unix::fs::MetadataExt::mode(&file.metadata().unwrap());
        assert_eq!(mode & 0o777, 0o600, "{:?}", file.path());
        let bytes = fs::read(file.path()).unwrap();
        assert!(!bytes.windows(6).any(|w| w == b"s3cret"), "{:?}", file.path());
    }
    house.store.save(ended(1, "main.ada.", 5), true, true).await.unwrap();
    assert!(house.store.order(run(1)).await.unwrap().is_none());
}

#[tokio::test]
async fn of_an_erased_launch_order_no_byte_is_left_in_the_files() {
    let house = House::sqlite().await;
    let long = SecretString::from("{\"token\":\"s3cret\"}".repeat(2000)); // more than a page holds
    house.store.create(row(1, "main.ada."), &long).await.unwrap();
    let sealed =
        sqlx::query("SELECT sealed FROM orders").fetch_one(&house.store.inner.readers).await.unwrap();
    let sealed: Vec<u8> = get(&sealed, "sealed").unwrap();
    let parts = || sealed.chunks(1000).map(|part| &part[..32.min(part.len())]);
    let left = || {
        let files = fs::read_dir(house.dir.path()).unwrap().flatten();
        let read: Vec<Vec<u8>> = files.filter_map(|file| fs::read(file.path()).ok()).collect();
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
    let house = House::sqlite().await;
    let mut connection = house.database.writer().await.unwrap();
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
    let written = |house: &House| fs::metadata(house.dir.path().join("glidepath.db-wal")).unwrap().len();
    let (one_by_one, at_once) = (House::sqlite().await, House::sqlite().await);
    for n in 0..40 {
        create(&one_by_one, n).await;
    }
    futures_util::future::join_all((0..40).map(|n| create(&at_once, n))).await;
    assert_eq!(at_once.store.unsettled().await.unwrap().len(), 40);
    let (one_by_one, at_once) = (written(&one_by_one), written(&at_once));
    assert!(at_once * 3 < one_by_one, "{at_once} bytes at once, {one_by_one} one by one");
}

#[tokio::test]
async fn a_disk_that_is_full_at_the_start_is_no_newer_version() {
    let dir = tempfile::tempdir().unwrap();
    let mut connection = Database::in_folder(dir.path()).writer().await.unwrap();
    sqlx::query("PRAGMA max_page_count = 2").execute(&mut connection).await.unwrap();
    let error = database::SQLITE.run(&mut connection).await.unwrap_err();
    let told = faults::not_migrated(&error, |error| faults::failed("opened", error)).to_string();
    assert_eq!(told, "the database could not be opened: the disk is full: make room in the state folder");
}

#[tokio::test]
async fn a_full_disk_is_told_in_a_sentence() {
    let house = House::sqlite().await;
    let mut connection = house.database.writer().await.unwrap();
    sqlx::query("PRAGMA max_page_count = 1").execute(&mut connection).await.unwrap();
    let much = "INSERT INTO events (hub, run, view) VALUES ('main', 'x', hex(zeroblob(1000000)))";
    let error = sqlx::query(much).execute(&mut connection).await.unwrap_err();
    assert!(faults::failed("written", &error).to_string().contains("the disk is full"), "{error}");
}

#[tokio::test]
async fn when_the_disk_fills_up_nothing_is_written_that_is_told_to_have_failed() {
    let house = House::sqlite().await;
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
    let house = House::sqlite().await;
    let seal = house.store.inner.seal.close(&run(1).to_string(), &order()).unwrap();
    let big = Change::Create { row: Box::new(row(1, "main.big.")), sealed: vec![7; 1_000_000] };
    written_together(full_writer_of(&house).await, [big]).await;
    assert!(house.store.trouble().is_some());
    let probed = written_together(full_writer_of(&house).await, [Change::Probe]).await;
    assert!(probed[0].is_err(), "a start would not find room");
    assert!(house.store.healthy().await, "the house's own writer has room");
    assert!(house.store.trouble().is_none());
    assert!(house.store.unsettled().await.unwrap().is_empty(), "nothing of the try is left");
    let create = Change::Create { row: Box::new(row(1, "main.ada.")), sealed: seal };
    assert!(written_together(full_writer_of(&house).await, [create]).await[0].is_ok());
    assert!(matches!(house.store.create(row(2, "main.ada."), &order()).await, Err(StoreError::AlreadyAlive)));
    assert!(house.store.trouble().is_none(), "a refusal is no failure");
}

#[tokio::test]
async fn a_file_that_another_process_holds_for_too_long_is_told_and_written_when_it_is_free() {
    let house = House::sqlite().await;
    let impatient = writer_of(&house, "PRAGMA busy_timeout = 200").await;
    let held = house.held().await;
    let sealed = house.store.inner.seal.close(&run(1).to_string(), &order()).unwrap();
    let create = Change::Create { row: Box::new(row(1, "main.ada.")), sealed };
    let told = written_together(impatient, [create]).await.remove(0).err().unwrap().to_string();
    assert!(
        told.contains("another process holds it: does a second service use this state folder?"),
        "{told}"
    );
    assert!(house.store.trouble().is_some(), "it is unwell meanwhile");
    held.close().await.unwrap();
    assert!(house.store.unsettled().await.unwrap().is_empty(), "nothing of the try is left");
    house.store.create(row(1, "main.ada."), &order()).await.unwrap();
    assert!(house.store.trouble().is_none());
    assert_eq!(house.store.unsettled().await.unwrap().len(), 1);
}

/// A second writer of the house's database, for which no page can be added to it.
async fn full_writer_of(house: &House) -> (mpsc::Sender<Job>, Writer) {
    writer_of(house, "PRAGMA max_page_count = 1").await
}

async fn writer_of(house: &House, setting: &'static str) -> (mpsc::Sender<Job>, Writer) {
    let mut connection = house.database.writer().await.unwrap();
    sqlx::query(setting).execute(&mut connection).await.unwrap();
    let (changes, jobs) = mpsc::channel(CHANGES_WAITING);
    let (events, health) = (house.store.inner.events.clone(), Arc::clone(&house.store.inner.health));
    (changes, Writer::new(house.database.clone(), connection, 0, jobs, events, health))
}

/// Has changes written that all wait before the writer looks.
async fn written_together<const N: usize>(
    (changes, writer): (mpsc::Sender<Job>, Writer),
    batch: [Change; N],
) -> Vec<Result<Done, StoreError>> {
    let mut answers = Vec::new();
    for change in batch {
        let (job, answer) = Job::new(change);
        changes.send(job).await.ok().unwrap();
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
    fs::write(dir.path().join("glidepath.db"), "this is no database, it is a poem of some length").unwrap();
    let error =
        Store::open(dir.path(), Seal::in_state_dir(dir.path()).unwrap()).await.err().unwrap().to_string();
    assert!(error.contains("damaged"), "{error}");
}
