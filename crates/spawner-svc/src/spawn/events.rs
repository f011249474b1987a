//! One Hub's events as a stream: what was missed first, then what comes, each the whole server.

use std::collections::VecDeque;
use std::sync::Arc;

use glidepath_domain::names::HubName;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::record::read_view;
use super::view::RunView;
use super::{Events, Shared};
use crate::notable::{About, Refusal, Retry};
use crate::store::{EventRow, StoreError};

/// Events that are read from the store at a time.
const READ_AT_ONCE: u32 = 500;

struct Feed {
    shared: Arc<Shared>,
    hub: HubName,
    live: Receiver<EventRow>,
    after: Option<u64>,
    begun: bool,
    ready: VecDeque<(Option<u64>, RunView)>,
}

/// This Hub's events after the given id.
pub(super) fn of_hub(shared: Arc<Shared>, hub: HubName, after: Option<u64>) -> Events {
    let live = shared.store.subscribe();
    let feed = Feed { shared, hub, live, after, begun: false, ready: VecDeque::new() };
    Box::pin(futures_util::stream::unfold(feed, |mut feed| async move {
        match feed.next().await {
            Ok(Some(event)) => Some((event, feed)),
            Ok(None) => None,
            Err(error) => {
                // The reader comes again with the id of the last event that it has.
                if feed.shared.store.trouble().is_none() {
                    let why = error.to_string();
                    feed.shared.notes.retries(Retry::EventsAgain, &About::new().hub(&feed.hub).why(&why));
                }
                None
            }
        }
    }))
}

impl Feed {
    async fn next(&mut self) -> Result<Option<(Option<u64>, RunView)>, StoreError> {
        loop {
            if let Some((id, view)) = self.ready.pop_front() {
                return Ok(Some((id, view)));
            }
            if !self.begun {
                self.begin().await?;
                self.begun = true;
                continue;
            }
            let last = self.after.unwrap_or(0);
            match self.live.recv().await {
                Ok(event) if *event.hub == *self.hub.as_str() && event.id > last => self.push(&event),
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => self.catch_up().await?,
                Err(RecvError::Closed) => return Ok(None),
            }
        }
    }

    /// What was missed, if it is all kept; every server as it stands, otherwise.
    async fn begin(&mut self) -> Result<(), StoreError> {
        let ids = self.shared.store.event_ids().await?;
        let (oldest, newest) = ids.unwrap_or((1, 0));
        match self.after {
            Some(after) if after.saturating_add(1) >= oldest && after <= newest => self.catch_up().await,
            _ => {
                // Read after the id: what happens in between is told twice rather than not at all.
                self.after = Some(newest);
                let views = self.shared.store.views(self.hub.as_str()).await?;
                let views: Vec<RunView> = views.iter().filter_map(|view| self.read(view)).collect();
                self.ready.extend(views.into_iter().map(|view| (None, view)));
                if let Some((id, _)) = self.ready.back_mut() {
                    *id = Some(newest); // from here on the reader has them all
                }
                Ok(())
            }
        }
    }

    async fn catch_up(&mut self) -> Result<(), StoreError> {
        loop {
            let after = self.after.unwrap_or(0);
            let missed = self.shared.store.events_after(self.hub.as_str(), after, READ_AT_ONCE).await?;
            for event in &missed {
                self.push(event);
            }
            if missed.len() < READ_AT_ONCE as usize {
                return Ok(());
            }
        }
    }

    fn push(&mut self, event: &EventRow) {
        self.after = Some(event.id);
        if let Some(view) = self.read(&event.view) {
            self.ready.push_back((Some(event.id), view));
        }
    }

    /// One that does not read is left out: it must not keep a Hub from hearing of all its others.
    fn read(&self, view: &str) -> Option<RunView> {
        let read = read_view(view);
        if let Err(error) = &read {
            let (why, run) = (error.to_string(), run_of(view));
            let about = About::new().hub(&self.hub).at(&run).why(&why);
            self.shared.notes.refused(Refusal::RecordUntold, &about);
        }
        read.ok()
    }
}

/// The run that a view is of, as far as it reads.
fn run_of(view: &str) -> String {
    let view: serde_json::Value = serde_json::from_str(view).unwrap_or_default();
    view["run"].as_str().unwrap_or("a run that it does not name").to_owned()
}
