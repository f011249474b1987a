//! What the operator writes about a process site, and what the backend may use of it.
//!
//! In: the table `[site.process]` and what is given from around it. Out: a [`ProcessConfig`], or every problem with
//! its key and a remedy. Looks at the account database and at who runs the service; makes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use glidepath_domain::site::Reach;
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{Uid, User};
use serde::Deserialize;

use super::accounts::unfit;
use super::homes::HomeTemplate;
use super::root::{astray_above, closed_above};

/// First account of a range when the operator names none: above what distributions give to people and daemons,
/// below the usual ranges of subordinate ids.
const RANGE_FIRST: u32 = 70_000;
/// Accounts in a range when the operator names no number.
const RANGE_COUNT: u32 = 20_000;
/// Lowest first account of a range: below live the system's own.
const RANGE_LOWEST: u32 = 1_000;
/// Processes and threads of one job when the operator names no number.
const PROCESSES_MAX: u32 = 4_096;
/// Where programs are found when the service itself has no `PATH`.
const PATH_FALLBACK: &str = "/usr/local/bin:/usr/bin:/bin";
/// Variables that may be given to jobs for their way out.
const PROXY_VARIABLES: [&str; 6] =
    ["HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"];

/// The table `[site.process]` as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessFile {
    /// Folder of everything that the backend makes. One backend has it for itself.
    pub work_root: PathBuf,
    /// Where users' files are kept, with `{hub}` and `{user}`. Default: `<work_root>/homes/{hub}/{user}`, and the
    /// account's own home in mode `user`.
    #[serde(default)]
    pub homes: Option<String>,
    /// Under which account a user's servers run. Default: `range` when the service is root, else `shared`.
    #[serde(default)]
    pub accounts: Option<AccountsFile>,
    /// Lets servers of more than one user run under one account.
    #[serde(default)]
    pub allow_shared_account: bool,
    /// Jobs that run at once; absent is no limit.
    #[serde(default)]
    pub slots: Option<u32>,
    /// Seconds that every job waits before it may start.
    #[serde(default)]
    pub queue_delay_s: u32,
    /// A network namespace that jobs join, as `ip netns` names it: `/run/netns/NAME`.
    #[serde(default)]
    pub network_namespace: Option<PathBuf>,
    /// Whether cgroups limit the jobs.
    #[serde(default)]
    pub cgroup: CgroupUse,
    /// The cgroup below which jobs get theirs, as a path below the mount of the hierarchy: `machine.slice`.
    #[serde(default)]
    pub cgroup_parent: Option<PathBuf>,
    /// Processes and threads that one job may have. Default: 4096.
    #[serde(default)]
    pub processes_max: Option<u32>,
    /// `PATH` of the jobs. Default: the service's own.
    #[serde(default)]
    pub path: Option<String>,
    /// `LANG` of the jobs. Default: `C.UTF-8`.
    #[serde(default)]
    pub lang: Option<String>,
    /// Variables that name the proxy on the way out (`HTTPS_PROXY`, `NO_PROXY`, `ALL_PROXY`, in either case).
    /// Everybody with an account can see them, so they hold no password.
    #[serde(default)]
    pub proxy: BTreeMap<String, String>,
}

/// Under which account a user's servers run.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "mode", rename_all = "lowercase", deny_unknown_fields)]
pub enum AccountsFile {
    /// The account of the same name.
    User {},
    /// The account that this map names, by user.
    Map {
        /// User of the Hub to account of this machine.
        map: BTreeMap<String, String>,
    },
    /// An account without a name of the user's own, from a range of numbers.
    Range {
        /// The first number.
        #[serde(default)]
        first: Option<u32>,
        /// How many.
        #[serde(default)]
        count: Option<u32>,
    },
    /// The account of the service.
    Shared {},
}

/// Whether cgroups limit the jobs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupUse {
    /// Must: without one the backend does not start.
    On,
    /// Where it is possible, otherwise process limits.
    #[default]
    Auto,
    /// Never: process limits.
    Off,
}

/// What the site's table does not say itself.
#[derive(Debug, Clone)]
pub struct Given {
    /// The agent's binary for this machine.
    pub agent: PathBuf,
    /// The site's reach.
    pub reach: Reach,
    /// The file that remembers which user has which account. All process sites of a service share one, so that no
    /// two users get the same. `None`: a file in the work root.
    pub account_book: Option<PathBuf>,
    /// Whether more than one Hub uses the service: then a user's name alone tells nobody apart.
    pub several_hubs: bool,
}

/// A checked site. Only [`check`] makes one.
#[derive(Debug, Clone)]
pub struct ProcessConfig {
    pub(crate) work_root: PathBuf,
    pub(crate) homes: HomeTemplate,
    pub(crate) accounts: Accounts,
    /// Users of the same name of two Hubs share an account, as the operator allowed.
    pub(crate) hubs_share: bool,
    pub(crate) account_book: PathBuf,
    pub(crate) slots: Option<u32>,
    pub(crate) queue_delay_s: u32,
    pub(crate) network_namespace: Option<PathBuf>,
    pub(crate) cgroup: CgroupUse,
    pub(crate) cgroup_parent: Option<PathBuf>,
    pub(crate) processes_max: u32,
    pub(crate) agent: PathBuf,
    pub(crate) reach: Reach,
    /// `PATH`, `LANG` and the proxy's variables.
    pub(crate) environment: BTreeMap<String, String>,
    /// Soft and hard limit of open files of a job: what this process has now. A service that raises its own later
    /// does not pass that on, as programs that use `select` or close every number suffer from a high one.
    pub(crate) open_files: Option<(u64, u64)>,
}

/// Which account a user's servers get, checked against who runs the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Accounts {
    User,
    Map(BTreeMap<String, String>),
    Range { first: u32, count: u32 },
    Shared { several_users: bool },
}

impl ProcessConfig {
    /// What an operator should know although nothing is wrong: one sentence each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut told = Vec::new();
        match &self.accounts {
            Accounts::Shared { several_users } => {
                let rule = if *several_users {
                    "allow_shared_account lets servers of several users run side by side"
                } else {
                    "so only the first user gets servers, until allow_shared_account = true"
                };
                told.push(format!(
                    "users are not isolated from each other at this site: all servers run under the account of the \
                     service ({}), {rule}",
                    account_name(Uid::effective())
                ));
            }
            Accounts::Map(map) => {
                let mut seen = BTreeSet::new();
                for account in map.values() {
                    if !seen.insert(account) {
                        told.push(format!(
                            "users are not isolated from each other where accounts.map gives them one account: {account}"
                        ));
                    }
                }
            }
            Accounts::User | Accounts::Range { .. } => {}
        }
        if self.hubs_share {
            told.push(
                "users of the same name of two Hubs are not isolated from each other at this site: \
                 allow_shared_account gives them one account"
                    .to_owned(),
            );
        }
        told
    }

    /// What this machine lacks for it at present, as key and sentence. Changes nothing.
    #[must_use]
    pub fn lacks(&self) -> Vec<(String, String)> {
        let mut told = Vec::new();
        if let Some(namespace) = self.network_namespace.as_ref().filter(|namespace| !namespace.exists()) {
            told.push((
                "network_namespace".to_owned(),
                format!("there is no network namespace {}", namespace.display()),
            ));
        }
        if let Some(there) = self.work_root.ancestors().find(|dir| dir.exists()) {
            let writable =
                nix::unistd::access(there, nix::unistd::AccessFlags::W_OK | nix::unistd::AccessFlags::X_OK);
            if !there.is_dir() {
                told.push(("work_root".to_owned(), format!("{} is no folder", there.display())));
            } else if let Err(why) = writable {
                told.push((
                    "work_root".to_owned(),
                    format!("cannot write in {}: {}", there.display(), why.desc()),
                ));
            }
        }
        if self.switches_accounts() {
            told.extend(closed_above(&self.work_root).map(|why| ("work_root".to_owned(), why)));
            told.extend(astray_above(&self.work_root).map(|why| ("work_root".to_owned(), why)));
            told.extend(self.homes.astray().map(|why| ("homes".to_owned(), why)));
        }
        told
    }

    /// True when jobs run under other accounts than the service.
    pub(crate) fn switches_accounts(&self) -> bool {
        !matches!(self.accounts, Accounts::Shared { .. })
    }
}

/// Checks a table. Reports every problem, as its key and a sentence with the remedy.
///
/// # Errors
/// The problems, when there are some.
pub fn check(file: ProcessFile, given: &Given) -> Result<ProcessConfig, Vec<(String, String)>> {
    let root = Uid::effective().is_root();
    let mut problems: Vec<(String, String)> = Vec::new();
    let mut told = |key: &str, sentence: String| problems.push((key.to_owned(), sentence));

    if !plain_absolute(&file.work_root) || file.work_root == Path::new("/") {
        told("work_root", format!("{:?} is not an absolute path of a folder without ..", file.work_root));
    }
    let accounts = match check_accounts(file.accounts, file.allow_shared_account, root) {
        Ok(accounts) => Some(accounts),
        Err((key, sentence)) => {
            told(key, sentence);
            None
        }
    };
    let default_homes = match &accounts {
        Some(Accounts::User) => HomeTemplate::Account,
        _ => HomeTemplate::Path(format!("{}/homes/{{hub}}/{{user}}", file.work_root.display())),
    };
    let homes = match file.homes.as_deref().map(HomeTemplate::parse) {
        None => Some(default_homes),
        Some(Ok(template)) => Some(template),
        Some(Err(why)) => {
            told("homes", why);
            None
        }
    };
    let names_alone = matches!(accounts, Some(Accounts::User | Accounts::Map(_)));
    let hubs_mixed = given.several_hubs && !file.allow_shared_account;
    if names_alone && hubs_mixed {
        let why = "modes user and map know users by name, so that users of the same name of two Hubs would share an \
                   account; use mode range, or allow_shared_account = true";
        told("accounts", why.to_owned());
    }
    if let Some(HomeTemplate::Path(template)) = &homes
        && !template.contains("{hub}")
        && hubs_mixed
    {
        let why = format!(
            "{template:?} has no {{hub}} in it, so that users of the same name of two Hubs would share a home; put \
             {{hub}} in it, or set allow_shared_account = true"
        );
        told("homes", why);
    }
    if file.slots == Some(0) {
        told("slots", "0 slots would never start anything; leave the key out for no limit".to_owned());
    }
    if let Some(namespace) = &file.network_namespace {
        if !plain_absolute(namespace) {
            told(
                "network_namespace",
                format!("{namespace:?} is not an absolute path such as /run/netns/NAME"),
            );
        }
        if !root {
            told(
                "network_namespace",
                "only a service that runs as root can join a network namespace".to_owned(),
            );
        }
    }
    if let Some(parent) = &file.cgroup_parent {
        let plain = parent.components().all(|part| matches!(part, Component::Normal(_) | Component::RootDir));
        if !plain {
            told("cgroup_parent", format!("{parent:?} has a . or .. in it"));
        }
    }
    if file.processes_max.is_some_and(|max| max < 16) {
        told("processes_max", "a server with its kernels needs at least 16 processes and threads".to_owned());
    }
    for (name, value) in &file.proxy {
        if !PROXY_VARIABLES.contains(&name.as_str()) {
            told("proxy", format!("{name} is not one of {}", PROXY_VARIABLES.join(", ")));
        }
        if value.contains('@') {
            told(
                "proxy",
                format!("{name} holds a user or password, which everybody on the machine could read"),
            );
        }
    }
    if !given.agent.is_absolute() {
        told("agent", format!("{:?} is not an absolute path", given.agent));
    }

    let (Some(accounts), Some(homes), true) = (accounts, homes, problems.is_empty()) else {
        return Err(problems);
    };
    let path = file.path.or_else(|| std::env::var("PATH").ok()).unwrap_or_else(|| PATH_FALLBACK.to_owned());
    let lang = file.lang.unwrap_or_else(|| "C.UTF-8".to_owned());
    let mut environment = file.proxy;
    environment.extend([("PATH".to_owned(), path), ("LANG".to_owned(), lang)]);
    Ok(ProcessConfig {
        account_book: given.account_book.clone().unwrap_or_else(|| file.work_root.join("accounts.json")),
        work_root: file.work_root,
        homes,
        accounts,
        hubs_share: names_alone && given.several_hubs,
        slots: file.slots,
        queue_delay_s: file.queue_delay_s,
        network_namespace: file.network_namespace,
        cgroup: file.cgroup,
        cgroup_parent: file.cgroup_parent,
        processes_max: file.processes_max.unwrap_or(PROCESSES_MAX),
        agent: given.agent.clone(),
        reach: given.reach,
        environment,
        open_files: getrlimit(Resource::RLIMIT_NOFILE).ok(),
    })
}

fn check_accounts(
    file: Option<AccountsFile>,
    several_users: bool,
    root: bool,
) -> Result<Accounts, (&'static str, String)> {
    let own = |mode| {
        let why =
            format!("mode {mode} needs a service that runs as root; use mode shared, or run it as root");
        if root { Ok(()) } else { Err(("accounts", why)) }
    };
    match file {
        None if root => Ok(Accounts::Range { first: RANGE_FIRST, count: RANGE_COUNT }),
        Some(AccountsFile::Shared {}) if root => {
            let why = "mode shared would run servers as root; use mode user, map or range, or run the service under \
                       another account";
            Err(("accounts", why.to_owned()))
        }
        None | Some(AccountsFile::Shared {}) => Ok(Accounts::Shared { several_users }),
        Some(AccountsFile::User {}) => own("user").map(|()| Accounts::User),
        Some(AccountsFile::Map { map }) => {
            own("map")?;
            check_map(map, several_users)
        }
        Some(AccountsFile::Range { first, count }) => {
            own("range")?;
            let (first, count) = (first.unwrap_or(RANGE_FIRST), count.unwrap_or(RANGE_COUNT));
            // The two highest numbers mean "nobody" and "no change" to the kernel.
            let fits = first >= RANGE_LOWEST
                && count > 0
                && first.checked_add(count).is_some_and(|end| end < u32::MAX - 1);
            if fits {
                Ok(Accounts::Range { first, count })
            } else {
                let why = format!(
                    "first must be at least {RANGE_LOWEST}, count at least 1, and the range end below 2^32 - 2"
                );
                Err(("accounts.first", why))
            }
        }
    }
}

fn check_map(map: BTreeMap<String, String>, several_users: bool) -> Result<Accounts, (&'static str, String)> {
    const KEY: &str = "accounts.map";
    let mut seen = BTreeSet::new();
    for (user, account) in &map {
        match User::from_name(account) {
            Ok(Some(found)) => {
                if let Some(why) = unfit(&found) {
                    return Err((KEY, format!("{user:?} is mapped to {account:?}, which {why}")));
                }
            }
            Ok(None) => {
                return Err((
                    KEY,
                    format!("{user:?} is mapped to {account:?}, and there is no such account here"),
                ));
            }
            Err(why) => return Err((KEY, format!("the account {account:?} cannot be looked up: {why}"))),
        }
        if !seen.insert(account) && !several_users {
            let why = format!(
                "more than one user is mapped to {account:?}; that needs allow_shared_account = true"
            );
            return Err((KEY, why));
        }
    }
    Ok(Accounts::Map(map))
}

/// The name of an account for people; its number when it has none.
pub(crate) fn account_name(uid: Uid) -> String {
    match User::from_uid(uid) {
        Ok(Some(user)) => user.name,
        Ok(None) | Err(_) => uid.to_string(),
    }
}

pub(crate) fn plain_absolute(path: &Path) -> bool {
    path.is_absolute()
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given() -> Given {
        let agent = PathBuf::from("/opt/glidepath-agent");
        Given { agent, reach: Reach::Direct, account_book: None, several_hubs: false }
    }

    fn file(toml: &str) -> ProcessFile {
        toml::from_str(toml).unwrap()
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let bad = file(
            r#"
            work_root = "relative"
            homes = "/data/everybody"
            slots = 0
            cgroup_parent = "../up"
            processes_max = 1
            proxy = { HTTPS_PROXY = "http://me:secret@proxy:3128", LD_PRELOAD = "x" }
            "#,
        );
        let keys: Vec<String> = check(bad, &given()).unwrap_err().into_iter().map(|(key, _)| key).collect();
        let all = ["work_root", "homes", "slots", "cgroup_parent", "processes_max", "proxy", "proxy"];
        assert_eq!(keys, all);
    }

    #[test]
    fn a_closed_folder_above_the_work_root_is_lacking_what_jobs_need() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let text = format!("work_root = '{}/new/jobs'", folder.path().display());
        let told = |accounts| ProcessConfig { accounts, ..check(file(&text), &given()).unwrap() }.lacks();
        let of_others = told(Accounts::User);
        assert_eq!(of_others.len(), 1);
        assert!(of_others[0].0 == "work_root" && of_others[0].1.contains("chmod o+x"), "{of_others:?}");
        assert_eq!(told(Accounts::Shared { several_users: true }), []);
    }

    #[test]
    fn unknown_keys_are_refused() {
        for toml in [
            "work_root = '/w'\nworkroot = '/w'",
            "work_root = '/w'\naccounts = { mode = 'user', first = 3 }",
            "work_root = '/w'\naccounts = { mode = 'root' }",
            "work_root = '/w'\ncgroup = 'maybe'",
        ] {
            assert!(toml::from_str::<ProcessFile>(toml).is_err(), "{toml}");
        }
    }

    #[test]
    fn no_server_runs_as_root() {
        let shared = check_accounts(Some(AccountsFile::Shared {}), true, true);
        assert!(shared.unwrap_err().1.contains("would run servers as root"));
        let map = BTreeMap::from([("ada".to_owned(), "root".to_owned())]);
        assert!(check_map(map, true).unwrap_err().1.contains("which is root"));
        let low = AccountsFile::Range { first: Some(0), count: Some(10) };
        assert!(check_accounts(Some(low), false, true).is_err());
        let wrapped = AccountsFile::Range { first: Some(u32::MAX - 5), count: Some(10) };
        assert!(check_accounts(Some(wrapped), false, true).is_err());
    }

    #[test]
    fn without_privilege_only_the_shared_account_is_left() {
        assert_eq!(check_accounts(None, false, false).unwrap(), Accounts::Shared { several_users: false });
        assert!(check_accounts(Some(AccountsFile::User {}), false, false).is_err());
        assert!(
            check_accounts(Some(AccountsFile::Range { first: None, count: None }), false, false).is_err()
        );
        let default = Accounts::Range { first: RANGE_FIRST, count: RANGE_COUNT };
        assert_eq!(check_accounts(None, false, true).unwrap(), default);
    }

    #[test]
    fn users_of_the_same_name_of_two_hubs_share_nothing_unless_it_is_meant() {
        let two = Given { several_hubs: true, ..given() };
        let told = |toml: &str, given: &Given| -> Vec<String> {
            let checked = check(file(&format!("work_root = '/w'\n{toml}")), given);
            checked
                .err()
                .into_iter()
                .flatten()
                .filter(|(_, why)| why.contains("two Hubs"))
                .map(|told| told.0)
                .collect()
        };
        let mapped = "accounts = { mode = 'map', map = { ada = 'nobody' } }";
        if Uid::effective().is_root() {
            assert_eq!(told(mapped, &two), ["accounts"]);
            assert_eq!(told("accounts = { mode = 'user' }", &two), ["accounts"]);
        }
        assert_eq!(told("homes = '/data/{user}'", &two), ["homes"]);
        for meant in
            ["", "homes = '/data/{hub}/{user}'", "homes = '/data/{user}'\nallow_shared_account = true"]
        {
            assert_eq!(told(meant, &two), [""; 0], "{meant}");
        }
        assert_eq!(told(&format!("{mapped}\nhomes = '/data/{{user}}'"), &given()), [""; 0]);
        let shared = ProcessConfig { hubs_share: true, ..check(file("work_root = '/w'"), &given()).unwrap() };
        assert!(shared.warnings().iter().any(|told| told.contains("two Hubs are not isolated")));
    }

    #[test]
    fn one_account_for_two_users_must_be_meant() {
        let map = || {
            BTreeMap::from([("ada".to_owned(), "nobody".to_owned()), ("bob".to_owned(), "nobody".to_owned())])
        };
        assert!(check_map(map(), false).unwrap_err().1.contains("allow_shared_account"));
        assert!(check_map(map(), true).is_ok());
    }
}
