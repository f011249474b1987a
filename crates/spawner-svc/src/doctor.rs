//! Names what is wrong with a deployment, whether its service runs or not. Looks only: nothing is changed or started.
//!
//! In: a checked config. Out: findings, each with its weight and its remedy. What `check` tells is told here too; then
//! come the folder, the agents, the link, the Hubs, the service that runs, and what its store says of runs. Sites are
//! asked by the running service alone: a second backend beside it would meddle with its jobs.

use glidepath_svc_kit::kept::Inherited;
use serde::Serialize;

use crate::app::surroundings;
use crate::config::Config;

mod agents;
mod folder;
mod hubs;
mod link;
mod runs;
mod service;

/// How heavy a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Weight {
    /// Nothing is wrong, or it could not be looked at from here.
    Note,
    /// It works, and may not for long or not for all.
    Warning,
    /// Something does not work.
    Error,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How heavy.
    pub weight: Weight,
    /// What it is about: a key of the config, or a thing.
    pub about: String,
    /// What was found.
    pub found: String,
    /// What to do; empty when there is nothing to do.
    pub remedy: String,
}

/// All that was found.
#[derive(Debug, Default)]
pub struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, weight: Weight, about: impl Into<String>, found: impl Into<String>, remedy: &str) {
        let (about, found, remedy) = (about.into(), found.into(), remedy.to_owned());
        self.0.push(Finding { weight, about, found, remedy });
    }

    fn error(&mut self, about: impl Into<String>, found: impl Into<String>, remedy: &str) {
        self.add(Weight::Error, about, found, remedy);
    }

    fn warning(&mut self, about: impl Into<String>, found: impl Into<String>, remedy: &str) {
        self.add(Weight::Warning, about, found, remedy);
    }

    fn note(&mut self, about: impl Into<String>, found: impl Into<String>) {
        self.add(Weight::Note, about, found, "");
    }
}

/// Looks at everything. The heaviest come first.
pub async fn examine(config: &Config, inherited: &Inherited) -> Vec<Finding> {
    let mut findings = Findings::default();
    let out = &mut findings;
    for warning in surroundings::warnings(config).iter() {
        out.warning(&warning.key, &warning.message, "");
    }
    for problem in surroundings::look(config, inherited).await.iter() {
        out.error(&problem.key, &problem.message, "");
    }
    folder::look(config, out);
    agents::look(config, out);
    link::look(config, out);
    hubs::look(config, out).await;
    let serves = service::look(config, out).await;
    runs::look(config, serves, out).await;
    let mut found = findings.0;
    found.sort_by_key(|finding| std::cmp::Reverse(finding.weight));
    found
}
