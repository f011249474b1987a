//! The door that agents knock at.
//!
//! In: connections from anywhere; this is the only listener that the internet sees. Out: connections after TLS, to
//! the tunnel's home end, which asks the gate. A peer that stays silent costs one seat for a bounded time and never
//! holds up the next; many agents behind one address are welcome, a flood from one is turned away at the door.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use glidepath_tunnel::gulp::Gulp;
use glidepath_tunnel::home::HomeEnd;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::bucket::{Bucket, Rate};
use super::sockets;
use crate::notable::{About, Notes, Refusal, Repair, Retry};
use crate::tls::{LinkTls, ServerTls};

/// Connections at a time: lanes of links and handshakes.
pub const CONNECTIONS_MAX: usize = 32_768;

/// One deadline over the TLS handshake. Upgrade and proof have their own, at the home end.
const TLS_WAIT: Duration = Duration::from_secs(10);

/// How long lanes have to say goodbye once the service is to stop.
const DRAIN: Duration = Duration::from_secs(5);

/// How often the certificate is looked after.
const REFRESH_EVERY: Duration = Duration::from_secs(60);

/// Serves the link listener until the service is to stop; then the home end says so to every agent.
pub async fn run(
    listener: TcpListener,
    tls: LinkTls,
    home_end: HomeEnd,
    notes: Notes,
    stop: CancellationToken,
) {
    let seats = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut open = JoinSet::new();
    let mut doorman = match &tls {
        LinkTls::Own(_) => Some(Doorman::default()),
        LinkTls::PlainBehind(_) => None, // every agent comes from that proxy's address
    };
    let mut refresh = interval(REFRESH_EVERY);
    refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let next = async {
            let seat = Arc::clone(&seats).acquire_owned().await;
            (seat, sockets::accept(&listener, "link", &notes).await)
        };
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = open.join_next(), if !open.is_empty() => {}
            _ = refresh.tick() => look_after(&tls, &notes).await,
            (seat, (stream, peer)) = next => {
                let Ok(seat) = seat else { break };
                let comes_in = doorman.as_mut().is_none_or(|doorman| doorman.lets_in(peer.ip(), Instant::now()));
                if comes_in {
                    open.spawn(serve(stream, peer, tls.clone(), home_end.clone(), notes.clone(), seat));
                } else {
                    notes.refused(Refusal::KnockFlood, &About::new().peer(network(peer.ip())));
                }
            }
        }
    }
    drop(listener);
    home_end.shutdown("the service stops");
    let goodbye = async { while open.join_next().await.is_some() {} };
    let _ = timeout(DRAIN, goodbye).await; // what is left is cut; agents come back either way
    open.shutdown().await;
}

async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    tls: LinkTls,
    home_end: HomeEnd,
    notes: Notes,
    seat: OwnedSemaphorePermit,
) {
    match tls {
        LinkTls::PlainBehind(_) => home_end.serve(stream, peer).await,
        LinkTls::Own(tls) => {
            let acceptor = TlsAcceptor::from(tls.config());
            match timeout(TLS_WAIT, acceptor.accept(Gulp::new(stream))).await {
                Ok(Ok(stream)) => home_end.serve(stream, peer).await,
                Ok(Err(error)) if is_of_trust(&error) => {
                    let why = error.to_string();
                    notes.refused(Refusal::KnockTrust, &About::new().peer(peer.ip()).why(&why));
                }
                Ok(Err(error)) => tracing::debug!(%peer, %error, "a TLS handshake failed"),
                Err(_) => tracing::debug!(%peer, "a TLS handshake was not finished in time"),
            }
        }
    }
    drop(seat);
}

/// True when the peer turned our certificate down: an agent with another CA, or a certificate past its end.
fn is_of_trust(error: &io::Error) -> bool {
    use rustls::AlertDescription as Alert;
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::AlertReceived(alert)) = inner else { return false };
    matches!(
        alert,
        Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::DecryptError // another authority of the same name: that of a state folder of before
    )
}

/// Renews the certificate where it is due. Files are read off the runtime's threads.
async fn look_after(tls: &LinkTls, notes: &Notes) {
    let LinkTls::Own(tls) = tls else { return };
    let tls: ServerTls = tls.clone();
    let why = match tokio::task::spawn_blocking(move || tls.refresh()).await {
        Ok(Ok(true)) => return notes.repaired(Repair::CertificateRenewed, &About::new()),
        Ok(Ok(false)) => return,
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    notes.retries(Retry::CertificateAgain, &About::new().why(&why));
}

/// Counts connections per address.
#[derive(Default)]
struct Doorman {
    seen: HashMap<IpAddr, Bucket>,
}

impl Doorman {
    /// A site of five thousand agents behind one address that all dial at once, two times each, comes in within seconds.
    const RATE: Rate = Rate { burst: 10_000.0, per_s: 500.0 };
    /// Addresses remembered at a time; full buckets are forgotten first.
    const ADDRESSES_MAX: usize = 16_384;

    fn lets_in(&mut self, address: IpAddr, now: Instant) -> bool {
        if self.seen.len() >= Self::ADDRESSES_MAX {
            self.seen.retain(|_, bucket| !bucket.is_full(Self::RATE, now));
            if self.seen.len() >= Self::ADDRESSES_MAX {
                self.seen.clear();
            }
        }
        let bucket = self.seen.entry(network(address)).or_insert_with(|| Bucket::full(Self::RATE, now));
        bucket.take(Self::RATE, now).is_ok()
    }
}

/// What one household holds: the address itself, or the first 64 bits of an IPv6 address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_from_one_address_is_turned_away_and_others_come_in() {
        let mut doorman = Doorman::default();
        let now = Instant::now();
        let (noisy, calm) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let came_in = (0..20_000).filter(|_| doorman.lets_in(noisy, now)).count();
        assert_eq!(came_in, 10_000);
        assert!(doorman.lets_in(calm, now));
        assert!(doorman.lets_in(noisy, now + Duration::from_secs(1)));
    }

    #[test]
    fn a_household_of_ipv6_addresses_is_one() {
        let one = network("2001:db8:1:2::1".parse().unwrap());
        assert_eq!(one, network("2001:db8:1:2:ffff::9".parse().unwrap()));
        assert_ne!(one, network("2001:db8:1:3::1".parse().unwrap()));
        assert_eq!(network("::ffff:192.0.2.1".parse().unwrap()), network("192.0.2.1".parse().unwrap()));
    }

    #[test]
    fn the_memory_of_addresses_is_bounded() {
        let mut doorman = Doorman::default();
        let now = Instant::now();
        for number in 0..100_000_u32 {
            doorman.lets_in(std::net::Ipv4Addr::from_bits(number).into(), now);
        }
        assert!(doorman.seen.len() <= Doorman::ADDRESSES_MAX);
    }
}
