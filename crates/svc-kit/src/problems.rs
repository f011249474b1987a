//! A list of everything that is wrong, each with the key it is about.

use std::fmt;

/// Longest list that is kept: beyond it nobody reads on.
const KEPT: usize = 100;

/// Everything that is wrong with one input.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems {
    found: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where: `listen.api`, `site "far".limits.cores`.
    pub key: String,
    /// What, and what would be right; plain text.
    pub message: String,
}

impl Problems {
    /// Notes one problem.
    pub fn add(&mut self, key: impl Into<String>, message: impl Into<String>) {
        if self.found.len() < KEPT {
            self.found.push(Problem { key: key.into(), message: message.into() });
        }
    }

    /// The value, or `None` with the problem noted under this key.
    pub fn keep<T, E: fmt::Display>(&mut self, key: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|problem| self.add(key, problem.to_string())).ok()
    }

    /// The value that must be there. A key whose value was wrong already is not called missing too.
    pub fn require<T>(&mut self, key: &str, value: Option<T>, remedy: &str) -> Option<T> {
        if value.is_none() && !self.about(key) {
            self.add(key, format!("is missing: {remedy}"));
        }
        value
    }

    /// True when something was noted under this key or below it.
    #[must_use]
    pub fn about(&self, key: &str) -> bool {
        let below = |found: &str| {
            found.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.found.iter().any(|problem| below(&problem.key))
    }

    /// Takes over another list.
    pub fn append(&mut self, other: Problems) {
        for problem in other.found {
            self.add(problem.key, problem.message);
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.found.len()
    }

    /// True when nothing is wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// In the order in which they were noted.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.found.iter()
    }

    /// `Ok` with the value when nothing is wrong.
    pub fn or<T>(self, value: Option<T>) -> Result<T, Self> {
        match value {
            Some(value) if self.found.is_empty() => Ok(value),
            _ => Err(self),
        }
    }
}

/// One line each: `key: message`.
impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, Problem { key, message }) in self.found.iter().enumerate() {
            let line_end = if n == 0 { "" } else { "\n" };
            write!(f, "{line_end}{key}: {message}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_problems_are_told_and_a_wrong_key_is_not_missing_too() {
        let mut problems = Problems::default();
        let port = problems.keep("listen.api", "x".parse::<u16>());
        problems.require("listen.api", port, "give a port");
        problems.require("listen", None::<u8>, "give a table");
        problems.require("lis", None::<u8>, "give a word");
        assert_eq!(
            problems.to_string(),
            "listen.api: invalid digit found in string\nlis: is missing: give a word"
        );
    }

    #[test]
    fn the_list_is_bounded() {
        let mut problems = Problems::default();
        (0..1000).for_each(|n| problems.add(n.to_string(), "is wrong"));
        assert_eq!(problems.len(), KEPT);
    }
}
