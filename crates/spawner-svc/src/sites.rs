//! The configured sites, their backends, and what they can take now.
//!
//! In: config and the backends that `app` built. Out: the latest snapshot of each site, refreshed in the background,
//! with a site that fails repeatedly left alone for a while.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use glidepath_api_types::agent::ListenOn;
use glidepath_domain::backend::Backend;
use glidepath_domain::names::SiteName;
use glidepath_domain::site::{Health, Site, Snapshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::notable::{About, Doubt, Doubting, Notes, Retry};

/// One site with its backend.
#[derive(Clone)]
pub struct SiteSetup {
    /// As the operator describes it; shared with every decision.
    pub site: Arc<Site>,
    /// Speaks to its batch system.
    pub backend: Arc<dyn Backend>,
    /// Where servers there are told to listen.
    pub listen_on: ListenOn,
    /// Seconds of home's absence after which an agent there ends its server; the run's walltime when `None`.
    pub absence_limit_s: Option<u64>,
    /// The operator's words when the site is closed to new servers.
    pub closed: Option<String>,
}

/// How often sites are asked, and how long a failing one rests.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Between two snapshots of a site; jittered.
    pub snapshot_every: Duration,
    /// One snapshot may take this long.
    pub snapshot_timeout: Duration,
    /// Failures in a row after which a site rests.
    pub failures_to_rest: u32,
    /// First rest; doubles each time.
    pub rest: Duration,
    /// Longest rest.
    pub rest_ceiling: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            snapshot_every: Duration::from_secs(5),
            snapshot_timeout: Duration::from_secs(10),
            failures_to_rest: 3,
            rest: Duration::from_secs(30),
            rest_ceiling: Duration::from_secs(600),
        }
    }
}

/// What a backend is asked in bulk: once for all runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Query {
    /// All its jobs.
    List,
    /// What it can take now.
    Snapshot,
}

impl Query {
    /// The word that metrics use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Snapshot => "snapshot",
        }
    }
}

/// What the service knows of one site now.
#[derive(Clone)]
pub struct SiteNow {
    /// The site and its backend.
    pub setup: SiteSetup,
    /// What it said last, with its health as the service sees it; `None` when it has not answered yet.
    pub snapshot: Option<Snapshot>,
    /// When it said so.
    pub taken: Option<Instant>,
}

/// All sites; cheap to clone.
#[derive(Clone)]
pub struct Sites {
    inner: Arc<Inner>,
}

struct Inner {
    sites: Vec<SiteSetup>,
    pace: Pace,
    notes: Notes,
    heard: Mutex<HashMap<SiteName, Heard>>,
}

/// What was heard of one site, and how it has done.
#[derive(Debug, Default)]
struct Heard {
    snapshot: Option<(Snapshot, Instant)>,
    /// Why the last snapshot did not come, since the last that did.
    silent: Option<String>,
    doubt: Option<Doubting>,
    breaker: Breaker,
    lists: u64,
    snapshots: u64,
}

/// Leaves a site alone that failed several times in a row; for longer each time.
#[derive(Debug, Default)]
struct Breaker {
    failures: u32,
    rests: u32,
    resting_until: Option<Instant>,
    why: String,
    last_asker: Option<String>,
}

impl Sites {
    /// Takes the sites in the operator's order.
    #[must_use]
    pub fn new(sites: Vec<SiteSetup>, pace: Pace, notes: Notes) -> Self {
        let heard = sites.iter().map(|setup| (setup.site.name.clone(), Heard::default())).collect();
        Self { inner: Arc::new(Inner { sites, pace, notes, heard: Mutex::new(heard) }) }
    }

    /// Asks every site for a snapshot, again and again, until told to stop.
    pub async fn run(&self, stop: CancellationToken) {
        let mut loops = JoinSet::new();
        for setup in &self.inner.sites {
            let (this, setup, stop) = (self.clone(), setup.clone(), stop.clone());
            loops.spawn(async move {
                let asking = async {
                    loop {
                        this.refresh(&setup).await;
                        tokio::time::sleep(jittered(this.inner.pace.snapshot_every)).await;
                    }
                };
                stop.run_until_cancelled(asking).await;
            });
        }
        stop.cancelled().await;
        while loops.join_next().await.is_some() {}
    }

    /// Asks one site for a snapshot now.
    pub async fn refresh(&self, setup: &SiteSetup) {
        let name = &setup.site.name;
        self.asks(name, Query::Snapshot);
        let asked = tokio::time::timeout(self.inner.pace.snapshot_timeout, setup.backend.snapshot()).await;
        let answer = match asked {
            Ok(Ok(snapshot)) => Ok(snapshot),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} s", self.inner.pace.snapshot_timeout.as_secs())),
        };
        let mut heard = self.heard();
        let Some(heard) = heard.get_mut(name) else { return };
        match answer {
            Ok(snapshot) => {
                heard.silent = None;
                if let Some(doubt) = heard.doubt.take() {
                    doubt.over(&About::new().site(name));
                }
                heard.snapshot = Some((snapshot, Instant::now()));
            }
            Err(why) => {
                let about = About::new().site(name).why(&why);
                heard.doubt.get_or_insert_with(|| self.inner.notes.doubts(Doubt::SiteSilent, &about));
                heard.silent = Some(why);
            }
        }
    }

    /// Counts that this site is asked.
    pub fn asks(&self, name: &SiteName, what: Query) {
        if let Some(heard) = self.heard().get_mut(name) {
            match what {
                Query::List => heard.lists += 1,
                Query::Snapshot => heard.snapshots += 1,
            }
        }
    }

    /// How often each site was asked what.
    #[must_use]
    pub fn queries(&self) -> Vec<(SiteName, Query, u64)> {
        let heard = self.heard();
        let of_site = |(name, heard): (&SiteName, &Heard)| {
            [(Query::List, heard.lists), (Query::Snapshot, heard.snapshots)]
                .map(|(what, n)| (name.clone(), what, n))
        };
        let mut queries: Vec<_> = heard.iter().flat_map(of_site).collect();
        queries.sort_unstable();
        queries
    }

    /// An attempt failed there. After several in a row the site rests. `asker` is given when the failure may be that
    /// user's own matter: then the same user's next one counts for nothing.
    pub fn failed(&self, name: &SiteName, why: &str, asker: Option<&str>) {
        let pace = self.inner.pace;
        let mut heard = self.heard();
        let Some(heard) = heard.get_mut(name) else { return };
        if asker.is_some() && heard.breaker.last_asker.as_deref() == asker {
            return;
        }
        heard.breaker.last_asker = asker.map(str::to_owned);
        if let Some(rest) = heard.breaker.failed(why, &pace, Instant::now()) {
            let why = format!("for {} s: {why}", rest.as_secs());
            self.inner.notes.retries(Retry::SiteRests, &About::new().site(name).why(&why));
        }
    }

    /// An attempt went well there.
    pub fn did_well(&self, name: &SiteName) {
        if let Some(heard) = self.heard().get_mut(name) {
            heard.breaker = Breaker::default();
        }
    }

    /// One site by name.
    #[must_use]
    pub fn get(&self, name: &SiteName) -> Option<SiteSetup> {
        self.inner.sites.iter().find(|setup| &setup.site.name == name).cloned()
    }

    /// The sites in the operator's order, without what is known of them now.
    #[must_use]
    pub fn setups(&self) -> &[SiteSetup] {
        &self.inner.sites
    }

    /// Every site as it stands, in the operator's order.
    #[must_use]
    pub fn all(&self) -> Vec<SiteNow> {
        let heard = self.heard();
        let now = Instant::now();
        let site_now = |setup: &SiteSetup| {
            let heard = heard.get(&setup.site.name);
            SiteNow {
                setup: setup.clone(),
                snapshot: heard.and_then(|heard| heard.snapshot_at(setup, &self.inner.pace, now)),
                taken: heard.and_then(|heard| heard.snapshot.as_ref().map(|(_, taken)| *taken)),
            }
        };
        self.inner.sites.iter().map(site_now).collect()
    }

    fn heard(&self) -> MutexGuard<'_, HashMap<SiteName, Heard>> {
        self.inner.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heard {
    /// The last snapshot, with the health that the service sees. A site that never answered has none, unless the
    /// operator closed it or it rests.
    fn snapshot_at(&self, setup: &SiteSetup, pace: &Pace, now: Instant) -> Option<Snapshot> {
        let stale = pace.snapshot_every * 3 + pace.snapshot_timeout;
        let health = match (&setup.closed, self.breaker.resting(now), &self.silent, &self.snapshot) {
            (Some(why), _, _, _) => Some(Health::Closed(why.clone())),
            (None, Some(why), _, _) => Some(Health::Resting(why.to_owned())),
            (None, None, Some(why), _) => Some(Health::Unknown(why.clone())),
            (None, None, None, Some((_, taken))) if now.duration_since(*taken) > stale => {
                Some(Health::Unknown("it has not answered lately".to_owned()))
            }
            (None, None, None, _) => None,
        };
        let said = self.snapshot.as_ref().map(|(snapshot, _)| snapshot.clone());
        match (said, health) {
            (Some(said), None) => Some(said),
            (Some(said), Some(health)) => Some(Snapshot { health, ..said }),
            (None, None) => None,
            (None, Some(health)) => {
                Some(Snapshot { health, free_slots: None, waiting: 0, predicted_wait_s: None, servers: 0 })
            }
        }
    }
}

impl Breaker {
    /// Notes a failure. Some when the site is to rest from here on, and for how long.
    fn failed(&mut self, why: &str, pace: &Pace, now: Instant) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        why.clone_into(&mut self.why);
        // After a rest the first failure is enough: the site is on trial until something goes well.
        if self.failures < pace.failures_to_rest && self.rests == 0 {
            return None;
        }
        if self.resting(now).is_some() {
            return None;
        }
        let rest = pace.rest.saturating_mul(2_u32.saturating_pow(self.rests.min(16))).min(pace.rest_ceiling);
        self.rests = self.rests.saturating_add(1);
        self.resting_until = Some(now + rest);
        Some(rest)
    }

    fn resting(&self, now: Instant) -> Option<&str> {
        self.resting_until.filter(|until| now < *until).map(|_| self.why.as_str())
    }
}

/// Between 80 and 120 percent of a time, so that many askers do not fall into step.
#[must_use]
pub fn jittered(time: Duration) -> Duration {
    time.mul_f64(rand::random_range(0.8..1.2))
}

#[cfg(test)]
mod tests {
    use glidepath_testkit::backend::FakeBackend;
    use glidepath_testkit::site::site;

    use super::*;

    fn setup(name: &str, backend: &FakeBackend) -> SiteSetup {
        SiteSetup {
            site: Arc::new(site(SiteName::parse(name).unwrap())),
            backend: backend.shared(),
            listen_on: ListenOn::UnixSocket,
            absence_limit_s: None,
            closed: None,
        }
    }

    fn health(sites: &Sites) -> Option<Health> {
        sites.all().remove(0).snapshot.map(|snapshot| snapshot.health)
    }

    #[tokio::test(start_paused = true)]
    async fn a_site_that_fails_three_times_in_a_row_rests_and_longer_the_next_time() {
        let backend = FakeBackend::accepting();
        let pace = Pace::default();
        let sites = Sites::new(vec![setup("here", &backend)], pace, Notes::new());
        let name = SiteName::parse("here").unwrap();
        sites.refresh(&sites.setups()[0]).await;
        sites.failed(&name, "no dial-home", None);
        sites.failed(&name, "no dial-home", None);
        assert_eq!(health(&sites), Some(Health::Well));
        sites.failed(&name, "no dial-home", None);
        assert_eq!(health(&sites), Some(Health::Resting("no dial-home".to_owned())));
        tokio::time::advance(pace.rest).await;
        sites.refresh(&sites.setups()[0]).await;
        assert_eq!(health(&sites), Some(Health::Well), "on trial");
        sites.failed(&name, "again", None);
        tokio::time::advance(pace.rest).await;
        assert_eq!(health(&sites), Some(Health::Resting("again".to_owned())), "twice as long");
        sites.did_well(&name);
        sites.refresh(&sites.setups()[0]).await;
        assert_eq!(health(&sites), Some(Health::Well));
    }

    #[tokio::test(start_paused = true)]
    async fn one_user_who_is_refused_again_and_again_does_not_rest_a_site() {
        let backend = FakeBackend::accepting();
        let sites = Sites::new(vec![setup("here", &backend)], Pace::default(), Notes::new());
        let name = SiteName::parse("here").unwrap();
        sites.refresh(&sites.setups()[0]).await;
        for _ in 0..10 {
            sites.failed(&name, "no account", Some("ada"));
        }
        assert_eq!(health(&sites), Some(Health::Well));
        sites.failed(&name, "no account", Some("bob"));
        sites.failed(&name, "no account", Some("eve"));
        assert!(matches!(health(&sites), Some(Health::Resting(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_site_keeps_its_last_snapshot_as_unknown() {
        let backend = FakeBackend::accepting();
        let sites = Sites::new(vec![setup("here", &backend)], Pace::default(), Notes::new());
        assert_eq!(health(&sites), None, "it has not answered yet");
        sites.refresh(&sites.setups()[0]).await;
        backend.silent(true);
        sites.refresh(&sites.setups()[0]).await;
        assert!(matches!(health(&sites), Some(Health::Unknown(_))));
        let counted: Vec<(Query, u64)> = sites.queries().into_iter().map(|(_, what, n)| (what, n)).collect();
        assert_eq!(counted, [(Query::List, 0), (Query::Snapshot, 2)], "a query without an answer counts");
    }

    #[tokio::test(start_paused = true)]
    async fn sites_are_asked_again_and_again_until_the_stop() {
        let backend = FakeBackend::accepting();
        let sites = Sites::new(vec![setup("here", &backend)], Pace::default(), Notes::new());
        let stop = CancellationToken::new();
        let ending = async {
            tokio::time::sleep(Duration::from_secs(30)).await;
            stop.cancel();
        };
        tokio::join!(sites.run(stop.clone()), ending);
        assert!((4..=9).contains(&backend.snapshots()), "{}", backend.snapshots());
    }
}
