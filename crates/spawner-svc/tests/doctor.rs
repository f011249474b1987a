//! `doctor`: each thing that can be wrong with a deployment is broken on purpose, and named.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

#[path = "command/place.rs"]
mod place;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};

use place::Place;
use serde_json::Value;

/// A Hub's API that answers as it is told.
struct Hub {
    address: SocketAddr,
    says: Arc<Mutex<(String, jiff::SignedDuration)>>,
}

impl Hub {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let says = Arc::new(Mutex::new((r#"{"version": "6.0.0"}"#.to_owned(), jiff::SignedDuration::ZERO)));
        let said = says.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.read(&mut [0; 4096]);
                let (body, late) = said.lock().unwrap().clone();
                let at = (jiff::Timestamp::now() - late).to_zoned(jiff::tz::TimeZone::UTC);
                let date = at.strftime("%a, %d %b %Y %H:%M:%S GMT");
                let head = format!("HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: {}\r\n", body.len());
                let _ = stream.write_all(format!("{head}Connection: close\r\n\r\n{body}").as_bytes());
            }
        });
        Self { address, says }
    }
}

/// A deployment in which nothing is wrong, but that no service runs.
struct Ward {
    place: Place,
    hub: Hub,
}

impl Ward {
    fn new() -> Self {
        let ward = Self { place: Place::new(), hub: Hub::start() };
        ward.agent(&format!("glidepath-agent {}", env!("CARGO_PKG_VERSION")), &["-static"]);
        ward.config("", |text| text);
        ward
    }

    /// Writes the config, changed.
    fn config(&self, first: &str, change: impl Fn(String) -> String) {
        self.place.write(first);
        let path = self.place.path("config.toml");
        let text = fs::read_to_string(&path).unwrap();
        let text = text.replace("http://127.0.0.1:9", &format!("http://{}", self.hub.address));
        fs::write(path, change(text)).unwrap();
    }

    /// A program in the agent's place that says this.
    fn agent(&self, says: &str, flags: &[&str]) {
        let source = self.place.path("agent.c");
        fs::write(&source, format!("#include <stdio.h>\nint main(void) {{ puts(\"{says}\"); }}\n")).unwrap();
        let mut cc = Command::new("cc");
        cc.args(flags).arg("-o").arg(self.place.path("glidepath-agent")).arg(source);
        assert!(cc.status().unwrap().success());
    }

    /// The exit code, and each finding as `weight about: found`.
    fn seen(&self) -> (Option<i32>, Vec<String>) {
        let (code, out, err) = self.place.run(&["doctor", "--json"]);
        assert_eq!(err, "");
        let findings: Vec<Value> = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}"));
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let line = |one: &Value| {
            format!("{} {}: {}", text(&one["weight"]), text(&one["about"]), text(&one["found"]))
        };
        let lines = findings.iter().filter(|one| one["weight"] != "note").map(line);
        (code, lines.filter(|line| !line.starts_with("warning open files: 2")).collect())
    }

    /// What is broken is named, with this weight, and nothing else is.
    fn names(&self, told: &[&str]) {
        let (code, seen) = self.seen();
        let dead = "warning service: no service runs with this state folder";
        let seen: Vec<&String> = seen.iter().filter(|line| !line.starts_with(dead)).collect();
        assert_eq!(seen.len(), told.len(), "{seen:#?}");
        for one in told {
            assert!(seen.iter().any(|line| line.starts_with(one)), "{one}\nis not in\n{seen:#?}");
        }
        let errors = seen.iter().any(|line| line.starts_with("error"));
        assert_eq!(code, Some(if errors { 2 } else { 1 }), "warnings at least: no service runs");
    }
}

/// Does something to the database.
fn database(ward: &Ward, sql: &'static str) {
    let path = ward.place.path("state/glidepath.db");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        use sqlx::ConnectOptions as _;
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
        sqlx::raw_sql(sql).execute(&mut options.connect().await.unwrap()).await.unwrap();
    });
}

#[test]
fn a_deployment_that_is_well_has_no_finding_and_code_0() {
    let ward = Ward::new();
    let serving = ward.place.serve();
    let (code, seen) = ward.seen();
    assert_eq!(seen, [""; 0]);
    let few_files = ward.place.run(&["doctor"]).1.contains("open files: ");
    assert_eq!(code, Some(i32::from(few_files)));
    let (_, text, _) = ward.place.run(&["doctor"]);
    assert!(
        text.contains("note     link.url: whether a site's nodes reach it can only be seen from there"),
        "{text}"
    );
    assert!(text.contains("0 errors, "), "{text}");
    assert_eq!(serving.end(), Some(0));
    let (code, seen) = ward.seen();
    assert_eq!((code, seen.len()), (Some(1), 1), "{seen:?}");
    assert_eq!(seen[0], "warning service: no service runs with this state folder");
}

#[test]
fn a_config_that_does_not_read_is_named_key_by_key() {
    let ward = Ward::new();
    ward.config("stat_dir = \"x\"\n", |text| text);
    let (code, seen) = ward.seen();
    assert_eq!(code, Some(2));
    assert_eq!(seen, ["error stat_dir: there is no such key; did you mean state_dir?"]);
}

#[test]
fn a_hub_that_is_away_elsewhere_or_in_another_time_is_named() {
    let ward = Ward::new();
    ward.config("", |text| text.replace(&ward.hub.address.to_string(), "127.0.0.1:9"));
    ward.names(&["error hub \"main\".api_url: http://127.0.0.1:9/hub/api cannot be reached: "]);
    ward.config("", |text| text);
    "<html>".clone_into(&mut ward.hub.says.lock().unwrap().0);
    ward.names(&["error hub \"main\".api_url: at http://127.0.0.1:"]);
    ward.hub.says.lock().unwrap().0 = r#"{"version": "5.4.6"}"#.to_owned();
    ward.hub.says.lock().unwrap().1 = jiff::SignedDuration::from_secs(20);
    ward.names(&["warning hub \"main\": its clock is 2"]);
    ward.hub.says.lock().unwrap().1 = jiff::SignedDuration::from_secs(-300);
    ward.names(&["error hub \"main\": its clock is "]);
}

#[test]
fn an_agent_of_another_kind_version_or_machine_is_named() {
    let ward = Ward::new();
    let about = format!("agent.{}: HERE/glidepath-agent", std::env::consts::ARCH);
    ward.agent(&format!("glidepath-agent {}", env!("CARGO_PKG_VERSION")), &[]);
    ward.names(&[&format!("warning {about} needs libraries of the machine")]);
    ward.agent("glidepath-agent 0.0.1", &["-static"]);
    ward.names(&[&format!("error {about} says \"glidepath-agent 0.0.1\", the service is ")]);
    let path = ward.place.path("glidepath-agent");
    let mut program = fs::read(&path).unwrap();
    program[18] = if program[18] == 62 { 183 } else { 62 };
    fs::write(&path, program).unwrap();
    ward.names(&[&format!("error {about} is a program for another architecture")]);
    fs::write(&path, "#!/bin/sh\n").unwrap();
    ward.names(&[&format!("error {about} is no program of Linux")]);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let shown = format!("error {about}");
    ward.names(&[&shown, &shown]); // by `check` and by what it is
}

#[test]
fn a_state_folder_that_others_may_enter_or_own_is_named() {
    let ward = Ward::new();
    ward.place.serve().end();
    let state = ward.place.path("state");
    fs::set_permissions(&state, fs::Permissions::from_mode(0o755)).unwrap();
    ward.names(&["error state_dir: others may enter HERE/state (mode 755)"]);
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(state.join("glidepath.db"), Some(4242), None).unwrap();
    ward.names(&["error state_dir: glidepath.db in it belongs to account 4242, the folder to 0"]);
}

/// A small disk, until it is dropped.
struct Disk(PathBuf);

impl Disk {
    fn of(size: &str, at: PathBuf) -> Self {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size},mode=700"), "tmpfs"]).arg(&at);
        assert!(mount.status().unwrap().success(), "this needs root");
        Self(at)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_state_folder_with_little_room_is_named() {
    let ward = Ward::new();
    fs::create_dir(ward.place.path("state")).unwrap();
    let small = Disk::of("50m", ward.place.path("state"));
    ward.names(&["error state_dir: 50 MB are free for HERE/state"]);
    drop(small);
    let _larger = Disk::of("500m", ward.place.path("state"));
    ward.names(&["warning state_dir: 500 MB are free for HERE/state"]);
}

#[test]
fn a_certificate_that_ends_soon_or_is_for_another_host_is_named() {
    let ward = Ward::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = |name: &str, days: i64| {
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let since_1970 = std::time::UNIX_EPOCH.elapsed().unwrap();
        let now = rcgen::date_time_ymd(1970, 1, 1) + since_1970;
        params.not_before = now - std::time::Duration::from_secs(86_400);
        params.not_after = now + std::time::Duration::from_secs(days.unsigned_abs() * 86_400);
        fs::write(ward.place.path("cert.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    };
    fs::write(ward.place.path("key.pem"), key.serialize_pem()).unwrap();
    fs::set_permissions(ward.place.path("key.pem"), fs::Permissions::from_mode(0o600)).unwrap();
    let first = "link.url = \"wss://glide.example.org/link\"\nlink.tls = { cert = \"cert.pem\", key = \"key.pem\" }\n";
    ward.config(first, |text| text);
    certificate("glide.example.org", 90);
    ward.names(&[]);
    certificate("glide.example.org", 20);
    ward.names(&["warning link.tls.cert: HERE/cert.pem ends within a month"]);
    certificate("glide.example.org", 3);
    ward.names(&["error link.tls.cert: HERE/cert.pem ends within a week"]);
    certificate("other.example.org", 90);
    ward.names(&["error link.tls.cert: HERE/cert.pem is not for glide.example.org, which agents dial"]);
}

#[test]
fn a_port_that_another_process_has_is_named() {
    let ward = Ward::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    ward.config(&format!("listen.link = \"{address}\"\n"), |text| text);
    ward.names(&[&format!("error listen.link: cannot listen on {address}: another process listens there")]);
}

#[test]
fn too_few_open_files_for_the_servers_that_sites_take_are_named() {
    let ward = Ward::new();
    ward.config("", |text| text + "limits = { servers = 400000000 }\n");
    let (_, out, _) = ward.place.run(&["doctor"]);
    assert!(
        out.contains("warning  open files: ")
            && out.contains("6400000000 are needed\n         → LimitNOFILE="),
        "{out}"
    );
}

#[test]
fn a_damaged_database_and_runs_that_do_not_read_are_named() {
    let ward = Ward::new();
    ward.place.serve().end();
    database(
        &ward,
        "INSERT INTO runs VALUES ('01ARZ3NDEKTSV4RRFFQ69G5FAV', 'main', 'main.ada.', 's', 'ready', 1, 0, 1, NULL, '{}', '{}')",
    );
    ward.names(&["error runs: do not read: 01ARZ3NDEKTSV4RRFFQ69G5FAV"]);
    let (code, out, _) = ward.place.run(&["runs"]);
    assert!(
        code == Some(0)
            && out.contains("01ARZ3NDEKTSV4RRFFQ69G5FAV  main  ada")
            && out.contains("does not fit"),
        "{out}"
    );
    let (code, _, err) = ward.place.run(&["run", "01ARZ3"]);
    assert!(code == Some(1) && err.contains("of main.ada. (ready) does not read"), "{err}");
    let path = ward.place.path("state/glidepath.db");
    let mut bytes = fs::read(&path).unwrap();
    let page = 4096;
    bytes[page + 8..page * 3].fill(0x5a);
    fs::write(&path, bytes).unwrap();
    let (code, seen) = ward.seen();
    let damaged = |line: &String| line.starts_with("error store: ") && line.contains("damaged");
    assert!(code == Some(2) && seen.iter().any(damaged), "{seen:?}");
}

#[test]
fn a_service_of_another_version_or_whose_listeners_do_not_answer_is_named() {
    let ward = Ward::new();
    let serving = ward.place.serve();
    let path = ward.place.path("state/service.json");
    let right = fs::read_to_string(&path).unwrap();
    fs::write(&path, right.replace(&format!("\"{}\"", env!("CARGO_PKG_VERSION")), "\"0.0.1\"")).unwrap();
    let (code, seen) = ward.seen();
    let told = format!("warning service: version 0.0.1 runs, this is {}", env!("CARGO_PKG_VERSION"));
    assert_eq!((code, seen), (Some(1), vec![told]));
    let mut attach: Value = serde_json::from_str(&right).unwrap();
    attach["relays"]["main"] = format!("http://{}", ward.hub.address).into();
    fs::write(&path, attach.to_string()).unwrap();
    let (code, seen) = ward.seen();
    assert!(
        code == Some(2) && seen.len() == 1 && seen[0].contains("answers something else than the relay"),
        "{seen:?}"
    );
    attach["relays"]["main"] = "http://127.0.0.1:9".into();
    attach["metrics"] = "http://127.0.0.1:9".into();
    fs::write(&path, attach.to_string()).unwrap();
    let (_, seen) = ward.seen();
    for about in [
        "error listen.metrics: http://127.0.0.1:9 does not answer",
        "error hub \"main\".relay: http://127.0.0.1:9 does not answer",
    ] {
        assert!(seen.iter().any(|line| line.starts_with(about)), "{about} is not in {seen:?}");
    }
    fs::write(&path, right).unwrap();
    assert_eq!(serving.end(), Some(0));
}
