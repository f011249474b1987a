//! Whose turn it is. Pure: in go the records and the time, out comes everybody's place.

use glidepath_domain::names::Attempt;

use super::record::Record;

/// How the operator lets jobs wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule {
    /// Jobs that run at once; `None` is no limit.
    pub(crate) slots: Option<u32>,
    /// How long every job waits at least.
    pub(crate) delay_ms: u64,
}

/// One waiting job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) attempt: Attempt,
    /// From 1.
    pub(crate) position: u32,
    /// Known only when a slot is free for it: when a running job will end, nobody knows.
    pub(crate) predicted_wait_s: Option<u32>,
    pub(crate) may_start: bool,
}

/// Slots that no job holds; `None` is no limit.
pub(crate) fn free_slots(jobs: &[Record], rule: Rule) -> Option<u32> {
    let held = u32::try_from(jobs.iter().filter(|job| job.holds_slot()).count()).unwrap_or(u32::MAX);
    rule.slots.map(|slots| slots.saturating_sub(held))
}

/// All that wait, first come first served.
pub(crate) fn waiting(jobs: &[Record], rule: Rule, now_ms: u64) -> Vec<Waiting> {
    let free = free_slots(jobs, rule);
    let mut queued: Vec<&Record> = jobs.iter().filter(|job| job.is_queued()).collect();
    queued.sort_by_key(|job| job.seq);
    (1..)
        .zip(queued)
        .map(|(position, job)| {
            // A clock that was set back makes nobody wait longer than the delay.
            let waited_ms = now_ms.saturating_sub(job.submitted_ms);
            let left_ms = rule.delay_ms.saturating_sub(waited_ms);
            let has_slot = free.is_none_or(|free| position <= free);
            let left_s = u32::try_from(left_ms.div_ceil(1000)).unwrap_or(u32::MAX);
            Waiting {
                attempt: job.attempt,
                position,
                predicted_wait_s: has_slot.then_some(left_s),
                may_start: has_slot && left_ms == 0,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::record::{Cancel, Phase};
    use super::super::render::tests::record;
    use super::*;

    fn job(seq: u64, phase: Phase, submitted_ms: u64) -> Record {
        let mut job = record();
        job.attempt.number = u32::try_from(seq).unwrap();
        Record { seq, phase, submitted_ms, ..job }
    }

    fn running(seq: u64) -> Record {
        job(seq, Phase::Starting { claim: "c".to_owned() }, 0)
    }

    fn places(
        jobs: &[Record],
        slots: Option<u32>,
        delay_ms: u64,
        now_ms: u64,
    ) -> Vec<(u32, u32, Option<u32>, bool)> {
        let rule = Rule { slots, delay_ms };
        let waiting = waiting(jobs, rule, now_ms).into_iter();
        waiting.map(|w| (w.attempt.number, w.position, w.predicted_wait_s, w.may_start)).collect()
    }

    #[test]
    fn first_come_first_served_and_an_unknown_wait_is_not_zero() {
        let jobs = [job(3, Phase::Queued, 0), running(1), job(2, Phase::Queued, 0)];
        assert_eq!(places(&jobs, Some(1), 0, 10), [(2, 1, None, false), (3, 2, None, false)]);
        assert_eq!(places(&jobs, Some(2), 0, 10), [(2, 1, Some(0), true), (3, 2, None, false)]);
        assert_eq!(places(&jobs, None, 0, 10), [(2, 1, Some(0), true), (3, 2, Some(0), true)]);
    }

    #[test]
    fn the_delay_is_known_when_a_slot_is_free() {
        let jobs = [job(1, Phase::Queued, 1_000), job(2, Phase::Queued, 3_000)];
        assert_eq!(places(&jobs, Some(1), 5_000, 3_500), [(1, 1, Some(3), false), (2, 2, None, false)]);
        assert_eq!(places(&jobs, Some(1), 5_000, 6_000)[0], (1, 1, Some(0), true));
        assert_eq!(places(&jobs, Some(1), 5_000, 0)[0], (1, 1, Some(5), false), "the clock was set back");
    }

    #[test]
    fn the_cancelled_and_the_ended_neither_wait_nor_hold_a_slot() {
        let cancel = Some(Cancel { since_uptime_s: 1, now: false });
        let cancelled = Record { cancel, ..job(1, Phase::Queued, 0) };
        let ended = job(2, Phase::Ended { end: Default::default() }, 0);
        let jobs = [cancelled, ended, job(3, Phase::Queued, 0)];
        assert_eq!(places(&jobs, Some(1), 0, 1), [(3, 1, Some(0), true)]);
        assert_eq!(free_slots(&jobs, Rule { slots: Some(1), delay_ms: 0 }), Some(1));
    }
}
