//! Lanes that come for bulk over a long way, and go after it.

use std::time::Duration;

use glidepath_testkit::chaos::Proxy;
use glidepath_tunnel::link::{Incoming, Link, LinkState};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::house::{Agent, House, config, pattern, quick, soon, up};

const STREAMS: usize = 4;
const BYTES: usize = 8 << 20;

fn lanes(link: &Link) -> usize {
    match link.state() {
        LinkState::Up { lanes } => lanes,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_over_a_long_way_gets_lanes_of_its_own_which_go_when_it_is_over() {
    let mut house = House::open(quick()).await;
    let line = Proxy::to(house.address).await.unwrap();
    // 20 ms there and back, and no connection carries more than 16 KiB in half of that: as with loss, a further one does.
    line.delay(Duration::from_millis(10));
    let agent = Agent::dial(config(&format!("ws://{}/link", line.address()), "ticket-ada"));
    let link = house.arrival().await;
    up(&link, 1).await;
    let mut small = link.open("small").unwrap();
    small.write_all(b"first").await.unwrap();
    let Incoming { stream: mut small_there, .. } = agent.link.accept().await.unwrap();

    let mut reading = JoinSet::new();
    for n in 0..STREAMS {
        let mut stream = link.open("bulk").unwrap();
        stream.write_all(&[n as u8]).await.unwrap();
        reading.spawn(async move {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            assert!(all == pattern(BYTES + n)[n..], "stream {n}: {} bytes", all.len());
        });
    }
    let mut writing = JoinSet::new();
    for _ in 0..STREAMS {
        let Incoming { mut stream, .. } = agent.link.accept().await.unwrap();
        writing.spawn(async move {
            let n = stream.read_u8().await.unwrap();
            let n = usize::from(n);
            stream.write_all(&pattern(BYTES + n)[n..]).await.unwrap();
            stream.shutdown().await.unwrap();
            stream
        });
    }
    let mut most = 0;
    let bulk = async {
        while !reading.is_empty() {
            tokio::select! {
                read = reading.join_next() => read.unwrap().unwrap(),
                () = tokio::time::sleep(Duration::from_millis(50)) => most = most.max(lanes(&agent.link)),
            }
        }
    };
    soon("every byte of the bulk", bulk).await;
    assert!(most >= 7, "{most} lanes at most: each one more carried more");

    let mut state = link.watch();
    soon("one lane again", state.wait_for(|state| *state == LinkState::Up { lanes: 1 })).await.unwrap();
    assert_eq!(lanes(&agent.link), 1);
    assert_eq!(link.counters().resumes, 0, "it was never cut");
    let mut first = [0; 5];
    small_there.read_exact(&mut first).await.unwrap();
    small_there.write_all(b"second").await.unwrap();
    let mut second = [0; 6];
    soon("what is small", small.read_exact(&mut second)).await.unwrap();
    assert_eq!((&first, &second), (b"first", b"second"));
}
