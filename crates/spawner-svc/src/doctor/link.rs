//! The link's certificate, before agents see it.

use std::time::Duration;

use super::Findings;
use crate::config::{Config, LinkTls};
use crate::tls;

/// An operator has this long to renew a certificate before it is told as an error, and as a warning.
const SOON: Duration = Duration::from_secs(7 * 24 * 3600);
const LATER: Duration = Duration::from_secs(30 * 24 * 3600);

pub(super) fn look(config: &Config, out: &mut Findings) {
    let url = config.link.url.as_deref().and_then(|url| url.parse::<http::Uri>().ok());
    let host = url.as_ref().and_then(http::Uri::host);
    if let LinkTls::Files { cert, .. } = &config.link.tls {
        let ends = |time| tls::ends_within(cert, time).unwrap_or(false); // `check` has told what does not read
        if ends(SOON) {
            out.error("link.tls.cert", format!("{} ends within a week", cert.display()), "renew it");
        } else if ends(LATER) {
            out.warning("link.tls.cert", format!("{} ends within a month", cert.display()), "renew it");
        }
        if let Some(host) = host
            && tls::is_for(cert, host).is_ok_and(|is| !is)
        {
            let found = format!("{} is not for {host}, which agents dial", cert.display());
            out.error("link.tls.cert", found, "get a certificate with that name, or change link.url");
        }
    }
    if host.is_some_and(|host| host == "localhost" || host.starts_with("127.") || host == "[::1]") {
        let found = "agents dial this machine's loopback: only jobs on this machine reach it";
        out.note("link.url", found);
    }
    out.note(
        "link.url",
        "whether a site's nodes reach it can only be seen from there: \
         curl -i https://HOST:PORT/link from a node, any answer of HTTP is right",
    );
}
