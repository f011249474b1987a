//! The jobs that this very service started: only their ends come with an exit code.
//!
//! A child that the service outlives is collected here; one that outlives the service is collected by the machine's
//! first process. Dropping this ends no child.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use glidepath_domain::backend::JobEnd;
use glidepath_domain::names::Attempt;
use tokio::process::Child;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// `None` while the child runs. Bounded by the jobs that were not forgotten.
type Ends = Arc<Mutex<BTreeMap<Attempt, Option<JobEnd>>>>;

/// The children and how they ended.
#[derive(Debug, Default)]
pub(crate) struct Children {
    ends: Ends,
    waits: Mutex<JoinSet<()>>,
}

impl Children {
    /// Waits for the child in the background; rings `wake` when it has ended.
    pub(crate) fn adopt(&self, attempt: Attempt, mut child: Child, wake: Arc<Notify>) {
        lock(&self.ends).insert(attempt, None);
        let ends = self.ends.clone();
        let mut waits = lock(&self.waits);
        while waits.try_join_next().is_some() {}
        waits.spawn(async move {
            let end = child.wait().await.map(end_of).unwrap_or_default();
            if let Some(entry) = lock(&ends).get_mut(&attempt) {
                *entry = Some(end);
            }
            wake.notify_one();
        });
    }

    /// True while the child has not been collected.
    pub(crate) fn is_awaited(&self, attempt: Attempt) -> bool {
        matches!(lock(&self.ends).get(&attempt), Some(None))
    }

    /// How the child ended; `None` when it was not ours or still runs.
    pub(crate) fn end_of(&self, attempt: Attempt) -> Option<JobEnd> {
        lock(&self.ends).get(&attempt).cloned().flatten()
    }

    pub(crate) fn forget(&self, attempt: Attempt) {
        lock(&self.ends).remove(&attempt);
    }
}

fn end_of(status: ExitStatus) -> JobEnd {
    JobEnd { exit_code: status.code(), signal: status.signal(), detail: None }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
