//! The first messages of a lane: who comes, the proof that it holds its key, the welcome or the refusal.
//!
//! Pure: bytes in, values out. A proof signs both the agent's HELLO and home's CHALLENGE, so it is worth nothing
//! on another connection, for another credential, session or home.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use super::frame::{self, Broken, MAX_SENTENCE_BYTES};

/// The versions of the protocol that this library speaks.
pub(crate) const VERSIONS: (u16, u16) = (1, 1);
/// What this library can do beyond its version.
pub(crate) const CAPABILITIES: &[&str] = &[SEVERAL_LANES];
/// A session may have more than one lane.
pub(crate) const SEVERAL_LANES: &str = "lanes";
/// The largest message of a handshake.
pub(crate) const MAX_HANDSHAKE_BYTES: usize = 16 * 1024;
/// The longest credential.
pub(crate) const MAX_CREDENTIAL_BYTES: usize = 8 * 1024;
const MAX_CAPABILITIES: usize = 32;
const MAX_CAPABILITY_BYTES: usize = 64;
const MAX_SOFTWARE_BYTES: usize = 128;
const MAX_HOST_BYTES: usize = 300;
const MAX_AFTER: Duration = Duration::from_secs(3600);

const HELLO: u8 = 0x20;
const CHALLENGE: u8 = 0x21;
const PROOF: u8 = 0x22;
const WELCOME: u8 = 0x23;
const REFUSED: u8 = 0x24;

const PROOF_CONTEXT: &[u8] = b"glidepath link proof v1\0";

/// The agent's first message.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) versions: (u16, u16),
    pub(crate) key: [u8; 32],
    pub(crate) session: [u8; 16],
    pub(crate) credential: String,
    /// Host and port of home as the agent dialled it.
    pub(crate) home: String,
    pub(crate) software: String,
    pub(crate) capabilities: Vec<String>,
}

/// Home's answer to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Challenge {
    pub(crate) version: u16,
    pub(crate) nonce: [u8; 32],
    pub(crate) software: String,
    pub(crate) capabilities: Vec<String>,
}

/// Home's last word when it takes the lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Welcome {
    /// Names home's end of the session. Another one than before: home knows nothing of the old streams.
    pub(crate) incarnation: u64,
    pub(crate) lane: u64,
    /// How long home keeps a session without a lane.
    pub(crate) resume_for: Duration,
}

/// Home's last word when it does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// `None`: for good.
    pub(crate) after: Option<Duration>,
    pub(crate) sentence: String,
}

/// What may answer a PROOF.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Welcome(Welcome),
    Refused(Refused),
}

/// The version that both ends speak: the highest common one.
pub(crate) fn choose_version(agent: (u16, u16)) -> Result<u16, Refused> {
    let best = agent.1.min(VERSIONS.1);
    if agent.0 <= agent.1 && best >= agent.0.max(VERSIONS.0) {
        return Ok(best);
    }
    let sentence = format!(
        "this home speaks versions {} to {} of the link protocol, the agent {} to {}",
        VERSIONS.0, VERSIONS.1, agent.0, agent.1
    );
    // Not for good: home may be updated, or rolled back, while the agent's server runs on.
    Err(Refused { after: Some(Duration::from_secs(60)), sentence })
}

impl Hello {
    pub(crate) fn encode(&self) -> Bytes {
        let mut body = BytesMut::new();
        frame::put_number(&mut body, self.versions.0.into());
        frame::put_number(&mut body, self.versions.1.into());
        body.extend_from_slice(&self.key);
        body.extend_from_slice(&self.session);
        put_text(&mut body, &self.credential);
        put_text(&mut body, &self.home);
        put_text(&mut body, &self.software);
        put_list(&mut body, &self.capabilities);
        whole(HELLO, &body)
    }

    pub(crate) fn decode(message: &Bytes) -> Result<Self, Broken> {
        let mut body = only(HELLO, message)?;
        let body = &mut body;
        Ok(Hello {
            versions: (version(body)?, version(body)?),
            key: array(body)?,
            session: array(body)?,
            credential: exact_text(body, MAX_CREDENTIAL_BYTES)?,
            home: exact_text(body, MAX_HOST_BYTES)?,
            software: label(body)?,
            capabilities: list(body)?,
        })
    }
}

impl Challenge {
    pub(crate) fn encode(&self) -> Bytes {
        let mut body = BytesMut::new();
        frame::put_number(&mut body, self.version.into());
        body.extend_from_slice(&self.nonce);
        put_text(&mut body, &self.software);
        put_list(&mut body, &self.capabilities);
        whole(CHALLENGE, &body)
    }

    fn decode(mut body: Bytes) -> Result<Self, Broken> {
        let body = &mut body;
        Ok(Challenge {
            version: version(body)?,
            nonce: array(body)?,
            software: label(body)?,
            capabilities: list(body)?,
        })
    }
}

/// Home's answer to a HELLO, as the agent reads it.
pub(crate) fn decode_challenge(message: &Bytes) -> Result<Result<Challenge, Refused>, Broken> {
    match first(message)? {
        (CHALLENGE, body) => Challenge::decode(body).map(Ok),
        (REFUSED, body) => decode_refused(body).map(Err),
        (kind, _) => Err(Broken::UnknownType(kind)),
    }
}

/// Home's answer to a PROOF, as the agent reads it.
pub(crate) fn decode_verdict(message: &Bytes) -> Result<Verdict, Broken> {
    match first(message)? {
        (WELCOME, mut body) => {
            let body = &mut body;
            let incarnation = u64::from_be_bytes(array(body)?);
            let lane = frame::number(body)?;
            let resume_for = Duration::from_millis(frame::number(body)?).min(MAX_AFTER * 24);
            Ok(Verdict::Welcome(Welcome { incarnation, lane, resume_for }))
        }
        (REFUSED, body) => decode_refused(body).map(Verdict::Refused),
        (kind, _) => Err(Broken::UnknownType(kind)),
    }
}

impl Welcome {
    pub(crate) fn encode(&self) -> Bytes {
        let mut body = BytesMut::new();
        body.extend_from_slice(&self.incarnation.to_be_bytes());
        frame::put_number(&mut body, self.lane);
        frame::put_number(&mut body, self.resume_for.as_millis() as u64);
        whole(WELCOME, &body)
    }
}

impl Refused {
    pub(crate) fn encode(&self) -> Bytes {
        let mut body = BytesMut::new();
        frame::put_number(&mut body, u64::from(self.after.is_none()));
        frame::put_number(&mut body, self.after.unwrap_or_default().as_millis() as u64);
        put_text(&mut body, &frame::sentence(self.sentence.as_bytes()));
        whole(REFUSED, &body)
    }
}

fn decode_refused(mut body: Bytes) -> Result<Refused, Broken> {
    let body = &mut body;
    let for_good = frame::number(body)? == 1;
    let after = Duration::from_millis(frame::number(body)?).min(MAX_AFTER);
    Ok(Refused {
        after: (!for_good).then_some(after),
        sentence: frame::sentence(&text(body, MAX_SENTENCE_BYTES)?),
    })
}

/// The agent's key pair; it lives in memory only.
pub(crate) struct Key(Ed25519KeyPair);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// `None` when the system has no randomness.
    pub(crate) fn generate() -> Option<Self> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).ok()?;
        Ed25519KeyPair::from_pkcs8(document.as_ref()).ok().map(Key)
    }

    pub(crate) fn public(&self) -> [u8; 32] {
        let mut key = [0; 32];
        key.copy_from_slice(self.0.public_key().as_ref());
        key
    }

    /// The PROOF message for this HELLO and CHALLENGE, as they were on the wire.
    pub(crate) fn prove(&self, hello: &Bytes, challenge: &Bytes) -> Bytes {
        whole(PROOF, self.0.sign(&transcript(hello, challenge)).as_ref())
    }
}

/// Whether a message proves that its sender holds `key`.
pub(crate) fn verify(
    key: &[u8; 32],
    hello: &Bytes,
    challenge: &Bytes,
    message: &Bytes,
) -> Result<bool, Broken> {
    let mut body = only(PROOF, message)?;
    let signature: [u8; 64] = array(&mut body)?;
    Ok(UnparsedPublicKey::new(&ED25519, key).verify(&transcript(hello, challenge), &signature).is_ok())
}

fn transcript(hello: &Bytes, challenge: &Bytes) -> Vec<u8> {
    let mut signed = PROOF_CONTEXT.to_vec();
    signed.extend_from_slice(digest(&SHA256, hello).as_ref());
    signed.extend_from_slice(digest(&SHA256, challenge).as_ref());
    signed
}

fn whole(kind: u8, body: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    frame::put_with(&mut out, kind, &[], body);
    out.freeze()
}

/// A handshake message holds one frame.
fn first(message: &Bytes) -> Result<(u8, Bytes), Broken> {
    if message.len() > MAX_HANDSHAKE_BYTES {
        return Err(Broken::Rule("a handshake message is too large"));
    }
    let mut rest = message.clone();
    let frame = frame::split(&mut rest)?.ok_or(Broken::Short)?;
    if rest.is_empty() {
        Ok(frame)
    } else {
        Err(Broken::Rule("a handshake message holds more than one frame"))
    }
}

fn only(kind: u8, message: &Bytes) -> Result<Bytes, Broken> {
    match first(message)? {
        (found, body) if found == kind => Ok(body),
        (found, _) => Err(Broken::UnknownType(found)),
    }
}

fn put_text(body: &mut BytesMut, text: &str) {
    frame::put_number(body, text.len() as u64);
    body.extend_from_slice(text.as_bytes());
}

fn put_list(body: &mut BytesMut, list: &[String]) {
    frame::put_number(body, list.len() as u64);
    for item in list {
        put_text(body, item);
    }
}

fn text(body: &mut Bytes, most: usize) -> Result<Bytes, Broken> {
    let length = frame::number(body)? as usize;
    if length > most {
        return Err(Broken::Rule("a text of a handshake is too long"));
    }
    if length > body.len() {
        return Err(Broken::Short);
    }
    Ok(body.split_to(length))
}

fn exact_text(body: &mut Bytes, most: usize) -> Result<String, Broken> {
    let raw = text(body, most)?;
    String::from_utf8(raw.into()).map_err(|_| Broken::BadField("HELLO"))
}

/// A name for people: control characters are removed.
fn label(body: &mut Bytes) -> Result<String, Broken> {
    Ok(frame::sentence(&text(body, MAX_SOFTWARE_BYTES)?))
}

fn list(body: &mut Bytes) -> Result<Vec<String>, Broken> {
    let count = frame::number(body)? as usize;
    if count > MAX_CAPABILITIES {
        return Err(Broken::Rule("a handshake lists too many capabilities"));
    }
    (0..count).map(|_| Ok(frame::sentence(&text(body, MAX_CAPABILITY_BYTES)?))).collect()
}

fn version(body: &mut Bytes) -> Result<u16, Broken> {
    u16::try_from(frame::number(body)?).map_err(|_| Broken::BadField("HELLO"))
}

fn array<const N: usize>(body: &mut Bytes) -> Result<[u8; N], Broken> {
    if body.len() < N {
        return Err(Broken::Short);
    }
    let mut out = [0; N];
    out.copy_from_slice(&body.split_to(N));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(key: &Key) -> Hello {
        Hello {
            versions: (1, 3),
            key: key.public(),
            session: [7; 16],
            credential: "ticket".into(),
            home: "home.example:443".into(),
            software: "agent/1".into(),
            capabilities: vec!["lanes".into()],
        }
    }

    fn challenge(nonce: u8) -> Challenge {
        Challenge { version: 1, nonce: [nonce; 32], software: "home/1".into(), capabilities: vec![] }
    }

    #[test]
    fn every_message_comes_back_as_it_went() {
        let key = Key::generate().unwrap();
        assert!(Hello::decode(&hello(&key).encode()).unwrap() == hello(&key));
        assert_eq!(decode_challenge(&challenge(1).encode()).unwrap(), Ok(challenge(1)));
        let welcome = Welcome { incarnation: u64::MAX, lane: 3, resume_for: Duration::from_secs(60) };
        assert_eq!(decode_verdict(&welcome.encode()).unwrap(), Verdict::Welcome(welcome));
        for after in [None, Some(Duration::from_secs(3))] {
            let refused = Refused { after, sentence: "no".into() };
            assert_eq!(decode_verdict(&refused.encode()).unwrap(), Verdict::Refused(refused.clone()));
            assert_eq!(decode_challenge(&refused.encode()).unwrap(), Err(refused));
        }
    }

    #[test]
    fn a_proof_is_worth_nothing_for_another_challenge_hello_or_key() {
        let (key, other) = (Key::generate().unwrap(), Key::generate().unwrap());
        let (hello, first, second) = (hello(&key).encode(), challenge(1).encode(), challenge(2).encode());
        let proof = key.prove(&hello, &first);
        assert_eq!(verify(&key.public(), &hello, &first, &proof), Ok(true));
        assert_eq!(verify(&key.public(), &hello, &second, &proof), Ok(false));
        assert_eq!(verify(&other.public(), &hello, &first, &proof), Ok(false));
        let mut changed = Hello::decode(&hello).unwrap();
        changed.credential.push('x');
        assert_eq!(verify(&key.public(), &changed.encode(), &first, &proof), Ok(false));
    }

    #[test]
    fn the_highest_common_version_is_chosen_and_none_is_refused_in_words_but_not_for_good() {
        assert_eq!(choose_version((1, 9)), Ok(1));
        assert_eq!(choose_version((0, 1)), Ok(1));
        for none in [(2, 9), (0, 0), (1, 0)] {
            let refused = choose_version(none).unwrap_err();
            assert!(refused.sentence.contains("versions 1 to 1"), "{}", refused.sentence);
            assert!(refused.after.is_some());
        }
    }

    #[test]
    fn a_message_that_is_too_large_or_cut_is_an_error() {
        let key = Key::generate().unwrap();
        let whole = hello(&key).encode();
        for end in 0..whole.len() {
            assert!(Hello::decode(&whole.slice(..end)).is_err());
        }
        let mut large = hello(&key);
        large.credential = "x".repeat(MAX_CREDENTIAL_BYTES + 1);
        assert!(Hello::decode(&large.encode()).is_err());
    }
}
