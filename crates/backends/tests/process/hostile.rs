//! Jobs that mean harm: what they leave for a service that cleans up after them, and what they do to be left alone.
//!
//! Run as root each acts under its own account; without privilege all of them share that of the service.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use glidepath_backends::contract::{Bench, Manner, key};
use glidepath_domain::backend::{Backend, CancelHow, JobLabel, JobSpec, JobState};
use glidepath_testkit::wait;
use nix::sys::signal::Signal;
use secrecy::SecretString;

use crate::bench::{ProcessBench, is_root, kill, lives, needs_root};

const SOON: Duration = Duration::from_secs(20);

/// What a program finds in each folder that it is given.
const TRAPS: &str = r##"
import os, socket, sys
for folder in sys.argv[1:-1]:
    os.chdir(folder)
    outside = sys.argv[-1]
    os.mkfifo("fifo")
    socket.socket(socket.AF_UNIX).bind("socket")
    for name in (b"line\nbreak", b"not \xff text", b"-rf", b"*", b" ", b"...", b"x" * 255, b"\x1b[2J", b"$(true)"):
        open(name, "w").close()
        os.mkdir(name[:200] + b".d")
    os.symlink(outside, "to-outside")
    os.symlink("/", "to-root")
    os.symlink(".", "to-itself")
    os.symlink("nowhere", "to-nowhere")
    os.link(outside + "/mine.txt", "hard")
    os.mkdir(".glidepath-removed-1")
    with open("setuid", "w") as file:
        file.write("#!/bin/sh\n")
    os.chmod("setuid", 0o6755)
    os.mkdir("many")
    for number in range(3000):
        open(f"many/{number}", "w").close()
    at = os.getcwd()
    for level in range(400):
        os.mkdir("deep"); os.chdir("deep")
    os.chdir(at)
    os.makedirs("shut/within/this")
    open("shut/within/this/file", "w").close()
    os.chmod("hard", 0o400)
    for shut in ("shut/within/this/file", "shut/within/this", "shut/within", "shut"):
        os.chmod(shut, 0)
    os.makedirs("fixed/within")
    open("fixed/within/file", "w").close()
    for fixed in ("fixed/within", "fixed", "many"):
        os.chmod(fixed, 0o555)
"##;

/// A folder outside, with a file of the account's own and one of the service's.
fn treasure(bench: &ProcessBench, account: u32) -> PathBuf {
    let outside = bench.folder.path().join("outside");
    fs::create_dir_all(outside.join("deep")).unwrap();
    for name in ["mine.txt", "kept.txt", "deep/kept.txt"] {
        fs::write(outside.join(name), "kept").unwrap();
    }
    if is_root() {
        std::os::unix::fs::chown(outside.join("mine.txt"), Some(account), Some(account)).unwrap();
    }
    outside
}

fn is_whole(outside: &Path) {
    for name in ["mine.txt", "kept.txt", "deep/kept.txt"] {
        assert_eq!(fs::read_to_string(outside.join(name)).unwrap(), "kept", "{name}");
    }
    assert_eq!(fs::read_dir(outside).unwrap().count(), 3, "and nothing was put there");
}

async fn running(bench: &ProcessBench, user: &str) -> (JobSpec, u32) {
    let spec = bench.spec(&key(user), Manner::Calm, "s");
    bench.process().submit(&spec).await.unwrap();
    wait::until(SOON, "the job runs", async || {
        bench.starts(&spec.label).await == 1 && bench.processes(&spec.label).await > 1
    })
    .await;
    let account = fs::metadata(format!("/proc/{}", bench.agent(&spec.label))).unwrap().uid();
    (spec, account)
}

fn own_folder(bench: &ProcessBench, label: &JobLabel) -> PathBuf {
    bench.root().join("jobs").join(label.attempt.to_string()).join("own")
}

/// A program of the user's, outside of all jobs: that of another server of theirs, say.
fn python(account: u32, program: &str, arguments: &[&Path]) -> Child {
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-ISc", program]).args(arguments).env_clear().current_dir("/").stdin(Stdio::null());
    if is_root() {
        command.uid(account).gid(account);
    }
    command.spawn().unwrap()
}

async fn ended(bench: &ProcessBench, label: &JobLabel) {
    wait::until(SOON, "the job has ended", async || {
        let seen = bench.process().list().await.unwrap();
        seen.iter().any(|seen| seen.label == *label && matches!(seen.state, JobState::Ended(_)))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_full_of_traps_are_removed_and_nothing_outside_is_touched() {
    let bench = ProcessBench::new("");
    let (spec, account) = running(&bench, "ada").await;
    let outside = treasure(&bench, account);
    let (own, home) = (own_folder(&bench, &spec.label), bench.home(&spec.label.key));
    let laid = python(account, TRAPS, &[&own, &own.join("s"), &home, &outside]).wait().unwrap();
    assert!(
        laid.success() && home.join("fifo").exists(),
        "the traps must be there, or nothing is shown here"
    );
    bench.process().cancel(&spec.label, CancelHow::Kindly).await.unwrap();
    ended(&bench, &spec.label).await;
    wait::until(SOON, "it is forgotten", async || bench.process().forget(&spec.label).await.is_ok()).await;
    assert_eq!(bench.remains(&spec.label).await, Vec::<String>::new());
    bench.process().delete_home(&spec.label.key).await.unwrap();
    assert!(!home.exists() && fs::read_dir(home.parent().unwrap()).unwrap().next().is_none());
    is_whole(&outside);
    assert_eq!(fs::metadata(outside.join("mine.txt")).unwrap().nlink(), 1);
}

/// What needs accounts that differ, or cgroups.
mod with_privilege {
    use super::*;

    /// Puts a link in the place of a folder and back, as fast as it can, until there is nothing left to do it in.
    const SWAPS: &str = r#"
import contextlib, os, sys
own, outside = sys.argv[1:]
os.chdir(own)
open("at-it", "w").close()
while os.path.exists(own):
    with contextlib.suppress(OSError):
        os.makedirs("a/b/c")
        open("a/b/file", "w").close()
    for here in ("a", "a/b", "a/b/c", "s"):
        with contextlib.suppress(OSError):
            os.rename(here, "apart")
        with contextlib.suppress(OSError):
            os.symlink(outside, here)
        with contextlib.suppress(OSError):
            os.unlink(here)
        with contextlib.suppress(OSError):
            os.rename("apart", here)
"#;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_folder_that_changes_into_a_link_while_it_is_removed_leads_nowhere() {
        needs_root(); // without privilege the service can do no more than the job
        let bench = ProcessBench::new("");
        for _ in 0..8 {
            let (spec, account) = running(&bench, "ada").await;
            let outside = treasure(&bench, account);
            let own = own_folder(&bench, &spec.label);
            let mut swaps = python(account, SWAPS, &[&own, &outside]);
            wait::until(SOON, "it swaps", async || own.join("at-it").exists()).await;
            bench.process().cancel(&spec.label, CancelHow::Kindly).await.unwrap();
            ended(&bench, &spec.label).await;
            wait::until(SOON, "it is forgotten", async || bench.process().forget(&spec.label).await.is_ok())
                .await;
            assert!(!own.exists());
            is_whole(&outside);
            let over = tokio::task::spawn_blocking(move || swaps.wait().unwrap());
            assert!(
                tokio::time::timeout(SOON, over).await.expect("it has nothing left to do").unwrap().success()
            );
        }
    }

    /// It looks like a thread of the kernel, has no label, is nobody's child, and the agent that knew it is dead.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_process_that_wears_a_mask_and_kills_its_agent_is_ended() {
        let bench = ProcessBench::new("cgroup = 'on'");
        let mut spec = bench.spec(&key("ada"), Manner::Calm, "s");
        spec.dial_file = SecretString::from(r#"{"manner": "masked"}"#);
        bench.process().submit(&spec).await.unwrap();
        let masked = wait::until_some(SOON, "it wears its mask", async || {
            let pids = bench.pids(&spec.label);
            let argv = |pid: &i32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            pids.into_iter().find(|pid| argv(pid).starts_with(b"[kworker/"))
        })
        .await;
        assert!(fs::read(format!("/proc/{masked}/environ")).unwrap().is_empty(), "it has no label");
        fs::write(bench.home(&spec.label.key).join("strike"), "").unwrap();
        ended(&bench, &spec.label).await;
        wait::until(SOON, "nothing of it is left", async || !lives(masked)).await;
        wait::until(SOON, "it is forgotten", async || bench.process().forget(&spec.label).await.is_ok())
            .await;
    }

    /// Its process carries another job's label, in the hope that this one is ended in its place, or found in it.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_process_that_wears_another_jobs_label_is_no_part_of_it() {
        needs_root(); // accounts are what tells them apart
        let bench = ProcessBench::new("");
        let (bobs, _) = running(&bench, "bob").await;
        let (adas, ada) = running(&bench, "ada").await;
        let mut forged = Command::new("/bin/sleep");
        let label = bobs.label.attempt.to_string();
        forged
            .arg("120")
            .env_clear()
            .env("GLIDEPATH_ATTEMPT", &label)
            .env("GLIDEPATH_KEY", bobs.label.key.full());
        let mut forged = forged.uid(ada).gid(ada).spawn().unwrap();
        bench.process().cancel(&bobs.label, CancelHow::Kindly).await.unwrap();
        ended(&bench, &bobs.label).await;
        let lives_on = lives(i32::try_from(forged.id()).unwrap());
        let adas_lives = bench.processes(&adas.label).await > 1;
        kill(i32::try_from(forged.id()).unwrap(), Signal::SIGKILL);
        forged.wait().unwrap();
        assert!(lives_on && adas_lives, "a process of ada's was ended as one of bob's");
        wait::until(SOON, "bob's is forgotten", async || bench.process().forget(&bobs.label).await.is_ok())
            .await;
    }
}
