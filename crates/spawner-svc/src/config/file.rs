//! What the operator's file says, word by word. Everything may be absent; what that means is `check`'s matter.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) state_dir: Option<PathBuf>,
    pub(super) instance: Option<String>,
    pub(super) store: StoreFile,
    pub(super) listen: ListenFile,
    pub(super) link: LinkFile,
    pub(super) log: LogFile,
    pub(super) agent: AgentFile,
    pub(super) deadlines: DeadlinesFile,
    pub(super) warn_before_s: Option<Vec<u64>>,
    pub(super) defaults: ResourcesFile,
    pub(super) presets: Vec<PresetFile>,
    pub(super) hub: Vec<HubFile>,
    pub(super) site: Vec<SiteFile>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct StoreFile {
    pub(super) url: Option<String>,
    pub(super) url_file: Option<PathBuf>,
}

impl fmt::Debug for StoreFile {
    /// Whoever writes a password into `url` must not find it in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreFile").field("url_file", &self.url_file).finish_non_exhaustive()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ListenFile {
    pub(super) api: Option<String>,
    pub(super) link: Option<String>,
    pub(super) metrics: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LinkFile {
    pub(super) url: Option<String>,
    /// `"own_ca"`, or a [`TlsFile`].
    pub(super) tls: Option<Value>,
    pub(super) ca: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TlsFile {
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) plain_behind: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LogFile {
    pub(super) format: Option<String>,
    pub(super) level: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AgentFile {
    pub(super) x86_64: Option<PathBuf>,
    pub(super) aarch64: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DeadlinesFile {
    pub(super) queued_s: Option<u64>,
    pub(super) dialling_s: Option<u64>,
    pub(super) starting_s: Option<u64>,
    pub(super) doubt_s: Option<u64>,
    pub(super) grace_s: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ResourcesFile {
    pub(super) cores: Option<u32>,
    pub(super) memory_mb: Option<u64>,
    pub(super) gpus: Option<u32>,
    pub(super) gpu_kind: Option<String>,
    pub(super) gpu_memory_mb: Option<u64>,
    pub(super) arch: Option<String>,
    pub(super) walltime_min: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PresetFile {
    pub(super) name: Option<String>,
    pub(super) title: Option<String>,
    pub(super) description: Option<String>,
    pub(super) cores: Option<u32>,
    pub(super) memory_mb: Option<u64>,
    pub(super) gpus: Option<u32>,
    pub(super) gpu_kind: Option<String>,
    pub(super) gpu_memory_mb: Option<u64>,
    pub(super) arch: Option<String>,
    pub(super) walltime_min: Option<u32>,
}

impl PresetFile {
    /// The part that defaults have too.
    pub(super) fn resources(&self) -> ResourcesFile {
        ResourcesFile {
            cores: self.cores,
            memory_mb: self.memory_mb,
            gpus: self.gpus,
            gpu_kind: self.gpu_kind.clone(),
            gpu_memory_mb: self.gpu_memory_mb,
            arch: self.arch.clone(),
            walltime_min: self.walltime_min,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HubFile {
    pub(super) name: Option<String>,
    pub(super) secret_file: Option<PathBuf>,
    pub(super) secret_sha256: Option<Vec<String>>,
    pub(super) api_url: Option<String>,
    pub(super) base_url: Option<String>,
    pub(super) relay: Option<String>,
    pub(super) relay_url: Option<String>,
    /// Only to be refused in words: the relay speaks plain HTTP to the Hub's proxy.
    pub(super) internal_ssl: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SiteFile {
    pub(super) name: Option<String>,
    pub(super) title: Option<String>,
    pub(super) backend: Option<String>,
    pub(super) reach: Option<String>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) limits: LimitsFile,
    pub(super) policy: Vec<PolicyFile>,
    pub(super) archs: Option<Vec<String>>,
    pub(super) gpus: Vec<GpuFile>,
    pub(super) groups: Option<Vec<String>>,
    pub(super) home: Option<String>,
    pub(super) preference: i32,
    pub(super) absence_limit_s: Option<u64>,
    pub(super) listen_on: Option<String>,
    pub(super) closed: Option<String>,
    /// Read by the backend's own type.
    pub(super) process: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LimitsFile {
    pub(super) cores: Option<u32>,
    pub(super) memory_mb: Option<u64>,
    pub(super) walltime_min: Option<u32>,
    pub(super) servers_per_user: Option<u32>,
    pub(super) servers: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PolicyFile {
    pub(super) groups: Option<Vec<String>>,
    pub(super) walltime_min: Option<u32>,
    pub(super) idle_s: Option<u64>,
    pub(super) unattended_s: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct GpuFile {
    pub(super) kind: Option<String>,
    pub(super) memory_mb: Option<u64>,
    pub(super) per_server: Option<u32>,
}
