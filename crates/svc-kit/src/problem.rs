//! HTTP errors as RFC 9457 shapes them, and extractors whose refusals have that shape and name every bad field.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::response::{IntoResponse, Response};
use glidepath_api_types::spawner::{FieldProblem, Problem};
use http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::problems::Problems;
use crate::read::read;

/// Media type of every error.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// An error on its way to the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    title: String,
    problems: Vec<FieldProblem>,
    retry_after_s: Option<u32>,
}

impl ApiError {
    /// `code` is a stable word for programs, `title` one sentence for people.
    #[must_use]
    pub fn new(status: StatusCode, code: &'static str, title: impl Into<String>) -> Self {
        Self { status, code, title: title.into(), problems: Vec::new(), retry_after_s: None }
    }

    /// Adds every field that is wrong.
    #[must_use]
    pub fn with(mut self, problems: impl IntoIterator<Item = FieldProblem>) -> Self {
        self.problems.extend(problems);
        self
    }

    /// Says when to ask again.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// All of it in one line of bounded length, for a log.
    #[must_use]
    pub fn in_one_line(&self) -> String {
        const MOST_CHARS: usize = 600;
        if self.problems.is_empty() {
            return self.title.clone();
        }
        let each: Vec<String> = self.problems.iter().map(|p| format!("{}: {}", p.field, p.message)).collect();
        each.join("; ").chars().take(MOST_CHARS).collect()
    }

    /// 422 with every problem.
    #[must_use]
    pub fn unprocessable(problems: &Problems) -> Self {
        let fields =
            problems.iter().map(|p| FieldProblem { field: p.key.clone(), message: p.message.clone() });
        let first = problems.iter().next().map(|p| format!("{}: {}", p.key, p.message)).unwrap_or_default();
        let title = match problems.len() {
            1 => first,
            n => format!("{first} (and {} more)", n.saturating_sub(1)),
        };
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", title).with(fields)
    }

    /// 401 for a caller without a valid secret.
    #[must_use]
    pub fn unauthenticated() -> Self {
        let title = "a valid secret is needed: Authorization: Bearer SECRET";
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", title)
    }

    /// 404.
    #[must_use]
    pub fn not_found(title: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", title)
    }

    /// The status that the caller will see.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The stable word.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.code
    }
}

/// What an answer refused, for whoever sends it off and keeps a log: in the response's extensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The stable word.
    pub code: &'static str,
    /// As [`ApiError::in_one_line`].
    pub line: String,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let refused = Refused { code: self.code, line: self.in_one_line() };
        let Self { status, code, title, problems, retry_after_s } = self;
        let body = Problem { code: code.to_owned(), title, status: status.as_u16(), problems };
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = (status, [(CONTENT_TYPE, PROBLEM_JSON)], body).into_response();
        response.extensions_mut().insert(refused);
        if let Some(seconds) = retry_after_s {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::PAYLOAD_TOO_LARGE {
            // The rest of the body is not read, so nothing can follow it.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A JSON body. Refused with 400 (no JSON), 413, 415, or 422 naming every field that does not fit.
#[derive(Debug, Clone)]
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let media =
            request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if !is_json(media) {
            let title = "the body must be JSON: Content-Type: application/json";
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json", title));
        }
        let bytes = Bytes::from_request(request, state).await.map_err(|refused| match refused.status() {
            StatusCode::PAYLOAD_TOO_LARGE => ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too_large",
                "the body is larger than is taken here",
            ),
            _ => ApiError::new(StatusCode::BAD_REQUEST, "unreadable", "the body could not be read"),
        })?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|error| {
            let title = format!("the body is not JSON: line {}, column {}", error.line(), error.column());
            ApiError::new(StatusCode::BAD_REQUEST, "not_json", title)
        })?;
        from_value(value).map(Self)
    }
}

/// A query string, each field at most once. Refused with 422 naming every field that does not fit.
#[derive(Debug, Clone)]
pub struct QueryOf<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for QueryOf<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let pairs = axum::extract::Query::<Vec<(String, String)>>::from_request_parts(parts, state).await;
        let bad = |_| ApiError::new(StatusCode::BAD_REQUEST, "bad_query", "the query string cannot be read");
        let mut fields = serde_json::Map::new();
        let mut problems = Problems::default();
        for (name, value) in pairs.map_err(bad)?.0 {
            if fields.insert(name.clone(), plain(&value)).is_some() {
                problems.add(name, "is given twice");
            }
        }
        if !problems.is_empty() {
            return Err(ApiError::unprocessable(&problems));
        }
        from_value(Value::Object(fields)).map(Self)
    }
}

/// For `Router::fallback`.
pub async fn no_such_path() -> ApiError {
    std::future::ready(ApiError::not_found(
        "there is nothing at this path; /openapi.json lists what there is",
    ))
    .await
}

/// For `Router::method_not_allowed_fallback`.
pub async fn no_such_method() -> ApiError {
    let title = "this path does not take this method";
    std::future::ready(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", title)).await
}

fn from_value<T: DeserializeOwned>(value: Value) -> Result<T, ApiError> {
    let mut problems = Problems::default();
    let read = read(value, "", &mut problems);
    problems.or(read).map_err(|problems| ApiError::unprocessable(&problems))
}

fn is_json(media: &str) -> bool {
    let media = media.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    media == "application/json" || (media.starts_with("application/") && media.ends_with("+json"))
}

/// A query's value has no type: what reads as a number or a truth value is one.
fn plain(raw: &str) -> Value {
    match raw {
        "true" | "True" => Value::Bool(true),
        "false" | "False" => Value::Bool(false),
        _ if raw.len() < 10 && raw.bytes().all(|b| b.is_ascii_digit()) => {
            raw.parse::<u64>().map_or(raw.into(), Value::from)
        }
        _ => raw.into(),
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::{Body, to_bytes};
    use axum::extract::DefaultBodyLimit;
    use axum::routing::put;
    use serde::Deserialize;
    use tower::ServiceExt as _;

    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Order {
        name: String,
        cores: u32,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Ask {
        #[serde(default)]
        now: bool,
        #[serde(default)]
        run: Option<String>,
    }

    async fn handler(QueryOf(ask): QueryOf<Ask>, JsonBody(order): JsonBody<Order>) -> String {
        std::future::ready(format!("{} {} {} {:?}", order.name, order.cores, ask.now, ask.run)).await
    }

    async fn ask(method: &str, uri: &str, media: &str, body: &str) -> (u16, String, Problem) {
        let app = Router::new()
            .route("/order", put(handler))
            .fallback(no_such_path)
            .method_not_allowed_fallback(no_such_method)
            .layer(DefaultBodyLimit::max(200));
        let request = Request::builder().method(method).uri(uri).header(CONTENT_TYPE, media);
        let response = app.oneshot(request.body(Body::from(body.to_owned())).unwrap()).await.unwrap();
        let (status, media) =
            (response.status(), response.headers()[CONTENT_TYPE].to_str().unwrap().to_owned());
        let bytes = to_bytes(response.into_body(), 10_000).await.unwrap();
        if status == StatusCode::OK {
            let title = String::from_utf8(bytes.to_vec()).unwrap();
            return (200, media, Problem { code: "ok".into(), title, status: 200, problems: vec![] });
        }
        let problem: Problem = serde_json::from_slice(&bytes).unwrap();
        assert_eq!((media.as_str(), problem.status), (PROBLEM_JSON, status.as_u16()));
        (status.as_u16(), media, problem)
    }

    #[test]
    fn a_log_gets_every_reason_in_one_line_of_bounded_length() {
        let plain = ApiError::not_found("no such server");
        assert_eq!(plain.in_one_line(), "no such server");
        let field =
            |field: &str, message: &str| FieldProblem { field: field.into(), message: message.into() };
        let refused = || ApiError::new(StatusCode::CONFLICT, "no_site", "no site can take this request");
        let two = refused().with([field("far", "Far away: Is closed."), field("here", "Here: Has no GPUs.")]);
        assert_eq!(two.in_one_line(), "far: Far away: Is closed.; here: Here: Has no GPUs.");
        assert!(refused().with([field("far", &"x".repeat(5000))]).in_one_line().len() < 1000);
    }

    #[tokio::test]
    async fn a_fitting_request_is_taken() {
        let (status, _, told) =
            ask("PUT", "/order?now=true&run=7", "application/json", r#"{"name":"x","cores":2}"#).await;
        assert_eq!(
            (status, told.title.as_str()),
            (422, "run: must be a text"),
            "a number where a text is due"
        );
        let (status, _, told) =
            ask("PUT", "/order?now=true", "application/json", r#"{"name":"x","cores":2}"#).await;
        assert_eq!((status, told.title.as_str()), (200, "x 2 true None"));
    }

    #[tokio::test]
    async fn every_refusal_is_problem_json() {
        let json = "application/json; charset=utf-8";
        for (method, uri, media, body, status, code) in [
            ("PUT", "/order", json, "{", 400, "not_json"),
            ("PUT", "/order", "text/plain", "{}", 415, "not_json"),
            ("PUT", "/order", "", "{}", 415, "not_json"),
            ("PUT", "/order", json, &"x".repeat(300), 413, "too_large"),
            ("PUT", "/order", json, r#"{"nam":"x"}"#, 422, "invalid"),
            ("PUT", "/order?now=maybe", json, "{}", 422, "invalid"),
            ("PUT", "/order?now=true&now=false", json, "{}", 422, "invalid"),
            ("POST", "/order", json, "{}", 405, "method_not_allowed"),
            ("PUT", "/elsewhere", json, "{}", 404, "not_found"),
        ] {
            let (got, _, problem) = ask(method, uri, media, body).await;
            assert_eq!((got, problem.code.as_str()), (status, code), "{method} {uri} {body}");
        }
    }

    #[tokio::test]
    async fn every_bad_field_is_named() {
        let (_, _, problem) = ask("PUT", "/order", "application/json", r#"{"nam":"x","cores":"y"}"#).await;
        let mut fields: Vec<_> = problem.problems.iter().map(|p| p.field.as_str()).collect();
        fields.sort_unstable();
        assert_eq!(fields, ["cores", "nam", "name"]);
    }
}
