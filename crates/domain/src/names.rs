//! Names, each parsed once at the edge; after that the type is the proof.
//!
//! In: raw text from config, requests and batch systems. Out: a name, or a sentence that says what is wrong with it.
//! [`ServerKey`] has two encodings: a reversible one for URLs and annotations, a short one-way one for labels.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use ulid::Ulid;

/// Why a text is not the name it was meant to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {raw:?} {why}")]
pub struct BadName {
    what: &'static str,
    raw: String,
    why: &'static str,
}

/// Longest user name that is taken, in characters: what JupyterHub's own column holds.
pub const USER_NAME_MAX_CHARS: usize = 255;

/// Longest short key, in bytes: what a Kubernetes label and a DNS label hold (RFC 1123).
pub const SHORT_KEY_MAX_BYTES: usize = 63;

/// Longest reversible key, in bytes, that is parsed: three names of the greatest length, fully escaped.
const FULL_KEY_MAX_BYTES: usize = 8 * 1024;

macro_rules! slug_name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Accepts 1 to 63 of `a`-`z`, `0`-`9` and `-`; the first and the last are no `-`.
            pub fn parse(raw: &str) -> Result<Self, BadName> {
                let fits = (1..=63).contains(&raw.len())
                    && raw.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
                    && !raw.starts_with('-')
                    && !raw.ends_with('-');
                if fits {
                    Ok(Self(raw.to_owned()))
                } else {
                    let why = "must be 1 to 63 of a-z, 0-9 and -, with no - at either end";
                    Err(BadName { what: $what, raw: shortened(raw), why })
                }
            }

            /// The name as it was written.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        name_traits!($name);
    };
}

macro_rules! name_traits {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl FromStr for $name {
            type Err = BadName;
            fn from_str(raw: &str) -> Result<Self, BadName> {
                Self::parse(raw)
            }
        }
        impl TryFrom<String> for $name {
            type Error = BadName;
            fn try_from(raw: String) -> Result<Self, BadName> {
                Self::parse(&raw)
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    };
}

slug_name!(
    /// One JupyterHub that may use this service. Given by the operator.
    HubName,
    "hub name"
);
slug_name!(
    /// A place that can take servers. Given by the operator; shown to users.
    SiteName,
    "site name"
);
slug_name!(
    /// This service among all that share a batch system: every external object carries it as a label.
    InstanceId,
    "instance id"
);

/// A JupyterHub user, as the Hub writes it: `ada`, `ada@example.org`, `ünïcode`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserName(String);

impl UserName {
    /// Accepts 1 to 255 characters without control characters and without `/`, which JupyterHub refuses too.
    pub fn parse(raw: &str) -> Result<Self, BadName> {
        let why = if raw.is_empty() {
            "is empty"
        } else if raw.chars().count() > USER_NAME_MAX_CHARS {
            "is longer than 255 characters"
        } else if raw.chars().any(|c| c.is_control() || c == '/') {
            "has a control character or a /"
        } else {
            return Ok(Self(raw.to_owned()));
        };
        Err(BadName { what: "user name", raw: shortened(raw), why })
    }

    /// The name as the Hub wrote it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
name_traits!(UserName);

/// A named server of one user; empty for the default server.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServerName(String);

impl ServerName {
    /// Accepts up to 255 characters without control characters and without `/`. JupyterHub 6 allows less, 5.x as much.
    pub fn parse(raw: &str) -> Result<Self, BadName> {
        let why = if raw.chars().count() > USER_NAME_MAX_CHARS {
            "is longer than 255 characters"
        } else if raw.chars().any(|c| c.is_control() || c == '/') {
            "has a control character or a /"
        } else {
            return Ok(Self(raw.to_owned()));
        };
        Err(BadName { what: "server name", raw: shortened(raw), why })
    }

    /// The name as the Hub wrote it; empty for the default server.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True for the user's default server, which has no name.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.0.is_empty()
    }
}
name_traits!(ServerName);

/// Which server: the hub, its user and the server's name. Everything else is derived from it, nothing is looked up.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerKey {
    /// The Hub that knows the user.
    pub hub: HubName,
    /// The user whose server it is.
    pub user: UserName,
    /// Empty for the default server.
    pub server: ServerName,
}

impl ServerKey {
    /// The reversible encoding, `hub.user.server`: safe as one URL path segment, in an annotation and in a ClassAd.
    ///
    /// Letters, digits and `-` stand for themselves, every other byte of the UTF-8 form is `_` and two lower-case
    /// hexadecimal digits. The default server's part is empty, so the key ends in a dot.
    #[must_use]
    pub fn full(&self) -> String {
        let mut out = String::with_capacity(64);
        escape(self.hub.as_str(), &mut out);
        out.push('.');
        escape(self.user.as_str(), &mut out);
        out.push('.');
        escape(self.server.as_str(), &mut out);
        out
    }

    /// Reads [`ServerKey::full`] back. Only the one canonical spelling is accepted.
    pub fn parse_full(raw: &str) -> Result<Self, BadName> {
        let bad = |why| BadName { what: "server key", raw: shortened(raw), why };
        if raw.len() > FULL_KEY_MAX_BYTES {
            return Err(bad("is too long"));
        }
        let mut parts = raw.split('.');
        let (Some(hub), Some(user), Some(server), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(bad("does not have the three parts hub.user.server"));
        };
        let unescaped =
            |part| unescape(part).ok_or_else(|| bad("has a part that is not escaped as it must be"));
        Ok(Self {
            hub: HubName::parse(&unescaped(hub)?)?,
            user: UserName::parse(&unescaped(user)?)?,
            server: ServerName::parse(&unescaped(server)?)?,
        })
    }

    /// The short one-way form for labels and object names: a readable slug, `-`, and 16 characters of hash.
    ///
    /// At most [`SHORT_KEY_MAX_BYTES`] of `a`-`z`, `0`-`9` and `-`, starting with a letter. Whoever finds an object
    /// by it compares the object's full key before believing it.
    #[must_use]
    pub fn short(&self) -> String {
        const HASH_CHARS: usize = 16;
        let mut slug = String::from("s-");
        for part in [self.user.as_str(), self.server.as_str()] {
            for c in part.chars().flat_map(char::to_lowercase) {
                let c = if c.is_ascii_alphanumeric() { c } else { '-' };
                if !(c == '-' && slug.ends_with('-')) {
                    slug.push(c);
                }
            }
            if !slug.ends_with('-') {
                slug.push('-');
            }
        }
        slug.truncate(SHORT_KEY_MAX_BYTES - HASH_CHARS - 1);
        let slug = slug.trim_end_matches('-');
        format!("{slug}-{}", &base32(&Sha256::digest(self.full()))[..HASH_CHARS])
    }
}

impl fmt::Display for ServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full())
    }
}

impl Serialize for ServerKey {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.full())
    }
}

impl<'de> Deserialize<'de> for ServerKey {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let raw = String::deserialize(from)?;
        Self::parse_full(&raw).map_err(serde::de::Error::custom)
    }
}

/// One life of a server. Sorts by the time of its making.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId(Ulid);

impl RunId {
    /// A fresh run, from the time and random bits that the caller brings.
    #[must_use]
    pub fn from_parts(unix_ms: u64, random: u128) -> Self {
        Self(Ulid::from_parts(unix_ms, random))
    }

    /// A fresh run of a server whose last one is given. The later run of a server has the larger id, also when the
    /// clock was set back in between.
    #[must_use]
    pub fn after(last: Option<Self>, unix_ms: u64, random: u128) -> Self {
        let at_least = last.map_or(0, |last| last.0.timestamp_ms().saturating_add(1));
        Self::from_parts(unix_ms.max(at_least), random)
    }

    /// Reads the 26 characters of a ULID.
    pub fn parse(raw: &str) -> Result<Self, BadName> {
        let why = "is not the 26 characters of a ULID";
        Ulid::from_string(raw).map(Self).map_err(|_| BadName { what: "run", raw: shortened(raw), why })
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
impl FromStr for RunId {
    type Err = BadName;
    fn from_str(raw: &str) -> Result<Self, BadName> {
        Self::parse(raw)
    }
}
impl TryFrom<String> for RunId {
    type Error = BadName;
    fn try_from(raw: String) -> Result<Self, BadName> {
        Self::parse(&raw)
    }
}
impl From<RunId> for String {
    fn from(run: RunId) -> String {
        run.to_string()
    }
}

/// One submit of a run to one site. Only the current attempt of a run may attach, so that a late message of an older
/// one can never touch a newer one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attempt {
    /// The life that this submit belongs to.
    pub run: RunId,
    /// Counts from 1 within the run.
    pub number: u32,
}

impl Attempt {
    /// Reads the form that `Display` writes, `<ULID>-<number>`.
    pub fn parse(raw: &str) -> Result<Self, BadName> {
        let why = "is not <run>-<number>";
        let bad = || BadName { what: "attempt", raw: shortened(raw), why };
        let (run, number) = raw.split_once('-').ok_or_else(bad)?;
        let canonical = !number.starts_with('0') && number.bytes().all(|b| b.is_ascii_digit());
        let number = number.parse().ok().filter(|_| canonical).ok_or_else(bad)?;
        Ok(Self { run: RunId::parse(run)?, number })
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.run, self.number)
    }
}

fn escape(raw: &str, out: &mut String) {
    for byte in raw.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "_{byte:02x}");
        }
    }
}

fn unescape(part: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = match (first, tail) {
            (b'_', [high, low, tail @ ..]) => {
                let hex = |b: &u8| match b {
                    b'0'..=b'9' => Some(b - b'0'),
                    b'a'..=b'f' => Some(b - b'a' + 10),
                    _ => None,
                };
                let byte = hex(high)? * 16 + hex(low)?;
                if byte.is_ascii_alphanumeric() || byte == b'-' {
                    return None; // stands for itself: another spelling of the same name
                }
                bytes.push(byte);
                tail
            }
            (b, tail) if b.is_ascii_alphanumeric() || *b == b'-' => {
                bytes.push(*b);
                tail
            }
            _ => return None,
        };
    }
    String::from_utf8(bytes).ok()
}

/// RFC 4648's base32 in lower case, without padding: safe in labels.
fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let (mut out, mut buffer, mut bits) = (String::new(), 0_u32, 0);
    for byte in bytes {
        buffer = (buffer << 8) | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            out.push(char::from(ALPHABET[(buffer >> bits) as usize & 31]));
        }
    }
    out
}

/// Error messages show a bounded part of what somebody sent.
fn shortened(raw: &str) -> String {
    const SHOWN: usize = 80;
    match raw.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &raw[..end]),
        None => raw.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(user: &str, server: &str) -> ServerKey {
        ServerKey {
            hub: HubName::parse("main").unwrap(),
            user: UserName::parse(user).unwrap(),
            server: ServerName::parse(server).unwrap(),
        }
    }

    #[test]
    fn the_written_key_is_what_the_documentation_shows() {
        assert_eq!(key("ada", "").full(), "main.ada.");
        assert_eq!(key("ada@example.org", "lab-2").full(), "main.ada_40example_2eorg.lab-2");
        assert_eq!(key("ünï", "").full(), "main._c3_bcn_c3_af.");
    }

    #[test]
    fn the_written_key_is_what_the_hub_side_writes() {
        let shared = include_str!("../../../jupyter-ext/hub-spawner/tests/vectors/server_key.json");
        let rows: Vec<std::collections::BTreeMap<String, String>> = serde_json::from_str(shared).unwrap();
        assert!(rows.len() >= 10);
        for row in rows {
            let key = ServerKey {
                hub: HubName::parse(&row["hub"]).unwrap(),
                user: UserName::parse(&row["user"]).unwrap(),
                server: ServerName::parse(&row["server"]).unwrap(),
            };
            assert_eq!(key.full(), row["full"]);
            assert_eq!(ServerKey::parse_full(&row["full"]).unwrap(), key);
        }
    }

    #[test]
    fn the_longest_names_of_the_widest_characters_read_back() {
        let widest = "\u{1f300}".repeat(255);
        let key = key(&widest, &widest);
        let full = key.full();
        assert_eq!(full.len(), "main..".len() + 2 * 255 * 4 * 3);
        assert_eq!(ServerKey::parse_full(&full).unwrap(), key);
    }

    #[test]
    fn another_spelling_of_the_same_key_is_refused() {
        for raw in
            ["main._61da.", "main.ada", "main.ada.x.y", "main.a_4.", "main.a_4G.", "main._C3_BC.", "", ".."]
        {
            assert!(ServerKey::parse_full(raw).is_err(), "{raw}");
        }
    }

    #[test]
    fn names_say_what_is_wrong_with_them() {
        let told = SiteName::parse("Far Site").unwrap_err().to_string();
        assert_eq!(
            told,
            r#"site name "Far Site" must be 1 to 63 of a-z, 0-9 and -, with no - at either end"#
        );
        assert!(UserName::parse("").is_err());
        assert!(UserName::parse("a/b").is_err());
        assert!(UserName::parse(&"ü".repeat(255)).is_ok());
        assert!(UserName::parse(&"ü".repeat(256)).is_err());
    }

    #[test]
    fn an_attempt_reads_back() {
        let attempt = Attempt { run: RunId::from_parts(1_700_000_000_000, 7), number: 3 };
        assert_eq!(Attempt::parse(&attempt.to_string()).unwrap(), attempt);
        for raw in [
            "",
            "x-1",
            "01ARZ3NDEKTSV4RRFFQ69G5FAV",
            "01ARZ3NDEKTSV4RRFFQ69G5FAV-01",
            "01ARZ3NDEKTSV4RRFFQ69G5FAV-+1",
        ] {
            assert!(Attempt::parse(raw).is_err(), "{raw}");
        }
    }

    proptest! {
        #[test]
        fn every_key_reads_back(user in "[^/\\p{Cc}]{1,60}", server in "[^/\\p{Cc}]{0,60}") {
            let key = key(&user, &server);
            prop_assert_eq!(ServerKey::parse_full(&key.full()).unwrap(), key);
        }

        #[test]
        fn the_later_run_has_the_larger_id_whatever_the_clock_says(
            first_ms in 0_u64..1 << 47, then_ms in 0_u64..1 << 47, a: u128, b: u128,
        ) {
            let first = RunId::after(None, first_ms, a);
            prop_assert!(RunId::after(Some(first), then_ms, b) > first);
        }

        #[test]
        fn the_full_form_is_one_safe_path_segment(user in "[^/\\p{Cc}]{1,255}", server in "[^/\\p{Cc}]{0,40}") {
            let full = key(&user, &server).full();
            prop_assert!(full.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')), "{}", full);
        }

        #[test]
        fn the_short_form_is_a_label(user in "[^/\\p{Cc}]{1,255}", server in "[^/\\p{Cc}]{0,255}") {
            let short = key(&user, &server).short();
            prop_assert!(short.len() <= SHORT_KEY_MAX_BYTES, "{}", short);
            prop_assert!(short.starts_with(|c: char| c.is_ascii_lowercase()));
            prop_assert!(short.ends_with(|c: char| c.is_ascii_alphanumeric()));
            prop_assert!(short.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')), "{}", short);
        }

        #[test]
        fn names_that_could_run_together_stay_apart(user in "[a-z.@_-]{1,8}", server in "[a-z.@_-]{1,8}") {
            let apart = key(&format!("{user}{server}"), "");
            prop_assert_ne!(key(&user, &server).short(), apart.short());
            prop_assert_ne!(key(&user, &server).full(), apart.full());
        }

        #[test]
        fn reading_a_key_never_panics_and_is_canonical(raw in ".{0,80}") {
            if let Ok(key) = ServerKey::parse_full(&raw) {
                prop_assert_eq!(key.full(), raw);
            }
        }
    }
}
