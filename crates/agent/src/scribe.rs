//! A thread of its own for writing: it does what it is given, one after the other.
//!
//! All else of the agent shares one thread, which carries the link. A disk that hangs must not hold that up, so what is
//! given here is never waited for, but at the end, and then not for long.

use std::io;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

/// Something to do with what the thread holds.
pub type Work<T> = Box<dyn FnOnce(&mut T) + Send>;

/// Between two tries to give something while too much waits.
const TRY_EVERY: Duration = Duration::from_millis(10);

/// Gives work to the thread. Cheap to clone; the thread ends when all clones are dropped.
pub struct Scribe<T> {
    work: SyncSender<Work<T>>,
}

impl<T> Clone for Scribe<T> {
    fn clone(&self) -> Self {
        Scribe { work: self.work.clone() }
    }
}

impl<T: Send + 'static> Scribe<T> {
    /// Starts a thread that holds `desk`, for which so many pieces of work may wait.
    pub fn start(name: &str, mut desk: T, waiting: usize) -> io::Result<Self> {
        let (work, given) = sync_channel::<Work<T>>(waiting);
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            for work in given {
                work(&mut desk);
            }
        })?;
        Ok(Scribe { work })
    }

    /// Gives the work back when too much waits already.
    pub fn give(&self, work: Work<T>) -> Result<(), Work<T>> {
        self.work.try_send(work).map_err(|back| match back {
            TrySendError::Full(work) | TrySendError::Disconnected(work) => work,
        })
    }

    /// Waits until all that was given is done, but not longer than `within`.
    pub async fn done(&self, within: Duration) {
        let all = async {
            let (tell, told) = oneshot::channel();
            let mut last: Work<T> = Box::new(move |_| {
                let _ = tell.send(());
            });
            while let Err(back) = self.give(last) {
                last = back;
                sleep(TRY_EVERY).await;
            }
            let _ = told.await;
        };
        let _ = timeout(within, all).await;
    }
}
