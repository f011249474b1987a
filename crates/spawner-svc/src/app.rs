//! Builds the whole service and runs it. The only place that knows everyone.
//!
//! ```text
//! open   lock ► ports ► keys, store ► backends ► arrivals ► life cycle ► routes      (an error: nothing runs yet)
//! serve  named tasks ► attach file ► … ► SIGTERM: drain, runs live on
//! ```

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use glidepath_api_types::agent::Trust;
use glidepath_backends::process::ProcessBackend;
use glidepath_domain::backend::Backend;
use glidepath_domain::names::InstanceId;
use glidepath_svc_kit::crash;
use glidepath_svc_kit::files::{self, Lock, in_words};
use glidepath_svc_kit::kept::{Copies, Inherited};
use glidepath_svc_kit::listen::{self, Bounds};
use glidepath_svc_kit::shutdown;
use glidepath_svc_kit::tasks::Tasks;
use glidepath_tunnel::home::{HomeConfig, HomeEnd};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::arrivals::Arrivals;
use crate::arrivals::routes::Routes;
use crate::config::{BackendConfig, Config, Hub, LinkTls, SiteConfig};
use crate::http::observe::{self, Observed};
use crate::http::{self, Api};
use crate::metrics::Metrics;
use crate::notable::Notes;
use crate::proxy::hub_forward::{HubForward, HubTarget};
use crate::proxy::{link, relay};
use crate::seal::Seal;
use crate::sites::{Pace, SiteSetup, Sites};
use crate::spawn::{Parts, Settings, Spawner, SpawnerTask};
use crate::store::{self, Database, Store};
use crate::tls;

mod attach;
mod open_files;
mod ports;
pub mod surroundings;

pub use attach::Attach;
use ports::Ports;

/// Connections of Hubs at a time, and of monitoring.
const API_CONNECTIONS: usize = 1024;
const METRICS_CONNECTIONS: usize = 64;
/// A request's head must arrive within this time.
const HEAD_WAIT: Duration = Duration::from_secs(60);
/// What requests under way are given at the end.
const DRAIN: Duration = Duration::from_secs(5);
/// How long tasks have to end: longer than every part's own drain.
const GRACE: Duration = Duration::from_secs(20);

/// Makes the backend of a site. `app` itself makes the real ones; tests bring theirs.
pub type Backends<'a> = &'a (dyn Fn(&SiteConfig) -> anyhow::Result<Arc<dyn Backend>> + Sync);

/// The service, built and not yet running.
pub struct App {
    _lock: Lock,
    stop: CancellationToken,
    /// Ends links and the servers' calls of their Hub: after the relays, whose requests go over them.
    links_stop: CancellationToken,
    state_dir: PathBuf,
    attach: Attach,
    api: (TcpListener, axum::Router),
    metrics: (TcpListener, axum::Router),
    link: (TcpListener, tls::LinkTls, HomeEnd),
    relays: Vec<(TcpListener, Hub)>,
    routes: Arc<Routes>,
    sites: Sites,
    store: Store,
    spawner: Spawner,
    life: SpawnerTask,
    counted: Metrics,
    copies: Copies,
    notes: Notes,
}

/// Runs the service until it is told to stop, by the token or by a signal.
pub async fn run(config: Config, inherited: Inherited, stop: CancellationToken) -> anyhow::Result<()> {
    let app = App::open(config, &real_backend, inherited, stop).await?;
    open_files::raise(); // once it is open: a service that cannot start says why, and nothing else
    app.serve().await
}

impl App {
    /// Takes the state folder and all ports, reads what lives. On an error nothing runs and no port is held.
    pub async fn open(
        config: Config,
        backends: Backends<'_>,
        inherited: Inherited,
        stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        let state_dir = config.state_dir.clone();
        let lock = take(&state_dir)?;
        let ports = ports::bind(&config, &state_dir, inherited).await?;
        let copies = ports.copies()?;
        let Ports { api, link, metrics, relays, .. } = ports;
        let instance = instance(&config, &state_dir)?;
        let store = Store::open_in(Database::of(&config), Seal::in_state_dir(&state_dir)?).await?;
        let (home_url, trust, tls) = home(&config, &state_dir, link.local_addr()?)?;

        let notes = Notes::new();
        let routes = Routes::noting(notes.clone());
        let links_stop = CancellationToken::new();
        let forward =
            HubForward::new(config.hubs.iter().map(target).collect(), notes.clone(), links_stop.clone())?;
        let (arrivals, arrived) = Arrivals::new(&state_dir, instance, store.clone(), forward, notes.clone())?;
        let home_end = HomeEnd::new(HomeConfig::default(), arrivals.clone());
        let setups =
            config.sites.iter().map(|site| setup(site, backends)).collect::<anyhow::Result<Vec<_>>>()?;
        let sites = Sites::new(setups, Pace::default(), notes.clone());
        let settings = Settings {
            deadlines: config.deadlines,
            warn_before_s: config.warn_before_s.clone(),
            ..Settings::new(home_url.clone(), trust)
        };
        let counted = counted(&home_end, &routes, &notes);
        let parts = Parts {
            store: store.clone(),
            sites: sites.clone(),
            arrivals,
            arrived,
            routes: routes.clone(),
            settings,
            notes: notes.clone(),
        };
        let (spawner, life) = Spawner::load(parts).await?;
        counted.watch_runs(&spawner);
        counted.watch_sites(&sites);
        counted.watch_store(&store);

        let relay_urls: Vec<String> =
            relays.iter().map(|(bound, hub)| relay_url(bound, hub)).collect::<anyhow::Result<_>>()?;
        let attach =
            Attach::new(api.local_addr()?, metrics.local_addr()?, &home_url, &config.hubs, &relay_urls);
        let handlers =
            Api::new(&config, relay_urls, spawner.clone(), counted.clone(), notes.clone(), stop.clone())?;
        let observed = Observed { metrics: counted.clone(), store: store.clone(), stop: stop.clone() };
        Ok(Self {
            _lock: lock,
            stop,
            links_stop,
            state_dir,
            attach,
            api: (api, http::routes(handlers)),
            metrics: (metrics, observe::routes(Arc::new(observed))),
            link: (link, tls, home_end),
            relays,
            routes,
            sites,
            store,
            spawner,
            life,
            counted,
            copies,
            notes,
        })
    }

    /// Where everything listens.
    #[must_use]
    pub fn attach(&self) -> &Attach {
        &self.attach
    }

    /// Serves until told to stop, then drains: agents and their servers live on.
    pub async fn serve(self) -> anyhow::Result<()> {
        let mut tasks = Tasks::new(self.stop.clone());
        let stop = || self.stop.clone();
        tasks.spawn("signals", signals(stop()));
        tasks.spawn("listeners kept", asked_for(self.copies.keep(stop())));
        tasks.spawn("sites", run_sites(self.sites, stop()));
        tasks.spawn("life cycle", self.life.run(stop()));
        // Dropped by each relay when it is through: the channel's end is the end of all of them.
        let (relaying, mut relayed) = mpsc::channel::<Infallible>(1);
        for (listener, hub) in self.relays {
            tasks.spawn(
                "metrics of a hub",
                self.counted.clone().follow(self.spawner.clone(), hub.name.clone(), stop()),
            );
            let relay = relay::run(listener, hub.name, self.routes.clone(), relay::CONNECTIONS_MAX, stop());
            let relaying = relaying.clone();
            tasks.spawn("relay", async move {
                relay.await;
                drop(relaying);
                Ok(())
            });
        }
        drop(relaying);
        let (listener, tls, home_end) = self.link;
        let (asked, links_stop) = (stop(), self.links_stop.clone());
        tasks.spawn("drain", async move {
            asked.cancelled().await;
            let _ = relayed.recv().await; // nothing is ever sent
            links_stop.cancel();
            Ok(())
        });
        tasks.spawn("link", asked_for(link::run(listener, tls, home_end, self.notes, self.links_stop)));
        tasks.spawn("store", kept_open(self.store.clone(), stop()));
        tasks.spawn("api", listen(self.api, API_CONNECTIONS, stop()));
        tasks.spawn("metrics", listen(self.metrics, METRICS_CONNECTIONS, stop()));

        crash::point("attach.before");
        let attached = self.attach.write(&self.state_dir);
        crash::point("attach.after");
        match &attached {
            Ok(()) => tracing::info!(api = %self.attach.api, link = %self.attach.link, "ready"),
            Err(_) => self.stop.cancel(),
        }
        let ended = tasks.join(GRACE).await;
        self.attach.remove(&self.state_dir);
        self.store.close().await;
        tracing::info!("stopped; servers live on");
        attached.and(ended)
    }
}

/// Makes the state folder and takes its lock. Nothing is made where the store could not be.
fn take(state_dir: &Path) -> anyhow::Result<Lock> {
    store::on_local_disk(state_dir)?;
    let shown = state_dir.display();
    files::private_dir(state_dir)
        .map_err(|error| anyhow!("the state folder {shown} cannot be used: {}", in_words(&error)))?;
    files::lock(&state_dir.join("lock"))
        .map_err(|error| anyhow!("the state folder {shown} cannot be used: {error}"))
}

/// The operator's instance id, or the one made at the first start.
fn instance(config: &Config, state_dir: &Path) -> anyhow::Result<InstanceId> {
    if let Some(named) = &config.instance {
        return Ok(named.clone());
    }
    let path = state_dir.join("instance");
    match std::fs::read_to_string(&path) {
        Ok(kept) => InstanceId::parse(kept.trim()).with_context(|| format!("{} is damaged", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let fresh: u64 = rand::random();
            let fresh = InstanceId::parse(&format!("gp-{fresh:016x}"))?;
            files::write_private(&path, fresh.as_str().as_bytes())
                .map_err(|error| anyhow!("cannot write {}: {}", path.display(), in_words(&error)))?;
            Ok(fresh)
        }
        Err(error) => Err(anyhow!("cannot read {}: {}", path.display(), in_words(&error))),
    }
}

/// The URL that agents dial, whom they trust there, and how the listener proves itself.
fn home(
    config: &Config,
    state_dir: &Path,
    bound: SocketAddr,
) -> anyhow::Result<(String, Trust, tls::LinkTls)> {
    let url = config.link.url.clone().unwrap_or_else(|| format!("wss://{bound}/link"));
    let trust =
        match &config.link.ca {
            Some(path) => {
                let pem = std::fs::read_to_string(path);
                Trust::CaPem(pem.map_err(|error| {
                    anyhow!("link.ca: cannot read {}: {}", path.display(), in_words(&error))
                })?)
            }
            None => Trust::SystemRoots,
        };
    Ok(match &config.link.tls {
        LinkTls::PlainBehind(proxy) => (url, trust, tls::LinkTls::PlainBehind(proxy.clone())),
        LinkTls::Files { cert, key } => (url, trust, tls::LinkTls::Own(tls::load(cert, key)?)),
        LinkTls::OwnCa => {
            let host: ::http::Uri = url.parse().context("the link's URL")?;
            let own = tls::own_ca(state_dir, &[host.host().unwrap_or_default().to_owned()])?;
            let ca =
                own.ca_pem().map(str::to_owned).context("the service's own authority has no certificate")?;
            (url, Trust::CaPem(ca), tls::LinkTls::Own(own))
        }
    })
}

fn target(hub: &Hub) -> HubTarget {
    HubTarget { name: hub.name.clone(), api: hub.api.clone(), base_url: hub.base_url.clone() }
}

fn setup(config: &SiteConfig, backends: Backends<'_>) -> anyhow::Result<SiteSetup> {
    Ok(SiteSetup {
        backend: backends(config).with_context(|| format!("site {}", config.site.name))?,
        site: Arc::new(config.site.clone()),
        listen_on: config.listen_on,
        absence_limit_s: config.absence_limit_s,
        closed: config.closed.clone(),
    })
}

/// The backend that a site's config names.
pub fn real_backend(site: &SiteConfig) -> anyhow::Result<Arc<dyn Backend>> {
    match &site.backend {
        BackendConfig::Process(config) => Ok(Arc::new(ProcessBackend::new(config.as_ref().clone())?)),
    }
}

fn relay_url(bound: &TcpListener, hub: &Hub) -> anyhow::Result<String> {
    Ok(match &hub.relay_url {
        Some(url) => url.clone(),
        None => format!("http://{}", bound.local_addr()?),
    })
}

fn counted(home_end: &HomeEnd, routes: &Arc<Routes>, notes: &Notes) -> Metrics {
    let counted = Metrics::new();
    let (home_end, routes) = (home_end.clone(), Arc::clone(routes));
    counted.watch_notes(notes);
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    counted
        .gauge("links", "Links of agents now", move || i64::try_from(home_end.links()).unwrap_or(i64::MAX));
    counted.counters("relay_answers", "Answers of the relays, by class of status", move || {
        let of_class = |(class, n): (&str, u64)| (vec![("class".to_owned(), class.to_owned())], number(n));
        routes.answers().map(of_class).collect()
    });
    counted
}

async fn signals(stop: CancellationToken) -> anyhow::Result<()> {
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        asked = shutdown::asked() => {
            tracing::info!(signal = asked?, "stopping");
            stop.cancel();
            Ok(())
        }
    }
}

/// A store that takes nothing any more is the end of a service that must not act before it has written.
async fn kept_open(store: Store, stop: CancellationToken) -> anyhow::Result<()> {
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        () = store.closed() => Err(match store.why_closed() {
            Some(why) => anyhow!(why),
            None => anyhow!("the store's writer broke off"),
        }),
    }
}

async fn run_sites(sites: Sites, stop: CancellationToken) -> anyhow::Result<()> {
    sites.run(stop).await;
    Ok(())
}

async fn asked_for(work: impl Future<Output = ()>) -> anyhow::Result<()> {
    work.await;
    Ok(())
}

async fn listen(
    (listener, routes): (TcpListener, axum::Router),
    connections: usize,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    listen::serve(listener, routes, Bounds { connections, head_wait: HEAD_WAIT, drain: DRAIN }, stop).await;
    Ok(())
}
