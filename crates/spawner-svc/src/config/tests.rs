//! Folders of good and bad samples; beside each bad one the problems that must be told.

use std::fs;
use std::path::{Path, PathBuf};

use glidepath_domain::site::{Access, Reach};

use super::*;

fn samples(kind: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples").join(kind);
    let is_sample = |path: &PathBuf| path.extension().is_some_and(|e| e == "toml" || e == "json");
    let mut found: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(is_sample).collect();
    found.sort();
    assert!(found.len() >= 4, "{found:?}: the samples were not found");
    found
}

fn sample(name: &str) -> Config {
    let path = samples("good").into_iter().find(|path| path.file_name().unwrap() == name).unwrap();
    Config::load(&path).unwrap()
}

/// What is told, with the folder of the sample replaced: it differs between machines.
fn told(path: &Path) -> String {
    let problems = Config::load(path).map(|_| "nothing is wrong").unwrap_err();
    problems.to_string().replace(path.parent().unwrap().to_str().unwrap(), "HERE") + "\n"
}

#[test]
fn every_good_sample_is_taken() {
    for path in samples("good") {
        if let Err(problems) = Config::load(&path) {
            panic!("{}:\n{problems}", path.display());
        }
    }
}

#[test]
fn every_bad_sample_is_refused_with_all_its_problems() {
    let mut wrong = Vec::new();
    for path in samples("bad") {
        let golden = path.with_extension("problems");
        let told = told(&path);
        if std::env::var_os("UPDATE_GOLDENS").is_some() {
            fs::write(&golden, &told).unwrap();
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        if told != expected {
            wrong.push(format!("{}\n--- expected\n{expected}--- told\n{told}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_value_of_a_full_file_arrives() {
    let config = sample("everything.toml");
    assert!(
        matches!(&config.store, StoreConfig::PostgreSql(at) if at.shown == "postgresql://glidepath@db.example.org/glidepath")
    );
    assert_eq!(config.listen.api.to_string(), "[::1]:9001");
    assert_eq!(config.link.url.as_deref(), Some("wss://glidepath.example.org:9002/link"));
    assert!(matches!(&config.link.tls, LinkTls::Files { key, .. } if key.ends_with("key.pem")));
    assert_eq!(config.deadlines.grace.as_secs(), 20);
    assert_eq!((config.defaults.cores, config.defaults.walltime_min), (2, 240));
    let presets = config.option_defaults().presets;
    assert_eq!(
        (presets["small"].cores, presets["small"].walltime_min),
        (1, 240),
        "the rest is the default's"
    );
    assert_eq!(presets["training"].gpus.kind.as_deref(), Some("a100"));
    let [main, second] = config.hubs.as_slice() else { panic!("two hubs") };
    assert_eq!(
        (main.api.url().as_str(), main.base_url.as_str()),
        ("https://hub.example.org/jhub/hub/api", "/jhub/")
    );
    assert_eq!((main.secrets.len(), main.relay.port()), (2, 9100));
    assert_eq!(main.relay_url.as_deref(), Some("http://[2001:db8::7]:9100"));
    assert_eq!((second.api.url().as_str(), second.relay.port()), ("http://[::1]:8081/hub/api", 0));
    let [here, far] = config.sites.as_slice() else { panic!("two sites") };
    assert_eq!((here.site.reach, far.site.reach), (Reach::Direct, Reach::Tunnel));
    assert_eq!(far.site.access, Access::Groups(vec!["gpu-users".into(), "staff".into()]));
    assert_eq!((far.site.gpus.len(), far.site.gpus[1].per_server), (2, 1));
    assert_eq!(config.warn_before_s, [900, 60], "longest first");
    let staff = here.site.limits.granted(&["staff".to_owned()]);
    let bounds = (staff.walltime_min.unwrap(), staff.idle_s, staff.unattended_s.unwrap());
    assert_eq!((bounds.0.most, bounds.1, bounds.2.most), (1440, None, 604_800), "0 is never");
    assert_eq!(here.site.limits.granted(&[]).idle_s.unwrap().most, 3600);
    assert_eq!((far.absence_limit_s, far.listen_on), (Some(3600), ListenOn::LoopbackTcp));
}

#[test]
fn relative_paths_are_taken_from_the_files_folder() {
    let config = sample("smallest.toml");
    assert!(config.state_dir.is_absolute() && config.state_dir.ends_with("samples/good/state"));
    let everything = sample("everything.toml");
    assert!(everything.link.ca.unwrap().ends_with("samples/good/ca.pem"));
}

#[test]
fn what_a_small_file_leaves_out_has_a_default() {
    let config = sample("smallest.toml");
    assert_eq!((config.listen.api.port(), config.hubs[0].relay.port()), (0, 0));
    assert!(config.listen.link.ip().is_loopback());
    assert_eq!(config.link.tls, LinkTls::OwnCa);
    assert!(matches!(config.store, StoreConfig::Sqlite));
    assert_eq!(config.sites[0].site.title, "here");
    assert!(!config.agents.is_empty());
}

#[test]
fn a_secret_file_must_be_private_and_long_enough() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let text =
        fs::read_to_string(samples("good").into_iter().find(|p| p.ends_with("smallest.toml")).unwrap())
            .unwrap();
    let text: Vec<&str> = text
        .lines()
        .map(|line| if line.starts_with("secret_sha256") { "secret_file = \"secret\"" } else { line })
        .collect();
    let path = dir.path().join("config.toml");
    fs::write(&path, text.join("\n")).unwrap();
    let secret = dir.path().join("secret");
    let with = |content: &str, mode| {
        fs::write(&secret, content).unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(mode)).unwrap();
        Config::load(&path)
            .map(|_| ())
            .map_err(|problems| problems.to_string().replace(dir.path().to_str().unwrap(), "D"))
    };
    assert_eq!(with("0123456789abcdef0123456789abcdef\n", 0o600), Ok(()));
    assert_eq!(
        with("0123456789abcdef0123456789abcdef\n", 0o644).unwrap_err(),
        "hub \"main\".secret_file: D/secret can be read by others: chmod 600 D/secret"
    );
    assert_eq!(
        with("short", 0o600).unwrap_err(),
        "hub \"main\".secret_file: must hold one random word of 20 characters or more"
    );
}

#[test]
fn no_debug_output_shows_a_hash() {
    assert!(!format!("{:?}", sample("smallest.toml")).contains("ba7816bf"));
}
