//! What the agent and the home end say to each other.
//!
//! [`DialFile`] reaches the job as a file. Everything else travels on the link's *control stream*, which the home
//! end opens with the purpose [`PURPOSE_CONTROL`]: one JSON document per line, both ways. Each message tells a whole
//! state and may be repeated, so a link that comes back needs no memory of what was said before.
//!
//! Neither end refuses a field that it does not know: an agent lives on through updates of its home. A change that an
//! older one must not pass over is another `version` or another word.

use std::collections::BTreeMap;
use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

/// Purpose of the stream that the home end opens for [`ToAgent`] and [`FromAgent`] lines.
pub const PURPOSE_CONTROL: &str = "control";
/// Purpose of a stream that the home end opens: the agent connects it to the server's socket.
pub const PURPOSE_SERVER: &str = "server";
/// Purpose of a stream that the agent opens: HTTP/1.1 requests for the Hub's API, which the home end checks.
pub const PURPOSE_HUB_API: &str = "hub-api";
/// Streams with this purpose that an agent has open at a time. Home takes a few more before it resets any, so that what a
/// server sees is home's answer that it calls too often.
pub const HUB_API_STREAMS_MAX: usize = 24;
/// Longest line on the control stream, in bytes; a longer one ends the link.
pub const CONTROL_LINE_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Seconds between two reports of an agent to which nothing happens.
pub const REPORT_EVERY_S: u64 = 10;

/// Exit code of `glidepath-agent confine` when a step failed: its command was not started.
pub const EXIT_CANNOT_CONFINE: i32 = 76;
/// Exit code of an agent whose ticket home refused for good: nothing was started.
pub const EXIT_TICKET_REFUSED: i32 = 77;
/// Exit code of an agent that could not start the server's command.
pub const EXIT_CANNOT_START: i32 = 78;
/// Exit code of an agent that could not reach home in time.
pub const EXIT_NEVER_HOME: i32 = 79;
/// Exit code of an agent that ended its server because home was absent for too long.
pub const EXIT_HOME_ABSENT: i32 = 80;
/// Exit code of an agent that ended its server when its walltime was over.
pub const EXIT_WALLTIME: i32 = 81;
/// Exit code of an agent that ended its server because nothing in it was active for too long.
pub const EXIT_IDLE: i32 = 82;
/// Exit code of an agent that ended its server because a kernel computed for too long with nobody connected.
pub const EXIT_UNATTENDED: i32 = 83;
/// Exit code of an agent whose server ended, well or not: the report tells how.
pub const EXIT_SERVER_ENDED: i32 = 0;

/// What a job is given: where home is, whom to trust there, and the right to dial once for this attempt.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DialFile {
    /// Shape of this file; 1.
    pub version: u32,
    /// `wss://host:port/link`, or `ws://` where a named proxy in front ends TLS.
    pub home_url: String,
    /// Whom to trust as home.
    pub trust: Trust,
    /// The ticket; a JWT that only home reads.
    #[serde(serialize_with = "expose")]
    pub ticket: SecretString,
    /// `<run>-<number>`, for logs and to find the processes of a job.
    pub attempt: String,
    /// Seconds from the agent's start within which home must have taken the ticket.
    pub dial_deadline_s: u64,
    /// Seconds of home's absence after which the agent ends the server.
    pub absence_limit_s: u64,
}

/// Whom an agent trusts as home. Verification cannot be switched off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trust {
    /// The machine's own certificate authorities.
    SystemRoots,
    /// Certificate authorities, as PEM.
    CaPem(String),
    /// SHA-256 of the server's SubjectPublicKeyInfo, base64.
    KeyPin(String),
}

/// Home to agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToAgent {
    /// Start the server. An agent that has started one ignores it.
    Launch(Box<LaunchOrder>),
    /// End the server kindly, then the agent.
    Stop {
        /// Seconds between SIGTERM and SIGKILL.
        grace_s: u32,
        /// Shown in the server's log.
        reason: String,
    },
    /// A person changed something through the server, such as a saved file: it is not idle. An agent that knows no
    /// limits ignores it.
    Used,
}

/// Agent to home: the whole state, at every change and every [`REPORT_EVERY_S`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromAgent {
    /// What there is to know.
    Report(Report),
}

/// How to start the server. Holds secrets; sealed wherever it rests.
#[derive(Clone, Serialize, Deserialize)]
pub struct LaunchOrder {
    /// Program and arguments. `{socket}` in an argument becomes the socket's path.
    pub argv: Vec<String>,
    /// The whole environment of the server, beside what the agent adds (`HOME`, `USER`, `PATH` when missing).
    #[serde(serialize_with = "expose_map")]
    pub env: BTreeMap<String, SecretString>,
    /// Where the server listens.
    pub listen: ListenOn,
    /// Environment variables that hold URLs of the Hub's API: their scheme, host and port are replaced by the agent's
    /// own forwarder, and its unguessable prefix is put before their path.
    pub hub_url_vars: Vec<String>,
    /// Folder to start in, below the job's home when relative; the home when `None`. Made when missing.
    pub working_dir: Option<String>,
    /// Seconds between SIGTERM and SIGKILL when nobody says otherwise.
    pub grace_s: u32,
    /// Seconds that the server may live, from its start; the agent ends it kindly then.
    pub walltime_s: u64,
    /// What else ends it.
    #[serde(default)]
    pub limits: Limits,
}

/// When the agent ends its server before its walltime is over, and when it tells the user of an end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Seconds in which nothing was active; `None` is never.
    pub idle_s: Option<u64>,
    /// Seconds that a kernel computed with nobody connected; `None` is never.
    pub unattended_s: Option<u64>,
    /// Seconds before any end at which the user is told of it.
    pub warn_before_s: Vec<u64>,
}

impl Default for Limits {
    /// None, with the usual warnings.
    fn default() -> Self {
        Self { idle_s: None, unattended_s: None, warn_before_s: vec![1800, 600, 60] }
    }
}

/// Where the server is told to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ListenOn {
    /// A unix socket in a 0700 folder: nobody else on the node can reach it.
    UnixSocket,
    /// A free port on loopback, for commands that cannot take a socket. Everybody on the node can reach it.
    /// `{port}` in an argument becomes the port.
    LoopbackTcp,
}

/// The agent's whole state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What the server is doing.
    pub phase: Phase,
    /// Version of the agent.
    pub agent_version: String,
    /// Host that the job runs on; a claim of the job, shown as text.
    pub host: String,
    /// `uname -m`.
    pub arch: String,
    /// What the server used so far, when it runs or ran.
    pub usage: Option<Usage>,
    /// The last lines that the server wrote, oldest first, capped by the agent.
    pub last_lines: Vec<String>,
    /// The ends that are near: what the user has been told and was not taken back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Warning>,
}

/// The server ends soon, unless something changes that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// What will bring the end about.
    pub cause: EndCause,
    /// Seconds before the end at which the user was to be told: which of the warnings it is.
    pub before_s: u64,
    /// When the server ends, in seconds since 1970 by the clock of the job's machine.
    pub ends_at: u64,
}

/// What the server is doing, as its agent sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    /// No launch order yet.
    Waiting,
    /// The process runs; nothing listens yet.
    Starting,
    /// Its socket takes connections.
    Listening,
    /// It was told to end and has not yet.
    Ending,
    /// It ended, or could not be started.
    Ended(ServerEnd),
}

/// How the server ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerEnd {
    /// Its exit code, when it exited.
    pub exit_code: Option<i32>,
    /// The signal that killed it, when one did.
    pub signal: Option<i32>,
    /// Why the agent ended it, or could not start it; `None` when it ended by itself.
    pub why: Option<String>,
    /// The same as a word for programs.
    #[serde(default)]
    pub cause: EndCause,
}

/// What brought the server's end about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndCause {
    /// It exited, or a signal that the agent did not send killed it.
    #[default]
    ByItself,
    /// Home asked for the end, or the batch system did (SIGTERM to the agent).
    Asked,
    /// It lived as long as its launch order grants.
    Walltime,
    /// Nothing in it was active for as long as its launch order bears.
    Idle,
    /// A kernel computed for as long as its launch order bears with nobody connected.
    Unattended,
    /// Home was absent for longer than the dial file grants.
    HomeAbsent,
    /// It could not be started at all.
    CannotStart,
}

/// What the server and all its processes used so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time, in seconds.
    pub cpu_s: f64,
    /// Resident memory now, in bytes.
    pub memory_bytes: u64,
    /// The most resident memory seen, in bytes.
    pub memory_peak_bytes: u64,
    /// GPUs, where there are some.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuUsage>,
}

/// One GPU as its driver tells.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuUsage {
    /// As the driver names it.
    pub name: String,
    /// Share of time in use, in percent.
    pub busy_percent: u32,
    /// Memory in use, in MiB.
    pub memory_mb: u64,
}

impl fmt::Debug for LaunchOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LaunchOrder")
            .field("argv", &self.argv)
            .field("env", &self.env.keys().collect::<Vec<_>>())
            .field("listen", &self.listen)
            .field("working_dir", &self.working_dir)
            .field("walltime_s", &self.walltime_s)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

fn expose<S: serde::Serializer>(secret: &SecretString, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(secret.expose_secret())
}

fn expose_map<S: serde::Serializer>(map: &BTreeMap<String, SecretString>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(map.iter().map(|(name, secret)| (name, secret.expose_secret())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_debug_output_shows_a_secret() {
        let env = BTreeMap::from([("JUPYTERHUB_API_TOKEN".to_owned(), SecretString::from("s3cret-token"))]);
        let order = LaunchOrder {
            argv: vec!["jupyterhub-singleuser".to_owned()],
            env,
            listen: ListenOn::UnixSocket,
            hub_url_vars: vec![],
            working_dir: None,
            grace_s: 5,
            walltime_s: 60,
            limits: Limits::default(),
        };
        let wire = serde_json::to_string(&ToAgent::Launch(Box::new(order.clone()))).unwrap();
        assert!(wire.contains("s3cret-token"), "the agent must get it");
        assert!(!format!("{order:?}").contains("s3cret-token"));
        assert!(format!("{order:?}").contains("JUPYTERHUB_API_TOKEN"));
    }

    #[test]
    fn a_field_of_a_newer_home_is_passed_over() {
        let dial = r#"{"version": 1, "home_url": "wss://h/link", "trust": "system_roots", "ticket": "t", "attempt": "a-1",
            "dial_deadline_s": 1, "absence_limit_s": 1, "new": {"x": [1]}}"#;
        assert_eq!(serde_json::from_str::<DialFile>(dial).unwrap().attempt, "a-1");
        let launch = r#"{"type": "launch", "argv": ["x"], "env": {}, "listen": "unix_socket", "hub_url_vars": [],
            "working_dir": null, "grace_s": 1, "walltime_s": 7, "new": {"x": [1]}}"#;
        let ToAgent::Launch(order) = serde_json::from_str(launch).unwrap() else {
            unreachable!("it is a launch")
        };
        assert_eq!(
            (order.walltime_s, order.limits),
            (7, Limits::default()),
            "an older home says nothing of limits"
        );
    }

    #[test]
    fn a_report_reads_back() {
        let end = ServerEnd { exit_code: Some(3), ..ServerEnd::default() };
        let report = FromAgent::Report(Report {
            phase: Phase::Ended(end),
            agent_version: "0.1.0".to_owned(),
            host: "node7".to_owned(),
            arch: "x86_64".to_owned(),
            usage: None,
            last_lines: vec!["boom".to_owned()],
            warnings: vec![Warning { cause: EndCause::Idle, before_s: 60, ends_at: 1_800_000_000 }],
        });
        let wire = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<FromAgent>(&wire).unwrap(), report);
    }
}
