//! What happened to a run, and when: kept with its record, for the operator who asks later.

use glidepath_domain::run::{Moment, State};
use serde::{Deserialize, Serialize};

/// Entries that are kept from a run's beginning, and as many from its end.
const KEPT: usize = 100;

/// What happened to a run, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diary {
    entries: Vec<Entry>,
    /// Entries that were left out in the middle of a long story.
    #[serde(default)]
    left_out: u32,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When.
    pub at: Moment,
    /// In which attempt, if there was one.
    pub attempt: Option<u32>,
    /// What.
    pub what: Happened,
}

/// What can happen to a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Happened {
    /// A state was reached.
    Reached(State),
    /// Its agent was not heard any more.
    AgentUnheard,
    /// Its agent was heard again.
    AgentBack,
    /// From here on nobody could tell whether it lives.
    Unknown,
    /// That could be told again.
    Known,
    /// The service was started again and went on with it.
    TakenUp,
}

/// What an agent told of itself, and when it was heard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentSeen {
    /// Of which attempt.
    pub attempt: u32,
    /// Its host, in its own words.
    pub host: String,
    /// Its version, in its own words.
    pub version: String,
    /// When it was heard first.
    pub first: Moment,
    /// When it was heard last before the record was written.
    pub last: Moment,
}

impl Diary {
    pub(super) fn add(&mut self, at: Moment, attempt: Option<u32>, what: Happened) {
        if self.entries.len() >= 2 * KEPT {
            self.entries.remove(KEPT);
            self.left_out = self.left_out.saturating_add(1);
        }
        self.entries.push(Entry { at, attempt, what });
    }

    /// All that is kept. Empty for a run that was written by a version without a diary.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// How many were left out, and after how many of the others.
    #[must_use]
    pub fn left_out(&self) -> Option<(usize, u32)> {
        (self.left_out > 0).then_some((KEPT, self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_story_keeps_its_beginning_and_its_end() {
        let mut diary = Diary::default();
        for n in 0..1000 {
            diary.add(Moment(n), None, Happened::AgentBack);
        }
        let kept: Vec<u64> = diary.entries().iter().map(|entry| entry.at.0).collect();
        assert_eq!((kept.len(), kept[0], kept[99], kept[100], kept[199]), (200, 0, 99, 900, 999));
        assert_eq!(diary.left_out(), Some((100, 800)));
    }
}
