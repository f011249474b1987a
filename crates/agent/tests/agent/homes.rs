//! Homes that come, go, and come back.

use std::time::{Duration, Instant};

use glidepath_api_types::agent::{EXIT_HOME_ABSENT, EXIT_NEVER_HOME, EndCause, Phase};
use glidepath_testkit::wait::until;
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::house::{Control, Home, Job, JobWith, SHOUT, SOON, python, script};

#[tokio::test]
async fn a_new_home_finds_the_server_as_it_is() {
    let mut home = Home::open().await;
    let job = Job::start(home.address);
    let mut control = home.control().await;
    control.launch(python(SHOUT)).await;
    control.phase(Phase::Listening).await;
    let before = job.processes();

    let mut home = Home::at(home.die().await).await;
    let mut control = home.control().await;
    assert_eq!(control.report().await.phase, Phase::Listening, "the whole state at once");
    control.launch(script("exit 1")).await;
    let mut stream = control.to_server();
    stream.write_all(b"still here").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!((answer.as_str(), job.processes()), ("STILL HERE", before));
}

#[tokio::test]
async fn a_second_control_stream_takes_over_from_the_first() {
    let mut home = Home::open().await;
    let _job = Job::start(home.address);
    let mut first = home.control().await;
    first.phase(Phase::Waiting).await;
    let mut second = Control::on(first.link.clone());
    assert_eq!(second.report().await.phase, Phase::Waiting);
    second.launch(script("exit 4")).await;
    assert_eq!(second.ended().await.0.exit_code, Some(4));
}

#[tokio::test]
async fn a_home_that_was_away_learns_how_the_server_ended() {
    let mut home = Home::open().await;
    let mut job = Job::start(home.address);
    let mut control = home.control().await;
    control.launch(script("while [ ! -e go ]; do sleep 0.02; done; echo farewell; exit 5")).await;
    control.phase(Phase::Starting).await;
    let address = home.die().await;
    std::fs::write(job.home().join("go"), "").unwrap();
    until(SOON, "the server ends", || async { job.processes().len() == 1 }).await;
    let mut home = Home::at(address).await;
    let (end, report) = home.control().await.ended().await;
    assert_eq!((end.exit_code, report.last_lines), (Some(5), vec!["farewell".to_owned()]));
    assert_eq!(job.exit().await, 0);
}

#[tokio::test]
async fn a_home_that_is_never_there_ends_the_agent() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let with = JobWith { dial_deadline_s: 2, ..JobWith::default() };
    let mut job = Job::start_with(nobody.local_addr().unwrap(), with);
    let began = Instant::now();
    assert_eq!(job.exit().await, EXIT_NEVER_HOME);
    assert!(began.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_home_absent_for_too_long_ends_the_server_after_a_warning() {
    let mut home = Home::open().await;
    let mut job = Job::start_with(home.address, JobWith { absence_limit_s: 3, ..JobWith::default() });
    let mut control = home.control().await;
    control
        .launch(script(
            "trap 'cat THIS*; echo saved; exit 0' TERM; echo up > up.txt; while :; do sleep 0.05; done",
        ))
        .await;
    job.written("up.txt").await;
    let address = home.die().await;
    until(SOON, "the server ends", || async { job.processes().len() == 1 }).await;
    until(SOON, "its last words arrive", || async { job.server_log().contains("saved") }).await;
    let log = job.server_log();
    let warned = log.find("unless it comes back").expect(&log);
    assert!(log.contains("# This server ends soon"), "the file that Lab's file browser shows: {log}");
    assert!(warned < log.find("home was absent for too long").expect(&log), "{log}");
    let mut home = Home::at(address).await;
    assert_eq!(home.control().await.ended().await.0.cause, EndCause::HomeAbsent);
    assert_eq!(job.exit().await, EXIT_HOME_ABSENT);
}

#[tokio::test]
async fn a_home_that_closes_the_link_ends_the_server() {
    let mut home = Home::open().await;
    let mut job = Job::start(home.address);
    let mut control = home.control().await;
    control.launch(script("exec sleep 1000")).await;
    control.phase(Phase::Starting).await;
    control.link.close("this attempt is over");
    assert_eq!(job.exit().await, 0);
    assert!(job.server_log().contains("this attempt is over"));
    assert_eq!(job.processes(), Vec::<i32>::new());
}

#[tokio::test]
async fn without_a_home_a_batch_system_that_asks_for_the_end_does_not_wait_long() {
    let mut home = Home::open().await;
    let mut job = Job::start(home.address);
    let mut control = home.control().await;
    control.launch(script("exec sleep 1000")).await;
    control.phase(Phase::Starting).await;
    home.die().await;
    let began = Instant::now();
    job.signal(Signal::SIGTERM);
    assert_eq!(job.exit().await, 0);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}
