//! The HTTP API, version 1: all routes on one page.
//!
//! In: requests of Hubs, known by their secret. Out: what `spawn` says, in wire shapes. A handler has three beats:
//! parse, call, answer. Rules live in `spawn` and `domain`; wire and domain meet in `convert` alone.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::routing::{delete, get, post};
use glidepath_svc_kit::problem::{no_such_method, no_such_path};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Hub, Preset};
use crate::metrics::Metrics;
use crate::notable::Notes;
use crate::spawn::Spawner;

mod convert;
mod document;
mod door;
mod events;
mod forms;
mod noted;
pub mod observe;
mod offer;
mod refusal;
mod servers;

pub use document::{DOCUMENT, document};
pub use offer::FormError;

/// Largest body that is taken: environments are large, nothing else is.
const BODY_MAX_BYTES: usize = 1024 * 1024;
/// One request may take this long, unless it says that it waits.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Everything handlers work with. Built once.
pub struct Api {
    /// The life cycle.
    spawner: Spawner,
    /// The Hubs that may call, with the relay's URL of each.
    hubs: Vec<(Hub, String)>,
    /// What stands in for options that a user left out, and what the form offers.
    options: offer::Offer,
    /// Counts requests.
    metrics: Metrics,
    /// Takes note of refusals.
    notes: Notes,
    /// Ends event streams.
    stop: CancellationToken,
}

impl Api {
    /// `relays` is the URL of each Hub's relay, in the order of the config's Hubs.
    pub fn new(
        config: &Config,
        relays: Vec<String>,
        spawner: Spawner,
        metrics: Metrics,
        notes: Notes,
        stop: CancellationToken,
    ) -> Result<Arc<Self>, FormError> {
        let presets: Vec<Preset> = config.presets.clone();
        let sites = config.sites.iter().map(|site| site.site.clone()).collect();
        let options = offer::Offer::new(config.option_defaults(), presets, sites)?;
        let hubs = config.hubs.iter().cloned().zip(relays).collect();
        Ok(Arc::new(Self { spawner, hubs, options, metrics, notes, stop }))
    }
}

/// All routes.
pub fn routes(api: Arc<Api>) -> Router {
    let of_one_hub = Router::new()
        .route("/servers", get(servers::list))
        .route("/servers/{key}", get(servers::view).put(servers::start).delete(servers::stop))
        .route("/servers/{key}/events", get(events::of_one_server))
        .route("/servers/{key}/home", delete(servers::forget_home))
        .route("/events", get(events::of_the_hub))
        .route("/placement", post(forms::placement))
        .route("/form", post(forms::form))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&api), door::only_that_hub));
    Router::new()
        .nest("/v1/hubs/{hub}", of_one_hub)
        .route("/v1/version", get(document::version))
        .route("/openapi.json", get(document::openapi))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(BODY_MAX_BYTES))
        .layer(middleware::from_fn_with_state(Arc::clone(&api), door::counted))
        .with_state(api)
}

#[cfg(test)]
mod tests;
