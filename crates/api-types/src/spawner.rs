//! The spawner's HTTP API, version 1: what the Hub's shim and operators' tools send and get.
//!
//! Times are RFC 3339 in UTC. Unknown fields in requests are refused, so that a typing error is told.

use std::collections::BTreeMap;
use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

/// Body of `PUT /v1/hubs/{hub}/servers/{key}`: start this server, or find it alive.
#[derive(Clone, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct StartBody {
    /// Made afresh by the Hub's side for every spawn: repeating a request with the same one is harmless, and a live
    /// run that another spawn created is told by [`StartReply::adopted`].
    pub spawn_id: String,
    /// The user's groups, as the Hub says.
    #[serde(default)]
    pub groups: Vec<String>,
    /// The user's choice, as the form or the REST API gave it; checked by the service.
    #[serde(default)]
    pub options: serde_json::Map<String, serde_json::Value>,
    /// Command of the single-user server.
    pub argv: Vec<String>,
    /// Its environment, tokens included.
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, String>))]
    pub env: BTreeMap<String, SecretString>,
    /// `JUPYTERHUB_SERVICE_PREFIX`: the path below which the Hub's proxy sends this server's requests.
    pub prefix: String,
    /// Folder to start in; the home when absent.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// The fields of `auth_state` that the operator named.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, String>))]
    pub auth_state: BTreeMap<String, SecretString>,
}

/// Answer to a start.
#[derive(Clone, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StartReply {
    /// The server as it stands.
    #[serde(flatten)]
    pub server: ServerView,
    /// Present when a live run was found which another spawn created: its Hub token, which the Hub must take as the
    /// server's own again, because every spawn resets it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adopted: Option<Adopted>,
}

/// What the Hub needs to take a live server back.
#[derive(Clone, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Adopted {
    /// The Hub token that the live server holds.
    #[serde(serialize_with = "expose")]
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub hub_token: SecretString,
}

/// One server, as everybody may see it who may see it at all: no secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ServerView {
    /// Reversible key, `hub.user.server`.
    pub key: String,
    /// JupyterHub user.
    pub user: String,
    /// Empty for the default server.
    pub server: String,
    /// The run that is alive, or the last one; `None` when there never was one.
    pub run: Option<String>,
    /// Which submit of the run.
    pub attempt: Option<u32>,
    /// Where the run stands.
    pub state: StateName,
    /// Whether it lives, as far as anybody can tell.
    pub life: Life,
    /// The site of the current attempt.
    pub site: Option<String>,
    /// What goes on, in the user's words; plain text.
    pub message: String,
    /// 0 to 100.
    pub progress: u8,
    /// Place in the queue, from 1, when known.
    pub queue_position: Option<u32>,
    /// Seconds until it is predicted to start, when known.
    pub predicted_wait_s: Option<u32>,
    /// `http://host:port` of the Hub's relay: present while the server is ready.
    pub url: Option<String>,
    /// How and why the last run ended, when it ended.
    pub end: Option<EndView>,
    /// What placement said of the sites for this run, best first; of the best twenty where there are more.
    pub verdicts: Vec<VerdictView>,
    /// When this run was asked for.
    pub requested_at: Option<String>,
    /// When the current state was reached.
    pub since: Option<String>,
    /// What the server used so far, when known.
    pub usage: Option<UsageView>,
    /// How long it may live, once it has a site.
    pub limits: Option<LimitsView>,
    /// The ends that its user was warned of, soonest first. One that is taken back is gone from the next event.
    pub near_ends: Vec<NearEndView>,
}

/// How long a server may live, and be idle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LimitsView {
    /// Seconds that it may live.
    pub walltime_s: u64,
    /// When they are over, while it runs.
    pub lives_until: Option<String>,
    /// Seconds in which no kernel, terminal or notebook is active, after which it ends; `None` is never.
    pub idle_s: Option<u64>,
    /// Seconds that a kernel may compute with nobody connected; `None` is for ever.
    pub unattended_s: Option<u64>,
    /// What ends it early, and for whom that is so, in sentences; plain text.
    pub message: Option<String>,
}

/// An end that is near.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NearEndView {
    /// The reason that the end will have: `walltime`, `idle` or `unattended`.
    pub reason: String,
    /// When it comes, by the clock of the server's machine.
    pub ends_at: String,
    /// Which of the warnings this is, in seconds before the end: 1800, 600 or 60, unless the operator chose others.
    pub before_s: u64,
}

/// All servers of one Hub.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ServerList {
    /// In the order of their keys.
    pub servers: Vec<ServerView>,
}

/// What a service is; `GET /v1/version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VersionReply {
    /// `glidepath-spawner`.
    pub software: String,
    /// Its version.
    pub version: String,
    /// Version of the API; 1.
    pub api: u32,
}

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum StateName {
    /// No run.
    None,
    /// Asked for.
    Requested,
    /// A site is chosen.
    Placed,
    /// Being handed to the site's batch system.
    Submitting,
    /// The batch system has it.
    Queued,
    /// It has a slot; its agent is expected to dial home.
    Dialling,
    /// The agent is home; the server starts.
    Starting,
    /// The server answers.
    Ready,
    /// It was told to end.
    Stopping,
    /// Over.
    Ended,
}

/// Whether a run lives. `unknown` never ends one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Life {
    /// It lives, or is on its way.
    Alive,
    /// It is over, or never was.
    Gone,
    /// Nobody can tell at present.
    Unknown,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EndView {
    /// A stable word: `stopped`, `cancelled`, `exited`, `killed`, `no_site`, `queue_deadline`, `dial_deadline`,
    /// `start_deadline`, `agent_lost`, `walltime`, `idle`, `unattended`, `refused`, `home_absent`.
    pub reason: String,
    /// The same in a sentence for the user; plain text.
    pub message: String,
    /// Exit code of the server, when it exited.
    pub exit_code: Option<i32>,
    /// Signal that killed the server, when one did.
    pub signal: Option<i32>,
    /// The last lines that the server wrote, oldest first; plain text.
    pub last_lines: Vec<String>,
    /// When it ended.
    pub at: String,
}

/// What placement says of one site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VerdictView {
    /// The site's name.
    pub site: String,
    /// What users read.
    pub title: String,
    /// Whether it can take the request.
    pub fits: bool,
    /// Whether it is the one that was, or would be, chosen.
    pub chosen: bool,
    /// Why, in a sentence; plain text.
    pub sentence: String,
    /// Seconds until a request would start there, when known.
    pub predicted_wait_s: Option<u32>,
}

/// What a server used so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UsageView {
    /// CPU time, in seconds.
    pub cpu_s: f64,
    /// Resident memory now, in bytes.
    pub memory_bytes: u64,
    /// The most resident memory seen, in bytes.
    pub memory_peak_bytes: u64,
}

/// Query of `DELETE /v1/hubs/{hub}/servers/{key}`.
#[derive(Debug, Clone, Default, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams), into_params(parameter_in = Query))]
#[serde(deny_unknown_fields)]
pub struct StopQuery {
    /// Kill at once instead of kindly.
    #[serde(default)]
    pub now: bool,
    /// Ends this run only: a late cancel can never touch a newer one.
    #[serde(default)]
    pub run: Option<String>,
    /// Waits up to this many seconds for the end before answering; 0 answers at once.
    #[serde(default)]
    pub wait_s: u32,
}

/// Body of `POST /v1/hubs/{hub}/placement` and `/form`: who would ask, and for what.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PlacementBody {
    /// JupyterHub user.
    pub user: String,
    /// Named server; empty for the default one.
    #[serde(default)]
    pub server: String,
    /// The user's groups.
    #[serde(default)]
    pub groups: Vec<String>,
    /// The choice so far; defaults stand in for what is missing.
    #[serde(default)]
    pub options: serde_json::Map<String, serde_json::Value>,
    /// For `/form`: where the page asks again as the choices change; without it the form is static.
    #[serde(default)]
    pub live_url: Option<String>,
}

/// What placement says of a request, best site first.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PlacementReply {
    /// Every site that the user may know of.
    pub verdicts: Vec<VerdictView>,
    /// What is wrong with the options, by name; the verdicts are for the defaults then.
    pub problems: Vec<FieldProblem>,
}

/// The rendered options form.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FormReply {
    /// HTML for the Hub's spawn page; all text in it is escaped.
    pub html: String,
}

/// One event of `GET /v1/hubs/{hub}/events` and `.../servers/{key}/events`: the whole server as it stands then.
/// The stream's event id is a number that grows; `Last-Event-ID` continues after it. An event without an id belongs to
/// what is told first, all of it or again.
pub type ServerEvent = ServerView;

/// An error, as RFC 9457 shapes it (`application/problem+json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// A stable word for programs.
    pub code: String,
    /// One sentence for people; plain text.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// Every field that is wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<FieldProblem>,
}

/// What is wrong with one field, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FieldProblem {
    /// The field's name: `options.cores`.
    pub field: String,
    /// A sentence that names the remedy; plain text.
    pub message: String,
}

impl fmt::Debug for StartBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartBody")
            .field("spawn_id", &self.spawn_id)
            .field("options", &self.options)
            .field("argv", &self.argv)
            .field("env", &self.env.keys().collect::<Vec<_>>())
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

fn expose<S: serde::Serializer>(secret: &SecretString, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(secret.expose_secret())
}
