//! The Hubs: whether their API is where the config says, and whether their clock agrees with ours.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::header::DATE;

use super::Findings;
use crate::arrivals::upstream::told;
use crate::config::Config;
use crate::proxy::hub_forward;

const WITHIN: Duration = Duration::from_secs(5);
/// Tickets and pages bear a little; beyond this nobody can read two logs side by side.
const SKEW_BEARABLE_S: i64 = 5;
const SKEW_MAX_S: i64 = 60;

pub(super) async fn look(config: &Config, out: &mut Findings) {
    let client = match hub_forward::client() {
        Ok(client) => client,
        Err(error) => return out.error("hub", told(&error), "repair this machine's certificates"),
    };
    for hub in &config.hubs {
        let about = format!("hub {:?}.api_url", hub.name.as_str());
        let url = hub.api.url();
        let answer = match client.get(url.clone()).timeout(WITHIN).send().await {
            Ok(answer) => answer,
            Err(error) => {
                let found = format!("{url} cannot be reached: {}", told(&error.without_url()));
                out.error(about, found, "start the Hub, or correct the address");
                continue;
            }
        };
        skew(&format!("hub {:?}", hub.name.as_str()), answer.headers().get(DATE), out);
        let status = answer.status();
        let said: serde_json::Value = answer.json().await.unwrap_or_default();
        if !status.is_success() || said["version"].as_str().is_none() {
            let found = format!("at {url} answers no JupyterHub API (status {})", status.as_u16());
            out.error(
                about,
                found,
                "correct api_url and base_url: it ends in /hub/api below the Hub's base_url",
            );
        }
    }
}

fn skew(about: &str, date: Option<&reqwest::header::HeaderValue>, out: &mut Findings) {
    let date = date.and_then(|date| date.to_str().ok());
    let Some(theirs) = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok()) else { return };
    let apart = Timestamp::now().as_second() - theirs.timestamp().as_second();
    let found = format!(
        "its clock is {} s {} this machine's",
        apart.abs(),
        if apart > 0 { "behind" } else { "before" }
    );
    if apart.abs() > SKEW_MAX_S {
        out.error(about, found, "let both machines keep their clocks by NTP");
    } else if apart.abs() > SKEW_BEARABLE_S {
        out.warning(about, found, "let both machines keep their clocks by NTP");
    }
}
