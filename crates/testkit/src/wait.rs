//! Waiting with a deadline: a test asks again and again, and fails with a sentence instead of hanging.
//!
//! Works under a paused clock too: the pauses between two looks are tokio's.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Pause between two looks.
const EVERY: Duration = Duration::from_millis(20);

/// Waits until `look` says true; fails the test after `deadline` with `what` was waited for.
pub async fn until<Look, Fut>(deadline: Duration, what: &str, mut look: Look)
where
    Look: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    until_some(deadline, what, || {
        let seen = look();
        async { seen.await.then_some(()) }
    })
    .await;
}

/// Waits until `look` finds something, and returns it; fails the test after `deadline`.
#[expect(clippy::panic, reason = "this is how a test fails")]
pub async fn until_some<Look, Fut, Found>(deadline: Duration, what: &str, mut look: Look) -> Found
where
    Look: FnMut() -> Fut,
    Fut: Future<Output = Option<Found>>,
{
    let end = Instant::now() + deadline;
    loop {
        match tokio::time::timeout_at(end, look()).await {
            Ok(Some(found)) => return found,
            Ok(None) if Instant::now() < end => sleep(EVERY).await,
            Ok(None) | Err(_) => panic!("not within {deadline:?}: {what}"),
        }
    }
}

/// Looks for the whole `span` and fails the test as soon as `look` says false: for what must *not* happen.
pub async fn holds<Look, Fut>(span: Duration, what: &str, mut look: Look)
where
    Look: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let began = Instant::now();
    while began.elapsed() < span {
        assert!(look().await, "did not hold after {:?} of {span:?}: {what}", began.elapsed());
        sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_returns_what_it_found() {
        let mut looks = 0;
        let found = until_some(Duration::from_secs(5), "three looks", || {
            looks += 1;
            let looks = looks;
            async move { (looks == 3).then_some(looks) }
        });
        assert_eq!(found.await, 3);
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "not within 5s: the moon")]
    async fn it_gives_up_with_a_sentence() {
        until(Duration::from_secs(5), "the moon", || async { false }).await;
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "not within 5s: an answer")]
    async fn a_look_that_hangs_is_given_up_too() {
        until(Duration::from_secs(5), "an answer", std::future::pending).await;
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "calm")]
    async fn what_does_not_hold_is_told() {
        let began = Instant::now();
        holds(Duration::from_secs(5), "calm", || async { began.elapsed() < Duration::from_secs(2) }).await;
    }
}
