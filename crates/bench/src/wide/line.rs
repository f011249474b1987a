//! One direction of a line, as a queue in front of a wire: given packets and the time, it says when each arrives.
//!
//! A packet waits until the ones before it have left, is lost when it would wait longer than the queue holds, takes its
//! time on the wire, is lost there by chance, and arrives a delay later. No clock and no device.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde::Serialize;

/// What a line is like, each way.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Nature {
    /// Milliseconds one way.
    #[arg(long, default_value_t = 10.0)]
    delay_ms: f64,
    /// Mbit/s of whole IP packets.
    #[arg(long, default_value_t = 200.0)]
    mbit: f64,
    /// Milliseconds that a packet waits at most for those before it.
    #[arg(long, default_value_t = 50.0)]
    queue_ms: f64,
    /// Percent of packets that are lost by chance.
    #[arg(long, default_value_t = 0.0)]
    loss_percent: f64,
    /// Which of them: the same seed loses the packets of the same numbers.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What became of the packets that have been given to a line.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Fate {
    pub(crate) carried: u64,
    /// By chance.
    pub(crate) lost: u64,
    /// Because the queue was full.
    pub(crate) overflowed: u64,
    /// While everything was.
    pub(crate) swallowed: u64,
}

/// One direction.
#[derive(Debug)]
pub(crate) struct Line {
    delay: Duration,
    second_per_byte: f64,
    queue: Duration,
    loss: f64,
    random: StdRng,
    /// When the wire has sent what it has.
    free: Instant,
    /// Packets on their way, each with its arrival.
    under_way: VecDeque<(Instant, Vec<u8>)>,
    pub(crate) fate: Fate,
}

impl Line {
    /// The directions of one line differ in what they lose.
    pub(crate) fn new(nature: &Nature, direction: u64, now: Instant) -> Self {
        Self {
            delay: Duration::from_secs_f64(nature.delay_ms / 1e3),
            second_per_byte: 8.0 / (nature.mbit * 1e6),
            queue: Duration::from_secs_f64(nature.queue_ms / 1e3),
            loss: (nature.loss_percent / 100.0).clamp(0.0, 1.0),
            random: StdRng::seed_from_u64(nature.seed.wrapping_mul(2).wrapping_add(direction)),
            free: now,
            under_way: VecDeque::new(),
            fate: Fate::default(),
        }
    }

    /// Gives it a packet that comes at this moment; `whole` is false while everything is swallowed.
    pub(crate) fn put(&mut self, packet: &[u8], whole: bool, now: Instant) {
        let unlucky = self.random.random_bool(self.loss); // drawn for each, so that numbers stay what they are
        let leaves = self.free.max(now);
        if !whole {
            self.fate.swallowed += 1;
        } else if leaves - now > self.queue {
            self.fate.overflowed += 1;
        } else {
            self.free = leaves + Duration::from_secs_f64(packet.len() as f64 * self.second_per_byte);
            if unlucky {
                self.fate.lost += 1;
            } else {
                self.fate.carried += 1;
                self.under_way.push_back((self.free + self.delay, packet.to_vec()));
            }
        }
    }

    /// When the next packet arrives.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.under_way.front().map(|(arrives, _)| *arrives)
    }

    /// A packet that has arrived by now.
    pub(crate) fn take(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.under_way.pop_front_if(|(arrives, _)| *arrives <= now).map(|(_, packet)| packet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: [u8; 1500] = [7; 1500];
    /// Of that packet at 200 Mbit/s.
    const ON_THE_WIRE: Duration = Duration::from_micros(60);
    const MS: Duration = Duration::from_millis(1);

    fn nature(loss_percent: f64) -> Nature {
        Nature { delay_ms: 10.0, mbit: 200.0, queue_ms: 50.0, loss_percent, seed: 7 }
    }

    /// Numbers of the packets that arrive, of so many that come one by one.
    fn arrived(loss_percent: f64, seed: u64, direction: u64, packets: u32) -> Vec<u32> {
        let mut now = Instant::now();
        let mut line = Line::new(&Nature { seed, ..nature(loss_percent) }, direction, now);
        let mut all = Vec::new();
        for number in 0..packets {
            line.put(&number.to_be_bytes(), true, now);
            now += MS * 20;
            all.extend(line.take(now).map(|packet| u32::from_be_bytes(packet.try_into().unwrap())));
        }
        all
    }

    #[test]
    fn a_packet_arrives_after_its_time_on_the_wire_and_the_delay_and_not_before() {
        let now = Instant::now();
        let mut line = Line::new(&nature(0.0), 0, now);
        line.put(&PACKET, true, now);
        let arrives = now + ON_THE_WIRE + MS * 10;
        assert_eq!(line.due(), Some(arrives));
        assert_eq!(line.take(arrives - Duration::from_nanos(1)), None);
        assert_eq!(line.take(arrives).as_deref(), Some(&PACKET[..]));
        assert_eq!((line.due(), line.take(arrives)), (None, None));
    }

    #[test]
    fn packets_that_come_at_once_leave_one_after_the_other_at_the_line_s_rate() {
        let now = Instant::now();
        let mut line = Line::new(&nature(0.0), 0, now);
        (0..100).for_each(|_| line.put(&PACKET, true, now));
        let arrivals: Vec<Instant> =
            std::iter::from_fn(|| line.due().filter(|&due| line.take(due).is_some())).collect();
        assert_eq!(arrivals.len(), 100);
        assert!(arrivals.windows(2).all(|pair| pair[1] - pair[0] == ON_THE_WIRE));
    }

    #[test]
    fn the_queue_holds_its_time_and_what_comes_more_is_lost() {
        let now = Instant::now();
        let mut line = Line::new(&nature(0.0), 0, now);
        (0..2000).for_each(|_| line.put(&PACKET, true, now));
        // 50 ms at 60 µs each: 834 packets wait no longer than that.
        assert_eq!((line.fate.carried, line.fate.overflowed), (834, 1166));
        line.put(&PACKET, true, now + MS);
        assert_eq!(line.fate.carried, 835, "a millisecond later there is room again");
    }

    #[test]
    fn a_line_that_was_idle_does_not_make_up_for_it() {
        let now = Instant::now();
        let mut line = Line::new(&nature(0.0), 0, now);
        let later = now + MS * 1000;
        line.put(&PACKET, true, later);
        assert_eq!(line.due(), Some(later + ON_THE_WIRE + MS * 10));
    }

    #[test]
    fn so_many_are_lost_as_was_asked_and_the_rest_stay_in_order() {
        let through = arrived(0.3, 7, 0, 100_000);
        let lost = 100_000 - through.len();
        assert!((200..400).contains(&lost), "{lost} of 100,000");
        assert!(through.is_sorted());
        assert_eq!(arrived(0.0, 7, 0, 1000).len(), 1000);
        assert_eq!(arrived(100.0, 7, 0, 1000).len(), 0);
    }

    #[test]
    fn a_seed_loses_the_same_again_and_another_or_the_other_direction_does_not() {
        let once = arrived(5.0, 7, 0, 2000);
        assert_eq!(once, arrived(5.0, 7, 0, 2000));
        assert_ne!(once, arrived(5.0, 8, 0, 2000));
        assert_ne!(once, arrived(5.0, 7, 1, 2000));
    }

    #[test]
    fn while_everything_is_swallowed_nothing_arrives_that_came_meanwhile_and_nothing_takes_time() {
        let now = Instant::now();
        let mut line = Line::new(&nature(0.0), 0, now);
        line.put(&PACKET, true, now);
        (0..1000).for_each(|_| line.put(&PACKET, false, now));
        line.put(&PACKET, true, now);
        assert_eq!(line.fate, Fate { carried: 2, swallowed: 1000, ..Fate::default() });
        assert!(line.take(now + MS * 11).is_some());
        assert_eq!(line.due(), Some(now + 2 * ON_THE_WIRE + MS * 10));
    }
}
