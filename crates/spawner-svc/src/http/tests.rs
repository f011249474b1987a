//! The options form: what it holds, what it looks like, and that text stays text.

use std::collections::BTreeMap;

use glidepath_api_types::spawner::{FieldProblem, PlacementBody, VerdictView};
use glidepath_domain::names::SiteName;
use glidepath_domain::request::Defaults;
use glidepath_domain::resources::{Arch, Gpus, Resources};
use glidepath_domain::site::{Access, GpuKind, Home, Limits, Reach, Site};
use serde_json::json;

use super::offer::{Offer, draw};
use crate::config::Preset;

const EVIL: &str = r#""><img src=x onerror=alert(1)>'{{ 977*983 }}"#;

fn site(name: &str, gpus: Vec<GpuKind>, home: Home) -> Site {
    Site {
        name: SiteName::parse(name).unwrap(),
        title: format!("The {name} site"),
        labels: BTreeMap::new(),
        reach: Reach::Tunnel,
        limits: Limits::default(),
        archs: vec![Arch::X86_64],
        gpus,
        access: Access::Everyone,
        home,
        preference: 0,
    }
}

fn plain(cores: u32) -> Resources {
    Resources { cores, memory_mb: 2048, gpus: Gpus::default(), arch: None, walltime_min: 480 }
}

fn offer(presets: Vec<Preset>) -> Offer {
    let a100 = GpuKind { kind: "a100".into(), memory_mb: 40960, per_server: 2 };
    let sites = vec![site("here", vec![], Home::Kept), site("far", vec![a100], Home::Scratch)];
    let by_name = presets.iter().map(|one| (one.name.clone(), one.resources.clone())).collect();
    Offer::new(Defaults { resources: plain(1), presets: by_name }, presets, sites).unwrap()
}

fn presets() -> Vec<Preset> {
    let named = |name: &str, title: &str, description: &str, resources| Preset {
        name: name.into(),
        title: title.into(),
        description: description.into(),
        resources,
    };
    let gpus = Gpus { count: 1, kind: Some("a100".into()), memory_mb: None };
    vec![
        named("small", "A small server", "For looking at things", plain(2)),
        named("training", "Training", "", Resources { gpus, memory_mb: 65536, ..plain(16) }),
    ]
}

fn verdict(site: &str, fits: bool, sentence: &str) -> VerdictView {
    VerdictView {
        site: site.into(),
        title: format!("The {site} site"),
        fits,
        chosen: false,
        sentence: sentence.into(),
        predicted_wait_s: None,
    }
}

fn body(options: serde_json::Value) -> PlacementBody {
    let live_url = Some("/hub/services/glidepath/placement".into());
    let options = options.as_object().unwrap().clone();
    PlacementBody { user: "ada".into(), server: String::new(), groups: vec![], options, live_url }
}

fn verdicts() -> Vec<VerdictView> {
    vec![verdict("far", true, "Should start at once."), verdict("here", false, "Has no GPUs.")]
}

/// The page without style and script.
fn markup(html: &str) -> String {
    let after_style = html.split("</style>").nth(1).expect("a style comes first");
    after_style.split("<script>").next().expect("and a script last").to_owned()
}

#[test]
fn the_form_of_a_first_visit() {
    insta::assert_snapshot!(markup(&draw(&offer(presets()), &body(json!({})), verdicts(), vec![])));
}

#[test]
fn the_form_of_a_return_with_a_problem() {
    let chosen = body(
        json!({"preset": "training", "cores": "4", "memory_mb": "lots", "gpu_kind": "a100", "site": "far"}),
    );
    let problem =
        FieldProblem { field: "memory_mb".into(), message: "must be a whole number; got \"lots\"".into() };
    insta::assert_snapshot!(markup(&draw(&offer(presets()), &chosen, verdicts(), vec![problem])));
}

#[test]
fn without_presets_the_fields_hold_the_defaults() {
    let html = draw(&offer(vec![]), &body(json!({})), verdicts(), vec![]);
    assert!(
        html.contains(
            r#"name="cores" type="number" inputmode="numeric" min="1" max="1024" step="1" value="1""#
        ),
        "{html}"
    );
    assert!(!html.contains("name=\"preset\""));
}

#[test]
fn a_site_that_does_not_fit_cannot_be_picked_and_the_service_chooses_instead() {
    let html = draw(&offer(presets()), &body(json!({"site": "here"})), verdicts(), vec![]);
    assert!(html.contains(r#"value="auto" checked"#));
    assert!(html.contains(r#"value="here" disabled"#));
}

#[test]
fn text_from_outside_stays_text_wherever_it_stands() {
    let mut presets = presets();
    (presets[0].title, presets[0].description) = (EVIL.into(), EVIL.into());
    let offer_of_evil = offer(presets);
    let mut said = verdict("far", true, EVIL);
    said.title = EVIL.into();
    let mut asked =
        body(json!({"cores": EVIL, "site": EVIL, "preset": EVIL, "gpu_kind": EVIL, "memory_mb": EVIL}));
    (asked.user, asked.server, asked.live_url) = (EVIL.into(), EVIL.into(), Some(EVIL.into()));
    let problem = FieldProblem { field: EVIL.into(), message: EVIL.into() };
    let html = draw(&offer_of_evil, &asked, vec![said], vec![problem]);
    assert!(!html.contains("<img"), "{html}");
    assert!(!html.contains("960391"), "a template in a text is not run");
    assert!(html.matches("&lt;img src=x onerror=alert(1)&gt;").count() >= 10, "{html}");
    let tags = markup(&html);
    for attribute in tags.split('"').skip(1).step_by(2) {
        assert!(!attribute.contains(['<', '>']), "an attribute was left: {attribute}");
    }
}

#[test]
fn the_script_writes_text_and_never_markup() {
    let template = include_str!("../../templates/form.html");
    for forbidden in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "| safe"] {
        assert!(!template.contains(forbidden), "{forbidden}");
    }
}

#[test]
fn the_document_knows_the_parameters_of_each_path() {
    let document: serde_json::Value = serde_json::from_str(&super::document()).unwrap();
    let mut operations = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        let mut named: Vec<&str> =
            path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
        named.sort_unstable();
        for (method, operation) in item.as_object().unwrap() {
            let parameters = || operation["parameters"].as_array().into_iter().flatten();
            let of_path = parameters().filter(|parameter| parameter["in"] == "path");
            let mut told: Vec<&str> = of_path.map(|parameter| parameter["name"].as_str().unwrap()).collect();
            told.sort_unstable();
            assert_eq!(told, named, "{method} {path}");
            operations += 1;
        }
    }
    assert_eq!(operations, 10);
}

#[test]
fn the_committed_api_document_is_the_one_that_is_served() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(super::DOCUMENT);
    let served = super::document();
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        std::fs::write(&path, &served).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == served, "{} is behind: run this test with UPDATE_GOLDENS=1", path.display());
}
