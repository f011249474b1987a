//! The process backend against this machine: the contract, and what is its own.
#![expect(clippy::unwrap_used, reason = "a test fails that way")]

mod bench;
mod hostile;
mod own;
mod real;

use bench::ProcessBench;
use glidepath_backends::contract;

/// One test per promise, each with a work root of its own.
macro_rules! promises {
    ($($extra:literal: $($promise:ident),+;)+) => {
        $($(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                contract::$promise(&mut ProcessBench::new($extra)).await;
            }
        )+)+
    };
}

/// Under accounts that have a name, which is all that differs: users whom the map does not name, or of two Hubs, have none
/// of their own there.
mod mapped {
    use super::{ProcessBench, contract};

    promises! {
        "accounts = { mode = 'map', map = { ada = 'games', bob = 'news' } }": submits_once_per_attempt,
            ending_what_never_was_succeeds, tells_how_a_job_ended, cancels_kindly, cancels_unkindly_after_the_grace,
            cancels_at_once, removes_what_a_killed_job_left, removes_what_a_job_left,
            forgets_the_job_and_keeps_the_home, deletes_one_home, shows_the_dial_file_to_nobody,
            finds_its_jobs_after_a_restart, never_starts_a_job_twice;
        "slots = 1\naccounts = { mode = 'map', map = { ada = 'games', bob = 'news', cyd = 'mail', dan = 'lp' } }":
            a_job_cancelled_in_the_queue_never_starts, keeps_its_queue;
    }
}

promises! {
    "": submits_once_per_attempt, lists_every_job_with_its_label, ending_what_never_was_succeeds,
        tells_how_a_job_ended, cancels_kindly, cancels_unkindly_after_the_grace, cancels_at_once,
        removes_what_a_killed_job_left, removes_what_a_job_left, forgets_the_job_and_keeps_the_home, deletes_one_home,
        shows_the_dial_file_to_nobody, finds_its_jobs_after_a_restart, never_starts_a_job_twice,
        keeps_the_users_of_two_hubs_apart;
    "slots = 1": a_job_cancelled_in_the_queue_never_starts, keeps_its_queue;
}
