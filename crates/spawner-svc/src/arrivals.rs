//! Where agents arrive: tickets, the gate that redeems them, the live links, and what is reachable through them.
//!
//! In: knocks at the link listener. Out: for each admitted agent an [`Arrived`], to `spawn` and to whoever carries
//! the streams that the agent opens. A ticket names one attempt; the first key that redeems it is bound to it, and
//! only that key may ever come again. An attempt that is fenced in the store may not attach.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use glidepath_domain::names::{Attempt, InstanceId, ServerKey};
use glidepath_domain::run::Moment;
use glidepath_svc_kit::crash;
use glidepath_tunnel::home::{Admitted, Gate, Knock, Refusal, TurnedAway};
use glidepath_tunnel::link::Link;
use secrecy::SecretString;
use tokio::sync::mpsc;

use crate::clock;
use crate::notable::{About, Notes, Refusal as Refused};
use crate::seal::SealError;
use crate::store::{Bound, Store};

#[cfg(any(test, feature = "fuzz"))]
#[doc(hidden)]
pub mod fuzz;
pub mod routes;
#[cfg(test)]
mod tests;
mod ticket;
pub mod upstream;

use ticket::Tickets;

/// Arrivals that may wait for `spawn`: as many as the home end has links.
const ARRIVALS_WAITING: usize = 20_000;
/// When an agent is to come again whose ticket could not be looked up.
const COME_AGAIN: Duration = Duration::from_secs(2);

/// An agent that the gate let in, with its link.
#[derive(Clone)]
pub struct Arrived {
    /// Which submit of which run.
    pub attempt: Attempt,
    /// Whose server it is.
    pub key: ServerKey,
    /// The way to its agent.
    pub link: Link,
}

impl fmt::Debug for Arrived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arrived")
            .field("attempt", &self.attempt)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// Carries the streams that an agent opens. Implemented by the proxy.
pub trait AgentStreams: Send + Sync + 'static {
    /// Serves this link's agent-opened streams until it closes. Returns at once: the work is the implementer's task.
    fn carry(&self, arrived: Arrived);
}

/// The gate, the tickets and the live links.
pub struct Arrivals {
    store: Store,
    tickets: Tickets,
    streams: Arc<dyn AgentStreams>,
    arrived: mpsc::Sender<Arrived>,
    /// Attempts that were admitted since the service started, until `spawn` lets go of them.
    admitted: Mutex<HashMap<Attempt, Home>>,
    notes: Notes,
}

struct Home {
    key: ServerKey,
    link: Option<Link>,
}

impl Arrivals {
    /// Reads `<state_dir>/keys/ticket.key`, or makes it. Spawn listens at the receiver.
    pub fn new(
        state_dir: &Path,
        instance: InstanceId,
        store: Store,
        streams: Arc<dyn AgentStreams>,
        notes: Notes,
    ) -> Result<(Arc<Self>, mpsc::Receiver<Arrived>), SealError> {
        let (arrived, arrivals) = mpsc::channel(ARRIVALS_WAITING);
        let tickets = Tickets::in_state_dir(state_dir, instance)?;
        let admitted = Mutex::default();
        let this = Self { store, tickets, streams, arrived, admitted, notes };
        Ok((Arc::new(this), arrivals))
    }

    /// The right to dial home for this attempt, redeemable for the first time until the deadline.
    pub fn issue(&self, attempt: Attempt, now: Moment, deadline: Moment) -> Result<SecretString, SealError> {
        self.tickets.issue(attempt, now, deadline)
    }

    /// The link of this attempt's agent, if it has one.
    #[must_use]
    pub fn link(&self, attempt: Attempt) -> Option<Link> {
        self.admitted().get(&attempt).and_then(|home| home.link.clone())
    }

    /// Closes this attempt's link, if it has one, and forgets the attempt. Whoever dials for it later asks the store.
    pub fn dismiss(&self, attempt: Attempt, reason: &str) {
        let home = self.admitted().remove(&attempt);
        if let Some(link) = home.and_then(|home| home.link) {
            link.close(reason);
        }
    }

    fn admitted(&self) -> MutexGuard<'_, HashMap<Attempt, Home>> {
        self.admitted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Told and counted; the agent gives up.
    fn refuse(&self, what: Refused, attempt: Option<Attempt>, knock: &Knock, sentence: &str) -> Refusal {
        let why = format!("{} ({})", sentence, knock.software);
        let about = About::new().peer(knock.peer.ip()).why(&why);
        self.notes.refused(what, &attempt.map_or(about, |attempt| about.attempt(attempt)));
        Refusal::Final { sentence: sentence.to_owned() }
    }
}

#[async_trait]
impl Gate for Arrivals {
    async fn admit(&self, knock: Knock) -> Result<Admitted, Refusal> {
        let Some(ticket) = self.tickets.read(&knock.credential) else {
            let sentence = "this is no ticket of this service";
            return Err(self.refuse(Refused::KnockNoTicket, None, &knock, sentence));
        };
        let may_be_first = clock::now() <= ticket.until;
        let attempt = ticket.attempt;
        let no = |what, sentence| self.refuse(what, Some(attempt), &knock, sentence);
        crash::point("gate.proved"); // the challenge is answered, the key not bound
        match self.store.bind(attempt, &knock.key, may_be_first).await {
            Ok(Bound::ToThisKey { server_key }) => match ServerKey::parse_full(&server_key) {
                Ok(key) => {
                    self.admitted().entry(attempt).or_insert(Home { key, link: None });
                    crash::point("gate.admitted"); // the key is bound, the agent not told
                    Ok(Admitted { identity: attempt.to_string() })
                }
                Err(_) => Err(no(Refused::KnockRecord, "this server is not known")),
            },
            Ok(Bound::ToAnotherKey) => {
                Err(no(Refused::KnockOtherKey, "another agent has redeemed this ticket"))
            }
            Ok(Bound::Fenced) => Err(no(Refused::KnockOver, "this attempt is over")),
            Ok(Bound::TooLate) => Err(no(Refused::KnockLate, "this ticket was not redeemed in time")),
            Ok(Bound::Unknown) => Err(no(Refused::KnockUnknown, "this run is not known")),
            Err(error) => {
                let why = error.to_string();
                let about = About::new().attempt(attempt).peer(knock.peer.ip()).why(&why);
                self.notes.refused(Refused::KnockStore, &about);
                Err(Refusal::Later { sentence: "the service is not ready".to_owned(), after: COME_AGAIN })
            }
        }
    }

    fn linked(&self, admitted: &Admitted, link: Link) {
        let Ok(attempt) = Attempt::parse(&admitted.identity) else { return };
        let key = match self.admitted().get_mut(&attempt) {
            Some(home) => {
                home.link = Some(link.clone());
                home.key.clone()
            }
            None => {
                link.close("this attempt is over"); // dismissed between the gate's yes and this
                return;
            }
        };
        crash::point("gate.linked"); // the agent is told, its run not
        let arrived = Arrived { attempt, key, link };
        self.streams.carry(arrived.clone());
        if let Err(error) = self.arrived.try_send(arrived) {
            let why = error.to_string();
            self.notes.refused(Refused::KnockRunOver, &About::new().attempt(attempt).why(&why));
        }
    }

    fn turned_away(&self, peer: SocketAddr, turned: TurnedAway, sentence: &str) {
        let what = match turned {
            TurnedAway::Proof => Refused::KnockProof,
            TurnedAway::Unfit => Refused::KnockVersion,
            TurnedAway::Full => Refused::KnockFull,
        };
        self.notes.refused(what, &About::new().peer(peer.ip()).why(sentence));
    }
}
