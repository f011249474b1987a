//! What must hold of every verdict, and the sentences themselves.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::names::{HubName, ServerKey, ServerName, UserName};
use crate::policy::{Patience, Policy as TimePolicy};
use crate::resources::Resources;
use crate::site::{Home, Limits, Reach};

fn site(name: &str) -> Site {
    Site {
        name: SiteName::parse(name).unwrap(),
        title: name.to_uppercase(),
        labels: BTreeMap::new(),
        reach: Reach::Tunnel,
        limits: Limits::default(),
        archs: vec![Arch::X86_64],
        gpus: vec![],
        access: Access::Everyone,
        home: Home::Kept,
        preference: 0,
    }
}

fn well() -> Snapshot {
    Snapshot { health: Health::Well, free_slots: None, waiting: 0, predicted_wait_s: None, servers: 0 }
}

fn at(site: Site, snapshot: Snapshot) -> Candidate {
    Candidate { site: site.into(), snapshot: Some(snapshot), servers_of_user: 0 }
}

fn waiting(name: &str, wait_s: Option<u32>) -> Candidate {
    at(site(name), Snapshot { predicted_wait_s: wait_s, ..well() })
}

fn request() -> SpawnRequest {
    SpawnRequest {
        key: ServerKey {
            hub: HubName::parse("main").unwrap(),
            user: UserName::parse("ada").unwrap(),
            server: ServerName::default(),
        },
        groups: vec![],
        resources: Resources {
            cores: 2,
            memory_mb: 2048,
            gpus: Gpus::default(),
            arch: None,
            walltime_min: 480,
        },
        site: None,
    }
}

fn said(request: &SpawnRequest, candidate: Candidate) -> (bool, String) {
    let verdict = choose(request, &[candidate], &Policy::default()).remove(0);
    (verdict.fits, verdict.sentence)
}

fn names(verdicts: &[Verdict]) -> Vec<&str> {
    verdicts.iter().map(|verdict| verdict.site.as_str()).collect()
}

#[test]
fn every_filter_speaks_the_users_words() {
    let mut asked = request();
    asked.resources = Resources {
        cores: 16,
        memory_mb: 65536,
        gpus: Gpus { count: 4, kind: None, memory_mb: None },
        arch: Some(Arch::Aarch64),
        walltime_min: 2880,
    };
    let mut tight = site("tight");
    tight.limits = Limits {
        cores: Some(8),
        memory_mb: Some(12800),
        walltime_min: Some(90),
        servers_per_user: Some(1),
        servers: Some(50),
        policies: vec![],
    };
    tight.access = Access::Groups(vec!["staff".into(), "gpu".into(), "ops".into()]);
    let candidate = Candidate { servers_of_user: 1, ..at(tight, Snapshot { servers: 50, ..well() }) };
    let (fits, sentence) = said(&asked, candidate);
    assert!(!fits);
    assert_eq!(
        sentence,
        "Is for members of staff, gpu or ops. Has no aarch64 machines, only x86_64. \
         Gives one server at most 8 cores; you ask for 16 cores. \
         Gives one server at most 12.5 GB of memory; you ask for 64 GB of memory. Has no GPUs. \
         Servers there live at most 90 minutes; you ask for 2 days. \
         You have 1 server there, and one user may have 1. Is full: it takes 50 servers at a time."
    );
}

#[test]
fn what_a_policy_grants_is_told_and_refused_by_whose_it_is() {
    let mut bounded = site("bounded");
    let hour = Some(Patience::Seconds(3600));
    bounded.limits.policies = vec![
        TimePolicy { walltime_min: Some(240), idle: hour, ..TimePolicy::default() },
        TimePolicy { groups: vec!["staff".into()], walltime_min: Some(1440), ..TimePolicy::default() },
    ];
    let mut asked = request();
    let refused = |asked: &SpawnRequest| said(asked, at(bounded.clone(), well()));
    assert_eq!(
        refused(&asked),
        (false, "Servers there live at most 4 hours; you ask for 8 hours.".to_owned())
    );
    asked.groups = vec!["staff".into()];
    let (fits, sentence) = refused(&asked);
    assert!(
        fits && sentence
            .ends_with("A server ends after 1 hour in which no kernel, terminal or notebook is active.")
    );
    asked.resources.walltime_min = 2880;
    let (_, sentence) = refused(&asked);
    assert_eq!(sentence, "Servers there live at most 24 hours (for members of staff); you ask for 2 days.");
}

#[test]
fn gpus_are_refused_by_kind_memory_and_count() {
    let with = |kind: Option<&str>, memory_mb, count| {
        let mut asked = request();
        asked.resources.gpus = Gpus { count, kind: kind.map(str::to_owned), memory_mb };
        let mut site = site("far");
        site.gpus = vec![
            GpuKind { kind: "a100".into(), memory_mb: 40960, per_server: 2 },
            GpuKind { kind: "l4".into(), memory_mb: 24576, per_server: 8 },
        ];
        said(&asked, at(site, well()))
    };
    assert_eq!(with(Some("h100"), None, 1).1, "Has no h100 GPUs, only a100 and l4.");
    assert_eq!(
        with(Some("a100"), Some(81920), 1).1,
        "Its a100 GPUs have at most 40 GB each; you ask for 80 GB."
    );
    assert_eq!(
        with(Some("a100"), None, 3).1,
        "Gives one server at most 2 a100 GPUs; you ask for 3 a100 GPUs."
    );
    assert_eq!(
        with(None, Some(40960), 3).1,
        "Gives one server at most 2 GPUs; you ask for 3 GPUs.",
        "only the a100 is large enough"
    );
    assert!(with(None, None, 8).0, "the l4 will do");
    assert!(with(Some("a100"), Some(40960), 2).0);
}

#[test]
fn health_decides_who_is_asked_and_silence_does_not_exclude() {
    let of = |health| said(&request(), at(site("far"), Snapshot { health, ..well() }));
    assert_eq!(
        of(Health::Resting("3 submits failed.".into())),
        (false, "Rests after repeated failures (3 submits failed).".to_owned())
    );
    assert_eq!(of(Health::Closed("maintenance".into())), (false, "Is closed (maintenance).".to_owned()));
    let (fits, sentence) = of(Health::Unknown("no answer\nsince 12:00".into()));
    assert!(fits);
    assert_eq!(
        sentence,
        "Does not answer at present (no answersince 12:00); your server can be tried there."
    );
    let silent = Candidate { site: site("far").into(), snapshot: None, servers_of_user: 0 };
    assert!(said(&request(), silent).0);
}

#[test]
fn a_fitting_site_tells_what_to_expect() {
    let of = |snapshot| said(&request(), at(site("far"), snapshot)).1;
    assert_eq!(of(Snapshot { predicted_wait_s: Some(5), ..well() }), "Should start at once.");
    assert_eq!(
        of(Snapshot { predicted_wait_s: Some(290_000), waiting: 7, ..well() }),
        "Should start in about 3 d 8 h, with 7 servers waiting before yours."
    );
    assert_eq!(
        of(Snapshot { free_slots: Some(0), waiting: 1, ..well() }),
        "Has no free slot now, with 1 server waiting before yours; the wait is not known."
    );
}

#[test]
fn a_known_short_wait_beats_an_unknown_one_and_that_beats_days() {
    let candidates =
        [waiting("days", Some(3 * 86400)), waiting("unknown", None), waiting("minutes", Some(300))];
    assert_eq!(names(&choose(&request(), &candidates, &Policy::default())), ["minutes", "unknown", "days"]);
}

#[test]
fn preference_decides_among_like_waits_then_kept_files_then_free_slots() {
    let mut liked = waiting("liked", Some(20));
    Arc::make_mut(&mut liked.site).preference = 1;
    let free =
        |name, free| at(site(name), Snapshot { free_slots: Some(free), predicted_wait_s: Some(1), ..well() });
    let mut scratch = free("scratch", 400);
    Arc::make_mut(&mut scratch.site).home = Home::Scratch;
    let candidates = [free("few", 2), scratch, free("many", 90), liked, waiting("slow", Some(4000))];
    let verdicts = choose(&request(), &candidates, &Policy::default());
    assert_eq!(names(&verdicts), ["liked", "many", "few", "scratch", "slow"]);
}

#[test]
fn a_chosen_site_excludes_the_others_in_words() {
    let asked = SpawnRequest { site: Some(SiteName::parse("far").unwrap()), ..request() };
    let verdicts = choose(&asked, &[waiting("here", Some(1)), waiting("far", None)], &Policy::default());
    assert_eq!(names(&verdicts), ["far", "here"]);
    assert_eq!((verdicts[1].fits, verdicts[1].sentence.as_str()), (false, "You chose another site."));
}

#[test]
fn a_thousand_sites_are_ranked_in_no_time() {
    let candidates: Vec<Candidate> =
        (0..1000).map(|n| waiting(&format!("s{n}"), Some(n * 7 % 5000))).collect();
    let started = std::time::Instant::now();
    let rounds = 20;
    for _ in 0..rounds {
        assert_eq!(choose(&request(), &candidates, &Policy::default()).len(), 1000);
    }
    let each = started.elapsed() / rounds;
    assert!(each < std::time::Duration::from_millis(50), "{each:?} in an unoptimised build");
}

fn any_candidate() -> impl Strategy<Value = Candidate> {
    let health = prop_oneof![
        Just(Health::Well),
        Just(Health::Well),
        "\\PC{0,20}".prop_map(Health::Unknown),
        "\\PC{0,20}".prop_map(Health::Resting),
        "\\PC{0,20}".prop_map(Health::Closed),
    ];
    let snapshot = (health, any::<Option<u32>>(), any::<u32>(), any::<Option<u32>>(), 0..9_u32).prop_map(
        |(health, free_slots, waiting, predicted_wait_s, servers)| Snapshot {
            health,
            free_slots,
            waiting,
            predicted_wait_s,
            servers,
        },
    );
    let gpu = ("a100|l4", 1..100_000_u64, 0..5_u32).prop_map(|(kind, memory_mb, per_server)| GpuKind {
        kind,
        memory_mb,
        per_server,
    });
    let access = prop_oneof![
        3 => Just(Access::Everyone),
        1 => prop::collection::vec("staff|ops", 0..2).prop_map(Access::Groups)
    ];
    let limits =
        (any::<Option<u32>>(), any::<Option<u64>>(), any::<Option<u32>>(), prop::option::of(0..9_u32))
            .prop_map(|(cores, memory_mb, walltime_min, servers)| Limits {
                cores,
                memory_mb,
                walltime_min,
                servers_per_user: servers,
                servers,
                policies: vec![],
            });
    let rest = (prop::collection::vec(gpu, 0..3), access, limits, any::<i32>(), 0..5_u32);
    ("[a-z]{1,3}", prop::option::of(snapshot), rest).prop_map(
        |(name, snapshot, (gpus, access, limits, preference, servers_of_user))| Candidate {
            site: Site { gpus, access, limits, preference, ..site(&name) }.into(),
            snapshot,
            servers_of_user,
        },
    )
}

fn any_candidates() -> impl Strategy<Value = Vec<Candidate>> {
    prop::collection::vec(any_candidate(), 0..12).prop_map(|mut candidates| {
        candidates.sort_by(|a, b| a.site.name.cmp(&b.site.name));
        candidates.dedup_by(|a, b| a.site.name == b.site.name);
        candidates
    })
}

fn any_request() -> impl Strategy<Value = SpawnRequest> {
    let gpus = (0..4_u32, prop::option::of("a100|l4|h100"), prop::option::of(0..90_000_u64))
        .prop_map(|(count, kind, memory_mb)| Gpus { count, kind, memory_mb });
    let groups = prop::collection::vec("staff|ops", 0..2);
    (1..64_u32, 128..900_000_u64, gpus, 1..9000_u32, groups, prop::option::of("[a-z]{1,2}")).prop_map(
        |(cores, memory_mb, gpus, walltime_min, groups, site)| SpawnRequest {
            groups,
            resources: Resources { cores, memory_mb, gpus, arch: None, walltime_min },
            site: site.map(|name| SiteName::parse(&name).unwrap()),
            ..request()
        },
    )
}

proptest! {
    #[test]
    fn the_order_of_the_sites_does_not_matter(
        request in any_request(),
        (candidates, shuffled) in any_candidates().prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
    ) {
        let policy = Policy::default();
        prop_assert_eq!(choose(&request, &candidates, &policy), choose(&request, &shuffled, &policy));
    }

    #[test]
    fn no_unfit_site_ranks_above_a_fitting_one_and_scores_fall(request in any_request(), candidates in any_candidates()) {
        let verdicts = choose(&request, &candidates, &Policy::default());
        prop_assert_eq!(verdicts.len(), candidates.len());
        for pair in verdicts.windows(2) {
            prop_assert!(pair[0].fits || !pair[1].fits);
            prop_assert!(pair[0].score >= pair[1].score, "{} then {}", pair[0].score, pair[1].score);
        }
    }

    #[test]
    fn every_sentence_says_something_and_a_wait_is_what_the_site_said(
        request in any_request(), candidates in any_candidates(),
    ) {
        for verdict in choose(&request, &candidates, &Policy::default()) {
            prop_assert!(verdict.sentence.trim().ends_with('.'));
            prop_assert!(!verdict.sentence.chars().any(char::is_control));
            let of = candidates.iter().find(|c| c.site.name == verdict.site).unwrap();
            let told = of.snapshot.as_ref().and_then(|s| s.predicted_wait_s);
            prop_assert!(verdict.predicted_wait_s.is_none() || verdict.predicted_wait_s == told);
        }
    }

    #[test]
    fn one_more_site_changes_nothing_said_of_the_others(
        request in any_request(), candidates in any_candidates(), more in any_candidate(),
    ) {
        prop_assume!(candidates.iter().all(|c| c.site.name != more.site.name));
        let policy = Policy::default();
        let before = choose(&request, &candidates, &policy);
        let with: Vec<Candidate> = candidates.iter().cloned().chain([more.clone()]).collect();
        let after: Vec<Verdict> =
            choose(&request, &with, &policy).into_iter().filter(|v| v.site != more.site.name).collect();
        prop_assert_eq!(before, after);
    }

    #[test]
    fn a_longer_wait_never_ranks_better(
        (short, long) in ("[a-z]{1,3}", "[a-z]{1,3}").prop_filter("one site each", |(short, long)| short != long),
        wait in prop_oneof![0..200_u32, 0..1_000_000_u32],
        longer in prop_oneof![1..100_u32, 1..1_000_000_u32],
    ) {
        let candidates = [waiting(&long, Some(wait + longer)), waiting(&short, Some(wait))];
        let verdicts = choose(&request(), &candidates, &Policy::default());
        prop_assert_eq!(names(&verdicts), [short.as_str(), long.as_str()]);
    }
}
