//! The machine stops: between two writes of a store under load, and in the middle of a write.
//!
//! A process that writes is stopped at random moments and its folder copied, as a disk holds it whose machine lost power.
//! What the page cache held at that moment counts as written here: that the store syncs before it answers is what
//! `the_database_is_opened_as_it_must_be` holds; that a half-written log loses no more than its own end is the second test.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::*;

const SEED: u64 = 20_261_125;
/// More with `GLIDEPATH_SNAPSHOTS`.
const SNAPSHOTS: usize = 40;
/// Where the child writes.
const FOLDER: &str = "GLIDEPATH_WRITE_IN";
const DOORS: u64 = 4;
/// What a writer has written at least before its last snapshot, so that a slow disk makes no empty test.
const WORDS: usize = 200;

#[tokio::test]
async fn a_folder_as_it_was_at_any_moment_holds_every_promise_that_was_made_before() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots =
        std::env::var("GLIDEPATH_SNAPSHOTS").ok().and_then(|n| n.parse().ok()).unwrap_or(SNAPSHOTS);
    let mut random = StdRng::seed_from_u64(SEED);
    for part in 0..snapshots.div_ceil(10) {
        let folder = dir.path().join(part.to_string());
        fs::create_dir(&folder).unwrap();
        let writer = Writing::start(&folder);
        for n in 0..10 {
            sleep(Duration::from_millis(random.random_range(5..80))).await;
            if n == 9 {
                wait::until(SOON, "it has written", async || writer.told().lines().count() > WORDS).await;
            }
            let snapshot = writer.snapshot(&dir.path().join(format!("{part}-{n}")), random.random());
            snapshot.holds(&snapshot.promises()).await;
        }
    }
}

/// The other half of the test above, as a process of its own.
#[tokio::test]
#[ignore = "the test above starts it"]
async fn writes_until_it_is_killed() {
    let folder = std::env::var_os(FOLDER).map(std::path::PathBuf::from).unwrap();
    let told = OpenOptions::new().create(true).append(true).open(folder.join("told")).unwrap();
    let told = Arc::new(Mutex::new(told));
    let state_dir = folder.join("state");
    let store = opened(&Database::in_folder(&state_dir), &state_dir).await;
    let mut doors = tokio::task::JoinSet::new();
    for door in 0..DOORS {
        doors.spawn(writes(store.clone(), door, Arc::clone(&told)));
    }
    doors.join_next().await.unwrap().unwrap();
}

/// Lives of servers, each promise told once it was made.
async fn writes(store: Store, door: u64, told: Arc<Mutex<File>>) {
    let tell =
        |word: &str, n: u64| told.lock().unwrap().write_all(format!("{word} {n}\n").as_bytes()).unwrap();
    for n in (0..).map(|n| n * DOORS + door) {
        let key = format!("main.u{n}.");
        store.create(row(n, &key), &order_of(n)).await.unwrap();
        tell("created", n);
        store.bind(attempt(n, 1), &KEY, true).await.unwrap();
        tell("bound", n);
        let job = Some(format!("job-{n}"));
        let attempts = vec![AttemptRow { job, ..row(n, &key).attempts.remove(0) }];
        store
            .save(RunRow { state: "ready".to_owned(), attempts, ..row(n, &key) }, true, false)
            .await
            .unwrap();
        tell("ready", n);
        if n % 3 != 0 {
            store.save(ended(n, &key, 5), true, true).await.unwrap();
            tell("ended", n);
        }
        if n % 25 == 0 {
            store.prune(0, 50).await.unwrap(); // empties the log, too
        }
    }
}

fn order_of(n: u64) -> SecretString {
    SecretString::from(format!("{{\"token\":\"of-{n}\"}}").repeat(40))
}

/// A process that writes.
struct Writing {
    folder: std::path::PathBuf,
    child: Child,
}

impl Writing {
    fn start(folder: &Path) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "store::tests::power_cut::writes_until_it_is_killed",
                "--ignored",
                "--nocapture",
            ])
            .env(FOLDER, folder)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { folder: folder.to_owned(), child }
    }

    fn told(&self) -> String {
        fs::read_to_string(self.folder.join("told")).unwrap_or_default()
    }

    /// What is on disk while all of its threads stand still. A power cut may also take the file that SQLite's readers share.
    fn snapshot(&self, to: &Path, without_shared: bool) -> Snapshot {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, Signal::SIGSTOP).unwrap();
        let until = std::time::Instant::now() + SOON;
        while !stands_still(self.child.id()) {
            assert!(std::time::Instant::now() < until, "it does not stand still");
        }
        let told = self.told();
        fs::create_dir_all(to.join("keys")).unwrap();
        for name in ["glidepath.db", "glidepath.db-wal", "glidepath.db-shm", "keys/seal.key"] {
            if !(without_shared && name.ends_with("shm")) {
                let _ = fs::copy(self.folder.join("state").join(name), to.join(name)); // may not be there yet
            }
        }
        kill(pid, Signal::SIGCONT).unwrap();
        Snapshot { folder: to.to_owned(), told }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn stands_still(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.flatten().all(|task| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
    })
}

struct Snapshot {
    folder: std::path::PathBuf,
    told: String,
}

impl Snapshot {
    /// The last word on each run.
    fn promises(&self) -> BTreeMap<u64, &str> {
        let whole = self.told.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let words = whole.lines().filter_map(|line| line.split_once(' '));
        words.map(|(word, n)| (n.parse().unwrap(), word)).collect()
    }

    async fn holds(&self, promises: &BTreeMap<u64, &str>) {
        let database = Database::in_folder(&self.folder);
        let store = opened(&database, &self.folder).await;
        whole(&database).await;
        let kept: BTreeMap<RunId, RunRow> =
            store.last_runs().await.unwrap().into_iter().map(|row| (row.run, row)).collect();
        for (&n, &word) in promises {
            let row = kept
                .get(&run(n))
                .unwrap_or_else(|| panic!("run {n} was {word} and is not there (seed {SEED})"));
            let step = match (row.alive, row.state.as_str()) {
                (true, "submitting") => 0,
                (true, "ready") => 1,
                (false, "ended") => 2,
                other => panic!("run {n} is {other:?}"),
            };
            let least = ["created", "ready", "ended"].iter().position(|known| *known == word).unwrap_or(0);
            assert!(step >= least, "run {n} was {word} and is {:?} (seed {SEED})", row.state);
        }
        // The last ones are those that a fault would show.
        for (&n, &word) in promises.iter().rev().take(12) {
            let order = store.order(run(n)).await.unwrap();
            assert!(order.is_some() || !kept[&run(n)].alive, "run {n} lives without its order");
            assert!(order.is_none_or(|order| order.expose_secret() == order_of(n).expose_secret()));
            let bound = store.bind(attempt(n, 1), &KEY, false).await.unwrap();
            assert!(word == "created" || bound != Bound::TooLate, "run {n}: its key is not bound");
        }
        store.close().await;
    }
}

async fn whole(database: &Database) {
    let mut connection = AnyConnection::connect(&address(database).0).await.unwrap();
    let checked = sqlx::query("PRAGMA integrity_check").fetch_one(&mut connection).await.unwrap();
    assert_eq!(get::<String>(&checked, "integrity_check").unwrap(), "ok");
}

#[tokio::test]
async fn a_log_that_ends_in_the_middle_of_a_write_gives_all_that_was_written_before_it() {
    const CUTS: usize = 40;
    let house = House::sqlite().await;
    let log = house.dir.path().join("glidepath.db-wal");
    let mut ends = Vec::new();
    for n in 0..50 {
        house.store.create(row(n, &format!("main.u{n}.")), &order_of(n)).await.unwrap();
        ends.push(usize::try_from(fs::metadata(&log).unwrap().len()).unwrap());
    }
    let (file, log) = (fs::read(house.dir.path().join("glidepath.db")).unwrap(), fs::read(log).unwrap());
    assert_eq!(ends.last(), Some(&log.len()), "nothing was brought into the file meanwhile");
    let mut random = StdRng::seed_from_u64(SEED);
    for n in 0..CUTS {
        let cut = random.random_range(0..=log.len());
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("keys")).unwrap();
        fs::copy(house.dir.path().join("keys/seal.key"), dir.path().join("keys/seal.key")).unwrap();
        fs::write(dir.path().join("glidepath.db"), &file).unwrap();
        let mut torn = log[..cut].to_vec();
        if n % 2 == 0 {
            torn.extend((0..random.random_range(1..9000)).map(|_| random.random::<u8>())); // what lay there before
        }
        fs::write(dir.path().join("glidepath.db-wal"), torn).unwrap();
        let database = Database::in_folder(dir.path());
        let store = opened(&database, dir.path()).await;
        whole(&database).await;
        let kept: Vec<RunId> = store.unsettled().await.unwrap().iter().map(|row| row.run).collect();
        let written = ends.iter().filter(|end| **end <= cut).count() as u64;
        assert_eq!(
            kept,
            (0..written).map(run).collect::<Vec<_>>(),
            "cut at {cut} of {} (seed {SEED})",
            log.len()
        );
        if let Some(last) = written.checked_sub(1) {
            let order = store.order(run(last)).await.unwrap().unwrap();
            assert_eq!(order.expose_secret(), order_of(last).expose_secret());
        }
    }
}
