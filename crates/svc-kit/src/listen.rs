//! Listening sockets, and a sentence when there can be none.

use std::net::SocketAddr;

use tokio::net::TcpListener;

use crate::files::in_words;

/// Reads `127.0.0.1:8000` or `[::1]:8000`; port 0 takes a free one.
pub fn parse(raw: &str) -> Result<SocketAddr, &'static str> {
    raw.trim().parse().map_err(|_| "must be an address and a port, like 127.0.0.1:8000 or [::1]:8000")
}

/// Binds; the error names address and reason.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address)
        .await
        .map_err(|error| format!("cannot listen on {address}: {}", in_words(&error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_told_in_one_sentence() {
        let first = bind(parse("[::1]:0").unwrap()).await.unwrap();
        let address = first.local_addr().unwrap();
        let told = bind(address).await.unwrap_err();
        assert_eq!(told, format!("cannot listen on {address}: another process listens there"));
    }

    #[test]
    fn an_address_without_brackets_or_port_is_refused() {
        for bad in ["::1:80", "127.0.0.1", "localhost:80", "[::1]", ""] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
