//! Bearer secrets, of which the service keeps only the SHA-256.
//!
//! The secrets are random and long, so a plain hash is enough; comparing takes the same time whatever was presented.

use std::fmt;
use std::hint::black_box;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest as _, Sha256};

/// Hash of one secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    /// Hashes a secret.
    #[must_use]
    pub fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret.as_bytes()).into())
    }

    /// Reads 64 hexadecimal digits.
    pub fn parse(hex: &str) -> Result<Self, &'static str> {
        const RULE: &str = "must be the SHA-256 of the secret as 64 hexadecimal digits";
        let digit = |b: u8| char::from(b).to_digit(16).map(|d| d as u8).ok_or(RULE);
        let mut hash = [0; 32];
        if hex.len() != 64 {
            return Err(RULE);
        }
        for (byte, pair) in hash.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Self(hash))
    }

    fn equals(&self, other: &Self) -> bool {
        let differs = self.0.iter().zip(&other.0).fold(0, |differs, (a, b)| black_box(differs | (a ^ b)));
        differs == 0
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(..)")
    }
}

/// True when the secret is one of those hashed. Looks at all of them in any case.
#[must_use]
pub fn accepts(hashes: &[SecretHash], presented: &str) -> bool {
    let presented = SecretHash::of(presented);
    hashes.iter().fold(false, |found, hash| found | hash.equals(&presented))
}

/// The secret of `Authorization: Bearer …`, when there is exactly one.
#[must_use]
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let (one, None) = (all.next()?, all.next()) else { return None };
    let (scheme, secret) = one.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim()).filter(|secret| !secret.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_of_two_secrets_is_accepted_and_no_other() {
        let hashes = [SecretHash::of("old"), SecretHash::of("new")];
        assert!(accepts(&hashes, "old") && accepts(&hashes, "new"));
        assert!(!accepts(&hashes, "") && !accepts(&hashes, "older") && !accepts(&[], "old"));
    }

    #[test]
    fn a_hash_reads_back_from_what_sha256sum_prints() {
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(SecretHash::parse(hex), Ok(SecretHash::of("abc")));
        for bad in ["", "ba78", &hex.replace('b', "g"), &"é".repeat(32)] {
            assert!(SecretHash::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn two_authorization_headers_are_none() {
        let mut headers = HeaderMap::new();
        assert_eq!(bearer(&headers), None);
        headers.append(AUTHORIZATION, "bearer  abc".parse().unwrap());
        assert_eq!(bearer(&headers), Some("abc"));
        headers.append(AUTHORIZATION, "Bearer def".parse().unwrap());
        assert_eq!(bearer(&headers), None);
        headers.insert(AUTHORIZATION, "Basic abc".parse().unwrap());
        assert_eq!(bearer(&headers), None);
    }
}
