//! Streams that are carried between connections of both machines: user ═ home ═ link ═ agent ═ server.

use std::time::Duration;

use glidepath_tunnel::link::Link;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::house::{Agent, House, Line, config, pattern, quick, soon, up};

/// Two ends of one connection.
async fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (near, listener.accept().await.unwrap().0)
}

/// A user's connection through home, link and agent, and the server's end of it.
async fn passage(
    home: &Link,
    agent: &Link,
    tasks: &mut JoinSet<std::io::Result<()>>,
) -> (TcpStream, TcpStream) {
    let ((user, at_home), (server, at_agent)) = (connection().await, connection().await);
    let opened = home.open("server").unwrap();
    tasks.spawn(async move {
        let (from, to) = at_home.into_split();
        opened.carry(from, to).await
    });
    let incoming = soon("the stream", agent.accept()).await.unwrap();
    tasks.spawn(async move {
        let (from, to) = at_agent.into_split();
        incoming.stream.carry(from, to).await
    });
    (user, server)
}

/// Sends while it receives, in pieces of many sizes, and looks at every byte.
async fn exchange(user: TcpStream, server: TcpStream, length: usize) {
    let mut tasks = JoinSet::new();
    let (user_from, user_to) = user.into_split();
    let (server_from, server_to) = server.into_split();
    for (mut from, mut to, sent) in
        [(server_from, user_to, pattern(length)), (user_from, server_to, pattern(length + 1))]
    {
        let expected = sent.clone();
        tasks.spawn(async move {
            let (mut rest, mut size) = (&sent[..], 1);
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(size.min(rest.len()));
                to.write_all(piece).await.unwrap();
                (rest, size) = (after, size * 3 % 299_993 + 1);
                tokio::task::yield_now().await;
            }
            to.shutdown().await.unwrap();
        });
        tasks.spawn(async move {
            let mut got = Vec::new();
            from.read_to_end(&mut got).await.unwrap();
            assert!(got == expected, "{} bytes of {}", got.len(), expected.len());
        });
    }
    soon("both ways", async {
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_carried_arrives_whole_both_ways_though_the_line_breaks() {
    let mut house = House::open(quick()).await;
    let line = Line::to(house.address).await;
    let agent = Agent::dial(config(&line.url(), "ticket-ada"));
    let link = house.arrival().await;
    let mut carried = JoinSet::new();
    let (user, server) = passage(&link, &agent.link, &mut carried).await;
    let breaks = async {
        for _ in 0..3 {
            line.break_off();
            tokio::time::sleep(Duration::from_millis(50)).await;
            line.restore();
            up(&agent.link, 1).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::join!(exchange(user, server, 40 << 20), breaks);
    assert!(agent.link.counters().resumes > 0);
    while let Some(ended) = soon("the end of the passage", carried.join_next()).await {
        ended.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_late_gets_all_of_it_and_holds_up_nobody_else() {
    let mut house = House::open(quick()).await;
    let agent = Agent::dial(config(&house.url(), "ticket-ada"));
    let link = house.arrival().await;
    let mut carried = JoinSet::new();
    let (mut late, mut server) = passage(&link, &agent.link, &mut carried).await;
    let sent = pattern(64 << 20);
    let expected = sent.clone();
    let mut sending = JoinSet::new();
    sending.spawn(async move {
        server.write_all(&sent).await.unwrap();
        server.shutdown().await.unwrap();
        server
    });
    let (user, other) = passage(&link, &agent.link, &mut carried).await;
    exchange(user, other, 8 << 20).await;
    assert!(sending.try_join_next().is_none(), "64 MB went nowhere");
    let mut got = Vec::new();
    soon("what waited", late.read_to_end(&mut got)).await.unwrap();
    assert!(got == expected, "{} bytes of {}", got.len(), expected.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_way_has_an_end_of_its_own() {
    let mut house = House::open(quick()).await;
    let agent = Agent::dial(config(&house.url(), "ticket-ada"));
    let link = house.arrival().await;
    let mut carried = JoinSet::new();
    let (mut user, mut server) = passage(&link, &agent.link, &mut carried).await;
    user.write_all(b"asked").await.unwrap();
    user.shutdown().await.unwrap();
    let mut asked = String::new();
    soon("the question's end", server.read_to_string(&mut asked)).await.unwrap();
    assert_eq!(asked, "asked");
    server.write_all(b"answered").await.unwrap();
    server.shutdown().await.unwrap();
    let mut answer = String::new();
    soon("the answer's end", user.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(answer, "answered");
    while let Some(ended) = soon("the end of the passage", carried.join_next()).await {
        ended.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_ends_the_users_connection() {
    let mut house = House::open(quick()).await;
    let agent = Agent::dial(config(&house.url(), "ticket-ada"));
    let link = house.arrival().await;
    let mut carried = JoinSet::new();
    let (mut user, mut server) = passage(&link, &agent.link, &mut carried).await;
    user.write_all(b"?").await.unwrap();
    soon("the question", server.read_u8()).await.unwrap();
    server.set_zero_linger().unwrap();
    drop(server);
    let mut nothing = Vec::new();
    let ended = soon("the end", user.read_to_end(&mut nothing)).await;
    assert!(nothing.is_empty() && carried.join_next().await.unwrap().unwrap().is_err(), "{ended:?}");
}
