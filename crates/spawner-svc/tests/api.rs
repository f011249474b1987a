//! The HTTP API against the whole service. Files mirror the routes; batch systems are made of memory.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

#[path = "api/house.rs"]
mod house;
#[path = "api/operator.rs"]
mod operator;

use glidepath_api_types::spawner::{Life, PlacementReply, ServerList, ServerView, StateName};
use glidepath_testkit::log::Log;
use house::{House, secret, start_body};
use reqwest::Method;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_without_its_secret_is_told_so_and_another_hubs_path_is_not_there() {
    let house = House::new().await;
    let path = house.server("main", "ada", "");
    for headers in [&[][..], &[("authorization", "Bearer wrong")], &[("authorization", "Basic x")]] {
        let answer = house.raw(Method::GET, &path, headers, "").await;
        assert_eq!((answer.status.as_u16(), answer.problem().code.as_str()), (401, "unauthenticated"));
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
    }
    let of_second = house.ask(Method::GET, &path, "second", None).await;
    assert_eq!((of_second.status.as_u16(), of_second.problem().code.as_str()), (404, "not_found"));
    let key_of_another = house.ask(Method::GET, "/v1/hubs/main/servers/second.ada.", "main", None).await;
    assert_eq!(key_of_another.status, 404);
    assert_eq!(house.ask(Method::GET, "/v1/hubs/nobody/servers", "main", None).await.status, 404);
    assert_eq!(house.ask(Method::GET, &path, "main", None).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_is_problem_json() {
    let house = House::new().await;
    let bearer = format!("Bearer {}", secret("main"));
    let json_body = ("content-type", "application/json");
    let server = house.server("main", "ada", "");
    let large = "x".repeat(2 * 1024 * 1024);
    for (method, path, headers, body, status, code) in [
        (Method::GET, "/elsewhere", &[][..], "", 404, "not_found"),
        (Method::GET, "/v1/hubs/main/elsewhere", &[("authorization", bearer.as_str())], "", 404, "not_found"),
        (Method::PATCH, &server, &[("authorization", bearer.as_str())], "", 405, "method_not_allowed"),
        (Method::PUT, &server, &[("authorization", bearer.as_str())], "{}", 415, "not_json"),
        (Method::PUT, &server, &[("authorization", bearer.as_str()), json_body], "{", 400, "not_json"),
        (Method::PUT, &server, &[("authorization", bearer.as_str()), json_body], &large, 413, "too_large"),
        (
            Method::GET,
            "/v1/hubs/main/servers/main.ada",
            &[("authorization", bearer.as_str())],
            "",
            404,
            "not_found",
        ),
        (
            Method::GET,
            "/v1/hubs/main/servers/main._61da.",
            &[("authorization", bearer.as_str())],
            "",
            404,
            "not_found",
        ),
        (
            Method::DELETE,
            &format!("{server}?now=perhaps"),
            &[("authorization", bearer.as_str())],
            "",
            422,
            "invalid",
        ),
        (
            Method::DELETE,
            &format!("{server}?run=7x"),
            &[("authorization", bearer.as_str())],
            "",
            422,
            "invalid",
        ),
        (
            Method::DELETE,
            &format!("{server}?when=now"),
            &[("authorization", bearer.as_str())],
            "",
            422,
            "invalid",
        ),
    ] {
        let answer = house.raw(method.clone(), path, headers, body.to_owned()).await;
        let got = (answer.status.as_u16(), answer.problem().code);
        assert_eq!(got, (status, code.to_owned()), "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_field_of_a_start_is_named_at_once_and_nothing_is_started() {
    let house = House::new().await;
    let wrong_shape = json!({"spawn_id": 7, "options": [], "argv": "x", "env": {"A": 1}, "prefx": "/"});
    let answer = house.ask(Method::PUT, &house.server("main", "ada", ""), "main", Some(wrong_shape)).await;
    assert_eq!(answer.status, 422);
    assert_eq!(answer.fields(), ["argv", "env.A", "options", "prefix", "prefx", "spawn_id"]);
    let wrong_values = json!({
        "spawn_id": "", "argv": [], "env": {"A=B": "x"}, "prefix": "user/ada", "working_dir": "",
        "options": {"site": "fra", "cores": "many", "colour": "blue"},
    });
    let answer = house.ask(Method::PUT, &house.server("main", "ada", ""), "main", Some(wrong_values)).await;
    let (long, name) = ("x".repeat(128 * 1024), "y".repeat(128 * 1024 - 3));
    let no_program_takes = json!({
        "spawn_id": "1", "prefix": "/user/ada/", "argv": ["x", long], "env": {"NUL": "\0", "LONG": long, name: "ok"},
    });
    let of_words =
        house.ask(Method::PUT, &house.server("main", "ada", ""), "main", Some(no_program_takes)).await;
    assert_eq!(of_words.fields(), ["argv", "env", "env.LONG", "env.NUL"], "each is named, in bounds");
    let with_dots = json!({"spawn_id": "1", "argv": ["x"], "env": {}, "prefix": "/user/../ada/"});
    let of_dots = house.ask(Method::PUT, &house.server("main", "ada", ""), "main", Some(with_dots)).await;
    assert_eq!(of_dots.fields(), ["prefix"]);
    let all = [
        "argv",
        "env",
        "options.colour",
        "options.cores",
        "options.site",
        "prefix",
        "spawn_id",
        "working_dir",
    ];
    assert_eq!(answer.fields(), all);
    assert!(answer.body.contains("did you mean far?"), "{answer:?}");
    assert_eq!(house.view("ada").await.state, StateName::None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_started_once_seen_and_ended() {
    let house = House::new().await;
    let first = house.start("ada", json!({"site": "far", "cores": "2"})).await;
    assert_eq!(first.status, 200, "{first:?}");
    let first: ServerView = first.json();
    assert_eq!((first.key.as_str(), first.user.as_str(), first.life), ("main.ada.", "ada", Life::Alive));
    let again: ServerView = house.start("ada", json!({"site": "far", "cores": "2"})).await.json();
    assert_eq!(first.run, again.run);

    let queued = house.until("ada", StateName::Queued).await;
    assert_eq!((queued.site.as_deref(), queued.url.as_deref(), queued.attempt), (Some("far"), None, Some(1)));
    let chosen: Vec<&str> = queued.verdicts.iter().filter(|v| v.chosen).map(|v| v.site.as_str()).collect();
    assert_eq!((chosen.as_slice(), queued.verdicts.len()), (&["far"][..], 2));
    assert!(queued.requested_at.unwrap().ends_with('Z'));
    let list: ServerList = house.ask(Method::GET, "/v1/hubs/main/servers", "main", None).await.json();
    assert_eq!(list.servers.len(), 1);
    let of_second: ServerList =
        house.ask(Method::GET, "/v1/hubs/second/servers", "second", None).await.json();
    assert!(of_second.servers.is_empty(), "another Hub sees none of it");

    let path = format!("{}?wait_s=10&now=true", house.server("main", "ada", ""));
    let ended: ServerView = house.ask(Method::DELETE, &path, "main", None).await.json();
    assert_eq!((ended.state, ended.life), (StateName::Ended, Life::Gone));
    assert_eq!(ended.end.as_ref().unwrap().reason, "cancelled");
    let again = house.ask(Method::DELETE, &house.server("main", "ada", ""), "main", None).await;
    assert_eq!(again.status, 200, "there is nothing to end, which is well");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_cancel_of_another_run_touches_nothing() {
    let house = House::new().await;
    house.start("ada", json!({})).await;
    house.until("ada", StateName::Queued).await;
    let path = format!("{}?run=01ARZ3NDEKTSV4RRFFQ69G5FAV&now=true", house.server("main", "ada", ""));
    let after: ServerView = house.ask(Method::DELETE, &path, "main", None).await.json();
    assert_eq!(after.state, StateName::Queued);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_spawn_of_a_live_server_is_given_the_token_that_it_holds() {
    let house = House::new().await;
    house.start("ada", json!({})).await;
    let mut body = start_body("spawn-2", "ada", json!({}));
    body["env"]["JUPYTERHUB_API_TOKEN"] = "another".into();
    let reply: Value =
        house.ask(Method::PUT, &house.server("main", "ada", ""), "main", Some(body)).await.json();
    assert_eq!(reply["adopted"]["hub_token"], "tok3n-of-the-server");
    assert_eq!(reply["state"].as_str().map(|_| ()), Some(()), "the server's fields stand beside it");
    assert!(!house.ask(Method::GET, "/v1/hubs/main/servers", "main", None).await.body.contains("tok3n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_site_can_take_is_refused_with_a_reason_per_site() {
    let house = House::new().await;
    let answer = house.start("ada", json!({"cores": 9})).await;
    assert_eq!((answer.status.as_u16(), answer.problem().code.as_str()), (409, "no_site"));
    assert_eq!(answer.fields(), ["far", "here"]);
    let problem = answer.problem();
    assert_eq!(problem.title, "no site can take this request");
    let of_far = &problem.problems[0].message;
    assert!(
        of_far.starts_with("<The far site>: Gives one server"),
        "users know sites by their titles: {of_far}"
    );
    let metrics = house.observe("/metrics").await.body;
    assert!(metrics.contains(r#"glidepath_refusals_total{what="start",reason="no_site"} 1"#), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_whole_servers_and_continue_after_the_last_one() {
    let house = House::new().await;
    let mut all = house.events("/v1/hubs/main/events", "main", None).await;
    assert!(all.block().await.contains(&("retry".to_owned(), "1000".to_owned())));
    let mut of_bob = house.events(&format!("{}/events", house.server("main", "bob", "")), "main", None).await;
    let mut of_second = house.events("/v1/hubs/second/events", "second", None).await;
    of_second.block().await;
    house.start("ada", json!({})).await;
    house.start("bob", json!({})).await;

    let mut last = (0, StateName::None);
    while last.1 != StateName::Queued {
        let (id, view) = all.event().await;
        let id = id.unwrap_or(last.0 + 1); // none while what is is told
        assert!(id > last.0, "ids grow");
        last = if view.user == "ada" { (id, view.state) } else { (id, last.1) };
    }
    assert_eq!(of_bob.event().await.1.user, "bob", "nobody else's");
    house.until("ada", StateName::Queued).await;
    let path = format!("{}?now=true", house.server("main", "ada", ""));
    house.ask(Method::DELETE, &path, "main", None).await;
    let mut continued = house.events("/v1/hubs/main/events", "main", Some(last.0)).await;
    let (id, _) = continued.event().await;
    assert!(id > Some(last.0), "what was told is not told again");

    let (_dir, _backends) = house.close().await;
    assert!(all.ends().await && of_second.ends().await, "a drain ends event streams");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_cut_off_before_all_was_told_hears_all_of_it_again() {
    let house = House::new().await;
    let users = ["ada", "bob", "eve"];
    for user in users {
        house.start(user, json!({})).await;
        house.until(user, StateName::Queued).await;
    }
    let mut whole = None;
    for _ in 0..2 {
        let mut all = house.events("/v1/hubs/main/events", "main", None).await;
        let (first, second, third) = (all.event().await, all.event().await, all.event().await);
        assert_eq!(
            (first.0, second.0),
            (None, None),
            "whoever has no more than these has no place to go on from"
        );
        assert!(third.0 > Some(0));
        let mut told = [first.1.user, second.1.user, third.1.user];
        told.sort();
        assert_eq!(told, users);
        whole = third.0;
    }
    let path = format!("{}/events", house.server("main", "bob", ""));
    let (id, view) = house.events(&path, "main", None).await.event().await;
    assert_eq!(
        (id, view.user.as_str(), view.state),
        (None, "bob", StateName::Queued),
        "he is not the last one told"
    );

    for user in users {
        let stop = format!("{}?now=true", house.server("main", user, ""));
        house.ask(Method::DELETE, &stop, "main", None).await;
    }
    let (id, view) = house.events(&path, "main", whole).await.event().await;
    assert!(id > whole && view.user == "bob" && view.state != StateName::Queued, "{id:?} {view:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn placement_is_explained_before_the_click() {
    let house = House::new().await;
    let ask = async |options: Value| -> PlacementReply {
        let body = json!({"user": "ada", "groups": [], "options": options});
        house.ask(Method::POST, "/v1/hubs/main/placement", "main", Some(body)).await.json()
    };
    let any = ask(json!({})).await;
    assert_eq!(any.verdicts.len(), 2);
    assert!(any.verdicts[0].fits && any.verdicts[0].chosen);
    let gpu = ask(json!({"gpus": 1, "site": "far"})).await;
    assert_eq!((gpu.verdicts[0].site.as_str(), gpu.verdicts[0].chosen), ("far", true));
    assert_eq!(gpu.verdicts[1].sentence, "Has no GPUs.", "its own reason, not that another was chosen");
    let wrong = ask(json!({"gpus": "x"})).await;
    assert_eq!((wrong.verdicts.len(), wrong.problems[0].field.as_str()), (2, "gpus"));
    let nobody = json!({"user": "", "options": {}});
    let answer = house.ask(Method::POST, "/v1/hubs/main/placement", "main", Some(nobody)).await;
    assert_eq!((answer.status.as_u16(), answer.fields()), (422, vec!["user".to_owned()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_form_is_html_with_all_text_escaped() {
    let house = House::new().await;
    let body = json!({"user": "<b>ada", "options": {"cores": "<img onerror=x>"}, "live_url": "/live"});
    let reply: Value = house.ask(Method::POST, "/v1/hubs/main/form", "main", Some(body)).await.json();
    let html = reply["html"].as_str().unwrap();
    assert!(html.contains("&lt;The far site&gt;") && html.contains("name=\"cores\""), "{html}");
    assert!(!html.contains("<img") && !html.contains("<b>"), "{html}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_users_files_are_forgotten_once_no_server_lives() {
    let house = House::new().await;
    house.start("ada", json!({})).await;
    house.until("ada", StateName::Queued).await;
    let home = format!("{}/home", house.server("main", "ada", ""));
    let refused = house.ask(Method::DELETE, &home, "main", None).await;
    assert_eq!((refused.status.as_u16(), refused.problem().code.as_str()), (409, "alive"));
    let path = format!("{}?wait_s=10&now=true", house.server("main", "ada", ""));
    house.ask(Method::DELETE, &path, "main", None).await;
    assert_eq!(house.ask(Method::DELETE, &home, "main", None).await.status, 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn monitoring_needs_no_secret_and_sees_runs_by_state() {
    let house = House::new().await;
    house.start("ada", json!({"site": "here"})).await;
    house.until("ada", StateName::Queued).await;
    assert_eq!(house.observe("/health/live").await.body, "alive\n");
    assert_eq!(house.observe("/health/ready").await.status, 200);
    assert_eq!(house.observe("/elsewhere").await.problem().status, 404);
    let metrics = glidepath_testkit::wait::until_some(house::SOON, "the start is counted", || async {
        let text = house.observe("/metrics").await.body;
        text.contains(r#"glidepath_starts_total{hub="main"} 1"#).then_some(text)
    })
    .await;
    assert!(metrics.contains(r#"glidepath_runs{site="here",state="queued"} 1"#), "{metrics}");
    assert!(metrics.contains("glidepath_links 0"), "{metrics}");
    let mut words = metrics.split(|c: char| !c.is_alphanumeric());
    assert!(!words.any(|word| word == "ada"), "no user is a label");
    let of_api = house.raw(Method::GET, "/metrics", &[], "").await;
    assert_eq!(of_api.status, 404, "each listener has its own paths");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_runs_whole_on_ipv6() {
    let house = House::listening_on("[::1]").await;
    let attach = house.attach.clone();
    for url in [&attach.api, &attach.metrics, &attach.relays["main"]] {
        let port = url.strip_prefix("http://[::1]:").unwrap_or_else(|| panic!("{url}"));
        assert!(port.parse::<u16>().unwrap() > 0, "{url}");
    }
    assert_eq!(house.start("ada", json!({"site": "here"})).await.status, 200);
    house.until("ada", StateName::Queued).await;
    let backend = &house.backends["here"];
    let file = backend.spec(backend.attempts()[0]).unwrap().dial_file;
    let file: Value = serde_json::from_str(secrecy::ExposeSecret::expose_secret(&file)).unwrap();
    let link: reqwest::Url = file["home_url"].as_str().unwrap().parse().unwrap();
    assert_eq!((link.scheme(), link.host_str(), link.path()), ("wss", Some("[::1]"), "/link"));
    let dialled = tokio::net::TcpStream::connect(("::1", link.port().unwrap())).await;
    assert!(dialled.is_ok(), "{dialled:?}");
    let answer = reqwest::get(format!("{}/user/ada/", attach.relays["main"])).await.unwrap();
    assert_eq!(answer.status(), 503, "the relay knows the server and says that it is not ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_counted_goes_on_after_the_store_could_not_be_read() {
    let house = House::new().await;
    house.start("ada", json!({})).await;
    let stop = format!("{}?wait_s=10&now=true", house.server("main", "ada", ""));
    house.ask(Method::DELETE, &stop, "main", None).await;
    house.database("ALTER TABLE events RENAME TO away").await;
    let mut cut = house.events("/v1/hubs/main/events", "main", None).await;
    cut.block().await;
    assert!(cut.ends().await, "no reader is told what is");
    house.database("ALTER TABLE away RENAME TO events").await;
    house.start("bob", json!({})).await;
    glidepath_testkit::wait::until_some(house::SOON, "the start is counted", || async {
        let text = house.observe("/metrics").await.body;
        text.contains(r#"glidepath_starts_total{hub="main"} 2"#).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_run_that_does_not_read_is_left_out_and_its_hub_hears_of_all_others() {
    let house = House::new().await;
    for user in ["ada", "bob", "eve"] {
        house.start(user, json!({})).await;
        let stop = format!("{}?wait_s=10&now=true", house.server("main", user, ""));
        house.ask(Method::DELETE, &stop, "main", None).await;
    }
    let run = house.view("eve").await.run.unwrap();
    let (dir, backends) = house.close().await;
    let log = Log::begin();
    let spoil = "UPDATE runs SET view = json_set(view, '$.state', 'dreaming') WHERE server_key = 'main.eve.'";
    house::database(dir.path(), spoil).await;
    let house = House::again(dir, backends).await;
    let mut all = house.events("/v1/hubs/main/events", "main", None).await;
    let first = all.event().await;
    assert_eq!((first.0, first.1.user.as_str()), (None, "ada"));
    let last = all.event().await;
    assert!(last.0.is_some() && last.1.user == "bob", "the last that reads has the id: {last:?}");
    let fresh = start_body("spawn-2", "ada", json!({}));
    house.ask(Method::PUT, &house.server("main", "ada", ""), "main", Some(fresh)).await;
    assert_eq!(all.event().await.1.user, "ada", "and the stream goes on");
    let lines = log.of("refusal", "record", "untold");
    assert_eq!((lines.len(), lines[0]["at"].as_str()), (1, Some(run.as_str())), "{lines:?}");
    let text = house.observe("/metrics").await.body;
    assert!(text.contains(r#"glidepath_refusals_total{what="record",reason="unreadable"} 1"#), "{text}");
    let untold =
        |line: &&str| line.starts_with(r#"glidepath_refusals_total{what="record",reason="untold"} "#);
    assert!(!text.lines().find(untold).unwrap().ends_with(" 0"), "each stream left it out");
}

#[tokio::test]
async fn each_refusal_of_the_api_is_one_line_and_one_count() {
    let log = Log::begin();
    let house = House::new().await;
    let server = house.server("main", "ada", "");
    house.start("ada", json!({"cores": 9})).await;
    house.start("ada", json!({"site": "fra"})).await;
    house.start("ada", json!({})).await;
    house.raw(Method::GET, &server, &[("authorization", "Bearer wrong-and-secret")], "").await;
    house.ask(Method::GET, "/v1/hubs/main/servers/second.ada.", "main", None).await;
    house.ask(Method::DELETE, &format!("{server}?now=perhaps"), "main", None).await;
    house.ask(Method::DELETE, &format!("{server}/home"), "main", None).await;
    house.database("ALTER TABLE runs RENAME TO away").await;
    house.start("bob", json!({})).await;
    house.database("ALTER TABLE away RENAME TO runs").await;
    let text = house.observe("/metrics").await.body;
    for (what, reason, level, key, why) in [
        ("start", "no_site", "INFO", "main.ada.", "far: <The far site>: Gives one server"),
        ("start", "invalid", "INFO", "main.ada.", "options.site: "),
        ("start", "store", "ERROR", "main.bob.", "the service cannot write down the request"),
        ("api", "unauthenticated", "WARN", "main.ada.", "a valid secret is needed"),
        ("api", "not_found", "INFO", "second.ada.", "there is no such server"),
        ("api", "malformed", "INFO", "main.ada.", "now: "),
        ("api", "alive", "INFO", "main.ada.", "the server is still alive"),
    ] {
        let lines = log.of("refusal", what, reason);
        assert_eq!(lines.len(), 1, "{what} {reason}: {lines:?}");
        let told = (lines[0]["level"].as_str(), lines[0]["server.key"].as_str(), lines[0]["hub"].as_str());
        assert_eq!(told, (Some(level), Some(key), Some("main")), "{}", lines[0]);
        assert!(lines[0]["why"].as_str().unwrap().starts_with(why), "{}", lines[0]);
        let counted = format!(r#"glidepath_refusals_total{{what="{what}",reason="{reason}"}} 1"#);
        assert!(text.lines().any(|line| line == counted), "{counted}");
    }
    assert!(!log.lines().iter().any(|line| line.to_string().contains("wrong-and-secret")));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_is_in_the_operators_table() {
    let house = House::new().await;
    house.start("ada", json!({})).await;
    house.start("bob", json!({"cores": 9})).await;
    let stop = format!("{}?wait_s=10&now=true", house.server("main", "ada", ""));
    house.ask(Method::DELETE, &stop, "main", None).await;
    let page = glidepath_testkit::wait::until_some(house::SOON, "the end is counted", || async {
        let text = house.observe("/metrics").await.body;
        text.contains("glidepath_ends_total{").then_some(text)
    })
    .await;
    let mut there: Vec<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(|line| {
            let (name, kind) = line.split_once(' ').unwrap();
            let ending = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            format!("{name}{ending}")
        })
        .collect();
    there.sort();
    let manual = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operator.md");
    let manual = std::fs::read_to_string(manual).unwrap();
    let mut told: Vec<String> = manual
        .lines()
        .filter_map(|line| line.strip_prefix("| `glidepath_"))
        .map(|line| format!("glidepath_{}", line.split('`').next().unwrap()))
        .collect();
    told.sort();
    assert_eq!(told, there);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_cannot_write_says_that_it_is_not_ready_until_it_can() {
    let house = House::new().await;
    // What a full disk does: the database gives up the whole transaction.
    house
        .database("CREATE TRIGGER full BEFORE INSERT ON events BEGIN SELECT RAISE(ROLLBACK, 'full'); END")
        .await;
    let refused = house.start("ada", json!({})).await;
    assert_eq!((refused.status.as_u16(), refused.problem().code.as_str()), (503, "store"));
    let unready = house.observe("/health/ready").await;
    let told = "the database cannot be read or written\n";
    assert_eq!((unready.status.as_u16(), unready.body.as_str()), (503, told));
    assert_eq!(house.view("ada").await.state, StateName::None, "nothing was started");
    house.database("DROP TRIGGER full").await;
    assert_eq!(house.observe("/health/ready").await.status, 200);
    assert_eq!(house.start("ada", json!({})).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn version_and_document_need_no_secret() {
    let house = House::new().await;
    let version: Value = house.raw(Method::GET, "/v1/version", &[], "").await.json();
    assert_eq!((version["software"].as_str(), version["api"].as_u64()), (Some("glidepath-spawner"), Some(1)));
    let document: Value = house.raw(Method::GET, "/openapi.json", &[], "").await.json();
    assert!(document["paths"]["/v1/hubs/{hub}/servers/{key}"]["put"].is_object());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_ports_runs_and_the_attach_file_tells_who_serves() {
    use std::os::unix::fs::PermissionsExt as _;
    let house = House::new().await;
    let file = house.dir.path().join("state/service.json");
    let told: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(told["pid"].as_u64(), Some(u64::from(std::process::id())));
    assert_eq!(told["relays"]["main"].as_str(), Some(house.attach.relays["main"].as_str()));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let run = house.start("ada", json!({})).await.json::<ServerView>().run;
    house.until("ada", StateName::Queued).await;
    let before = house.attach.clone();

    let (dir, backends) = house.close().await;
    assert!(!dir.path().join("state/service.json").exists(), "a clean end says that nobody serves");
    let house = House::again(dir, backends).await;
    let ports = |attach: &glidepath_spawner::app::Attach| {
        (attach.api.clone(), attach.link.clone(), attach.relays.clone())
    };
    assert_eq!(ports(&before), ports(&house.attach));
    let after = house.until("ada", StateName::Queued).await;
    assert_eq!(after.run, run);
    assert_eq!(
        house.backends.values().map(|backend| backend.made_in_all()).sum::<usize>(),
        1,
        "submitted once"
    );
}
