//! Whether the store can write, as the writer finds it: one line in the log when it begins not to, one when it ends;
//! and how much was written.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::StoreError;

/// The writer's to set, everybody's to read.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Since when nothing can be written, and why.
    trouble: Mutex<Option<Trouble>>,
    /// How often that began.
    times: AtomicU64,
    /// Transactions that are on disk, and the changes in them.
    transactions: AtomicU64,
    changes: AtomicU64,
    /// Why the writer ended before it was told to.
    ended: Mutex<Option<StoreError>>,
}

/// What is on disk since the store was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Each is one wait for the disk.
    pub transactions: u64,
    /// Runs made or saved, keys bound, removals of what is old.
    pub changes: u64,
}

#[derive(Debug)]
struct Trouble {
    since: Instant,
    why: StoreError,
}

impl Health {
    /// Nothing can be written, for this reason.
    pub(super) fn fell(&self, why: &StoreError) {
        let mut trouble = locked(&self.trouble);
        let since = trouble.as_ref().map(|trouble| trouble.since);
        if since.is_none() {
            self.times.fetch_add(1, Ordering::Relaxed);
            tracing::error!(error = %why, "the store cannot write; what is asked waits or is refused, servers live on");
        }
        *trouble = Some(Trouble { since: since.unwrap_or_else(Instant::now), why: why.clone() });
    }

    /// What was asked is written.
    pub(super) fn rose(&self) {
        if let Some(trouble) = locked(&self.trouble).take() {
            tracing::info!(for_s = trouble.since.elapsed().as_secs(), "the store can write again");
        }
    }

    /// Why nothing can be written, if it is so.
    pub(super) fn trouble(&self) -> Option<StoreError> {
        locked(&self.trouble).as_ref().map(|trouble| trouble.why.clone())
    }

    pub(super) fn times(&self) -> u64 {
        self.times.load(Ordering::Relaxed)
    }

    /// A transaction with so many changes is on disk.
    pub(super) fn wrote(&self, changes: usize) {
        self.transactions.fetch_add(1, Ordering::Relaxed);
        self.changes.fetch_add(changes as u64, Ordering::Relaxed);
    }

    pub(super) fn written(&self) -> Written {
        Written {
            transactions: self.transactions.load(Ordering::Relaxed),
            changes: self.changes.load(Ordering::Relaxed),
        }
    }

    /// The writer ends for this reason.
    pub(super) fn ended(&self, why: StoreError) {
        *locked(&self.ended) = Some(why);
    }

    pub(super) fn why_ended(&self) -> Option<StoreError> {
        locked(&self.ended).clone()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
