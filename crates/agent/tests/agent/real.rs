//! With the real single-user server of JupyterHub, where there is one.

use std::time::Duration;

use glidepath_api_types::agent::{EXIT_IDLE, EndCause, LaunchOrder, Limits, Phase};
use glidepath_testkit::wait::until;
use glidepath_tunnel::link::Link;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::house::{Control, Home, Job, order};

#[tokio::test]
#[ignore = "needs JupyterHub: name its jupyterhub-singleuser in JUPYTERHUB_SINGLEUSER"]
async fn the_real_single_user_server_calls_its_hub_answers_and_ends_kindly() {
    let program = std::env::var("JUPYTERHUB_SINGLEUSER").expect("JUPYTERHUB_SINGLEUSER names the program");
    let mut home = Home::open().await;
    let mut job = Job::start(home.address);
    let mut control = home.control().await;
    let mut hub = JoinSet::new();
    hub.spawn(answer_as_a_hub(control.link.clone()));

    control.launch(single_user(&program)).await;
    listens(&mut control).await;

    let mut stream = control.to_server();
    stream
        .write_all(b"GET /jhub/user/ada/api HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"version\""), "{answer}");

    control.stop(10, "enough").await;
    let (end, report) = control.ended().await;
    assert_eq!((end.exit_code, end.signal, end.cause), (Some(0), None, EndCause::Asked), "{report:?}");
    assert_eq!(job.exit().await, 0);
    assert_eq!(job.processes(), Vec::<i32>::new());
}

#[tokio::test]
#[ignore = "needs JupyterHub: name its jupyterhub-singleuser in JUPYTERHUB_SINGLEUSER"]
async fn the_real_single_user_server_tells_its_agent_that_it_is_idle_also_while_home_is_away() {
    let program = std::env::var("JUPYTERHUB_SINGLEUSER").expect("JUPYTERHUB_SINGLEUSER names the program");
    let mut home = Home::open().await;
    let mut job = Job::start(home.address);
    let mut control = home.control().await;
    let mut hub = JoinSet::new();
    hub.spawn(answer_as_a_hub(control.link.clone()));
    let mut order = single_user(&program);
    order.grace_s = 10;
    order.limits = Limits { idle_s: Some(6), ..Limits::default() };
    control.launch(order).await;
    listens(&mut control).await;

    let address = home.die().await;
    let ended = Duration::from_secs(40);
    until(ended, "the server ends", || async { job.processes().len() == 1 }).await;
    let mut home = Home::at(address).await;
    let (end, report) = home.control().await.ended().await;
    assert_eq!(end.cause, EndCause::Idle, "{report:?} {}", job.agent_log());
    assert_eq!(job.exit().await, EXIT_IDLE);
}

fn single_user(program: &str) -> LaunchOrder {
    let mut order = order(&[program, "--ServerApp.sock={socket}", "--allow-root"]);
    let env = [
        ("JUPYTERHUB_SERVICE_PREFIX", "/jhub/user/ada/"),
        ("JUPYTERHUB_BASE_URL", "/jhub/"),
        ("JUPYTERHUB_USER", "ada"),
        ("JUPYTERHUB_CLIENT_ID", "jupyterhub-user-ada"),
        ("JUPYTERHUB_OAUTH_CALLBACK_URL", "/jhub/user/ada/oauth_callback"),
        ("JUPYTERHUB_OAUTH_ACCESS_SCOPES", r#"["access:servers!server=ada/", "access:servers!user=ada"]"#),
    ];
    order.env.extend(env.map(|(name, value)| (name.to_owned(), value.into())));
    order
}

async fn listens(control: &mut Control) {
    let listens =
        timeout(Duration::from_secs(60), async { while control.report().await.phase != Phase::Listening {} });
    listens.await.expect("the server listens");
}

/// Answers every call of the Hub's API as a Hub would at a server's start.
async fn answer_as_a_hub(link: Link) {
    while let Some(mut incoming) = link.accept().await {
        let mut seen = Vec::new();
        while !seen.windows(4).any(|four| four == b"\r\n\r\n") {
            assert_ne!(incoming.stream.read_buf(&mut seen).await.unwrap(), 0);
        }
        let body = r#"{"version": "6.1.1"}"#;
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        incoming.stream.write_all((head + body).as_bytes()).await.unwrap();
        incoming.stream.flush().await.unwrap();
        let _ = timeout(Duration::from_secs(5), incoming.stream.read_to_end(&mut Vec::new())).await;
    }
}
