//! How long a server may live at a site, and how long nothing may happen in it: what a site grants whom.
//!
//! In: a site's policies and hard limit, the user's groups. Out: what is granted, and whose policy says so. Key by key:
//! of the policies for groups that the user is in, the most generous; where none of them says anything, the most
//! generous of those for everybody; a walltime never beyond the site's own limit. So one more group never takes
//! anything away from what the other groups give, and one more policy for a group touches its members alone.

use serde::{Deserialize, Serialize};

/// What the operator says of a site's time, for some groups or for everybody. What is `None` is not said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// For members of these groups; for everybody when empty.
    pub groups: Vec<String>,
    /// The longest walltime that can be asked for, in minutes.
    pub walltime_min: Option<u32>,
    /// How long nothing may be active.
    pub idle: Option<Patience>,
    /// How long a kernel may compute with nobody connected.
    pub unattended: Option<Patience>,
}

/// How long something is borne. The more generous is the greater one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Patience {
    /// So many seconds.
    Seconds(u64),
    /// For as long as the server may live.
    Endless,
}

/// What is granted to one user at one site.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Granted {
    /// The longest walltime that can be asked for, in minutes; `None` is no limit.
    pub walltime_min: Option<Bound<u32>>,
    /// Seconds without any activity after which the server ends; `None` is never.
    pub idle_s: Option<Bound<u64>>,
    /// Seconds that a kernel may compute with nobody connected; `None` is for ever.
    pub unattended_s: Option<Bound<u64>>,
}

/// A limit, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound<T> {
    /// How much.
    pub most: T,
    /// The group whose members it is for; `None` is everybody.
    pub group: Option<String>,
}

/// What these policies grant somebody in these groups. `walltime_min` is the site's own limit, which nobody exceeds.
#[must_use]
pub fn granted(policies: &[Policy], walltime_min: Option<u32>, groups: &[String]) -> Granted {
    let walltime = most_generous(policies, groups, |policy| policy.walltime_min);
    Granted {
        walltime_min: match (walltime, walltime_min) {
            (Some(bound), Some(hard)) if bound.most > hard => Some(Bound { most: hard, group: None }),
            (Some(bound), _) => Some(bound),
            (None, hard) => hard.map(|most| Bound { most, group: None }),
        },
        idle_s: seconds(most_generous(policies, groups, |policy| policy.idle)),
        unattended_s: seconds(most_generous(policies, groups, |policy| policy.unattended)),
    }
}

fn most_generous<T: Ord>(
    policies: &[Policy],
    groups: &[String],
    says: impl Fn(&Policy) -> Option<T>,
) -> Option<Bound<T>> {
    let of_groups = policies.iter().filter_map(|policy| {
        let group = policy.groups.iter().filter(|group| groups.contains(group)).min()?;
        Some(Bound { most: says(policy)?, group: Some(group.clone()) })
    });
    let of_all = policies.iter().filter(|policy| policy.groups.is_empty());
    let of_all = of_all.filter_map(|policy| Some(Bound { most: says(policy)?, group: None }));
    // Of two groups that grant the same, the first by name is told, whatever the order in the file.
    let greatest = |a: &Bound<T>, b: &Bound<T>| (&a.most, &b.group).cmp(&(&b.most, &a.group));
    of_groups.max_by(greatest).or_else(|| of_all.max_by(greatest))
}

fn seconds(bound: Option<Bound<Patience>>) -> Option<Bound<u64>> {
    match bound? {
        Bound { most: Patience::Seconds(most), group } => Some(Bound { most, group }),
        Bound { most: Patience::Endless, .. } => None,
    }
}

impl Granted {
    /// What ends a server before its walltime is over, in sentences for the user; `None` when nothing does.
    #[must_use]
    pub fn in_words(&self) -> Option<String> {
        let idle = self.idle_s.as_ref().map(|bound| {
            let (span, whose) = (span(bound.most), bound.whose());
            format!("A server ends after {span} in which no kernel, terminal or notebook is active{whose}.")
        });
        let unattended = self.unattended_s.as_ref().map(|bound| {
            let (span, whose) = (span(bound.most), bound.whose());
            format!("A server ends when a kernel computes for {span} with nobody connected{whose}.")
        });
        let told: Vec<String> = idle.into_iter().chain(unattended).collect();
        (!told.is_empty()).then(|| told.join(" "))
    }
}

impl<T> Bound<T> {
    /// ` (for members of staff)`, or nothing when it is everybody's.
    #[must_use]
    pub fn whose(&self) -> String {
        self.group.as_ref().map(|group| format!(" (for members of {group})")).unwrap_or_default()
    }
}

/// A length of time as a limit is told: exactly, in the largest unit that divides it.
#[must_use]
pub fn span(seconds: u64) -> String {
    let units = [(86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second")];
    let whole = units.into_iter().find(|(size, _)| seconds >= *size && seconds.is_multiple_of(*size));
    let (size, unit) = whole.unwrap_or((1, "second"));
    let count = seconds / size;
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(groups: &[&str], walltime_min: Option<u32>, idle: Option<Patience>) -> Policy {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        Policy { groups, walltime_min, idle, unattended: None }
    }

    fn of(groups: &[&str]) -> Vec<String> {
        groups.iter().map(|group| (*group).to_owned()).collect()
    }

    const HOUR: Option<Patience> = Some(Patience::Seconds(3600));
    const DAY: Option<Patience> = Some(Patience::Seconds(86_400));

    #[test]
    fn without_policies_only_the_sites_own_walltime_binds() {
        let hard = granted(&[], Some(60), &of(&["staff"]));
        assert_eq!(hard.walltime_min, Some(Bound { most: 60, group: None }));
        assert_eq!((granted(&[], None, &[]), hard.in_words()), (Granted::default(), None));
    }

    #[test]
    fn a_groups_policy_stands_before_everybodys_and_says_whose_it_is() {
        let policies = [policy(&[], Some(240), HOUR), policy(&["staff", "ops"], Some(1440), DAY)];
        let everybody = granted(&policies, None, &of(&["guests"]));
        assert_eq!(everybody.walltime_min, Some(Bound { most: 240, group: None }));
        let staff = granted(&policies, None, &of(&["guests", "staff"]));
        assert_eq!(staff.walltime_min, Some(Bound { most: 1440, group: Some("staff".to_owned()) }));
        assert_eq!(
            staff.in_words().unwrap(),
            "A server ends after 1 day in which no kernel, terminal or notebook is active (for members of staff)."
        );
    }

    #[test]
    fn a_group_may_be_given_less_than_everybody() {
        let policies = [policy(&[], None, DAY), policy(&["course"], None, HOUR)];
        assert_eq!(granted(&policies, None, &of(&["course"])).idle_s.unwrap().most, 3600);
    }

    #[test]
    fn never_is_the_most_generous_of_all() {
        let policies = [policy(&["a"], None, DAY), policy(&["b"], None, Some(Patience::Endless))];
        assert_eq!(granted(&policies, None, &of(&["a", "b"])).idle_s, None);
    }

    #[test]
    fn what_a_groups_policy_leaves_out_is_everybodys() {
        let policies = [policy(&[], Some(240), HOUR), policy(&["staff"], Some(1440), None)];
        assert_eq!(granted(&policies, None, &of(&["staff"])).idle_s, Some(Bound { most: 3600, group: None }));
    }

    #[test]
    fn spans_are_told_in_the_largest_unit_that_divides_them() {
        let told = [45, 60, 90, 5400, 7200, 86_400, 129_600].map(span);
        assert_eq!(
            told,
            ["45 seconds", "1 minute", "90 seconds", "90 minutes", "2 hours", "1 day", "36 hours"]
        );
    }

    fn patience() -> impl Strategy<Value = Patience> {
        prop_oneof![4 => (1..5_u64).prop_map(Patience::Seconds), 1 => Just(Patience::Endless)]
    }

    fn any_policy() -> impl Strategy<Value = Policy> {
        let groups = prop::collection::vec("[a-d]", 0..3);
        let said = (prop::option::of(1..5_u32), prop::option::of(patience()), prop::option::of(patience()));
        (groups, said).prop_map(|(groups, (walltime_min, idle, unattended))| Policy {
            groups,
            walltime_min,
            idle,
            unattended,
        })
    }

    fn or_endless(bound: Option<&Bound<u64>>) -> u64 {
        bound.map_or(u64::MAX, |bound| bound.most)
    }

    proptest! {
        #[test]
        fn no_walltime_exceeds_the_sites_own(
            policies in prop::collection::vec(any_policy(), 0..5), hard in 1..5_u32,
            groups in prop::collection::vec("[a-d]", 0..4),
        ) {
            let granted = granted(&policies, Some(hard), &groups);
            prop_assert!(granted.walltime_min.is_some_and(|bound| bound.most <= hard));
        }

        #[test]
        fn the_order_of_policies_and_groups_changes_nothing(
            policies in prop::collection::vec(any_policy(), 0..5), groups in prop::collection::vec("[a-d]", 0..4),
        ) {
            let (mut reversed, mut others) = (policies.clone(), groups.clone());
            reversed.reverse();
            others.reverse();
            prop_assert_eq!(granted(&policies, None, &groups), granted(&reversed, None, &others));
        }

        #[test]
        fn whoever_has_a_groups_grant_loses_nothing_by_one_more_group(
            policies in prop::collection::vec(any_policy(), 0..5), groups in prop::collection::vec("[a-d]", 1..4),
            more in "[a-d]",
        ) {
            let before = granted(&policies, None, &groups);
            let after = granted(&policies, None, &[groups, vec![more]].concat());
            if before.idle_s.as_ref().is_some_and(|bound| bound.group.is_some()) {
                prop_assert!(or_endless(after.idle_s.as_ref()) >= or_endless(before.idle_s.as_ref()));
            }
            if let Some(Bound { most, group: Some(_) }) = before.walltime_min {
                prop_assert!(after.walltime_min.is_some_and(|bound| bound.most >= most));
            }
        }

        #[test]
        fn a_policy_for_a_group_touches_its_members_alone(
            policies in prop::collection::vec(any_policy(), 0..5), groups in prop::collection::vec("[a-c]", 0..3),
            one in any_policy(),
        ) {
            let one = Policy { groups: vec!["d".to_owned()], ..one };
            let with = [policies.clone(), vec![one]].concat();
            prop_assert_eq!(granted(&policies, None, &groups), granted(&with, None, &groups));
        }

        #[test]
        fn a_group_that_is_told_is_one_of_the_users(
            policies in prop::collection::vec(any_policy(), 0..5), groups in prop::collection::vec("[a-d]", 0..4),
        ) {
            let granted = granted(&policies, None, &groups);
            let told = granted.walltime_min.and_then(|bound| bound.group).into_iter()
                .chain(granted.idle_s.and_then(|bound| bound.group))
                .chain(granted.unattended_s.and_then(|bound| bound.group));
            for group in told {
                prop_assert!(groups.contains(&group));
            }
        }
    }
}
