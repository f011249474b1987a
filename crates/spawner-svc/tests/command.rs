//! The program as an operator runs it: what it says, and with which code it ends.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use glidepath_testkit::postgres::Cluster;
use serde_json::Value;

#[path = "command/half_open.rs"]
mod half_open;
#[path = "command/place.rs"]
mod place;

use place::{PROGRAM, Place};

/// Nothing may be left in the folder that a half-made start would leave.
fn nothing_serves(state: &Path) {
    assert!(!state.join("service.json").exists());
}

#[test]
fn check_says_that_a_right_config_is_right_and_changes_nothing() {
    let place = Place::new();
    let (code, out, err) = place.run(&["check"]);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    assert!(out.ends_with("HERE/config.toml is right\n"), "{out}");
    assert!(!place.path("state").exists() && !place.path("work").exists());
}

#[test]
fn check_tells_every_problem_of_the_file_at_once() {
    let place = Place::new();
    place.write("stat_dir = \"x\"\nlisten.api = \"here\"\nlog.level = \"loud\"\n");
    let (code, _, err) = place.run(&["check"]);
    assert_eq!(code, Some(2));
    for line in [
        "stat_dir: there is no such key; did you mean state_dir?",
        "listen.api: must be an address and a port, like 127.0.0.1:8000 or [::1]:8000",
        "log.level: must be trace, debug, info, warn, error or off, or a list like warn,hyper=off",
    ] {
        assert!(err.contains(line), "{line}\nis not in\n{err}");
    }
}

#[test]
fn check_tells_what_the_machine_lacks() {
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    fs::write(place.path("file"), "").unwrap();
    place.write(&format!("state_dir = \"file/state\"\nlisten.metrics = \"{address}\"\n"));
    fs::remove_file(place.path("glidepath-agent")).unwrap();
    let (code, _, err) = place.run(&["check"]);
    assert_eq!(code, Some(2));
    assert_eq!(
        err,
        format!(
            "glidepath-spawner: state_dir: HERE/file is no folder\n\
             agent.{}: cannot use the agent's binary HERE/glidepath-agent: it does not exist; give its path\n\
             listen.metrics: cannot listen on {address}: another process listens there\n",
            std::env::consts::ARCH
        )
    );
}

/// A library that tells of every folder named `remote` that it lies on NFS.
fn network_disk(place: &Place) -> PathBuf {
    let (source, library) = (place.path("remote.c"), place.path("remote.so"));
    let text = r#"
        #include <string.h>
        #include <sys/syscall.h>
        #include <sys/vfs.h>
        #include <unistd.h>
        int statfs(const char *path, struct statfs *into) {
            int done = (int)syscall(SYS_statfs, path, into);
            if (done == 0 && strstr(path, "/remote")) into->f_type = 0x6969;
            return done;
        }
        int statfs64(const char *path, struct statfs64 *into) { return statfs(path, (struct statfs *)into); }
    "#;
    fs::write(&source, text).unwrap();
    let made = Command::new("cc")
        .args(["-D_GNU_SOURCE", "-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&source)
        .status();
    assert!(made.unwrap().success());
    library
}

#[test]
fn a_state_folder_on_a_network_file_system_is_refused_before_anything_is_made_there() {
    let place = Place::new();
    place.write("state_dir = \"remote/state\"\n");
    fs::create_dir(place.path("remote")).unwrap();
    let library = network_disk(&place);
    let env = [("LD_PRELOAD", library.as_path())];
    let why = "the state folder HERE/remote/state lies on a network file system (NFS), where a database can be damaged: \
               choose a folder on a local disk\n";
    let (code, out, err) = place.run_with(&["serve"], &env);
    assert_eq!((code, out.as_str(), err), (Some(1), "", format!("glidepath-spawner: {why}")));
    let (code, _, err) = place.run_with(&["check"], &env);
    assert_eq!((code, err), (Some(2), format!("glidepath-spawner: state_dir: {why}")));
    assert_eq!(fs::read_dir(place.path("remote")).unwrap().count(), 0, "nothing was made there");
    assert_eq!(place.run(&["check"]).0, Some(0), "the same folder on a local disk");
}

#[test]
fn check_looks_into_the_certificate_and_at_the_links_host() {
    let place = Place::new();
    let pair = |name: &str| rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let (ours, other) = (pair("glide.example.org"), pair("other.example.org"));
    fs::write(place.path("cert.pem"), ours.cert.pem()).unwrap();
    let key = |pem: &str| {
        fs::write(place.path("key.pem"), pem).unwrap();
        fs::set_permissions(place.path("key.pem"), fs::Permissions::from_mode(0o600)).unwrap();
    };
    place.write(
        "link.url = \"wss://glide.example.org/link\"\nlink.tls = { cert = \"cert.pem\", key = \"key.pem\" }\n",
    );
    key(&other.signing_key.serialize_pem());
    let (code, _, err) = place.run(&["check"]);
    assert_eq!(code, Some(2));
    let told = "link.tls: HERE/key.pem does not fit the certificate in HERE/cert.pem";
    assert!(err.contains(told), "{err}");
    key(&ours.signing_key.serialize_pem());
    assert_eq!(place.run(&["check"]).0, Some(0));

    place.write("link.url = \"wss://glide..example/link\"\n");
    let (code, _, err) = place.run(&["check"]);
    assert_eq!(code, Some(2));
    let told = "link.url: no certificate can be made for link host \"glide..example\"";
    assert!(err.contains(told), "{err}");
}

#[test]
fn a_database_that_lets_nobody_in_is_told_by_check_and_at_the_start_without_its_password() {
    let cluster = Cluster::start(&[]);
    cluster.make("glide", "the-r1ght-one");
    let place = Place::new();
    place.write("store.url_file = \"store.url\"\n");
    let written = |text: &str| {
        fs::write(place.path("store.url"), text).unwrap();
        fs::set_permissions(place.path("store.url"), fs::Permissions::from_mode(0o600)).unwrap();
    };
    let refused = |command: &str, code: i32, words: &str| {
        let (ended, out, err) = place.run(&[command]);
        assert_eq!(ended, Some(code), "{out}{err}");
        assert!(err.contains(words), "{words}\nis not in\n{err}");
        assert_eq!(
            (err.lines().count(), err.contains("s3cret") || out.contains("s3cret")),
            (1, false),
            "{err}"
        );
    };
    written("postgresql://glide:s3cret@/glide");
    refused("check", 2, "store.url_file: must be a URL like postgresql://USER:PASSWORD@HOST/DATABASE");
    written(&cluster.url("glide:s3cret", "glide"));
    let why = "the server refuses its user or password (password authentication failed for user \"glide\")";
    refused("check", 2, &format!("store.url_file: {why}"));
    refused("serve", 1, &format!("the database could not be opened: {why}"));
    written(&cluster.url("glide:the-r1ght-one", "glide"));
    assert_eq!(place.run(&["check"]).0, Some(0));
    assert_eq!(
        cluster.sql("glide", "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").trim(),
        "0"
    );
    let serving = place.serve();
    assert_eq!(place.run(&["check"]).0, Some(0), "a check beside a running service");
    // What looks into it from beside: doctor and run.
    let (code, out, err) = place.run(&["doctor", "--json"]);
    assert!(code.is_some_and(|code| code < 3) && err.is_empty(), "{code:?} {err}");
    let found: Vec<Value> = serde_json::from_str(&out).unwrap();
    assert!(found.iter().all(|one| !one["about"].as_str().unwrap().starts_with("store")), "{out}");
    let (code, _, err) = place.run(&["run", "01M8A8Z4N6"]);
    assert_eq!(code, Some(1));
    assert!(err.contains("01M8A8Z4N6") && !err.contains("function"), "{err}");
    assert_eq!(serving.end(), Some(0));
    assert!(!place.path("state/glidepath.db").exists());
    nothing_serves(&place.path("state"));
}

#[test]
fn each_line_of_a_log_for_machines_is_json_with_the_same_fields() {
    let place = Place::new();
    place.write("log.format = \"json\"\n");
    let serving = place.serve();
    let attach: Value = serde_json::from_slice(&fs::read(place.path("state/service.json")).unwrap()).unwrap();
    assert_eq!(serving.end(), Some(0));
    let log = fs::read_to_string(place.path("log")).unwrap();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for line in &lines {
        for field in ["timestamp", "level", "target", "message"] {
            assert!(line[field].is_string(), "{field} in {line}");
        }
    }
    let ready = lines.iter().find(|line| line["message"] == "ready").unwrap();
    assert_eq!((ready["level"].as_str(), &ready["api"]), (Some("INFO"), &attach["api"]));
}

#[test]
fn a_service_that_cannot_start_says_one_sentence_and_leaves_nothing_half_made() {
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    place.write(&format!("listen.link = \"{address}\"\n"));
    let (code, out, err) = place.run(&[]);
    let told = format!(
        "glidepath-spawner: listen.link: cannot listen on {address}: another process listens there\n"
    );
    assert_eq!((code, out.as_str(), err.as_str()), (Some(1), "", told.as_str()));
    nothing_serves(&place.path("state"));

    fs::write(place.path("file"), "").unwrap();
    place.write("state_dir = \"file/state\"\n");
    let (code, _, err) = place.run(&["serve"]);
    assert_eq!(code, Some(1));
    assert!(err.starts_with("glidepath-spawner: the state folder HERE/file/state cannot be used: "), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
}

#[test]
fn a_missing_config_is_told() {
    let place = Place::new();
    fs::remove_file(place.path("config.toml")).unwrap();
    let (code, _, err) = place.run(&["check"]);
    let told = "glidepath-spawner: HERE/config.toml: cannot be read: it does not exist\n";
    assert_eq!((code, err.as_str()), (Some(2), told));
    let output = Command::new(PROGRAM).arg("serve").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn one_service_per_state_folder_and_a_kind_end_is_code_0() {
    let place = Place::new();
    place.write("listen.api = \"127.0.0.1:0\"\n");
    let serving = place.serve();
    assert_eq!(place.run(&["check"]).0, Some(0), "a check beside a running service");
    let attach: Value = serde_json::from_slice(&fs::read(place.path("state/service.json")).unwrap()).unwrap();
    assert_eq!(attach["pid"].as_u64(), Some(u64::from(serving.0.id())));

    let (code, _, err) = place.run(&[]);
    let told = format!(
        "glidepath-spawner: the state folder HERE/state cannot be used: another process (pid {}) uses this folder\n",
        serving.0.id()
    );
    assert_eq!((code, err.as_str()), (Some(1), told.as_str()));
    assert!(place.path("state/service.json").exists(), "the refused one touched nothing");

    for entry in fs::read_dir(place.path("state")).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode();
        let folder = fs::metadata(place.path("state")).unwrap().permissions().mode();
        assert!(folder & 0o077 == 0 || mode & 0o077 == 0, "others can read {:?}", entry.path());
    }
    assert_eq!(serving.end(), Some(0));
    nothing_serves(&place.path("state"));
}

#[test]
fn the_document_and_the_version_are_printed() {
    let output = Command::new(PROGRAM).arg("openapi").output().unwrap();
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), document["openapi"].as_str()), (Some(0), Some("3.1.0")));
    let output = Command::new(PROGRAM).arg("--version").output().unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap().trim(),
        format!("glidepath-spawner {}", env!("CARGO_PKG_VERSION"))
    );
}
