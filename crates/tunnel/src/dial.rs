//! The agent end: dials home, again and again, and keeps one link alive across it all.

use std::time::Duration;

use secrecy::SecretString;

use crate::link::Link;

/// Where home is, how to know it, and who we are.
#[derive(Clone, Debug)]
pub struct DialConfig {
    /// `wss://host[:port][/path]`, or `ws://` where somebody else ends TLS. The path of a link is `/link`.
    pub home_url: String,
    /// How home proves itself. Not used with `ws://`.
    pub trust: Trust,
    /// What the home end's gate asks for.
    pub credential: SecretString,
    /// Name and version that home sees.
    pub software: String,
    /// The proxy on the way out.
    pub proxy: ProxyEnv,
    /// Connections to keep open, 1 to 8.
    pub lanes: usize,
    /// A lane that was idle this long is pinged; without an answer for twice as long a fresh one is dialled
    /// beside it.
    pub heartbeat: Duration,
}

impl DialConfig {
    /// The usual dialler: one lane, the proxy that the environment names.
    pub fn new(home_url: &str, trust: Trust, credential: SecretString, software: &str) -> Self {
        DialConfig {
            home_url: home_url.to_owned(),
            trust,
            credential,
            software: software.to_owned(),
            proxy: ProxyEnv::from_env(),
            lanes: 1,
            heartbeat: Duration::from_secs(5),
        }
    }
}

/// How home proves itself. There is no way to switch it off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// A certificate of an authority that the system trusts.
    SystemRoots,
    /// A certificate of one of these authorities (PEM).
    CaPem(String),
    /// A certificate whose public key (SubjectPublicKeyInfo) has this SHA-256, in base64 or hex.
    KeyPin(String),
}

/// The proxy variables of the environment, as they were read.
#[derive(Clone, Default)]
pub struct ProxyEnv {
    /// `HTTPS_PROXY` or `https_proxy`: for `wss://`.
    pub https_proxy: Option<String>,
    /// `http_proxy` or `HTTP_PROXY`: for `ws://`.
    pub http_proxy: Option<String>,
    /// `NO_PROXY` or `no_proxy`: hosts reached without it.
    pub no_proxy: Option<String>,
}

impl std::fmt::Debug for ProxyEnv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProxyEnv").field("no_proxy", &self.no_proxy).finish_non_exhaustive()
    }
}

impl ProxyEnv {
    /// Reads the environment of this process.
    pub fn from_env() -> Self {
        let read = |names: [&str; 2]| names.iter().find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()));
        ProxyEnv {
            https_proxy: read(["https_proxy", "HTTPS_PROXY"]),
            http_proxy: read(["http_proxy", "HTTP_PROXY"]),
            no_proxy: read(["no_proxy", "NO_PROXY"]),
        }
    }
}

/// What makes dialling impossible from the start.
#[derive(Debug, thiserror::Error)]
pub enum BadDial {
    /// The home URL cannot be dialled.
    #[error("home_url: {0}")]
    HomeUrl(String),
    /// The trust cannot be used.
    #[error("trust: {0}")]
    Trust(String),
    /// The proxy of the environment cannot be used.
    #[error("proxy: {0}")]
    Proxy(String),
    /// A limit is out of range.
    #[error("{0}")]
    Limit(String),
    /// No key could be made.
    #[error("making the link's key pair")]
    Key,
}

/// Why a dialler came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DialEnd {
    /// Home refused for good, in these words.
    Refused(String),
    /// Either end closed the link, for this reason.
    Closed(String),
}

/// Keeps the link's lanes up. Nothing happens until it runs.
#[derive(Debug)]
pub struct Dialer {
    config: DialConfig,
}

/// Checks the config and makes a link that waits for its dialler to run.
pub fn dialer(config: DialConfig) -> Result<(Link, Dialer), BadDial> {
    let _ = Dialer { config };
    Err(BadDial::Key)
}

impl Dialer {
    /// Dials for ever; ends only when home refuses for good or either end closes the link. Dropping it drops
    /// the lanes.
    pub async fn run(self) -> DialEnd {
        let _ = self.config;
        std::future::ready(()).await;
        DialEnd::Closed(String::new())
    }
}
