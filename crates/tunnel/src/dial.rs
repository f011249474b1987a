//! The agent end: dials home, again and again, and keeps one link alive across it all.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use secrecy::SecretString;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::connect::{Established, Failed, Way};
use crate::lane::{LaneEnd, LaneGuard, carry};
use crate::link::{Link, LinkState, PeerInfo, Session, now};
use crate::proto::handshake::{Refused, SEVERAL_LANES};
use crate::proto::mux::{Limits, Side};

mod pace;
mod spread;

use pace::{ANSWER_WITHIN, Pace};
use spread::Spread;

/// Lanes that a dialler may be asked to keep.
const MAX_LANES: usize = 10;

/// Where home is, how to know it, and who we are.
#[derive(Clone, Debug)]
pub struct DialConfig {
    /// `wss://host[:port][/path]`, or `ws://` where somebody else ends TLS. The path of a link is `/link`.
    pub home_url: String,
    /// How home proves itself. Not used with `ws://`.
    pub trust: Trust,
    /// What the home end's gate asks for.
    pub credential: SecretString,
    /// Name and version that home sees.
    pub software: String,
    /// The proxy on the way out.
    pub proxy: ProxyEnv,
    /// Connections to keep open, 1 to 10.
    pub lanes: usize,
    /// Connections to open while bulk goes a long way and more of them carry more, `lanes` to 10.
    pub most_lanes: usize,
    /// A lane that was idle this long is pinged, 0.1 to 55 s. When the answer is late (2.5 s, or four round trips)
    /// a fresh lane is dialled beside it; silent for three times the heartbeat it is given up.
    pub heartbeat: Duration,
}

impl DialConfig {
    /// The usual dialler: one lane, up to ten for bulk, the proxy that the environment names.
    pub fn new(home_url: &str, trust: Trust, credential: SecretString, software: &str) -> Self {
        DialConfig {
            home_url: home_url.to_owned(),
            trust,
            credential,
            software: software.to_owned(),
            proxy: ProxyEnv::from_env(),
            lanes: 1,
            most_lanes: MAX_LANES,
            heartbeat: Duration::from_secs(5),
        }
    }
}

/// How home proves itself. There is no way to switch it off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// A certificate of an authority that the system trusts.
    SystemRoots,
    /// A certificate of one of these authorities (PEM).
    CaPem(String),
    /// A certificate whose public key (SubjectPublicKeyInfo) has this SHA-256, in base64 or hex.
    KeyPin(String),
}

/// The proxy variables of the environment, as they were read.
#[derive(Clone, Default)]
pub struct ProxyEnv {
    /// `HTTPS_PROXY` or `https_proxy`: for `wss://`.
    pub https_proxy: Option<String>,
    /// `http_proxy` or `HTTP_PROXY`: for `ws://`.
    pub http_proxy: Option<String>,
    /// `NO_PROXY` or `no_proxy`: hosts reached without it.
    pub no_proxy: Option<String>,
}

impl std::fmt::Debug for ProxyEnv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProxyEnv").field("no_proxy", &self.no_proxy).finish_non_exhaustive()
    }
}

impl ProxyEnv {
    /// Reads the environment of this process.
    pub fn from_env() -> Self {
        let read = |names: [&str; 2]| {
            names.iter().find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()))
        };
        ProxyEnv {
            https_proxy: read(["https_proxy", "HTTPS_PROXY"]),
            http_proxy: read(["http_proxy", "HTTP_PROXY"]),
            no_proxy: read(["no_proxy", "NO_PROXY"]),
        }
    }
}

/// What makes dialling impossible from the start.
#[derive(Debug, thiserror::Error)]
pub enum BadDial {
    /// The home URL cannot be dialled.
    #[error("home_url: {0}")]
    HomeUrl(String),
    /// The trust cannot be used.
    #[error("trust: {0}")]
    Trust(String),
    /// The proxy of the environment cannot be used.
    #[error("proxy: {0}")]
    Proxy(String),
    /// A limit is out of range.
    #[error("{0}")]
    Limit(String),
    /// No key could be made.
    #[error("making the link's key pair")]
    Key,
}

/// Why a dialler came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DialEnd {
    /// Home refused for good, in these words.
    Refused(String),
    /// Either end closed the link, for this reason.
    Closed(String),
}

/// Keeps the link's lanes up. Nothing happens until it runs.
#[derive(Debug)]
pub struct Dialer {
    link: Link,
    way: Arc<Way>,
    lanes: usize,
    most_lanes: usize,
}

/// Checks the config and makes a link that waits for its dialler to run.
pub fn dialer(config: DialConfig) -> Result<(Link, Dialer), BadDial> {
    if !(1..=MAX_LANES).contains(&config.lanes) {
        return Err(BadDial::Limit(format!("lanes must be 1 to {MAX_LANES}")));
    }
    if !(config.lanes..=MAX_LANES).contains(&config.most_lanes) {
        return Err(BadDial::Limit(format!("most_lanes must be {} to {MAX_LANES}", config.lanes)));
    }
    if config.heartbeat < Duration::from_millis(100) || config.heartbeat > Duration::from_secs(55) {
        return Err(BadDial::Limit(
            "the heartbeat must be 0.1 to 55 s: proxies close what is idle for 60 s".to_owned(),
        ));
    }
    let way = Arc::new(Way::check(&config)?);
    let link = Link::new(Side::Agent, Limits::default(), config.heartbeat);
    Ok((link.clone(), Dialer { link, way, lanes: config.lanes, most_lanes: config.most_lanes }))
}

impl Dialer {
    /// Dials for ever; ends only when home refuses for good or either end closes the link. Dropping it drops
    /// the lanes.
    pub async fn run(self) -> DialEnd {
        let mut work = Work {
            state: self.link.watch(),
            spread: Spread::new(self.lanes, self.most_lanes, Instant::now()),
            dialer: self,
            dials: JoinSet::new(),
            carried: JoinSet::new(),
            lanes: Vec::new(),
            dials_of: [0; 16],
            pace: Pace::new(Instant::now()),
            resume_for: Duration::from_secs(60),
            home_closed: false,
        };
        let end = work.run().await;
        work.leave(&end).await;
        end
    }
}

/// What one half of a dial came to.
enum Half {
    Connected(Result<TcpStream, Failed>),
    Met(Result<Established, Failed>),
}

/// A dialler at work.
struct Work {
    dialer: Dialer,
    state: watch::Receiver<LinkState>,
    dials: JoinSet<(Arc<Session>, Half)>,
    /// The session that they name.
    dials_of: [u8; 16],
    carried: JoinSet<LaneEnd>,
    /// The lanes of `carried` by their numbers.
    lanes: Vec<(u64, AbortHandle)>,
    pace: Pace,
    spread: Spread,
    resume_for: Duration,
    /// The last lane was closed at its other end, and none came up since.
    home_closed: bool,
}

impl Work {
    async fn run(&mut self) -> DialEnd {
        loop {
            if let LinkState::Closed { reason } = &*self.state.borrow_and_update() {
                return DialEnd::Closed(reason.clone());
            }
            let link = &self.dialer.link;
            let session = link.session();
            if session.with(|core| core.ended().is_some()) {
                link.renew(&session, rand::random());
                continue;
            }
            if session.id != self.dials_of {
                // One that came home after the first of this session would end this one there.
                self.drop_dials();
                self.dials_of = session.id;
            }
            let (good, wanted) = (session.with(|core| core.good_lanes()), self.wanted());
            let now = Instant::now();
            self.pace.note(good, wanted, now);
            if good >= wanted {
                self.drop_dials();
            }
            let due = if good < wanted { self.pace.due(self.dials.len()) } else { None };
            if due.is_some_and(|due| now >= due) {
                self.dial(Arc::clone(&session));
                continue;
            }
            if good > wanted {
                self.drop_lanes(&session, wanted);
            }
            let expires = self.expires();
            // Nothing is spread over lanes that are not there.
            let spread_due = if good > 0 { self.spread.due() } else { None };
            tokio::select! {
                Some(ended) = self.carried.join_next() => self.on_lane_end(ended),
                Some(dialled) = self.dials.join_next() => {
                    if let Ok((session, half)) = dialled
                        && let Some(end) = self.on_half(&session, half)
                    {
                        return end;
                    }
                }
                changed = self.state.changed() => {
                    if changed.is_err() {
                        return DialEnd::Closed("the link is gone".to_owned());
                    }
                }
                () = until(due) => {}
                () = until(expires) => self.expire(),
                () = until(spread_due) => self.look_at_spread(good),
            }
        }
    }

    /// Lanes to keep: several only with a home that can.
    fn wanted(&self) -> usize {
        let several = |home: &PeerInfo| home.capabilities.iter().any(|name| name == SEVERAL_LANES);
        if self.dialer.link.peer().as_ref().is_some_and(several) { self.spread.wanted() } else { 1 }
    }

    fn look_at_spread(&mut self, good: usize) {
        let (sum, rtt) = (self.dialer.link.counters(), self.dialer.link.rtt());
        self.spread.look(Instant::now(), sum.bytes_in + sum.bytes_out, rtt, good);
    }

    /// Ends the youngest lanes beyond those wanted; the other end learns what arrived on them, as of any lane that is lost.
    fn drop_lanes(&mut self, session: &Session, wanted: usize) {
        let good = session.with(|core| core.good_lane_ids());
        for id in good.into_iter().skip(wanted) {
            debug!(lane = id, "a lane is not needed any more");
            self.lanes.iter().filter(|(lane, _)| *lane == id).for_each(|(_, task)| task.abort());
        }
    }

    fn drop_dials(&mut self) {
        self.dials.abort_all();
        self.dials.detach_all();
        self.pace.none_stands();
    }

    fn dial(&mut self, session: Arc<Session>) {
        let limit = self.pace.dialled(Instant::now());
        self.dialer.link.note_dial();
        let way = Arc::clone(&self.dialer.way);
        self.dials.spawn(async move {
            let connected = timeout(limit, way.connect()).await;
            let late = |_| Err(Failed::Trouble(format!("home was not reached within {} s", limit.as_secs())));
            (session, Half::Connected(connected.unwrap_or_else(late)))
        });
    }

    fn meet(&mut self, session: Arc<Session>, tcp: TcpStream) {
        self.pace.stands(Instant::now());
        let way = Arc::clone(&self.dialer.way);
        self.dials.spawn(async move {
            let met = timeout(ANSWER_WITHIN, way.meet(tcp, session.id)).await;
            let limit = ANSWER_WITHIN.as_secs();
            let late = |_| Err(Failed::Trouble(format!("home did not answer within {limit} s")));
            (session, Half::Met(met.unwrap_or_else(late)))
        });
    }

    fn on_half(&mut self, session: &Arc<Session>, half: Half) -> Option<DialEnd> {
        match half {
            Half::Connected(Ok(tcp)) => self.meet(Arc::clone(session), tcp),
            Half::Met(Ok(established)) => self.on_established(session, established),
            Half::Connected(Err(failed)) => return self.on_failed(failed),
            Half::Met(Err(failed)) => {
                self.pace.none_stands();
                return self.on_failed(failed);
            }
        }
        None
    }

    fn on_failed(&mut self, failed: Failed) -> Option<DialEnd> {
        let link = &self.dialer.link;
        match failed {
            Failed::Refused(Refused { after: None, sentence }) => {
                link.set_closed(&sentence);
                return Some(DialEnd::Refused(sentence));
            }
            Failed::Refused(Refused { after: Some(after), sentence }) => {
                info!(reason = sentence, after_s = after.as_secs(), "home asks to come again later");
                link.set_trouble(Some(sentence));
                self.pace.stay_away(Instant::now(), after);
                self.drop_dials();
            }
            Failed::Nobody(sentence) => {
                debug!(reason = sentence, "nobody listens at home");
                link.set_trouble(Some(sentence));
                if self.home_closed {
                    self.give_up("home is not there: its process has ended");
                }
            }
            Failed::Trouble(sentence) => {
                debug!(reason = sentence, "a dial came to nothing");
                link.set_trouble(Some(sentence));
            }
        }
        None
    }

    fn on_established(&mut self, session: &Session, established: Established) {
        let Established { socket, welcome, about } = established;
        let link = &self.dialer.link;
        let mut current = link.session();
        if current.id != session.id {
            return;
        }
        match current.incarnation.load(Ordering::Acquire) {
            0 => current.incarnation.store(welcome.incarnation, Ordering::Release),
            known if known == welcome.incarnation => {}
            _ => {
                info!("home no longer knows the link's streams; they end");
                // Under the same name: home knows its new end of the session by it.
                link.renew(&current, current.id);
                current = link.session();
                current.incarnation.store(welcome.incarnation, Ordering::Release);
            }
        }
        let Some(lane) = LaneGuard::add(Arc::clone(&current), welcome.lane) else { return };
        current.with(|core| core.drop_silent_lanes(now()));
        link.set_peer(about);
        link.set_trouble(None);
        self.resume_for = welcome.resume_for;
        self.home_closed = false;
        info!(lane = welcome.lane, "a lane is up");
        self.pace.reached(Instant::now());
        let task = self.carried.spawn(carry(socket, lane));
        self.lanes.retain(|(_, lane)| !lane.is_finished());
        self.lanes.push((welcome.lane, task));
    }

    fn on_lane_end(&mut self, ended: Result<LaneEnd, JoinError>) {
        match ended {
            Ok(LaneEnd::Away) => {
                info!("home goes away and asks to come again soon");
                self.pace.soon(Instant::now());
                self.give_up("home goes away");
            }
            Ok(LaneEnd::Closed(reason)) => {
                info!(reason, "a lane was closed at its other end");
                self.home_closed = true;
                self.dialer.link.set_trouble(Some(reason));
            }
            Ok(LaneEnd::Lost(reason)) => {
                info!(reason, "a lane was lost");
                self.home_closed = false;
                self.dialer.link.set_trouble(Some(reason));
            }
            Ok(LaneEnd::Broken(reason)) => {
                warn!(reason, "the link's session is over");
                self.dialer.link.set_trouble(Some(reason));
                self.pace.stay_away(Instant::now(), Duration::from_secs(1));
            }
            Ok(LaneEnd::Left) => {}
            Err(error) if error.is_cancelled() => {}
            Err(error) => warn!(%error, "a lane's task ended badly"),
        }
    }

    /// When home has surely forgotten the session: its patience, and the time it may take to notice a cut.
    fn expires(&self) -> Option<Instant> {
        let session = self.dialer.link.session();
        let bare_since = session.with(|core| if core.lanes_ever > 0 { core.bare_since() } else { None })?;
        Some(Instant::from_std(bare_since) + self.resume_for + Duration::from_secs(15))
    }

    fn expire(&mut self) {
        self.give_up(&format!("the link was cut for more than {} s", self.resume_for.as_secs()));
    }

    /// Home has forgotten the session, so nothing can be resumed. Its streams end now rather than when home is found
    /// again: what their servers have to say meanwhile is theirs to keep, and not lost on the way to nobody.
    fn give_up(&mut self, reason: &str) {
        let session = self.dialer.link.session();
        let is_used = session.with(|core| core.lanes_ever > 0 && core.good_lanes() == 0);
        if is_used {
            info!("{reason}; the link's streams end");
            session.with(|core| core.end_quietly(false, reason));
        }
    }

    /// Lets lanes say their goodbye.
    async fn leave(&mut self, end: &DialEnd) {
        self.dials.shutdown().await;
        if matches!(end, DialEnd::Closed(_)) {
            let all = async { while self.carried.join_next().await.is_some() {} };
            let _ = timeout(Duration::from_secs(3), all).await;
        }
        self.carried.shutdown().await;
    }
}

async fn until(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}
