//! What a server needs: cores, memory, GPUs, architecture, and how long it may live.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What one server asks for. Built by [`crate::request`] from checked options.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Whole CPU cores, at least 1.
    pub cores: u32,
    /// Memory in MiB, at least 128.
    pub memory_mb: u64,
    /// GPUs, if any.
    pub gpus: Gpus,
    /// `None` takes whatever the site has.
    pub arch: Option<Arch>,
    /// Longest life of the server in minutes, at least 1.
    pub walltime_min: u32,
}

/// How many GPUs, and of which kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpus {
    /// 0 asks for none; then the other fields say nothing.
    pub count: u32,
    /// A kind as sites name theirs (`a100`, `l40s`); `None` takes any.
    pub kind: Option<String>,
    /// Least memory of each GPU in MiB; `None` takes any.
    pub memory_mb: Option<u64>,
}

/// A processor architecture, in the words of `uname -m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arch {
    /// 64-bit x86.
    #[serde(rename = "x86_64")]
    X86_64,
    /// 64-bit ARM.
    #[serde(rename = "aarch64")]
    Aarch64,
}

impl Arch {
    /// Reads `x86_64` or `aarch64`.
    #[must_use]
    pub fn parse(raw: &str) -> Option<Self> {
        match raw {
            "x86_64" => Some(Self::X86_64),
            "aarch64" => Some(Self::Aarch64),
            _ => None,
        }
    }

    /// The word that `uname -m` prints.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
