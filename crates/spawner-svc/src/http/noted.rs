//! What the operator hears of the API's refusals: whose call it was, and why it was refused.

use glidepath_domain::names::{HubName, ServerKey};
use glidepath_svc_kit::problem::Refused as Told;
use http::Method;

use crate::notable::{About, Notes, Refusal as Note};

/// Longest path that is told.
const ROUTE_MAX_CHARS: usize = 200;

/// What the operator is told of an answer that is a refusal.
pub(super) fn noted(notes: &Notes, method: &Method, path: &str, refused: &Told) {
    let named = Named::of(path);
    let start = *method == Method::PUT && named.key.is_some();
    let shown = format!("{method} {}", named.route);
    let about = About { hub: named.hub.as_ref(), key: named.key.as_ref(), ..About::new() };
    notes.refused(word(start, refused.code), &about.at(&shown).why(&refused.line));
}

/// The Hub and the server that a path names, and the path without them.
struct Named {
    hub: Option<HubName>,
    key: Option<ServerKey>,
    route: String,
}

impl Named {
    fn of(path: &str) -> Self {
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let decoded =
            |raw: &str| percent_encoding::percent_decode_str(raw).decode_utf8().ok().map(String::from);
        match parts.as_slice() {
            ["v1", "hubs", hub, rest @ ..] => {
                let key = match rest {
                    ["servers", key, ..] => decoded(key).and_then(|raw| ServerKey::parse_full(&raw).ok()),
                    _ => None,
                };
                let below = rest.iter().enumerate().filter(|(n, _)| *n != 1).map(|(_, part)| *part);
                let route: Vec<&str> = below.collect();
                Self { hub: HubName::parse(hub).ok(), key, route: shortened(&route.join("/")) }
            }
            _ => Self { hub: None, key: None, route: shortened(path) },
        }
    }
}

fn shortened(route: &str) -> String {
    route.chars().filter(|c| !c.is_control()).take(ROUTE_MAX_CHARS).collect()
}

/// The operator's word for the API's.
fn word(start: bool, code: &str) -> Note {
    match (start, code) {
        (true, "invalid") => Note::StartInvalid,
        (true, "no_site") => Note::StartNoSite,
        (true, "still_stopping") => Note::StartStillStopping,
        (true, "still_starting") => Note::StartStillStarting,
        (true, "store") => Note::StartStore,
        (true, "closing") => Note::StartClosing,
        (_, "unauthenticated") => Note::ApiUnauthenticated,
        (_, "not_found") => Note::ApiNotFound,
        (_, "invalid" | "not_json" | "too_large" | "unreadable" | "bad_query" | "method_not_allowed") => {
            Note::ApiMalformed
        }
        (_, "alive") => Note::ApiAlive,
        (_, "sites") => Note::ApiSites,
        (_, "closing") => Note::ApiClosing,
        (_, "timeout") => Note::ApiTimeout,
        (_, "form") => Note::ApiForm,
        (_, _) => Note::ApiOther,
    }
}
