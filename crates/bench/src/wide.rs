//! A line between two network namespaces: rate, delay, a queue and loss each way, without a kernel module.
//!
//! It makes a TUN device in each namespace and carries packets between them; addresses, routes and MTU are the
//! starter's work. A line on standard input changes it while it runs: `swallow` and `carry`; its end ends the line.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use serde_json::json;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio_tun::Tun;

use crate::figures::tell;

mod line;

use line::{Line, Nature};

/// No packet is longer.
const PACKET_BYTES: usize = 64 * 1024;
/// Packets that are taken in before those that are due go out.
const BATCH: usize = 64;

#[derive(Debug, clap::Args)]
pub(crate) struct WideArgs {
    /// The two namespaces, as files.
    #[arg(long, num_args = 2, required = true, value_names = ["HERE", "THERE"])]
    spaces: Vec<PathBuf>,
    /// What the device is called in both.
    #[arg(long, default_value = "wide0")]
    device: String,
    #[command(flatten)]
    nature: Nature,
}

/// Carries until standard input ends, then tells what became of the packets.
pub(crate) async fn wide(args: &WideArgs) -> anyhow::Result<()> {
    let [here, there] = args.spaces.as_slice() else { bail!("a line has two ends") };
    // Nothing else runs on this thread, and nothing opened from here on minds in which namespace it is.
    let (here, there) = (device(here, &args.device)?, device(there, &args.device)?);
    let whole = Arc::new(AtomicBool::new(true));
    let ended = obey(Arc::clone(&whole))?;
    let now = Instant::now();
    let (mut out, mut back) = (Line::new(&args.nature, 0, now), Line::new(&args.nature, 1, now));
    tell(&json!({ "carries": true }));
    tokio::select! {
        failed = carry(&here, &there, &mut out, &whole) => failed?,
        failed = carry(&there, &here, &mut back, &whole) => failed?,
        told = ended => told??,
    }
    tell(&json!({ "out": out.fate, "back": back.fate }));
    Ok(())
}

/// A device in a namespace, which this thread is in afterwards.
fn device(space: &PathBuf, name: &str) -> anyhow::Result<Tun> {
    let file = File::open(space).with_context(|| space.display().to_string())?;
    setns(file.as_fd(), CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {}", space.display()))?;
    let made = Tun::builder().name(name).build();
    let made = made.with_context(|| format!("a device {name} in {}", space.display()))?;
    made.into_iter().next().context("no device was made")
}

/// Does what standard input says. The answer comes when it ends.
fn obey(whole: Arc<AtomicBool>) -> io::Result<oneshot::Receiver<anyhow::Result<()>>> {
    let (say, ended) = oneshot::channel();
    thread::Builder::new().name("orders".into()).spawn(move || {
        let each = |order: io::Result<String>| -> anyhow::Result<()> {
            let carries = match order?.as_str() {
                "carry" => true,
                "swallow" => false,
                other => bail!("an order is `carry` or `swallow`, not {other:?}"),
            };
            whole.store(carries, Ordering::Relaxed);
            tell(&json!({ "carries": carries }));
            Ok(())
        };
        let _ = say.send(io::stdin().lines().try_for_each(each));
    })?;
    Ok(ended)
}

/// One direction, until a device fails.
async fn carry(from: &Tun, to: &Tun, line: &mut Line, whole: &AtomicBool) -> anyhow::Result<()> {
    let mut alarm = Alarm::new()?;
    let mut packet = vec![0; PACKET_BYTES];
    loop {
        let mut came = tokio::select! {
            rang = alarm.until(line.due()) => { rang?; None }
            read = from.recv(&mut packet) => Some(read.context("reading a device")?),
        };
        for _ in 0..BATCH {
            let Some(bytes) = came.take().or_else(|| from.try_recv(&mut packet).ok()) else { break };
            let whole = whole.load(Ordering::Relaxed);
            line.put(packet.get(..bytes).unwrap_or_default(), whole, Instant::now());
        }
        while let Some(arrived) = line.take(Instant::now()) {
            let _ = to.try_send(&arrived); // a device that is not up yet loses it, as a network does
        }
    }
}

/// Rings at a moment, to the microsecond: tokio's own timer has a grain of a millisecond.
struct Alarm {
    timer: TimerFd,
    /// The same timer, as what tokio waits for: it asks of a pipe only that it can be read.
    rings: pipe::Receiver,
    set_for: Option<Instant>,
}

impl Alarm {
    fn new() -> anyhow::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let rings = pipe::Receiver::from_owned_fd_unchecked(timer.as_fd().try_clone_to_owned()?)?;
        Ok(Self { timer, rings, set_for: None })
    }

    /// Never, when there is nothing to wait for. May be dropped half way.
    async fn until(&mut self, when: Option<Instant>) -> anyhow::Result<()> {
        let Some(when) = when else { return std::future::pending().await };
        loop {
            let left = when.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            if self.set_for != Some(when) {
                let once = Expiration::OneShot(TimeSpec::from_duration(left));
                self.timer.set(once, TimerSetTimeFlags::empty())?;
                self.set_for = Some(when);
            }
            self.rings.readable().await?;
            let mut times = [0; 8];
            match self.rings.try_read(&mut times) {
                Ok(_) => self.set_for = None, // it rings once
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn an_alarm_rings_not_before_its_time_and_again_when_it_is_set_again() {
        let mut alarm = Alarm::new().unwrap();
        for us in [0, 300, 50, 2000] {
            let when = Instant::now() + Duration::from_micros(us);
            alarm.until(Some(when)).await.unwrap();
            assert!(Instant::now() >= when);
        }
    }

    #[tokio::test]
    async fn an_alarm_that_was_dropped_half_way_can_be_set_for_earlier() {
        let mut alarm = Alarm::new().unwrap();
        let late = Instant::now() + Duration::from_secs(3600);
        tokio::select! {
            _ = alarm.until(Some(late)) => unreachable!("an hour has not passed"),
            () = tokio::time::sleep(Duration::from_millis(1)) => {}
        }
        alarm.until(Some(Instant::now() + Duration::from_micros(100))).await.unwrap();
    }
}
