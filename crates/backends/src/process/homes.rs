//! Where a user's files are kept.
//!
//! In: the operator's template and a server's key. Out: a folder that belongs to the user's account, or its removal.
//! Two users never get the same path, and no name can leave the place that the template gives it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use glidepath_domain::backend::BackendError;
use glidepath_domain::names::ServerKey;
use sha2::{Digest, Sha256};

use super::accounts::Account;
use super::config::plain_absolute;
use super::files;

/// Longest slug that is a name written out; longer ones are shortened and carry a hash.
const SLUG_PLAIN_MAX: usize = 100;
/// Readable characters of a shortened slug.
const SLUG_HEAD: usize = 60;

/// Where homes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HomeTemplate {
    /// The account's own, from the account database. Never made or removed here.
    Account,
    /// A path with `{user}`, and `{hub}` where several Hubs use the site.
    Path(String),
}

impl HomeTemplate {
    /// Accepts an absolute path that has `{user}` in it, and no braces but `{user}` and `{hub}`.
    pub(crate) fn parse(raw: &str) -> Result<Self, String> {
        let plain = raw.replace("{user}", "u").replace("{hub}", "h");
        if !raw.contains("{user}") {
            Err(format!("{raw:?} has no {{user}} in it, so all users would share one home"))
        } else if mixes_names(raw) {
            Err(format!(
                "{raw:?} has {{hub}} and {{user}} side by side, so two users could share one home: put a / or a . between"
            ))
        } else if plain.contains(['{', '}']) {
            Err(format!("{raw:?} has braces other than {{user}} and {{hub}}"))
        } else if plain_absolute(Path::new(&plain)) {
            Ok(Self::Path(raw.to_owned()))
        } else {
            Err(format!("{raw:?} is not an absolute path without .."))
        }
    }

    /// The home of this user under this account.
    pub(crate) fn render(&self, key: &ServerKey, account: &Account) -> Result<PathBuf, BackendError> {
        match self {
            Self::Path(template) => Ok(fill_in(template, key)),
            Self::Account => account.home.clone().ok_or_else(|| {
                BackendError::Refused(format!("the account {} has no home of its own", account.name))
            }),
        }
    }

    /// Tells of a folder on the way to all homes through which others could lead the service elsewhere.
    pub(crate) fn astray(&self) -> Option<String> {
        let Self::Path(template) = self else { return None };
        let fixed = template.split('{').next().unwrap_or_default();
        let why = files::astray_above(&Path::new(fixed).join("home"))?;
        Some(format!("on the way to homes {why}"))
    }

    /// The home of this user, if it is one that was made here.
    pub(crate) fn removable(&self, key: &ServerKey) -> Result<PathBuf, BackendError> {
        match self {
            Self::Path(template) => Ok(fill_in(template, key)),
            Self::Account => {
                let why =
                    format!("the home of {} is the account's own and is not removed from here", key.user);
                Err(BackendError::Refused(why))
            }
        }
    }
}

/// True when nothing that no slug holds stands between two placeholders: `a-b` and `c`, or `a` and `b-c`?
fn mixes_names(template: &str) -> bool {
    let mut between = template.split(['{', '}']).skip(2).step_by(2).collect::<Vec<_>>();
    between.pop(); // what follows the last one
    between.iter().any(|text| text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'))
}

fn fill_in(template: &str, key: &ServerKey) -> PathBuf {
    let (hub, user) = (slug(key.hub.as_str()), slug(key.user.as_str()));
    PathBuf::from(template.replace("{hub}", &hub).replace("{user}", &user))
}

/// A name as one path component. Two names never give the same one.
///
/// Letters, digits and `-` stand for themselves; every other byte is `_` and two hexadecimal digits, so neither `/`
/// nor `.` nor `..` survives. What would be longer than 100 characters is cut and ends in `__` and a hash, which no
/// name written out can.
pub(crate) fn slug(name: &str) -> String {
    let mut out = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("_{byte:02x}"));
        }
    }
    if out.len() > SLUG_PLAIN_MAX {
        out.truncate(SLUG_HEAD);
        out.push_str("__");
        out.push_str(&files::hex(&Sha256::digest(name))[..32]);
    }
    out
}

/// Makes sure that the home is there and belongs to the account. Keeps what is in it.
pub(crate) fn ensure(template: &HomeTemplate, home: &Path, account: &Account) -> Result<(), BackendError> {
    let refused = |why: String| BackendError::Refused(why);
    // The account's own home is entered under that account, whatever leads there.
    let looked = match template {
        HomeTemplate::Account => fs::metadata(home),
        HomeTemplate::Path(_) => fs::symlink_metadata(home),
    };
    match looked {
        Ok(found) if !found.is_dir() => Err(refused(format!("the home {} is not a folder", home.display()))),
        Ok(found) if found.uid() == account.uid => Ok(()),
        // A crash after making it and before giving it away; with something in it, it is somebody's.
        Ok(found) if found.uid() == 0 && *template != HomeTemplate::Account && is_empty(home) => {
            safe_ground(home, account)?;
            files::give(home, account).map_err(|why| {
                refused(format!("the home {} cannot be given to its user: {why}", home.display()))
            })
        }
        Ok(found) => Err(refused(format!(
            "the home {} belongs to the account {} and not to {} ({})",
            home.display(),
            found.uid(),
            account.name,
            account.uid
        ))),
        Err(why) if why.kind() == io::ErrorKind::NotFound && *template != HomeTemplate::Account => {
            safe_ground(home, account)?;
            make(home, account)
                .map_err(|why| refused(format!("the home {} cannot be made: {why}", home.display())))
        }
        Err(why) => Err(refused(format!("the home {} cannot be used: {why}", home.display()))),
    }
}

/// Refuses to make or remove something as root where somebody else could put a link in the way.
fn safe_ground(home: &Path, account: &Account) -> Result<(), BackendError> {
    match files::astray_above(home).filter(|_| account.switch) {
        Some(why) => Err(BackendError::Refused(format!("on the way to the home {} {why}", home.display()))),
        None => Ok(()),
    }
}

/// True when there is a home to remove and it is this account's; no link is followed. A folder of somebody else that
/// happens to lie where this user's home would be is refused.
pub(crate) fn removes(
    home: &Path,
    account: impl FnOnce() -> Result<Account, BackendError>,
) -> Result<bool, BackendError> {
    match fs::symlink_metadata(home) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(why) => Err(BackendError::Unknown(format!("the home {} cannot be used: {why}", home.display()))),
        Ok(found) => {
            let account = account()?;
            if found.uid() != account.uid && !is_empty(home) {
                return Err(BackendError::Refused(format!(
                    "the home {} belongs to the account {} and is not removed",
                    home.display(),
                    found.uid()
                )));
            }
            safe_ground(home, &account)?;
            Ok(true)
        }
    }
}

fn make(home: &Path, account: &Account) -> io::Result<()> {
    if let Some(parent) = home.parent() {
        files::make_folders(parent, 0o711)?;
    }
    match files::make_folder(home, 0o700) {
        Err(why) if why.kind() == io::ErrorKind::AlreadyExists => {}
        other => other?,
    }
    files::give(home, account)
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn templates_that_would_mix_users_are_refused() {
        for (raw, why) in [
            ("/data", "has no {user}"),
            ("data/{user}", "absolute"),
            ("/data/../{user}", "absolute"),
            ("/data/{user}/{server}", "braces"),
            ("/data/{hub}-{user}", "side by side"),
            ("/data/{user}_x_{hub}/notebooks", "side by side"),
            ("/data/{hub}{user}", "side by side"),
        ] {
            assert!(HomeTemplate::parse(raw).unwrap_err().contains(why), "{raw}");
        }
        for raw in ["/data/{hub}/{user}/notebooks", "/data/{hub}.{user}", "/data/{user}"] {
            assert!(HomeTemplate::parse(raw).is_ok(), "{raw}");
        }
    }

    #[test]
    fn a_slug_is_readable_and_harmless() {
        assert_eq!(slug("ada"), "ada");
        assert_eq!(slug("ada@example.org"), "ada_40example_2eorg");
        assert_eq!(slug(".."), "_2e_2e");
        assert_eq!(slug("a/../b"), "a_2f_2e_2e_2fb");
        assert!(slug(&"ü".repeat(255)).len() < SLUG_PLAIN_MAX);
    }

    proptest! {
        #[test]
        fn two_names_never_share_a_slug(a in "[a-zA-Z._@/ü-]{1,140}", b in "[a-zA-Z._@/ü-]{1,140}") {
            prop_assert_eq!(a == b, slug(&a) == slug(&b));
        }

        #[test]
        fn a_slug_is_one_path_component(name in ".{1,255}") {
            let slug = slug(&name);
            prop_assert!(slug.len() <= 255 && slug.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
        }
    }
}
