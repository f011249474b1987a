//! What the server and all its processes used: CPU time, memory, GPUs.

use std::time::Duration;

use glidepath_api_types::agent::{GpuUsage, REPORT_EVERY_S, Usage};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::gpu::Gpus;
use crate::processes::{Process, look, tree};
use crate::reaper::Reaper;
use crate::report::Reporter;

/// Clock ticks per second in `/proc`: fixed by the kernel's interface on every architecture we serve.
const TICKS_PER_S: f64 = 100.0;
/// GPUs are asked every so many samples: the driver's tool is slow.
const GPU_EVERY: u64 = 3;

/// Samples and reports for ever, every [`REPORT_EVERY_S`].
pub async fn run(reporter: Reporter, reaper: Reaper) {
    let every = Duration::from_secs(REPORT_EVERY_S);
    let mut ticks = interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut meter = Meter::default();
    let mut gpus = Gpus::find(reaper);
    let mut gpu_usage = Vec::new();
    for round in 0_u64.. {
        ticks.tick().await;
        if reporter.has_server() {
            if round.is_multiple_of(GPU_EVERY) {
                gpu_usage = gpus.ask().await;
            }
            let seen = tokio::task::spawn_blocking(processes).await.unwrap_or_default();
            reporter.usage(meter.read(&seen, page_bytes(), gpu_usage.clone()));
        } else {
            reporter.again();
        }
    }
}

/// The tree below the agent, and the agent itself for the time of the children that it collected.
fn processes() -> Vec<Process> {
    let me = nix::unistd::getpid().as_raw();
    let mut found = tree(me);
    found.extend(look(me).map(|agent| Process { resident_pages: 0, ..agent }));
    found
}

/// Sums up, and keeps the peak.
#[derive(Debug, Default)]
struct Meter {
    cpu_s: f64,
    peak_bytes: u64,
}

impl Meter {
    fn read(&mut self, seen: &[Process], page_bytes: u64, gpus: Vec<GpuUsage>) -> Usage {
        let ticks: u64 = seen.iter().map(|process| process.cpu_ticks).sum();
        let memory_bytes = seen.iter().map(|process| process.resident_pages).sum::<u64>() * page_bytes;
        // A process that died between two looks at its parent and itself must not turn the clock back.
        self.cpu_s = self.cpu_s.max(ticks as f64 / TICKS_PER_S);
        self.peak_bytes = self.peak_bytes.max(memory_bytes);
        Usage { cpu_s: self.cpu_s, memory_bytes, memory_peak_bytes: self.peak_bytes, gpus }
    }
}

fn page_bytes() -> u64 {
    let asked = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    asked.ok().flatten().and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_stays_and_time_never_goes_back() {
        let process = |cpu_ticks, resident_pages| Process {
            pid: 1,
            parent: 0,
            zombie: false,
            cpu_ticks,
            started: 0,
            resident_pages,
        };
        let mut meter = Meter::default();
        meter.read(&[process(150, 10), process(50, 20)], 4096, vec![]);
        let later = meter.read(&[process(100, 5)], 4096, vec![]);
        assert_eq!((later.cpu_s, later.memory_bytes, later.memory_peak_bytes), (2.0, 5 * 4096, 30 * 4096));
    }
}
