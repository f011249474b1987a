//! A look at the operator's certificate, for whoever asks what is wrong with it before agents do.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rustls::client::verify_server_name;
use rustls::server::ParsedCertificate;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};

use super::{TlsError, out_of_time, read};

/// Whether a certificate that is good at this moment will have ended by then.
pub fn ends_within(cert: &Path, time: Duration) -> Result<bool, TlsError> {
    let chain = chain(cert)?;
    let now = SystemTime::now();
    Ok(out_of_time(&chain, now).is_none() && out_of_time(&chain, now + time).is_some())
}

/// Whether agents that dial this host would find its name in the certificate.
pub fn is_for(cert: &Path, host: &str) -> Result<bool, TlsError> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let (chain, name) = (chain(cert)?, ServerName::try_from(bare.to_owned()));
    let parsed = chain.first().and_then(|first| ParsedCertificate::try_from(first).ok());
    Ok(parsed.zip(name.ok()).is_some_and(|(parsed, name)| verify_server_name(&parsed, &name).is_ok()))
}

fn chain(cert: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain = CertificateDer::pem_slice_iter(read(cert)?.as_bytes()).collect::<Result<Vec<_>, _>>();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err(TlsError::Content {
            path: cert.to_owned(),
            why: "holds no certificate in PEM form".to_owned(),
        }),
    }
}
