//! The life cycle with everything real but the batch systems: store on disk, gate, tunnel, listener on port 0.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use glidepath_api_types::agent::{
    DialFile, EndCause, FromAgent, LaunchOrder, ListenOn, PURPOSE_CONTROL, Phase, Report, ServerEnd, ToAgent,
    Trust, Usage, Warning,
};
use glidepath_domain::backend::JobEnd;
use glidepath_domain::names::{
    Attempt, HubName, InstanceId, RunId, ServerKey, ServerName, SiteName, UserName,
};
use glidepath_domain::request::SpawnRequest;
use glidepath_domain::resources::{Gpus, Resources};
use glidepath_domain::run::{Deadlines, State};
use glidepath_domain::site::{Limits, Reach, Site};
use glidepath_testkit::backend::FakeBackend;
use glidepath_testkit::site::site;
use glidepath_testkit::wait::until_some;
use glidepath_tunnel::dial::{self, DialConfig, DialEnd};
use glidepath_tunnel::home::{Gate, HomeConfig, HomeEnd};
use glidepath_tunnel::link::{Incoming, Link};
use glidepath_tunnel::stream::Stream;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::arrivals::routes::{Found, Routes};
use crate::arrivals::{AgentStreams, Arrivals, Arrived};
use crate::notable::Notes;
use crate::seal::Seal;
use crate::sites::{Pace, SiteSetup, Sites};
use crate::spawn::{Parts, RunView, Settings, SpawnOrder, Spawner, StartError, Started};
use crate::store::{Database, Store};

pub(super) const LONG: Duration = Duration::from_secs(20);

struct NoStreams;

impl AgentStreams for NoStreams {
    fn carry(&self, _: Arrived) {}
}

/// What a house is built with.
#[derive(Clone)]
pub(super) struct Plan {
    pub(super) sites: Vec<(&'static str, FakeBackend, Limits)>,
    pub(super) deadlines: Deadlines,
    /// The sites whose servers are reached at their own address.
    pub(super) direct: &'static [&'static str],
    /// Where the store is, if not in the folder.
    pub(super) database: Option<Database>,
}

impl Plan {
    pub(super) fn with(sites: &[(&'static str, &FakeBackend)]) -> Self {
        let sites = sites.iter().map(|(name, backend)| (*name, (*backend).clone(), Limits::default()));
        let s = Duration::from_secs;
        let deadlines = Deadlines {
            queued: s(60),
            dialling: s(30),
            starting: s(30),
            doubt: s(30),
            grace: Duration::from_millis(400),
        };
        Self { sites: sites.collect(), deadlines, direct: &[], database: None }
    }
}

/// The service, up.
pub(super) struct House {
    pub(super) plan: Plan,
    pub(super) dir: Arc<tempfile::TempDir>,
    pub(super) spawner: Spawner,
    pub(super) store: Store,
    pub(super) arrivals: Arc<Arrivals>,
    pub(super) routes: Arc<Routes>,
    pub(super) home_url: String,
    /// What the relay knew of ada's server before anything ran.
    pub(super) ada_at_load: Found,
    pub(super) notes: Notes,
    tasks: JoinSet<()>,
}

impl House {
    pub(super) async fn with(backend: &FakeBackend) -> Self {
        Self::build(Plan::with(&[("here", backend)])).await
    }

    pub(super) async fn build(plan: Plan) -> Self {
        Self::open(plan, Arc::new(tempfile::tempdir().unwrap()), None).await
    }

    async fn open(plan: Plan, dir: Arc<tempfile::TempDir>, port: Option<u16>) -> Self {
        let database = plan.database.clone().unwrap_or_else(|| Database::in_folder(dir.path()));
        let store = Store::open_in(database, Seal::in_state_dir(dir.path()).unwrap()).await.unwrap();
        let instance = InstanceId::parse("house").unwrap();
        let notes = Notes::new();
        let (arrivals, arrived) =
            Arrivals::new(dir.path(), instance, store.clone(), Arc::new(NoStreams), notes.clone()).unwrap();
        let listener = TcpListener::bind(("127.0.0.1", port.unwrap_or(0))).await.unwrap();
        let home_url = format!("ws://{}/link", listener.local_addr().unwrap());
        let gate: Arc<dyn Gate> = arrivals.clone();
        let home =
            HomeEnd::new(HomeConfig { resume_for: Duration::from_secs(1), ..HomeConfig::default() }, gate);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut lanes = JoinSet::new();
            while let Ok((io, peer)) = listener.accept().await {
                let home = home.clone();
                lanes.spawn(async move { home.serve(io, peer).await });
            }
        });
        let setups = plan.sites.iter().map(|(name, backend, limits)| {
            let reach = if plan.direct.contains(name) { Reach::Direct } else { Reach::Tunnel };
            setup(name, backend, limits.clone(), reach)
        });
        let pace = Pace { snapshot_every: Duration::from_millis(200), ..Pace::default() };
        let sites = Sites::new(setups.collect(), pace, notes.clone());
        for setup in sites.setups() {
            sites.refresh(setup).await;
        }
        let asked = sites.clone();
        tasks.spawn(async move { asked.run(CancellationToken::new()).await });
        let routes = Routes::noting(notes.clone());
        let settings = Settings {
            deadlines: plan.deadlines,
            list_fast: Duration::from_millis(50),
            list_slow: Duration::from_millis(100),
            wait_for_end: Duration::from_secs(5),
            ..Settings::new(home_url.clone(), Trust::SystemRoots)
        };
        let parts = Parts {
            store: store.clone(),
            sites,
            arrivals: arrivals.clone(),
            routes: routes.clone(),
            arrived,
            settings,
            notes: notes.clone(),
        };
        let (spawner, task) = Spawner::load(parts).await.unwrap();
        let ada_at_load = routes.find(&hub(), "/user/ada/api");
        tasks.spawn(async move { task.run(CancellationToken::new()).await.unwrap() });
        Self { plan, dir, spawner, store, arrivals, routes, home_url, ada_at_load, notes, tasks }
    }

    /// Every task is dropped where it stands, nothing is closed; then a new service on the same folder and port.
    pub(super) async fn crash(mut self) -> Self {
        self.tasks.shutdown().await;
        let port = self.home_url.trim_end_matches("/link").rsplit(':').next().unwrap().parse().unwrap();
        let (plan, dir) = (self.plan.clone(), self.dir.clone());
        drop(self);
        Self::open(plan, dir, Some(port)).await
    }

    pub(super) async fn start(&self, user: &str) -> Started {
        self.try_start(user, &format!("spawn-{user}")).await.unwrap()
    }

    pub(super) async fn try_start(&self, user: &str, spawn_id: &str) -> Result<Started, StartError> {
        self.spawner.start(order(user, spawn_id)).await
    }

    pub(super) fn view(&self, user: &str) -> RunView {
        self.spawner.view(&key(user)).unwrap()
    }

    pub(super) async fn reaches(&self, user: &str, state: State) -> RunView {
        until_some(LONG, &format!("{user}'s server is {state:?}"), || async {
            self.spawner.view(&key(user)).filter(|view| view.state == state)
        })
        .await
    }

    pub(super) async fn stop(&self, user: &str) -> Option<RunView> {
        self.spawner.stop(&key(user), None, false).await.unwrap()
    }

    /// Does something to the database behind the service's back.
    pub(super) async fn database(&self, sql: &'static str) {
        use sqlx::ConnectOptions as _;
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(self.dir().join("glidepath.db"));
        let mut connection = options.connect().await.unwrap();
        sqlx::query(sql).execute(&mut connection).await.unwrap();
    }

    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }
}

fn setup(name: &str, backend: &FakeBackend, limits: Limits, reach: Reach) -> SiteSetup {
    SiteSetup {
        site: Arc::new(Site {
            reach,
            limits,
            preference: if name == "here" { 10 } else { 0 },
            ..site(SiteName::parse(name).unwrap())
        }),
        backend: backend.shared(),
        listen_on: ListenOn::UnixSocket,
        absence_limit_s: None,
        closed: None,
    }
}

pub(super) fn hub() -> HubName {
    HubName::parse("main").unwrap()
}

pub(super) fn key(user: &str) -> ServerKey {
    ServerKey { hub: hub(), user: UserName::parse(user).unwrap(), server: ServerName::default() }
}

pub(super) fn attempt(run: RunId, number: u32) -> Attempt {
    Attempt { run, number }
}

pub(super) fn order(user: &str, spawn_id: &str) -> SpawnOrder {
    let env = [
        ("JUPYTERHUB_API_TOKEN", format!("token-of-{spawn_id}")),
        ("JUPYTERHUB_API_URL", "http://127.0.0.1:8081/hub/api".to_owned()),
    ];
    let resources =
        Resources { cores: 1, memory_mb: 512, gpus: Gpus::default(), arch: None, walltime_min: 60 };
    SpawnOrder {
        request: SpawnRequest { key: key(user), groups: vec![], resources, site: None },
        spawn_id: spawn_id.to_owned(),
        argv: vec!["jupyterhub-singleuser".to_owned()],
        env: env.into_iter().map(|(name, value)| (name.to_owned(), SecretString::from(value))).collect(),
        prefix: format!("/user/{user}/"),
        working_dir: None,
        auth_state: BTreeMap::new(),
    }
}

/// What an agent of ours does when it is told to start its server.
#[derive(Clone)]
pub(super) enum Server {
    /// It answers with this status.
    Answers(u16),
    /// It listens and never says a word.
    Mute,
    /// It exits with this code before it listens.
    Exits(i32),
    /// It runs and never listens.
    NeverListens,
    /// Its command is not there.
    CannotStart,
}

/// An agent: a real dialler, a server made of one answer.
pub(super) struct Agent {
    _link: Link,
    said: tokio::sync::mpsc::Sender<FromAgent>,
    pub(super) orders: tokio::sync::mpsc::Receiver<LaunchOrder>,
    /// Home's words that a person used the server.
    pub(super) uses: tokio::sync::mpsc::Receiver<()>,
    pub(super) end: tokio::sync::oneshot::Receiver<DialEnd>,
    _tasks: JoinSet<()>,
}

impl Agent {
    /// Dials with the dial file that the backend was given.
    pub(super) fn of(backend: &FakeBackend, attempt: Attempt, server: Server) -> Self {
        let spec = backend.spec(attempt).expect("the job is there");
        let file: DialFile = serde_json::from_str(spec.dial_file.expose_secret()).unwrap();
        Self::dial(&file.home_url, file.ticket, server, Some((backend.clone(), attempt)))
    }

    pub(super) fn dial(
        home_url: &str,
        ticket: SecretString,
        server: Server,
        job: Option<(FakeBackend, Attempt)>,
    ) -> Self {
        let config = DialConfig {
            proxy: dial::ProxyEnv::default(),
            ..DialConfig::new(home_url, dial::Trust::SystemRoots, ticket, "test-agent/1")
        };
        let (link, dialer) = dial::dialer(config).unwrap();
        let mut tasks = JoinSet::new();
        let (ended, end) = tokio::sync::oneshot::channel();
        tasks.spawn(async move {
            let _ = ended.send(dialer.run().await);
        });
        let (said, words) = tokio::sync::mpsc::channel(16);
        let (launched, orders) = tokio::sync::mpsc::channel(16);
        let (used, uses) = tokio::sync::mpsc::channel(16);
        let words = Arc::new(tokio::sync::Mutex::new(words));
        let accepting = link.clone();
        let telling = said.clone();
        tasks.spawn(async move {
            let mut streams = JoinSet::new();
            while let Some(Incoming { purpose, stream }) = accepting.accept().await {
                if purpose == PURPOSE_CONTROL {
                    let talk = Talk {
                        words: words.clone(),
                        telling: telling.clone(),
                        launched: launched.clone(),
                        used: used.clone(),
                        server: server.clone(),
                        job: job.clone(),
                    };
                    streams.spawn(talk.run(stream));
                } else if let Server::Answers(status) = server {
                    streams.spawn(answer(stream, status));
                }
            }
        });
        Self { _link: link, said, orders, uses, end, _tasks: tasks }
    }

    /// Tells what its server used, in the phase in which it is ready.
    pub(super) async fn used(&self, usage: Usage) {
        let FromAgent::Report(mut told) = report(Phase::Listening, &[]);
        told.usage = Some(usage);
        self.said.send(FromAgent::Report(told)).await.unwrap();
    }

    /// Tells of ends that are near.
    pub(super) async fn warns(&self, warnings: Vec<Warning>) {
        let FromAgent::Report(mut told) = report(Phase::Listening, &[]);
        told.warnings = warnings;
        self.said.send(FromAgent::Report(told)).await.unwrap();
    }

    pub(super) async fn reports(&self, phase: Phase, last_lines: &[&str]) {
        self.said.send(report(phase, last_lines)).await.unwrap();
    }
}

struct Talk {
    words: Arc<tokio::sync::Mutex<tokio::sync::mpsc::Receiver<FromAgent>>>,
    telling: tokio::sync::mpsc::Sender<FromAgent>,
    launched: tokio::sync::mpsc::Sender<LaunchOrder>,
    used: tokio::sync::mpsc::Sender<()>,
    server: Server,
    job: Option<(FakeBackend, Attempt)>,
}

impl Talk {
    async fn run(self, stream: Stream) {
        let (from, mut to) = tokio::io::split(stream);
        let mut lines = BufReader::new(from).lines();
        let mut words = self.words.lock().await;
        loop {
            tokio::select! {
                line = lines.next_line() => {
                    let Ok(Some(line)) = line else { return };
                    match serde_json::from_str::<ToAgent>(&line).unwrap() {
                        ToAgent::Launch(order) => {
                            let _ = self.launched.try_send(*order);
                            let phase = match self.server {
                                Server::Answers(_) | Server::Mute => Phase::Listening,
                                Server::NeverListens => Phase::Starting,
                                Server::CannotStart => ended(None, None, EndCause::CannotStart),
                                Server::Exits(code) => ended(Some(code), None, EndCause::ByItself),
                            };
                            let _ = self.telling.send(report(phase, &["hello from the server"])).await;
                        }
                        ToAgent::Used => {
                            let _ = self.used.try_send(());
                        }
                        ToAgent::Stop { .. } => {
                            let _ = self.telling.send(report(ended(Some(0), None, EndCause::Asked), &[])).await;
                            if let Some((backend, attempt)) = &self.job {
                                backend.end(*attempt, JobEnd { exit_code: Some(0), ..JobEnd::default() });
                            }
                        }
                    }
                }
                Some(word) = words.recv() => {
                    let mut line = serde_json::to_vec(&word).unwrap();
                    line.push(b'\n');
                    if to.write_all(&line).await.is_err() || to.flush().await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

pub(super) async fn answer<IO: AsyncRead + AsyncWrite + Unpin>(mut stream: IO, status: u16) {
    let mut seen = Vec::new();
    let mut chunk = [0; 4096];
    while !seen.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut chunk).await {
            Ok(count) if count > 0 => seen.extend_from_slice(&chunk[..count]),
            _ => return,
        }
    }
    let text = format!("HTTP/1.1 {status} Said\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    let _ = stream.write_all(text.as_bytes()).await;
    let _ = stream.shutdown().await;
}

pub(super) fn ended(exit_code: Option<i32>, signal: Option<i32>, cause: EndCause) -> Phase {
    Phase::Ended(ServerEnd { exit_code, signal, why: None, cause })
}

fn report(phase: Phase, last_lines: &[&str]) -> FromAgent {
    FromAgent::Report(Report {
        phase,
        agent_version: "test".to_owned(),
        host: "node7".to_owned(),
        arch: "x86_64".to_owned(),
        usage: None,
        last_lines: last_lines.iter().map(|line| (*line).to_owned()).collect(),
        warnings: vec![],
    })
}
