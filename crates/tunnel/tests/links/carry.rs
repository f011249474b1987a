//! Streams over an undisturbed link.

use glidepath_tunnel::link::OpenError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::house::{Agent, House, config, echo, pattern, quick, soon, up};

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_carries_bytes_both_ways_and_ends_both_ways() {
    let mut house = House::open(quick()).await;
    let _agent = Agent::dial(config(&house.url(), "ticket-ada")).echoes();
    let link = house.arrival().await;
    let mut stream = link.open("server").unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut answer = [0; 5];
    soon("the echo", stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"hello");
    stream.write_all(b" world").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    soon("the end", stream.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b" world");
    assert_eq!(stream.write(b"more").await.unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_end_learns_who_the_other_is_and_how_far_away() {
    let mut house = House::open(quick()).await;
    let agent = Agent::dial(config(&house.url(), "ticket-ada"));
    let link = house.arrival().await;
    up(&agent.link, 1).await;
    up(&link, 1).await;
    assert_eq!(link.peer().unwrap().software, "agent/test");
    assert_eq!(agent.link.peer().unwrap().version, 1);
    let rtt = soon("a round trip", async {
        loop {
            if let Some(rtt) = agent.link.rtt() {
                break rtt;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    });
    assert!(rtt.await < std::time::Duration::from_secs(1));
    assert_eq!(agent.link.counters().lanes, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ends_open_a_thousand_streams_and_each_carries_its_own_bytes() {
    let mut house = House::open(quick()).await;
    let agent = Agent::dial(config(&house.url(), "ticket-ada")).echoes();
    let link = house.arrival().await;
    let mut echoing = JoinSet::new();
    let home_side = link.clone();
    echoing.spawn(async move { echo(&home_side).await });
    let mut asking = JoinSet::new();
    for n in 0..1_000usize {
        let link = if n % 2 == 0 { link.clone() } else { agent.link.clone() };
        asking.spawn(async move {
            let mut stream = link.open("server").unwrap();
            let sent = pattern(1_000 + n * 17);
            stream.write_all(&sent).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut got = Vec::new();
            stream.read_to_end(&mut got).await.unwrap();
            assert!(got == sent, "stream {n}");
        });
    }
    soon("a thousand echoes", async {
        while let Some(asked) = asking.join_next().await {
            asked.unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_megabytes_pass_whole_beside_small_echoes() {
    let mut house = House::open(quick()).await;
    let _agent = Agent::dial(config(&house.url(), "ticket-ada")).echoes();
    let link = house.arrival().await;
    let (mut from, mut to) = tokio::io::split(link.open("bulk").unwrap());
    let sent = std::sync::Arc::new(pattern(100 << 20));
    let mut tasks = JoinSet::new();
    let sending = sent.clone();
    tasks.spawn(async move {
        to.write_all(&sending).await.unwrap();
        to.shutdown().await.unwrap();
    });
    let expected = sent.clone();
    tasks.spawn(async move {
        let mut got = Vec::with_capacity(100 << 20);
        from.read_to_end(&mut got).await.unwrap();
        assert!(got == *expected);
    });
    let mut small = link.open("small").unwrap();
    for n in 0..200u32 {
        small.write_all(&n.to_be_bytes()).await.unwrap();
        assert_eq!(soon("a small echo", small.read_u32()).await.unwrap(), n);
    }
    soon("the bulk", async {
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_does_not_read_stops_its_own_stream_only() {
    let mut house = House::open(quick()).await;
    let agent = Agent::dial(config(&house.url(), "ticket-ada"));
    let link = house.arrival().await;
    let mut stuck = link.open("stuck").unwrap();
    let unread = soon("the stream", agent.link.accept()).await.unwrap();
    assert_eq!(unread.purpose, "stuck");
    let fill = async {
        loop {
            stuck.write_all(&[0; 65_536]).await.unwrap();
        }
    };
    let full = tokio::time::timeout(std::time::Duration::from_millis(500), fill).await;
    assert!(full.is_err(), "a writer without reader must be stopped");
    let mut other = link.open("other").unwrap();
    other.write_all(b"through").await.unwrap();
    other.shutdown().await.unwrap();
    let mut incoming = soon("the other stream", agent.link.accept()).await.unwrap();
    let mut got = String::new();
    soon("its bytes", incoming.stream.read_to_string(&mut got)).await.unwrap();
    assert_eq!(got, "through");
    drop(unread);
    let reset = soon("the reset", async {
        loop {
            if let Err(error) = stuck.write(&[0; 65_536]).await {
                break error;
            }
        }
    });
    assert_eq!(reset.await.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_dropped_early_resets_the_other_end() {
    let mut house = House::open(quick()).await;
    let agent = Agent::dial(config(&house.url(), "ticket-ada"));
    let link = house.arrival().await;
    let mut stream = link.open("server").unwrap();
    stream.write_all(b"half of a sen").await.unwrap();
    let mut incoming = soon("the stream", agent.link.accept()).await.unwrap().stream;
    drop(stream);
    let mut got = Vec::new();
    let error = soon("the reset", incoming.read_to_end(&mut got)).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_was_shut_down_arrives_whole_though_its_question_was_not_read() {
    let mut house = House::open(quick()).await;
    let agent = Agent::dial(config(&house.url(), "ticket-ada"));
    let link = house.arrival().await;
    let mut asking = link.open("server").unwrap();
    asking.write_all(&pattern(100_000)).await.unwrap();
    let mut answering = soon("the stream", agent.link.accept()).await.unwrap().stream;
    answering.write_all(b"413 too much").await.unwrap();
    answering.shutdown().await.unwrap();
    drop(answering);
    let mut answer = String::new();
    soon("the answer", asking.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(answer, "413 too much");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purpose_must_be_a_short_text() {
    let house = House::open(quick()).await;
    let agent = Agent::dial(config(&house.url(), "ticket-ada"));
    assert_eq!(agent.link.open("").unwrap_err(), OpenError::BadPurpose);
    assert_eq!(agent.link.open("a\nb").unwrap_err(), OpenError::BadPurpose);
    assert_eq!(agent.link.open(&"x".repeat(256)).unwrap_err(), OpenError::BadPurpose);
}
