//! A folder with a config, and the program in it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_glidepath-spawner");
pub(crate) const HASH: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

/// A folder with a config that is right for this machine.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        // Users' accounts must be able to walk to the work root.
        fs::set_permissions(place.dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let agent = place.dir.path().join("glidepath-agent");
        fs::write(&agent, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).unwrap();
        place.write("");
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the config, with this before the tables.
    pub(crate) fn write(&self, first: &str) {
        let state = if first.contains("state_dir") { "" } else { "state_dir = \"state\"\n" };
        let arch = std::env::consts::ARCH;
        let text = format!(
            "{state}{first}\n[agent]\n{arch} = \"glidepath-agent\"\n[[hub]]\nname = \"main\"\n\
             secret_sha256 = [\"{HASH}\"]\napi_url = \"http://127.0.0.1:9\"\n\
             [[site]]\nname = \"here\"\nbackend = \"process\"\nprocess.work_root = \"work\"\n"
        );
        fs::write(self.path("config.toml"), text).unwrap();
    }

    pub(crate) fn run(&self, command: &[&str]) -> (Option<i32>, String, String) {
        self.run_with(command, &[])
    }

    pub(crate) fn run_with(&self, command: &[&str], env: &[(&str, &Path)]) -> (Option<i32>, String, String) {
        let config = self.path("config.toml");
        let mut program = Command::new(PROGRAM);
        program.arg("--config").arg(config).args(command).envs(env.iter().copied());
        let output = program.output().unwrap();
        let text = |bytes: Vec<u8>| {
            String::from_utf8(bytes).unwrap().replace(self.dir.path().to_str().unwrap(), "HERE")
        };
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    pub(crate) fn serve(&self) -> Serving {
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

pub(crate) struct Serving(pub(crate) Child);

impl Serving {
    pub(crate) fn end(mut self) -> Option<i32> {
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
pub(crate) fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}
