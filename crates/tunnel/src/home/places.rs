//! Places at the door: how many handshakes may be at work, in all and from one address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Mutex;

use crate::link::lock;

/// One address has this part of all places, so that a stranger at one cannot keep everybody else out.
const SHARE: usize = 4;

/// What is taken, by address.
pub(super) struct Places {
    most: usize,
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// One place, until it is dropped.
pub(super) struct Place<'a> {
    places: &'a Places,
    address: IpAddr,
}

impl Places {
    pub(super) fn new(most: usize) -> Self {
        Places { most, taken: Mutex::default() }
    }

    /// A place, if there is one for this address.
    pub(super) fn take(&self, peer: SocketAddr) -> Option<Place<'_>> {
        let address = network(peer.ip());
        let mut taken = lock(&self.taken);
        let of_address = taken.get(&address).copied().unwrap_or_default();
        let all: usize = taken.values().sum();
        if all >= self.most || of_address >= (self.most / SHARE).max(1) {
            return None;
        }
        taken.insert(address, of_address + 1);
        Some(Place { places: self, address })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut taken = lock(&self.places.taken);
        match taken.get_mut(&self.address) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(taken.remove(&self.address)),
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
    use super::*;

    fn at(text: &str) -> SocketAddr {
        SocketAddr::new(text.parse().unwrap(), 1)
    }

    #[test]
    fn one_address_has_a_quarter_of_all_places_and_gets_them_back() {
        let places = Places::new(8);
        let held: Vec<_> = std::iter::from_fn(|| places.take(at("10.0.0.1"))).collect();
        assert_eq!(held.len(), 2);
        assert!(places.take(at("::ffff:10.0.0.1")).is_none(), "the same address in IPv6's clothes");
        assert!(places.take(at("10.0.0.2")).is_some());
        drop(held);
        assert!(places.take(at("10.0.0.1")).is_some());
        assert!(lock(&places.taken).is_empty());
    }

    #[test]
    fn an_ipv6_network_is_one_address_and_all_together_have_no_more_than_there_are() {
        let places = Places::new(4);
        let held: Vec<_> = (1..9).filter_map(|n| places.take(at(&format!("2001:db8:0:{n}::1")))).collect();
        assert_eq!(held.len(), 4);
        drop(held);
        let _one = places.take(at("2001:db8::1")).unwrap();
        assert!(places.take(at("2001:db8::2")).is_none());
    }
}
