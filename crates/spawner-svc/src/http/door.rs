//! Who may come in: a Hub with its secret, to its own paths. Every call is counted.

use std::sync::Arc;

use axum::extract::{FromRequestParts, MatchedPath, Path, RawPathParams, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use glidepath_domain::names::{HubName, ServerKey};
use glidepath_svc_kit::auth::{accepts, bearer};
use glidepath_svc_kit::problem::{ApiError, Refused};
use http::StatusCode;
use http::request::Parts;
use tokio::time;

use super::noted::noted;
use super::{Api, CALL_TIMEOUT};

/// The Hub that calls. Only [`only_that_hub`] makes one.
#[derive(Clone)]
pub(super) struct Caller {
    /// Its name.
    pub(super) hub: HubName,
    /// Where its proxy reaches its servers.
    pub(super) relay_url: String,
}

/// Lets in a Hub that shows its secret, to paths with its own name. Another Hub's path is not there for it.
pub(super) async fn only_that_hub(
    State(api): State<Arc<Api>>,
    params: RawPathParams,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let secret = bearer(request.headers()).ok_or_else(ApiError::unauthenticated)?;
    // All Hubs are looked at in any case: how long it takes tells nothing.
    let callers: Vec<_> = api.hubs.iter().filter(|(hub, _)| accepts(&hub.secrets, secret)).collect();
    if callers.is_empty() {
        return Err(ApiError::unauthenticated());
    }
    let named = params.iter().find(|(name, _)| *name == "hub").map(|(_, raw)| raw);
    let own = callers.into_iter().find(|(hub, _)| Some(hub.name.as_str()) == named);
    let (hub, relay_url) = own.ok_or_else(no_such_hub)?;
    request.extensions_mut().insert(Caller { hub: hub.name.clone(), relay_url: relay_url.clone() });
    Ok(next.run(request).await)
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        std::future::ready(parts.extensions.get::<Self>().cloned().ok_or_else(ApiError::unauthenticated))
            .await
    }
}

/// The server that a path names, of the Hub that calls.
pub(super) struct OwnKey {
    /// Who calls.
    pub(super) caller: Caller,
    /// Which server.
    pub(super) key: ServerKey,
}

impl<S: Send + Sync> FromRequestParts<S> for OwnKey {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let caller = Caller::from_request_parts(parts, state).await?;
        let path = Path::<(String, String)>::from_request_parts(parts, state).await;
        let Ok(Path((_, raw))) = path else { return Err(no_such_server()) };
        let key = ServerKey::parse_full(&raw).map_err(|bad| ApiError::not_found(bad.to_string()))?;
        if key.hub != caller.hub {
            return Err(no_such_server());
        }
        Ok(Self { caller, key })
    }
}

/// Counts every answer by route and status, notes each refusal, and abandons what takes too long.
pub(super) async fn counted(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let answer = match time::timeout(CALL_TIMEOUT * 2, next.run(request)).await {
        Ok(answer) => answer,
        Err(_) => {
            ApiError::new(StatusCode::GATEWAY_TIMEOUT, "timeout", "the service did not finish this in time")
                .into_response()
        }
    };
    api.metrics.answered(&method, &route, answer.status());
    if let Some(told) = answer.extensions().get::<Refused>() {
        noted(&api.notes, &method, &path, told);
    }
    answer
}

fn no_such_hub() -> ApiError {
    ApiError::not_found("there is no such hub for this secret")
}

fn no_such_server() -> ApiError {
    ApiError::not_found("there is no such server at this hub: the key is hub.user.server, escaped")
}
