//! Seals secrets at rest: launch orders lie in the database as ciphertext, the key lies outside it.
//!
//! In: a key file in the state folder (0600, made at first start), a text and what it belongs to. Out: bytes that
//! open only with that key and for that owner. Also reads or makes the key that signs tickets.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use ring::rand::{SecureRandom as _, SystemRandom};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret as _, SecretString};

/// Length of every key here.
pub const KEY_BYTES: usize = 32;

/// First byte of a sealed text: how it was sealed.
const SEALED_V1: u8 = 1;
const NONCE_BYTES: usize = 24;

/// Why a key could not be read or made, or a sealed text not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The key file is missing its content, or cannot be read or written.
    #[error("the key file {path} {why}")]
    KeyFile {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Another key sealed it, for another owner, or the bytes were changed.
    #[error("a sealed text does not open with this key: was the key file replaced?")]
    DoesNotOpen,
    /// The text could not be sealed.
    #[error("a text could not be sealed")]
    DoesNotSeal,
}

/// Seals and opens with one key.
pub struct Seal {
    cipher: XChaCha20Poly1305,
}

impl Seal {
    /// Reads `<state_dir>/keys/seal.key`, or makes it.
    pub fn in_state_dir(state_dir: &Path) -> Result<Self, SealError> {
        let bytes = key_file(state_dir, "seal.key")?;
        Ok(Self { cipher: XChaCha20Poly1305::new(&Key::from(*bytes)) })
    }

    /// Seals a text for its owner.
    pub fn close(&self, owner: &str, text: &SecretString) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE_BYTES];
        SystemRandom::new().fill(&mut nonce).map_err(|_| SealError::DoesNotSeal)?;
        let payload = Payload { msg: text.expose_secret().as_bytes(), aad: owner.as_bytes() };
        let sealed =
            self.cipher.encrypt(&XNonce::from(nonce), payload).map_err(|_| SealError::DoesNotSeal)?;
        Ok([&[SEALED_V1][..], &nonce, &sealed].concat())
    }

    /// Opens what was sealed for this owner.
    pub fn open(&self, owner: &str, sealed: &[u8]) -> Result<SecretString, SealError> {
        let Some((&SEALED_V1, rest)) = sealed.split_first() else { return Err(SealError::DoesNotOpen) };
        let Some((nonce, sealed)) = rest.split_first_chunk::<NONCE_BYTES>() else {
            return Err(SealError::DoesNotOpen);
        };
        let payload = Payload { msg: sealed, aad: owner.as_bytes() };
        let open = self.cipher.decrypt(&XNonce::from(*nonce), payload).map_err(|_| SealError::DoesNotOpen)?;
        String::from_utf8(open).map(SecretString::from).map_err(|_| SealError::DoesNotOpen)
    }
}

/// Reads `<state_dir>/keys/<name>`, 32 random bytes in hexadecimal, or makes it. A key that others could read is
/// refused: nobody knows who has it.
pub fn key_file(state_dir: &Path, name: &str) -> Result<Zeroizing<[u8; KEY_BYTES]>, SealError> {
    let dir = state_dir.join("keys");
    let path = dir.join(name);
    let bad = |why: String| SealError::KeyFile { path: path.clone(), why };
    let said = |step: &str, error: std::io::Error| bad(format!("cannot be {step}: {error}"));
    match fs::read_to_string(&path) {
        Ok(text) => {
            let text = Zeroizing::new(text);
            let mode = fs::metadata(&path).map_err(|error| said("read", error))?.permissions().mode();
            if mode & 0o077 != 0 {
                return Err(bad("can be read by others: set its mode to 0600".to_owned()));
            }
            from_hex(text.trim()).ok_or_else(|| {
                bad("does not hold 64 hexadecimal digits: restore it from a backup".to_owned())
            })
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .map_err(|error| said("made", error))?;
            let mut key = Zeroizing::new([0; KEY_BYTES]);
            SystemRandom::new()
                .fill(&mut *key)
                .map_err(|_| bad("cannot be made: no random bytes".to_owned()))?;
            write_whole(&dir, &path, &to_hex(&*key)).map_err(|error| said("written", error))?;
            Ok(key)
        }
        Err(error) => Err(said("read", error)),
    }
}

/// Puts a file there whole or not at all, on disk before this returns.
fn write_whole(dir: &Path, path: &Path, text: &str) -> std::io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    fs::File::open(dir)?.sync_all()
}

/// Bytes as lower-case hexadecimal digits.
#[must_use]
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    if text.len() != KEY_BYTES * 2 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in key.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_opens_for_its_owner_alone_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let sealed =
            Seal::in_state_dir(dir.path()).unwrap().close("run-1", &SecretString::from("t0ken")).unwrap();
        assert!(!sealed.windows(5).any(|w| w == b"t0ken"));
        let again = Seal::in_state_dir(dir.path()).unwrap();
        assert_eq!(again.open("run-1", &sealed).unwrap().expose_secret(), "t0ken");
        assert!(again.open("run-2", &sealed).is_err(), "the owner is part of it");
        let mut changed = sealed.clone();
        *changed.last_mut().unwrap() ^= 1;
        assert!(again.open("run-1", &changed).is_err());
        assert!(again.open("run-1", &sealed[..10]).is_err());
    }

    #[test]
    fn a_key_belongs_to_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        Seal::in_state_dir(dir.path()).unwrap();
        let path = dir.path().join("keys/seal.key");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = Seal::in_state_dir(dir.path()).err().unwrap().to_string();
        assert!(error.contains("0600"), "{error}");
    }

    #[test]
    fn a_damaged_key_is_told_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        Seal::in_state_dir(dir.path()).unwrap();
        let path = dir.path().join("keys/seal.key");
        fs::write(&path, "half").unwrap();
        assert!(Seal::in_state_dir(dir.path()).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "half");
    }
}
