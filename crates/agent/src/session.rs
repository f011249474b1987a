//! One agent's life: dial home, wait for the launch order, see the server to its end, tell home how it ended.
//!
//! All runs on the main thread; the server's process must be started there (see `reaper`).

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use glidepath_api_types::agent::{
    self as wire, DialFile, EXIT_CANNOT_START, EXIT_SERVER_ENDED, EndCause, LaunchOrder, Phase, ServerEnd,
    ToAgent, Warning,
};
use glidepath_tunnel::dial::{self, BadDial, DialConfig};
use glidepath_tunnel::link::Link;
use nix::sys::signal::Signal;
use secrecy::ExposeSecret as _;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::activity::{Carried, Looks, Watchman};
use crate::carry::{Carrier, Order};
use crate::dial_file::{self, BadDialFile};
use crate::ending::{self, Ending, in_words, server_end};
use crate::events::{Event, Events, Presence, Signals, TaskEnd, later};
use crate::hub::{HubForwarder, Voucher};
use crate::launch::{self, Launch, Place, Target};
use crate::limits::News;
use crate::notice::{NOTICE_NAME, Notices, Reason};
use crate::output::Output;
use crate::reaper::{Exit, Reaper};
use crate::report::Reporter;
use crate::server::{Server, listening};
use crate::usage;

/// Orders that wait; a control stream with more is not read on.
const ORDERS_WAITING: usize = 16;
/// How long the last report may take when home is there; home closes the link once it has stored the end.
const FAREWELL: Duration = Duration::from_secs(30);
/// How long home is waited for when it is away, so that it learns how the server ended.
const FAREWELL_ABSENT: Duration = Duration::from_secs(15 * 60);
/// Both of them, when the batch system wants the agent gone.
const FAREWELL_HURRIED: Duration = Duration::from_secs(5);
/// How long closing the link may take.
const CLOSE_WITHIN: Duration = Duration::from_millis(500);

/// What `glidepath-agent run` is told.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The dial file (JSON). It must belong to this account with mode 0600; it is removed once read.
    #[arg(long, value_name = "PATH")]
    pub dial_file: PathBuf,
    /// The server's home folder [default: $HOME, else what the account database says].
    #[arg(long, value_name = "DIR")]
    pub home: Option<PathBuf>,
    /// Folder for the server's socket, mode 0700, short enough for a path of 100 bytes [default: a fresh folder below
    /// $XDG_RUNTIME_DIR, else below /tmp].
    #[arg(long, value_name = "DIR")]
    pub socket_dir: Option<PathBuf>,
    /// Folder for the server's log [default: the dial file's folder].
    #[arg(long, value_name = "DIR")]
    pub log_dir: Option<PathBuf>,
}

/// What keeps an agent from starting at all.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No ticket.
    #[error(transparent)]
    DialFile(#[from] BadDialFile),
    /// The dial file's content cannot be used.
    #[error("dial file: {0}")]
    Dial(#[from] BadDial),
    /// The system refuses something basic.
    #[error("{step}: {source}")]
    System {
        /// What was tried.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Runs the agent to its end; the result is its exit code.
pub fn run_blocking(args: RunArgs) -> i32 {
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).init();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(Duration::from_secs(u64::from(u32::MAX)))
        .build();
    let ended = match runtime {
        Ok(runtime) => {
            // A job at its limit of processes gets no further thread, and the runtime panics when it needs its first one
            // then: for names to look up, for processes to look at. It has one from here on.
            let ready = runtime.spawn_blocking(|| {});
            let ended = runtime.block_on(async {
                let _ = ready.await;
                run(args).await
            });
            runtime.shutdown_background();
            ended
        }
        Err(source) => Err(SessionError::System { step: "starting the runtime", source }),
    };
    ended.unwrap_or_else(|error| {
        tracing::error!("{error}");
        EXIT_CANNOT_START
    })
}

async fn run(args: RunArgs) -> Result<i32, SessionError> {
    let began = Instant::now();
    let system = |step| move |source| SessionError::System { step, source };
    let signals = Signals::listen().map_err(system("listening for signals"))?;
    let ends = Reaper::listen().map_err(system("listening for ended processes"))?;
    if let Err(error) = nix::sys::prctl::set_child_subreaper(true) {
        tracing::warn!(%error, "processes that leave the server's tree are found by their label only");
    }
    let dial = dial_file::take(&args.dial_file)?;
    let folder = args.log_dir.as_deref().or(args.dial_file.parent()).map(absolute);
    let notice_file = folder.as_ref().map(|folder| folder.join(NOTICE_NAME));
    let output = Output::open(folder.as_deref());
    let reporter = Reporter::new(output.clone());
    let place = Place {
        attempt: dial.attempt.clone(),
        home: args.home.as_deref().map(absolute),
        socket_dir: args.socket_dir.as_deref().map(absolute),
        notice_file: notice_file.clone(),
    };
    let deadline = later(began, Duration::from_secs(dial.dial_deadline_s));
    let presence = Presence::new(deadline, Duration::from_secs(dial.absence_limit_s));
    tracing::info!(attempt = %dial.attempt, home = %dial.home_url, "dialling home");
    let (link, dialer) = dial::dialer(dial_config(dial))?;

    let reaper = Reaper::default();
    let (order_in, orders) = mpsc::channel(ORDERS_WAITING);
    let (target, target_seen) = watch::channel(None);
    let carried = Carried::default();
    let carrier = Carrier {
        link: link.clone(),
        report: reporter.watch(),
        orders: order_in,
        target: target_seen,
        carried: carried.clone(),
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(named("reaper", reaper.clone().run(ends)));
    tasks.spawn(named("usage", usage::run(reporter.clone(), reaper.clone())));
    tasks.spawn(named("carry", carrier.run()));
    tasks.spawn(async move { TaskEnd::Dial(dialer.run().await) });
    let events = Events { signals, orders, link_state: link.watch(), tasks, presence };
    let notices = Notices::new(output, notice_file);
    let session = Session { place, link, reaper, reporter, notices, target, carried, events };
    Ok(Box::pin(session.live()).await)
}

async fn named(name: &'static str, task: impl Future<Output = ()>) -> TaskEnd {
    task.await;
    TaskEnd::Other(name)
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn dial_config(dial: DialFile) -> DialConfig {
    let trust = match dial.trust {
        wire::Trust::SystemRoots => dial::Trust::SystemRoots,
        wire::Trust::CaPem(pem) => dial::Trust::CaPem(pem),
        wire::Trust::KeyPin(pin) => dial::Trust::KeyPin(pin),
    };
    let software = concat!("glidepath-agent/", env!("CARGO_PKG_VERSION"));
    DialConfig::new(&dial.home_url, trust, dial.ticket, software)
}

struct Session {
    place: Place,
    link: Link,
    reaper: Reaper,
    reporter: Reporter,
    notices: Notices,
    target: watch::Sender<Option<Target>>,
    carried: Carried,
    events: Events,
}

impl Session {
    async fn live(mut self) -> i32 {
        let (end, ending) = match self.launch_order().await {
            Ok(order) => self.serve(order).await,
            Err(ending) => (ending.before_start(), Some(ending)),
        };
        tracing::info!(exit_code = end.exit_code, signal = end.signal, why = end.why, "the server is over");
        let cannot_start = end.cause == EndCause::CannotStart;
        self.reporter.phase(Phase::Ended(end));
        if !ending.as_ref().is_some_and(|ending| ending.silent) {
            self.farewell(ending.as_ref().is_some_and(|ending| ending.hurried)).await;
        }
        self.reporter.output().written().await;
        match ending {
            Some(ending) => ending.exit_code,
            None if cannot_start => EXIT_CANNOT_START,
            None => EXIT_SERVER_ENDED,
        }
    }

    async fn launch_order(&mut self) -> Result<LaunchOrder, Ending> {
        loop {
            match self.events.next().await {
                Event::Order(Order::Known(ToAgent::Launch(order))) => return Ok(*order),
                event => {
                    if let Some(ending) = Ending::asked_by(event) {
                        return Err(ending);
                    }
                }
            }
        }
    }

    /// Starts the server and stays until it is over.
    async fn serve(&mut self, order: LaunchOrder) -> (ServerEnd, Option<Ending>) {
        let grace = Duration::from_secs(order.grace_s.into());
        let (walltime, limits) = (Duration::from_secs(order.walltime_s), order.limits.clone());
        let (mut server, launch, looks) = match self.start(order).await {
            Ok(started) => started,
            Err(why) => {
                self.notices.say(&why);
                let ending = Ending::new(EndCause::CannotStart, why, EXIT_CANNOT_START);
                return (ending.before_start(), Some(ending));
            }
        };
        self.target.send_replace(Some(launch.target.clone()));
        self.notices.show_in(&launch.folder, &server_name());
        self.reporter.phase(Phase::Starting);
        let watchman = Watchman::new(walltime, &limits, looks);
        let (exit, ending) = match self.watch(&mut server, &launch.target, watchman).await {
            Watched::Exited(exit) => (exit, None),
            Watched::End(ending) => (self.end_kindly(&mut server, &ending, grace).await, Some(ending)),
        };
        self.target.send_replace(None);
        let over = server.over(exit, &self.place.attempt).await;
        self.notices.remove().await;
        drop(launch); // and with it the socket
        (server_end(&over, ending.as_ref()), ending)
    }

    async fn start(&mut self, order: LaunchOrder) -> Result<(Server, Launch, Looks), String> {
        let said = |name: &str| order.env.get(name).map_or("", |value| value.expose_secret()).to_owned();
        let voucher = Voucher::new(&said("JUPYTERHUB_USER"), &said("JUPYTERHUB_OAUTH_ACCESS_SCOPES"));
        let (token, prefix) = (voucher.token(), said("JUPYTERHUB_SERVICE_PREFIX"));
        let forwarder = HubForwarder::bind(self.link.clone(), voucher).await;
        let forwarder =
            forwarder.map_err(|error| format!("binding the forwarder of the Hub's API: {error}"))?;
        let mut launch =
            launch::prepare(order, &self.place, &forwarder.base_url()).map_err(|error| error.to_string())?;
        let started = Server::start(&launch, &self.reaper, self.reporter.output());
        let server = started.map_err(|error| format!("starting the server's process: {error}"))?;
        launch.env.clear(); // its secrets are the server's alone from here on
        self.events.tasks.spawn(named("hub", forwarder.run()));
        let looks = Looks::new(launch.target.clone(), &prefix, token, self.carried.clone());
        Ok((server, launch, looks))
    }

    /// Stays with a running server until it exits or must end.
    async fn watch(&mut self, server: &mut Server, target: &Target, mut watchman: Watchman) -> Watched {
        let mut listens = false;
        let listening = listening(target);
        tokio::pin!(listening);
        loop {
            tokio::select! {
                biased;
                exit = server.exited() => return Watched::Exited(exit),
                event = self.events.next() => {
                    self.tell_user(&event);
                    if matches!(event, Event::Order(Order::UnreadableLaunch)) {
                        continue; // it repeats the one that was followed
                    }
                    if matches!(event, Event::Order(Order::Known(ToAgent::Used))) {
                        watchman.used();
                    }
                    if let Some(ending) = Ending::asked_by(event) {
                        return Watched::End(ending);
                    }
                }
                () = &mut listening, if !listens => {
                    listens = true;
                    watchman.listens();
                    self.reporter.phase(Phase::Listening);
                }
                news = watchman.next() => {
                    if let Some(ending) = self.hear(news) {
                        return Watched::End(ending);
                    }
                }
            }
        }
    }

    /// Tells user and home what the server's limits say; gives the ending when it is to end.
    fn hear(&mut self, news: News) -> Option<Ending> {
        match news {
            News::Warn { cause, before, left } => {
                let text = ending::warning(cause, left);
                let ends_at = self.notices.warn(Reason::of_limit(cause), &text, left);
                self.reporter.warn(Warning { cause, before_s: before.as_secs(), ends_at });
            }
            News::TakenBack(cause) => {
                self.notices.clear(Reason::of_limit(cause), ending::taken_back(cause));
                self.reporter.take_back(cause);
            }
            News::End { cause, span } => return Some(Ending::of_limit(cause, span)),
        }
        None
    }

    fn tell_user(&mut self, event: &Event) {
        match event {
            Event::HomeAbsentSoon(left) => {
                let text = format!(
                    "the service that carries this server has not answered for a long time; unless it comes back, this \
                     server ends in {}: save your work",
                    in_words(*left)
                );
                self.notices.warn(Reason::HomeAbsent, &text, *left);
            }
            Event::HomeBack => {
                self.notices.clear(Reason::HomeAbsent, "the service is back: this server goes on");
            }
            _ => {}
        }
    }

    /// SIGTERM, the grace, SIGKILL. A further order to stop can shorten the grace, never lengthen it. Half way through
    /// the grace comes a second SIGTERM: Jupyter's handler logs, and when the signal falls into another log line it is
    /// lost to "reentrant call".
    async fn end_kindly(&mut self, server: &mut Server, ending: &Ending, grace: Duration) -> Exit {
        self.notices.say(&format!("ending the server: {}", ending.why));
        self.reporter.phase(Phase::Ending);
        server.signal(Signal::SIGTERM);
        let grace = ending.grace.unwrap_or(grace);
        let mut kill_at = later(Instant::now(), grace);
        let (remind_at, mut reminded) = (later(Instant::now(), grace / 2), false);
        loop {
            tokio::select! {
                exit = server.exited() => return exit,
                () = sleep_until(remind_at), if !reminded => {
                    reminded = true;
                    server.signal(Signal::SIGTERM);
                }
                () = sleep_until(kill_at) => {
                    self.notices.say("the server did not end in time: it is killed");
                    server.signal(Signal::SIGKILL);
                    return server.exited().await;
                }
                event = self.events.next() => {
                    if let Some(grace) = Events::stop_grace(&event) {
                        kill_at = kill_at.min(later(Instant::now(), grace));
                    }
                }
            }
        }
    }

    /// Stays until home has heard of the end, which it says by closing the link; not for ever.
    async fn farewell(&mut self, hurried: bool) {
        let (here, away) =
            if hurried { (FAREWELL_HURRIED, FAREWELL_HURRIED) } else { (FAREWELL, FAREWELL_ABSENT) };
        let gives_up_at = Instant::now() + away;
        let mut up_since = None;
        loop {
            up_since = self.events.link_is_up().then(|| up_since.unwrap_or_else(Instant::now));
            let until = up_since.map_or(gives_up_at, |since| gives_up_at.min(since + here));
            tokio::select! {
                event = self.events.next() => match event {
                    Event::Closed(_) | Event::Refused(_) => return,
                    Event::Signal(_) | Event::Broken(_) => break,
                    _ => {}
                },
                () = sleep_until(until) => break,
                // The link's state is looked at again: `Events` reports presence, not every change.
                () = sleep(CLOSE_WITHIN) => {}
            }
        }
        self.link.close("the server is over");
        let closed =
            async { while !matches!(self.events.next().await, Event::Closed(_) | Event::Refused(_)) {} };
        let _ = timeout(CLOSE_WITHIN, closed).await;
    }
}

enum Watched {
    Exited(Exit),
    End(Ending),
}

/// What the backend's label calls the server: the last part of its key, empty for the default one.
fn server_name() -> String {
    let key = std::env::var("GLIDEPATH_KEY").unwrap_or_default();
    key.rsplit_once('.').map(|(_, server)| server.to_owned()).unwrap_or_default()
}
