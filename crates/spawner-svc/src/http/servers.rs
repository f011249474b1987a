//! One server: start, look, stop, and forgetting what its user kept.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use glidepath_api_types::spawner::{Problem, ServerList, ServerView, StartBody, StartReply, StopQuery};
use glidepath_svc_kit::crash;
use glidepath_svc_kit::problem::{ApiError, JsonBody, QueryOf};
use http::StatusCode;

use super::door::{Caller, OwnKey};
use super::refusal::refused;
use super::{Api, convert};

/// Longest wait for an end that a caller may ask for.
const WAIT_MAX_S: u32 = 50;

/// Starts this server, or finds it alive. Repeating it is harmless.
#[utoipa::path(
    put, path = "/v1/hubs/{hub}/servers/{key}", tag = "servers", security(("hub_secret" = [])),
    params(("hub" = String, Path, description = "The Hub's name"), ("key" = String, Path, description = "hub.user.server, escaped")),
    request_body = StartBody,
    responses(
        (status = 200, description = "It is on its way, or alive", body = StartReply),
        (status = 409, description = "No site can take it, or the last run is still ending", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Every field that is wrong", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The service cannot write it down now, or is stopping", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn start(
    State(api): State<Arc<Api>>,
    OwnKey { caller, key }: OwnKey,
    JsonBody(body): JsonBody<StartBody>,
) -> Result<Json<StartReply>, ApiError> {
    let order = convert::order(key, body, &api.options).map_err(refused)?;
    crash::point("hub.start.before");
    let started = api.spawner.start(order).await.map_err(refused)?;
    crash::point("hub.start.after");
    Ok(Json(convert::started(started, &caller.relay_url)))
}

/// This server as it stands.
#[utoipa::path(
    get, path = "/v1/hubs/{hub}/servers/{key}", tag = "servers", security(("hub_secret" = [])),
    params(("hub" = String, Path, description = "The Hub's name"), ("key" = String, Path, description = "hub.user.server, escaped")),
    responses((status = 200, description = "State `none` when there never was a run", body = ServerView))
)]
pub(super) async fn view(State(api): State<Arc<Api>>, OwnKey { caller, key }: OwnKey) -> Json<ServerView> {
    let view = api.spawner.view(&key);
    std::future::ready(Json(convert::view_or_none(view, &key, &caller.relay_url))).await
}

/// Every server of this Hub that lives or whose last end is kept.
#[utoipa::path(
    get, path = "/v1/hubs/{hub}/servers", tag = "servers", security(("hub_secret" = [])),
    params(("hub" = String, Path, description = "The Hub's name")),
    responses((status = 200, description = "In the order of their keys", body = ServerList))
)]
pub(super) async fn list(State(api): State<Arc<Api>>, caller: Caller) -> Json<ServerList> {
    let mut views = api.spawner.list(&caller.hub);
    views.sort_by(|a, b| a.key.cmp(&b.key));
    let servers = views.into_iter().map(|view| convert::view(view, &caller.relay_url)).collect();
    std::future::ready(Json(ServerList { servers })).await
}

/// Ends this server, in any state. Succeeds when there is nothing to end.
#[utoipa::path(
    delete, path = "/v1/hubs/{hub}/servers/{key}", tag = "servers", security(("hub_secret" = [])),
    params(("hub" = String, Path, description = "The Hub's name"), ("key" = String, Path, description = "hub.user.server, escaped"), StopQuery),
    responses(
        (status = 200, description = "The server as it stands after that", body = ServerView),
        (status = 503, description = "The service is stopping", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn stop(
    State(api): State<Arc<Api>>,
    OwnKey { caller, key }: OwnKey,
    QueryOf(query): QueryOf<StopQuery>,
) -> Result<Json<ServerView>, ApiError> {
    let run = convert::run(query.run.as_deref()).map_err(refused)?;
    crash::point("hub.stop.before");
    let mut view = api.spawner.stop(&key, run, query.now).await.map_err(refused)?;
    crash::point("hub.stop.taken");
    if query.wait_s > 0 {
        let at_most = Duration::from_secs(query.wait_s.min(WAIT_MAX_S).into());
        view = api.spawner.wait_ended(&key, at_most).await;
    }
    let view = view.or_else(|| api.spawner.view(&key));
    crash::point("hub.stop.after");
    Ok(Json(convert::view_or_none(view, &key, &caller.relay_url)))
}

/// Removes for good what this user kept at every site. Refused while a server of theirs lives.
#[utoipa::path(
    delete, path = "/v1/hubs/{hub}/servers/{key}/home", tag = "servers", security(("hub_secret" = [])),
    params(("hub" = String, Path, description = "The Hub's name"), ("key" = String, Path, description = "hub.user.server, escaped")),
    responses(
        (status = 204, description = "Nothing is left"),
        (status = 409, description = "A server of this user lives", body = Problem, content_type = "application/problem+json"),
        (status = 502, description = "Some sites did not do it", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn forget_home(
    State(api): State<Arc<Api>>,
    OwnKey { key, .. }: OwnKey,
) -> Result<StatusCode, ApiError> {
    crash::point("hub.forget.before");
    api.spawner.forget_home(&key).await.map_err(refused)?;
    crash::point("hub.forget.after");
    Ok(StatusCode::NO_CONTENT)
}
