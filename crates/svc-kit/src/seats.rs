//! Places for connections at one listener. When all are taken, the connection that has waited longest without a request
//! gives its own up: who holds many open and asks nothing keeps nobody out.
//!
//! A connection waits from its start, and again from the end of each answer, until its next request has come whole.
//! While a request is under way it is never sent away.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// All places of a listener.
#[derive(Debug)]
pub struct Seats {
    free: Arc<Semaphore>,
    waiting: Mutex<Waiting>,
    /// Told when a connection begins to wait, or a place that was given up is free.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// Connections without a request, the eldest first.
    idle: BTreeMap<u64, CancellationToken>,
    /// Sent away and not gone yet: for each of them a place will be free.
    leaving: usize,
}

impl Seats {
    /// So many places.
    #[must_use]
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            free: Arc::new(Semaphore::new(most)),
            waiting: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// A place for a connection that is there. May be dropped half way.
    pub async fn take(self: &Arc<Self>) -> Arc<Seat> {
        loop {
            if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
                return self.seat(permit);
            }
            let changed = self.changed.notified();
            self.send_one_away();
            changed.await;
        }
    }

    fn seat(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> Arc<Seat> {
        let away = CancellationToken::new();
        let number = self.waiting().begin(away.clone());
        self.changed.notify_one();
        Arc::new(Seat { seats: Arc::clone(self), away, number: Mutex::new(number), permit: Some(permit) })
    }

    fn send_one_away(&self) {
        let mut waiting = self.waiting();
        if waiting.leaving == 0
            && let Some((_, eldest)) = waiting.idle.pop_first()
        {
            waiting.leaving += 1;
            eldest.cancel();
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn begin(&mut self, away: CancellationToken) -> u64 {
        self.next += 1;
        self.idle.insert(self.next, away);
        self.next
    }
}

/// One connection's place, until it is dropped.
#[derive(Debug)]
pub struct Seat {
    seats: Arc<Seats>,
    away: CancellationToken,
    /// Its place among those that wait.
    number: Mutex<u64>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Seat {
    /// Ready when the connection must go, because another needs its place. May be dropped half way.
    pub async fn given_up(&self) {
        self.away.cancelled().await;
    }

    /// A request has come; it is under way until the guard is dropped. `None` when the place was given up in this very
    /// moment: the request must not be begun.
    #[must_use]
    pub fn busy(self: &Arc<Self>) -> Option<Busy> {
        let mut waiting = self.seats.waiting();
        waiting.idle.remove(&*self.number())?;
        Some(Busy(Arc::clone(self)))
    }

    fn number(&self) -> MutexGuard<'_, u64> {
        self.number.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut waiting = self.seats.waiting();
        waiting.idle.remove(&*self.number());
        if self.away.is_cancelled() {
            waiting.leaving -= 1;
        }
        drop(waiting);
        drop(self.permit.take());
        self.seats.changed.notify_one();
    }
}

/// A request under way. At its end the connection waits for the next one.
#[derive(Debug)]
pub struct Busy(Arc<Seat>);

impl Drop for Busy {
    fn drop(&mut self) {
        let mut waiting = self.0.seats.waiting();
        *self.0.number() = waiting.begin(self.0.away.clone());
        drop(waiting);
        self.0.seats.changed.notify_one();
    }
}

/// The body of an answer, with its request under way until it has been sent.
#[derive(Debug)]
pub struct UnderWay<B> {
    body: B,
    _busy: Busy,
}

impl<B> UnderWay<B> {
    /// The guard goes with the body.
    pub fn new(body: B, busy: Busy) -> Self {
        Self { body, _busy: busy }
    }
}

impl<B: Body + Unpin> Body for UnderWay<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    async fn soon<T>(future: impl Future<Output = T>) -> Option<T> {
        timeout(Duration::from_secs(1), future).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn the_eldest_without_a_request_goes_and_no_other() {
        let seats = Seats::new(3);
        let (busy, eldest, younger) = (seats.take().await, seats.take().await, seats.take().await);
        let _request = busy.busy().unwrap();
        let next = seats.take();
        tokio::pin!(next);
        assert!(soon(&mut next).await.is_none(), "a place that is given up is not yet free");
        assert!(soon(eldest.given_up()).await.is_some());
        assert!(soon(busy.given_up()).await.is_none());
        assert!(soon(younger.given_up()).await.is_none(), "one newcomer needs one place");
        assert!(eldest.busy().is_none(), "who is sent away begins nothing");
        drop(eldest);
        assert!(soon(next).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_becomes_idle_while_another_waits_gives_its_place_up() {
        let seats = Seats::new(1);
        let only = seats.take().await;
        let request = only.busy().unwrap();
        let next = seats.take();
        tokio::pin!(next);
        assert!(soon(&mut next).await.is_none());
        drop(request);
        let (went, came) = tokio::join!(
            async {
                only.given_up().await;
                drop(only);
            },
            soon(next)
        );
        assert!(((), true) == (went, came.is_some()));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_still_being_sent_is_under_way() {
        let seats = Seats::new(1);
        let only = seats.take().await;
        let body = UnderWay::new(String::from("long"), only.busy().unwrap());
        assert!(soon(seats.take()).await.is_none());
        assert!(soon(only.given_up()).await.is_none());
        drop(body);
        assert!(soon(seats.take()).await.is_none());
        assert!(soon(only.given_up()).await.is_some());
    }
}
