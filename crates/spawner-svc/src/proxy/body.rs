//! The body of the relay's response: the server's, frame by frame, or the relay's own words. And what becomes of a
//! request's body that nobody wants.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use tokio::time::timeout;

use crate::arrivals::upstream::Lease;

/// What is read of a refused request's body, so that its sender hears the refusal instead of a reset.
const REFUSED_BODY_BYTES: usize = 4 * 1024 * 1024;

/// How long that may take.
const REFUSED_BODY_WAIT: Duration = Duration::from_secs(2);

pub(super) enum RelayBody {
    /// The relay's own words.
    Own(Full<Bytes>),
    /// What the server sends, as it comes.
    Through(Through),
}

pub(super) struct Through {
    body: Incoming,
    /// Given back when the body has been read; dropped before, it aborts the server's work.
    lease: Option<Lease>,
    /// Set when the body broke off: the client's connection must then end as visibly.
    broke: Arc<AtomicBool>,
}

impl RelayBody {
    pub(super) fn through(body: Incoming, lease: Lease, broke: Arc<AtomicBool>) -> Self {
        let mut through = Through { body, lease: Some(lease), broke };
        through.give_back_at_end();
        Self::Through(through)
    }
}

impl Through {
    fn give_back_at_end(&mut self) {
        if self.body.is_end_stream() {
            self.give_back();
        }
    }

    fn give_back(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }
}

impl Body for RelayBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let through = match self.get_mut() {
            Self::Own(body) => return Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Self::Through(through) => through,
        };
        let frame = ready!(Pin::new(&mut through.body).poll_frame(cx));
        match &frame {
            Some(Ok(_)) => through.give_back_at_end(),
            Some(Err(_)) => through.broke.store(true, Ordering::Relaxed),
            None => through.give_back(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body) => body.is_end_stream(),
            Self::Through(through) => through.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body) => body.size_hint(),
            Self::Through(through) => through.body.size_hint(),
        }
    }
}

/// Reads a bounded part of a body that nobody wants.
pub(super) async fn drain(body: &mut Incoming) {
    let read = async {
        let mut seen = 0;
        while let Some(Ok(frame)) = body.frame().await {
            seen += frame.data_ref().map_or(0, Bytes::len);
            if seen > REFUSED_BODY_BYTES {
                break;
            }
        }
    };
    let _ = timeout(REFUSED_BODY_WAIT, read).await; // what comes later is cut off
}
