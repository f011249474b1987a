//! When to dial and how long each dial may take. Given the time; no clock.
//!
//! Two silences look alike at first and want the opposite. A hole swallows what is sent: then a connection comes about
//! only after it has ended, at the next dial, so dials are frequent and soon given up. A home to which thousands come
//! back at once lets them connect and answers late: there each dial that is given up is one more for which it works in
//! vain, until it works for nobody else. What tells them apart is a connection that stands.

use std::time::Duration;

use tokio::time::Instant;

/// A silence is young for so long: a dial every half second, each given up after two unless home's port is reached.
const YOUNG: Duration = Duration::from_secs(90);
const DIAL_EVERY: Duration = Duration::from_millis(500);
const QUICK_DIAL: Duration = Duration::from_secs(2);
/// But for one in so many, when the first quick ones came to nothing: a way of long round trips needs more time.
const PATIENT_EVERY: u32 = 32;
const FIRST_PATIENT: u32 = 4;
/// A connection that stands has so long for TLS and the handshake.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// And so long before another dial is begun beside it, as a hole may have begun after it came to stand. TCP sends again
/// what such a hole swallowed, 0.2, 0.6 and 1.4 s later; beyond that it is slower than the next dial.
const LET_ANSWER: Duration = Duration::from_secs(2);
/// Each further connection that stands shows that the way is open, and doubles that, to at most this.
const MAX_LET_ANSWER: Duration = Duration::from_secs(8);
/// Dials at one time: four quick ones, a patient one, and as many that stand as begin within `ANSWER_WITHIN`.
const MAX_DIALS: usize = 9;
/// After that: ever less often, each with more time.
const SLOW_DIAL: Duration = Duration::from_secs(15);
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// When to dial: often while the silence is young, then ever less, and never before home allows it.
#[derive(Debug)]
pub(super) struct Pace {
    silent_since: Option<Instant>,
    next: Instant,
    not_before: Instant,
    /// Until when a connection that stands keeps other dials back.
    stands_until: Option<Instant>,
    let_answer: Duration,
    backoff: Duration,
    /// Dials of this silence.
    dials: u32,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Pace {
            silent_since: Some(now),
            next: now,
            not_before: now,
            stands_until: None,
            let_answer: LET_ANSWER,
            backoff: FIRST_BACKOFF,
            dials: 0,
        }
    }

    /// How many lanes are good at this moment, and how many are wanted.
    pub(super) fn note(&mut self, good: usize, wanted: usize, now: Instant) {
        if good >= wanted {
            self.backoff = FIRST_BACKOFF;
        }
        match (good > 0, self.silent_since) {
            (true, Some(_)) => {
                self.silent_since = None;
                self.backoff = FIRST_BACKOFF;
            }
            (false, None) => {
                self.silent_since = Some(now);
                self.backoff = FIRST_BACKOFF;
                self.dials = 0;
                self.stands_until = None;
                self.let_answer = LET_ANSWER;
                self.next = now.max(self.not_before);
            }
            _ => {}
        }
    }

    /// When the next dial may begin, while so many are under way; `None`: not before one of them has ended.
    pub(super) fn due(&self, under_way: usize) -> Option<Instant> {
        let due = self.stands_until.map_or(self.next, |until| until.max(self.next));
        (under_way < MAX_DIALS).then_some(due)
    }

    /// A dial has reached home's port, and waits for what home says. Lanes beside a good one have a pace of their own.
    pub(super) fn stands(&mut self, now: Instant) {
        if self.silent_since.is_some() {
            self.stands_until = Some(now + self.let_answer.mul_f64(rand::random_range(0.8..1.2)));
            self.let_answer = (self.let_answer * 2).min(MAX_LET_ANSWER);
        }
    }

    /// What stood came to nothing: the next dial begins when it would have without it.
    pub(super) fn none_stands(&mut self) {
        self.stands_until = None;
    }

    /// A lane came up: the next one that is wanted is dialled soon.
    pub(super) fn reached(&mut self, now: Instant) {
        self.backoff = FIRST_BACKOFF;
        self.next = self.next.min(now).max(self.not_before);
    }

    /// A dial begins: plans the next one; says how long this one may take.
    pub(super) fn dialled(&mut self, now: Instant) -> Duration {
        let young = self.silent_since.is_some_and(|since| now.saturating_duration_since(since) < YOUNG);
        if young {
            self.next = now + DIAL_EVERY.mul_f64(rand::random_range(0.8..1.2));
            let patient = self.dials % PATIENT_EVERY == FIRST_PATIENT;
            self.dials += 1;
            if patient { SLOW_DIAL } else { QUICK_DIAL }
        } else {
            self.next = now + self.backoff.mul_f64(rand::random_range(0.5..1.0));
            self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
            SLOW_DIAL
        }
    }

    pub(super) fn stay_away(&mut self, now: Instant, after: Duration) {
        self.not_before = now + after.mul_f64(rand::random_range(1.0..1.3));
        self.next = self.next.max(self.not_before);
    }

    /// Soon, but not all agents at one time.
    pub(super) fn soon(&mut self, now: Instant) {
        self.not_before = now + Duration::from_millis(rand::random_range(100..1000));
        self.next = self.not_before;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Dials as soon as it is allowed, for so long: when each dial began, since `from`, and how long it may take.
    fn dials(pace: &mut Pace, good: usize, wanted: usize, from: Instant, for_s: u64) -> Vec<(f64, Duration)> {
        let (mut now, mut all) = (from, Vec::new());
        while now < from + SECOND * for_s as u32 {
            pace.note(good, wanted, now);
            now = now.max(pace.next);
            all.push(((now - from).as_secs_f64(), pace.dialled(now)));
        }
        all
    }

    fn gaps(dials: &[(f64, Duration)]) -> Vec<f64> {
        dials.windows(2).map(|pair| pair[1].0 - pair[0].0).collect()
    }

    #[test]
    fn a_young_silence_is_dialled_every_half_second_and_an_old_one_ever_less() {
        let start = Instant::now();
        let all = dials(&mut Pace::new(start), 0, 1, start, 600);
        let (young, old): (Vec<_>, Vec<_>) = all.iter().partition(|(at, _)| *at < 90.0);
        assert!(gaps(&young).iter().all(|gap| (0.4..=0.6).contains(gap)), "{:?}", gaps(&young));
        assert!((165..=195).contains(&young.len()), "{} dials", young.len());
        assert!(young[..4].iter().all(|(_, limit)| *limit == SECOND * 2), "{young:?}");
        let patient = young.iter().filter(|(_, limit)| *limit == SECOND * 15).count();
        let quick = young.iter().filter(|(_, limit)| *limit == SECOND * 2).count();
        assert!((5..=6).contains(&patient) && patient + quick == young.len(), "{patient} and {quick}");

        assert!(old.iter().all(|(_, limit)| *limit == SECOND * 15));
        for (n, gap) in gaps(&old).into_iter().enumerate() {
            let longest = 2f64.powi(n as i32).min(30.0);
            assert!((longest / 2.0..=longest).contains(&gap), "{gap} s before dial {n} of the old silence");
        }
    }

    #[test]
    fn a_new_silence_is_young_again() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        dials(&mut pace, 0, 1, start, 300);
        let later = start + SECOND * 400;
        pace.note(1, 1, later);
        let again = dials(&mut pace, 0, 1, later, 3);
        assert!(again[0].0 < f64::EPSILON, "the first dial of a silence waits for nothing");
        assert!(gaps(&again).iter().all(|gap| (0.4..=0.6).contains(gap)), "{again:?}");
    }

    #[test]
    fn a_further_lane_that_was_there_is_soon_dialled_again() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let tries = dials(&mut pace, 1, 2, start, 300);
        assert!(gaps(&tries).last().is_some_and(|gap| *gap >= 15.0), "{tries:?}");
        let later = start + SECOND * 400;
        pace.note(2, 2, later);
        let again = dials(&mut pace, 1, 2, later, 2);
        assert!(again.len() > 1 && again[1].0 <= 1.0, "{again:?}");
    }

    #[test]
    fn while_the_most_dials_are_under_way_the_clock_begins_none() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let limits: Vec<Duration> = (0..MAX_DIALS).map(|_| pace.dialled(start)).collect();
        assert_eq!(limits.iter().sum::<Duration>(), SECOND * (8 * 2 + 15));
        assert!(pace.due(MAX_DIALS - 1).is_some());
        assert_eq!(pace.due(MAX_DIALS), None, "a moment in the past would be waited for without end");
    }

    #[test]
    fn a_connection_that_stands_keeps_others_back_ever_longer_until_it_comes_to_nothing() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.note(0, 1, start);
        pace.dialled(start);
        let planned = pace.due(1).unwrap();
        assert!(planned <= start + SECOND * 6 / 10);
        for let_answer in [2.0, 4.0, 8.0, 8.0] {
            pace.stands(start);
            let kept_back = (pace.due(1).unwrap() - start).as_secs_f64();
            assert!((let_answer * 0.8..=let_answer * 1.2).contains(&kept_back), "{kept_back} s");
        }
        pace.none_stands();
        assert_eq!(pace.due(0), Some(planned), "as if it had not been");

        pace.stands(start);
        pace.note(1, 1, start);
        pace.note(0, 1, start + SECOND);
        assert_eq!(pace.due(0), Some(start + SECOND), "a new silence waits for nothing");
        pace.stands(start + SECOND);
        assert!(pace.due(1).unwrap() <= start + SECOND * 34 / 10);
    }

    #[test]
    fn nothing_is_dialled_before_home_allows_it() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.stay_away(start, SECOND * 60);
        assert!((60.0..=78.0).contains(&dials(&mut pace, 0, 1, start, 1)[0].0));
    }
}
