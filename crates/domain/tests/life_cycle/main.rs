//! The life cycle in a model of the world: what may never happen on any way, and what must come in the end.
//!
//! `world` holds sites, agents, a store, a service that dies at any point, a user, the time, and all that is in flight
//! between them. A case walks it by moves that are possible where it stands, checks each promise after each move, and
//! at last lets the world be fair, once as it stands and once after a crash. A counterexample is told as the shortest
//! list of moves. `PROPTEST_CASES=100000 cargo test -p glidepath-domain --test life_cycle` looks for longer.
//!
//! Why a walk of our own: proptest-state-machine compares a system with a reference, and here the system under test is
//! a part of the one model; stateright wants a space of states that can be listed, and here time and numbers never
//! come back. What proptest gives remains: cases, seeds, the count of them.

use std::fmt::Write as _;

use glidepath_domain::run::State;
use proptest::prelude::*;

use world::{Move, World};

mod world;

/// The way that the picks lead, and what went wrong on it.
fn walk(sites: usize, picks: &[u16]) -> (Vec<Move>, Result<World, String>) {
    let mut world = World::with(sites);
    let mut way = Vec::new();
    for pick in picks {
        let moves = world.moves();
        let chosen = moves[usize::from(*pick) % moves.len()].clone();
        way.push(chosen.clone());
        world.make(&chosen);
        if let Some(broken) = world.broken.first() {
            return (way, Err(broken.clone()));
        }
    }
    (way, Ok(world))
}

/// Lets the world be fair: as it stands, and after a crash.
fn come_to_rest(world: &World) -> Result<Vec<World>, String> {
    let mut crashed = world.clone();
    crashed.make(&Move::Die);
    [("", world.clone()), ("after a crash: ", crashed)]
        .into_iter()
        .map(|(when, mut world)| match world.be_fair() {
            Ok(()) => Ok(world),
            Err(broken) => Err(format!("{when}{broken}")),
        })
        .collect()
}

/// What goes wrong when these moves are made, as far as they are possible.
fn trouble(sites: usize, way: &[Move]) -> Option<String> {
    let mut world = World::with(sites);
    for step in way {
        if !world.moves().contains(step) {
            return None;
        }
        world.make(step);
        if let Some(broken) = world.broken.first() {
            return Some(broken.clone());
        }
    }
    come_to_rest(&world).and_then(|rests| rests.iter().try_for_each(stop_from)).err()
}

/// A run that stays ready ends when it is told to.
fn stop_from(world: &World) -> Result<(), String> {
    if world.run().state == State::Ended {
        return Ok(());
    }
    let mut world = world.clone();
    world.make(&Move::AskStop { now: false });
    world.be_fair().map_err(|broken| format!("told to stop: {broken}"))?;
    match world.run().state {
        State::Ended => Ok(()),
        state => Err(format!("told to stop, it stays {state:?}")),
    }
}

/// The same trouble, told with as few moves as possible.
fn told(sites: usize, mut way: Vec<Move>, broken: &str) -> String {
    let mut broken = broken.to_owned();
    let mut size = way.len();
    while size > 0 {
        let mut at = 0;
        while at < way.len() {
            let mut shorter = way.clone();
            shorter.drain(at..(at + size).min(way.len()));
            match trouble(sites, &shorter) {
                Some(still) => (way, broken) = (shorter, still),
                None => at += size,
            }
        }
        size /= 2;
    }
    let mut story = format!("{broken}\non this way, with {sites} sites:\n");
    let mut world = World::with(sites);
    for step in &way {
        world.make(step);
        let what = world.last_heard.take().map(|event| format!(" {event:?}")).unwrap_or_default();
        let _ = writeln!(story, "  {step:?}{what} -> {:?}", world.run().state);
    }
    story
}

/// More ways than proptest's default number of cases: each costs little. A way is made shorter by `told`, and picks
/// say nothing once a move is added.
fn config() -> ProptestConfig {
    let common = ProptestConfig::default();
    ProptestConfig {
        cases: common.cases.saturating_mul(4),
        max_shrink_iters: 0,
        failure_persistence: None,
        ..common
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn no_way_through_the_world_breaks_a_promise(
        sites in 1..4_usize,
        picks in prop::collection::vec(any::<u16>(), 1..120),
    ) {
        let (way, came) = walk(sites, &picks);
        let came = came.and_then(|world| come_to_rest(&world)).and_then(|rests| rests.iter().try_for_each(stop_from));
        if let Err(broken) = came {
            prop_assert!(false, "{}", told(sites, way, &broken));
        }
    }
}
