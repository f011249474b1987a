//! From the dial file to a server that answers.

use std::os::unix::fs::MetadataExt;

use glidepath_api_types::agent::{EXIT_CANNOT_START, EXIT_TICKET_REFUSED, EndCause, ListenOn, Phase};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::house::{Home, Job, JobWith, SHOUT, TICKET, TOKEN, order, python, script};

#[tokio::test]
async fn a_server_is_started_and_reached_over_the_link() {
    let mut home = Home::open().await;
    let job = Job::start(home.address);
    let mut control = home.control().await;
    control.phase(Phase::Waiting).await;
    assert!(!job.folder.path().join("dial.json").exists(), "the dial file is removed once read");
    assert_eq!(home.tickets(), [TICKET]);

    control.launch(python(SHOUT)).await;
    control.phase(Phase::Starting).await;
    let report = control.phase(Phase::Listening).await;
    assert!(!report.host.is_empty() && report.arch == std::env::consts::ARCH, "{report:?}");

    let mut stream = control.to_server();
    stream.write_all(b"hello ").await.unwrap();
    stream.write_all(b"from afar").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "HELLO FROM AFAR", "the answer comes after this side has ended");
}

#[tokio::test]
async fn megabytes_go_both_ways_unchanged() {
    let mut home = Home::open().await;
    let _job = Job::start(home.address);
    let mut control = home.control().await;
    control.launch(python(SHOUT)).await;
    control.phase(Phase::Listening).await;
    let sent: Vec<u8> = (0..8 * 1024 * 1024_u32).map(|n| b'a' + u8::try_from(n % 23).unwrap()).collect();
    let (mut read, mut write) = tokio::io::split(control.to_server());
    let mut answer = Vec::new();
    let up = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let ((), read) = tokio::join!(up, read.read_to_end(&mut answer));
    read.unwrap();
    assert!(answer == sent.to_ascii_uppercase(), "{} bytes of {}", answer.len(), sent.len());
}

#[tokio::test]
async fn only_this_account_can_reach_the_socket() {
    let mut home = Home::open().await;
    for socket_dir in [true, false] {
        let job = Job::start_with(home.address, JobWith { socket_dir, ..JobWith::default() });
        let mut control = home.control().await;
        control
            .launch(order(&["sh", "-c", "echo \"$1\" > socket.txt; exec sleep 1000", "sh", "{socket}"]))
            .await;
        let socket = job.written("socket.txt").await;
        let folder = std::path::Path::new(socket.trim_end()).parent().unwrap();
        let meta = std::fs::metadata(folder).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o700, nix::unistd::geteuid().as_raw()));
        assert!(socket.trim_end().len() <= 100);
        control.stop(1, "enough").await;
        control.ended().await;
        let mut job = job;
        job.exit().await;
        assert!(!folder.exists(), "{} stays", folder.display());
    }
}

#[tokio::test]
async fn the_servers_environment_is_the_orders_without_the_hubs_address_or_the_ticket() {
    let mut home = Home::open().await;
    let job = Job::start(home.address);
    let mut control = home.control().await;
    let mut order = script(
        "env > env.txt; tr '\\0' '\\n' < /proc/$PPID/cmdline > parent.txt; echo . >> env.txt; exec sleep 1000",
    );
    order.working_dir = Some("deep/er".to_owned());
    control.launch(order).await;
    let env = job.written("deep/er/env.txt").await;
    let value =
        |name: &str| env.lines().find_map(|line| line.strip_prefix(&format!("{name}="))).unwrap_or_default();
    let base = value("JUPYTERHUB_API_URL").strip_suffix("/jhub/hub/api").unwrap();
    let (address, prefix) = base.strip_prefix("http://127.0.0.1:").unwrap().split_once('/').unwrap();
    assert!(address.parse::<u16>().is_ok() && prefix.len() >= 32, "{base}");
    assert_eq!(value("JUPYTERHUB_ACTIVITY_URL"), format!("{base}/jhub/hub/api/users/ada/activity"));
    assert_eq!(value("JUPYTERHUB_SERVICE_URL"), "http://127.0.0.1:8888/jhub/user/ada/");
    assert_eq!(value("JUPYTERHUB_API_TOKEN"), TOKEN);
    assert_eq!(value("GLIDEPATH_MARK"), "the-mark", "a label of the backend");
    assert_eq!(value("LANG"), "de_DE.UTF-8", "the site's language");
    assert_eq!(value("HOME"), job.home().to_str().unwrap());
    assert!(!value("USER").is_empty() && !value("PATH").is_empty());
    assert!(!env.contains(TICKET) && !env.contains("hub.example.org"), "{env}");
}

#[tokio::test]
async fn no_argument_or_log_holds_a_secret() {
    let mut home = Home::open().await;
    let job = Job::start(home.address);
    let mut control = home.control().await;
    control.launch(python(SHOUT)).await;
    control.phase(Phase::Listening).await;
    let processes = job.processes();
    assert!(processes.len() >= 2, "agent and server: {processes:?}");
    for pid in processes {
        let argv = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(!argv.contains(TICKET) && !argv.contains(TOKEN), "{argv}");
    }
    control.say_raw("{\"type\":\"launch\",\"argv\":\"the-servers-own-token\"}\n").await;
    control.stop(1, "enough").await;
    control.ended().await;
    let logs = job.agent_log() + &job.server_log();
    assert!(logs.contains("does not understand"), "{logs}");
    assert!(!logs.contains(TICKET) && !logs.contains(TOKEN), "{logs}");
}

#[tokio::test]
async fn a_repeated_launch_starts_nothing() {
    let mut home = Home::open().await;
    let job = Job::start(home.address);
    let mut control = home.control().await;
    control.launch(script("echo $$ >> pids.txt; exec sleep 1000")).await;
    job.written("pids.txt").await;
    control.launch(script("echo again >> pids.txt; exec sleep 1000")).await;
    control.launch(script("echo again >> pids.txt; exec sleep 1000")).await;
    control.stop(1, "enough").await;
    control.ended().await;
    assert_eq!(job.written("pids.txt").await.lines().count(), 1);
}

#[tokio::test]
async fn a_command_that_cannot_take_a_socket_gets_a_port() {
    let mut home = Home::open().await;
    let _job = Job::start(home.address);
    let mut control = home.control().await;
    let mut order = order(&["python3", "-m", "http.server", "--bind", "127.0.0.1", "{port}"]);
    order.listen = ListenOn::LoopbackTcp;
    control.launch(order).await;
    control.phase(Phase::Listening).await;
    let mut stream = control.to_server();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
}

#[tokio::test]
async fn a_stream_before_the_server_listens_is_reset() {
    let mut home = Home::open().await;
    let _job = Job::start(home.address);
    let mut control = home.control().await;
    control.phase(Phase::Waiting).await;
    let reset = control.to_server().read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(reset.kind(), std::io::ErrorKind::ConnectionReset);
    control.launch(script("exec sleep 1000")).await;
    control.phase(Phase::Starting).await;
    assert!(control.to_server().read(&mut [0; 8]).await.is_err());
}

#[tokio::test]
async fn a_command_that_does_not_exist_is_told_as_that() {
    let mut home = Home::open().await;
    let mut job = Job::start(home.address);
    let mut control = home.control().await;
    control.launch(order(&["no-such-command"])).await;
    let (end, _) = control.ended().await;
    assert_eq!((end.cause, end.exit_code), (EndCause::CannotStart, None));
    assert!(end.why.unwrap().contains("no-such-command"));
    assert_eq!(job.exit().await, EXIT_CANNOT_START);
}

#[tokio::test]
async fn an_order_that_cannot_be_read_is_told_as_that() {
    let mut home = Home::open().await;
    let mut job = Job::start(home.address);
    let mut control = home.control().await;
    control.say_raw("{\"type\":\"from_the_future\"}\n{\"type\":\"launch\",\"argv\":7}\n").await;
    let (end, _) = control.ended().await;
    assert_eq!(end.cause, EndCause::CannotStart);
    assert_eq!(job.exit().await, EXIT_CANNOT_START);
}

#[tokio::test]
async fn a_refused_ticket_starts_nothing() {
    let home = Home::open().await;
    home.refuse("this attempt is over");
    let mut job = Job::start(home.address);
    assert_eq!(job.exit().await, EXIT_TICKET_REFUSED);
    assert!(job.agent_log().contains("this attempt is over"));
    assert!(!job.folder.path().join("dial.json").exists());
}

#[tokio::test]
async fn a_dial_file_that_others_could_read_is_not_used() {
    let home = Home::open().await;
    let mut job = Job::start_with(home.address, JobWith { mode: 0o644, ..JobWith::default() });
    assert_eq!(job.exit().await, EXIT_CANNOT_START);
    assert!(job.agent_log().contains("mode 0600"), "{}", job.agent_log());
    assert!(home.tickets().is_empty());
}
