//! A home end in this process, agents as processes of their own, and a method per thing that home or a person does.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use glidepath_api_types::agent::{
    DialFile, FromAgent, LaunchOrder, Limits, ListenOn, PURPOSE_CONTROL, PURPOSE_HUB_API, PURPOSE_SERVER,
    Phase, Report, ServerEnd, ToAgent, Trust,
};
use glidepath_testkit::wait::until_some;
use glidepath_tunnel::home::{Admitted, Gate, HomeConfig, HomeEnd, Knock, Refusal};
use glidepath_tunnel::link::Link;
use glidepath_tunnel::stream::Stream;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines, ReadHalf, WriteHalf};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Nothing here takes longer on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(15);
pub(crate) const TICKET: &str = "the-ticket-itself";
pub(crate) const TOKEN: &str = "the-servers-own-token";

/// Home: listens, lets agents in, hands out their links.
pub(crate) struct Home {
    pub(crate) address: SocketAddr,
    links: mpsc::UnboundedReceiver<Link>,
    gate: Arc<Door>,
    doors: JoinSet<()>,
}

struct Door {
    links: mpsc::UnboundedSender<Link>,
    refusal: Mutex<Option<Refusal>>,
    tickets: Mutex<Vec<String>>,
}

impl Home {
    pub(crate) async fn open() -> Self {
        Self::at("127.0.0.1:0".parse().unwrap()).await
    }

    /// A home that knows nothing of what was before, at an address of before.
    pub(crate) async fn at(address: SocketAddr) -> Self {
        let listener =
            until_some(SOON, "the address is free", || async { TcpListener::bind(address).await.ok() }).await;
        let (send, links) = mpsc::unbounded_channel();
        let gate = Arc::new(Door { links: send, refusal: Mutex::default(), tickets: Mutex::default() });
        let address = listener.local_addr().unwrap();
        let end = HomeEnd::new(HomeConfig::default(), gate.clone());
        let mut doors = JoinSet::new();
        doors.spawn(async move {
            let mut lanes = JoinSet::new();
            while let Ok((io, peer)) = listener.accept().await {
                let end = end.clone();
                lanes.spawn(async move { end.serve(io, peer).await });
            }
        });
        Home { address, links, gate, doors }
    }

    /// The service dies: every connection breaks, and its address is free.
    pub(crate) async fn die(mut self) -> SocketAddr {
        self.doors.shutdown().await;
        self.address
    }

    pub(crate) fn refuse(&self, sentence: &str) {
        *self.gate.refusal.lock().unwrap() = Some(Refusal::Final { sentence: sentence.to_owned() });
    }

    pub(crate) fn tickets(&self) -> Vec<String> {
        self.gate.tickets.lock().unwrap().clone()
    }

    pub(crate) async fn link(&mut self) -> Link {
        timeout(SOON, self.links.recv()).await.expect("an agent arrives").unwrap()
    }

    pub(crate) async fn control(&mut self) -> Control {
        let link = self.link().await;
        Control::on(link)
    }
}

#[async_trait]
impl Gate for Door {
    async fn admit(&self, knock: Knock) -> Result<Admitted, Refusal> {
        self.tickets.lock().unwrap().push(knock.credential);
        match self.refusal.lock().unwrap().clone() {
            Some(refusal) => Err(refusal),
            None => Ok(Admitted { identity: "01TEST-1".to_owned() }),
        }
    }

    fn linked(&self, _admitted: &Admitted, link: Link) {
        let _ = self.links.send(link);
    }
}

/// Home's side of the control stream.
pub(crate) struct Control {
    pub(crate) link: Link,
    lines: Lines<BufReader<ReadHalf<Stream>>>,
    write: WriteHalf<Stream>,
    pub(crate) last: Option<Report>,
}

impl Control {
    pub(crate) fn on(link: Link) -> Self {
        let (read, write) = tokio::io::split(link.open(PURPOSE_CONTROL).unwrap());
        Control { link, lines: BufReader::new(read).lines(), write, last: None }
    }

    pub(crate) async fn say(&mut self, what: &ToAgent) {
        let mut line = serde_json::to_vec(what).unwrap();
        line.push(b'\n');
        self.write.write_all(&line).await.unwrap();
        self.write.flush().await.unwrap();
    }

    pub(crate) async fn say_raw(&mut self, line: &str) {
        self.write.write_all(line.as_bytes()).await.unwrap();
        self.write.flush().await.unwrap();
    }

    pub(crate) async fn launch(&mut self, order: LaunchOrder) {
        self.say(&ToAgent::Launch(Box::new(order))).await;
    }

    pub(crate) async fn stop(&mut self, grace_s: u32, reason: &str) {
        self.say(&ToAgent::Stop { grace_s, reason: reason.to_owned() }).await;
    }

    pub(crate) async fn report(&mut self) -> Report {
        let line = timeout(SOON, self.lines.next_line())
            .await
            .expect("a report comes")
            .unwrap()
            .expect("no end yet");
        let FromAgent::Report(report) = serde_json::from_str(&line).unwrap();
        self.last = Some(report.clone());
        report
    }

    pub(crate) async fn phase(&mut self, wanted: Phase) -> Report {
        self.report_with(|report| report.phase == wanted).await
    }

    pub(crate) async fn report_with(&mut self, wanted: impl Fn(&Report) -> bool) -> Report {
        let seen = async {
            loop {
                let report = self.report().await;
                if wanted(&report) {
                    return report;
                }
            }
        };
        timeout(SOON, seen).await.expect("the wanted report comes")
    }

    /// How the server ended; then lets the agent go, as home does.
    pub(crate) async fn ended(&mut self) -> (ServerEnd, Report) {
        let report = self.report_with(|report| matches!(report.phase, Phase::Ended(_))).await;
        let Phase::Ended(end) = report.phase.clone() else { unreachable!("looked for above") };
        self.link.close("noted");
        (end, report)
    }

    pub(crate) fn to_server(&self) -> Stream {
        self.link.open(PURPOSE_SERVER).unwrap()
    }

    /// The next call of the Hub's API.
    pub(crate) async fn hub_call(&self) -> Stream {
        let incoming = timeout(SOON, self.link.accept()).await.expect("a call comes").unwrap();
        assert_eq!(incoming.purpose, PURPOSE_HUB_API);
        incoming.stream
    }
}

/// Whose limit of processes no other process counts against.
const LIMITED_ACCOUNT: u32 = 61_300;

/// A job: a folder with a dial file, and the agent as a process. Everything goes when it is dropped.
pub(crate) struct Job {
    pub(crate) folder: TempDir,
    pub(crate) agent: Child,
    /// Ends of named pipes that are held and not read.
    _stuck: Vec<std::fs::File>,
}

pub(crate) struct JobWith {
    pub(crate) dial_deadline_s: u64,
    pub(crate) absence_limit_s: u64,
    pub(crate) mode: u32,
    pub(crate) socket_dir: bool,
    pub(crate) path_first: Option<PathBuf>,
    /// An account of its own with so many processes and threads at most. Needs root.
    pub(crate) processes_max: Option<u32>,
    /// Named pipes below the job's folder, whose readers do not read: a disk that does not answer.
    pub(crate) stuck: &'static [&'static str],
}

impl Default for JobWith {
    fn default() -> Self {
        JobWith {
            dial_deadline_s: 30,
            absence_limit_s: 600,
            mode: 0o600,
            socket_dir: true,
            path_first: None,
            processes_max: None,
            stuck: &[],
        }
    }
}

impl Job {
    pub(crate) fn start(address: SocketAddr) -> Self {
        Self::start_with(address, JobWith::default())
    }

    pub(crate) fn start_with(address: SocketAddr, with: JobWith) -> Self {
        let folder = tempfile::Builder::new().prefix("gp").tempdir().unwrap();
        let dial = DialFile {
            version: 1,
            home_url: format!("ws://{address}/link"),
            trust: Trust::SystemRoots,
            ticket: TICKET.into(),
            attempt: label(folder.path()),
            dial_deadline_s: with.dial_deadline_s,
            absence_limit_s: with.absence_limit_s,
        };
        let path = folder.path().join("dial.json");
        let mut file = OpenOptions::new().write(true).create_new(true).mode(with.mode).open(&path).unwrap();
        file.write_all(serde_json::to_string(&dial).unwrap().as_bytes()).unwrap();
        let home = folder.path().join("home");
        std::fs::create_dir(&home).unwrap();
        let log = std::fs::File::create(folder.path().join("agent.log")).unwrap();
        let stuck = with.stuck.iter().map(|name| stuck_at(&folder.path().join(name))).collect();
        let mut command = match with.processes_max {
            Some(max) => limited(max, folder.path()),
            None => Command::new(env!("CARGO_BIN_EXE_glidepath-agent")),
        };
        command.arg("run").arg("--dial-file").arg(&path).arg("--home").arg(&home);
        if with.socket_dir {
            command.arg("--socket-dir").arg(folder.path().join("s"));
        }
        let path = std::env::var("PATH").unwrap();
        let path = with.path_first.map_or(path.clone(), |first| format!("{}:{path}", first.display()));
        command
            .env_clear()
            .env("PATH", path)
            .env("GLIDEPATH_ATTEMPT", label(folder.path()))
            .env("LANG", "de_DE.UTF-8")
            .env("GLIDEPATH_MARK", "the-mark");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        Job { agent: command.spawn().unwrap(), folder, _stuck: stuck }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.agent.id().unwrap()).unwrap())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits for the agent's own end.
    pub(crate) async fn exit(&mut self) -> i32 {
        let status = timeout(SOON, self.agent.wait()).await;
        let status = status.unwrap_or_else(|_| unreachable!("the agent does not end:\n{}", self.agent_log()));
        status.unwrap().code().expect("an exit code")
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    /// A file that the server writes into its home.
    pub(crate) async fn written(&self, name: &str) -> String {
        let path = self.home().join(name);
        let what = format!("the server writes {name}; agent: {}", self.agent_log());
        until_some(SOON, &what, || async {
            std::fs::read_to_string(&path).ok().filter(|text| text.ends_with('\n'))
        })
        .await
    }

    pub(crate) fn agent_log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("agent.log")).unwrap_or_default()
    }

    pub(crate) fn server_log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default()
    }

    /// Processes of this job that are alive, the agent included.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let label = label(self.folder.path());
        let alive = |pid: &i32| glidepath_agent::processes::look(*pid).is_some_and(|process| !process.zombie);
        let all = glidepath_agent::processes::scan().into_iter().map(|process| process.pid);
        all.filter(|pid| glidepath_agent::processes::carries(*pid, &label)).filter(alive).collect()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        for pid in self.processes() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn stuck_at(path: &Path) -> std::fs::File {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // Both ends, so that nobody waits for the other one.
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// The agent by way of `confine`, as an account of its own that owns the folder.
fn limited(processes_max: u32, folder: &Path) -> Command {
    assert!(nix::unistd::Uid::effective().is_root(), "this test needs root: run it as root");
    let agent = folder.join("agent");
    std::fs::copy(env!("CARGO_BIN_EXE_glidepath-agent"), &agent).unwrap();
    for path in [".", "home", "dial.json"] {
        std::os::unix::fs::chown(folder.join(path), Some(LIMITED_ACCOUNT), Some(LIMITED_ACCOUNT)).unwrap();
    }
    let account = LIMITED_ACCOUNT.to_string();
    let mut command = Command::new(&agent);
    command.args([
        "confine",
        "--rlimit",
        &format!("nproc={processes_max}"),
        "--uid",
        &account,
        "--gid",
        &account,
    ]);
    command.arg("--").arg(&agent);
    command
}

/// Unlike any other job's of this test run.
fn label(folder: &Path) -> String {
    let name = folder.file_name().unwrap().to_string_lossy();
    let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("{plain}-{}-1", std::process::id())
}

/// An order to run a shell script as the server.
pub(crate) fn script(text: &str) -> LaunchOrder {
    order(&["sh", "-c", text])
}

/// An order to run a Python program as the server; the socket's path is its argument.
pub(crate) fn python(text: &str) -> LaunchOrder {
    order(&["python3", "-c", text, "{socket}"])
}

pub(crate) fn order(argv: &[&str]) -> LaunchOrder {
    let env = [
        ("JUPYTERHUB_API_TOKEN", TOKEN),
        ("JUPYTERHUB_API_URL", "http://hub.example.org:8081/jhub/hub/api"),
        ("JUPYTERHUB_ACTIVITY_URL", "http://hub.example.org:8081/jhub/hub/api/users/ada/activity"),
        ("JUPYTERHUB_SERVICE_URL", "http://127.0.0.1:8888/jhub/user/ada/"),
    ];
    LaunchOrder {
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        env: env.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect::<BTreeMap<_, _>>(),
        listen: ListenOn::UnixSocket,
        hub_url_vars: vec!["JUPYTERHUB_API_URL".to_owned(), "JUPYTERHUB_ACTIVITY_URL".to_owned()],
        working_dir: None,
        grace_s: 5,
        walltime_s: 3600,
        limits: Limits::default(),
    }
}

/// A server that answers every connection with what it was sent, in capitals, once the client has ended its side.
pub(crate) const SHOUT: &str = r"
import socket, sys, threading
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen(16)
def serve(c):
    data = b''
    while True:
        part = c.recv(65536)
        if not part: break
        data += part
    c.sendall(data.upper())
    c.close()
while True:
    threading.Thread(target=serve, args=(s.accept()[0],), daemon=True).start()
";
