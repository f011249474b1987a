//! Makes a job's folder: apart and whole first, then moved to its place in one step.
//!
//! In: a job's spec. Out: a folder in `staging` that lacks nothing but its place in the queue. Until the move there
//! is no job; whatever fails before it leaves nothing behind.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use glidepath_domain::backend::{BackendError, JobSpec};
use secrecy::ExposeSecret;

use super::accounts::{Account, AccountBook};
use super::config::ProcessConfig;
use super::record::{Phase, Record};
use super::render::DIAL_FILE;
use super::root::WorkRoot;
use super::{files, homes};

/// A job that is ready to be moved to its place.
pub(crate) struct Prepared {
    pub(crate) record: Record,
    folder: PathBuf,
    /// The socket's folder, when it is not inside.
    outer: Option<PathBuf>,
}

/// Makes everything that a job needs, apart.
pub(crate) fn prepare(
    spec: &JobSpec,
    config: &ProcessConfig,
    root: &WorkRoot,
    book: &AccountBook,
) -> Result<Prepared, BackendError> {
    if spec.resources.gpus.count > 0 {
        return Err(BackendError::Refused("this site gives out no GPUs".to_owned()));
    }
    let account = book.account(&spec.label.key)?;
    let home = config.homes.render(&spec.label.key, &account)?;
    homes::ensure(&config.homes, &home, &account)?;
    let folder = root.staging(spec.label.attempt);
    let inner = root.inner_socket_dir(spec.label.attempt);
    let outer = inner.is_none().then(|| outer_socket_dir(&account));
    let record = Record {
        key: spec.label.key.clone(),
        attempt: spec.label.attempt,
        seq: 0,
        submitted_ms: now_ms(),
        socket_dir: inner.or_else(|| outer.clone()).unwrap_or_default(),
        account,
        home,
        agent: root.agent.clone(),
        resources: spec.resources.clone(),
        grace_s: spec.grace_s,
        phase: Phase::Queued,
        cancel: None,
    };
    // The record comes before what lies elsewhere: a service that is killed here leaves nothing that nobody knows of.
    let made = fill(spec, &folder, &record.account, outer.is_none()).and_then(|()| record.write(&folder));
    if let Err(why) = made {
        discard(&folder, None);
        return Err(refused("the job's folder", &why));
    }
    if let Some(Err(why)) = outer.as_deref().map(|outer| make_outer(outer, &record.account)) {
        discard(&folder, None);
        return Err(refused("the socket's folder", &why));
    }
    Ok(Prepared { record, folder, outer })
}

impl Prepared {
    /// Moves the job to its place: from here on it exists.
    pub(crate) fn commit(mut self, seq: u64, root: &WorkRoot) -> Result<(), BackendError> {
        self.record.seq = seq;
        let place = root.job(self.record.attempt);
        let moved = self.record.write(&self.folder).and_then(|()| fs::rename(&self.folder, &place));
        if let Err(why) = moved {
            self.discard();
            return Err(refused("the job's folder", &why));
        }
        files::sync_folder(&root.jobs())
            .map_err(|why| BackendError::Unknown(format!("the job may not survive a power cut: {why}")))
    }

    /// Removes it: it never was.
    pub(crate) fn discard(self) {
        discard(&self.folder, self.outer.as_deref());
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn fill(spec: &JobSpec, folder: &Path, account: &Account, inner_socket: bool) -> io::Result<()> {
    let own = folder.join("own");
    let dial_file = own.join(DIAL_FILE);
    files::make_folder(folder, 0o711)?;
    files::make_folder(&own, 0o700)?;
    files::write_new(&dial_file, spec.dial_file.expose_secret().as_bytes(), 0o600)?;
    files::give(&dial_file, account)?;
    if inner_socket {
        files::make_folder(&own.join("s"), 0o700)?;
        files::give(&own.join("s"), account)?;
    }
    files::give(&own, account)?;
    files::sync_folder(&own)
}

/// A short path for the socket's folder of a job whose own path is too long for one; nobody can guess it.
fn outer_socket_dir(account: &Account) -> PathBuf {
    let parent = if account.switch { "/run" } else { "/tmp" };
    Path::new(parent).join(format!("glidepath-{}", files::random_hex::<8>()))
}

/// Makes it, and leaves nothing when that fails. One that is there already is somebody else's.
fn make_outer(outer: &Path, account: &Account) -> io::Result<()> {
    files::make_folder(outer, 0o700)?;
    files::give(outer, account).inspect_err(|_| discard(outer, None))
}

fn discard(folder: &Path, socket_dir: Option<&Path>) {
    let removed = files::remove_tree(folder).and(socket_dir.map_or(Ok(()), files::remove_tree));
    if let Err(why) = removed {
        tracing::warn!(folder = %folder.display(), "a job that was not made leaves something behind: {why}");
    }
}

fn refused(what: &str, why: &io::Error) -> BackendError {
    BackendError::Refused(format!("{what} cannot be made at this site: {why}"))
}
