//! The whole service in this process: real store, real listeners on chosen ports, batch systems made of memory.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use glidepath_api_types::spawner::{Problem, ServerView, StateName};
use glidepath_domain::backend::Backend;
use glidepath_spawner::app::{App, Attach};
use glidepath_spawner::config::{Config, SiteConfig};
use glidepath_svc_kit::kept::Inherited;
use glidepath_testkit::backend::FakeBackend;
use glidepath_testkit::wait::until_some;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Nothing here takes longer.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A service with two Hubs, `main` and `second`, and two sites, `here` and `far`.
pub(crate) struct House {
    /// Where everything listens.
    pub(crate) attach: Attach,
    /// The batch systems, by site.
    pub(crate) backends: BTreeMap<String, FakeBackend>,
    /// The state folder.
    pub(crate) dir: TempDir,
    stop: CancellationToken,
    served: Option<JoinHandle<anyhow::Result<()>>>,
    client: reqwest::Client,
}

/// An answer, whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) media: String,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json<T: serde::de::DeserializeOwned>(&self) -> T {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// The problem that it must be.
    pub(crate) fn problem(&self) -> Problem {
        assert_eq!(self.media, "application/problem+json", "{self:?}");
        let problem: Problem = self.json();
        assert_eq!(problem.status, self.status.as_u16());
        assert!(!problem.title.is_empty() && !problem.code.is_empty());
        problem
    }

    pub(crate) fn fields(&self) -> Vec<String> {
        let mut fields: Vec<String> = self.problem().problems.into_iter().map(|p| p.field).collect();
        fields.sort();
        fields
    }
}

pub(crate) fn secret(hub: &str) -> String {
    format!("the-random-secret-of-{hub}-0123456789")
}

fn config_text(state_dir: &Path, ip: &str) -> String {
    let hubs = ["main", "second"].map(|hub| {
        let hash: String = Sha256::digest(secret(hub)).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("[[hub]]\nname = \"{hub}\"\nsecret_sha256 = [\"{hash}\"]\napi_url = \"http://127.0.0.1:9\"\nrelay = \"{ip}:0\"\n")
    });
    let work = state_dir.join("work");
    let sites = [("here", "[]"), ("far", r#"[{ kind = "a100", memory_mb = 40960, per_server = 2 }]"#)].map(|(site, gpus)| {
        format!(
            "[[site]]\nname = \"{site}\"\ntitle = \"<The {site} site>\"\nbackend = \"process\"\ngpus = {gpus}\n\
             limits = {{ cores = 8 }}\nprocess.work_root = {work:?}\n"
        )
    });
    let preset = "[[presets]]\nname = \"small\"\ntitle = \"Small\"\ncores = 1\n";
    let listen = format!("[listen]\napi = \"{ip}:0\"\nlink = \"{ip}:0\"\nmetrics = \"{ip}:0\"\n");
    format!("state_dir = {state_dir:?}\n{listen}{preset}{}{}", hubs.concat(), sites.concat())
}

impl House {
    pub(crate) async fn new() -> Self {
        Self::listening_on("127.0.0.1").await
    }

    /// All listeners at this address.
    pub(crate) async fn listening_on(ip: &str) -> Self {
        Self::in_folder(tempfile::tempdir().unwrap(), ip, None).await
    }

    async fn in_folder(dir: TempDir, ip: &str, backends: Option<BTreeMap<String, FakeBackend>>) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default(); // for this client; another test did it
        let path = dir.path().join("config.toml");
        std::fs::write(&path, config_text(&dir.path().join("state"), ip)).unwrap();
        let config = Config::load(&path).unwrap_or_else(|problems| panic!("{problems}"));
        let fresh = || ["here", "far"].map(|name| (name.to_owned(), FakeBackend::queueing())).into();
        let backends: BTreeMap<String, FakeBackend> = backends.unwrap_or_else(fresh);
        let make = |site: &SiteConfig| -> anyhow::Result<Arc<dyn Backend>> {
            Ok(backends[site.site.name.as_str()].shared())
        };
        let stop = CancellationToken::new();
        let app = App::open(config, &make, Inherited::default(), stop.clone()).await.unwrap();
        let attach = app.attach().clone();
        let mut tasks = tokio::task::JoinSet::new();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        tasks.spawn(async move { drop(sender.send(app.serve().await)) });
        let served = Some(keep(tasks, receiver));
        let house = Self { attach, backends, dir, stop, served, client: reqwest::Client::new() };
        house.until_ready().await;
        house
    }

    async fn until_ready(&self) {
        let url = format!("{}/health/ready", self.attach.metrics);
        until_some(SOON, "the service is ready", || async {
            self.client.get(&url).send().await.ok().filter(|answer| answer.status().is_success())
        })
        .await;
    }

    /// Ends the service kindly; the folder and the batch systems stay.
    pub(crate) async fn close(mut self) -> (TempDir, BTreeMap<String, FakeBackend>) {
        self.stop.cancel();
        let served = self.served.take().unwrap();
        tokio::time::timeout(SOON, served).await.expect("it ends").unwrap().expect("it ends well");
        (self.dir, self.backends)
    }

    /// The service anew, in the same folder and with the same batch systems.
    pub(crate) async fn again(dir: TempDir, backends: BTreeMap<String, FakeBackend>) -> Self {
        Self::in_folder(dir, "127.0.0.1", Some(backends)).await
    }

    pub(crate) fn server(&self, hub: &str, user: &str, name: &str) -> String {
        format!("/v1/hubs/{hub}/servers/{hub}.{user}.{name}")
    }

    pub(crate) async fn ask(&self, method: Method, path: &str, hub: &str, body: Option<Value>) -> Answer {
        let request = self
            .client
            .request(method.clone(), format!("{}{path}", self.attach.api))
            .bearer_auth(secret(hub));
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        documented(&method, path, answer(request).await)
    }

    pub(crate) async fn raw(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Answer {
        let url = format!("{}{path}", self.attach.api);
        let mut request = self.client.request(method.clone(), url).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        documented(&method, path, answer(request).await)
    }

    pub(crate) async fn observe(&self, path: &str) -> Answer {
        answer(self.client.get(format!("{}{path}", self.attach.metrics))).await
    }

    /// Does something to the database behind the service's back.
    pub(crate) async fn database(&self, sql: &'static str) {
        database(self.dir.path(), sql).await;
    }

    pub(crate) async fn start(&self, user: &str, options: Value) -> Answer {
        let body = start_body("spawn-1", user, options);
        self.ask(Method::PUT, &self.server("main", user, ""), "main", Some(body)).await
    }

    pub(crate) async fn view(&self, user: &str) -> ServerView {
        self.ask(Method::GET, &self.server("main", user, ""), "main", None).await.json()
    }

    pub(crate) async fn until(&self, user: &str, state: StateName) -> ServerView {
        until_some(SOON, &format!("{user}'s server is {state:?}"), || async {
            Some(self.view(user).await).filter(|view| view.state == state)
        })
        .await
    }

    /// An event stream, as the client reads it.
    pub(crate) async fn events(&self, path: &str, hub: &str, after: Option<u64>) -> Stream {
        let mut request = self.client.get(format!("{}{path}", self.attach.api)).bearer_auth(secret(hub));
        if let Some(after) = after {
            request = request.header("Last-Event-ID", after.to_string());
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Stream { response, buffer: String::new() }
    }
}

pub(crate) fn start_body(spawn_id: &str, user: &str, options: Value) -> Value {
    json!({
        "spawn_id": spawn_id,
        "groups": ["staff"],
        "options": options,
        "argv": ["jupyterhub-singleuser"],
        "env": {"JUPYTERHUB_API_TOKEN": "tok3n-of-the-server", "JUPYTERHUB_API_URL": "http://127.0.0.1:9/hub/api"},
        "prefix": format!("/user/{user}/"),
    })
}

/// Does something to the database of the service with this folder.
pub(crate) async fn database(dir: &Path, sql: &'static str) {
    use sqlx::ConnectOptions as _;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(dir.join("state/glidepath.db"));
    let mut connection = options.connect().await.unwrap();
    sqlx::query(sql).execute(&mut connection).await.unwrap();
}

async fn answer(request: reqwest::RequestBuilder) -> Answer {
    let response = tokio::time::timeout(SOON, request.send()).await.expect("an answer in time").unwrap();
    let headers = response.headers().clone();
    let media =
        headers.get("content-type").map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
    Answer { status: response.status(), media, headers, body: response.text().await.unwrap() }
}

/// Whatever a test is answered, the API's document must tell of it.
fn documented(method: &Method, path: &str, answer: Answer) -> Answer {
    let document: Value = serde_json::from_str(&glidepath_spawner::http::document()).unwrap();
    let parts: Vec<&str> = path.split('?').next().unwrap().split('/').collect();
    let fits = |template: &str| {
        let template: Vec<&str> = template.split('/').collect();
        let same = |(wanted, got): (&&str, &&str)| wanted.starts_with('{') || wanted == got;
        template.len() == parts.len() && template.iter().zip(&parts).all(same)
    };
    let item = document["paths"].as_object().unwrap().iter().find(|(template, _)| fits(template));
    let operation = item.and_then(|(_, item)| item.get(method.as_str().to_lowercase()));
    if let Some(operation) = operation {
        let told = operation["responses"].get(answer.status.as_str()).is_some();
        assert!(told, "{method} {path}: {} is not documented", answer.status);
    }
    answer
}

/// Holds the set of tasks until the result is there.
#[expect(
    clippy::disallowed_methods,
    reason = "the handle is awaited by `close`, or dropped with the test's runtime"
)]
fn keep(
    tasks: tokio::task::JoinSet<()>,
    receiver: tokio::sync::oneshot::Receiver<anyhow::Result<()>>,
) -> JoinHandle<anyhow::Result<()>> {
    tokio::task::spawn(async move {
        let result = receiver.await;
        drop(tasks);
        result?
    })
}

/// Server-sent events.
pub(crate) struct Stream {
    response: reqwest::Response,
    buffer: String,
}

impl Stream {
    /// The next block, as `(field, value)` lines.
    pub(crate) async fn block(&mut self) -> Vec<(String, String)> {
        loop {
            if let Some((block, rest)) = self.buffer.split_once("\n\n") {
                let lines = block.lines().map(|line| {
                    let (field, value) = line.split_once(':').unwrap_or((line, ""));
                    (field.to_owned(), value.trim_start().to_owned())
                });
                let lines = lines.collect();
                self.buffer = rest.to_owned();
                return lines;
            }
            let chunk =
                tokio::time::timeout(SOON, self.response.chunk()).await.expect("an event in time").unwrap();
            self.buffer.push_str(std::str::from_utf8(&chunk.expect("the stream goes on")).unwrap());
        }
    }

    /// The next event of a server: its id, if it has one, and the server.
    pub(crate) async fn event(&mut self) -> (Option<u64>, ServerView) {
        loop {
            let block: BTreeMap<String, String> = self.block().await.into_iter().collect();
            if let Some(data) = block.get("data") {
                assert_eq!(block["event"], "server");
                let id = block.get("id").map(|id| id.parse().unwrap());
                return (id, serde_json::from_str(data).unwrap());
            }
        }
    }

    /// True when the other end closes it in time.
    pub(crate) async fn ends(mut self) -> bool {
        let end = async { while let Ok(Some(_)) = self.response.chunk().await {} };
        tokio::time::timeout(SOON, end).await.is_ok()
    }
}
