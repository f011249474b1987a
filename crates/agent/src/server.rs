//! The server's process: start, see that it listens, end it, see what it left.

use std::fs;
use std::io::{self, Read};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use secrecy::ExposeSecret;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::launch::{Launch, Target};
use crate::output::Output;
use crate::processes::sweep;
use crate::reaper::{Exit, Reaper, pid_of};

/// This very program, also when its file was replaced or removed meanwhile.
const THIS_PROGRAM: &str = "/proc/self/exe";
/// How long what the server left behind may take to end kindly.
const LEFTOVER_GRACE: Duration = Duration::from_secs(2);
/// How long to wait for the last output of a server that ended.
const LAST_OUTPUT: Duration = Duration::from_millis(500);
/// Between two looks whether the server listens, each half as long again as the one before: a server that starts at once
/// is not kept waiting, and one that takes seconds is not asked all the time.
const LOOK_FIRST: Duration = Duration::from_millis(2);
const LOOK_LATER: Duration = Duration::from_millis(50);
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
const SET_UP_MAX_BYTES: u64 = 4096;

/// A server that was started.
pub struct Server {
    pid: Pid,
    exited: oneshot::Receiver<Exit>,
    output_ended: oneshot::Receiver<()>,
    /// Closed without a word by the exec of the server's command; else it holds why there was none.
    set_up: io::PipeReader,
}

/// What is known of a server that is over.
pub struct Over {
    /// How its process ended.
    pub exit: Exit,
    /// Why its command could not be started, when it could not.
    pub not_started: Option<String>,
}

impl Server {
    /// Starts the server's process. That its command could not be started is known at its end ([`Server::over`]).
    /// To be called from the main thread: the server is told when that thread dies.
    pub fn start(launch: &Launch, reaper: &Reaper, output: &Output) -> io::Result<Self> {
        let (set_up, set_up_told) = io::pipe()?;
        let (output_read, output_written) = io::pipe()?;
        let mut command = Command::new(THIS_PROGRAM);
        command
            .arg0("glidepath-agent")
            .arg("launch-child")
            .arg(format!("--parent={}", std::process::id()))
            .arg("--chdir")
            .arg(&launch.folder)
            .arg("--")
            .args(&launch.argv)
            .env_clear()
            .envs(launch.env.iter().map(|(name, value)| (name, value.expose_secret())))
            .stdin(Stdio::from(set_up_told))
            .stdout(output_written.try_clone()?)
            .stderr(output_written);
        // Before the start: a server whose output nobody can take is none that goes on without the agent's knowing.
        let output_ended = output.follow(output_read)?;
        let (child, exited) = reaper.spawn(&mut command)?;
        drop(command); // and with it our ends of the pipes
        Ok(Server { pid: pid_of(&child), exited, output_ended, set_up })
    }

    /// Waits for the end of the server's process. May be dropped half way; not to be called again after it answered.
    pub async fn exited(&mut self) -> Exit {
        (&mut self.exited).await.unwrap_or(Exit { code: None, signal: None })
    }

    /// Signals the server and what it started in its own process group; before it has one, the process alone.
    pub fn signal(&self, signal: Signal) {
        if killpg(self.pid, signal).is_err() {
            let _ = kill(self.pid, signal);
        }
    }

    /// After the end of its process: ends what it left behind, and takes its last output.
    pub async fn over(self, exit: Exit, attempt: &str) -> Over {
        let immortal = sweep(attempt, LEFTOVER_GRACE).await;
        if immortal > 0 {
            tracing::warn!(processes = immortal, "processes of the server could not be ended");
        }
        let _ = timeout(LAST_OUTPUT, self.output_ended).await;
        let mut told = String::new();
        let _ = self.set_up.take(SET_UP_MAX_BYTES).read_to_string(&mut told);
        Over { exit, not_started: Some(told).filter(|told| !told.is_empty()) }
    }
}

/// Waits until something listens at the target. May be dropped half way.
pub async fn listening(target: &Target) {
    let mut pause = LOOK_FIRST;
    while connect(target).await.is_err() {
        sleep(pause).await;
        pause = (pause * 3 / 2).min(LOOK_LATER);
    }
}

/// A connection to the server, of either kind.
pub trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

/// Connects to the server, within [`CONNECT_WITHIN`]. May be dropped half way.
pub async fn connect(target: &Target) -> io::Result<Box<dyn Connection>> {
    let connected = async {
        match target {
            Target::Unix(path) => Ok(Box::new(unix(path).await?) as Box<dyn Connection>),
            Target::Tcp(port) => {
                let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream) as Box<dyn Connection>)
            }
        }
    };
    timeout(CONNECT_WITHIN, connected).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The folder is private, but nothing else than a socket of ours is to be reached through it.
async fn unix(path: &Path) -> io::Result<UnixStream> {
    fs::symlink_metadata(path)?;
    UnixStream::connect(path).await
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_is_found_to_listen_within_half_the_time_that_it_took() {
        for took in [4, 40, 400].map(Duration::from_millis) {
            let folder = tempfile::tempdir().unwrap();
            let target = Target::Unix(folder.path().join("socket"));
            let Target::Unix(path) = &target else { unreachable!() };
            let began = Instant::now();
            let server = async {
                sleep(took).await;
                UnixListener::bind(path).unwrap()
            };
            let (_server, ()) = tokio::join!(server, listening(&target));
            let found = began.elapsed();
            assert!(found <= took + took / 2, "listened after {took:?}, found after {found:?}");
        }
    }
}
