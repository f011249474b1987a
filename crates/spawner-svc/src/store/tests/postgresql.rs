//! What can happen to a PostgreSQL server, done to a real one.

use std::io::Write as _;
use std::process::{Child, Command, Stdio};

use tokio::task::spawn_blocking;

use super::*;

/// The session that may write.
const WRITER: &str = "SELECT l.pid FROM pg_locks l JOIN pg_database d ON d.oid = l.database \
                      WHERE l.locktype = 'advisory' AND l.granted AND l.classid::bigint = 1735159905 AND d.datname = ";

fn writer_of(name: &str) -> String {
    cluster().sql(name, &format!("{WRITER}'{name}'")).trim().to_owned()
}

/// A new house whose database has this name.
async fn named() -> (House, String) {
    let name = fresh(cluster());
    (House::on(cluster(), &name).await, name)
}

#[tokio::test]
async fn a_second_service_is_told_who_writes_and_may_when_that_one_ends() {
    let house = House::postgresql().await;
    let Database::PostgreSql { url, shown, us } = house.database.clone() else { panic!("no server") };
    let second = Database::postgresql(url, shown);
    let told = refused(&second, house.dir.path()).await;
    assert!(
        told.starts_with(&format!("another service writes this database: {us:?}, connected from")),
        "{told}"
    );
    assert!(told.contains("end it, or give each service a database of its own"), "{told}");
    house.store.close().await;
    opened(&second, house.dir.path()).await;
}

#[tokio::test]
async fn a_service_whose_lock_another_took_writes_nothing_more_and_says_so() {
    let (house, name) = named().await;
    house.store.create(row(1, "main.ada."), &order()).await.unwrap();
    let _rival = Rival::waits_for_the_lock(&name);
    cluster().sql(&name, &format!("SELECT pg_terminate_backend({})", writer_of(&name)));
    let after = house.store.save(ended(1, "main.ada.", 5), true, true).await;
    assert!(after.is_err(), "{after:?}");
    timeout(SOON, house.store.closed()).await.expect("the store closes");
    let why = house.store.why_closed().unwrap().to_string();
    assert!(why.starts_with("another service writes this database: \"rival\""), "{why}");
    let alive = cluster().sql(&name, "SELECT alive FROM runs");
    assert_eq!(alive.trim(), "1", "the other service's truth is not touched");
}

/// Another client that waits for the writer's place, and keeps it.
struct Rival(Child);

impl Rival {
    fn waits_for_the_lock(name: &str) -> Self {
        let mut session = cluster().psql(name).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let wait = "SET application_name = 'rival';\nSELECT pg_advisory_lock(1735159905, hashtext(current_schema()));\n";
        session.stdin.as_mut().unwrap().write_all(wait.as_bytes()).unwrap();
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'rival' AND wait_event_type = 'Lock'";
        let until = std::time::Instant::now() + SOON;
        while cluster().sql(name, waits).trim() != "1" {
            assert!(std::time::Instant::now() < until, "the rival does not wait");
        }
        Self(session)
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_service_that_was_killed_is_followed_by_the_next_at_once_though_the_server_has_not_missed_it() {
    let house = House::postgresql().await;
    let Database::PostgreSql { url, shown, .. } = house.database.clone() else { panic!("no server") };
    let ends = async {
        sleep(Duration::from_secs(1)).await;
        house.store.close().await;
    };
    let next = Database::postgresql(url, shown);
    let (next, ()) = tokio::join!(opened(&next, house.dir.path()), ends);
    next.create(row(1, "main.ada."), &order()).await.unwrap();
}

/// The server waits for a standby that is not there: a commit is done and not answered.
#[tokio::test]
async fn a_commit_whose_answer_was_lost_is_found_out_and_nothing_is_made_twice() {
    let cluster = Cluster::start(&[]);
    let name = fresh(&cluster);
    let house = House::on(&cluster, &name).await;
    house.store.create(row(1, "main.ada."), &order()).await.unwrap();
    let mut events = house.store.subscribe();
    let standby = |name: &str| {
        cluster.sql("postgres", &format!("ALTER SYSTEM SET synchronous_standby_names = '{name}'"));
        cluster.sql("postgres", "SELECT pg_reload_conf()");
    };
    standby("nobody");
    let (store, other) = (house.store.clone(), house.store.clone());
    let create = tokio::runtime::Handle::current().spawn(async move {
        let (bob, eve) = (row(2, "main.bob."), row(3, "main.eve."));
        let order = order();
        tokio::join!(store.create(bob, &order), other.create(eve, &order))
    });
    let lost = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let unanswered = async || cluster.sql(&name, lost).trim() == "1";
    wait::until(SOON, "a commit is done and not answered", unanswered).await;
    standby("");
    let (bob, eve) = timeout(SOON, create).await.expect("answered").unwrap();
    bob.unwrap();
    eve.unwrap();
    house.store.save(ended(2, "main.bob.", 5), true, true).await.unwrap();
    assert!(cluster.log().contains("transaction has already committed locally"), "{}", cluster.log());
    let told = |events: &mut broadcast::Receiver<EventRow>| -> Vec<u64> {
        std::iter::from_fn(|| events.try_recv().ok()).map(|event| event.id).collect()
    };
    let told = told(&mut events);
    let kept = house.store.events_after("main", 1, 10).await.unwrap();
    assert_eq!(kept.iter().map(|event| event.id).collect::<Vec<_>>(), told, "each told once");
    assert_eq!(told.len(), 3);
    assert_eq!(house.store.unsettled().await.unwrap().len(), 2, "bob's has ended");
    assert!(house.store.order(run(2)).await.unwrap().is_none(), "what was erased is not made again");
}

/// Two sessions wait for each other's row, and the server gives up the writer's transaction.
#[tokio::test]
async fn a_transaction_that_the_server_gave_up_is_begun_again() {
    let (house, name) = named().await;
    for n in [1, 2] {
        house.store.create(row(n, &format!("main.u{n}.")), &order()).await.unwrap();
    }
    let mut rival = house.elsewhere().await;
    let wants = |n| sqlx::query("UPDATE runs SET spawn_id = 'rival' WHERE run = $1").bind(run(n).to_string());
    sqlx::query("BEGIN").execute(&mut rival).await.unwrap();
    wants(2).execute(&mut rival).await.unwrap();
    let both = async {
        let (one, other) = tokio::join!(
            house.store.save(ended(1, "main.u1.", 5), true, true),
            house.store.save(ended(2, "main.u2.", 5), true, true)
        );
        one.unwrap();
        other.unwrap();
    };
    let crosses = async {
        let waits = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}' AND wait_event_type = 'Lock'"
        );
        wait::until(SOON, "the writer waits", async || cluster().sql(&name, &waits).trim() == "1").await;
        wants(1).execute(&mut rival).await.unwrap();
        sqlx::query("COMMIT").execute(&mut rival).await.unwrap();
    };
    timeout(SOON, async { tokio::join!(both, crosses) }).await.unwrap();
    assert!(cluster().log().contains("deadlock detected"));
    let kept = cluster().sql(&name, "SELECT state, spawn_id, count(*) FROM runs GROUP BY 1, 2");
    assert_eq!(kept.trim(), "ended|rival|2", "both were written, each after the other");
    assert_eq!(house.store.events_after("main", 0, 10).await.unwrap().len(), 4);
}

/// A trigger raises what a serializable transaction that came in another's way hears.
#[tokio::test]
async fn a_transaction_is_not_begun_again_for_ever() {
    let (house, name) = named().await;
    let trigger = |body: &str| {
        let function = format!(
            "CREATE OR REPLACE FUNCTION meet() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NEW; END $$"
        );
        cluster().sql(&name, &function);
    };
    cluster().sql(&name, "CREATE SEQUENCE met; GRANT USAGE ON met TO PUBLIC");
    let raise = "RAISE EXCEPTION 'could not serialize access' USING ERRCODE = '40001';";
    trigger(&format!("IF nextval('met') <= 3 THEN {raise} END IF;"));
    cluster().sql(&name, "CREATE TRIGGER meet BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION meet()");
    house.store.create(row(1, "main.ada."), &order()).await.expect("the fourth try comes through");
    trigger(&format!("PERFORM nextval('met'); {raise}"));
    cluster().sql(&name, "SELECT setval('met', 1, false)");
    let told = timeout(SOON, house.store.create(row(2, "main.bob."), &order()))
        .await
        .unwrap()
        .unwrap_err()
        .to_string();
    assert_eq!(told, "the database could not be written: could not serialize access (SQLSTATE 40001)");
    assert_eq!(cluster().sql(&name, "SELECT last_value FROM met").trim(), "7");
    assert_eq!(house.store.unsettled().await.unwrap().len(), 1, "nothing of it is there");
    trigger("");
    house.store.create(row(2, "main.bob."), &order()).await.unwrap();
}

#[tokio::test]
async fn a_full_disk_of_the_server_is_told_and_the_store_recovers() {
    let name = fresh(cluster());
    let small = cluster().folder().join("small");
    std::fs::create_dir(&small).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=20m", "tmpfs"]).arg(&small).status();
    assert!(mounted.unwrap().success(), "this test needs root: it mounts a small disk");
    let (user, group) = cluster().account().expect("this test needs root");
    std::os::unix::fs::chown(&small, Some(user), Some(group)).unwrap();
    cluster().sql("postgres", &format!("CREATE TABLESPACE small LOCATION '{}'", small.display()));
    cluster().sql("postgres", &format!("ALTER DATABASE {name} SET TABLESPACE small"));
    let house = House::on(cluster(), &name).await;
    house.store.create(row(1, "main.ada."), &order()).await.unwrap();
    fill(&small.join("ballast"));
    let large = SecretString::from("o".repeat(400_000)); // sealed, it cannot be compressed
    let told = house.store.create(row(2, "main.bob."), &large).await.unwrap_err().to_string();
    assert_eq!(
        told,
        "the database could not be written: the disk of the database's server is full: make room there"
    );
    assert_eq!(house.store.unsettled().await.unwrap().len(), 1, "nothing of it is there");
    assert!(house.store.trouble().is_some());
    std::fs::remove_file(small.join("ballast")).unwrap();
    wait::until(SOON, "it is well again", async || house.store.healthy().await).await;
    house.store.create(row(2, "main.bob."), &large).await.unwrap();
    house.store.close().await;
    cluster().sql("postgres", &format!("ALTER DATABASE {name} SET TABLESPACE pg_default"));
    cluster().sql("postgres", "DROP TABLESPACE small");
    assert!(Command::new("umount").arg(&small).status().unwrap().success());
}

/// Takes all the room that is left.
fn fill(path: &Path) {
    let mut file = std::fs::File::create(path).unwrap();
    for size in [1 << 20, 1 << 12] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
}

#[tokio::test]
async fn what_keeps_a_service_from_starting_is_told_with_its_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let name = fresh(cluster());
    let at = |user: &str, password: &str, database: &str| {
        let with = cluster().url(&format!("{user}:{password}"), database);
        Database::postgresql(with.into(), cluster().url(user, database))
    };
    let off = |name: &str, how: &str| cluster().sql("postgres", &format!("ALTER ROLE {name} {how}"));
    let (barred, counted, poor) = (fresh(cluster()), fresh(cluster()), fresh(cluster()));
    off(&barred, "NOLOGIN");
    off(&counted, "CONNECTION LIMIT 0");
    cluster().sql("postgres", &format!("ALTER DATABASE {poor} OWNER TO postgres"));
    let gone = Database::postgresql(
        "postgresql://g:s3cret-pw@127.0.0.1:9/g".to_owned().into(),
        "postgresql://g@127.0.0.1:9/g".into(),
    );
    for (database, words) in [
        (at(&name, "s3cret-pw", &name), vec!["password authentication failed", "store.url_file"]),
        (at("stranger", PASSWORD, &name), vec!["store.url_file"]),
        (at(&name, PASSWORD, "nowhere"), vec!["\"nowhere\" does not exist", "CREATE DATABASE"]),
        (at(&barred, PASSWORD, &barred), vec!["not permitted to log in", "LOGIN"]),
        (
            at(&counted, PASSWORD, &counted),
            vec!["takes no more connections", "5 for this service", "raise max_connections"],
        ),
        (at(&poor, PASSWORD, &poor), vec!["GRANT USAGE, CREATE ON SCHEMA"]),
        (gone, vec!["nobody answers at postgresql://g@127.0.0.1:9/g", "is the server running"]),
    ] {
        let told = refused(&database, dir.path()).await;
        for word in words {
            assert!(told.contains(word), "{word:?} is not in: {told}");
        }
        assert!(told.starts_with("the database could not be opened: "), "{told}");
        let lack = database.lack().await.unwrap_err();
        for told in [told, lack] {
            assert!(!told.contains(PASSWORD) && !told.contains("s3cret-pw"), "{told}");
        }
    }
    at(&name, PASSWORD, &name).lack().await.unwrap();
}

#[tokio::test]
async fn the_way_to_a_server_is_encrypted_and_the_server_proves_itself() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let pair = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, pair.cert.pem()).unwrap();
    let cluster = Cluster::start(&["listen_addresses=127.0.0.1", &format!("port={port}")]);
    let files = cluster.folder().join("data");
    for (name, text) in [("server.crt", pair.cert.pem()), ("server.key", pair.signing_key.serialize_pem())] {
        std::fs::write(files.join(name), text).unwrap();
        let mode = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o600);
        std::fs::set_permissions(files.join(name), mode).unwrap();
        if let Some((user, group)) = cluster.account() {
            std::os::unix::fs::chown(files.join(name), Some(user), Some(group)).unwrap();
        }
    }
    std::fs::write(&key, "").unwrap();
    cluster.sql("postgres", "ALTER SYSTEM SET ssl = on");
    cluster.sql("postgres", "SELECT pg_reload_conf()");
    let name = fresh(&cluster);
    let with = |rest: &str| {
        let url = format!("postgresql://{name}:{PASSWORD}@localhost:{port}/{name}?sslmode=verify-full{rest}");
        Database::postgresql(url.into(), format!("postgresql://{name}@localhost:{port}/{name}"))
    };
    let told = refused(&with(""), dir.path()).await;
    assert!(told.contains("cannot prove itself") && told.contains("sslrootcert=FILE"), "{told}");
    let store = opened(&with(&format!("&sslrootcert={}", cert.display())), dir.path()).await;
    store.create(row(1, "main.ada."), &order()).await.unwrap();
    assert_eq!(store.unsettled().await.unwrap().len(), 1);
    let open = "SELECT count(*) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) \
                WHERE a.application_name LIKE 'glidepath%' AND NOT s.ssl";
    assert_eq!(cluster.sql("postgres", open).trim(), "0");
}

#[tokio::test]
async fn a_server_that_is_away_is_told_once_waited_for_and_told_again_when_it_is_back() {
    let cluster = Arc::new(Cluster::start(&[]));
    let name = fresh(&cluster);
    let house = House::on(&cluster, &name).await;
    house.store.create(row(1, "main.ada."), &order()).await.unwrap();
    let log = Log::default();
    // With one alone, a thread that hears nothing would decide for all which lines are never told.
    let _second = tracing::Dispatch::new(log.clone());
    let _heard = tracing::subscriber::set_default(log.clone());
    cluster.end(End::Fast);
    wait::until(SOON, "it is missed though nothing is asked", async || house.store.trouble().is_some()).await;
    assert!(!house.store.healthy().await);
    let told = timeout(SOON, house.store.create(row(2, "main.bob."), &order())).await.unwrap().unwrap_err();
    assert!(matches!(&told, StoreError::Away(why) if why.contains("nobody answers at")), "{told}");
    let serves = spawn_blocking({
        let cluster = Arc::clone(&cluster);
        move || cluster.serve()
    });
    let (read, served) = tokio::join!(house.store.unsettled(), serves);
    served.unwrap();
    assert_eq!(read.expect("a reader waits").len(), 1);
    let again = async || house.store.create(row(3, "main.eve."), &order()).await.is_ok();
    wait::until(SOON, "what is asked again is written", again).await;
    assert!(house.store.healthy().await);
    let kept: Vec<RunId> = house.store.unsettled().await.unwrap().iter().map(|row| row.run).collect();
    assert_eq!(kept, [run(1), run(3)], "what was told to have failed is not there");
    assert_eq!(house.store.troubles(), 1);
    let lines = log.lines();
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(
        lines[0].starts_with("ERROR the store cannot write")
            && lines[1].starts_with("INFO the store can write again"),
        "{lines:#?}"
    );
}

/// What is told from `info` on.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<String>>>);

impl Log {
    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, meta: &tracing::Metadata<'_>) -> bool {
        *meta.level() <= tracing::Level::INFO
    }

    fn event(&self, event: &tracing::Event<'_>) {
        struct Message(String);
        impl tracing::field::Visit for Message {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                if field.name() == "message" {
                    self.0 = format!("{value:?}");
                }
            }
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        self.0.lock().unwrap().push(format!("{} {}", event.metadata().level(), message.0));
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// Starts and ends at eight doors, while the server is restarted and killed under them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_restarted_and_killed_under_load_loses_nothing_and_doubles_nothing() {
    const DOORS: u64 = 8;
    let cluster = Arc::new(Cluster::start(&[]));
    let name = fresh(&cluster);
    let house = House::on(&cluster, &name).await;
    let over = tokio_util::sync::CancellationToken::new();
    let mut doors = tokio::task::JoinSet::new();
    for door in 0..DOORS {
        doors.spawn(starts_and_ends(house.store.clone(), door, over.clone()));
    }
    let fate = Arc::clone(&cluster);
    let fated = spawn_blocking(move || {
        for how in [End::Killed, End::Fast, End::Killed] {
            let written = || fate.sql(&name, "SELECT count(*) FROM runs").trim().parse::<u64>().unwrap();
            let enough = written() + 40;
            let until = std::time::Instant::now() + SOON;
            while written() < enough {
                assert!(std::time::Instant::now() < until, "the doors stand still");
            }
            fate.end(how);
            fate.serve();
        }
    });
    timeout(SOON * 3, fated).await.expect("in time").unwrap();
    over.cancel();
    let mut told = Vec::new();
    while let Some(done) = doors.join_next().await {
        told.extend(done.unwrap());
    }
    assert!(house.store.troubles() > 0, "nobody met a restart");
    let mut rows: std::collections::HashMap<RunId, RunRow> =
        house.store.last_runs().await.unwrap().into_iter().map(|row| (row.run, row)).collect();
    let mut elsewhere = house.elsewhere().await;
    let mut events = std::collections::HashMap::<String, i64>::new();
    let counted = "SELECT run, count(*) AS n FROM events GROUP BY run";
    for row in sqlx::query(counted).fetch_all(&mut elsewhere).await.unwrap() {
        events.insert(get(&row, "run").unwrap(), get(&row, "n").unwrap());
    }
    for Told { run, created, ended } in told {
        let Some(row) = rows.remove(&run) else {
            assert!(!created, "{run} was told to be written");
            continue;
        };
        assert!(created, "{run} was told to have failed");
        assert_eq!(row.alive, !ended, "{run}");
        assert_eq!(events.remove(&run.to_string()), Some(if ended { 2 } else { 1 }), "events of {run}");
        assert_eq!(house.store.order(run).await.unwrap().is_none(), ended, "the order of {run}");
    }
    assert!(rows.is_empty() && events.is_empty(), "nobody asked for {rows:?} {events:?}");
}

/// What a door was told of one run.
struct Told {
    run: RunId,
    created: bool,
    ended: bool,
}

async fn starts_and_ends(store: Store, door: u64, over: tokio_util::sync::CancellationToken) -> Vec<Told> {
    let mut told = Vec::new();
    let mut n = door * 1_000_000;
    while !over.is_cancelled() {
        n += 1;
        let key = format!("main.u{n}.");
        let created = match store.create(row(n, &key), &order()).await {
            Ok(()) => true,
            Err(StoreError::Away(_) | StoreError::Database { .. }) => false,
            Err(other) => panic!("{other}"),
        };
        let ended = created && store.save(ended(n, &key, 5), true, true).await.is_ok();
        told.push(Told { run: run(n), created, ended });
    }
    told
}
