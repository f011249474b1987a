//! The program as an operator runs it: what it says, and with which code it ends.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_glidepath-spawner");
const HASH: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

/// A folder with a config that is right for this machine.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        // Users' accounts must be able to walk to the work root.
        fs::set_permissions(place.dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let agent = place.dir.path().join("glidepath-agent");
        fs::write(&agent, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).unwrap();
        place.write("");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the config, with this before the tables.
    fn write(&self, first: &str) {
        let state = if first.contains("state_dir") { "" } else { "state_dir = \"state\"\n" };
        let arch = std::env::consts::ARCH;
        let text = format!(
            "{state}{first}\n[agent]\n{arch} = \"glidepath-agent\"\n[[hub]]\nname = \"main\"\n\
             secret_sha256 = [\"{HASH}\"]\napi_url = \"http://127.0.0.1:9\"\n\
             [[site]]\nname = \"here\"\nbackend = \"process\"\nprocess.work_root = \"work\"\n"
        );
        fs::write(self.path("config.toml"), text).unwrap();
    }

    fn run(&self, command: &[&str]) -> (Option<i32>, String, String) {
        self.run_with(command, &[])
    }

    fn run_with(&self, command: &[&str], env: &[(&str, &Path)]) -> (Option<i32>, String, String) {
        let config = self.path("config.toml");
        let mut program = Command::new(PROGRAM);
        program.arg("--config").arg(config).args(command).envs(env.iter().copied());
        let output = program.output().unwrap();
        let text = |bytes: Vec<u8>| {
            String::from_utf8(bytes).unwrap().replace(self.dir.path().to_str().unwrap(), "HERE")
        };
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    fn serve(&self) -> Serving {
        let config = self.path("config.toml");
        let log = Stdio::from(fs::File::create(self.path("log")).unwrap());
        let child = Command::new(PROGRAM).arg("--config").arg(config).stderr(log).spawn().unwrap();
        let serving = Serving(child);
        let until = Instant::now() + Duration::from_secs(20);
        while !self.path("state/service.json").exists() {
            assert!(Instant::now() < until, "the service did not start");
            pause();
        }
        serving
    }
}

struct Serving(Child);

impl Serving {
    fn end(mut self) -> Option<i32> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < until, "the service did not end");
            pause();
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[expect(clippy::disallowed_methods, reason = "no runtime here")]
fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}

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
