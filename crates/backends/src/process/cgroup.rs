//! Limits of whole jobs, by cgroups: memory, processor, number of processes.
//!
//! Version 2 where all three controllers are in its hierarchy, otherwise one hierarchy per controller (version 1).
//! Each job gets `glidepath/<root>/<attempt>`. Where that is not possible, jobs have limits per process instead
//! (see [`super::render`]), which hold nobody to a sum: memory and processor are then only advice.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use glidepath_domain::names::Attempt;
use glidepath_domain::resources::Resources;
use nix::unistd::Uid;

use super::config::CgroupUse;
use super::files;

/// Processor time is given per this many microseconds.
const CPU_PERIOD_US: u64 = 100_000;
/// The controllers that a job needs.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// The hierarchies in which jobs get their groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cgroups {
    hierarchies: Vec<Hierarchy>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    /// `<mount>/<parent>/glidepath/<root>`.
    base: PathBuf,
    version: Version,
    controllers: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Finds out whether jobs can have cgroups. `Ok(Err(why))` is a plain no; `Err` a no where there must be a yes.
pub(crate) fn open(
    wanted: CgroupUse,
    parent: Option<&Path>,
    root_id: &str,
) -> Result<Result<Cgroups, String>, String> {
    if wanted == CgroupUse::Off {
        return Ok(Err("the operator switched cgroups off".to_owned()));
    }
    let opened = if Uid::effective().is_root() || parent.is_some() {
        try_open(parent.unwrap_or(Path::new("")), root_id)
    } else {
        Err("the service is not root and no cgroup_parent was given to it".to_owned())
    };
    match (opened, wanted) {
        (Err(why), CgroupUse::On) => Err(format!("cgroup = \"on\", and no cgroup can be made: {why}")),
        (opened, _) => Ok(opened),
    }
}

fn try_open(parent: &Path, root_id: &str) -> Result<Cgroups, String> {
    let mounts =
        fs::read_to_string("/proc/self/mountinfo").map_err(|why| format!("no list of mounts: {why}"))?;
    let below: PathBuf =
        parent.components().filter(|part| matches!(part, std::path::Component::Normal(_))).collect();
    let mut reasons = Vec::new();
    for hierarchies in candidates(&mounts) {
        let hierarchies: Vec<Hierarchy> = hierarchies
            .into_iter()
            .map(|found| Hierarchy { base: found.base.join(&below).join("glidepath").join(root_id), ..found })
            .collect();
        let tried = hierarchies.iter().try_for_each(prepare);
        let cgroups = Cgroups { hierarchies };
        cgroups.tidy();
        match tried {
            Ok(()) => return Ok(cgroups),
            Err(why) => reasons.push(why.to_string()),
        }
    }
    if reasons.is_empty() {
        reasons.push("no hierarchy with the memory controller is mounted".to_owned());
    }
    Err(reasons.join("; "))
}

/// The ways to limit a job on this machine, best first: version 2, then version 1. The bases are the mounts.
fn candidates(mountinfo: &str) -> Vec<Vec<Hierarchy>> {
    let mut two = Vec::new();
    let mut one: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(mount) = left.split(' ').nth(4) else { continue };
        let mut right = right.split(' ');
        let (kind, options) = (right.next().unwrap_or(""), right.nth(1).unwrap_or(""));
        let base = PathBuf::from(mount);
        match kind {
            "cgroup2" => two.push(vec![Hierarchy {
                base,
                version: Version::Two,
                controllers: CONTROLLERS.map(str::to_owned).to_vec(),
            }]),
            "cgroup" => {
                let controllers: Vec<String> =
                    options.split(',').filter(|name| CONTROLLERS.contains(name)).map(str::to_owned).collect();
                if !controllers.is_empty() {
                    one.push(Hierarchy { base, version: Version::One, controllers });
                }
            }
            _ => {}
        }
    }
    if one.iter().any(|found| found.controllers.iter().any(|name| name == "memory")) {
        two.push(one);
    }
    two
}

/// Makes the base and, in version 2, hands the controllers down to it.
fn prepare(hierarchy: &Hierarchy) -> io::Result<()> {
    let told = |why: io::Error| io::Error::other(format!("{}: {why}", hierarchy.base.display()));
    fs::create_dir_all(&hierarchy.base).map_err(told)?;
    if hierarchy.version == Version::Two {
        let wanted =
            hierarchy.controllers.iter().map(|name| format!("+{name}")).collect::<Vec<_>>().join(" ");
        let mut chain: Vec<&Path> =
            hierarchy.base.ancestors().take_while(|path| path.join("cgroup.procs").exists()).collect();
        chain.reverse();
        for group in chain {
            let enabled = fs::read_to_string(group.join("cgroup.subtree_control")).map_err(told)?;
            let enabled: BTreeSet<&str> = enabled.split_whitespace().collect();
            if !hierarchy.controllers.iter().all(|name| enabled.contains(name.as_str())) {
                fs::write(group.join("cgroup.subtree_control"), &wanted).map_err(told)?;
            }
        }
    }
    Ok(())
}

impl Cgroups {
    /// The groups of a job, whether they are there or not.
    pub(crate) fn groups(&self, attempt: Attempt) -> Vec<PathBuf> {
        self.hierarchies.iter().map(|hierarchy| hierarchy.base.join(attempt.to_string())).collect()
    }

    /// Controllers that none of the hierarchies has: what they would hold is not held.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        let has =
            |name: &str| self.hierarchies.iter().any(|one| one.controllers.iter().any(|other| other == name));
        CONTROLLERS.into_iter().filter(|name| !has(name)).collect()
    }

    /// Makes a job's groups with its limits. May be repeated.
    pub(crate) fn make(&self, attempt: Attempt, resources: &Resources, processes_max: u32) -> io::Result<()> {
        for hierarchy in &self.hierarchies {
            let group = hierarchy.base.join(attempt.to_string());
            make_group(hierarchy, &group)?;
            for limit in limits(hierarchy, resources, processes_max) {
                let written = fs::write(group.join(limit.file), &limit.value);
                match written {
                    Err(_) if limit.optional => {}
                    other => other.map_err(|why| {
                        io::Error::other(format!("{}/{}: {why}", group.display(), limit.file))
                    })?,
                }
            }
        }
        Ok(())
    }

    /// The processes in a job's groups.
    pub(crate) fn members(&self, attempt: Attempt) -> io::Result<BTreeSet<i32>> {
        let mut members = BTreeSet::new();
        for group in self.groups(attempt) {
            match fs::read_to_string(group.join("cgroup.procs")) {
                Ok(text) => members
                    .extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 1)),
                Err(why) if why.kind() == io::ErrorKind::NotFound => {}
                Err(why) => return Err(why),
            }
        }
        Ok(members)
    }

    /// True when the kernel ended a process of the job because its memory was used up.
    pub(crate) fn ran_out_of_memory(&self, attempt: Attempt) -> bool {
        self.groups(attempt).iter().any(|group| {
            ["memory.events", "memory.oom_control"]
                .iter()
                .any(|file| fs::read_to_string(group.join(file)).is_ok_and(|text| oom_kills(&text) > 0))
        })
    }

    /// Removes a job's groups, which must be empty. Succeeds when there are none.
    pub(crate) fn remove(&self, attempt: Attempt) -> io::Result<()> {
        for group in self.groups(attempt) {
            remove_group(&group)?;
        }
        self.tidy();
        Ok(())
    }

    /// Removes what no job needs: the root's group and the one above, if they are empty.
    fn tidy(&self) {
        for hierarchy in &self.hierarchies {
            for group in hierarchy.base.ancestors().take(2) {
                let _ = fs::remove_dir(group);
            }
        }
    }
}

/// Another backend may tidy the groups above away in between, so it is tried again.
fn make_group(hierarchy: &Hierarchy, group: &Path) -> io::Result<()> {
    const TRIES: usize = 5;
    let mut made = Ok(());
    for _ in 0..TRIES {
        made = prepare(hierarchy).and_then(|()| fs::create_dir_all(group));
        if made.is_ok() {
            break;
        }
    }
    made
}

/// Removes a group with those that the job made inside it. Plain files cannot be removed and go with their group.
fn remove_group(group: &Path) -> io::Result<()> {
    let inner = match fs::read_dir(group) {
        Ok(entries) => entries,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(why) => return Err(why),
    };
    for entry in inner {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_group(&entry.path())?;
        }
    }
    files::absent_is_well(fs::remove_dir(group))
}

#[derive(Debug, PartialEq, Eq)]
struct Limit {
    file: &'static str,
    value: String,
    /// Not on every kernel; the job goes on without.
    optional: bool,
}

fn limits(hierarchy: &Hierarchy, resources: &Resources, processes_max: u32) -> Vec<Limit> {
    let memory = resources.memory_mb.saturating_mul(1024 * 1024).to_string();
    let quota = u64::from(resources.cores).saturating_mul(CPU_PERIOD_US);
    let must = |file, value| Limit { file, value, optional: false };
    let may = |file, value| Limit { file, value, optional: true };
    let mut limits = Vec::new();
    for controller in &hierarchy.controllers {
        match (controller.as_str(), hierarchy.version) {
            ("memory", Version::Two) => {
                limits.extend([must("memory.max", memory.clone()), may("memory.swap.max", "0".to_owned())]);
            }
            ("memory", Version::One) => {
                limits.push(must("memory.limit_in_bytes", memory.clone()));
                limits.push(may("memory.memsw.limit_in_bytes", memory.clone()));
            }
            ("cpu", Version::Two) => limits.push(must("cpu.max", format!("{quota} {CPU_PERIOD_US}"))),
            ("cpu", Version::One) => {
                limits.push(must("cpu.cfs_period_us", CPU_PERIOD_US.to_string()));
                limits.push(must("cpu.cfs_quota_us", quota.to_string()));
            }
            _ => limits.push(must("pids.max", processes_max.to_string())),
        }
    }
    limits
}

fn oom_kills(text: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.strip_prefix("oom_kill "))
        .filter_map(|count| count.trim().parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use glidepath_domain::resources::Gpus;

    const RESOURCES: Resources = Resources {
        cores: 2,
        memory_mb: 512,
        gpus: Gpus { count: 0, kind: None, memory_mb: None },
        arch: None,
        walltime_min: 60,
    };

    fn written(version: Version, controllers: &[&str]) -> Vec<(&'static str, String)> {
        let controllers = controllers.iter().map(|name| (*name).to_owned()).collect();
        let hierarchy = Hierarchy { base: PathBuf::from("/cg"), version, controllers };
        limits(&hierarchy, &RESOURCES, 99).into_iter().map(|limit| (limit.file, limit.value)).collect()
    }

    #[test]
    fn limits_are_written_in_the_words_of_each_version() {
        let expected = [
            ("memory.max", "536870912"),
            ("memory.swap.max", "0"),
            ("cpu.max", "200000 100000"),
            ("pids.max", "99"),
        ];
        assert_eq!(
            written(Version::Two, &CONTROLLERS),
            expected.map(|(file, value)| (file, value.to_owned()))
        );
        let expected = [("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "200000")];
        assert_eq!(written(Version::One, &["cpu"]), expected.map(|(file, value)| (file, value.to_owned())));
        assert_eq!(written(Version::One, &["memory"])[0], ("memory.limit_in_bytes", "536870912".to_owned()));
    }

    #[test]
    fn a_machine_with_both_versions_tries_the_second_first() {
        let mounts = "\
            30 20 0:25 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
            31 20 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            32 20 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
            33 20 0:28 / /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = candidates(mounts);
        let bases: Vec<Vec<&str>> =
            found.iter().map(|way| way.iter().map(|each| each.base.to_str().unwrap()).collect()).collect();
        assert_eq!(
            bases,
            [vec!["/sys/fs/cgroup/unified"], vec!["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/memory"]]
        );
        assert_eq!(found[1][0].controllers, ["cpu"]);
        let missing = |way: &[Hierarchy]| Cgroups { hierarchies: way.to_vec() }.missing();
        assert_eq!((missing(&found[0]), missing(&found[1])), (vec![], vec!["pids"]));
        assert!(
            candidates("32 20 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd").is_empty()
        );
    }

    #[test]
    fn deaths_by_memory_are_counted_in_both_versions() {
        assert_eq!(oom_kills("low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\noom_group_kill 0\n"), 1);
        assert_eq!(oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"), 2);
        assert_eq!(oom_kills("oom_kill_disable 0\n"), 0);
    }

    #[test]
    fn no_cgroup_where_one_must_be_is_an_error() {
        assert!(open(CgroupUse::Off, None, "x").unwrap().is_err());
        let nowhere = Path::new("no/such\0parent");
        assert!(open(CgroupUse::On, Some(nowhere), "x").unwrap_err().contains("no cgroup can be made"));
    }
}
