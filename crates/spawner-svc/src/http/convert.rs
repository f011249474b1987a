//! Where wire shapes and the values of the floors below meet, and nowhere else.
//!
//! In: bodies, as they came. Out: checked orders, or every problem with its field. Back: views in wire shapes.

use std::collections::BTreeMap;

use glidepath_api_types::spawner::{
    Adopted, EndView, FieldProblem, Life, LimitsView, NearEndView, PlacementBody, ServerView, StartBody,
    StartReply, StateName, UsageView, VerdictView,
};
use glidepath_domain::names::{HubName, RunId, ServerKey, ServerName, UserName};
use glidepath_domain::placement::Verdict;
use glidepath_domain::request::{BadOption, SpawnRequest, check_options};
use glidepath_domain::resources::Resources;
use glidepath_domain::run::{self, End, Moment};
use glidepath_svc_kit::problems::Problems;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value};

use super::offer::Offer;
use crate::arrivals::routes::Routes;
use crate::spawn::{NearEnd, RunView, SpawnOrder, Started};

const SPAWN_ID_MAX_BYTES: usize = 128;
const PREFIX_MAX_BYTES: usize = 2048;
const GROUPS_MAX: usize = 1000;
const ARGUMENTS_MAX: usize = 256;
const VARIABLES_MAX: usize = 1024;
const PATH_MAX_BYTES: usize = 4096;
/// Longest argument, and longest variable with its name and the `=`: Linux takes 128 KiB, with a zero byte at the end.
const WORD_MAX_BYTES: usize = 128 * 1024 - 1;
/// Longest name of a variable that a problem is told by.
const NAME_TOLD_BYTES: usize = 128;

/// A checked order, or every problem of the body.
pub(super) fn order(key: ServerKey, body: StartBody, offer: &Offer) -> Result<SpawnOrder, Problems> {
    let mut problems = Problems::default();
    let p = &mut problems;
    if body.spawn_id.is_empty() || body.spawn_id.len() > SPAWN_ID_MAX_BYTES || !printable(&body.spawn_id) {
        p.add(
            "spawn_id",
            format!("must be a word of 1 to {SPAWN_ID_MAX_BYTES} characters, made afresh for every spawn"),
        );
    }
    groups(&body.groups, p);
    argv(&body.argv, p);
    env(&body.env, p);
    prefix(&body.prefix, p);
    if body
        .working_dir
        .as_ref()
        .is_some_and(|dir| dir.is_empty() || dir.len() > PATH_MAX_BYTES || has_nul(dir))
    {
        p.add("working_dir", "must be a path; leave it out for the home");
    }
    let asked = options(&body.options, offer, "options.", p);
    let order = asked.map(|(resources, site)| SpawnOrder {
        request: SpawnRequest { key, groups: body.groups, resources, site },
        spawn_id: body.spawn_id,
        argv: body.argv,
        env: body.env,
        prefix: body.prefix,
        working_dir: body.working_dir,
        auth_state: body.auth_state,
    });
    problems.or(order)
}

/// Who would ask and for what, with what is wrong in the options. The request is for any site, so that each gets a
/// verdict of its own; what the user chose is beside it.
pub(super) fn question(
    hub: HubName,
    body: &PlacementBody,
    offer: &Offer,
) -> Result<(SpawnRequest, Option<String>, Vec<FieldProblem>), Problems> {
    let mut problems = Problems::default();
    let user = problems.keep("user", UserName::parse(&body.user));
    let server = problems.keep("server", ServerName::parse(&body.server));
    groups(&body.groups, &mut problems);
    let (user, server) = problems.or(user.zip(server))?;
    let (resources, site, wrong) = match checked(&body.options, offer) {
        Ok((resources, site)) => (resources, site.map(|site| site.to_string()), Vec::new()),
        Err(bad) => (offer.defaults().resources.clone(), None, bad.into_iter().map(field_problem).collect()),
    };
    let key = ServerKey { hub, user, server };
    Ok((SpawnRequest { key, groups: body.groups.clone(), resources, site: None }, site, wrong))
}

/// A run that a query names.
pub(super) fn run(raw: Option<&str>) -> Result<Option<RunId>, Problems> {
    let mut problems = Problems::default();
    let run = raw.and_then(|raw| problems.keep("run", RunId::parse(raw)));
    problems.or(Some(run))
}

/// Answer to a start.
pub(super) fn started(started: Started, relay_url: &str) -> StartReply {
    let adopted = started.adopted.map(|hub_token| Adopted { hub_token });
    StartReply { server: view(started.view, relay_url), adopted }
}

/// One server. The relay's URL goes with it while it is ready.
pub(super) fn view(view: RunView, relay_url: &str) -> ServerView {
    let chosen = view.site.as_ref().map(ToString::to_string);
    let limits = limits(&view);
    ServerView {
        key: view.key.full(),
        user: view.key.user.to_string(),
        server: view.key.server.to_string(),
        run: Some(view.run.to_string()),
        attempt: view.attempt,
        state: state(view.state),
        life: life(view.life),
        message: view.message,
        progress: view.progress,
        queue_position: view.queue_position,
        predicted_wait_s: view.predicted_wait_s,
        url: (view.state == run::State::Ready).then(|| relay_url.to_owned()),
        end: view.end.map(end),
        verdicts: verdicts(view.verdicts, chosen.as_deref()),
        site: chosen,
        requested_at: Some(time(view.requested_at)),
        since: Some(time(view.since)),
        usage: view.usage.map(|used| UsageView {
            cpu_s: used.cpu_s,
            memory_bytes: used.memory_bytes,
            memory_peak_bytes: used.memory_peak_bytes,
        }),
        limits,
        near_ends: view.near_ends.into_iter().map(near_end).collect(),
    }
}

/// One server, also when there never was one.
pub(super) fn view_or_none(found: Option<RunView>, key: &ServerKey, relay_url: &str) -> ServerView {
    match found {
        Some(found) => view(found, relay_url),
        None => ServerView {
            key: key.full(),
            user: key.user.to_string(),
            server: key.server.to_string(),
            run: None,
            attempt: None,
            state: StateName::None,
            life: Life::Gone,
            site: None,
            message: "There is no server.".to_owned(),
            progress: 0,
            queue_position: None,
            predicted_wait_s: None,
            url: None,
            end: None,
            verdicts: Vec::new(),
            requested_at: None,
            since: None,
            usage: None,
            limits: None,
            near_ends: Vec::new(),
        },
    }
}

/// Verdicts, with the one marked that is, or would be, taken.
pub(super) fn verdicts(verdicts: Vec<Verdict>, chosen: Option<&str>) -> Vec<VerdictView> {
    let shaped = verdicts.into_iter().map(|verdict| VerdictView {
        chosen: Some(verdict.site.as_str()) == chosen,
        site: verdict.site.to_string(),
        title: verdict.title,
        fits: verdict.fits,
        sentence: verdict.sentence,
        predicted_wait_s: verdict.predicted_wait_s,
    });
    shaped.collect()
}

/// Which of these would be taken: the one that the user chose, if it fits, or the best.
pub(super) fn would_take(verdicts: &[Verdict], chosen: Option<&str>) -> Option<String> {
    let fitting = verdicts.iter().filter(|verdict| verdict.fits);
    let taken = match chosen {
        Some(chosen) => fitting.into_iter().find(|verdict| verdict.site.as_str() == chosen),
        None => fitting.into_iter().next(),
    };
    taken.map(|verdict| verdict.site.to_string())
}

fn options(
    raw: &Map<String, Value>,
    offer: &Offer,
    prefix: &str,
    p: &mut Problems,
) -> Option<(Resources, Option<glidepath_domain::names::SiteName>)> {
    let told = |bad: BadOption, p: &mut Problems| p.add(format!("{prefix}{}", bad.field), bad.sentence);
    match checked(raw, offer) {
        Ok(asked) => Some(asked),
        Err(bad) => {
            bad.into_iter().for_each(|bad| told(bad, p));
            None
        }
    }
}

fn checked(
    raw: &Map<String, Value>,
    offer: &Offer,
) -> Result<(Resources, Option<glidepath_domain::names::SiteName>), Vec<BadOption>> {
    check_options(raw, offer.defaults(), offer.site_names())
}

fn field_problem(bad: BadOption) -> FieldProblem {
    FieldProblem { field: bad.field, message: bad.sentence }
}

fn groups(groups: &[String], p: &mut Problems) {
    if groups.len() > GROUPS_MAX
        || groups.iter().any(|group| group.len() > 1024 || group.chars().any(char::is_control))
    {
        p.add("groups", format!("must be at most {GROUPS_MAX} names without control characters"));
    }
}

fn argv(argv: &[String], p: &mut Problems) {
    if argv.first().is_none_or(String::is_empty) {
        p.add("argv", "must name a program first");
    }
    if argv.len() > ARGUMENTS_MAX || argv.iter().any(|argument| has_nul(argument)) {
        p.add("argv", format!("must be at most {ARGUMENTS_MAX} texts without NUL"));
    }
    if argv.iter().any(|argument| argument.len() > WORD_MAX_BYTES) {
        p.add(
            "argv",
            format!("must have arguments of at most {WORD_MAX_BYTES} bytes: no program is given more"),
        );
    }
}

fn env(env: &BTreeMap<String, SecretString>, p: &mut Problems) {
    if env.len() > VARIABLES_MAX {
        p.add("env", format!("must have at most {VARIABLES_MAX} variables"));
    }
    if env.keys().any(|name| name.is_empty() || name.contains('=') || has_nul(name)) {
        p.add("env", "must have names that are not empty and have neither = nor NUL");
    }
    for (name, value) in env {
        let value = value.expose_secret();
        let key = if name.len() > NAME_TOLD_BYTES { "env".to_owned() } else { format!("env.{name}") };
        if has_nul(value) {
            p.add(key.clone(), "must be a text without NUL");
        }
        if name.len() + 1 + value.len() > WORD_MAX_BYTES {
            p.add(
                key,
                format!("must be at most {WORD_MAX_BYTES} bytes with its name: no program is given more"),
            );
        }
    }
}

fn prefix(prefix: &str, p: &mut Problems) {
    if !prefix.ends_with('/') || prefix.len() > PREFIX_MAX_BYTES || !printable(prefix) || prefix.contains(' ')
    {
        p.add("prefix", "must be JUPYTERHUB_SERVICE_PREFIX: a path that starts and ends with a slash");
    } else {
        p.keep("prefix", Routes::check_prefix(prefix));
    }
}

fn printable(raw: &str) -> bool {
    !raw.chars().any(char::is_control)
}

fn has_nul(raw: &str) -> bool {
    raw.contains('\0')
}

fn state(state: run::State) -> StateName {
    match state {
        run::State::Requested => StateName::Requested,
        run::State::Placed => StateName::Placed,
        run::State::Submitting => StateName::Submitting,
        run::State::Queued => StateName::Queued,
        run::State::Dialling => StateName::Dialling,
        run::State::Starting => StateName::Starting,
        run::State::Ready => StateName::Ready,
        run::State::Stopping => StateName::Stopping,
        run::State::Ended => StateName::Ended,
    }
}

fn life(life: run::Life) -> Life {
    match life {
        run::Life::Alive => Life::Alive,
        run::Life::Gone => Life::Gone,
        run::Life::Unknown => Life::Unknown,
    }
}

fn limits(view: &RunView) -> Option<LimitsView> {
    view.attempt.map(|_| LimitsView {
        walltime_s: view.walltime_s,
        lives_until: view.lives_until.map(time),
        idle_s: view.granted.idle_s.as_ref().map(|bound| bound.most),
        unattended_s: view.granted.unattended_s.as_ref().map(|bound| bound.most),
        message: view.granted.in_words(),
    })
}

fn near_end(near: NearEnd) -> NearEndView {
    NearEndView {
        reason: near.reason.as_str().to_owned(),
        ends_at: time(near.ends_at),
        before_s: near.before_s,
    }
}

fn end(end: End) -> EndView {
    EndView {
        reason: end.reason.as_str().to_owned(),
        message: end.message,
        exit_code: end.exit_code,
        signal: end.signal,
        last_lines: end.last_lines,
        at: time(end.at),
    }
}

fn time(moment: Moment) -> String {
    let ms = i64::try_from(moment.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms)
        .map_or_else(|_| "9999-12-31T23:59:59Z".to_owned(), |at| format!("{at:.3}"))
}
