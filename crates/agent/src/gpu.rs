//! Asks the GPU driver's own tool, where there is one.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use glidepath_api_types::agent::GpuUsage;
use nix::sys::signal::{Signal, kill};
use tokio::time::timeout;

use crate::output::clean_line;
use crate::reaper::{Reaper, pid_of};

const TOOL: &str = "nvidia-smi";
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
const MAX_GPUS: usize = 16;
const MAX_ANSWER_BYTES: u64 = 16 * 1024;
const MAX_NAME_CHARS: usize = 64;

/// The GPUs that the job was given.
pub struct Gpus {
    reaper: Reaper,
    /// Cleared for good by the first failure: a tool that hangs or fails is not asked again.
    usable: bool,
    /// What the batch system assigned, when it says so.
    assigned: Option<String>,
}

impl Gpus {
    /// Looks for the tool and for what the batch system assigned.
    pub fn find(reaper: Reaper) -> Self {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        let usable = std::env::split_paths(&paths).any(|folder| folder.join(TOOL).is_file());
        let assigned = std::env::var("CUDA_VISIBLE_DEVICES").ok().filter(|ids| is_id_list(ids));
        Gpus { reaper, usable, assigned }
    }

    /// Asks once, within [`ANSWERS_WITHIN`]. Nothing when there is no GPU or no answer.
    pub async fn ask(&mut self) -> Vec<GpuUsage> {
        if !self.usable {
            return Vec::new();
        }
        let answer = self.call().await;
        self.usable = answer.is_some();
        answer.as_deref().map(parse).unwrap_or_default()
    }

    async fn call(&self) -> Option<String> {
        let mut command = Command::new(TOOL);
        command.args(["--query-gpu=name,utilization.gpu,memory.used", "--format=csv,noheader,nounits"]);
        command.args(self.assigned.iter().map(|ids| format!("--id={ids}")));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let (mut child, exited) = self.reaper.spawn(&mut command).ok()?;
        let stdout = child.stdout.take()?;
        // Its answer is far smaller than a pipe holds, so it can be read after the end.
        let Ok(Ok(exit)) = timeout(ANSWERS_WITHIN, exited).await else {
            let _ = kill(pid_of(&child), Signal::SIGKILL);
            tracing::warn!("{TOOL} does not answer; GPUs are not reported");
            return None;
        };
        if exit.code != Some(0) {
            return None;
        }
        let mut text = String::new();
        stdout.take(MAX_ANSWER_BYTES).read_to_string(&mut text).ok()?;
        Some(text)
    }
}

fn is_id_list(ids: &str) -> bool {
    !ids.is_empty() && ids.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, ',' | '-'))
}

fn parse(answer: &str) -> Vec<GpuUsage> {
    answer.lines().filter_map(parse_line).take(MAX_GPUS).collect()
}

/// `name, busy, memory`; a number that the driver does not tell (`[N/A]`) is 0.
fn parse_line(line: &str) -> Option<GpuUsage> {
    let mut fields = line.rsplitn(3, ',').map(str::trim);
    let memory_mb = fields.next()?.parse().unwrap_or(0);
    let busy_percent = fields.next()?.parse().unwrap_or(0);
    let name = clean_line(fields.next()?.as_bytes()).chars().take(MAX_NAME_CHARS).collect();
    Some(GpuUsage { name, busy_percent, memory_mb })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tools_answer_is_read() {
        let seen = parse("NVIDIA A100-SXM4-40GB, 37, 1024\nTesla T4, [N/A], 5\nnonsense\n");
        let a100 = GpuUsage { name: "NVIDIA A100-SXM4-40GB".to_owned(), busy_percent: 37, memory_mb: 1024 };
        let t4 = GpuUsage { name: "Tesla T4".to_owned(), busy_percent: 0, memory_mb: 5 };
        assert_eq!(seen, [a100, t4]);
    }

    #[test]
    fn only_a_plain_list_of_ids_reaches_the_command_line() {
        assert!(is_id_list("0,2") && is_id_list("GPU-1f2e"));
        assert!(!is_id_list("") && !is_id_list("0 --foo"));
    }
}
