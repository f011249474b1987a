//! Streams with an outlet: what waits for it, and its end.

use std::io;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use super::{Mux, Outcome};
use crate::proto::outlet::Outlet;

impl Mux {
    /// From now on what comes for this stream goes on to there, and nobody else may read the stream.
    pub(crate) fn set_outlet(&mut self, id: u64, outlet: Outlet) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.outlet = Some(outlet);
        }
    }

    /// Hands on what waits. `Done(0)`: all of it, up to the stream's end, and the outlet knows.
    pub(crate) fn poll_pass(
        &mut self,
        id: u64,
        now: Instant,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Outcome>> {
        let Some(mut outlet) = self.streams.get_mut(&id).and_then(|stream| stream.outlet.take()) else {
            return Poll::Ready(Ok(Outcome::Reset));
        };
        let passed = self.poll_pass_to(&mut outlet, id, now, cx);
        self.set_outlet(id, outlet);
        passed
    }

    fn poll_pass_to(
        &mut self,
        outlet: &mut Outlet,
        id: u64,
        now: Instant,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Outcome>> {
        let waker = cx.waker().clone();
        let mut failed = None;
        let outcome =
            self.read(id, now, &mut Context::from_waker(&waker), |bytes| match outlet.poll_take(cx, bytes) {
                Poll::Ready(Ok(taken)) => taken,
                Poll::Ready(Err(error)) => {
                    failed = Some(error);
                    0
                }
                Poll::Pending => 0,
            });
        if let Some(error) = failed {
            return Poll::Ready(Err(error));
        }
        match outcome {
            Outcome::Wait => return Poll::Pending,
            Outcome::Done(0) => ready!(outlet.poll_end(cx))?,
            _ => {}
        }
        Poll::Ready(Ok(outcome))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Wake;

    use bytes::Bytes;

    use super::*;
    use crate::proto::mux::{Limits, Side};

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_outlet_hears_of_an_end_that_was_told_before_the_last_bytes_came() {
        let now = Instant::now();
        let mut mux = Mux::new(Side::Agent, Limits::default());
        mux.on_open(0, "server".to_owned(), now).unwrap();
        let (near, mut far) = tokio::io::duplex(64);
        mux.set_outlet(0, Outlet::new(near));
        let woken = Arc::new(Woken::default());
        let waker = Arc::clone(&woken).into();
        let mut cx = Context::from_waker(&waker);
        mux.on_fin(0, 4, now).unwrap();
        assert!(mux.poll_pass(0, now, &mut cx).is_pending());
        mux.on_data(0, 0, Bytes::from_static(b"last"), now).unwrap();
        std::mem::take(&mut mux.wakes).into_iter().for_each(|waker| waker.wake());
        assert!(
            woken.0.load(Ordering::Relaxed),
            "all of it was passed on: nothing else would wake who waits"
        );
        assert!(matches!(mux.poll_pass(0, now, &mut cx), Poll::Ready(Ok(Outcome::Done(0)))));
        let mut got = String::new();
        let read = tokio::io::AsyncReadExt::read_to_string(&mut far, &mut got);
        assert!(std::pin::pin!(read).poll(&mut cx).is_ready());
        assert_eq!(got, "last");
    }

    #[test]
    fn what_an_outlet_took_is_granted_again() {
        let now = Instant::now();
        let mut mux = Mux::new(Side::Agent, Limits::default());
        mux.on_open(0, "server".to_owned(), now).unwrap();
        mux.set_outlet(0, Outlet::new(tokio::io::sink()));
        for piece in 0..100 {
            let came = mux.on_data(0, piece * 64 * 1024, Bytes::from(vec![0; 64 * 1024]), now);
            came.unwrap_or_else(|broken| panic!("piece {piece}: {broken}"));
        }
        assert!(mux.wants_lane, "the sender is to hear of it");
    }
}
