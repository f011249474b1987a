//! How servers end, and that nothing stays.

use std::path::Path;
use std::time::{Duration, Instant};

use glidepath_api_types::agent::{EXIT_SERVER_ENDED, EXIT_WALLTIME, EndCause, Phase};
use glidepath_testkit::wait::until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::house::{Home, Job, JobWith, SHOUT, SOON, python, script};

#[tokio::test]
async fn exit_code_and_last_lines_are_told() {
    let mut home = Home::open().await;
    let mut job = Job::start(home.address);
    let mut control = home.control().await;
    control
        .launch(script(
            "for n in 1 2 3; do echo line $n; done; printf '\\033[31m<b>boom</b>\\033[0m\\n' >&2; exit 3",
        ))
        .await;
    let (end, report) = control.ended().await;
    assert_eq!((end.exit_code, end.signal, end.cause, end.why), (Some(3), None, EndCause::ByItself, None));
    assert_eq!(report.last_lines, ["line 1", "line 2", "line 3", "<b>boom</b>"]);
    assert_eq!(job.exit().await, EXIT_SERVER_ENDED);
    assert!(job.server_log().contains("line 3"));
}

#[tokio::test]
async fn a_signal_is_told() {
    let mut home = Home::open().await;
    let job = Job::start(home.address);
    let mut control = home.control().await;
    control.launch(script("echo $$ > pid.txt; exec sleep 1000")).await;
    let pid = job.written("pid.txt").await.trim().parse().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let (end, _) = control.ended().await;
    assert_eq!((end.exit_code, end.signal, end.cause), (None, Some(9), EndCause::ByItself));
}

#[tokio::test]
async fn a_stop_of_home_ends_the_server_kindly() {
    let mut home = Home::open().await;
    let mut job = Job::start(home.address);
    let mut control = home.control().await;
    control
        .launch(script("trap 'echo saved; exit 7' TERM; echo up > up.txt; while :; do sleep 0.05; done"))
        .await;
    job.written("up.txt").await;
    control.stop(5, "idle for\u{1b}[31m too long").await;
    control.phase(Phase::Ending).await;
    let (end, report) = control.ended().await;
    assert_eq!((end.exit_code, end.cause), (Some(7), EndCause::Asked));
    assert_eq!(end.why.as_deref(), Some("idle for too long"));
    assert!(report.last_lines.iter().any(|line| line == "saved"), "{report:?}");
    assert!(job.server_log().contains("ending the server: idle for too long"));
    assert_eq!(job.exit().await, 0);
}

#[tokio::test]
async fn a_stop_before_the_launch_ends_the_agent() {
    let mut home = Home::open().await;
    let mut job = Job::start(home.address);
    let mut control = home.control().await;
    control.stop(5, "cancelled").await;
    let (end, _) = control.ended().await;
    assert_eq!((end.exit_code, end.cause), (None, EndCause::Asked));
    assert_eq!(job.exit().await, 0);
}

#[tokio::test]
async fn a_server_that_ignores_the_kind_end_is_killed_after_its_grace() {
    let mut home = Home::open().await;
    let mut job = Job::start(home.address);
    let mut control = home.control().await;
    let mut order = script("trap '' TERM; echo up > up.txt; while :; do sleep 0.05; done");
    order.grace_s = 1;
    control.launch(order).await;
    job.written("up.txt").await;
    let began = Instant::now();
    job.signal(Signal::SIGTERM);
    let (end, _) = control.ended().await;
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!((end.signal, end.cause), (Some(9), EndCause::Asked));
    assert_eq!(job.exit().await, 0);
    assert_eq!(job.processes(), Vec::<i32>::new());
}

#[tokio::test]
async fn a_stop_right_behind_the_launch_is_not_lost() {
    for _ in 0..10 {
        let mut home = Home::open().await;
        let _job = Job::start(home.address);
        let mut control = home.control().await;
        let mut order = script("exec sleep 1000");
        order.grace_s = 600;
        control.launch(order).await;
        control.stop(600, "thought better of it").await;
        let (end, _) = control.ended().await;
        assert_eq!((end.signal, end.cause), (Some(15), EndCause::Asked));
    }
}

#[tokio::test]
async fn a_second_stop_shortens_the_grace() {
    let mut home = Home::open().await;
    let job = Job::start(home.address);
    let mut control = home.control().await;
    control.launch(script("trap '' TERM; echo up > up.txt; while :; do sleep 0.05; done")).await;
    job.written("up.txt").await;
    control.stop(600, "slowly").await;
    control.phase(Phase::Ending).await;
    control.stop(0, "now").await;
    assert_eq!(control.ended().await.0.signal, Some(9));
}

#[tokio::test]
async fn a_daemonised_grandchild_does_not_survive() {
    no_daemon_survives("").await;
}

#[tokio::test]
async fn a_daemon_whose_name_is_no_text_does_not_survive() {
    no_daemon_survives(r"printf '\''\344'\'' > /proc/$$/comm;").await;
}

async fn no_daemon_survives(begins: &str) {
    let mut home = Home::open().await;
    let mut job = Job::start(home.address);
    let mut control = home.control().await;
    // Two sessions away, its parent gone, its label dropped, deaf to SIGTERM.
    let daemon = format!(
        "setsid -f env -i PATH=\"$PATH\" sh -c 'trap \"\" TERM; {begins} echo $$ > daemon.txt; while :; do sleep 0.05; done'"
    );
    control
        .launch(script(&format!("{daemon}; while [ ! -s daemon.txt ]; do sleep 0.01; done; exit 0")))
        .await;
    let daemon: i32 = job.written("daemon.txt").await.trim().parse().unwrap();
    let (end, _) = control.ended().await;
    assert_eq!(end.exit_code, Some(0));
    assert!(!Path::new("/proc").join(daemon.to_string()).exists(), "gone before home is told");
    assert_eq!(job.exit().await, 0);
}

#[tokio::test]
async fn an_agent_whose_job_is_at_its_limit_of_processes_ends_it_as_ever() {
    let mut home = Home::open().await;
    let mut job = Job::start_with(home.address, JobWith { processes_max: Some(30), ..JobWith::default() });
    let mut control = home.control().await;
    // Outside the server's group, deaf, and quick to take the place of the server itself.
    let forks = r"
import os, signal, time
if not os.fork():
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        try:
            if not os.fork():
                time.sleep(1000)
        except BlockingIOError:
            print('full', file=open('full.txt', 'w'))
time.sleep(1000)
";
    control.launch(python(forks)).await;
    job.written("full.txt").await;
    control.stop(1, "enough").await;
    let (end, _) = control.ended().await;
    assert_eq!((end.signal, end.cause), (Some(15), EndCause::Asked));
    assert_eq!(job.exit().await, EXIT_SERVER_ENDED);
    assert_eq!(job.processes(), Vec::<i32>::new());
}

#[tokio::test]
async fn a_log_on_a_disk_that_does_not_answer_holds_nothing_up() {
    let mut home = Home::open().await;
    let mut job = Job::start_with(home.address, JobWith { stuck: &["server.log"], ..JobWith::default() });
    let mut control = home.control().await;
    control.launch(script("yes line | head -n 300000; echo the last line; exit 3")).await;
    let (end, report) = control.ended().await;
    assert_eq!(end.exit_code, Some(3));
    assert_eq!(report.last_lines.last().unwrap(), "the last line");
    assert_eq!(job.exit().await, EXIT_SERVER_ENDED);
}

#[tokio::test]
async fn a_home_on_a_disk_that_does_not_answer_keeps_no_server_alive() {
    let mut home = Home::open().await;
    let mut job = Job::start(home.address);
    // Without a reader, opening it to write takes for ever.
    nix::unistd::mkfifo(&job.folder.path().join("notice.new"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut control = home.control().await;
    let mut order = script("exec sleep 1000");
    order.walltime_s = 2;
    control.launch(order).await;
    assert_eq!(control.ended().await.0.cause, EndCause::Walltime);
    assert_eq!(job.exit().await, EXIT_WALLTIME);
}

#[tokio::test]
async fn a_killed_agent_takes_its_server_with_it() {
    let mut home = Home::open().await;
    let mut job = Job::start(home.address);
    let mut control = home.control().await;
    control.launch(python(SHOUT)).await;
    control.phase(Phase::Listening).await;
    job.agent.kill().await.unwrap();
    until(SOON, "the server ends", || async { job.processes().is_empty() }).await;
}

#[tokio::test]
async fn a_server_that_loses_the_first_sigterm_is_asked_again_before_it_is_killed() {
    let mut home = Home::open().await;
    let job = Job::start(home.address);
    let mut control = home.control().await;
    let loses_one =
        "trap 'trap \"echo saved; exit 7\" TERM' TERM; echo up > up.txt; while :; do sleep 0.05; done";
    control.launch(script(loses_one)).await;
    job.written("up.txt").await;
    control.stop(4, "enough").await;
    let (end, report) = control.ended().await;
    assert_eq!((end.exit_code, end.signal, end.cause), (Some(7), None, EndCause::Asked), "{report:?}");
}

#[tokio::test]
async fn the_walltime_ends_the_server_kindly_after_a_warning() {
    let mut home = Home::open().await;
    let mut job = Job::start(home.address);
    let mut control = home.control().await;
    let mut order = script(
        "trap 'cat \"$GLIDEPATH_NOTICE_FILE\" THIS*; echo; exit 0' TERM; while :; do sleep 0.05; done",
    );
    order.walltime_s = 2;
    control.launch(order).await;
    let (end, report) = control.ended().await;
    assert_eq!((end.exit_code, end.cause), (Some(0), EndCause::Walltime));
    let lines = report.last_lines.join("\n");
    let told = [
        "this server's time is over in",
        "it lived for the 2 seconds",
        "\"ends_at\":",
        "# This server ends soon",
    ];
    assert!(told.iter().all(|text| lines.contains(text)), "{lines}");
    assert_eq!(job.exit().await, EXIT_WALLTIME);
}

#[tokio::test]
async fn usage_is_told_for_the_whole_tree_with_gpus_where_there_are_some() {
    let mut home = Home::open().await;
    let tools = tempfile::tempdir().unwrap();
    let tool = tools.path().join("nvidia-smi");
    std::fs::write(&tool, "#!/bin/sh\necho 'Some GPU, 41, 2048'\n").unwrap();
    std::fs::set_permissions(&tool, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let with = JobWith { path_first: Some(tools.path().to_owned()), ..JobWith::default() };
    let _job = Job::start_with(home.address, with);
    let mut control = home.control().await;
    control.launch(script("python3 -c 'x = bytearray(64 * 1024 * 1024)\nwhile True: pass' & wait")).await;
    let report = control.report_with(|report| report.usage.is_some()).await;
    let usage = report.usage.unwrap();
    assert!(usage.cpu_s > 1.0 && usage.memory_peak_bytes > 64 * 1024 * 1024, "{usage:?}");
    assert_eq!((usage.gpus[0].name.as_str(), usage.gpus[0].busy_percent), ("Some GPU", 41));
}
