//! Servers as they change, as server-sent events.
//!
//! Each event is the whole server as it stood then, so that nothing is lost when some are: a reader needs the last
//! one of each server only. The id grows; `Last-Event-ID` continues after it. Servers as they stand at first are one
//! whole: only its last event has an id.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_core::Stream;
use futures_util::StreamExt as _;
use glidepath_domain::names::{HubName, ServerKey};
use http::HeaderMap;

use super::door::{Caller, OwnKey};
use super::{Api, convert};
use crate::spawn::RunView;

/// How soon a reader that was cut off comes again.
const RETRY: Duration = Duration::from_secs(1);
/// Between two signs of life: below the 60 s at which common proxies close what is silent.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// All servers of this Hub, as they change.
#[utoipa::path(
    get, path = "/v1/hubs/{hub}/events", tag = "events", security(("hub_secret" = [])),
    params(("hub" = String, Path, description = "The Hub's name"), ("Last-Event-ID" = Option<u64>, Header, description = "Continue after this event; without it every server is told as it stands first, with an id at the last of them only")),
    responses((status = 200, description = "Events `server`, each a whole ServerView", body = glidepath_api_types::spawner::ServerView, content_type = "text/event-stream"))
)]
pub(super) async fn of_the_hub(
    State(api): State<Arc<Api>>,
    caller: Caller,
    headers: HeaderMap,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    std::future::ready(stream(&api, caller, None, &headers)).await
}

/// One server, as it changes.
#[utoipa::path(
    get, path = "/v1/hubs/{hub}/servers/{key}/events", tag = "events", security(("hub_secret" = [])),
    params(("hub" = String, Path, description = "The Hub's name"), ("key" = String, Path, description = "hub.user.server, escaped"), ("Last-Event-ID" = Option<u64>, Header, description = "Continue after this event; without it the server is told as it stands first")),
    responses((status = 200, description = "Events `server`, each a whole ServerView", body = glidepath_api_types::spawner::ServerView, content_type = "text/event-stream"))
)]
pub(super) async fn of_one_server(
    State(api): State<Arc<Api>>,
    OwnKey { caller, key }: OwnKey,
    headers: HeaderMap,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    std::future::ready(stream(&api, caller, Some(key), &headers)).await
}

fn stream(
    api: &Api,
    caller: Caller,
    only: Option<ServerKey>,
    headers: &HeaderMap,
) -> Sse<impl Stream<Item = Result<Event, Infallible>> + use<>> {
    let Caller { hub, relay_url } = caller;
    let events = events(api, &hub, headers).filter_map(move |(id, view)| {
        let wanted = only.as_ref().is_none_or(|key| *key == view.key);
        let event = wanted.then(|| event(id, view, &relay_url)).flatten();
        std::future::ready(event.map(Ok))
    });
    let hello = futures_util::stream::iter([Ok(Event::default().retry(RETRY).comment("open"))]);
    let until_stop = hello.chain(events).take_until(api.stop.clone().cancelled_owned());
    Sse::new(until_stop).keep_alive(KeepAlive::new().interval(KEEP_ALIVE).text("alive"))
}

fn events(api: &Api, hub: &HubName, headers: &HeaderMap) -> crate::spawn::Events {
    let after = headers
        .get("last-event-id")
        .and_then(|raw| raw.to_str().ok())
        .and_then(|raw| raw.trim().parse().ok());
    api.spawner.events(hub, after)
}

fn event(id: Option<u64>, view: RunView, relay_url: &str) -> Option<Event> {
    let event = Event::default().event("server");
    let event = match id {
        Some(id) => event.id(id.to_string()),
        None => event,
    };
    event.json_data(convert::view(view, relay_url)).ok() // text keys and numbers: always JSON
}
