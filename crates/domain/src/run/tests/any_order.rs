//! Whatever is heard, in any order: what never happens, and that all comes to an end.

use proptest::prelude::*;

use super::*;

fn attempt_number() -> impl Strategy<Value = u32> {
    1..4_u32
}

fn event() -> impl Strategy<Value = Event> {
    let n = attempt_number;
    let job = prop_oneof![
        Just(JobState::Queued { position: Some(2), predicted_wait_s: None }),
        Just(JobState::Running { direct: None }),
        Just(JobState::Stuck("held".to_owned())),
        Just(JobState::Ended(JobEnd::default())),
    ];
    let cause = prop_oneof![Just(EndCause::ByItself), Just(EndCause::Asked), Just(EndCause::CannotStart)];
    let phase = prop_oneof![
        Just(Phase::Waiting),
        Just(Phase::Starting),
        Just(Phase::Listening),
        Just(Phase::Ending),
        cause.prop_map(|cause| ended(Some(1), None, cause)),
    ];
    prop_oneof![
        n().prop_map(Event::SubmitDone),
        n().prop_map(|n| Event::SubmitRefused(n, "no".to_owned())),
        n().prop_map(|n| Event::NoPlace(n, "all places are taken".to_owned())),
        n().prop_map(|n| Event::SubmitUnknown(n, "?".to_owned())),
        (n(), job).prop_map(|(n, job)| Event::JobSeen(n, job)),
        n().prop_map(|n| Event::JobAbsent(n, Moment(u64::MAX))),
        n().prop_map(Event::SiteSilent),
        n().prop_map(Event::CancelDone),
        n().prop_map(Event::ForgetDone),
        n().prop_map(Event::Linked),
        n().prop_map(Event::LinkCut),
        n().prop_map(Event::LinkBack),
        n().prop_map(Event::LinkClosed),
        (n(), phase).prop_map(|(n, phase)| Event::Report(n, phase, vec![])),
        (n(), prop_oneof![Just(200_u16), Just(500)]).prop_map(|(n, status)| Event::Answered(n, status)),
        n().prop_map(|n| Event::Silent(n, "refused".to_owned())),
        Just(Event::Tick),
        Just(Event::Tick),
    ]
}

fn step() -> impl Strategy<Value = (Event, u64)> {
    let stop = any::<bool>().prop_map(|now| Event::StopAsked { why: "bye".to_owned(), now });
    (prop_oneof![20 => event(), 1 => stop], prop_oneof![Just(0), Just(1), Just(30), Just(200)])
}

/// What nobody knows is said: nothing in here is proof of an end.
fn unknowing() -> impl Strategy<Value = (Event, u64)> {
    let event = prop_oneof![
        Just(Event::SiteSilent(1)),
        Just(Event::LinkCut(1)),
        Just(Event::LinkClosed(1)),
        Just(Event::LinkBack(1)),
        Just(Event::Silent(1, "no answer".to_owned())),
        Just(Event::Answered(1, 500)),
        Just(Event::SubmitUnknown(1, "no answer".to_owned())),
        Just(Event::Tick),
    ];
    (event, 0..100_u64)
}

/// Plays the world that does what it is asked, until nothing is left to do.
fn settle(story: &mut Story, mut owed: Vec<Effect>) -> Vec<Effect> {
    let mut done = Vec::new();
    for _ in 0..200 {
        for effect in std::mem::take(&mut owed) {
            let answer = match &effect {
                Effect::Submit(n) => Some(Event::SubmitDone(*n)),
                Effect::Cancel(n, _) => Some(Event::CancelDone(*n)),
                Effect::Forget(n) => Some(Event::ForgetDone(*n)),
                _ => None,
            };
            done.push(effect);
            if let Some(answer) = answer {
                owed.extend(story.hears(answer).out.clone());
            }
        }
        for n in 1..=u32::try_from(story.run.tries.len()).unwrap() {
            let job_there = !story.run.attempt(n).unwrap().cancelled;
            let absent = Event::JobAbsent(n, story.now.after(Duration::from_millis(1)));
            owed.extend(story.hears(if job_there { running(n) } else { absent }).out.clone());
        }
        owed.extend(story.after(5).out.clone());
    }
    done
}

proptest! {
    #[test]
    fn no_sequence_breaks_the_promises(steps in prop::collection::vec(step(), 0..80), restart_at in 0..80_usize) {
        let mut story = Story::at(&["here", "far", "away"]);
        let mut owed = story.out.clone();
        for (at, (event, wait)) in steps.into_iter().enumerate() {
            let before = story.run.clone();
            let current = before.current().map(|attempt| attempt.number);
            let about = number_of(&event);
            story.now = story.now.after(Duration::from_secs(wait));
            if at == restart_at {
                story.run = reread(&story.run);
                owed = story.run.resume(story.now, &deadlines());
            }
            let moved = { let mut only_time = story.run.clone(); only_time.step(Event::Tick, story.now, &deadlines()); only_time };
            owed.extend(story.hears(event).out.clone());

            let open = story.run.tries.iter().filter(|attempt| !attempt.fenced).count();
            prop_assert!(open <= 1, "two attempts may attach");
            if before.state == State::Ended {
                prop_assert_eq!(story.run.state, State::Ended, "ended is final");
                prop_assert_eq!(&story.run.end, &before.end);
            }
            if about.is_some() && about < current {
                prop_assert_eq!(story.run.state, moved.state, "a late message of an older attempt");
                prop_assert_eq!(&story.run.end, &moved.end);
                prop_assert_eq!(story.run.current(), moved.current());
            }
            prop_assert!(!story.run.message().is_empty());
        }
        // Whatever happened: told to stop, in a world that answers, it ends and leaves nothing.
        owed.extend(story.hears(Event::StopAsked { why: "bye".to_owned(), now: false }).out.clone());
        let done = settle(&mut story, owed);
        prop_assert_eq!(story.run.state, State::Ended);
        prop_assert!(story.run.is_settled(), "something is left: {:?}", story.run.tries);
        for attempt in &story.run.tries {
            let cancelled = attempt.cancelled || done.iter().any(|e| matches!(e, Effect::Cancel(n, _) if *n == attempt.number));
            prop_assert!(attempt.submit.made_nothing() || cancelled, "a job was left alone: {:?}", attempt);
        }
    }

    #[test]
    fn unknown_never_ends_a_ready_run(steps in prop::collection::vec(unknowing(), 0..60)) {
        let mut story = Story::ready(&["here", "far"]);
        for (event, wait) in steps {
            story.now = story.now.after(Duration::from_secs(wait));
            story.hears(event);
            prop_assert_eq!(story.run.state, State::Ready);
        }
    }

    #[test]
    fn a_stop_ends_even_when_nobody_answers(steps in prop::collection::vec(step(), 0..40), now: bool) {
        let mut story = Story::at(&["here", "far"]);
        for (event, wait) in steps {
            story.now = story.now.after(Duration::from_secs(wait));
            story.hears(event);
        }
        story.hears(Event::StopAsked { why: "bye".to_owned(), now });
        for _ in 0..50 {
            story.after(5);
        }
        prop_assert_eq!(story.run.state, State::Ended);
    }

    #[test]
    fn time_alone_ends_every_run(steps in prop::collection::vec(step(), 0..40)) {
        let mut story = Story::at(&["here", "far"]);
        for (event, wait) in steps {
            story.now = story.now.after(Duration::from_secs(wait));
            story.hears(event);
        }
        for _ in 0..20_000 {
            let Some(due) = story.run.due(story.now, &deadlines()).filter(|_| story.run.state != State::Ended) else { break };
            prop_assert!(due > story.now);
            story.now = due;
            story.hears(Event::Tick);
        }
        prop_assert_eq!(story.run.state, State::Ended, "no deadline was due in {:?}", story.run);
    }
}

fn number_of(event: &Event) -> Option<u32> {
    match event {
        Event::SubmitDone(n)
        | Event::SubmitRefused(n, _)
        | Event::NoPlace(n, _)
        | Event::SubmitUnknown(n, _)
        | Event::JobSeen(n, _)
        | Event::JobAbsent(n, _)
        | Event::SiteSilent(n)
        | Event::CancelDone(n)
        | Event::ForgetDone(n)
        | Event::Linked(n)
        | Event::LinkCut(n)
        | Event::LinkBack(n)
        | Event::LinkClosed(n)
        | Event::Report(n, _, _)
        | Event::Answered(n, _)
        | Event::Silent(n, _) => Some(*n),
        Event::StopAsked { .. } | Event::Tick => None,
    }
}
