//! The OpenAPI document, made from the wire types and the handlers, and what this service is.

use axum::Json;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use glidepath_api_types::spawner::{
    Adopted, EndView, FieldProblem, FormReply, Life, PlacementBody, PlacementReply, Problem, ServerList,
    ServerView, StartBody, StartReply, StateName, UsageView, VerdictView, VersionReply,
};
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};

use super::{events, forms, servers};

/// Where the committed copy of the document lies in the repository.
pub const DOCUMENT: &str = "docs/openapi.json";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Glidepath spawner",
        description = "Starts users' servers at sites, tells how they are, and ends them. Each Hub has a secret and sees its own paths only.",
        license(name = "BSD-3-Clause"),
    ),
    paths(
        servers::list, servers::view, servers::start, servers::stop, servers::forget_home,
        events::of_the_hub, events::of_one_server, forms::placement, forms::form, version,
    ),
    components(schemas(
        Adopted, EndView, FieldProblem, FormReply, Life, PlacementBody, PlacementReply, Problem, ServerList, ServerView,
        StartBody, StartReply, StateName, UsageView, VerdictView, VersionReply,
    )),
    modifiers(&HubSecret),
)]
struct Document;

struct HubSecret;

impl utoipa::Modify for HubSecret {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme =
            HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("The Hub's secret")).build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("hub_secret", SecurityScheme::Http(scheme));
    }
}

/// The document, as JSON for people and diffs.
#[must_use]
pub fn document() -> String {
    let mut text = Document::openapi().to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

/// The document itself.
pub(super) async fn openapi() -> Response {
    std::future::ready(([(CONTENT_TYPE, "application/json")], document()).into_response()).await
}

/// What this service is.
#[utoipa::path(
    get, path = "/v1/version", tag = "service",
    responses((status = 200, description = "Needs no secret", body = VersionReply))
)]
pub(super) async fn version() -> Json<VersionReply> {
    let reply = VersionReply {
        software: "glidepath-spawner".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        api: 1,
    };
    std::future::ready(Json(reply)).await
}
