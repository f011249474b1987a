//! Starts processes and collects every process that ends below the agent, its own children or not.
//!
//! The agent adopts what its server's processes leave behind, so it must reap whatever ends; waiting for single
//! children beside that would race. Hence one place does both.

use std::collections::HashMap;
use std::io;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code, when it exited.
    pub code: Option<i32>,
    /// The signal that killed it, when one did.
    pub signal: Option<i32>,
}

/// Starts and collects processes. Cheap to clone; there is one per agent.
#[derive(Clone, Default)]
pub struct Reaper {
    waiting: Arc<Mutex<HashMap<i32, oneshot::Sender<Exit>>>>,
}

impl Reaper {
    /// Starts a process; the receiver tells its end. The kernel ties the server's fate to the *thread* that called
    /// this, so it is called from the main one only.
    pub fn spawn(&self, command: &mut Command) -> io::Result<(Child, oneshot::Receiver<Exit>)> {
        let (tell, told) = oneshot::channel();
        // Held over the start, so that the end cannot be collected before somebody waits for it.
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let child = command.spawn()?;
        waiting.insert(pid_of(&child).as_raw(), tell);
        Ok((child, told))
    }

    /// Listens for ends. Must be called before the first [`Reaper::spawn`].
    pub fn listen() -> io::Result<Signal> {
        signal(SignalKind::child())
    }

    /// Collects ends for ever.
    pub async fn run(self, mut ends: Signal) {
        loop {
            self.collect();
            if ends.recv().await.is_none() {
                return;
            }
        }
    }

    fn collect(&self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let (pid, exit) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, Exit { code: Some(code), signal: None }),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    (pid, Exit { code: None, signal: Some(signal as i32) })
                }
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            if let Some(tell) = waiting.remove(&pid.as_raw()) {
                let _ = tell.send(exit);
            }
        }
    }
}

/// The pid as the system calls take it.
pub fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX))
}
