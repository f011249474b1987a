//! The proxy on the way out: which one the environment names for a host, and the CONNECT request to it.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent::decode;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::dial::ProxyEnv;

const MAX_HEAD_BYTES: usize = 16 * 1024;

/// An HTTP proxy. Its `Debug` leaves the password out.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proxy {
    pub(crate) host: String,
    pub(crate) port: u16,
    authorization: Option<String>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// The proxy for a host, if the environment names one and does not except the host.
pub(crate) fn choose(env: &ProxyEnv, tls: bool, host: &str, port: u16) -> Result<Option<Proxy>, String> {
    let named = if tls { &env.https_proxy } else { &env.http_proxy };
    match named.as_deref().map(str::trim) {
        None | Some("") => Ok(None),
        Some(_) if excepted(env.no_proxy.as_deref().unwrap_or_default(), host, port) => Ok(None),
        Some(named) => parse(named).map(Some),
    }
}

fn parse(named: &str) -> Result<Proxy, String> {
    let rest = match named.split_once("://") {
        None => named,
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
        Some((scheme, _)) => {
            let variable = "HTTPS_PROXY (or HTTP_PROXY for ws://)";
            return Err(format!(
                "{variable} names a proxy of the kind {scheme}://; only http:// can be used"
            ));
        }
    };
    let rest = rest.split('/').next().unwrap_or_default();
    let (user, address) = match rest.rsplit_once('@') {
        Some((user, address)) => (Some(user), address),
        None => (None, rest),
    };
    let (host, port) = split_port(address).ok_or("HTTPS_PROXY must be http://[user:password@]host[:port]")?;
    let authorization = user.map(|user| {
        let (name, password) = user.split_once(':').unwrap_or((user, ""));
        let mut plain = decode(name);
        plain.push(b':');
        plain.extend(decode(password));
        format!("Basic {}", STANDARD.encode(plain))
    });
    Ok(Proxy { host: host.to_owned(), port: port.unwrap_or(80), authorization })
}

/// Splits `host`, `host:port`, `[v6]`, `[v6]:port`; brackets are removed.
pub(crate) fn split_port(address: &str) -> Option<(&str, Option<u16>)> {
    let (host, rest) = match address.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => match address.find(':') {
            Some(at) => (&address[..at], &address[at..]),
            None => (address, ""),
        },
    };
    if host.is_empty() {
        return None;
    }
    match rest {
        "" => Some((host, None)),
        rest => Some((host, Some(rest.strip_prefix(':')?.parse().ok()?))),
    }
}

/// Whether `NO_PROXY` names the host: `*`, a name (with all names below it), an address, a network, each with an
/// optional port.
fn excepted(no_proxy: &str, host: &str, port: u16) -> bool {
    let address: Option<IpAddr> = host.parse().ok();
    no_proxy.split([',', ' ']).map(str::trim).filter(|entry| !entry.is_empty()).any(|entry| {
        if entry == "*" {
            return true;
        }
        if let (Some(address), Some((network, bits))) = (address, entry.split_once('/')) {
            return network
                .parse()
                .is_ok_and(|network| bits.parse().is_ok_and(|bits| within(address, network, bits)));
        }
        // A bare IPv6 address has colons that are no port.
        let (name, its_port) = match entry.parse::<IpAddr>() {
            Ok(_) => (entry, None),
            Err(_) => match split_port(entry) {
                Some(split) => split,
                None => return false,
            },
        };
        if its_port.is_some_and(|its_port| its_port != port) {
            return false;
        }
        if let (Some(address), Ok(other)) = (address, name.parse::<IpAddr>()) {
            return address == other;
        }
        let name = name.trim_start_matches("*.").trim_start_matches('.').to_ascii_lowercase();
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        host == name || host.strip_suffix(&name).is_some_and(|front| !name.is_empty() && front.ends_with('.'))
    })
}

fn within(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    let (a, b, width) = match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
        _ => return false,
    };
    bits <= width && (bits == 0 || (a >> (width - bits)) == (b >> (width - bits)))
}

/// Asks the proxy for a way to `target` (`host:port`).
pub(crate) async fn connect<IO>(io: &mut IO, proxy: &Proxy, target: &str) -> Result<(), String>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let broke = |error: std::io::Error| format!("the proxy {proxy:?} broke the connection: {error}");
    let authorization = match &proxy.authorization {
        Some(value) => format!("Proxy-Authorization: {value}\r\n"),
        None => String::new(),
    };
    let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{authorization}\r\n");
    io.write_all(request.as_bytes()).await.map_err(broke)?;
    io.flush().await.map_err(broke)?;
    // Byte by byte: what follows the head belongs to the way that it opens.
    let mut head = Vec::with_capacity(256);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_HEAD_BYTES {
            return Err(format!("the proxy {proxy:?} answers without end"));
        }
        head.push(io.read_u8().await.map_err(broke)?);
    }
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    match (response.parse(&head), response.code) {
        (Ok(_), Some(200..=299)) => Ok(()),
        (Ok(_), Some(407)) => Err(format!("the proxy {proxy:?} asks for a name and password (407)")),
        (Ok(_), Some(code)) => Err(format!("the proxy {proxy:?} refused the way home ({code})")),
        _ => Err(format!("the proxy {proxy:?} does not speak HTTP")),
    }
}

mod percent {
    /// Undoes `%XX`.
    pub(super) fn decode(text: &str) -> Vec<u8> {
        let raw = text.as_bytes();
        let (mut out, mut at) = (Vec::with_capacity(raw.len()), 0);
        while at < raw.len() {
            let hex = |index: usize| raw.get(index).and_then(|byte| (*byte as char).to_digit(16));
            match (raw[at], hex(at + 1), hex(at + 2)) {
                (b'%', Some(high), Some(low)) => {
                    out.push((high * 16 + low) as u8);
                    at += 3;
                }
                (byte, ..) => {
                    out.push(byte);
                    at += 1;
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_proxy_excepts_what_it_names_and_nothing_else() {
        let cases = [
            ("*", "home.example", true),
            ("", "home.example", false),
            ("example", "home.example", true),
            (".example", "home.example", true),
            ("*.example", "home.example", true),
            ("xample", "home.example", false),
            ("other, home.example", "HOME.example", true),
            ("home.example:443", "home.example", true),
            ("home.example:80", "home.example", false),
            ("10.0.0.0/8", "10.1.2.3", true),
            ("10.0.0.0/8", "11.1.2.3", false),
            ("10.1.2.3", "10.1.2.3", true),
            ("fd00::/8", "fd12::1", true),
            ("::1", "::1", true),
            ("[::1]:443", "::1", true),
            ("0.0.0.0/0", "::1", false),
            ("10.0.0.0/99", "10.0.0.1", false),
        ];
        for (no_proxy, host, expected) in cases {
            assert_eq!(excepted(no_proxy, host, 443), expected, "{no_proxy} {host}");
        }
    }

    #[test]
    fn a_proxy_is_read_with_its_password_and_does_not_show_it() {
        let proxy = parse("http://ada:p%40ss@proxy.example:3128/").unwrap();
        assert_eq!((proxy.host.as_str(), proxy.port), ("proxy.example", 3128));
        assert_eq!(proxy.authorization.as_deref(), Some("Basic YWRhOnBAc3M="));
        assert_eq!(format!("{proxy:?}"), "proxy.example:3128");
        assert_eq!(parse("proxy.example").unwrap().port, 80);
        assert_eq!(parse("http://[::1]:8080").unwrap().host, "::1");
        for bad in ["socks5://proxy:1", "https://proxy", "http://", "http://proxy:x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
