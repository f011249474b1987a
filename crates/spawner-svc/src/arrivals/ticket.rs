//! Tickets: the right of one agent to dial home for one attempt. Signed (EdDSA), read by home alone.

use std::path::Path;

use glidepath_domain::names::{Attempt, InstanceId, RunId};
use glidepath_domain::run::Moment;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use ring::error::KeyRejected;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::seal::{SealError, key_file};

/// What stands before the 32 bytes of an ed25519 key in its PKCS #8 form (RFC 8410).
const PKCS8_HEAD: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// Signs tickets and reads them back.
pub(super) struct Tickets {
    instance: InstanceId,
    signs: EncodingKey,
    reads: DecodingKey,
    rules: Validation,
}

/// A ticket whose signature and issuer are right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    /// Which submit of which run it is for.
    pub(super) attempt: Attempt,
    /// Until when it may be redeemed for the first time.
    pub(super) until: Moment,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    attempt: u32,
    iat: u64,
    exp: u64,
}

impl Tickets {
    /// Reads `<state_dir>/keys/ticket.key`, or makes it.
    pub(super) fn in_state_dir(state_dir: &Path, instance: InstanceId) -> Result<Self, SealError> {
        let seed = key_file(state_dir, "ticket.key")?;
        Self::from_seed(&seed, instance).map_err(|error| SealError::KeyFile {
            path: state_dir.join("keys/ticket.key"),
            why: format!("holds no ed25519 key: {error}"),
        })
    }

    /// With this private key.
    pub(super) fn from_seed(seed: &[u8; 32], instance: InstanceId) -> Result<Self, KeyRejected> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed)?;
        let mut rules = Validation::new(Algorithm::EdDSA);
        rules.set_issuer(&[instance.as_str()]);
        rules.set_required_spec_claims(&["iss", "sub", "exp"]);
        rules.validate_exp = false; // a bound key may come again at any time: the gate looks at the time itself
        rules.validate_aud = false;
        Ok(Self {
            instance,
            signs: EncodingKey::from_ed_der(&[&PKCS8_HEAD[..], &seed[..]].concat()),
            reads: DecodingKey::from_ed_der(pair.public_key().as_ref()),
            rules,
        })
    }

    pub(super) fn issue(
        &self,
        attempt: Attempt,
        now: Moment,
        until: Moment,
    ) -> Result<SecretString, SealError> {
        let claims = Claims {
            iss: self.instance.to_string(),
            sub: attempt.run.to_string(),
            attempt: attempt.number,
            iat: now.0 / 1000,
            exp: until.0.div_ceil(1000),
        };
        jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &claims, &self.signs)
            .map(SecretString::from)
            .map_err(|_| SealError::DoesNotSeal)
    }

    /// `None` for whatever this service did not sign as a ticket.
    pub(super) fn read(&self, raw: &str) -> Option<Ticket> {
        let claims = jsonwebtoken::decode::<Claims>(raw, &self.reads, &self.rules).ok()?.claims;
        let run = RunId::parse(&claims.sub).ok()?;
        let attempt = Attempt { run, number: claims.attempt };
        Some(Ticket { attempt, until: Moment(claims.exp.saturating_mul(1000)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret as _;

    fn attempt() -> Attempt {
        Attempt { run: RunId::from_parts(1_700_000_000_000, 3), number: 2 }
    }

    fn tickets(dir: &Path, instance: &str) -> Tickets {
        Tickets::in_state_dir(dir, InstanceId::parse(instance).unwrap()).unwrap()
    }

    #[test]
    fn a_ticket_reads_back_also_after_a_restart_and_after_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let raw = tickets(dir.path(), "one").issue(attempt(), Moment(1000), Moment(2000)).unwrap();
        let read = tickets(dir.path(), "one").read(raw.expose_secret());
        assert_eq!(read, Some(Ticket { attempt: attempt(), until: Moment(2000) }));
    }

    #[test]
    fn nobody_elses_ticket_is_one() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let ours = tickets(dir.path(), "one");
        let raw = ours.issue(attempt(), Moment(0), Moment(2000)).unwrap();
        assert!(tickets(other.path(), "one").read(raw.expose_secret()).is_none(), "another key");
        assert!(tickets(dir.path(), "two").read(raw.expose_secret()).is_none(), "another instance");
        let (body, _) = raw.expose_secret().rsplit_once('.').unwrap();
        for bad in ["", "x", &format!("{body}."), &format!("{body}.AAAA"), "eyJhbGciOiJub25lIn0.e30."] {
            assert!(ours.read(bad).is_none(), "{bad}");
        }
    }
}
