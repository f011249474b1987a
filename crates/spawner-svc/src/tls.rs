//! The link listener's certificate, and its renewal while the service runs.
//!
//! In: either a state folder and the host names of the link's URL (then the service is its own CA, made at the first
//! start), or the operator's certificate and key files. Out: a rustls server configuration whose certificate can be
//! replaced under it, and the CA that agents are told to trust. Who listens is `proxy::link`.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use glidepath_svc_kit::files;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Life of the service's own CA: longer than any installation, since agents carry it in their dial files.
const CA_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 60 * 60);

/// Life of a server certificate that the own CA signs.
const SERVER_LIFE: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// A server certificate of the own CA is made anew when less than this is left.
const RENEW_BEFORE_END: Duration = Duration::from_secs(60 * 24 * 60 * 60);

/// Clocks of far sites may be behind: certificates are valid from the day before.
const CLOCK_SKEW: Duration = DAY;

/// Why the link cannot have TLS. Each is one sentence with its remedy.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file or folder cannot be read or written.
    #[error("cannot {act} {path}: {}; check that the service's account may", files::in_words(source))]
    File {
        /// `read`, `write`, `make`.
        act: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Others can read a private key.
    #[error(
        "{path} can be read by other accounts (mode {mode:03o}); run `chmod 600` on it, and replace the key if it may have been read"
    )]
    Exposed {
        /// Which key.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file is there, and is not what it should be.
    #[error("{path} {why}")]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// The link's URL names a host that no certificate can be made for.
    #[error("no certificate can be made for link host {host:?}: {why}; change link.url")]
    Host {
        /// As it was given.
        host: String,
        /// What the certificate library says.
        why: String,
    },
    /// The TLS library refuses to work.
    #[error("TLS is not usable: {0}")]
    Library(String),
}

/// How the link listener speaks: with TLS of its own, or plain behind something that ends TLS.
#[derive(Debug, Clone)]
pub enum LinkTls {
    /// A TLS-ending proxy, named by the operator, stands in front and is the only one who can reach the listener.
    PlainBehind(String),
    /// TLS ends here.
    Own(ServerTls),
}

/// TLS of the link listener. Cloning shares the certificate.
#[derive(Debug, Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    keeper: Arc<Keeper>,
    ca_pem: Option<Arc<str>>,
}

impl ServerTls {
    /// For the acceptor.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// The CA that agents must be told to trust; `None` when the operator brought the certificate.
    #[must_use]
    pub fn ca_pem(&self) -> Option<&str> {
        self.ca_pem.as_deref()
    }

    /// Replaces the certificate when it nears its end or when its files have changed. `true` when it did. On an
    /// error the old certificate stays in use.
    pub fn refresh(&self) -> Result<bool, TlsError> {
        self.keeper.refresh(SystemTime::now())
    }

    fn new(source: Source, ca_pem: Option<String>) -> Result<Self, TlsError> {
        let made = source.make(SystemTime::now())?;
        let keeper =
            Arc::new(Keeper { current: RwLock::new(made.key), renew: Mutex::new(made.renew), source });
        let provider = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::Library(error.to_string()))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&keeper) as Arc<dyn ResolvesServerCert>);
        Ok(Self { config: Arc::new(config), keeper, ca_pem: ca_pem.map(Arc::from) })
    }
}

/// A CA of the service's own in `<state_dir>/ca`, made at the first call, and a server certificate for these hosts
/// (names, IPv4 or IPv6 literals, with or without brackets).
pub fn own_ca(state_dir: &Path, hosts: &[String]) -> Result<ServerTls, TlsError> {
    let (ca, ca_pem) = OwnCa::open(&state_dir.join("ca"))?;
    let names = hosts.iter().map(|host| alternative_name(host)).collect::<Result<Vec<_>, _>>()?;
    ServerTls::new(Source::OwnCa { ca: Box::new(ca), names }, Some(ca_pem))
}

/// The operator's certificate chain and key, both PEM.
pub fn load(cert: &Path, key: &Path) -> Result<ServerTls, TlsError> {
    ServerTls::new(Source::Files { cert: cert.to_owned(), key: key.to_owned() }, None)
}

/// Whether a certificate can be made for this host.
pub fn check_host(host: &str) -> Result<(), TlsError> {
    alternative_name(host).map(drop)
}

/// Holds the certificate in use.
#[derive(Debug)]
struct Keeper {
    current: RwLock<Arc<CertifiedKey>>,
    renew: Mutex<Renew>,
    source: Source,
}

impl ResolvesServerCert for Keeper {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Keeper {
    fn refresh(&self, now: SystemTime) -> Result<bool, TlsError> {
        let mut renew = self.renew.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.source.is_due(&renew, now) {
            return Ok(false);
        }
        let made = self.source.make(now)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = made.key;
        *renew = made.renew;
        Ok(true)
    }
}

/// A certificate, and when to look for the next.
struct Made {
    key: Arc<CertifiedKey>,
    renew: Renew,
}

#[derive(Debug, PartialEq)]
enum Renew {
    At(SystemTime),
    WhenFilesDifferFrom([Option<SystemTime>; 2]),
}

enum Source {
    OwnCa { ca: Box<OwnCa>, names: Vec<SanType> },
    Files { cert: PathBuf, key: PathBuf },
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OwnCa { names, .. } => {
                f.debug_struct("OwnCa").field("names", names).finish_non_exhaustive()
            }
            Self::Files { cert, key } => {
                f.debug_struct("Files").field("cert", cert).field("key", key).finish()
            }
        }
    }
}

impl Source {
    fn is_due(&self, renew: &Renew, now: SystemTime) -> bool {
        match (self, renew) {
            (_, Renew::At(at)) => now >= *at,
            (Self::Files { cert, key }, Renew::WhenFilesDifferFrom(seen)) => file_times(cert, key) != *seen,
            (Self::OwnCa { .. }, Renew::WhenFilesDifferFrom(_)) => true,
        }
    }

    fn make(&self, now: SystemTime) -> Result<Made, TlsError> {
        match self {
            Self::OwnCa { ca, names } => {
                let key = Arc::new(ca.server_certificate(names, now)?);
                Ok(Made { key, renew: Renew::At(now + SERVER_LIFE - RENEW_BEFORE_END) })
            }
            Self::Files { cert, key } => {
                let seen = file_times(cert, key);
                let made = Arc::new(read_pair(cert, key, now)?);
                Ok(Made { key: made, renew: Renew::WhenFilesDifferFrom(seen) })
            }
        }
    }
}

struct OwnCa {
    issuer: Issuer<'static, KeyPair>,
}

impl OwnCa {
    /// Opens the folder's CA or makes one. The key is written first: a crash in between leaves a key alone, for which
    /// the next start writes a certificate.
    fn open(folder: &Path) -> Result<(Self, String), TlsError> {
        let (key_path, cert_path) = (folder.join("ca.key"), folder.join("ca.pem"));
        files::private_dir(folder).map_err(|source| file_error("make", folder, source))?;
        let key = match (key_path.exists(), cert_path.exists()) {
            (true, _) => read_ca_key(&key_path)?,
            (false, true) => {
                let why = format!(
                    "has no key beside it: restore {}, or remove the certificate to make a new CA (running agents \
                     cannot return through a new one)",
                    key_path.display()
                );
                return Err(TlsError::Content { path: cert_path, why });
            }
            (false, false) => {
                let key = KeyPair::generate().map_err(|error| TlsError::Library(error.to_string()))?;
                write_private(&key_path, &key.serialize_pem())?;
                key
            }
        };
        let params = ca_params(SystemTime::now());
        let pem = if cert_path.exists() {
            let pem = read(&cert_path)?;
            check_is_certificate_of(&key, &pem, &cert_path)?;
            pem
        } else {
            let cert = params.self_signed(&key).map_err(|error| TlsError::Library(error.to_string()))?;
            write_private(&cert_path, &cert.pem())?;
            cert.pem()
        };
        Ok((Self { issuer: Issuer::new(params, key) }, pem))
    }

    fn server_certificate(&self, names: &[SanType], now: SystemTime) -> Result<CertifiedKey, TlsError> {
        let library = |error: rcgen::Error| TlsError::Library(error.to_string());
        let key = KeyPair::generate().map_err(library)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name("Glidepath link");
        params.subject_alt_names = names.to_vec();
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        set_validity(&mut params, now, SERVER_LIFE);
        let cert = params.signed_by(&key, &self.issuer).map_err(library)?;
        let key =
            PrivateKeyDer::try_from(key.serialize_der()).map_err(|why| TlsError::Library(why.to_owned()))?;
        CertifiedKey::from_der(vec![cert.der().clone()], key, &ring::default_provider())
            .map_err(|error| TlsError::Library(error.to_string()))
    }
}

fn ca_params(now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name("Glidepath link CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, now, CA_LIFE);
    params
}

fn common_name(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

fn set_validity(params: &mut CertificateParams, now: SystemTime, life: Duration) {
    let since_1970 = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + since_1970.saturating_sub(CLOCK_SKEW);
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + since_1970 + life;
}

fn alternative_name(host: &str) -> Result<SanType, TlsError> {
    let bare = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let bad = |why: String| TlsError::Host { host: host.to_owned(), why };
    rustls_pki_types::DnsName::try_from(bare).map_err(|error| bad(error.to_string()))?;
    bare.try_into().map(SanType::DnsName).map_err(|error: rcgen::Error| bad(error.to_string()))
}

fn check_is_certificate_of(key: &KeyPair, pem: &str, path: &Path) -> Result<(), TlsError> {
    let bad = |why: &str| TlsError::Content { path: path.to_owned(), why: why.to_owned() };
    let cert = CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|_| bad("is not a PEM certificate; remove it and it is made anew from its key"))?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(bad)?;
    CertifiedKey::from_der(vec![cert], key, &ring::default_provider()).map(drop).map_err(|_| {
        bad("does not belong to the ca.key beside it; restore the pair, or remove both to make a new CA")
    })
}

fn read_ca_key(path: &Path) -> Result<KeyPair, TlsError> {
    refuse_exposed(path, 0o077)?;
    KeyPair::from_pem(&read(path)?).map_err(|error| TlsError::Content {
        path: path.to_owned(),
        why: format!("is not a private key ({error}); restore it, or remove the ca folder to make a new CA"),
    })
}

fn read_pair(cert: &Path, key: &Path, now: SystemTime) -> Result<CertifiedKey, TlsError> {
    let bad = |path: &Path, why: String| TlsError::Content { path: path.to_owned(), why };
    let chain =
        CertificateDer::pem_slice_iter(read(cert)?.as_bytes()).collect::<Result<Vec<_>, _>>().map_err(
            |error| bad(cert, format!("is not PEM ({error}); give the certificate chain in PEM form")),
        )?;
    if chain.is_empty() {
        return Err(bad(
            cert,
            "holds no certificate; give the server's certificate first, then its chain".into(),
        ));
    }
    if let Some(why) = out_of_time(&chain, now) {
        return Err(bad(cert, why));
    }
    refuse_exposed(key, 0o007)?;
    let private = PrivateKeyDer::from_pem_slice(read(key)?.as_bytes()).map_err(|error| {
        bad(key, format!("holds no private key ({error}); give it unencrypted in PEM form"))
    })?;
    CertifiedKey::from_der(chain, private, &ring::default_provider()).map_err(|error| {
        bad(key, format!("does not fit the certificate in {} ({error}); give the pair", cert.display()))
    })
}

/// Why agents would turn the first certificate down for its dates. Who signed it is not looked at: that is for the
/// agents to trust.
fn out_of_time(chain: &[CertificateDer<'static>], now: SystemTime) -> Option<String> {
    let mut any_root = RootCertStore::empty();
    any_root.add_parsable_certificates(chain.last().cloned());
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(any_root), provider).build().ok()?;
    let any_name = ServerName::try_from("localhost").ok()?;
    let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
    match verifier.verify_server_cert(&chain[0], &chain[1..], &any_name, &[], now) {
        Err(rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) => Some("has expired; renew it".to_owned()),
        Err(rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        )) => Some("is not valid yet; check its dates and this machine's clock".to_owned()),
        _ => None,
    }
}

fn file_times(cert: &Path, key: &Path) -> [Option<SystemTime>; 2] {
    [cert, key].map(|path| fs::metadata(path).and_then(|meta| meta.modified()).ok())
}

fn refuse_exposed(path: &Path, forbidden: u32) -> Result<(), TlsError> {
    let meta = fs::metadata(path).map_err(|source| file_error("read", path, source))?;
    let mode = meta.permissions().mode() & 0o777;
    if mode & forbidden == 0 { Ok(()) } else { Err(TlsError::Exposed { path: path.to_owned(), mode }) }
}

fn read(path: &Path) -> Result<String, TlsError> {
    fs::read_to_string(path).map_err(|source| file_error("read", path, source))
}

fn write_private(path: &Path, content: &str) -> Result<(), TlsError> {
    files::write_private(path, content.as_bytes()).map_err(|source| file_error("write", path, source))
}

fn file_error(act: &'static str, path: &Path, source: io::Error) -> TlsError {
    TlsError::File { act, path: path.to_owned(), source }
}

mod look;
#[cfg(test)]
mod tests;

pub use look::{ends_within, is_for};
