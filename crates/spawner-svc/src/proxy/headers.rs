//! Header fields that belong to one connection and not to the message (RFC 9110, section 7.6.1).

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Fields that a message may not name in `Connection` to have them dropped on the way: without them it would mean
/// something else to the next reader.
const KEPT: [HeaderName; 5] =
    [header::HOST, header::CONTENT_LENGTH, header::AUTHORIZATION, header::COOKIE, header::SET_COOKIE];

const OF_ONE_CONNECTION: [HeaderName; 4] =
    [header::CONNECTION, header::TRANSFER_ENCODING, header::TE, header::UPGRADE];

/// Removes the connection's own fields, those that `Connection` names, and those that some readers take for a field that
/// says how long a message is: with `_` for `-`, as CGI and its heirs do.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = tokens(headers, &header::CONNECTION)
        .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
        .filter(|name| !KEPT.contains(name))
        .collect();
    for name in named.iter().chain(&OF_ONE_CONNECTION) {
        headers.remove(name);
    }
    for name in ["keep-alive", "proxy-connection"] {
        headers.remove(name);
    }
    remove_named(headers, |name| {
        name.contains('_') && matches!(&*dashed(name), "content-length" | "transfer-encoding")
    });
}

/// Removes the fields whose name, in small letters, is one of those meant.
pub(super) fn remove_named(headers: &mut HeaderMap, meant: impl Fn(&str) -> bool) {
    let found: Vec<HeaderName> = headers.keys().filter(|name| meant(name.as_str())).cloned().collect();
    for name in found {
        headers.remove(name);
    }
}

/// A name as readers understand it that make no difference between `_` and `-`.
pub(super) fn dashed(name: &str) -> String {
    name.replace('_', "-")
}

/// The protocol that a request asks to switch to: `Connection: upgrade` and a value in `Upgrade`. HTTP/2 is none:
/// what follows could not be told from a second request.
pub(super) fn upgrade_wanted(headers: &HeaderMap) -> Option<HeaderValue> {
    let value = headers.get(header::UPGRADE)?;
    let asks = tokens(headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let http2 = tokens(headers, &header::UPGRADE).any(|token| token.to_ascii_lowercase().starts_with("h2"));
    (asks && !http2).then(|| value.clone())
}

/// True when the body has a transfer coding beside chunks: it would be lost on the way, and readers differ on its end.
pub(super) fn has_odd_coding(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    codings.next().is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
        || codings.next().is_some()
}

/// True when the list-valued field holds this token.
pub(super) fn has_token(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    tokens(headers, name).any(|token| token.eq_ignore_ascii_case(wanted))
}

fn tokens<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn only_the_connections_own_fields_go() {
        let mut map = headers(&[
            ("connection", "close, X-Mine"),
            ("connection", "Host, Authorization"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("host", "hub.example.org"),
            ("authorization", "token x"),
            ("x-forwarded-for", "192.0.2.1"),
            ("content_length", "5"),
            ("transfer_encoding", "chunked"),
            ("x_mine", "2"),
        ]);
        strip_hop_by_hop(&mut map);
        let mut left: Vec<_> = map.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["authorization", "host", "x-forwarded-for", "x_mine"]);
    }

    #[test]
    fn a_coding_is_chunked_once_or_odd() {
        for plain in ["chunked", "Chunked"] {
            assert!(!has_odd_coding(&headers(&[("transfer-encoding", plain)])));
        }
        for odd in ["identity, chunked", "gzip, chunked", "chunked, chunked", "gzip", ""] {
            assert!(has_odd_coding(&headers(&[("transfer-encoding", odd)])), "{odd}");
        }
        let twice = [("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")];
        assert!(has_odd_coding(&headers(&twice)));
        assert!(!has_odd_coding(&HeaderMap::new()));
    }

    #[test]
    fn an_upgrade_needs_both_fields_and_is_never_http_2() {
        let both = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(upgrade_wanted(&both).unwrap(), "websocket");
        assert_eq!(upgrade_wanted(&headers(&[("upgrade", "websocket")])), None);
        assert_eq!(upgrade_wanted(&headers(&[("connection", "upgrade")])), None);
        assert_eq!(upgrade_wanted(&headers(&[("connection", "upgrade"), ("upgrade", "h2c")])), None);
    }
}
