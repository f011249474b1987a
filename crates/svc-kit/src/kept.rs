//! Listening sockets that outlive the process: a service manager keeps them while the service is started again.
//!
//! In: `LISTEN_FDS` and `LISTEN_FDNAMES`, as sd_listen_fds(3) has them. Out: `FDSTORE=1` datagrams to `NOTIFY_SOCKET`, as
//! sd_notify(3) has them. Whoever connects in between waits in the socket's queue instead of being refused.

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use listenfd::ListenFd;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

/// They are handed over again so often: whoever keeps them may have been started anew.
const EVERY: Duration = Duration::from_secs(5);

/// Listeners from the process that was here before, by the names that it gave them.
#[derive(Debug, Default)]
pub struct Inherited(Vec<(String, TcpListener)>);

impl Inherited {
    /// Takes what the environment names. To be called once, before there are threads.
    #[must_use]
    pub fn take() -> Self {
        let told = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let names: Vec<&str> = told.split(':').collect();
        let mut sockets = ListenFd::from_env();
        let taken = (0..sockets.len()).filter_map(|index| {
            let name = names.get(index).copied().unwrap_or("unknown");
            let listener = sockets.take_tcp_listener(index).ok().flatten()?;
            Some((name.to_owned(), listener))
        });
        Self(taken.collect())
    }

    /// The listener at this address, whatever it was called: a config may give one address another use.
    pub fn listener(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let at = self.0.iter().position(|(_, listener)| listener.local_addr().ok() == Some(address))?;
        Some(self.0.swap_remove(at).1)
    }

    /// Whether one of them listens there.
    #[must_use]
    pub fn listens_on(&self, address: SocketAddr) -> bool {
        self.0.iter().any(|(_, listener)| listener.local_addr().ok() == Some(address))
    }

    /// The names under which something is kept, for [`Copies::instead_of`].
    #[must_use]
    pub fn names(&self) -> BTreeSet<String> {
        self.0.iter().map(|(name, _)| name.clone()).collect()
    }
}

impl FromIterator<(String, TcpListener)> for Inherited {
    fn from_iter<T: IntoIterator<Item = (String, TcpListener)>>(found: T) -> Self {
        Self(found.into_iter().collect())
    }
}

/// Copies of listeners, to be kept by the service manager.
#[derive(Debug, Default)]
pub struct Copies {
    listeners: Vec<(String, OwnedFd)>,
    before: BTreeSet<String>,
}

impl Copies {
    /// Copies that replace what was kept under these names. A listener that is kept though nobody serves it any more
    /// would let its callers wait for ever.
    #[must_use]
    pub fn instead_of(before: BTreeSet<String>) -> Self {
        Self { listeners: Vec::new(), before }
    }

    /// Adds a copy. A name has no colon and no control character.
    pub fn add(&mut self, name: &str, listener: &impl AsFd) -> io::Result<()> {
        self.listeners.push((name.to_owned(), listener.as_fd().try_clone_to_owned()?));
        Ok(())
    }

    /// Hands them over, now and then again, until told to stop.
    pub async fn keep(self, stop: CancellationToken) {
        match std::env::var("NOTIFY_SOCKET") {
            Ok(keeper) if !keeper.is_empty() => self.keep_with(&keeper, &stop).await,
            _ => {
                drop(self); // a copy that nobody keeps would only hold the port
                stop.cancelled().await;
            }
        }
    }

    async fn keep_with(mut self, keeper: &str, stop: &CancellationToken) {
        let mut again = interval(EVERY);
        let mut told = false;
        while stop.run_until_cancelled(again.tick()).await.is_some() {
            let kept = self.hand_over(keeper);
            if let Err(error) = &kept
                && !told
            {
                tracing::warn!(%error, %keeper, "nobody keeps the listeners: a restart refuses connections for a moment");
            }
            told = kept.is_err();
        }
    }

    fn hand_over(&mut self, keeper: &str) -> io::Result<()> {
        let to = match keeper.strip_prefix('@') {
            Some(name) => UnixAddr::new_abstract(name.as_bytes())?,
            None => UnixAddr::new(keeper)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?; // a keeper that does not read must not hold up the service
        while let Some(name) = self.before.first() {
            tell(&socket, &to, &format!("FDSTOREREMOVE=1\nFDNAME={name}"), None)?;
            self.before.pop_first();
        }
        for (name, copy) in &self.listeners {
            tell(&socket, &to, &format!("FDSTORE=1\nFDNAME={name}"), Some(copy))?;
        }
        Ok(())
    }
}

fn tell(socket: &UnixDatagram, to: &UnixAddr, text: &str, copy: Option<&OwnedFd>) -> io::Result<()> {
    let descriptors: Vec<_> = copy.iter().map(|copy| copy.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let rights = if copy.is_some() { rights.as_slice() } else { &[] };
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(text.as_bytes())], rights, MsgFlags::empty(), Some(to))?;
    Ok(())
}
