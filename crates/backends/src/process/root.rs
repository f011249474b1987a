//! The work root: one folder that one backend has for itself.
//!
//! ```text
//! id                          which root this is, and the key of its marks      0600
//! lock                        held by the backend that works here
//! bin/glidepath-agent-<hash>  the agent, by content                             0755
//! staging/                    jobs that are being made or removed, and notes of homes that are removed; emptied by the
//!                             next service
//! jobs/<attempt>/job.json     the record                                        0600, the service's
//!               /agent.log    what the agent wrote                              0600, the service's
//!               /own/         the job's: dial.json and the socket's folder      0700, the account's
//! homes/                      users' files, unless the template says elsewhere
//! ```

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use glidepath_domain::names::{Attempt, ServerKey};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::Uid;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::files;
use super::record::Record;

/// Longest path of a socket's folder, so that the socket in it stays below the 108 bytes of the kernel.
const SOCKET_DIR_MAX_BYTES: usize = 85;

/// Begins the name of a home that was moved away; no user's slug has a dot.
const APART_PREFIX: &str = ".glidepath-removed-";
/// Begins the name of the note about it.
const HOME_NOTE_PREFIX: &str = "home-";

/// An open work root.
#[derive(Debug)]
pub(crate) struct WorkRoot {
    path: PathBuf,
    identity: Identity,
    /// The agent's copy that jobs are started with.
    pub(crate) agent: PathBuf,
    _lock: Flock<File>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    id: String,
    key: String,
}

/// A home on its way to nothing.
#[derive(Debug, Serialize, Deserialize)]
struct HomeApart {
    home: PathBuf,
    /// Where it was moved to, beside its old place.
    apart: PathBuf,
}

impl WorkRoot {
    /// Opens the root, making what is missing. `Err` is one sentence.
    pub(crate) fn open(path: &Path, agent: &Path, switches_accounts: bool) -> Result<Self, String> {
        let shown = path.display();
        let unusable = |why: io::Error| format!("the work root {shown} cannot be used: {why}");
        let mode = if switches_accounts { 0o711 } else { 0o700 };
        if let Some(astray) = astray_above(path).filter(|_| switches_accounts) {
            return Err(astray);
        }
        files::make_folders(path, mode).map_err(unusable)?;
        check_folder(path, switches_accounts)?;
        let lock = lock(path)?;
        for part in ["bin", "staging", "jobs", "homes"] {
            files::make_folders(&path.join(part), mode).map_err(unusable)?;
        }
        let identity = identity(path).map_err(|why| format!("{shown}/id cannot be used: {why}"))?;
        let agent = copy_agent(agent, &path.join("bin"))?;
        remove_old_agents(path, &agent).map_err(unusable)?;
        Ok(Self { path: path.to_owned(), identity, agent, _lock: lock })
    }

    /// Names this root among all on the machine.
    pub(crate) fn id(&self) -> &str {
        &self.identity.id
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn jobs(&self) -> PathBuf {
        self.path.join("jobs")
    }

    pub(crate) fn job(&self, attempt: Attempt) -> PathBuf {
        self.jobs().join(attempt.to_string())
    }

    /// A fresh name for a job that is being made.
    pub(crate) fn staging(&self, attempt: Attempt) -> PathBuf {
        self.path.join("staging").join(format!("{attempt}.{}", files::random_hex::<4>()))
    }

    /// What a killed service was making or removing: to be read before anything is made, and given to [`clear`].
    pub(crate) fn leftovers(&self) -> io::Result<Vec<PathBuf>> {
        fs::read_dir(self.path.join("staging"))?.map(|entry| Ok(entry?.path())).collect()
    }

    /// Moves a home away in one step; returns its new place, beside the old one. It is noted first, so that another
    /// service can go on. On a full disk there is no note: it is there that homes must go.
    pub(crate) fn put_home_apart(&self, home: &Path) -> io::Result<PathBuf> {
        let apart = home.with_file_name(format!("{APART_PREFIX}{}", files::random_hex::<8>()));
        let note = self.path.join("staging").join(format!("{HOME_NOTE_PREFIX}{}", files::random_hex::<8>()));
        let text = serde_json::to_vec(&HomeApart { home: home.to_owned(), apart: apart.clone() })?;
        if let Err(why) = files::write_new(&note, &text, 0o600) {
            tracing::warn!(home = %home.display(), "a home is removed without a note of it: {why}");
        }
        fs::rename(home, &apart).inspect_err(|_| drop(files::remove_file(&note)))?;
        home.parent().map_or(Ok(()), files::sync_folder)?;
        Ok(apart)
    }

    /// Removes what was moved away of this home, also by an earlier call that did not come to its end.
    pub(crate) fn remove_homes_apart(&self, home: &Path, moved: Option<PathBuf>) -> io::Result<()> {
        moved.as_deref().map_or(Ok(()), files::remove_tree)?;
        for path in self.leftovers()? {
            if let Some(note) = HomeApart::read(&path).filter(|note| note.home == *home) {
                files::remove_tree(&note.apart)?;
                files::remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// The socket's folder inside the job's, if its path is short enough.
    pub(crate) fn inner_socket_dir(&self, attempt: Attempt) -> Option<PathBuf> {
        let inner = self.job(attempt).join("own").join("s");
        (inner.as_os_str().len() <= SOCKET_DIR_MAX_BYTES).then_some(inner)
    }

    /// What the processes of a job carry to show that this root made them. No secret: it opens nothing. But only
    /// this root can make it, so a process that claims another attempt is seen through.
    pub(crate) fn mark(&self, key: &ServerKey, attempt: Attempt) -> String {
        let inner = Sha256::digest(format!("{}\n{attempt}\n{key}", self.identity.key));
        let outer = Sha256::digest([self.identity.key.as_bytes(), &inner[..]].concat());
        format!("{}.{}", self.identity.id, files::hex(&outer[..12]))
    }

    /// Bytes that are free for the service, or `None` when that cannot be found out.
    pub(crate) fn free_bytes(&self) -> Option<u64> {
        statvfs(&self.path).ok().map(|found| found.blocks_available().saturating_mul(found.fragment_size()))
    }
}

fn check_folder(path: &Path, switches_accounts: bool) -> Result<(), String> {
    let shown = path.display();
    let found = fs::symlink_metadata(path)
        .map_err(|why| format!("the work root {shown} cannot be looked at: {why}"))?;
    if found.uid() != Uid::effective().as_raw() {
        return Err(format!(
            "the work root {shown} belongs to the account {} and not to the service",
            found.uid()
        ));
    }
    if found.mode() & 0o022 != 0 {
        return Err(format!("the work root {shown} can be written by others; chmod go-w it"));
    }
    let mount =
        statvfs(path).map_err(|why| format!("the disk of the work root {shown} cannot be asked: {why}"))?;
    if mount.flags().contains(FsFlags::ST_NOEXEC) {
        return Err(format!(
            "the work root {shown} is on a disk mounted noexec, so no agent could be started there"
        ));
    }
    if switches_accounts {
        if found.mode() & 0o001 == 0 {
            fs::set_permissions(path, fs::Permissions::from_mode(found.mode() | 0o011)).map_err(|why| {
                format!("the work root {shown} cannot be opened to the accounts of jobs: {why}")
            })?;
        }
        if let Some(told) = closed_above(path) {
            return Err(told);
        }
    }
    Ok(())
}

/// Tells of a folder above the work root that other accounts cannot pass. One that is not there yet is no problem.
pub(super) fn closed_above(work_root: &Path) -> Option<String> {
    let closed = |above: &&Path| match fs::metadata(above) {
        Ok(found) => found.mode() & 0o001 == 0,
        Err(why) => why.kind() != std::io::ErrorKind::NotFound,
    };
    let above = work_root.ancestors().skip(1).find(closed)?;
    Some(format!(
        "the accounts of jobs cannot pass {} on the way to the work root {}; chmod o+x it, or choose another work_root",
        above.display(),
        work_root.display()
    ))
}

/// Tells of a folder above the work root through which others could lead a service elsewhere.
pub(super) fn astray_above(work_root: &Path) -> Option<String> {
    let why = files::astray_above(work_root)?;
    Some(format!("on the way to the work root {} {why}", work_root.display()))
}

fn lock(root: &Path) -> Result<Flock<File>, String> {
    let shown = root.display();
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(root.join("lock"))
        .map_err(|why| format!("the work root {shown} cannot be written: {why}"))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
        format!("the work root {shown} is in use by another backend; give each site its own work_root")
    })
}

fn identity(root: &Path) -> io::Result<Identity> {
    let path = root.join("id");
    match fs::read(&path) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(why) if why.kind() == io::ErrorKind::NotFound => {
            let made = Identity { id: files::random_hex::<6>(), key: files::random_hex::<32>() };
            files::replace(&path, &serde_json::to_vec(&made)?, 0o600)?;
            Ok(made)
        }
        Err(why) => Err(why),
    }
}

impl HomeApart {
    /// `None` when the path is no such note.
    fn read(path: &Path) -> Option<Self> {
        let is_note = path.file_name()?.to_str()?.starts_with(HOME_NOTE_PREFIX);
        let text = is_note.then(|| fs::read(path).ok()).flatten()?;
        let note: Self = serde_json::from_slice(&text).ok()?;
        note.apart.file_name()?.to_str()?.starts_with(APART_PREFIX).then_some(note)
    }
}

/// Removes one leftover. What cannot be removed is in nobody's way.
pub(crate) fn clear(leftover: &Path) {
    let outer = Record::read(leftover).ok().and_then(|record| record.outer_socket_dir());
    let elsewhere = outer.or_else(|| HomeApart::read(leftover).map(|note| note.apart));
    let removed = elsewhere
        .map_or(Ok(()), |elsewhere| files::remove_tree(&elsewhere))
        .and_then(|()| files::remove_tree(leftover));
    if let Err(why) = removed {
        tracing::warn!(leftover = %leftover.display(), "what an earlier service left cannot be removed: {why}");
    }
}

/// Copies the agent under a name made of its content, so that a newer service leaves the agents of running jobs alone.
fn copy_agent(agent: &Path, bin: &Path) -> Result<PathBuf, String> {
    let content =
        fs::read(agent).map_err(|why| format!("the agent {} cannot be read: {why}", agent.display()))?;
    if content.is_empty() {
        return Err(format!("the agent {} is empty", agent.display()));
    }
    let hash = files::hex(&Sha256::digest(&content));
    let copy = bin.join(format!("glidepath-agent-{}", &hash[..12]));
    let same = fs::read(&copy).is_ok_and(|found| found == content)
        && fs::metadata(&copy).is_ok_and(|found| found.mode() & 0o777 == 0o755);
    if !same {
        files::replace(&copy, &content, 0o755)
            .map_err(|why| format!("the agent cannot be copied to {}: {why}", copy.display()))?;
    }
    Ok(copy)
}

/// Removes the agents of earlier services that no job here was made with.
fn remove_old_agents(root: &Path, current: &Path) -> io::Result<()> {
    let jobs = fs::read_dir(root.join("jobs"))?.flatten();
    let mut used: Vec<PathBuf> =
        jobs.filter_map(|job| Record::read(&job.path()).ok()).map(|job| job.agent).collect();
    used.push(current.to_owned());
    for entry in fs::read_dir(root.join("bin"))? {
        let path = entry?.path();
        if !used.contains(&path) {
            files::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use glidepath_domain::names::{HubName, RunId, ServerName, UserName};

    fn agent(folder: &Path) -> PathBuf {
        let path = folder.join("agent");
        fs::write(&path, "#!/bin/sh\n").unwrap();
        path
    }

    #[test]
    fn a_root_is_for_one_backend_and_keeps_its_identity() {
        let folder = tempfile::tempdir().unwrap();
        let (root, agent) = (folder.path().join("root"), agent(folder.path()));
        let first = WorkRoot::open(&root, &agent, false).unwrap();
        assert!(WorkRoot::open(&root, &agent, false).unwrap_err().contains("in use by another backend"));
        let id = first.id().to_owned();
        drop(first);
        assert_eq!(WorkRoot::open(&root, &agent, false).unwrap().id(), id);
    }

    #[test]
    fn a_mark_names_one_root_one_key_one_attempt() {
        let folder = tempfile::tempdir().unwrap();
        let agent = agent(folder.path());
        let one = WorkRoot::open(&folder.path().join("one"), &agent, false).unwrap();
        let two = WorkRoot::open(&folder.path().join("two"), &agent, false).unwrap();
        let key = |user| ServerKey {
            hub: HubName::parse("main").unwrap(),
            user: UserName::parse(user).unwrap(),
            server: ServerName::default(),
        };
        let attempt = |number| Attempt { run: RunId::from_parts(1, 2), number };
        let mark = one.mark(&key("ada"), attempt(1));
        assert_eq!(mark, one.mark(&key("ada"), attempt(1)));
        assert_ne!(mark, one.mark(&key("bob"), attempt(1)));
        assert_ne!(mark, one.mark(&key("ada"), attempt(2)));
        assert_ne!(mark, two.mark(&key("ada"), attempt(1)));
        assert!(!mark.contains(&one.identity.key));
    }

    #[test]
    fn a_wrong_place_is_told_in_one_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let agent = agent(folder.path());
        let told = |path: &Path, switches| WorkRoot::open(path, &agent, switches).unwrap_err();

        fs::write(folder.path().join("file"), "").unwrap();
        assert!(told(&folder.path().join("file"), false).contains("cannot be used"));

        let open = folder.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(told(&open, false).contains("can be written by others"));

        let closed = folder.path().join("closed");
        fs::create_dir(&closed).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        assert!(told(&closed.join("root"), true).contains("cannot pass"));

        let missing =
            WorkRoot::open(&folder.path().join("root"), &folder.path().join("none"), false).unwrap_err();
        assert!(missing.contains("cannot be read"));
        assert!(told(Path::new("/proc/glidepath"), false).contains("cannot be used"));
    }

    #[test]
    fn an_agent_that_was_tampered_with_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (root, agent) = (folder.path().join("root"), agent(folder.path()));
        let copy = WorkRoot::open(&root, &agent, false).unwrap().agent;
        fs::write(&copy, "evil").unwrap();
        let again = WorkRoot::open(&root, &agent, false).unwrap().agent;
        assert_eq!((again == copy, fs::read(&copy).unwrap()), (true, fs::read(&agent).unwrap()));
    }

    #[test]
    fn agents_stay_while_a_job_was_made_with_them() {
        let folder = tempfile::tempdir().unwrap();
        let (root, agent) = (folder.path().join("root"), agent(folder.path()));
        let first = WorkRoot::open(&root, &agent, false).unwrap().agent;
        let job = Record { agent: first.clone(), ..super::super::render::tests::record() };
        fs::create_dir(root.join("jobs/one")).unwrap();
        job.write(&root.join("jobs/one")).unwrap();
        fs::write(&agent, "newer").unwrap();
        let second = WorkRoot::open(&root, &agent, false).unwrap().agent;
        assert!(first != second && first.exists());
        fs::remove_dir_all(root.join("jobs/one")).unwrap();
        WorkRoot::open(&root, &agent, false).unwrap();
        assert!(!first.exists() && second.exists());
    }
}
