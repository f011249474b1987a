//! Makes a launch order concrete: argv, environment, and the socket the server is to listen on.
//!
//! In: the order and what this job's place is like. Out: what `server` starts. Nothing is started here; the only thing
//! made is the folder of the socket.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use glidepath_api_types::agent::{LaunchOrder, ListenOn};
use nix::unistd::{Uid, User};
use secrecy::{ExposeSecret, SecretString};

use crate::hub::random_word;
use crate::processes::ATTEMPT_VAR;

/// Name of the socket in its folder.
pub const SOCKET_NAME: &str = "server.sock";
/// Longest path of a socket: the system allows 107 bytes, and some programs less.
pub const SOCKET_PATH_MAX_BYTES: usize = 100;
/// Where the server is to listen, as home writes it; the one variable in which a port is filled in. All others are the
/// order's, letter by letter.
const SERVICE_URL_VAR: &str = "JUPYTERHUB_SERVICE_URL";
/// Environment variable that names the file of `notice`.
pub const NOTICE_VAR: &str = "GLIDEPATH_NOTICE_FILE";

/// What the site says of its language, and the batch system of the resources it gave; passed on to the server, where the
/// order has none.
const PASSED_ON: [&str; 5] =
    ["LANG", "TMPDIR", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"];
/// Labels beside [`ATTEMPT_VAR`] by which a backend finds the processes of its jobs.
const LABELS: [&str; 2] = ["GLIDEPATH_KEY", "GLIDEPATH_MARK"];
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why an order cannot be followed. Told to home; names no secret.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Nothing to start.
    #[error("the launch order has no command")]
    NoCommand,
    /// An environment variable's name cannot be one.
    #[error("the launch order has an environment variable whose name is empty or holds `=` or a zero byte")]
    BadVariable,
    /// Nobody knows where home is.
    #[error("no home folder: give --home")]
    NoHome,
    /// A variable that should hold a URL of the Hub.
    #[error("environment variable {0} holds no URL, but it should hold one of the Hub's API")]
    NotAUrl(String),
    /// The socket's path is too long for the system.
    #[error(
        "the socket's path {0} is longer than {SOCKET_PATH_MAX_BYTES} bytes: give a shorter --socket-dir"
    )]
    PathTooLong(PathBuf),
    /// Somebody else owns the folder.
    #[error("socket folder {0} does not belong to this account")]
    NotOurs(PathBuf),
    /// The folder cannot be made.
    #[error("making socket folder {path}: {source}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No port is free.
    #[error("finding a free port: {0}")]
    Port(io::Error),
}

/// What this job's place is like.
#[derive(Debug, Clone)]
pub struct Place {
    /// `<run>-<number>`.
    pub attempt: String,
    /// The server's home, when the command line names it.
    pub home: Option<PathBuf>,
    /// The socket's folder, when the command line names it.
    pub socket_dir: Option<PathBuf>,
    /// Where notices for the user are written.
    pub notice_file: Option<PathBuf>,
}

/// Where the server is to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A unix socket.
    Unix(PathBuf),
    /// A port on loopback.
    Tcp(u16),
}

/// An order made concrete.
pub struct Launch {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The whole environment. Holds secrets.
    pub env: BTreeMap<String, SecretString>,
    /// Where to start.
    pub folder: PathBuf,
    /// Where the server is to listen.
    pub target: Target,
    /// The socket's folder; removed with this value where it was made for it.
    pub socket_folder: Option<SocketFolder>,
}

/// Follows the order. `hub_base` is the forwarder's address with its prefix, without a slash at the end.
pub fn prepare(order: LaunchOrder, place: &Place, hub_base: &str) -> Result<Launch, LaunchError> {
    if order.argv.is_empty() {
        return Err(LaunchError::NoCommand);
    }
    let bad_name = |name: &String| name.is_empty() || name.contains(['=', '\0']);
    if order.env.keys().any(bad_name) {
        return Err(LaunchError::BadVariable);
    }
    let account = Account::of_this_process(place.home.clone())?;
    let (target, socket_folder) = match order.listen {
        ListenOn::UnixSocket => {
            let folder = SocketFolder::make(place.socket_dir.as_deref())?;
            (Target::Unix(folder.socket()?), Some(folder))
        }
        ListenOn::LoopbackTcp => (Target::Tcp(free_port().map_err(LaunchError::Port)?), None),
    };
    let mut env = order.env;
    rewrite_hub_urls(&mut env, &order.hub_url_vars, hub_base)?;
    if let (Target::Tcp(port), Some(url)) = (&target, env.get_mut(SERVICE_URL_VAR)) {
        *url = url.expose_secret().replacen("{port}", &port.to_string(), 1).into();
    }
    add_missing(&mut env, &account);
    env.insert(ATTEMPT_VAR.to_owned(), place.attempt.as_str().into());
    for name in LABELS {
        env.remove(name);
        env.extend(std::env::var(name).ok().map(|value| (name.to_owned(), value.into())));
    }
    if let Some(path) = &place.notice_file {
        env.insert(NOTICE_VAR.to_owned(), path.to_string_lossy().as_ref().into());
    }
    let argv = order.argv.iter().map(|word| substitute(word, &target)).collect();
    let folder = account.home.join(order.working_dir.unwrap_or_default());
    Ok(Launch { argv, env, folder, target, socket_folder })
}

fn substitute(word: &str, target: &Target) -> String {
    match target {
        Target::Unix(path) => word.replace("{socket}", &path.to_string_lossy()),
        Target::Tcp(port) => word.replace("{port}", &port.to_string()),
    }
}

/// Replaces scheme, host and port of each URL by the forwarder's, and keeps the rest.
fn rewrite_hub_urls(
    env: &mut BTreeMap<String, SecretString>,
    names: &[String],
    hub_base: &str,
) -> Result<(), LaunchError> {
    for name in names {
        let Some(value) = env.get_mut(name) else { continue };
        let rewritten = rewrite(value.expose_secret(), hub_base).ok_or(LaunchError::NotAUrl(name.clone()))?;
        *value = rewritten.into();
    }
    Ok(())
}

fn rewrite(url: &str, hub_base: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    if !matches!(scheme, "http" | "https") || rest.is_empty() {
        return None;
    }
    let path = rest.find('/').map_or("/", |at| &rest[at..]);
    Some(format!("{hub_base}{path}"))
}

fn add_missing(env: &mut BTreeMap<String, SecretString>, account: &Account) {
    let mut missing = |name: &str, value: &str| {
        env.entry(name.to_owned()).or_insert_with(|| value.into());
    };
    missing("HOME", &account.home.to_string_lossy());
    missing("USER", &account.name);
    missing("LOGNAME", &account.name);
    missing("SHELL", &account.shell);
    missing("PATH", &std::env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.to_owned()));
    for name in PASSED_ON {
        if let Ok(value) = std::env::var(name) {
            missing(name, &value);
        }
    }
}

/// Who this process runs as. An account need not be in the account database.
struct Account {
    name: String,
    home: PathBuf,
    shell: String,
}

impl Account {
    fn of_this_process(home: Option<PathBuf>) -> Result<Self, LaunchError> {
        let uid = Uid::effective();
        let known = User::from_uid(uid).ok().flatten();
        let home = home
            .or_else(|| std::env::var_os("HOME").map(PathBuf::from))
            .or_else(|| known.as_ref().map(|user| user.dir.clone()))
            .filter(|home| home.is_absolute())
            .ok_or(LaunchError::NoHome)?;
        let shell = known.as_ref().map(|user| user.shell.clone()).filter(|shell| is_login_shell(shell));
        Ok(Account {
            name: known.map_or_else(|| format!("u{uid}"), |user| user.name),
            home,
            shell: shell.map_or_else(|| "/bin/sh".to_owned(), |shell| shell.to_string_lossy().into_owned()),
        })
    }
}

fn is_login_shell(shell: &Path) -> bool {
    let refuses = shell.file_name().is_some_and(|name| name == "nologin" || name == "false");
    shell.is_file() && !refuses
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// A folder that only this account can enter.
#[derive(Debug)]
pub struct SocketFolder {
    path: PathBuf,
    /// Made here, so removed here.
    fresh: bool,
}

impl SocketFolder {
    /// The given folder, or a fresh one.
    pub fn make(given: Option<&Path>) -> Result<Self, LaunchError> {
        match given {
            Some(path) => {
                let fresh = private_dir().create(path).is_ok();
                Self::private(path.to_owned(), fresh)
            }
            None => {
                let name = format!("glidepath-{}", &random_word()[..16]);
                let run_time = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
                let run_time = run_time.map(|folder| folder.join(&name)).filter(|path| fits(path));
                let made = run_time.filter(|path| private_dir().create(path).is_ok());
                let path = made.map_or_else(
                    || {
                        let path = Path::new("/tmp").join(&name);
                        private_dir()
                            .create(&path)
                            .map(|()| path.clone())
                            .map_err(|source| LaunchError::Folder { path, source })
                    },
                    Ok,
                )?;
                Self::private(path, true)
            }
        }
    }

    fn private(path: PathBuf, fresh: bool) -> Result<Self, LaunchError> {
        let failed = |source| LaunchError::Folder { path: path.clone(), source };
        let meta = fs::symlink_metadata(&path).map_err(failed)?;
        if !meta.is_dir() || meta.uid() != Uid::effective().as_raw() {
            return Err(LaunchError::NotOurs(path));
        }
        if meta.mode() & 0o7777 != 0o700 {
            fs::set_permissions(&path, Permissions::from_mode(0o700)).map_err(failed)?;
        }
        let folder = SocketFolder { path, fresh };
        if let Ok(socket) = folder.socket() {
            let _ = fs::remove_file(socket);
        }
        Ok(folder)
    }

    /// The socket's path, when the system can take it.
    pub fn socket(&self) -> Result<PathBuf, LaunchError> {
        let path = self.path.join(SOCKET_NAME);
        if fits(&self.path) { Ok(path) } else { Err(LaunchError::PathTooLong(path)) }
    }
}

impl Drop for SocketFolder {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.path.join(SOCKET_NAME));
        if self.fresh {
            let _ = fs::remove_dir(&self.path);
        }
    }
}

fn private_dir() -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.mode(0o700);
    builder
}

fn fits(folder: &Path) -> bool {
    folder.join(SOCKET_NAME).as_os_str().len() <= SOCKET_PATH_MAX_BYTES
}

#[cfg(test)]
mod tests {
    use glidepath_api_types::agent::Limits;

    use super::*;

    #[test]
    fn hub_urls_keep_their_path_and_lose_their_host() {
        let base = "http://127.0.0.1:9/pre";
        let told = |url| rewrite(url, base);
        assert_eq!(told("http://hub:8081/hub/api").unwrap(), "http://127.0.0.1:9/pre/hub/api");
        assert_eq!(
            told("https://[::1]:8081/jhub/hub/api/users/a%40b/activity?x=1").unwrap(),
            "http://127.0.0.1:9/pre/jhub/hub/api/users/a%40b/activity?x=1"
        );
        assert_eq!(told("http://hub").unwrap(), "http://127.0.0.1:9/pre/");
        assert_eq!((told("/hub/api"), told("unix:///x"), told("http://")), (None, None, None));
    }

    #[test]
    fn the_environment_is_the_orders_and_only_what_is_missing_is_added() {
        let folder = tempfile::tempdir().unwrap();
        let mut order = order(&["serve", "--sock={socket}"]);
        order.env.insert("HOME".to_owned(), "/elsewhere".into());
        let launch = prepare(order, &place(folder.path()), "http://127.0.0.1:9/pre").unwrap();
        let value = |name: &str| launch.env.get(name).map(|value| value.expose_secret().to_owned());
        assert_eq!(value("HOME").unwrap(), "/elsewhere");
        assert_eq!(value("JUPYTERHUB_API_URL").unwrap(), "http://127.0.0.1:9/pre/hub/api");
        assert_eq!(value(ATTEMPT_VAR).unwrap(), "01ABC-1");
        assert!(value("PATH").is_some() && value("USER") == value("LOGNAME"));
        assert_eq!(value("CARGO_MANIFEST_DIR"), None, "the agent's own environment stays with the agent");
        let socket = folder.path().join("s").join(SOCKET_NAME);
        assert_eq!(launch.argv[1], format!("--sock={}", socket.display()));
        assert_eq!(launch.folder, folder.path().join("work"));
    }

    #[test]
    fn the_sockets_folder_is_private_and_goes_with_the_launch() {
        let folder = tempfile::tempdir().unwrap();
        let launch = prepare(order(&["serve"]), &place(folder.path()), "x").unwrap();
        let path = folder.path().join("s");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
        drop(launch);
        assert!(!path.exists());
    }

    #[test]
    fn a_folder_that_others_could_enter_is_closed_to_them() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let _made = SocketFolder::make(Some(folder.path())).unwrap();
        assert_eq!(fs::metadata(folder.path()).unwrap().mode() & 0o7777, 0o700);
    }

    #[test]
    fn a_path_that_the_system_cannot_take_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let long = Place { socket_dir: Some(folder.path().join("x".repeat(90))), ..place(folder.path()) };
        let error = prepare(order(&["serve"]), &long, "x").err().unwrap();
        assert!(error.to_string().contains("--socket-dir"), "{error}");
    }

    #[test]
    fn a_port_reaches_arguments_and_environment() {
        let folder = tempfile::tempdir().unwrap();
        let mut order = order(&["serve", "--port={port}"]);
        order.listen = ListenOn::LoopbackTcp;
        order.env.insert("JUPYTERHUB_SERVICE_URL".to_owned(), "http://127.0.0.1:{port}/user/ada/".into());
        order.env.insert("PROMPT".to_owned(), "{port}{socket}".into());
        let launch = prepare(order, &place(folder.path()), "x").unwrap();
        let Target::Tcp(port) = launch.target else { unreachable!("a port was asked for") };
        assert_eq!(launch.argv[1], format!("--port={port}"));
        let url = launch.env["JUPYTERHUB_SERVICE_URL"].expose_secret();
        assert_eq!(url, format!("http://127.0.0.1:{port}/user/ada/"));
        assert_eq!(launch.env["PROMPT"].expose_secret(), "{port}{socket}", "the user's own text");
    }

    #[test]
    fn an_order_that_cannot_be_followed_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let told = |order| prepare(order, &place(folder.path()), "x").err().unwrap().to_string();
        assert!(told(order(&[])).contains("no command"));
        let mut no_url = order(&["serve"]);
        no_url.env.insert("JUPYTERHUB_API_URL".to_owned(), "secret-thing".into());
        let told = told(no_url);
        assert!(told.contains("JUPYTERHUB_API_URL") && !told.contains("secret-thing"), "{told}");
    }

    fn place(folder: &Path) -> Place {
        Place {
            attempt: "01ABC-1".to_owned(),
            home: Some(folder.to_owned()),
            socket_dir: Some(folder.join("s")),
            notice_file: None,
        }
    }

    fn order(argv: &[&str]) -> LaunchOrder {
        let url = ("JUPYTERHUB_API_URL".to_owned(), "http://hub:8081/hub/api".into());
        LaunchOrder {
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            env: BTreeMap::from([url]),
            listen: ListenOn::UnixSocket,
            hub_url_vars: vec!["JUPYTERHUB_API_URL".to_owned(), "JUPYTERHUB_ACTIVITY_URL".to_owned()],
            working_dir: Some("work".to_owned()),
            grace_s: 5,
            walltime_s: 60,
            limits: Limits::default(),
        }
    }
}
