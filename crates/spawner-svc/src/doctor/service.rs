//! The service that runs: whether it does, as which version, how well, and what it is in doubt about.

use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use reqwest::Client;

use super::Findings;
use crate::app::{Attach, surroundings};
use crate::arrivals::upstream::told;
use crate::config::Config;
use crate::proxy::hub_forward;

const WITHIN: Duration = Duration::from_secs(5);
/// Each session has an agent's link and some connections of a browser, each with two ends.
const FILES_PER_SESSION: u64 = 16;
const FILES_MIN: u64 = 65_536;
const FILES_REMEDY: &str = "LimitNOFILE=262144 in the unit, or ulimit -Hn";

/// True when a service serves this state folder.
pub(super) async fn look(config: &Config, out: &mut Findings) -> bool {
    let attach = std::fs::read(config.state_dir.join("service.json"));
    let attach = attach.ok().and_then(|text| serde_json::from_slice::<Attach>(&text).ok());
    if !surroundings::in_use(&config.state_dir) {
        let left = if attach.is_some() { "; the last one did not end by itself" } else { "" };
        let remedy = "start it; its log tells why it ended";
        out.warning("service", format!("no service runs with this state folder{left}"), remedy);
        out.note("site", "sites are not asked: that is the running service's to do");
        let hard = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(_, hard)| hard);
        files(hard, config, out);
        return false;
    }
    let (Some(attach), Ok(client)) = (attach, hub_forward::client()) else {
        let found = "a service holds this state folder and does not tell where it listens";
        out.error("service", found, "wait until it has started, or read its log");
        return true;
    };
    if attach.version != env!("CARGO_PKG_VERSION") {
        let found = format!("version {} runs, this is {}", attach.version, env!("CARGO_PKG_VERSION"));
        out.warning("service", found, "restart the service; servers live on");
    }
    files(limit_of(attach.pid), config, out);
    health(&client, &attach, out).await;
    doubts(&client, &attach, out).await;
    for (hub, url) in &attach.relays {
        relay(&client, hub, url, out).await;
    }
    true
}

async fn health(client: &Client, attach: &Attach, out: &mut Findings) {
    match client.get(format!("{}/health/ready", attach.metrics)).timeout(WITHIN).send().await {
        Ok(answer) if answer.status().is_success() => {}
        Ok(answer) => {
            let said = answer.text().await.unwrap_or_default();
            out.error(
                "service",
                format!("it is not ready: {}", said.trim().replace('\n', "; ")),
                "read its log",
            );
        }
        Err(error) => {
            let found = format!("{} does not answer: {}", attach.metrics, told(&error.without_url()));
            out.error("listen.metrics", found, "read its log; restart it if it hangs: servers live on");
        }
    }
}

/// What stands in the counts of doubts.
async fn doubts(client: &Client, attach: &Attach, out: &mut Findings) {
    let Ok(answer) = client.get(format!("{}/metrics", attach.metrics)).timeout(WITHIN).send().await else {
        return;
    };
    let text = answer.text().await.unwrap_or_default();
    for entry in crate::notable::all() {
        let series = format!("glidepath_doubts{{what=\"{}\",reason=\"{}\"}} ", entry.what, entry.reason);
        let count =
            text.lines().find_map(|line| line.strip_prefix(&series)).and_then(|n| n.parse::<u64>().ok());
        if let Some(count) = count.filter(|count| *count > 0) {
            out.warning(entry.what, format!("{} ({count} now)", entry.sentence), entry.remedy);
        }
    }
}

/// The relay answers each request to no server by a refusal of its own.
async fn relay(client: &Client, hub: &str, url: &str, out: &mut Findings) {
    let about = format!("hub {hub:?}.relay");
    match client.get(url).timeout(WITHIN).send().await {
        Ok(answer) if answer.headers().contains_key("x-glidepath") => {}
        Ok(_) => {
            out.error(about, format!("at {url} answers something else than the relay"), "correct relay_url")
        }
        Err(error) => {
            let found = format!("{url} does not answer: {}", told(&error.without_url()));
            out.error(about, found, "correct relay_url; look for a firewall between the Hub's proxy and it");
        }
    }
}

fn files(limit: u64, config: &Config, out: &mut Findings) {
    let servers = config.sites.iter().filter_map(|site| site.site.limits.servers).map(u64::from);
    let wanted = servers.sum::<u64>().saturating_mul(FILES_PER_SESSION).max(FILES_MIN);
    if limit < wanted {
        let found =
            format!("{limit} open files are allowed; for the servers that sites take, {wanted} are needed");
        out.warning("open files", found, FILES_REMEDY);
    }
}

/// The hard limit of open files of a process that runs.
fn limit_of(pid: u32) -> u64 {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap_or_default();
    line.split_whitespace().nth(4).and_then(|hard| hard.parse().ok()).unwrap_or(u64::MAX)
}
