//! Line and count go together, and the manual tells of each.

use glidepath_testkit::log::Log;

use super::*;

#[test]
fn each_notable_thing_is_one_line_and_one_count_with_the_same_words() {
    let log = Log::begin();
    let notes = Notes::new();
    let run = RunId::from_parts(1_700_000_000_000, 7);
    let about = About::new().run(run).why("because of this");
    Refusal::ALL.iter().for_each(|one| notes.refused(*one, &about));
    Retry::ALL.iter().for_each(|one| notes.retries(*one, &about));
    Repair::ALL.iter().for_each(|one| notes.repaired(*one, &about));
    let doubts: Vec<Doubting> = Doubt::ALL.iter().map(|one| notes.doubts(*one, &about)).collect();
    let lines = log.lines();
    assert_eq!(lines.len(), all().count());
    for entry in all() {
        let Entry { kind, what, reason, level, sentence, next, .. } = entry;
        let of_it = |line: &&serde_json::Value| {
            line["note"] == kind.word() && line["what"] == *what && line["reason"] == *reason
        };
        let found: Vec<_> = lines.iter().filter(of_it).collect();
        assert_eq!(found.len(), 1, "{entry:?}");
        let line = found[0];
        assert_eq!((line["message"].as_str(), line["next"].as_str()), (Some(*sentence), Some(*next)));
        assert_eq!(line["level"].as_str(), Some(level.as_str()));
        assert_eq!((&line["run"], &line["why"]), (&run.to_string().into(), &"because of this".into()));
        assert!(line.get("hub").is_none(), "what is not known is left out");
        assert!(notes.counts(*kind).contains(&(*what, *reason, 1)), "{entry:?}");
    }
    assert!(notes.open().iter().all(|(_, _, open)| *open == 1));
    drop(doubts);
}

#[test]
fn no_two_have_the_same_labels() {
    let labels: std::collections::BTreeSet<Id> = all().map(id).collect();
    assert_eq!(labels.len(), all().count());
}

#[test]
fn a_doubt_is_told_when_it_begins_and_when_it_is_over() {
    let log = Log::begin();
    let notes = Notes::new();
    let doubt = notes.doubts(Doubt::SiteSilent, &About::new());
    doubt.over(&About::new());
    drop(notes.doubts(Doubt::SiteSilent, &About::new())); // the service ends
    let told: Vec<_> = log.lines().iter().map(|line| line["message"].as_str().unwrap().to_owned()).collect();
    let begun = "a site does not say what it can take";
    assert_eq!(told, [begun.to_owned(), format!("{begun}: that is over"), begun.to_owned()]);
    assert_eq!(notes.counted(Doubt::SiteSilent), 2);
    assert!(notes.open().iter().all(|(_, _, open)| *open == 0), "none stands");
}

#[test]
fn what_a_stranger_can_repeat_is_counted_each_time_and_written_once_in_a_while() {
    let log = Log::begin();
    let notes = Notes::new();
    let (one, two) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
    for _ in 0..1000 {
        notes.refused(Refusal::KnockNoTicket, &About::new().peer(one));
    }
    notes.refused(Refusal::KnockNoTicket, &About::new().peer(two));
    assert_eq!(notes.counted(Refusal::KnockNoTicket), 1001);
    assert_eq!(log.lines().len(), 2, "one for each address");
    let long_ago = Instant::now() - CALM * 2;
    notes.inner.told.lock().unwrap().values_mut().for_each(|told| told.at = long_ago);
    notes.refused(Refusal::KnockNoTicket, &About::new().peer(one));
    assert_eq!(log.lines()[2]["times"], 1000, "those that were not written, and this one");
}

#[test]
fn the_memory_of_subjects_is_bounded() {
    let notes = Notes::new();
    for number in 0..20_000_u32 {
        let peer = std::net::Ipv4Addr::from_bits(number).into();
        notes.refused(Refusal::KnockNoTicket, &About::new().peer(peer));
    }
    assert!(notes.inner.told.lock().unwrap().len() <= SUBJECTS_MAX);
}

#[test]
fn the_manual_tells_of_each_of_them_and_of_nothing_else() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operator.md");
    let manual_there = std::fs::read_to_string(path).unwrap();
    let wanted = manual();
    let there: Vec<&str> = manual_there
        .lines()
        .skip_while(|line| !line.starts_with("| metric | `what`, `reason`"))
        .take_while(|line| line.starts_with('|'))
        .collect();
    assert!(there.join("\n") == wanted, "docs/operator.md must tell:\n{wanted}");
}
