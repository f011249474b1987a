//! Which path is whose.

use std::path::PathBuf;

use glidepath_domain::backend::ServerAddress;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::prelude::*;

use super::*;

fn hub(name: &str) -> HubName {
    HubName::parse(name).unwrap()
}

fn run(number: u64) -> RunId {
    RunId::from_parts(number, 0)
}

fn ready(number: u64) -> RouteState {
    let address = ServerAddress::Unix { path: PathBuf::from("/s"), uid: 0 };
    RouteState::Ready(Upstream::direct(run(number), address))
}

fn waiting() -> RouteState {
    RouteState::Waiting { message: "queued".into() }
}

fn ended(message: &str) -> RouteState {
    RouteState::Ended { message: message.into() }
}

/// What was found, as the run's number or a word.
fn seen(routes: &Routes, path: &str) -> String {
    seen_at(routes, "main", path)
}

fn seen_at(routes: &Routes, at: &str, path: &str) -> String {
    match routes.find(&hub(at), path) {
        Found::Ready(upstream) => {
            let number = (1..1000).find(|number| run(*number) == upstream.run()).unwrap();
            number.to_string()
        }
        Found::Away { .. } => "away".into(),
        Found::Waiting { .. } => "waiting".into(),
        Found::Ended { message } => message,
        Found::Unknown => "unknown".into(),
    }
}

fn with(entries: Vec<(&str, u64, RouteState)>) -> Arc<Routes> {
    let routes = Routes::new();
    for (prefix, number, state) in entries {
        routes.put(&hub("main"), prefix, run(number), state).unwrap();
    }
    routes
}

#[test]
fn a_path_is_found_by_whole_segments() {
    let routes = with(vec![("/user/ada/", 1, ready(1)), ("/user/adam/", 2, ready(2))]);
    for (path, found) in [
        ("/user/ada", "1"),
        ("/user/ada/", "1"),
        ("/user/ada?x=/user/adam", "1"),
        ("/user/ada/api/kernels?token=..", "1"),
        ("/user/adam/lab", "2"),
        ("/user/ad", "unknown"),
        ("/user/adaa", "unknown"),
        ("/user/", "unknown"),
        ("/", "unknown"),
        ("", "unknown"),
        ("*", "unknown"),
        ("user/ada", "unknown"),
        ("/hub/user/ada/", "unknown"),
        ("/User/ada/", "unknown"),
    ] {
        assert_eq!(seen(&routes, path), found, "{path}");
    }
}

#[test]
fn a_name_is_found_however_it_is_encoded() {
    for (prefix, paths) in [
        (
            "/user/ada@example.org/",
            ["/user/ada%40example.org/x", "/user/ada@example.org", "/user/%61da%40example%2eorg/"],
        ),
        ("/user/%C3%BCn%C3%AF/", ["/user/%c3%bcn%c3%af/", "/user/ünï/lab", "/user/%C3%bcn%C3%AF"]),
        ("/user/corp%5Cada/", ["/user/corp%5cada/", "/user/corp%5Cada", "/user/corp%5Cada?x"]),
        ("/user/100%25/", ["/user/100%25/", "/user/100%25/lab", "/user/100%"]),
        ("/j%20hub/user/ada/", ["/j%20hub/user/ada/", "/j%20hub/user/ada", "/j%20hub/user/%61da"]),
        ("/user/ada/my%20lab/", ["/user/ada/my%20lab/", "/user/ada/my%20lab", "/user/ada/my%20la%62"]),
    ] {
        let routes = with(vec![(prefix, 1, ready(1))]);
        for path in paths {
            assert_eq!(seen(&routes, path), "1", "{prefix} {path}");
        }
    }
}

#[test]
fn what_two_readers_could_understand_differently_is_nobodys() {
    let routes = with(vec![("/user/ada/", 1, ready(1)), ("/user/bob/", 2, ready(2))]);
    for path in [
        "//user/ada/",
        "/user//ada/",
        "/user/./ada/",
        "/user%2fada/",
        "/user%2Fada",
        "/user/ada%2f",
        "/user/ada%2f..%2fbob/",
        "/user/ada/../bob/",
        "/user/ada/%2e%2e/bob/",
        "/user/ada/x/../../bob/",
        "/user/ada/.%2E/%2e./bob",
        "/user/bob/..",
        "/user\\ada/",
        "/user/ada\\",
        "/user/ada%00/",
        "/user/%2561da/",
        "/user/%ff/",
        "/user/..%2fuser/ada",
    ] {
        assert_eq!(seen(&routes, path), "unknown", "{path}");
    }
    // Inside a server's own part its path is its own business.
    for path in ["/user/ada//api", "/user/ada/a/../b", "/user/ada/a%2Fb", "/user/ada/%ff", "/user/ada/./x"] {
        assert_eq!(seen(&routes, path), "1", "{path}");
    }
}

#[test]
fn a_named_server_takes_its_paths_when_it_is_ready_and_not_before() {
    let routes = with(vec![("/user/ada/", 1, ready(1)), ("/user/ada/lab/", 2, waiting())]);
    assert_eq!(seen(&routes, "/user/ada/lab/tree"), "1");
    routes.put(&hub("main"), "/user/ada/lab/", run(2), ready(2)).unwrap();
    assert_eq!(seen(&routes, "/user/ada/lab/tree"), "2");
    assert_eq!(seen(&routes, "/user/ada/lab"), "2");
    assert_eq!(seen(&routes, "/user/ada/labs"), "1");
    routes.put(&hub("main"), "/user/ada/lab/", run(2), ended("over")).unwrap();
    assert_eq!(seen(&routes, "/user/ada/lab/tree"), "1");
}

#[test]
fn a_named_server_that_is_away_keeps_its_paths() {
    let away = RouteState::Away { message: "not answering".into() };
    let routes = with(vec![("/user/ada/", 1, ready(1)), ("/user/ada/lab/", 2, away)]);
    assert_eq!(seen(&routes, "/user/ada/lab/api/kernels/1"), "away");
    assert_eq!(seen(&routes, "/user/ada/tree"), "1");
}

#[test]
fn without_a_ready_server_the_nearest_to_ready_speaks() {
    let routes = with(vec![("/user/ada/", 1, waiting()), ("/user/ada/lab/", 2, ended("lab is over"))]);
    assert_eq!(seen(&routes, "/user/ada/lab/"), "waiting");
    routes.put(&hub("main"), "/user/ada/", run(1), ended("default is over")).unwrap();
    assert_eq!(seen(&routes, "/user/ada/lab/"), "lab is over");
    assert_eq!(seen(&routes, "/user/ada/"), "default is over");
}

#[test]
fn a_late_word_about_an_older_run_changes_nothing() {
    let routes = with(vec![("/user/ada/", 2, ready(2))]);
    routes.put(&hub("main"), "/user/ada/", run(1), ended("the older one")).unwrap();
    assert_eq!(seen(&routes, "/user/ada/"), "2");
    routes.remove(&hub("main"), "/user/ada/", run(1));
    assert_eq!(seen(&routes, "/user/ada/"), "2");
    routes.remove(&hub("main"), "/user/%61da", run(2));
    assert_eq!(seen(&routes, "/user/ada/"), "unknown");
}

#[test]
fn hubs_do_not_see_each_other() {
    let routes = with(vec![("/user/ada/", 1, ready(1))]);
    routes.put(&hub("other"), "/user/bob/", run(2), ready(2)).unwrap();
    assert_eq!(seen_at(&routes, "other", "/user/ada/"), "unknown");
    assert_eq!(seen_at(&routes, "other", "/user/bob/"), "2");
    assert_eq!(seen_at(&routes, "third", "/user/bob/"), "unknown");
}

#[test]
fn prefixes_that_would_take_more_than_a_server_are_refused() {
    let routes = Routes::new();
    for prefix in
        ["", "/", "user/ada/", "//", "/user//ada/", "/user/../", "/user/a%2fb/", "/user/ada/?x", "/a\\b/"]
    {
        let told = routes.put(&hub("main"), prefix, run(1), waiting()).unwrap_err().to_string();
        assert!(told.starts_with("service prefix "), "{told}");
    }
}

#[test]
fn ends_are_remembered_in_bounds_and_a_new_life_is_not_forgotten_with_them() {
    let routes = Routes::new();
    routes.put(&hub("main"), "/user/first/", run(1), ended("over")).unwrap();
    routes.put(&hub("main"), "/user/first/", run(2), ready(2)).unwrap();
    for number in 0..ENDS_KEPT + 10 {
        routes.put(&hub("main"), &format!("/user/u{number}/"), run(1), ended("over")).unwrap();
    }
    assert_eq!(seen(&routes, "/user/first/"), "2");
    assert_eq!(seen(&routes, "/user/u0/"), "unknown");
    assert_eq!(seen(&routes, &format!("/user/u{ENDS_KEPT}/")), "over");
    assert!(routes.hubs.read().unwrap()[&hub("main")].by_prefix.len() <= ENDS_KEPT + 1);
}

#[tokio::test]
async fn changes_are_told() {
    let routes = Routes::new();
    let mut changes = routes.changes();
    routes.put(&hub("main"), "/user/ada/", run(1), waiting()).unwrap();
    changes.changed().await.unwrap();
}

/// A name as JupyterHub takes it, and one of the ways to write it in a path.
fn written(name: &str, fully: bool) -> String {
    if fully {
        name.bytes().map(|byte| format!("%{byte:02x}")).collect()
    } else {
        utf8_percent_encode(name, NON_ALPHANUMERIC).to_string()
    }
}

proptest! {
    #[test]
    fn every_user_finds_the_own_server_and_no_other(
        names in prop::collection::hash_set("[^/\\p{Cc}]{1,12}", 2..6),
        fully in any::<bool>(),
        tail in "(/[a-z%~;.]{0,6}){0,4}",
    ) {
        let names: Vec<_> = names.into_iter().filter(|name| name != "." && name != "..").collect();
        let routes = Routes::new();
        for (number, name) in (1..).zip(&names) {
            let prefix = format!("/user/{}/", written(name, false));
            routes.put(&hub("main"), &prefix, run(number), ready(number)).unwrap();
        }
        for (number, name) in (1_u64..).zip(&names) {
            let path = format!("/user/{}{tail}", written(name, fully));
            let found = seen(&routes, &path);
            prop_assert!(found == number.to_string() || (found == "unknown" && tail.contains("..")), "{}: {}", path, found);
        }
    }

    #[test]
    fn whatever_a_path_collapses_to_no_other_server_is_found(
        pieces in prop::collection::vec(
            prop::sample::select(vec!["/", "user", "ada", "bob", "..", ".", "%2e", "%2f", "/user/ada", "\\", "%25", "x"]),
            0..10,
        )
    ) {
        let routes = with(vec![("/user/ada/", 1, ready(1)), ("/user/bob/", 2, ready(2))]);
        let path = pieces.concat();
        let found = seen(&routes, &path);
        if found == "1" || found == "2" {
            let owner = if found == "1" { "ada" } else { "bob" };
            let mut collapsed: Vec<&str> = Vec::new();
            for segment in path.split('/') {
                match segment.replace("%2e", ".").as_str() {
                    "" | "." => {}
                    ".." => drop(collapsed.pop()),
                    _ => collapsed.push(segment),
                }
            }
            prop_assert_eq!(&collapsed[..2], &["user", owner], "{}", path);
        }
    }
}
