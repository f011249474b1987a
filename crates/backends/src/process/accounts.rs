//! Under which account a user's servers run. Never root.
//!
//! In: a server's key. Out: an account, or the reason why there is none. Accounts from a range are remembered in a
//! book, a file that several backends of one service may share; a number is never given to a second user.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use glidepath_domain::backend::BackendError;
use glidepath_domain::names::ServerKey;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use serde::{Deserialize, Serialize};
use std::ffi::CString;

use super::config::{Accounts, account_name};
use super::{files, homes};

/// Lowest number of people's accounts: below live the system's own, which a Hub's user of the same name is not.
const PEOPLE_FROM: u32 = 1_000;
/// The system's again: what Debian and systemd keep for packages and services, `nobody`, and the end of 16 bits. Above live
/// people again, those of a directory.
const SYSTEM_AGAIN: std::ops::RangeInclusive<u32> = 60_000..=65_535;

/// Under which account a job runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Further groups.
    pub(crate) groups: Vec<u32>,
    /// For `USER` and for people.
    pub(crate) name: String,
    /// The account's own home, when it has one.
    pub(crate) home: Option<PathBuf>,
    /// False when it is the account of the service: then nothing is given away and nobody is become.
    pub(crate) switch: bool,
}

/// The accounts of a site.
#[derive(Debug)]
pub(crate) struct AccountBook {
    rule: Accounts,
    path: PathBuf,
}

/// The book as it is written. Users are `hub.user`, escaped.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Book {
    /// Accounts from the range, by user.
    #[serde(default)]
    range: BTreeMap<String, u32>,
    /// The one user that the shared account is for, when it is for one.
    #[serde(default)]
    sole_user: Option<String>,
}

impl AccountBook {
    pub(crate) fn new(rule: Accounts, path: PathBuf) -> Self {
        Self { rule, path }
    }

    /// The account of this key's user. The same user gets the same one for ever.
    pub(crate) fn account(&self, key: &ServerKey) -> Result<Account, BackendError> {
        let refused = |why: String| Err(BackendError::Refused(why));
        match &self.rule {
            Accounts::User => {
                let account = named(key.user.as_str())?;
                if account.uid < PEOPLE_FROM || SYSTEM_AGAIN.contains(&account.uid) {
                    return refused(format!(
                        "{} is an account of the system here; an operator can name it in accounts.map",
                        account.name
                    ));
                }
                Ok(account)
            }
            Accounts::Map(map) => match map.get(key.user.as_str()) {
                Some(account) => named(account),
                None => refused(format!("the user {} has no account at this site", key.user)),
            },
            Accounts::Range { first, count } => {
                let uid = self.uid_of(&book_name(key), *first, *count)?;
                let name = homes::slug(key.user.as_str());
                Ok(Account { uid, gid: uid, groups: Vec::new(), name, home: None, switch: true })
            }
            Accounts::Shared { several_users } => {
                if !several_users {
                    self.only(&book_name(key))?;
                }
                let (uid, gid) = (Uid::effective(), Gid::effective());
                if uid.is_root() {
                    return refused("no server runs as root".to_owned());
                }
                let (uid, gid, name) = (uid.as_raw(), gid.as_raw(), account_name(uid));
                Ok(Account { uid, gid, groups: Vec::new(), name, home: None, switch: false })
            }
        }
    }

    fn uid_of(&self, user: &str, first: u32, count: u32) -> Result<u32, BackendError> {
        self.with_book(|book| {
            if let Some(uid) = book.range.get(user) {
                return Ok((*uid, false));
            }
            let taken: std::collections::BTreeSet<u32> = book.range.values().copied().collect();
            let free =
                (first..first.saturating_add(count)).find(|uid| !taken.contains(uid) && !is_known(*uid));
            let Some(uid) = free else {
                let why = format!(
                    "all {count} accounts of the range are given away; an operator can widen accounts.count"
                );
                return Err(BackendError::Refused(why));
            };
            book.range.insert(user.to_owned(), uid);
            Ok((uid, true))
        })
    }

    fn only(&self, user: &str) -> Result<(), BackendError> {
        self.with_book(|book| match &book.sole_user {
            Some(sole) if sole == user => Ok(((), false)),
            Some(_) => {
                let why = "servers of another user run under the only account of this site; an operator can set \
                           allow_shared_account = true";
                Err(BackendError::Refused(why.to_owned()))
            }
            None => {
                book.sole_user = Some(user.to_owned());
                Ok(((), true))
            }
        })
    }

    /// Reads the book, lets `act` change it, and writes it when `act` says so: one at a time on this machine.
    fn with_book<T>(
        &self,
        act: impl FnOnce(&mut Book) -> Result<(T, bool), BackendError>,
    ) -> Result<T, BackendError> {
        let trouble = |why: io::Error| {
            BackendError::Refused(format!(
                "the book of accounts {} cannot be used: {why}",
                self.path.display()
            ))
        };
        let _alone = self.lock().map_err(trouble)?;
        let mut book = read(&self.path).map_err(trouble)?;
        let (result, changed) = act(&mut book)?;
        if changed {
            let text = serde_json::to_vec_pretty(&book).map_err(|why| trouble(why.into()))?;
            files::replace(&self.path, &text, 0o600).map_err(trouble)?;
        }
        Ok(result)
    }

    fn lock(&self) -> io::Result<Flock<File>> {
        let path = self.path.with_extension("lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, why)| why.into())
    }
}

fn read(path: &Path) -> io::Result<Book> {
    match fs::read(path) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(Book::default()),
        Err(why) => Err(why),
    }
}

fn named(name: &str) -> Result<Account, BackendError> {
    let user = match User::from_name(name) {
        Ok(Some(user)) => user,
        Ok(None) => return Err(BackendError::Refused(format!("there is no account {name} on this machine"))),
        Err(why) => {
            return Err(BackendError::Unknown(format!("the account {name} cannot be looked up: {why}")));
        }
    };
    if let Some(why) = unfit(&user) {
        return Err(BackendError::Refused(format!("the account {name} {why}")));
    }
    let groups = groups_of(&user)
        .map_err(|why| BackendError::Unknown(format!("the groups of {name} cannot be looked up: {why}")))?;
    let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
    Ok(Account { uid, gid, groups, name: user.name, home: Some(user.dir), switch: true })
}

/// Why no server may run under this account, as the end of a sentence.
pub(crate) fn unfit(user: &User) -> Option<&'static str> {
    if user.uid.is_root() {
        Some("is root, and no server runs as root")
    } else if user.gid.as_raw() == 0 {
        Some("has root's group for its own, and no server runs with that")
    } else {
        None
    }
}

fn groups_of(user: &User) -> Result<Vec<u32>, Errno> {
    let name = CString::new(user.name.as_bytes()).map_err(|_| Errno::EINVAL)?;
    Ok(getgrouplist(&name, user.gid)?.into_iter().map(Gid::as_raw).collect())
}

/// True when the number has a name here, or when that cannot be found out.
fn is_known(number: u32) -> bool {
    !matches!(User::from_uid(Uid::from_raw(number)), Ok(None))
        || !matches!(Group::from_gid(Gid::from_raw(number)), Ok(None))
}

fn book_name(key: &ServerKey) -> String {
    format!("{}.{}", homes::slug(key.hub.as_str()), homes::slug(key.user.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use glidepath_domain::names::{HubName, ServerName, UserName};

    fn key(hub: &str, user: &str) -> ServerKey {
        ServerKey {
            hub: HubName::parse(hub).unwrap(),
            user: UserName::parse(user).unwrap(),
            server: ServerName::default(),
        }
    }

    fn range(folder: &Path, first: u32, count: u32) -> AccountBook {
        AccountBook::new(Accounts::Range { first, count }, folder.join("accounts.json"))
    }

    #[test]
    fn a_user_keeps_the_account_and_nobody_else_gets_it() {
        let folder = tempfile::tempdir().unwrap();
        let here = range(folder.path(), 71_000, 3);
        let ada = here.account(&key("main", "ada")).unwrap();
        let bob = here.account(&key("main", "bob")).unwrap();
        let other_ada = range(folder.path(), 71_000, 3).account(&key("second", "ada")).unwrap();
        assert_eq!((ada.uid, bob.uid, other_ada.uid), (71_000, 71_001, 71_002));
        assert_eq!(range(folder.path(), 71_000, 3).account(&key("main", "ada")).unwrap(), ada);
        let full = here.account(&key("main", "cy")).unwrap_err();
        assert!(matches!(full, BackendError::Refused(why) if why.contains("accounts.count")));
    }

    #[test]
    fn two_backends_with_one_book_give_every_user_another_account() {
        let folder = tempfile::tempdir().unwrap();
        let all: Vec<u32> = std::thread::scope(|scope| {
            let ask = |site: u32| {
                let book = range(folder.path(), 71_000, 100);
                move || -> Vec<u32> {
                    (0..8)
                        .map(|n| book.account(&key("main", &format!("user{site}-{n}"))).unwrap().uid)
                        .collect()
                }
            };
            let sites: Vec<_> = (0..4).map(|site| scope.spawn(ask(site))).collect();
            sites.into_iter().flat_map(|site| site.join().unwrap()).collect()
        });
        let apart: std::collections::BTreeSet<u32> = all.iter().copied().collect();
        assert_eq!((all.len(), apart.len()), (32, 32));
    }

    #[test]
    fn numbers_that_have_a_name_here_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let nobody = User::from_name("nobody").unwrap().unwrap().uid.as_raw();
        let account = range(folder.path(), nobody, 5).account(&key("main", "ada")).unwrap();
        assert_ne!(account.uid, nobody);
    }

    #[test]
    fn a_damaged_book_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("accounts.json"), "{oops").unwrap();
        assert!(range(folder.path(), 71_000, 5).account(&key("main", "ada")).is_err());
        assert_eq!(fs::read(folder.path().join("accounts.json")).unwrap(), b"{oops");
    }

    #[test]
    fn users_without_an_account_are_refused_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let book = |rule| AccountBook::new(rule, folder.path().join("accounts.json"));
        let told = |rule, user: &str| match book(rule).account(&key("main", user)) {
            Err(BackendError::Refused(why)) => why,
            other => format!("{other:?}"),
        };
        assert!(told(Accounts::User, "no-such-user-here").contains("there is no account"));
        assert!(told(Accounts::User, "root").contains("root"));
        assert!(told(Accounts::User, "daemon").contains("account of the system"));
        assert!(told(Accounts::User, "nobody").contains("account of the system"));
        assert!(told(Accounts::Map(BTreeMap::new()), "ada").contains("has no account at this site"));
    }

    #[test]
    fn an_account_with_roots_number_or_group_is_unfit() {
        let nobody = User::from_name("nobody").unwrap().unwrap();
        assert_eq!(unfit(&nobody), None);
        assert!(unfit(&User { gid: Gid::from_raw(0), ..nobody.clone() }).unwrap().contains("group"));
        assert!(unfit(&User { uid: Uid::from_raw(0), ..nobody }).unwrap().contains("is root"));
    }

    #[test]
    fn the_shared_account_is_for_one_user_unless_several_are_allowed() {
        let folder = tempfile::tempdir().unwrap();
        let book =
            AccountBook::new(Accounts::Shared { several_users: false }, folder.path().join("accounts.json"));
        book.only("main.ada").unwrap();
        book.only("main.ada").unwrap();
        assert!(
            matches!(book.only("main.bob"), Err(BackendError::Refused(why)) if why.contains("allow_shared_account"))
        );
    }
}
