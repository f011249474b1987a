//! The agents' binaries: for the right machine, without need of libraries, of this version.

use std::path::Path;
use std::process::{Command, Stdio};

use glidepath_domain::resources::Arch;

use super::Findings;
use crate::config::Config;

const REMEDY: &str =
    "give the path of the glidepath-agent of this version, built static for that architecture";
const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(super) fn look(config: &Config, out: &mut Findings) {
    for (arch, path) in &config.agents {
        let about = format!("agent.{arch}");
        let shown = path.display();
        let Ok(program) = std::fs::read(path) else { continue }; // `check` has told it
        match Program::read(&program) {
            None => {
                out.error(&about, format!("{shown} is no program of Linux"), REMEDY);
                continue;
            }
            Some(program) => {
                if program.machine != machine(*arch) {
                    out.error(&about, format!("{shown} is a program for another architecture"), REMEDY);
                    continue;
                }
                if program.needs_loader {
                    let found = format!("{shown} needs libraries of the machine that it runs on");
                    out.warning(&about, found, "use the static build, which runs at every site");
                }
            }
        }
        if arch.as_str() == std::env::consts::ARCH {
            version(&about, path, out);
        } else {
            out.note(&about, "its version cannot be asked on this machine");
        }
    }
}

fn version(about: &str, path: &Path, out: &mut Findings) {
    let said = Command::new(path).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output();
    let said = said.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    match said {
        Ok(said) if said == format!("glidepath-agent {VERSION}") => {}
        Ok(said) => {
            let said: String = said.chars().filter(|c| !c.is_control()).take(80).collect();
            out.error(about, format!("{} says {said:?}, the service is {VERSION}", path.display()), REMEDY);
        }
        Err(error) => out.error(about, format!("{} cannot be run: {error}", path.display()), REMEDY),
    }
}

fn machine(arch: Arch) -> u16 {
    match arch {
        Arch::X86_64 => 62,
        Arch::Aarch64 => 183,
    }
}

/// What the head of a program tells.
struct Program {
    machine: u16,
    needs_loader: bool,
}

/// A segment that names the loader.
const PT_INTERP: u32 = 3;

impl Program {
    /// Of 64 bits, little end first, as both architectures have it.
    fn read(bytes: &[u8]) -> Option<Self> {
        if bytes.get(..6)? != b"\x7fELF\x02\x01" {
            return None;
        }
        let u16_at =
            |at: usize| Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?));
        let table = usize::try_from(u64::from_le_bytes(bytes.get(32..40)?.try_into().ok()?)).ok()?;
        let (size, count) = (usize::from(u16_at(54)?), usize::from(u16_at(56)?));
        let kind = |n: usize| {
            let at = table.checked_add(n.checked_mul(size)?)?;
            Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
        };
        let needs_loader = (0..count).any(|n| kind(n) == Some(PT_INTERP));
        Some(Self { machine: u16_at(18)?, needs_loader })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_tells_its_machine_and_whether_it_needs_libraries() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let program = Program::read(&own).unwrap();
        let arch = if cfg!(target_arch = "x86_64") { Arch::X86_64 } else { Arch::Aarch64 };
        assert_eq!((program.machine, program.needs_loader), (machine(arch), true), "a test is not static");
        assert!(Program::read(b"#!/bin/sh\n").is_none());
        for length in 0..64 {
            let _ = Program::read(&own[..length]); // none of them ends in a panic
        }
    }
}
