//! How home proves itself: TLS with the system's roots, given authorities, or a pinned key.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::dial::Trust;

/// A TLS client that trusts exactly this. An error is a sentence.
pub(crate) fn client_config(trust: &Trust) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match trust {
        Trust::SystemRoots => by_roots(system_roots()?, &provider)?,
        Trust::CaPem(pem) => by_roots(roots(pem)?, &provider)?,
        Trust::KeyPin(pin) => Arc::new(Pinned { pin: parse_pin(pin)?, provider: Arc::clone(&provider) }),
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        // Every variant above checks: there is no verifier here that accepts anything.
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn by_roots(
    roots: RootCertStore,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, String> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .map_err(|error| error.to_string())
}

fn system_roots() -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    store.add_parsable_certificates(found.certs);
    if store.is_empty() {
        return Err(
            "the system has no trusted authorities; install ca-certificates, or trust a CA file or a key pin"
                .to_owned(),
        );
    }
    Ok(store)
}

fn roots(pem: &str) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|error| format!("the CA is not PEM: {error}"))?;
        store.add(certificate).map_err(|error| format!("the CA is no certificate authority: {error}"))?;
    }
    if store.is_empty() {
        return Err("the CA holds no certificate".to_owned());
    }
    Ok(store)
}

/// A SHA-256 in hex or base64, with or without `sha256/` before it.
fn parse_pin(text: &str) -> Result<[u8; 32], String> {
    let text = text.trim();
    let text = text.strip_prefix("sha256/").or_else(|| text.strip_prefix("sha256:")).unwrap_or(text);
    let raw = if text.len() == 64 { unhex(text) } else { STANDARD.decode(text).ok() };
    raw.and_then(|raw| raw.try_into().ok())
        .ok_or_else(|| "a key pin is the SHA-256 of a public key, as 64 hex digits or in base64".to_owned())
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> = text.chars().map(|c| c.to_digit(16)).collect();
    Some(digits?.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect())
}

/// Accepts the certificate of one key, whatever its name, dates and issuer say: the pin is the identity. That the
/// other end *holds* the key is checked as for any certificate, by the handshake's signature.
#[derive(Debug)]
struct Pinned {
    pin: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = rustls::server::ParsedCertificate::try_from(end_entity)?;
        let found = digest(&SHA256, &certificate.subject_public_key_info());
        if found.as_ref() == self.pin {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_read_in_hex_and_base64_and_nothing_else() {
        assert_eq!(parse_pin(&"0f".repeat(32)).unwrap(), [15; 32]);
        assert_eq!(parse_pin(&format!("sha256/{}", STANDARD.encode([7; 32]))).unwrap(), [7; 32]);
        for bad in ["", "abc", &"0f".repeat(31), &"zz".repeat(32), &"é".repeat(32)] {
            assert!(parse_pin(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_ca_that_is_none_is_told_in_words() {
        assert!(client_config(&Trust::CaPem("nothing".into())).unwrap_err().contains("no certificate"));
    }
}
