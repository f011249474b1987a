//! What a job and its agent are given: the dial file, and the launch order for the link. Pure.

use std::collections::BTreeMap;

use glidepath_api_types::agent::{DialFile, LaunchOrder, Limits, ListenOn, Trust};
use glidepath_domain::names::Attempt;
use glidepath_domain::policy::Granted;
use glidepath_domain::run::Deadlines;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};

/// Environment variables whose URLs lead to the Hub's API: the agent puts itself in between.
const HUB_URL_VARS: [&str; 2] = ["JUPYTERHUB_API_URL", "JUPYTERHUB_ACTIVITY_URL"];
/// Where the server believes that it listens. Any other port, or a socket's URL, makes jupyterhub-singleuser give up.
const SERVICE_URL_VAR: &str = "JUPYTERHUB_SERVICE_URL";
/// The Hub's token of one server.
const TOKEN_VAR: &str = "JUPYTERHUB_API_TOKEN";
/// What an agent may take longer than its home to give up dialling: home's own deadline comes first.
const DIAL_SPARE_S: u64 = 600;

/// The secret part of an order to start a server, as it rests sealed in the store.
#[derive(Serialize, Deserialize)]
pub(super) struct SealedOrder {
    argv: Vec<String>,
    env: BTreeMap<String, String>,
    prefix: String,
    working_dir: Option<String>,
    /// Fields of the user's `auth_state`, kept for whoever fetches tokens for this run. Never part of a launch.
    #[serde(default)]
    auth_state: BTreeMap<String, String>,
}

impl SealedOrder {
    pub(super) fn new(order: &super::SpawnOrder) -> Self {
        Self {
            argv: order.argv.clone(),
            env: exposed(&order.env),
            prefix: order.prefix.clone(),
            working_dir: order.working_dir.clone(),
            auth_state: exposed(&order.auth_state),
        }
    }

    /// As one secret text.
    pub(super) fn text(&self) -> Result<SecretString, serde_json::Error> {
        serde_json::to_string(self).map(SecretString::from)
    }

    pub(super) fn read(text: &SecretString) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text.expose_secret())
    }

    /// The Hub's token that this server holds.
    pub(super) fn hub_token(&self) -> Option<SecretString> {
        self.env.get(TOKEN_VAR).map(|token| SecretString::from(token.as_str()))
    }

    /// What the agent is told to start.
    pub(super) fn launch(
        self,
        listen: ListenOn,
        walltime_s: u64,
        limits: Limits,
        deadlines: &Deadlines,
    ) -> LaunchOrder {
        let mut argv = self.argv;
        let mut env = self.env;
        let port = match listen {
            ListenOn::UnixSocket => {
                if is_singleuser(&argv) && !argv.iter().any(|argument| argument.contains("{socket}")) {
                    argv.push("--ServerApp.sock={socket}".to_owned());
                }
                "8888"
            }
            ListenOn::LoopbackTcp => "{port}",
        };
        env.insert(SERVICE_URL_VAR.to_owned(), format!("http://127.0.0.1:{port}{}", self.prefix));
        let hub_url_vars = HUB_URL_VARS
            .iter()
            .filter(|name| env.contains_key(**name))
            .map(|name| (*name).to_owned())
            .collect();
        LaunchOrder {
            argv,
            env: env.into_iter().map(|(name, value)| (name, SecretString::from(value))).collect(),
            listen,
            hub_url_vars,
            working_dir: self.working_dir,
            grace_s: u32::try_from(deadlines.grace.as_secs()).unwrap_or(u32::MAX).max(1),
            walltime_s,
            limits,
        }
    }
}

/// What the agent is told of the limits that its user was granted.
pub(super) fn limits(granted: &Granted, warn_before_s: &[u64]) -> Limits {
    Limits {
        idle_s: granted.idle_s.as_ref().map(|bound| bound.most),
        unattended_s: granted.unattended_s.as_ref().map(|bound| bound.most),
        warn_before_s: warn_before_s.to_vec(),
    }
}

fn exposed(secrets: &BTreeMap<String, SecretString>) -> BTreeMap<String, String> {
    secrets.iter().map(|(name, value)| (name.clone(), value.expose_secret().to_owned())).collect()
}

/// The dial file of one attempt, as JSON.
pub(super) fn dial_file(
    attempt: Attempt,
    ticket: SecretString,
    home_url: &str,
    trust: &Trust,
    absence_limit_s: u64,
    deadlines: &Deadlines,
) -> Result<SecretString, serde_json::Error> {
    let file = DialFile {
        version: 1,
        home_url: home_url.to_owned(),
        trust: trust.clone(),
        ticket,
        attempt: attempt.to_string(),
        dial_deadline_s: deadlines.dialling.as_secs().saturating_add(DIAL_SPARE_S),
        absence_limit_s,
    };
    serde_json::to_string(&file).map(SecretString::from)
}

/// Commands that take `--ServerApp.sock`: jupyterhub-singleuser, jupyter-labhub, and wrappers named after them.
fn is_singleuser(argv: &[String]) -> bool {
    let program = argv.first().and_then(|program| program.rsplit('/').next()).unwrap_or_default();
    program.contains("singleuser")
        || program.contains("labhub")
        || argv
            .iter()
            .any(|argument| argument == "jupyterhub.singleuser" || argument == "jupyterhub-singleuser")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(argv: &[&str]) -> SealedOrder {
        let env = [("JUPYTERHUB_API_URL", "http://hub:8081/hub/api"), (TOKEN_VAR, "t0ken"), ("LANG", "C")];
        SealedOrder {
            argv: argv.iter().map(|argument| (*argument).to_owned()).collect(),
            env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            prefix: "/user/ada/".to_owned(),
            working_dir: None,
            auth_state: BTreeMap::from([("access_token".to_owned(), "of-ada".to_owned())]),
        }
    }

    fn launched(argv: &[&str], listen: ListenOn) -> LaunchOrder {
        order(argv).launch(listen, 60, Limits::default(), &Deadlines::default())
    }

    #[test]
    fn singleuser_is_told_to_listen_on_the_socket_and_believes_in_port_8888() {
        let launch = launched(&["/usr/bin/jupyterhub-singleuser", "--debug"], ListenOn::UnixSocket);
        assert_eq!(launch.argv, ["/usr/bin/jupyterhub-singleuser", "--debug", "--ServerApp.sock={socket}"]);
        let url = launch.env[SERVICE_URL_VAR].expose_secret();
        assert_eq!(url, "http://127.0.0.1:8888/user/ada/");
        assert_eq!(launch.hub_url_vars, ["JUPYTERHUB_API_URL"], "only those that are set");
    }

    #[test]
    fn other_commands_and_those_that_place_the_socket_themselves_are_left_alone() {
        assert_eq!(
            launched(&["my-server", "{socket}"], ListenOn::UnixSocket).argv,
            ["my-server", "{socket}"]
        );
        let own = ["jupyterhub-singleuser", "--ServerApp.sock={socket}"];
        assert_eq!(launched(&own, ListenOn::UnixSocket).argv, own);
        assert_eq!(
            launched(&["jupyterhub-singleuser"], ListenOn::LoopbackTcp).argv,
            ["jupyterhub-singleuser"]
        );
        let module = ["python3", "-m", "jupyterhub.singleuser"];
        assert_eq!(launched(&module, ListenOn::UnixSocket).argv.len(), 4);
    }

    #[test]
    fn a_sealed_order_reads_back_with_its_token() {
        let read = SealedOrder::read(&order(&["x"]).text().unwrap()).unwrap();
        assert_eq!(read.hub_token().unwrap().expose_secret(), "t0ken");
        assert_eq!(read.auth_state["access_token"], "of-ada");
    }

    #[test]
    fn auth_state_is_kept_and_goes_to_no_site() {
        let launch = launched(&["jupyterhub-singleuser"], ListenOn::UnixSocket);
        assert!(!serde_json::to_string(&launch).unwrap().contains("of-ada"));
    }
}
