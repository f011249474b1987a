//! What monitoring asks: metrics, whether the process lives, whether it can work.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use glidepath_svc_kit::problem::{no_such_method, no_such_path};
use http::StatusCode;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::store::Store;

/// What `/health/ready` looks at.
pub struct Observed {
    /// Counted since the start.
    pub metrics: Metrics,
    /// Must read and write.
    pub store: Store,
    /// Cancelled once the service drains.
    pub stop: CancellationToken,
}

/// Routes of the metrics listener. They need no secret: the listener is for the operator's network.
pub fn routes(observed: Arc<Observed>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(observed)
}

async fn metrics(State(observed): State<Arc<Observed>>) -> Response {
    let media = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    std::future::ready(([(CONTENT_TYPE, media)], observed.metrics.text()).into_response()).await
}

async fn live() -> &'static str {
    std::future::ready("alive\n").await
}

/// 200, or 503 with one reason per line.
async fn ready(State(observed): State<Arc<Observed>>) -> (StatusCode, String) {
    let mut reasons = Vec::new();
    if observed.stop.is_cancelled() {
        reasons.push("the service is stopping");
    }
    if !observed.store.healthy().await {
        reasons.push("the database cannot be read or written");
    }
    match reasons.as_slice() {
        [] => (StatusCode::OK, "ready\n".to_owned()),
        reasons => (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n"),
    }
}
