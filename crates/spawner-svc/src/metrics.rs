//! What operators can count, in the words of the API.
//!
//! In: answers as they happen, what is notable, servers' events, and gauges that other parts offer. Out: the text that
//! Prometheus scrapes. No user's name is a label: they would make the series grow without bound.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt as _;
use glidepath_domain::names::{HubName, RunId, ServerKey, SiteName};
use glidepath_domain::run::{Moment, State};
use http::{Method, StatusCode};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::notable::{Kind, Notes};
use crate::sites::{Query, Sites};
use crate::spawn::{RunView, Spawner};
use crate::store::Store;

/// All counters; cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    registry: std::sync::RwLock<Registry>,
    answers: Family<Answer, Counter>,
    starts: Family<OfHub, Counter>,
    ends: Family<End, Counter>,
    ready_after: Histogram,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answer {
    method: String,
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfHub {
    hub: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct End {
    reason: String,
    site: String,
}

/// Buckets of the time from asking to ready, in seconds.
const READY_BUCKETS_S: [f64; 13] =
    [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 7200.0];
/// How soon events are followed again that ended early.
const FOLLOW_AGAIN: Duration = Duration::from_secs(1);
/// Servers whose last counted run is remembered; beyond it one may be counted twice.
const REMEMBERED: usize = 100_000;

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("glidepath");
        let answers = Family::default();
        let (starts, ends) = (Family::default(), Family::default());
        let ready_after = Histogram::new(READY_BUCKETS_S);
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "Version of the service", build);
        registry.register("api_answers", "Answers of the API, by route and status", answers.clone());
        registry.register("starts", "Runs that were begun, by hub", starts.clone());
        registry.register("ends", "Runs that ended, by reason and site", ends.clone());
        registry.register("ready_seconds", "From the request until the server answered", ready_after.clone());
        let registry = std::sync::RwLock::new(registry);
        Self { inner: Arc::new(Inner { registry, answers, starts, ends, ready_after }) }
    }

    /// Counts an answer of the API.
    pub fn answered(&self, method: &Method, route: &str, status: StatusCode) {
        let method = match method.as_str() {
            known @ ("GET" | "PUT" | "POST" | "DELETE" | "HEAD" | "OPTIONS" | "PATCH") => known,
            _ => "other",
        };
        let answer = Answer { method: method.to_owned(), route: route.to_owned(), status: status.as_u16() };
        self.inner.answers.get_or_create(&answer).inc();
    }

    /// Adds something that is read at every scrape.
    pub fn gauge(&self, name: &str, help: &str, read: impl Fn() -> i64 + Send + Sync + 'static) {
        let labels: Vec<(String, String)> = Vec::new();
        self.gauges(name, help, move || vec![(labels.clone(), read())]);
    }

    /// Adds a family of gauges that is read at every scrape.
    pub fn gauges(&self, name: &str, help: &str, read: impl Fn() -> Readings + Send + Sync + 'static) {
        self.read(MetricType::Gauge, name, help, Box::new(read));
    }

    /// Adds a family of counters that is read at every scrape.
    pub fn counters(&self, name: &str, help: &str, read: impl Fn() -> Readings + Send + Sync + 'static) {
        self.read(MetricType::Counter, name, help, Box::new(read));
    }

    fn read(&self, kind: MetricType, name: &str, help: &str, read: Box<dyn Fn() -> Readings + Send + Sync>) {
        let (name, help) = (name.to_owned(), format!("{help}."));
        let mut registry = self.inner.registry.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        registry.register_collector(Box::new(Read { kind, name, help, read }));
    }

    /// Everything, as Prometheus scrapes it.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        let registry = self.inner.registry.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        if text::encode(&mut out, &registry).is_err() {
            out.clear(); // half a page would read as counters that fell to zero
        }
        out
    }

    /// Adds what is notable: refusals, retries, doubts, repairs.
    pub fn watch_notes(&self, notes: &Notes) {
        let labels = |what: &str, reason: &str| {
            vec![("what".to_owned(), what.to_owned()), ("reason".to_owned(), reason.to_owned())]
        };
        for (kind, help) in [
            (Kind::Refusal, "What was refused, and why"),
            (Kind::Retry, "What is done again or elsewhere, and why"),
            (Kind::Doubt, "Doubts that began"),
            (Kind::Repair, "What was put right"),
        ] {
            let notes = notes.clone();
            self.counters(kind.metric(), help, move || {
                let counts = notes.counts(kind).into_iter();
                counts
                    .map(|(what, reason, n)| (labels(what, reason), i64::try_from(n).unwrap_or(i64::MAX)))
                    .collect()
            });
        }
        let notes = notes.clone();
        self.gauges("doubts", "Doubts that stand now", move || {
            notes.open().into_iter().map(|(what, reason, n)| (labels(what, reason), n)).collect()
        });
    }

    /// Adds the runs by state and site.
    pub fn watch_runs(&self, spawner: &Spawner) {
        let spawner = spawner.clone();
        self.gauges("runs", "Runs now, by state and site", move || {
            let counts = spawner.counts().into_iter();
            let label = |((site, state), n): ((String, State), u64)| {
                let state = format!("{state:?}").to_lowercase();
                (
                    vec![("site".to_owned(), site), ("state".to_owned(), state)],
                    i64::try_from(n).unwrap_or(i64::MAX),
                )
            };
            counts.map(label).collect()
        });
    }

    /// Adds how often backends were asked.
    pub fn watch_sites(&self, sites: &Sites) {
        let sites = sites.clone();
        self.counters("backend_queries", "Bulk queries of backends, by site and what was asked", move || {
            let of_site = |(site, what, n): (SiteName, Query, u64)| {
                (
                    vec![
                        ("site".to_owned(), site.to_string()),
                        ("what".to_owned(), what.as_str().to_owned()),
                    ],
                    i64::try_from(n).unwrap_or(i64::MAX),
                )
            };
            sites.queries().into_iter().map(of_site).collect()
        });
    }

    /// Adds whether the store can write, and how much it did.
    pub fn watch_store(&self, store: &Store) {
        let (now, ever) = (store.clone(), store.clone());
        self.gauge("store_writable", "1 while the database takes what is written", move || {
            i64::from(now.trouble().is_none())
        });
        self.counters("store_outages", "Times that the database began to take nothing", move || {
            vec![(Vec::new(), i64::try_from(ever.troubles()).unwrap_or(i64::MAX))]
        });
        let (transactions, changes) = (store.clone(), store.clone());
        self.counters("store_transactions", "Transactions that are on disk", move || {
            vec![(Vec::new(), i64::try_from(transactions.written().transactions).unwrap_or(i64::MAX))]
        });
        self.counters("store_changes", "Changes in them", move || {
            vec![(Vec::new(), i64::try_from(changes.written().changes).unwrap_or(i64::MAX))]
        });
    }

    /// Counts starts, ends and times to ready of one Hub until told to stop. Runs from before do not count.
    pub async fn follow(self, spawner: Spawner, hub: HubName, stop: CancellationToken) -> anyhow::Result<()> {
        let began =
            Moment(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64));
        let mut seen: BTreeMap<ServerKey, Seen> = BTreeMap::new();
        let mut last = None;
        let following = async {
            loop {
                let mut events = spawner.events(&hub, last);
                while let Some((id, view)) = events.next().await {
                    self.note(&mut seen, &view, began);
                    last = id.or(last);
                }
                tokio::time::sleep(FOLLOW_AGAIN).await; // the store could not be read; it told why
            }
        };
        stop.run_until_cancelled(following).await;
        Ok(())
    }

    fn note(&self, seen: &mut BTreeMap<ServerKey, Seen>, view: &RunView, began: Moment) {
        if view.requested_at < began && view.end.as_ref().is_some_and(|end| end.at < began) {
            return;
        }
        if seen.len() >= REMEMBERED && !seen.contains_key(&view.key) {
            seen.pop_first();
        }
        let entry = seen.entry(view.key.clone()).or_insert(Seen {
            run: view.run,
            started: false,
            ready: false,
            ended: false,
        });
        if entry.run != view.run {
            *entry = Seen { run: view.run, started: false, ready: false, ended: false };
        }
        if !entry.started && view.requested_at >= began {
            self.inner.starts.get_or_create(&OfHub { hub: view.key.hub.to_string() }).inc();
        }
        entry.started = true;
        if view.state == State::Ready && !entry.ready {
            if view.since >= began {
                self.inner.ready_after.observe(view.since.since(view.requested_at).as_secs_f64());
            }
            entry.ready = true;
        }
        if let Some(end) = view.end.as_ref().filter(|_| !entry.ended) {
            let site = view.site.as_ref().map(ToString::to_string).unwrap_or_default();
            self.inner.ends.get_or_create(&End { reason: end.reason.as_str().to_owned(), site }).inc();
            entry.ended = true;
        }
    }
}

struct Seen {
    run: RunId,
    started: bool,
    ready: bool,
    ended: bool,
}

/// Labels and value of each series of a family.
pub type Readings = Vec<(Vec<(String, String)>, i64)>;

struct Read {
    kind: MetricType,
    name: String,
    help: String,
    read: Box<dyn Fn() -> Readings + Send + Sync>,
}

impl fmt::Debug for Read {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Read").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Collector for Read {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut family = encoder.encode_descriptor(&self.name, &self.help, None, self.kind)?;
        for (labels, value) in (self.read)() {
            let series = if labels.is_empty() { None } else { Some(family.encode_family(&labels)?) };
            match (series, self.kind) {
                (Some(series), MetricType::Counter) => count(value).encode(series)?,
                (Some(series), _) => ConstGauge::new(value).encode(series)?,
                (None, MetricType::Counter) => return count(value).encode(family),
                (None, _) => return ConstGauge::new(value).encode(family), // a series without labels is the only one
            }
        }
        Ok(())
    }
}

fn count(value: i64) -> ConstCounter<u64> {
    ConstCounter::new(u64::try_from(value).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notable::{About, Doubt, Refusal};

    #[test]
    fn what_is_counted_is_scraped() {
        let metrics = Metrics::new();
        let notes = Notes::new();
        notes.refused(Refusal::StartNoSite, &About::new());
        let _doubt = notes.doubts(Doubt::SiteSilent, &About::new());
        metrics.watch_notes(&notes);
        metrics.answered(&Method::PUT, "/v1/hubs/{hub}/servers/{key}", StatusCode::OK);
        metrics.answered(&Method::from_bytes(b"BREW").unwrap(), "other", StatusCode::NOT_FOUND);
        metrics.gauge("links", "Links now", || 7);
        metrics.gauges("waiting", "By hub", || vec![(vec![("hub".into(), "a\"b".into())], 3)]);
        metrics.counters("relayed", "By class", || vec![(vec![("class".into(), "2xx".into())], 5)]);
        metrics.counters("replays", "All", || vec![(vec![], 2)]);
        let text = metrics.text();
        for line in [
            r#"glidepath_api_answers_total{method="PUT",route="/v1/hubs/{hub}/servers/{key}",status="200"} 1"#,
            r#"glidepath_api_answers_total{method="other",route="other",status="404"} 1"#,
            r#"glidepath_refusals_total{what="start",reason="no_site"} 1"#,
            r#"glidepath_repairs_total{what="job",reason="orphan"} 0"#,
            r#"glidepath_doubts{what="site",reason="silent"} 1"#,
            r#"glidepath_doubts_begun_total{what="site",reason="silent"} 1"#,
            "glidepath_links 7",
            r#"glidepath_waiting{hub="a\"b"} 3"#,
            r#"glidepath_relayed_total{class="2xx"} 5"#,
            "glidepath_replays_total 2",
        ] {
            assert!(text.lines().any(|got| got == line), "{line}\nis not in\n{text}");
        }
        assert!(text.contains("glidepath_build_info{version="), "{text}");
    }
}
