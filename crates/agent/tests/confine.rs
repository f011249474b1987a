//! `glidepath-agent confine` does what its options say, to a real process. Needs root, as the backend that uses it does.

#![expect(clippy::unwrap_used, reason = "this is how a test fails")]

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

const AGENT: &str = env!("CARGO_BIN_EXE_glidepath-agent");
const UID: u32 = 61_234;
const GID: u32 = 61_235;

#[test]
fn the_command_runs_as_the_account_and_can_never_be_root_again() {
    needs_root();
    let told = confined(
        &["--uid", "61234", "--gid", "61235", "--groups", "61236,61237"],
        "id -u; id -g; id -G; grep -E '^(NoNewPrivs|CapEff|CapPrm)' /proc/self/status",
    );
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines[..3], [&UID.to_string(), &GID.to_string(), "61235 61236 61237"]);
    let status =
        lines[3..].iter().map(|line| line.split_whitespace().last().unwrap_or_default()).collect::<Vec<_>>();
    assert_eq!(status, ["0000000000000000", "0000000000000000", "1"], "{told}");
}

#[test]
fn without_groups_there_are_none() {
    needs_root();
    assert_eq!(confined(&["--uid", "61234", "--gid", "61235"], "id -G"), "61235\n");
}

#[test]
fn the_command_runs_in_the_network_namespace() {
    needs_root();
    let apart = Apart::start();
    let path = format!("/proc/{}/ns/net", apart.0.id());
    let wanted = std::fs::read_link(&path).unwrap();
    assert_ne!(wanted, std::fs::read_link("/proc/self/ns/net").unwrap());
    let told = confined(
        &["--network-namespace", &path, "--uid", "61234", "--gid", "61235"],
        "readlink /proc/self/ns/net",
    );
    assert_eq!(Path::new(told.trim_end()), wanted);
}

#[test]
fn session_limits_mask_folder_and_cgroup_are_set() {
    needs_root();
    let group = tempfile::tempdir().unwrap();
    std::fs::write(group.path().join("cgroup.procs"), "").unwrap();
    let told = confined(
        &[
            "--cgroup",
            group.path().to_str().unwrap(),
            "--new-session",
            "--rlimit",
            "nofile=64",
            "--rlimit",
            "core=0:0",
            "--umask",
            "027",
            "--chdir",
            "/usr",
            "--uid",
            "61234",
            "--gid",
            "61235",
        ],
        "ulimit -n; ulimit -Hc; umask; pwd; cut -d' ' -f6 /proc/$$/stat; echo $$",
    );
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines[..4], ["64", "0", "0027", "/usr"]);
    assert_eq!(lines[4], lines[5], "the session is its own: {told}");
    assert_eq!(std::fs::read_to_string(group.path().join("cgroup.procs")).unwrap(), "0\n");
}

#[test]
fn nothing_is_ever_started_as_root() {
    needs_root();
    for options in [
        &["--uid", "0", "--gid", "0"][..],
        &["--uid", "61234", "--gid", "0"],
        &["--uid", "61234", "--gid", "61234", "--groups", "0"],
        &[],
    ] {
        let out = run(options, "echo started");
        assert_eq!(out.status.code(), Some(76), "{options:?}");
        assert!(String::from_utf8_lossy(&out.stderr).contains("as root"), "{options:?}");
        assert!(out.stdout.is_empty(), "{options:?}");
    }
}

#[test]
fn who_takes_the_claim_runs_and_nobody_else() {
    needs_root();
    let folder = tempfile::tempdir().unwrap();
    let claim = folder.path().join("claim");
    std::fs::write(&claim, "").unwrap();
    let options = ["--claim", claim.to_str().unwrap(), "--uid", "61234", "--gid", "61235"];
    assert_eq!(confined(&options, "echo started"), "started\n");
    let late = run(&options, "echo started");
    assert_eq!((late.status.code(), late.stdout.len()), (Some(76), 0));
    assert!(String::from_utf8_lossy(&late.stderr).contains("revoked"));
}

#[test]
fn a_step_that_fails_is_named_and_nothing_is_started() {
    needs_root();
    let account = ["--uid", "61234", "--gid", "61235"];
    let cases = [
        (["--network-namespace", "/nowhere/net"], "entering network namespace /nowhere/net"),
        (["--cgroup", "/nowhere/group"], "joining cgroup /nowhere/group"),
        (["--chdir", "/nowhere"], "entering folder /nowhere"),
        (["--chdir", "/root"], "entering folder /root"),
    ];
    for (options, wanted) in cases {
        let out = run(&[&account[..], &options[..]].concat(), "echo started");
        let told = String::from_utf8_lossy(&out.stderr);
        assert_eq!((out.status.code(), out.stdout.len()), (Some(76), 0), "{options:?}");
        assert!(told.contains(wanted), "{options:?}: {told}");
    }
}

#[test]
fn a_command_that_does_not_exist_is_named() {
    needs_root();
    let out = Command::new(AGENT)
        .args(["confine", "--uid", "61234", "--gid", "61235", "--", "no-such-thing"])
        .output();
    let out = out.unwrap();
    assert_eq!(out.status.code(), Some(76));
    assert!(String::from_utf8_lossy(&out.stderr).contains("starting no-such-thing"));
}

#[test]
fn a_bad_option_is_refused_with_the_known_ones() {
    let out = Command::new(AGENT).args(["confine", "--rlimit", "files=3", "--", "true"]).output().unwrap();
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("nofile"));
}

fn confined(options: &[&str], script: &str) -> String {
    let out = run(options, script);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn run(options: &[&str], script: &str) -> Output {
    Command::new(AGENT).arg("confine").args(options).args(["--", "sh", "-c", script]).output().unwrap()
}

fn needs_root() {
    assert!(nix::unistd::Uid::effective().is_root(), "this test needs root: run it as root");
}

/// A process in a network namespace of its own.
struct Apart(Child);

impl Apart {
    fn start() -> Self {
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo ready; exec sleep 60"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        Apart(child)
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
