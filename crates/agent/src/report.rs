//! The agent's whole state, as home is told it: at each change and every few seconds.

use glidepath_api_types::agent::{EndCause, Phase, Report, Usage, Warning};
use nix::sys::utsname::uname;
use tokio::sync::watch;

use crate::output::{Output, clean_line};

/// Keeps the report and tells whoever carries it home. Cheap to clone.
#[derive(Clone)]
pub struct Reporter {
    report: watch::Sender<Report>,
    output: Output,
}

impl Reporter {
    /// A report of an agent that has no launch order yet.
    pub fn new(output: Output) -> Self {
        let machine = uname().ok();
        let told = |text: Option<&std::ffi::OsStr>| clean_line(text.unwrap_or_default().as_encoded_bytes());
        let report = Report {
            phase: Phase::Waiting,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            host: told(machine.as_ref().map(|machine| machine.nodename())),
            arch: told(machine.as_ref().map(|machine| machine.machine())),
            usage: None,
            last_lines: Vec::new(),
            warnings: Vec::new(),
        };
        Reporter { report: watch::Sender::new(report), output }
    }

    /// Follows the report; each change is one to tell home.
    pub fn watch(&self) -> watch::Receiver<Report> {
        self.report.subscribe()
    }

    /// The server's output, where the last lines come from.
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// The server is doing something else now.
    pub fn phase(&self, phase: Phase) {
        tracing::info!(?phase, "server");
        self.change(|report| report.phase = phase);
    }

    /// What the server used so far.
    pub fn usage(&self, usage: Usage) {
        self.change(|report| report.usage = Some(usage));
    }

    /// The server ends soon of this; it replaces an earlier warning of the same cause.
    pub fn warn(&self, warning: Warning) {
        self.change(|report| {
            report.warnings.retain(|told| told.cause != warning.cause);
            report.warnings.push(warning);
        });
    }

    /// The server does not end of this any more.
    pub fn take_back(&self, cause: EndCause) {
        self.change(|report| report.warnings.retain(|told| told.cause != cause));
    }

    /// The same again: home hears that the agent is alive.
    pub fn again(&self) {
        self.change(|_| {});
    }

    /// Whether there is a server whose usage can be asked.
    pub fn has_server(&self) -> bool {
        matches!(self.report.borrow().phase, Phase::Starting | Phase::Listening | Phase::Ending)
    }

    fn change(&self, change: impl FnOnce(&mut Report)) {
        let last_lines = self.output.last_lines();
        self.report.send_modify(|report| {
            change(report);
            report.last_lines = last_lines;
        });
    }
}
