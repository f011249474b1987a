//! Every error of the floors below, as the caller sees it: one place, one match each, no wildcard.
//!
//! The caller gets a status, a stable word and a sentence; the operator gets the same, once, as the answer goes off.

use glidepath_api_types::spawner::FieldProblem;
use glidepath_svc_kit::problem::ApiError;
use glidepath_svc_kit::problems::Problems;
use http::StatusCode;

use crate::spawn::{ForgetError, StartError, StopError};

/// Gives a refusal its shape. Whoever sends the answer off notes it.
pub(super) fn refused(error: impl Into<Refusal>) -> ApiError {
    let Refusal(error) = error.into();
    error
}

/// An error that has its shape.
pub(super) struct Refusal(ApiError);

impl From<Problems> for Refusal {
    fn from(problems: Problems) -> Self {
        Self(ApiError::unprocessable(&problems))
    }
}

impl From<StartError> for Refusal {
    fn from(error: StartError) -> Self {
        let title = error.to_string();
        Self(match error {
            StartError::NoSite { verdicts, .. } => {
                let sites = verdicts.into_iter().map(|verdict| FieldProblem {
                    field: verdict.site.to_string(),
                    message: format!("{}: {}", verdict.title, verdict.sentence),
                });
                ApiError::new(StatusCode::CONFLICT, "no_site", title).with(sites)
            }
            StartError::StillStopping => {
                ApiError::new(StatusCode::CONFLICT, "still_stopping", title).retry_after(2)
            }
            StartError::StillStarting => {
                ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "still_starting", title).retry_after(2)
            }
            StartError::Store(_) => {
                ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "store", title).retry_after(5)
            }
            StartError::Closing => closing(title),
        })
    }
}

impl From<StopError> for Refusal {
    fn from(error: StopError) -> Self {
        let title = error.to_string();
        Self(match error {
            StopError::StillStarting => {
                ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "still_starting", title).retry_after(2)
            }
            StopError::Closing => closing(title),
        })
    }
}

impl From<ForgetError> for Refusal {
    fn from(error: ForgetError) -> Self {
        let title = error.to_string();
        Self(match error {
            ForgetError::StillAlive => ApiError::new(StatusCode::CONFLICT, "alive", title),
            ForgetError::Sites(_) => ApiError::new(StatusCode::BAD_GATEWAY, "sites", title).retry_after(60),
        })
    }
}

fn closing(title: String) -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "closing", title).retry_after(1)
}
