//! Places at the door: how many handshakes may be at work, in all and from one address, and who waits for one.
//!
//! Whoever finds all taken waits in a queue rather than being sent away: TLS has been paid for by then, and whoever is
//! sent away comes again and costs it once more. Who waits in vain, or finds too many that wait, is sent away.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::link::lock;

/// One address has this part of all places, so that a stranger at one cannot keep everybody else out.
const SHARE: usize = 4;
/// For each of its places, so many of an address may be at the door: one at work, the others waiting. What waits is a
/// connection with its TLS and nothing more.
const QUEUE: usize = 4;
/// Longer than thousands that come at once take, and shorter than an agent waits for its answer.
pub(super) const WAIT: Duration = Duration::from_secs(5);

/// All places, and those of each address that is here.
pub(super) struct Places {
    all: Semaphore,
    share: usize,
    /// At the door from one address; from all of them `SHARE` times as many.
    most_here: usize,
    here: Mutex<Here>,
}

/// Who is at the door.
#[derive(Default)]
struct Here {
    of: HashMap<IpAddr, OfAddress>,
    count: usize,
}

struct OfAddress {
    places: Arc<Semaphore>,
    count: usize,
}

/// One place, until it is dropped.
pub(super) struct Place<'a> {
    _of_all: SemaphorePermit<'a>,
    _of_address: OwnedSemaphorePermit,
    _guest: Guest<'a>,
}

/// One at the door, with or without a place.
struct Guest<'a> {
    places: &'a Places,
    address: IpAddr,
}

impl Places {
    pub(super) fn new(most: usize) -> Self {
        let share = (most / SHARE).max(1);
        Places { all: Semaphore::new(most), share, most_here: share * QUEUE, here: Mutex::default() }
    }

    /// A place for this address, after those who came before; `None` when there is none in time. First comes the
    /// address's own queue, then that of all, where no address has more than its share: many that wait from one address
    /// hold up no other. May be dropped half way.
    pub(super) async fn take(&self, peer: SocketAddr) -> Option<Place<'_>> {
        let (guest, of_address) = self.come(network(peer.ip()))?;
        let wait = async {
            let of_address = of_address.acquire_owned().await.ok()?;
            Some((self.all.acquire().await.ok()?, of_address))
        };
        let (of_all, of_address) = timeout(WAIT, wait).await.ok()??;
        Some(Place { _of_all: of_all, _of_address: of_address, _guest: guest })
    }

    fn come(&self, address: IpAddr) -> Option<(Guest<'_>, Arc<Semaphore>)> {
        let mut here = lock(&self.here);
        let of_address = here.of.get(&address).map_or(0, |of| of.count);
        if of_address >= self.most_here || here.count >= self.most_here * SHARE {
            return None;
        }
        here.count += 1;
        let new = || OfAddress { places: Arc::new(Semaphore::new(self.share)), count: 0 };
        let of = here.of.entry(address).or_insert_with(new);
        of.count += 1;
        Some((Guest { places: self, address }, Arc::clone(&of.places)))
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        let mut here = lock(&self.places.here);
        here.count -= 1;
        match here.of.get_mut(&self.address) {
            Some(of) if of.count > 1 => of.count -= 1,
            _ => drop(here.of.remove(&self.address)),
        }
    }
}

/// What belongs to one owner: an IPv4 address, or an IPv6 network of 64 bits.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::time::Instant;

    use super::*;

    fn at(text: &str) -> SocketAddr {
        SocketAddr::new(text.parse().unwrap(), 1)
    }

    /// The place that there is at once.
    fn now<'a>(places: &'a Places, text: &str) -> Option<Place<'a>> {
        places.take(at(text)).now_or_never().flatten()
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_has_a_quarter_of_all_places_and_gets_them_back() {
        let places = Places::new(8);
        let held: Vec<_> = std::iter::from_fn(|| now(&places, "10.0.0.1")).collect();
        assert_eq!(held.len(), 2);
        assert!(now(&places, "::ffff:10.0.0.1").is_none(), "the same address in IPv6's clothes");
        assert!(now(&places, "10.0.0.2").is_some());
        drop(held);
        assert!(now(&places, "10.0.0.1").is_some());
        assert!(lock(&places.here).of.is_empty());
        assert_eq!(lock(&places.here).count, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_ipv6_network_is_one_address_and_all_together_have_no_more_than_there_are() {
        let places = Places::new(4);
        let held: Vec<_> = (1..9).filter_map(|n| now(&places, &format!("2001:db8:0:{n}::1"))).collect();
        assert_eq!(held.len(), 4);
        drop(held);
        let _one = now(&places, "2001:db8::1").unwrap();
        assert!(now(&places, "2001:db8::2").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_all_taken_waits_for_the_next_place_but_not_for_ever() {
        let places = Places::new(4);
        let held = now(&places, "10.0.0.1").unwrap();
        let began = Instant::now();
        assert!(places.take(at("10.0.0.1")).await.is_none());
        assert_eq!(began.elapsed(), WAIT);
        let leave = async {
            tokio::time::sleep(WAIT / 2).await;
            drop(held);
        };
        let (taken, ()) = tokio::join!(places.take(at("10.0.0.1")), leave);
        assert!(taken.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_is_bounded_and_one_address_holds_up_no_other() {
        let places = Places::new(8);
        let mut waiting: Vec<_> = (0..9).map(|_| Box::pin(places.take(at("10.0.0.1")))).collect();
        let ready: Vec<_> = waiting.iter_mut().map(|take| take.as_mut().now_or_never()).collect();
        let got = ready.iter().filter(|take| matches!(take, Some(Some(_)))).count();
        assert_eq!(got, 2, "its share");
        assert!(matches!(ready[8], Some(None)), "the ninth is sent away at once");
        assert_eq!(ready.iter().filter(|take| take.is_none()).count(), 6, "the others wait");
        assert!(now(&places, "10.0.0.2").is_some());
    }
}
