//! Both ends of a bare link, as the peers' programs are: a port at home, a port behind the agent, nothing else.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use async_trait::async_trait;
use glidepath_tunnel::dial::{DialConfig, Trust, dialer};
use glidepath_tunnel::gulp::Gulp;
use glidepath_tunnel::home::{Admitted, Gate, HomeConfig, HomeEnd, Knock, Refusal, TurnedAway};
use glidepath_tunnel::link::{Link, LinkState};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::figures::tell;

/// How often home looks at its counts.
const TELL_EVERY: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
pub(crate) struct HomeArgs {
    /// Where agents dial.
    #[arg(long)]
    link: SocketAddr,
    /// Where users connect.
    #[arg(long)]
    public: SocketAddr,
    /// Certificate and key (PEM); without them there is no TLS.
    #[arg(long, num_args = 2, value_names = ["CERT", "KEY"])]
    tls: Option<Vec<PathBuf>>,
    /// Threads, as the service has them.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Sends back what comes on streams that agents open, and tells how many came home.
    #[arg(long)]
    answers: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct AgentArgs {
    /// `ws://` or `wss://` of home. Of several names links take turns.
    #[arg(long, required = true)]
    home: Vec<String>,
    /// Certificate authority (PEM) that home's certificate is of.
    #[arg(long)]
    ca: Option<PathBuf>,
    /// Where streams go.
    #[arg(long)]
    origin: SocketAddr,
    /// Links to keep up, each with an identity of its own.
    #[arg(long, default_value_t = 1)]
    links: usize,
    /// The number of the first one, when several processes are agents of one home.
    #[arg(long, default_value_t = 0)]
    first: usize,
    /// How many links begin to dial in a second; all at once when not said.
    #[arg(long)]
    per_s: Option<u32>,
    /// Connections of each link; as many as is usual when not said.
    #[arg(long)]
    lanes: Option<usize>,
    /// Tells whenever a link's first byte has come back from a home that answers, and when that ended.
    #[arg(long)]
    asks: bool,
}

/// Serves until it is killed.
pub(crate) fn home(args: &HomeArgs) -> anyhow::Result<()> {
    let acceptor = match args.tls.as_deref() {
        Some([cert, key]) => Some(acceptor(cert, key)?),
        _ => None,
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(args.threads).enable_all().build()?;
    runtime.block_on(async {
        let counts = Arc::new(Counts::default());
        let door =
            Arc::new(Door { newest: Mutex::default(), answers: args.answers, counts: Arc::clone(&counts) });
        let home = HomeEnd::new(HomeConfig::default(), Arc::clone(&door) as Arc<dyn Gate>);
        if args.answers {
            tokio::spawn(Arc::clone(&counts).told());
        }
        let links = TcpListener::bind(args.link).await.context("--link")?;
        let public = TcpListener::bind(args.public).await.context("--public")?;
        tokio::spawn(async move {
            while let Ok((user, _)) = public.accept().await {
                let Some(link) = door.link() else { continue };
                tokio::spawn(carry(user, link));
            }
        });
        loop {
            let (tcp, peer) = links.accept().await?;
            tcp.set_nodelay(true)?;
            counts.connections.fetch_add(1, Ordering::Relaxed);
            let (home, acceptor, counts) = (home.clone(), acceptor.clone(), Arc::clone(&counts));
            tokio::spawn(async move {
                match acceptor {
                    None => home.serve(tcp, peer).await,
                    Some(acceptor) => {
                        if let Ok(tls) = acceptor.accept(Gulp::new(tcp)).await {
                            counts.tls.fetch_add(1, Ordering::Relaxed);
                            home.serve(tls, peer).await;
                        }
                    }
                }
            });
        }
    })
}

async fn carry(user: TcpStream, link: Link) {
    let _ = user.set_nodelay(true);
    if let Ok(stream) = link.open("bench") {
        let (from, to) = user.into_split();
        let _ = stream.carry(from, to).await;
    }
}

/// Dials until it is killed.
pub(crate) fn agent(args: &AgentArgs) -> anyhow::Result<()> {
    // As the real agent: one thread.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let trust = match &args.ca {
        Some(file) => {
            Trust::CaPem(std::fs::read_to_string(file).with_context(|| file.display().to_string())?)
        }
        None => Trust::SystemRoots,
    };
    runtime.block_on(async {
        let mut links = JoinSet::new();
        for number in args.first..args.first + args.links {
            if let Some(per_s) = args.per_s
                && number > args.first
            {
                tokio::time::sleep(Duration::from_secs(1) / per_s.max(1)).await;
            }
            let home = args.home.get(number % args.home.len()).context("--home")?;
            let mut config = DialConfig::new(home, trust.clone(), format!("{number}").into(), "bench");
            if let Some(lanes) = args.lanes {
                (config.lanes, config.most_lanes) = (lanes, lanes);
            }
            let (link, dialer) = dialer(config)?;
            let asks = args.asks;
            links.spawn(async move {
                let end = dialer.run().await;
                if asks {
                    tell(
                        &json!({ "link": number, "up": false, "at": unix_s(), "ended": format!("{end:?}") }),
                    );
                }
            });
            if args.asks {
                links.spawn(ask(link.clone(), number));
            }
            let origin = args.origin;
            links.spawn(async move {
                while let Some(incoming) = link.accept().await {
                    tokio::spawn(async move {
                        let Ok(server) = TcpStream::connect(origin).await else { return };
                        let _ = server.set_nodelay(true);
                        let (from, to) = server.into_split();
                        let _ = incoming.stream.carry(from, to).await;
                    });
                }
            });
        }
        while links.join_next().await.is_some() {}
        Ok(())
    })
}

/// Asks home for a byte, waits until the way that it came by is gone, and asks again.
async fn ask(link: Link, number: usize) {
    let mut state = link.watch();
    loop {
        let is_up = state.wait_for(|state| matches!(state, LinkState::Up { .. } | LinkState::Closed { .. }));
        if !matches!(is_up.await.as_deref(), Ok(LinkState::Up { .. })) {
            return;
        }
        let Ok(mut stream) = link.open("ask") else { continue };
        let mut answer = [0];
        if stream.write_all(b"?").await.is_ok()
            && stream.flush().await.is_ok()
            && stream.read_exact(&mut answer).await.is_ok()
            && answer == *b"?"
        {
            let counters = link.counters();
            tell(&json!({
                "link": number, "up": true, "at": unix_s(), "dials": counters.dials, "lanes": counters.lanes,
            }));
            let _ = stream.read(&mut answer).await; // home says no more: this is the end of the stream
            tell(&json!({ "link": number, "up": false, "at": unix_s() }));
        }
    }
}

/// Lets everybody in and remembers who came last.
struct Door {
    newest: Mutex<Option<Link>>,
    answers: bool,
    counts: Arc<Counts>,
}

impl Door {
    fn link(&self) -> Option<Link> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl Gate for Door {
    async fn admit(&self, knock: Knock) -> Result<Admitted, Refusal> {
        Ok(Admitted { identity: knock.credential })
    }

    fn linked(&self, _admitted: &Admitted, link: Link) {
        self.counts.linked.fetch_add(1, Ordering::Relaxed);
        if self.answers {
            tokio::spawn(answer(link.clone()));
        }
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(link);
    }

    fn turned_away(&self, _peer: SocketAddr, _turned: TurnedAway, _sentence: &str) {
        self.counts.refused.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sends back what comes on every stream that the agent opens.
async fn answer(link: Link) {
    while let Some(incoming) = link.accept().await {
        tokio::spawn(async move {
            let (mut from, mut to) = tokio::io::split(incoming.stream);
            let _ = tokio::io::copy(&mut from, &mut to).await;
        });
    }
}

/// Who came to the door since home began.
#[derive(Debug, Default)]
struct Counts {
    connections: AtomicU64,
    tls: AtomicU64,
    refused: AtomicU64,
    linked: AtomicU64,
}

impl Counts {
    /// Tells whenever they have changed.
    async fn told(self: Arc<Self>) {
        let mut last = [0; 4];
        let mut tick = tokio::time::interval(TELL_EVERY);
        loop {
            tick.tick().await;
            let counts = [&self.connections, &self.tls, &self.refused, &self.linked];
            let [connections, tls, refused, linked] = counts.map(|count| count.load(Ordering::Relaxed));
            if last != [connections, tls, refused, linked] {
                last = [connections, tls, refused, linked];
                tell(&json!({
                    "at": unix_s(), "connections": connections, "tls": tls, "refused": refused, "linked": linked,
                }));
            }
        }
    }
}

/// The time of day, which all processes have in common.
fn unix_s() -> f64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs_f64()
}

fn acceptor(cert: &PathBuf, key: &PathBuf) -> anyhow::Result<TlsAcceptor> {
    let chain = CertificateDer::pem_file_iter(cert)?.collect::<Result<Vec<_>, _>>()?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
