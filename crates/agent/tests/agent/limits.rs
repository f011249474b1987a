//! Limits of a server: when the agent ends it, what it tells before, and what keeps it.

use std::time::{Duration, Instant};

use glidepath_api_types::agent::{
    EXIT_IDLE, EXIT_WALLTIME, EndCause, LaunchOrder, Limits, Phase, Report, ToAgent,
};
use glidepath_testkit::wait::until;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;

use crate::house::{Control, Home, Job, SOON, order};

/// A web server: every path is answered with the status and the text that it is told.
const WEB: &str = r"
import http.server, socketserver, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(sys.argv[2]))
        self.send_header('Content-Length', str(len(sys.argv[3])))
        self.end_headers()
        self.wfile.write(sys.argv[3].encode())
    def address_string(self): return 'somebody'
    def log_message(self, *_): pass
class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer): pass
Server(sys.argv[1], Handler).serve_forever()
";

/// A server that is no Jupyter.
fn web(status: &str, limits: Limits) -> LaunchOrder {
    answering(status, "", limits)
}

fn answering(status: &str, text: &str, limits: Limits) -> LaunchOrder {
    LaunchOrder { limits, ..order(&["python3", "-c", WEB, "{socket}", status, text]) }
}

fn idle(idle_s: u64, warn_before_s: &[u64]) -> Limits {
    Limits { idle_s: Some(idle_s), unattended_s: None, warn_before_s: warn_before_s.to_vec() }
}

/// A person looks at a page.
async fn visit(control: &Control) {
    let mut stream = control.to_server();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1."), "{answer}");
}

fn lives(report: &Report) -> bool {
    matches!(report.phase, Phase::Starting | Phase::Listening)
}

#[tokio::test]
async fn a_server_that_is_no_jupyter_lives_while_bytes_or_words_of_home_come_and_not_longer() {
    let mut home = Home::open().await;
    let mut job = Job::start(home.address);
    let mut control = home.control().await;
    control.launch(web("404", idle(6, &[1]))).await;
    control.phase(Phase::Listening).await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(8) {
        visit(&control).await;
        sleep(Duration::from_millis(500)).await;
    }
    while began.elapsed() < Duration::from_secs(16) {
        control.say(&ToAgent::Used).await;
        sleep(Duration::from_millis(500)).await;
    }
    assert!(job.processes().len() > 1, "{}", job.server_log());
    let (end, report) = control.ended().await;
    assert_eq!(end.cause, EndCause::Idle, "{report:?}");
    assert_eq!(end.why.as_deref(), Some("nothing went on in it for 6 seconds"));
    assert_eq!(job.exit().await, EXIT_IDLE);
    assert_eq!(job.processes(), Vec::<i32>::new());
}

#[tokio::test]
async fn a_server_that_cannot_be_asked_is_never_idle() {
    is_never_idle(web("500", idle(2, &[1]))).await;
}

#[tokio::test]
async fn a_server_whose_kernels_are_listed_in_another_way_is_never_idle() {
    is_never_idle(answering("200", r#"[{"id": 1, "state": {"of": "a later version"}}]"#, idle(2, &[1])))
        .await;
}

async fn is_never_idle(order: LaunchOrder) {
    let mut home = Home::open().await;
    let job = Job::start(home.address);
    let mut control = home.control().await;
    control.launch(order).await;
    control.phase(Phase::Listening).await;
    visit(&control).await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(8) {
        sleep(Duration::from_millis(200)).await;
        assert!(job.processes().len() > 1, "{}", job.server_log());
    }
    assert!(job.agent_log().contains("is not known"), "{}", job.agent_log());
}

#[tokio::test]
async fn a_server_whose_users_come_by_another_way_is_never_idle() {
    let mut home = Home::open().await;
    let job = Job::start(home.address);
    let mut control = home.control().await;
    control.launch(web("404", idle(2, &[1]))).await;
    control.phase(Phase::Listening).await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(6) {
        sleep(Duration::from_millis(200)).await;
        assert!(job.processes().len() > 1, "{}", job.server_log());
    }
}

#[tokio::test]
async fn without_a_home_an_idle_server_ends_all_the_same_and_home_is_told_why() {
    let mut home = Home::open().await;
    let mut job = Job::start(home.address);
    let mut control = home.control().await;
    control.launch(web("404", idle(4, &[2]))).await;
    control.phase(Phase::Listening).await;
    visit(&control).await;
    let address = home.die().await;
    until(SOON, "the server ends", || async { job.processes().len() == 1 }).await;
    assert!(job.server_log().contains("nothing goes on in this server"), "{}", job.server_log());
    let mut home = Home::at(address).await;
    assert_eq!(home.control().await.ended().await.0.cause, EndCause::Idle);
    assert_eq!(job.exit().await, EXIT_IDLE);
}

#[tokio::test]
async fn without_a_home_the_walltime_ends_all_the_same_and_home_is_told_why() {
    let mut home = Home::open().await;
    let mut job = Job::start(home.address);
    let mut control = home.control().await;
    let mut order = web("404", Limits::default());
    order.walltime_s = 10;
    control.launch(order).await;
    control.phase(Phase::Listening).await;
    let address = home.die().await;
    until(SOON, "the server ends", || async { job.processes().len() == 1 }).await;
    let mut home = Home::at(address).await;
    assert_eq!(home.control().await.ended().await.0.cause, EndCause::Walltime);
    assert_eq!(job.exit().await, EXIT_WALLTIME);
}

#[tokio::test]
async fn a_warning_is_told_to_home_and_user_and_taken_back_when_something_goes_on() {
    let mut home = Home::open().await;
    let job = Job::start(home.address);
    let mut control = home.control().await;
    control.launch(web("404", idle(8, &[6, 1]))).await;
    control.phase(Phase::Listening).await;
    visit(&control).await;
    let warned = control.report_with(|report| !report.warnings.is_empty()).await;
    let [warning] = warned.warnings.as_slice() else { panic!("one: {warned:?}") };
    assert_eq!((warning.cause, warning.before_s), (EndCause::Idle, 6));
    let shown = job.home().join("THIS SERVER ENDS SOON.md");
    until(SOON, "the user sees it", || async { shown.exists() }).await;
    visit(&control).await;
    let after = control.report_with(|report| report.warnings.is_empty()).await;
    assert!(lives(&after), "{after:?}");
    until(SOON, "the user sees it no more", || async { !shown.exists() }).await;
    control.report_with(|report| !report.warnings.is_empty()).await;
}
