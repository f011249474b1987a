//! Turns what the file says into what the program may use, or tells every problem with its key.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use glidepath_api_types::agent::ListenOn;
use glidepath_backends::process::config::{self as process, Given, ProcessFile};
use glidepath_domain::names::{HubName, InstanceId, SiteName};
use glidepath_domain::request::{self, PRESET_NAME_RULE, is_word};
use glidepath_domain::resources::{Arch, Gpus, Resources};
use glidepath_domain::run::Deadlines;
use glidepath_domain::site::{Access, GpuKind, Home, Limits, Reach, Site};
use glidepath_svc_kit::auth::SecretHash;
use glidepath_svc_kit::files::read_private;
use glidepath_svc_kit::listen;
use glidepath_svc_kit::problems::Problems;
use glidepath_svc_kit::read::read;
use glidepath_svc_kit::telemetry::{Format, Level, Log};
use http::Uri;

use super::file::{
    AgentFile, DeadlinesFile, File, GpuFile, HubFile, LimitsFile, LinkFile, ListenFile, LogFile, PresetFile,
    ResourcesFile, SiteFile, TlsFile,
};
use super::store::store;
use super::{BackendConfig, Config, Hub, HubApi, Link, LinkTls, Listen, Preset, SiteConfig, policy};

/// Longest deadline that is taken: 30 days.
const DEADLINE_MAX_S: u64 = 30 * 24 * 3600;
/// Shortest secret that is taken from a file.
const SECRET_MIN_CHARS: usize = 20;

/// Checks a file, relative paths taken from `here`. Tells every problem, those of reading it included.
pub(super) fn check(file: File, here: &Path, mut problems: Problems) -> Result<Config, Problems> {
    let p = &mut problems;
    let state_dir = p.require("state_dir", file.state_dir, "name a folder on a local disk");
    let defaults = resources("defaults", &file.defaults, &plain_defaults(), p);
    let listen = listen_addresses(&file.listen, p);
    let state_dir = here.join(state_dir.unwrap_or_default());
    let agents = agents(file.agent, here);
    let several_hubs = file.hub.len() > 1;
    let place = Place { here, state_dir: &state_dir, agent: agent_here(&agents), several_hubs };
    let sites = sites(file.site, &place, p);
    let config = Config {
        store: store(file.store, here, p),
        instance: file.instance.and_then(|raw| p.keep("instance", InstanceId::parse(&raw))),
        link: link(file.link, listen.link, here, p),
        listen,
        log: log(&file.log, p),
        agents,
        deadlines: deadlines(&file.deadlines, p),
        warn_before_s: policy::warnings(file.warn_before_s, p),
        presets: presets(&file.presets, &defaults, p),
        defaults,
        hubs: hubs(file.hub, here, p),
        sites,
        state_dir,
    };
    ports_apart(&config, p);
    problems.or(Some(config))
}

/// Where the file lies and what sites' backends are given from around them.
struct Place<'a> {
    here: &'a Path,
    state_dir: &'a Path,
    agent: PathBuf,
    several_hubs: bool,
}

fn listen_addresses(file: &ListenFile, p: &mut Problems) -> Listen {
    Listen {
        api: address("listen.api", file.api.as_deref(), p),
        link: address("listen.link", file.link.as_deref(), p),
        metrics: address("listen.metrics", file.metrics.as_deref(), p),
    }
}

fn address(key: &str, raw: Option<&str>, p: &mut Problems) -> SocketAddr {
    let any_loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    raw.map_or(Some(any_loopback), |raw| p.keep(key, listen::parse(raw))).unwrap_or(any_loopback)
}

fn link(file: LinkFile, listens: SocketAddr, here: &Path, p: &mut Problems) -> Link {
    let tls = link_tls(file.tls, here, p).unwrap_or(LinkTls::OwnCa);
    let plain = matches!(tls, LinkTls::PlainBehind(_));
    let given = file.url.is_some();
    let url = file.url.and_then(|raw| p.keep("link.url", link_url(&raw, plain)));
    if !given && plain {
        p.add(
            "link.url",
            "is missing: give the URL at which agents reach the proxy named in link.tls, wss://HOST/link",
        );
    } else if !given && tls != LinkTls::OwnCa {
        p.add(
            "link.url",
            "is missing: give the URL with the name that the certificate is for, wss://HOST:PORT/link",
        );
    } else if !given && listens.ip().is_unspecified() {
        p.add(
            "link.url",
            "is missing: listen.link takes every address, so say which one agents dial, wss://HOST:PORT/link",
        );
    }
    if file.ca.is_some() && tls == LinkTls::OwnCa {
        p.add(
            "link.ca",
            "goes with a certificate of yours; with tls = \"own_ca\" agents are given the service's own",
        );
    }
    Link { url, tls, ca: file.ca.map(|path| here.join(path)) }
}

fn link_tls(raw: Option<serde_json::Value>, here: &Path, p: &mut Problems) -> Option<LinkTls> {
    const FORMS: &str =
        "must be \"own_ca\", { cert = FILE, key = FILE } or { plain_behind = NAME OF THE PROXY }";
    let raw = match raw {
        None => return Some(LinkTls::OwnCa),
        Some(serde_json::Value::String(word)) if word == "own_ca" => return Some(LinkTls::OwnCa),
        Some(table @ serde_json::Value::Object(_)) => table,
        Some(_) => {
            p.add("link.tls", FORMS);
            return None;
        }
    };
    match read::<TlsFile>(raw, "link.tls", p)? {
        TlsFile { cert: Some(cert), key: Some(key), plain_behind: None } => {
            Some(LinkTls::Files { cert: here.join(cert), key: here.join(key) })
        }
        TlsFile { cert: None, key: None, plain_behind: Some(proxy) } if !proxy.trim().is_empty() => {
            Some(LinkTls::PlainBehind(proxy))
        }
        _ => {
            if !p.about("link.tls") {
                p.add("link.tls", FORMS);
            }
            None
        }
    }
}

fn link_url(raw: &str, plain: bool) -> Result<String, &'static str> {
    let uri = parsed_url(raw).ok_or("must be a URL like wss://glidepath.example.org/link")?;
    match uri.scheme_str() {
        Some("wss") => {}
        Some("ws") if plain => {}
        Some("ws") => return Err("must start with wss://: agents verify home, always"),
        _ => return Err("must start with wss://"),
    }
    if !matches!(uri.path(), "" | "/" | "/link") {
        return Err("must end in /link");
    }
    Ok(format!("{}/link", origin(&uri)))
}

fn log(file: &LogFile, p: &mut Problems) -> Log {
    let mut log = Log::default();
    match file.format.as_deref() {
        None | Some("text") => {}
        Some("json") => log.format = Format::Json,
        Some(_) => p.add("log.format", "must be text or json"),
    }
    if let Some(level) = file.level.as_deref().and_then(|raw| p.keep("log.level", Level::parse(raw))) {
        log.level = level;
    }
    log
}

/// Where the file says nothing: `GLIDEPATH_AGENT_BIN`, or `glidepath-agent` beside this program.
fn agents(file: AgentFile, here: &Path) -> BTreeMap<Arch, PathBuf> {
    let said = [(Arch::X86_64, file.x86_64), (Arch::Aarch64, file.aarch64)];
    let mut agents: BTreeMap<Arch, PathBuf> =
        said.into_iter().filter_map(|(arch, path)| Some((arch, here.join(path?)))).collect();
    if let Some(arch) = Arch::parse(std::env::consts::ARCH) {
        agents.entry(arch).or_insert_with(agent_beside);
    }
    agents
}

fn agent_beside() -> PathBuf {
    let named = std::env::var_os("GLIDEPATH_AGENT_BIN").map(PathBuf::from);
    let beside = || Some(std::env::current_exe().ok()?.with_file_name("glidepath-agent"));
    named.or_else(beside).unwrap_or_else(|| PathBuf::from("glidepath-agent"))
}

/// The agent for this machine.
fn agent_here(agents: &BTreeMap<Arch, PathBuf>) -> PathBuf {
    Arch::parse(std::env::consts::ARCH)
        .and_then(|arch| agents.get(&arch).cloned())
        .unwrap_or_else(agent_beside)
}

fn deadlines(file: &DeadlinesFile, p: &mut Problems) -> Deadlines {
    let usual = Deadlines::default();
    let mut seconds = |key: &str, given: Option<u64>, usual: Duration| match given {
        None => usual,
        Some(s @ 1..=DEADLINE_MAX_S) => Duration::from_secs(s),
        Some(_) => {
            p.add(key, format!("must be from 1 to {DEADLINE_MAX_S} seconds"));
            usual
        }
    };
    Deadlines {
        queued: seconds("deadlines.queued_s", file.queued_s, usual.queued),
        dialling: seconds("deadlines.dialling_s", file.dialling_s, usual.dialling),
        starting: seconds("deadlines.starting_s", file.starting_s, usual.starting),
        doubt: seconds("deadlines.doubt_s", file.doubt_s, usual.doubt),
        grace: seconds("deadlines.grace_s", file.grace_s, usual.grace),
    }
}

fn plain_defaults() -> Resources {
    Resources { cores: 1, memory_mb: 2048, gpus: Gpus::default(), arch: None, walltime_min: 480 }
}

fn resources(key: &str, file: &ResourcesFile, base: &Resources, p: &mut Problems) -> Resources {
    let mut number = |field: &str, given: Option<u64>, least: u64, most: u64, base: u64| {
        let value = given.unwrap_or(base);
        if !(least..=most).contains(&value) {
            p.add(format!("{key}.{field}"), format!("must be a whole number from {least} to {most}"));
        }
        value.clamp(least, most)
    };
    let cores = number("cores", file.cores.map(u64::from), 1, request::CORES_MAX.into(), base.cores.into());
    let memory_mb =
        number("memory_mb", file.memory_mb, request::MEMORY_MB_MIN, request::MEMORY_MB_MAX, base.memory_mb);
    let gpus = number("gpus", file.gpus.map(u64::from), 0, request::GPUS_MAX.into(), base.gpus.count.into());
    let longest = u64::from(request::WALLTIME_MIN_MAX);
    let walltime_min =
        number("walltime_min", file.walltime_min.map(u64::from), 1, longest, base.walltime_min.into());
    let gpu_memory_mb = file
        .gpu_memory_mb
        .map(|given| number("gpu_memory_mb", Some(given), 1, request::GPU_MEMORY_MB_MAX, 1));
    let gpu_kind = file.gpu_kind.as_deref().and_then(|kind| word(&format!("{key}.gpu_kind"), kind, p));
    let arch = file.arch.as_deref().and_then(|raw| arch(&format!("{key}.arch"), raw, p));
    let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let count = small(gpus);
    let gpus = Gpus { count, kind: gpu_kind, memory_mb: gpu_memory_mb };
    let gpus = if count == 0 { Gpus::default() } else { gpus };
    Resources {
        cores: small(cores),
        memory_mb,
        gpus,
        arch: arch.or(base.arch),
        walltime_min: small(walltime_min),
    }
}

fn word(key: &str, raw: &str, p: &mut Problems) -> Option<String> {
    let fits = is_word(raw);
    if !fits {
        p.add(key, format!("must be {PRESET_NAME_RULE}"));
    }
    fits.then(|| raw.to_owned())
}

fn arch(key: &str, raw: &str, p: &mut Problems) -> Option<Arch> {
    p.keep(key, Arch::parse(raw).ok_or("must be x86_64 or aarch64"))
}

fn presets(files: &[PresetFile], defaults: &Resources, p: &mut Problems) -> Vec<Preset> {
    let mut seen = BTreeSet::new();
    let mut presets = Vec::new();
    for (n, file) in files.iter().enumerate() {
        let key = labelled("presets", file.name.as_deref(), n);
        let name =
            p.require(&format!("{key}.name"), file.name.as_deref(), &format!("give {PRESET_NAME_RULE}"));
        let name = name.and_then(|name| word(&format!("{key}.name"), name, p));
        let resources = resources(&key, &file.resources(), defaults, p);
        let Some(name) = name else { continue };
        if !seen.insert(name.clone()) {
            p.add(format!("{key}.name"), "is used twice");
        }
        let title = file.title.clone().unwrap_or_else(|| name.clone());
        presets.push(Preset {
            name,
            title,
            description: file.description.clone().unwrap_or_default(),
            resources,
        });
    }
    presets
}

fn hubs(files: Vec<HubFile>, here: &Path, p: &mut Problems) -> Vec<Hub> {
    if files.is_empty() && !p.about("hub") {
        p.add("hub", "is missing: at least one [[hub]] with name, secret_file and api_url");
    }
    let mut seen = BTreeSet::new();
    let hubs = files.into_iter().enumerate().filter_map(|(n, file)| {
        let key = labelled("hub", file.name.as_deref(), n);
        let hub = hub(&key, file, here, p)?;
        if !seen.insert(hub.name.clone()) {
            p.add(format!("{key}.name"), "is used twice");
        }
        Some(hub)
    });
    hubs.collect()
}

fn hub(key: &str, file: HubFile, here: &Path, p: &mut Problems) -> Option<Hub> {
    let at = |field: &str| format!("{key}.{field}");
    if file.internal_ssl == Some(true) {
        p.add(at("internal_ssl"), "is not supported: set c.JupyterHub.internal_ssl = False on this Hub");
    }
    let name = p.require(&at("name"), file.name.as_deref(), "give the Hub a name");
    let name = name.and_then(|raw| p.keep(&at("name"), HubName::parse(raw)));
    let secrets = secrets(key, file.secret_file, file.secret_sha256, here, p);
    let api_url = p.require(
        &at("api_url"),
        file.api_url.as_deref(),
        "give the Hub's API, like http://127.0.0.1:8081/hub/api",
    );
    let base_url = file.base_url.unwrap_or_else(|| "/".to_owned());
    let base_url = p.keep(&at("base_url"), checked_base_url(base_url));
    let below = base_url.as_deref().unwrap_or("/");
    let api = api_url.and_then(|raw| p.keep(&at("api_url"), HubApi::parse(raw, below)));
    let relay = address(&at("relay"), file.relay.as_deref(), p);
    if file.relay_url.is_none() && relay.ip().is_unspecified() {
        p.add(
            at("relay_url"),
            "is missing: relay takes every address, so say which one the Hub's proxy uses, http://HOST:PORT",
        );
    }
    let relay_url = file.relay_url.and_then(|raw| p.keep(&at("relay_url"), http_origin(&raw)));
    Some(Hub { name: name?, secrets, api: api?, base_url: base_url?, relay, relay_url })
}

fn secrets(
    key: &str,
    file: Option<PathBuf>,
    hashes: Option<Vec<String>>,
    here: &Path,
    p: &mut Problems,
) -> Vec<SecretHash> {
    let at = |field: &str| format!("{key}.{field}");
    match (file, hashes) {
        (Some(_), Some(_)) => p.add(at("secret_file"), "goes instead of secret_sha256, not beside it"),
        (None, None) => {
            p.add(
                at("secret_file"),
                "is missing: name a 0600 file that holds the secret, or give secret_sha256 = [HASH]",
            );
        }
        (Some(path), None) => {
            let Some(content) = p.keep(&at("secret_file"), read_private(&here.join(path))) else {
                return Vec::new();
            };
            let secret = content.trim();
            if secret.len() < SECRET_MIN_CHARS || secret.contains(char::is_whitespace) {
                p.add(
                    at("secret_file"),
                    format!("must hold one random word of {SECRET_MIN_CHARS} characters or more"),
                );
            }
            return vec![SecretHash::of(secret)];
        }
        (None, Some(hashes)) => {
            if !(1..=2).contains(&hashes.len()) {
                p.add(at("secret_sha256"), "must hold one hash, or two while the secret changes");
            }
            let hash = |hash: &String| p.keep(&at("secret_sha256"), SecretHash::parse(hash));
            return hashes.iter().filter_map(hash).collect();
        }
    }
    Vec::new()
}

fn checked_base_url(raw: String) -> Result<String, &'static str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/-._~%@:".contains(&b);
    let fits = raw.starts_with('/') && raw.ends_with('/') && !raw.contains("//") && raw.bytes().all(plain);
    let dots = raw.split('/').any(|segment| matches!(segment, "." | ".."));
    if fits && !dots {
        Ok(raw)
    } else {
        Err("must be a path that starts and ends with a slash, like / or /jhub/")
    }
}

fn http_origin(raw: &str) -> Result<String, &'static str> {
    const RULE: &str =
        "must be a URL like http://127.0.0.1:8081 or http://[::1]:8081, without user and query";
    let uri = parsed_url(raw).filter(|uri| matches!(uri.scheme_str(), Some("http" | "https"))).ok_or(RULE)?;
    Ok(origin(&uri))
}

/// A whole URL with a host and neither user nor query.
fn parsed_url(raw: &str) -> Option<Uri> {
    let uri: Uri = raw.trim().parse().ok()?;
    let authority = uri.authority()?;
    let whole = uri.scheme().is_some() && !authority.as_str().contains('@') && !authority.host().is_empty();
    (whole && uri.query().is_none()).then_some(uri)
}

fn origin(uri: &Uri) -> String {
    let authority = uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
    format!("{}://{authority}", uri.scheme_str().unwrap_or_default())
}

fn sites(files: Vec<SiteFile>, place: &Place<'_>, p: &mut Problems) -> Vec<SiteConfig> {
    if files.is_empty() && !p.about("site") {
        p.add("site", "is missing: at least one [[site]] with name and backend");
    }
    let mut seen = BTreeSet::new();
    let sites = files.into_iter().enumerate().filter_map(|(n, file)| {
        let key = labelled("site", file.name.as_deref(), n);
        let site = site(&key, file, place, p)?;
        if !seen.insert(site.site.name.clone()) {
            p.add(format!("{key}.name"), "is used twice");
        }
        Some(site)
    });
    sites.collect()
}

fn site(key: &str, file: SiteFile, place: &Place<'_>, p: &mut Problems) -> Option<SiteConfig> {
    let at = |field: &str| format!("{key}.{field}");
    let name = p.require(&at("name"), file.name.as_deref(), "give the site a name");
    let name = name.and_then(|raw| p.keep(&at("name"), SiteName::parse(raw)));
    if name.as_ref().is_some_and(|name| name.as_str() == "auto") {
        p.add(at("name"), "must not be auto: that word lets Glidepath choose");
    }
    let reach = one_of(
        &at("reach"),
        file.reach.as_deref(),
        &[("tunnel", Reach::Tunnel), ("direct", Reach::Direct)],
        p,
    );
    let home =
        one_of(&at("home"), file.home.as_deref(), &[("kept", Home::Kept), ("scratch", Home::Scratch)], p);
    let sockets = [("unix_socket", ListenOn::UnixSocket), ("loopback_tcp", ListenOn::LoopbackTcp)];
    let listen_on = one_of(&at("listen_on"), file.listen_on.as_deref(), &sockets, p);
    if reach == Reach::Direct && listen_on == ListenOn::LoopbackTcp {
        p.add(
            at("listen_on"),
            "must be unix_socket with reach = \"direct\": a port has no owner that could be checked",
        );
    }
    if file.absence_limit_s == Some(0) {
        p.add(at("absence_limit_s"), "must be 1 or more; leave it out for the run's walltime");
    }
    let archs = archs(&at("archs"), file.archs, p);
    let gpus = gpus(&at("gpus"), &file.gpus, p);
    let policies = policy::policies(&at("policy"), file.policy, file.limits.walltime_min, p);
    let limits = Limits { policies, ..limits(&at("limits"), &file.limits, p) };
    let access = match file.groups {
        None => Access::Everyone,
        Some(groups) if groups.is_empty() => {
            p.add(at("groups"), "must name at least one group; leave it out to let everybody in");
            Access::Everyone
        }
        Some(groups) => Access::Groups(groups),
    };
    let backend = backend(key, file.backend.as_deref(), file.process, reach, place, p);
    let name = name?;
    let title = file.title.filter(|title| !title.trim().is_empty()).unwrap_or_else(|| name.to_string());
    let (labels, preference) = (file.labels, file.preference);
    Some(SiteConfig {
        site: Site { name, title, labels, reach, limits, archs, gpus, access, home, preference },
        backend: backend?,
        absence_limit_s: file.absence_limit_s,
        listen_on,
        closed: file.closed,
    })
}

fn one_of<T: Copy>(key: &str, raw: Option<&str>, words: &[(&str, T)], p: &mut Problems) -> T {
    let Some(raw) = raw else { return words[0].1 };
    let found = words.iter().find(|(word, _)| *word == raw);
    if found.is_none() {
        let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        p.add(key, format!("must be {}", words.join(" or ")));
    }
    found.map_or(words[0].1, |(_, value)| *value)
}

fn archs(key: &str, raw: Option<Vec<String>>, p: &mut Problems) -> Vec<Arch> {
    let Some(raw) = raw else { return Arch::parse(std::env::consts::ARCH).into_iter().collect() };
    if raw.is_empty() {
        p.add(key, "must name at least one of x86_64 and aarch64");
    }
    raw.iter().filter_map(|raw| arch(key, raw, p)).collect()
}

fn gpus(key: &str, files: &[GpuFile], p: &mut Problems) -> Vec<GpuKind> {
    let mut gpus = Vec::new();
    for (n, file) in files.iter().enumerate() {
        let at = |field: &str| format!("{key}.{n}.{field}");
        let kind = p.require(&at("kind"), file.kind.as_deref(), "name the kind as requests will, like a100");
        let kind = kind.and_then(|kind| word(&at("kind"), kind, p));
        let memory_mb = p.require(&at("memory_mb"), file.memory_mb, "give the memory of each in MiB");
        let per_server = file.per_server.unwrap_or(1);
        if per_server == 0 {
            p.add(at("per_server"), "must be 1 or more");
        }
        if let (Some(kind), Some(memory_mb)) = (kind, memory_mb) {
            gpus.push(GpuKind { kind, memory_mb, per_server });
        }
    }
    gpus
}

fn limits(key: &str, file: &LimitsFile, p: &mut Problems) -> Limits {
    let zeros = [
        ("cores", file.cores == Some(0)),
        ("memory_mb", file.memory_mb == Some(0)),
        ("walltime_min", file.walltime_min == Some(0)),
    ];
    for (field, _) in zeros.iter().filter(|(_, zero)| *zero) {
        p.add(format!("{key}.{field}"), "must be 1 or more; leave it out for no limit");
    }
    Limits {
        cores: file.cores.or_else(machine_cores),
        memory_mb: file.memory_mb.or_else(machine_memory_mb),
        walltime_min: file.walltime_min,
        servers_per_user: file.servers_per_user,
        servers: file.servers,
        policies: Vec::new(),
    }
}

/// Where the operator sets no limit: a process of this machine never gets more cores than there are.
fn machine_cores() -> Option<u32> {
    std::thread::available_parallelism().ok().and_then(|cores| u32::try_from(cores.get()).ok())
}

/// As [`machine_cores`], in MiB.
fn machine_memory_mb() -> Option<u64> {
    let told = std::fs::read_to_string("/proc/meminfo").ok()?;
    let total = told.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib / 1024)
}

fn backend(
    key: &str,
    name: Option<&str>,
    process: Option<serde_json::Value>,
    reach: Reach,
    place: &Place<'_>,
    p: &mut Problems,
) -> Option<BackendConfig> {
    let at = format!("{key}.backend");
    if p.require(&at, name, "name the batch system: process")? != "process" {
        p.add(at, "must be process");
        return None;
    }
    let key = format!("{key}.process");
    let table = process.unwrap_or_else(|| serde_json::Value::Object(serde_json::Map::new()));
    let mut file: ProcessFile = read(table, &key, p)?;
    file.work_root = place.here.join(file.work_root);
    // One book for all sites, so that no two users get the same account.
    let account_book = Some(place.state_dir.join("accounts.json"));
    let given = Given { agent: place.agent.clone(), reach, account_book, several_hubs: place.several_hubs };
    let told = |told: Vec<(String, String)>| {
        told.into_iter().for_each(|(at, why)| p.add(format!("{key}.{at}"), why))
    };
    process::check(file, &given).map_err(told).ok().map(|config| BackendConfig::Process(Box::new(config)))
}

/// No two listeners may be given the same port, unless it is 0.
fn ports_apart(config: &Config, p: &mut Problems) {
    let Listen { api, link, metrics } = config.listen;
    let own = [
        ("listen.api".to_owned(), api),
        ("listen.link".to_owned(), link),
        ("listen.metrics".to_owned(), metrics),
    ];
    let relays = config.hubs.iter().map(|hub| (format!("hub {:?}.relay", hub.name.as_str()), hub.relay));
    let mut taken: Vec<(String, SocketAddr)> = Vec::new();
    for (key, address) in own.into_iter().chain(relays).filter(|(_, address)| address.port() != 0) {
        let clash = |other: &SocketAddr| {
            let every = other.ip().is_unspecified() || address.ip().is_unspecified();
            other.port() == address.port() && (other.ip() == address.ip() || every)
        };
        match taken.iter().find(|(_, other)| clash(other)) {
            Some((other, _)) => p.add(key, format!("must not be the port of {other}")),
            None => taken.push((key, address)),
        }
    }
}

/// `site "far"`, or `site.2` while it has no name.
fn labelled(table: &str, name: Option<&str>, n: usize) -> String {
    match name {
        Some(name) if name.len() < 80 && !name.chars().any(char::is_control) => format!("{table} {name:?}"),
        _ => format!("{table}.{n}"),
    }
}
