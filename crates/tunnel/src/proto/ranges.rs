//! A set of half-open ranges of numbers, kept merged.

use std::collections::BTreeMap;
use std::ops::Range;

/// Disjoint, non-adjacent ranges in order.
#[derive(Debug, Default)]
pub(crate) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many ranges, i.e. one more than the gaps between them.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn first(&self) -> Option<Range<u64>> {
        self.0.first_key_value().map(|(start, end)| *start..*end)
    }

    pub(crate) fn contains(&self, value: u64) -> bool {
        self.0.range(..=value).next_back().is_some_and(|(_, end)| value < *end)
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        if let Some((before, its_end)) = self.0.range(..=start).next_back()
            && *its_end >= start
        {
            start = *before;
            end = end.max(*its_end);
        }
        while let Some((next, its_end)) = self.0.range(start..=end).next().map(|(s, e)| (*s, *e)) {
            end = end.max(its_end);
            self.0.remove(&next);
        }
        self.0.insert(start, end);
    }

    pub(crate) fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let mut cut = Vec::new();
        if let Some((start, end)) = self.0.range(..range.start).next_back().map(|(s, e)| (*s, *e))
            && end > range.start
        {
            cut.push((start, end));
        }
        cut.extend(self.0.range(range.clone()).map(|(start, end)| (*start, *end)));
        for (start, end) in cut {
            self.0.remove(&start);
            if start < range.start {
                self.0.insert(start, range.start);
            }
            if end > range.end {
                self.0.insert(range.end, end);
            }
        }
    }

    /// The parts of `range` that are not in the set.
    pub(crate) fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut parts = Vec::new();
        let mut at = range.start;
        if let Some((_, end)) = self.0.range(..=at).next_back() {
            at = at.max(*end);
        }
        for (start, end) in self.0.range(range.clone()) {
            if *start > at {
                parts.push(at..*start);
            }
            at = at.max(*end);
        }
        if at < range.end {
            parts.push(at..range.end);
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn ranges_hold_what_a_plain_set_holds(steps in prop::collection::vec((any::<bool>(), 0u64..40, 0u64..12), 0..40)) {
            let (mut ranges, mut plain) = (Ranges::default(), BTreeSet::new());
            for (add, start, length) in steps {
                if add {
                    ranges.insert(start..start + length);
                    plain.extend(start..start + length);
                } else {
                    ranges.remove(start..start + length);
                    plain.retain(|value| !(start..start + length).contains(value));
                }
                for value in 0..60 {
                    prop_assert_eq!(ranges.contains(value), plain.contains(&value));
                }
                let missing: Vec<u64> = ranges.missing(3..50).into_iter().flatten().collect();
                let expected: Vec<u64> = (3..50).filter(|value| !plain.contains(value)).collect();
                prop_assert_eq!(missing, expected);
                let runs = plain.iter().filter(|value| **value == 0 || !plain.contains(&(**value - 1))).count();
                prop_assert_eq!(ranges.len(), runs);
            }
        }
    }
}
