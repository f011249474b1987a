//! `runs`, `run` and `doctor` beside a service with runs, and without it.

use std::process::Command;

use glidepath_api_types::spawner::StateName;
use glidepath_testkit::wait::until_some;
use reqwest::Method;
use serde_json::{Value, json};

use crate::house::{self, House, SOON};

fn program(dir: &std::path::Path, command: &[&str]) -> (Option<i32>, String, String) {
    let mut program = Command::new(env!("CARGO_BIN_EXE_glidepath-spawner"));
    program.arg("--config").arg(dir.join("config.toml")).args(command).env("TZ", "Europe/Berlin");
    let output = program.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_runs_and_the_story_of_one_while_the_service_runs_and_when_it_does_not() {
    let house = House::new().await;
    house.start("ada", json!({"site": "here", "walltime_min": 60})).await;
    house.start("bob", json!({"site": "far"})).await;
    house.until("bob", StateName::Queued).await;
    house.backends["far"].refuse_submits(Some("no account for eve"));
    house.start("eve", json!({"site": "far"})).await;
    let ada = house.until("ada", StateName::Queued).await.run.unwrap();
    let eve = house.until("eve", StateName::Ended).await.run.unwrap();
    let dir = house.dir.path().to_owned();
    let told = |command: &[&str]| {
        let (code, out, err) = program(&dir, command);
        assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
        out
    };

    let table = told(&["runs"]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(
        lines[0].starts_with("RUN                         HUB   USER/SERVER  SITE  STATE   FOR "),
        "{table}"
    );
    assert!(
        lines.len() == 3 && lines[1].starts_with(&format!("{ada}  main  ada          here  queued  ")),
        "{table}"
    );
    assert!(lines[2].contains("  main  bob          far   queued  "), "{table}");
    assert_eq!(told(&["runs", "--ended"]).lines().count(), 4);
    assert_eq!(told(&["runs", "--ended", "--user", "eve"]).lines().count(), 2);
    assert_eq!(told(&["runs", "--site", "here"]).lines().count(), 2);
    assert_eq!(told(&["runs", "--state", "ready,ended"]).lines().count(), 2);
    assert_eq!(told(&["runs", "--hub", "second"]), "no run is so\n");
    assert_eq!(told(&["runs", "--since", "1h"]).lines().count(), 3);
    assert_eq!(told(&["runs", "--since", "0s"]), "no run is so\n");
    let all: Value = serde_json::from_str(&told(&["runs", "--json", "--user", "ada"])).unwrap();
    assert_eq!(
        (&all[0]["run"], &all[0]["state"], &all[0]["site"]),
        (&json!(ada), &json!("queued"), &json!("here"))
    );
    let (code, _, err) = program(&dir, &["runs", "--state", "dreaming"]);
    assert!(code == Some(2) && err.contains("there is no state \"dreaming\"; there are requested"), "{err}");

    let story = told(&["run", &eve]);
    for line in [
        &format!("run {eve} of eve at hub main, their server\nis ended since 20"),
        "  far (can take it): ",
        "  here (cannot): You chose another site.",
        "  1 at far, begun 20",
        ": no job\n    failed: <The far site> refused the request: no account for eve",
        "  no agent was heard",
        "  requested, for 0 s",
        "submitting, for ",
        ": refused\n  <The far site> refused the request: no account for eve",
        "nothing is left of it at any site",
    ] {
        assert!(story.contains(line), "{line}\nis not in\n{story}");
    }
    let offset = |line: &str| line.contains(" +01:00") || line.contains(" +02:00");
    assert!(story.lines().nth(1).is_some_and(offset), "local time with its offset: {story}");
    let of_ada = told(&["run", &ada.to_lowercase()]);
    assert!(of_ada.contains("is queued since ") && of_ada.contains(": job fake-"), "{of_ada}");
    let of_ada: Value = serde_json::from_str(&told(&["run", &ada, "--json"])).unwrap();
    assert_eq!(
        (&of_ada["state"], &of_ada["walltime_s"], &of_ada["attempts"][0]["number"]),
        (&json!("queued"), &json!(3600), &json!(1))
    );
    assert_eq!(of_ada["happened"][0]["what"], json!({"reached": "requested"}));

    let (code, _, err) = program(&dir, &["run", "01ARZ3NDEKTSV4RRFFQ69G5FAV"]);
    assert!(
        code == Some(1) && err.contains("no run that is kept begins with 01ARZ3NDEKTSV4RRFFQ69G5FAV"),
        "{err}"
    );
    let (code, _, err) = program(&dir, &["run", "0"]);
    assert!(code == Some(1) && err.contains("3 runs begin with 0, the last of them "), "{err}");
    let (code, _, err) = program(&dir, &["run", "../x"]);
    assert!(code == Some(1) && err.contains("is no run's id"), "{err}");

    house
        .database("UPDATE runs SET settled = 0, doc = json_set(doc, '$.run.since', 1) WHERE server_key = 'main.eve.'")
        .await;
    let (_, found, _) = program(&dir, &["doctor"]);
    let stuck = format!("warning  runs: ended, and something is left of them at a site: {eve}\n");
    assert!(found.contains(&stuck), "{found}");

    let (dir, _) = house.close().await;
    let config = std::fs::read_to_string(dir.path().join("config.toml")).unwrap();
    let bob = lines[2].split(' ').next().unwrap();
    std::fs::write(dir.path().join("config.toml"), &config[..config.rfind("[[site]]").unwrap()]).unwrap();
    let (code, found, _) = program(dir.path(), &["doctor"]);
    let homeless = "error    runs: have something left at a site that the config does not have: ";
    assert!(code == Some(2) && found.contains(&format!("{homeless}{bob}")), "{found}");
    let dead = program(dir.path(), &["runs", "--ended"]);
    assert_eq!((dead.0, dead.1.lines().count()), (Some(0), 4), "{dead:?}");
    std::fs::write(dir.path().join("config.toml"), "broken = [").unwrap();
    let state = dir.path().join("state").display().to_string();
    let by_folder = program(dir.path(), &["--state-dir", &state, "run", &ada]);
    assert!(by_folder.0 == Some(0) && by_folder.1.contains("is queued since "), "{by_folder:?}");
    for (_, out, err) in [dead, by_folder] {
        assert!(!format!("{out}{err}").contains("tok3n"), "no secret is shown");
    }
    house::database(dir.path(), "UPDATE runs SET doc = json_remove(doc, '$.diary', '$.agent')").await;
    let old = program(dir.path(), &["--state-dir", &state, "run", &ada]);
    assert!(old.1.contains("the times of its states were not kept (an older version wrote it)"), "{old:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_run_whose_site_is_silent_tells_what_is_left_and_the_doctor_tells_of_the_site() {
    let house = House::new().await;
    house.start("ada", json!({"site": "here"})).await;
    let run = house.until("ada", StateName::Queued).await.run.unwrap();
    house.backends["here"].silent(true);
    house.ask(Method::DELETE, &format!("{}?now=true", house.server("main", "ada", "")), "main", None).await;
    let dir = house.dir.path().to_owned();
    let found = until_some(SOON, "the doctor names the site", || async {
        let (_, out, _) = program(&dir, &["doctor"]);
        out.contains("warning  site: a site does not list its jobs (1 now)").then_some(out)
    })
    .await;
    assert!(found.contains("→ see whether the site's batch system answers"), "{found}");
    until_some(SOON, "the story tells of it too", || async {
        let (_, out, _) = program(&dir, &["run", &run]);
        (out.contains("is stopping since ") && out.contains("the site does not answer since ")).then_some(())
    })
    .await;
}
