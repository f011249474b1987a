//! Named tasks with one owner and one end.
//!
//! In: futures with a name each. Out: one result, once all have ended. The first to end stops the rest: a service
//! with a dead part must not look alive.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::task::{JoinError, JoinSet};
use tokio::time;
use tokio_util::sync::CancellationToken;

/// Tasks that live and end together. Dropping it aborts them all.
#[derive(Debug)]
pub struct Tasks {
    stop: CancellationToken,
    running: JoinSet<(&'static str, anyhow::Result<()>)>,
}

impl Tasks {
    /// An empty set, ended through this token.
    #[must_use]
    pub fn new(stop: CancellationToken) -> Self {
        Self { stop, running: JoinSet::new() }
    }

    /// Ends all tasks when cancelled; every task is given it and obeys.
    #[must_use]
    pub fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts a task under a name. It ends when [`Tasks::stop`] says so; an earlier end is an error.
    pub fn spawn<F>(&mut self, name: &'static str, work: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.running.spawn(async move { (name, work.await) });
    }

    /// Waits for every task. The first to end stops the rest; an end that nobody asked for is an error. What still
    /// runs after the grace period is aborted, and that is an error too.
    pub async fn join(mut self, grace: Duration) -> anyhow::Result<()> {
        let first = tokio::select! {
            biased;
            () = self.stop.cancelled() => Ok(()),
            Some(ended) = self.running.join_next() => {
                if self.stop.is_cancelled() { asked_for(ended) } else { Err(cause(ended)) }
            }
        };
        self.stop.cancel();
        let rest = async {
            let mut worst = Ok(());
            while let Some(ended) = self.running.join_next().await {
                worst = worst.and(asked_for(ended));
            }
            worst
        };
        let rest =
            time::timeout(grace, rest).await.context("tasks outlived the grace period").and_then(|rest| rest);
        first.and(rest)
    }
}

type Ended = Result<(&'static str, anyhow::Result<()>), JoinError>;

fn cause(ended: Ended) -> anyhow::Error {
    match ended {
        Ok((name, Ok(()))) => anyhow!("task {name} ended by itself"),
        Ok((name, Err(error))) => error.context(format!("task {name} failed")),
        Err(panic) => anyhow!(panic).context("a task panicked"),
    }
}

fn asked_for(ended: Ended) -> anyhow::Result<()> {
    match ended {
        Ok((_, Ok(()))) => Ok(()),
        other => Err(cause(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(5);

    fn with_a_waiter() -> Tasks {
        let mut tasks = Tasks::new(CancellationToken::new());
        let stop = tasks.stop();
        tasks.spawn("waiter", async move {
            stop.cancelled().await;
            Ok(())
        });
        tasks
    }

    #[tokio::test]
    async fn an_end_that_was_asked_for_is_well() {
        let tasks = with_a_waiter();
        tasks.stop().cancel();
        tasks.join(GRACE).await.unwrap();
    }

    #[tokio::test]
    async fn a_task_that_ends_by_itself_stops_the_rest_and_is_named() {
        let mut tasks = with_a_waiter();
        tasks.spawn("early", async { Ok(()) });
        assert_eq!(tasks.join(GRACE).await.unwrap_err().to_string(), "task early ended by itself");
    }

    #[tokio::test]
    async fn a_panic_is_an_end_too() {
        let mut tasks = with_a_waiter();
        tasks.spawn("bad", async { panic!("on purpose") });
        assert_eq!(tasks.join(GRACE).await.unwrap_err().to_string(), "a task panicked");
    }

    #[tokio::test(start_paused = true)]
    async fn a_deaf_task_does_not_hold_up_the_end_for_ever() {
        let mut tasks = with_a_waiter();
        tasks.spawn("deaf", std::future::pending());
        tasks.stop().cancel();
        assert_eq!(tasks.join(GRACE).await.unwrap_err().to_string(), "tasks outlived the grace period");
    }
}
