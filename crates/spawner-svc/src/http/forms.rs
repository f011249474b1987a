//! Placement explained before the click, and the options form around it.
//!
//! In: who would ask and for what. Out: a verdict per site, or the form as `offer` draws it.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use glidepath_api_types::spawner::{FormReply, PlacementBody, PlacementReply, Problem};
use glidepath_svc_kit::problem::{ApiError, JsonBody};
use http::StatusCode;

use super::door::Caller;
use super::refusal::refused;
use super::{Api, convert};

/// What placement says of a request, best site first, with what is wrong in its options.
#[utoipa::path(
    post, path = "/v1/hubs/{hub}/placement", tag = "placement", security(("hub_secret" = [])),
    params(("hub" = String, Path, description = "The Hub's name")),
    request_body = PlacementBody,
    responses(
        (status = 200, description = "Nothing is reserved by asking", body = PlacementReply),
        (status = 422, description = "Every field that is wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn placement(
    State(api): State<Arc<Api>>,
    caller: Caller,
    JsonBody(body): JsonBody<PlacementBody>,
) -> Result<Json<PlacementReply>, ApiError> {
    let reply = answer(&api, caller, &body)?;
    std::future::ready(Ok(Json(reply))).await
}

/// The options form, for the Hub's spawn page.
#[utoipa::path(
    post, path = "/v1/hubs/{hub}/form", tag = "placement", security(("hub_secret" = [])),
    params(("hub" = String, Path, description = "The Hub's name")),
    request_body = PlacementBody,
    responses(
        (status = 200, description = "All text in it is escaped", body = FormReply),
        (status = 422, description = "Every field that is wrong", body = Problem, content_type = "application/problem+json"),
        (status = 500, description = "The form could not be drawn", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn form(
    State(api): State<Arc<Api>>,
    caller: Caller,
    JsonBody(body): JsonBody<PlacementBody>,
) -> Result<Json<FormReply>, ApiError> {
    let reply = answer(&api, caller, &body)?;
    let html = api.options.draw(&body, &reply).map_err(|error| {
        tracing::debug!(error = &error as &dyn std::error::Error, "the options form could not be drawn");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "form", "the options form could not be drawn")
    })?;
    std::future::ready(Ok(Json(FormReply { html }))).await
}

fn answer(api: &Api, caller: Caller, body: &PlacementBody) -> Result<PlacementReply, ApiError> {
    let question = convert::question(caller.hub, body, &api.options);
    let (request, chosen, problems) = question.map_err(refused)?;
    let verdicts = api.spawner.verdicts(&request);
    let taken = convert::would_take(&verdicts, chosen.as_deref());
    Ok(PlacementReply { verdicts: convert::verdicts(verdicts, taken.as_deref()), problems })
}
