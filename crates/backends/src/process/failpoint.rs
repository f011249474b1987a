//! Moments at which a test lets the service "be killed": as an error that ends all further acts, for the contract, or by
//! SIGKILL, for tests of the whole service. Costs nothing and does nothing without the features `contract` and
//! `crash-points`.

use glidepath_domain::backend::BackendError;

/// A moment between what is written and what is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The job is whole, but not at its place yet.
    BeforeIntent,
    /// The job is on the disk; nothing was started.
    AfterIntent,
    /// The start is on the disk; no process was made.
    AfterClaim,
    /// The process was made; its number is nowhere.
    AfterSpawn,
}

impl Moment {
    /// The process ends here when a test asked for it.
    fn is_a_crash_point(self) {
        #[cfg(feature = "crash-points")]
        fail::fail_point!(match self {
            Self::BeforeIntent => "process.intent.before",
            Self::AfterIntent => "process.intent.after",
            Self::AfterClaim => "process.claim.after",
            Self::AfterSpawn => "process.spawn.after",
        });
    }
}

/// Where the backend is to stop, if anywhere.
#[derive(Debug, Default)]
pub(crate) struct Failpoint {
    #[cfg(feature = "contract")]
    at: std::sync::Mutex<(Option<Moment>, bool)>,
}

#[cfg(feature = "contract")]
impl Failpoint {
    pub(crate) fn set(&self, moment: Moment) {
        self.at().0 = Some(moment);
    }

    /// `Err` once the moment has come, and ever after.
    pub(crate) fn passes(&self, moment: Moment) -> Result<(), BackendError> {
        moment.is_a_crash_point();
        let mut at = self.at();
        at.1 |= at.0 == Some(moment);
        drop(at);
        self.alive()
    }

    pub(crate) fn alive(&self) -> Result<(), BackendError> {
        if self.at().1 { Err(BackendError::Unknown("the service was killed".to_owned())) } else { Ok(()) }
    }

    fn at(&self) -> std::sync::MutexGuard<'_, (Option<Moment>, bool)> {
        self.at.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(not(feature = "contract"))]
#[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "the same calls as with the feature")]
impl Failpoint {
    pub(crate) fn passes(&self, moment: Moment) -> Result<(), BackendError> {
        moment.is_a_crash_point();
        Ok(())
    }

    pub(crate) fn alive(&self) -> Result<(), BackendError> {
        Ok(())
    }
}
