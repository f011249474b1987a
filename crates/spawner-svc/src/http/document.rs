//! The OpenAPI document, made from the wire types and the handlers, and what this service is.

use axum::Json;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use glidepath_api_types::spawner::{
    Adopted, EndView, FieldProblem, FormReply, Life, PlacementBody, PlacementReply, Problem, ServerList,
    ServerView, StartBody, StartReply, StateName, UsageView, VerdictView, VersionReply,
};
use glidepath_svc_kit::problem::PROBLEM_JSON;
use utoipa::OpenApi;
use utoipa::openapi::path::{Operation, ParameterIn};
use utoipa::openapi::response::{Response as Told, ResponseBuilder};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Content, Ref, RefOr};

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
    modifiers(&HubSecret, &Refusals),
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

/// What operations refuse for the same reasons, written once so that none leaves it out.
struct Refusals;

impl utoipa::Modify for Refusals {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        for item in document.paths.paths.values_mut() {
            let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete];
            for operation in operations.into_iter().flatten() {
                for (status, why) in refusals(operation) {
                    let told = &mut operation.responses.responses;
                    told.entry(status.to_owned()).or_insert_with(|| RefOr::T(problem(why)));
                }
            }
        }
    }
}

fn refusals(operation: &Operation) -> Vec<(&'static str, &'static str)> {
    let mut refusals = vec![("504", "The service did not finish this in time")];
    if operation.security.is_some() {
        refusals.push(("401", "Without a valid secret"));
        refusals.push(("404", "Not a path of this Hub"));
    }
    if operation.request_body.is_some() {
        refusals.push(("400", "The body is not JSON"));
        refusals.push(("413", "The body is larger than is taken"));
        refusals.push(("415", "The body is not said to be JSON"));
    }
    let in_query = |parameter: &RefOr<utoipa::openapi::path::Parameter>| matches!(parameter, RefOr::T(parameter) if parameter.parameter_in == ParameterIn::Query);
    if operation.parameters.iter().flatten().any(in_query) {
        refusals.push(("400", "The query string cannot be read"));
        refusals.push(("422", "Every field that is wrong"));
    }
    refusals
}

fn problem(why: &str) -> Told {
    let content = Content::new(Some(Ref::from_schema_name("Problem")));
    ResponseBuilder::new().description(why).content(PROBLEM_JSON, content).build()
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
