//! What a link survives, and how what it does not survive ends.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use glidepath_tunnel::dial::DialEnd;
use glidepath_tunnel::home::HomeConfig;
use glidepath_tunnel::link::{Link, LinkState, OpenError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::house::{Agent, HEARTBEAT, House, Line, config, pattern, quick, soon, up};

/// Sends 20 MB through an echo at the other end while somebody disturbs the line.
async fn carry_through(link: &Link, disturb: impl Future<Output = ()>) {
    let sent = Arc::new(pattern(20 << 20));
    let (mut from, mut to) = tokio::io::split(link.open("bulk").unwrap());
    let mut tasks = JoinSet::new();
    let (sending, expected) = (sent.clone(), sent);
    tasks.spawn(async move {
        for piece in sending.chunks(256 * 1024) {
            to.write_all(piece).await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        to.shutdown().await.unwrap();
    });
    tasks.spawn(async move {
        let mut got = Vec::new();
        from.read_to_end(&mut got).await.unwrap();
        assert!(got == *expected, "{} bytes of {}", got.len(), expected.len());
    });
    disturb.await;
    soon("the whole transfer", async {
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_goes_on_whole_after_its_connections_were_broken_again_and_again() {
    let mut house = House::open(quick()).await;
    let line = Line::to(house.address).await;
    let agent = Agent::dial(config(&line.url(), "ticket-ada")).echoes();
    let link = house.arrival().await;
    carry_through(&link, async {
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(150)).await;
            line.break_off();
            tokio::time::sleep(Duration::from_millis(100)).await;
            line.restore();
            up(&agent.link, 1).await;
        }
    })
    .await;
    assert!(agent.link.counters().resumes >= 3, "{:?}", agent.link.counters());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_goes_on_whole_after_a_silence_whose_connections_are_lost() {
    let mut house = House::open(quick()).await;
    let line = Line::to(house.address).await;
    let agent = Agent::dial(config(&line.url(), "ticket-ada")).echoes();
    let link = house.arrival().await;
    carry_through(&link, async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        line.stall();
        soon(
            "the cut is noticed",
            agent.link.watch().wait_for(|state| matches!(state, LinkState::Cut { .. })),
        )
        .await
        .unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        line.restore_for_new_ones();
    })
    .await;
    assert!(agent.link.counters().lanes >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_connection_that_speaks_again_costs_nothing() {
    let mut house = House::open(quick()).await;
    let line = Line::to(house.address).await;
    let _agent = Agent::dial(config(&line.url(), "ticket-ada")).echoes();
    let link = house.arrival().await;
    carry_through(&link, async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        line.stall();
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        line.restore();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_lanes_carry_one_link_and_either_may_break() {
    let mut house = House::open(quick()).await;
    let line = Line::to(house.address).await;
    let mut two = config(&line.url(), "ticket-ada");
    two.lanes = 2;
    let agent = Agent::dial(two).echoes();
    let link = house.arrival().await;
    up(&agent.link, 2).await;
    up(&link, 2).await;
    carry_through(&link, async {
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(150)).await;
            line.break_off();
            line.restore();
            up(&agent.link, 2).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_longer_than_home_waits_ends_streams_and_the_link_comes_back_fresh() {
    let mut house = House::open(HomeConfig { resume_for: Duration::from_secs(1), ..quick() }).await;
    let line = Line::to(house.address).await;
    let agent = Agent::dial(config(&line.url(), "ticket-ada")).echoes();
    let link = house.arrival().await;
    let mut stream = link.open("server").unwrap();
    let mut upward = agent.link.open("hub-api").unwrap();
    up(&agent.link, 1).await;
    line.break_off();
    assert!(soon("the link's end", link.closed()).await.contains("away for more than 1 s"));
    let error = stream.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(error.to_string().contains("away for more than 1 s"), "{error}");
    assert!(matches!(link.open("server"), Err(OpenError::Closed(_))));
    line.restore();
    let again = house.arrival().await;
    assert_eq!(
        soon("the agent's side", upward.read_u8()).await.unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    up(&agent.link, 1).await;
    let mut stream = again.open("server").unwrap();
    stream.write_all(b"x").await.unwrap();
    assert_eq!(soon("the echo", stream.read_u8()).await.unwrap(), b'x');
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_that_was_killed_and_started_again_is_reached_by_the_same_agent_link() {
    let mut house = House::open(quick()).await;
    let agent = Agent::dial(config(&house.url(), "ticket-ada")).echoes();
    let link = house.arrival().await;
    let mut old = agent.link.open("hub-api").unwrap();
    old.write_all(b"asked before").await.unwrap();
    up(&agent.link, 1).await;
    drop(link);
    let address = house.kill().await;
    let listener = soon("the port again", async {
        loop {
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    })
    .await;
    let mut house = House::build(quick(), None, listener);
    let link = house.arrival().await;
    assert_eq!(soon("the old stream", old.read_u8()).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    let mut stream = link.open("server").unwrap();
    stream.write_all(b"x").await.unwrap();
    assert_eq!(soon("the echo", stream.read_u8()).await.unwrap(), b'x');
    let mut upward = agent.link.open("hub-api").unwrap();
    upward.write_all(b"y").await.unwrap();
    let mut incoming = soon("the agent's stream", link.accept()).await.unwrap();
    assert_eq!(incoming.stream.read_u8().await.unwrap(), b'y');
}

#[tokio::test(flavor = "multi_thread")]
async fn the_streams_of_a_home_that_was_killed_end_before_another_one_is_there() {
    let mut house = House::open(quick()).await;
    let agent = Agent::dial(config(&house.url(), "ticket-ada")).echoes();
    let _link = house.arrival().await;
    let mut stream = agent.link.open("hub-api").unwrap();
    stream.write_all(b"asked").await.unwrap();
    up(&agent.link, 1).await;
    let resumed = Duration::from_secs(10);
    assert!(resumed < quick().resume_for);
    house.kill().await;
    let error =
        tokio::time::timeout(resumed, stream.read_u8()).await.expect("not only when it expires").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(error.to_string().contains("home is not there"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silence_after_which_a_connection_is_refused_may_be_the_network_and_ends_nothing() {
    let mut house = House::open(quick()).await;
    let line = Line::to(house.address).await;
    let agent = Agent::dial(config(&line.url(), "ticket-ada")).echoes();
    let link = house.arrival().await;
    carry_through(&link, async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        line.stall();
        tokio::time::sleep(3 * HEARTBEAT + Duration::from_secs(2)).await; // the lane is given up
        line.refuse_for(Duration::from_secs(2)).await;
        line.restore_for_new_ones();
        up(&agent.link, 1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_restart_sends_agents_to_the_next_home() {
    let mut house = House::open(quick()).await;
    let line = Line::to(house.address).await;
    let agent = Agent::dial(config(&line.url(), "ticket-ada")).echoes();
    let link = house.arrival().await;
    up(&agent.link, 1).await;
    let mut next = House::open(quick()).await;
    line.aim(next.address);
    house.home.shutdown("an update");
    soon("the old link's end", link.closed()).await;
    let link = next.arrival().await;
    let mut stream = link.open("server").unwrap();
    stream.write_all(b"x").await.unwrap();
    assert_eq!(soon("the echo", stream.read_u8()).await.unwrap(), b'x');
    assert_eq!(house.home.links(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_written_before_the_first_connection_wait_for_it() {
    let mut house = House::open(quick()).await;
    let line = Line::to(house.address).await;
    line.break_off();
    let agent = Agent::dial(config(&line.url(), "ticket-ada"));
    let mut stream = agent.link.open("hub-api").unwrap();
    stream.write_all(b"early").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(agent.link.state(), LinkState::Dialling);
    soon("the trouble is told", async {
        while agent.link.trouble().is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    line.restore();
    let link = house.arrival().await;
    let mut incoming = soon("the stream", link.accept()).await.unwrap();
    let mut got = String::new();
    soon("its bytes", incoming.stream.read_to_string(&mut got)).await.unwrap();
    assert_eq!(got, "early");
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_at_either_end_tells_the_other_why() {
    let mut house = House::open(quick()).await;
    let agent = Agent::dial(config(&house.url(), "ticket-ada"));
    let link = house.arrival().await;
    up(&agent.link, 1).await;
    link.close("the run has ended");
    assert_eq!(agent.end().await, DialEnd::Closed("the run has ended".into()));

    let agent = Agent::dial(config(&house.url(), "ticket-bob"));
    let link = house.arrival().await;
    up(&agent.link, 1).await;
    agent.link.close("the server exited");
    assert_eq!(soon("home hears it", link.closed()).await, "the server exited");
    assert!(soon("no more streams", link.accept()).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_arrived_before_the_link_closed_can_still_be_read() {
    let mut house = House::open(quick()).await;
    let agent = Agent::dial(config(&house.url(), "ticket-ada"));
    let link = house.arrival().await;
    let mut report = agent.link.open("report").unwrap();
    report.write_all(b"exit code 3").await.unwrap();
    report.shutdown().await.unwrap();
    let mut incoming = soon("the stream", link.accept()).await.unwrap().stream;
    let mut first = [0; 4];
    soon("its start", incoming.read_exact(&mut first)).await.unwrap();
    agent.link.close("done");
    soon("the close", link.closed()).await;
    let mut rest = String::new();
    incoming.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, " code 3");
}
