//! How long a decision takes where many sites and many waiting runs are: the service's own life cycle with a store on
//! disk, only the batch systems are made of memory.
//!
//! Prints one line of JSON: microseconds of decisions while all runs wait, of the ranking alone, of starts from asking
//! until it is written down, and what the process holds for it. Part of `make bench`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, ensure};
use clap::{Parser, ValueEnum};
use glidepath_api_types::agent::{ListenOn, Trust};
use glidepath_domain::names::{HubName, InstanceId, ServerKey, ServerName, SiteName, UserName};
use glidepath_domain::placement::{Candidate, Policy, choose};
use glidepath_domain::request::SpawnRequest;
use glidepath_domain::resources::{Gpus, Resources};
use glidepath_domain::run::{Deadlines, State};
use glidepath_domain::site::{Limits, Site};
use glidepath_spawner::arrivals::routes::Routes;
use glidepath_spawner::arrivals::{AgentStreams, Arrivals, Arrived};
use glidepath_spawner::notable::Notes;
use glidepath_spawner::seal::Seal;
use glidepath_spawner::sites::{Pace, SiteSetup, Sites};
use glidepath_spawner::spawn::{Parts, Settings, SpawnOrder, Spawner};
use glidepath_spawner::store::Store;
use glidepath_testkit::backend::FakeBackend;
use glidepath_testkit::site::site;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Starts that are under way at a time.
const AT_ONCE: usize = 64;
const QUEUED_WITHIN: Duration = Duration::from_secs(120);
/// What a request asks for, so that a small site does not fit.
const CORES: u32 = 2;

#[derive(Debug, Parser)]
struct Args {
    /// A folder of its own, for the store.
    #[arg(long)]
    folder: std::path::PathBuf,
    #[arg(long, default_value_t = 1000)]
    sites: usize,
    /// Runs that wait when decisions are measured.
    #[arg(long, default_value_t = 10_000)]
    runs: usize,
    #[arg(long, default_value_t = 500)]
    decisions: usize,
    #[arg(long, value_enum)]
    shape: Shape,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shape {
    /// Every site fits.
    All,
    /// None fits but the last, where everybody waits.
    Last,
}

#[expect(clippy::print_stdout, reason = "its figures are what it is for")]
fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let told = runtime.block_on(measured(&args))?;
    println!("{}", serde_json::to_string(&told)?);
    Ok(())
}

async fn measured(args: &Args) -> anyhow::Result<BTreeMap<&'static str, f64>> {
    let setups = (0..args.sites).map(|n| setup(n, args)).collect::<anyhow::Result<Vec<_>>>()?;
    let sites = Sites::new(setups, Pace::default(), Notes::new());
    for setup in sites.setups() {
        sites.refresh(setup).await;
    }
    let ranked_us = ranked(args, &sites)?;
    let before_kb = resident_kb()?;
    let stop = CancellationToken::new();
    let (spawner, mut life) = open(&args.folder, sites.clone(), stop.clone()).await?;
    let began = Instant::now();
    fill(args, &spawner).await?;
    let start_us = began.elapsed().as_secs_f64() * 1e6 / args.runs as f64;
    let waiting = || -> u64 {
        spawner.counts().iter().filter(|((_, state), _)| *state == State::Queued).map(|(_, n)| n).sum()
    };
    let queued = async {
        while waiting() < args.runs as u64 {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(QUEUED_WITHIN, queued).await.context("not all runs came to wait")?;
    let holds_kb = resident_kb()? - before_kb;
    let decided_us = decided(args, &spawner)?;
    stop.cancel();
    life.join_next().await.context("the life cycle")???;
    Ok(BTreeMap::from([
        ("decision_us", at(&decided_us, 0.5)),
        ("decision_p99_us", at(&decided_us, 0.99)),
        ("ranking_us", at(&ranked_us, 0.5)),
        ("start_us", start_us),
        ("holds_kb", holds_kb),
    ]))
}

/// The decision as every start makes it, with all places that are taken.
fn decided(args: &Args, spawner: &Spawner) -> anyhow::Result<Vec<f64>> {
    let decision = |n| {
        let request = request(&format!("later-{n}"))?;
        let began = Instant::now();
        let verdicts = spawner.verdicts(&request);
        let took = began.elapsed().as_secs_f64() * 1e6;
        ensure!(verdicts.len() == args.sites, "{} verdicts of {} sites", verdicts.len(), args.sites);
        let fit = verdicts.iter().filter(|verdict| verdict.fits).count();
        let fits = verdicts.first().is_some_and(|best| best.fits);
        ensure!(fits && (args.shape == Shape::All || fit == 1), "{fit} sites fit");
        Ok(took)
    };
    (0..args.decisions).map(decision).collect()
}

/// The pure part alone, without anything that is taken.
fn ranked(args: &Args, sites: &Sites) -> anyhow::Result<Vec<f64>> {
    let candidates: Vec<Candidate> = sites
        .all()
        .into_iter()
        .map(|now| Candidate { site: now.setup.site, snapshot: now.snapshot, servers_of_user: 0 })
        .collect();
    let (policy, request) = (Policy::default(), request("first")?);
    let ranking = |_| {
        let began = Instant::now();
        let verdicts = choose(&request, &candidates, &policy);
        let took = began.elapsed().as_secs_f64() * 1e6;
        ensure!(verdicts.first().is_some_and(|best| best.fits), "no site fits");
        Ok(took)
    };
    (0..args.decisions).map(ranking).collect()
}

/// Starts as many runs as are to wait.
async fn fill(args: &Args, spawner: &Spawner) -> anyhow::Result<()> {
    let mut starts = JoinSet::new();
    for n in 0..args.runs {
        if starts.len() >= AT_ONCE {
            starts.join_next().await.context("a start")???;
        }
        let (spawner, order) = (spawner.clone(), order(&format!("user-{n}"))?);
        starts.spawn(async move { spawner.start(order).await.map(drop) });
    }
    while let Some(started) = starts.join_next().await {
        started??;
    }
    Ok(())
}

struct NoStreams;

impl AgentStreams for NoStreams {
    fn carry(&self, _: Arrived) {}
}

/// The one task of the life cycle.
type Life = JoinSet<anyhow::Result<()>>;

async fn open(folder: &Path, sites: Sites, stop: CancellationToken) -> anyhow::Result<(Spawner, Life)> {
    let store = Store::open(folder, Seal::in_state_dir(folder)?).await?;
    let notes = Notes::new();
    let instance = InstanceId::parse("bench")?;
    let (arrivals, arrived) =
        Arrivals::new(folder, instance, store.clone(), Arc::new(NoStreams), notes.clone())?;
    // Nothing waits for so long that it is given up while decisions are measured.
    let deadlines = Deadlines { queued: Duration::from_secs(24 * 3600), ..Deadlines::default() };
    let settings =
        Settings { deadlines, ..Settings::new("wss://home.example.org/link".to_owned(), Trust::SystemRoots) };
    let routes = Routes::noting(notes.clone());
    let (spawner, life) =
        Spawner::load(Parts { store, sites, arrivals, routes, arrived, settings, notes }).await?;
    let mut lives = Life::new();
    lives.spawn(life.run(stop));
    Ok((spawner, lives))
}

fn setup(n: usize, args: &Args) -> anyhow::Result<SiteSetup> {
    let fits = args.shape == Shape::All || n + 1 == args.sites;
    let limits = Limits {
        cores: Some(if fits { CORES } else { 1 }),
        memory_mb: Some(16 * 1024),
        walltime_min: Some(480),
        servers_per_user: Some(4),
        ..Limits::default()
    };
    let backend = FakeBackend::queueing();
    Ok(SiteSetup {
        site: Arc::new(Site {
            title: format!("The site with the number {n}"),
            labels: BTreeMap::from([("country".to_owned(), "de".to_owned())]),
            limits,
            ..site(SiteName::parse(&format!("site-{n:04}"))?)
        }),
        backend: backend.shared(),
        listen_on: ListenOn::UnixSocket,
        absence_limit_s: None,
        closed: None,
    })
}

fn request(user: &str) -> anyhow::Result<SpawnRequest> {
    Ok(SpawnRequest {
        key: ServerKey {
            hub: HubName::parse("main")?,
            user: UserName::parse(user)?,
            server: ServerName::default(),
        },
        groups: vec!["staff".to_owned(), "physics".to_owned()],
        resources: Resources {
            cores: CORES,
            memory_mb: 4096,
            gpus: Gpus::default(),
            arch: None,
            walltime_min: 240,
        },
        site: None,
    })
}

fn order(user: &str) -> anyhow::Result<SpawnOrder> {
    Ok(SpawnOrder {
        request: request(user)?,
        spawn_id: format!("spawn-of-{user}"),
        argv: vec!["jupyterhub-singleuser".to_owned()],
        env: BTreeMap::new(),
        prefix: format!("/user/{user}/"),
        working_dir: None,
        auth_state: BTreeMap::new(),
    })
}

fn at(values: &[f64], part: f64) -> f64 {
    let mut ordered = values.to_vec();
    ordered.sort_by(f64::total_cmp);
    let index = (part * ordered.len() as f64) as usize;
    ordered.get(index.min(ordered.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

fn resident_kb() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kb = line.and_then(|line| line.split_whitespace().next()).ok_or_else(|| anyhow!("no VmRSS"))?;
    Ok(kb.parse()?)
}
