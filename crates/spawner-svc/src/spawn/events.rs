//! One Hub's events as a stream: what was missed first, then what comes, each the whole server.

use std::collections::VecDeque;
use std::sync::Arc;

use glidepath_domain::names::HubName;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::record::read_view;
use super::view::RunView;
use super::{Events, Shared};
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
                tracing::warn!(hub = %feed.hub, %error, "a stream of events ends early");
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
                Ok(event) if *event.hub == *self.hub.as_str() && event.id > last => self.push(&event)?,
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
                for (n, view) in views.iter().enumerate() {
                    let whole = n + 1 == views.len();
                    self.ready.push_back((whole.then_some(newest), read_view(view)?));
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
                self.push(event)?;
            }
            if missed.len() < READ_AT_ONCE as usize {
                return Ok(());
            }
        }
    }

    fn push(&mut self, event: &EventRow) -> Result<(), StoreError> {
        self.after = Some(event.id);
        self.ready.push_back((Some(event.id), read_view(&event.view)?));
        Ok(())
    }
}
