//! A checked request for a server: who asks, for what, and where it may run.
//!
//! In: options as a form or a REST call gave them (numbers or numeric texts), the operator's defaults and presets,
//! the known sites. Out: resources and a site, or *every* problem with its field and remedy. A field of its own beats
//! the preset, the preset beats the default; an empty text is a field that was left out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::names::{ServerKey, SiteName};
use crate::resources::{Arch, Gpus, Resources};

/// A request that has been checked: the only thing placement and the life cycle take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpawnRequest {
    /// The server that is asked for.
    pub key: ServerKey,
    /// The user's groups, as the Hub says.
    pub groups: Vec<String>,
    /// What it needs.
    pub resources: Resources,
    /// `None` lets Glidepath choose; a name takes that site or none.
    pub site: Option<SiteName>,
}

/// What stands in for options that a user left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// When no preset is named.
    pub resources: Resources,
    /// By name, as [`PRESET_NAME_RULE`] has it.
    pub presets: BTreeMap<String, Resources>,
}

/// One wrong option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadOption {
    /// The option's name, as the user wrote it.
    pub field: String,
    /// What is wrong and what would be right; plain text.
    pub sentence: String,
}

/// Every option there is.
pub const OPTIONS: [&str; 9] =
    ["site", "cores", "memory_mb", "gpus", "gpu_kind", "gpu_memory_mb", "arch", "walltime_min", "preset"];

/// The greatest number of cores that can be asked for.
pub const CORES_MAX: u32 = 1024;
/// The least memory that can be asked for, in MiB.
pub const MEMORY_MB_MIN: u64 = 128;
/// The greatest memory that can be asked for, in MiB: 16 TiB.
pub const MEMORY_MB_MAX: u64 = 16 * 1024 * 1024;
/// The greatest number of GPUs that can be asked for.
pub const GPUS_MAX: u32 = 64;
/// The greatest GPU memory that can be asked for, in MiB: 1 TiB.
pub const GPU_MEMORY_MB_MAX: u64 = 1024 * 1024;
/// The longest walltime that can be asked for, in minutes: a year.
pub const WALLTIME_MIN_MAX: u32 = 366 * 24 * 60;

/// The form of a preset's name and of a GPU kind, in words.
pub const PRESET_NAME_RULE: &str = "1 to 63 of a-z, 0-9, `-`, `_` and `.`, starting with a letter or digit";

/// True for a text that [`PRESET_NAME_RULE`] allows: nothing that any template, shell or submit file gives a meaning.
#[must_use]
pub fn is_word(raw: &str) -> bool {
    (1..=63).contains(&raw.len())
        && raw.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.'))
        && raw.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// Checks a user's options. Tells every problem, not the first.
pub fn check_options(
    options: &Map<String, Value>,
    defaults: &Defaults,
    sites: &[SiteName],
) -> Result<(Resources, Option<SiteName>), Vec<BadOption>> {
    let mut bad = unknown_options(options);
    let mut read = Reader { options, bad: &mut bad };
    let base = read.preset(defaults);
    let resources = Resources {
        cores: read.number("cores", 1, u64::from(CORES_MAX), base.cores.into()) as u32,
        memory_mb: read.number("memory_mb", MEMORY_MB_MIN, MEMORY_MB_MAX, base.memory_mb),
        gpus: read.gpus(&base.gpus),
        arch: read.arch(base.arch),
        walltime_min: read.number("walltime_min", 1, u64::from(WALLTIME_MIN_MAX), base.walltime_min.into())
            as u32,
    };
    let site = read.site(sites);
    if bad.is_empty() { Ok((resources, site)) } else { Err(bad) }
}

/// The one of `known` that somebody who wrote `raw` most likely meant; `None` when nothing is near.
#[must_use]
pub fn nearest<'a>(raw: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if raw.chars().count() > 64 {
        return None;
    }
    let raw = raw.to_lowercase();
    let near = |word: &str| {
        let within = word.len() >= 3 && (raw.contains(word) || (raw.len() >= 3 && word.contains(&raw)));
        if within { 1 } else { strsim::osa_distance(&raw, word) }
    };
    let (away, word) = known.into_iter().map(|word| (near(word), word)).min_by_key(|(away, _)| *away)?;
    (away <= 1 + word.chars().count() / 3).then_some(word)
}

fn unknown_options(options: &Map<String, Value>) -> Vec<BadOption> {
    let unknown = options.keys().filter(|key| !OPTIONS.contains(&key.as_str()));
    let told = unknown.map(|key| {
        let remedy = match nearest(key, OPTIONS) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("the options are {}", OPTIONS.join(", ")),
        };
        BadOption { field: shown(key), sentence: format!("there is no such option; {remedy}") }
    });
    told.collect()
}

struct Reader<'a> {
    options: &'a Map<String, Value>,
    bad: &'a mut Vec<BadOption>,
}

impl Reader<'_> {
    fn preset(&mut self, defaults: &Defaults) -> Resources {
        let Some(name) = self.text("preset") else { return defaults.resources.clone() };
        if let Some(found) = defaults.presets.get(&name) {
            return found.clone();
        }
        let names: Vec<&str> = defaults.presets.keys().map(String::as_str).collect();
        let remedy = if names.is_empty() {
            "there are none here; leave it out".to_owned()
        } else {
            format!("choose one of {}", names.join(", "))
        };
        self.refuse("preset", format!("there is no preset {:?}; {remedy}", shown(&name)));
        defaults.resources.clone()
    }

    fn gpus(&mut self, base: &Gpus) -> Gpus {
        let count = self.number("gpus", 0, u64::from(GPUS_MAX), base.count.into()) as u32;
        let kind = match self.text("gpu_kind").map(|kind| kind.to_lowercase()) {
            None => base.kind.clone(),
            Some(any) if any == "any" => None,
            Some(kind) if is_word(&kind) => Some(kind),
            Some(kind) => {
                self.refuse("gpu_kind", format!("must be {PRESET_NAME_RULE}; got {:?}", shown(&kind)));
                None
            }
        };
        let memory_mb = match self.given("gpu_memory_mb") {
            None => base.memory_mb,
            Some(_) => Some(self.number("gpu_memory_mb", 1, GPU_MEMORY_MB_MAX, 1)),
        };
        if count == 0 { Gpus::default() } else { Gpus { count, kind, memory_mb } }
    }

    fn arch(&mut self, base: Option<Arch>) -> Option<Arch> {
        let Some(raw) = self.text("arch") else { return base };
        if raw == "any" {
            return None;
        }
        let arch = Arch::parse(&raw);
        if arch.is_none() {
            self.refuse("arch", format!("must be x86_64, aarch64 or any; got {:?}", shown(&raw)));
        }
        arch
    }

    fn site(&mut self, sites: &[SiteName]) -> Option<SiteName> {
        let raw = self.text("site").filter(|raw| raw != "auto")?;
        if let Some(found) = sites.iter().find(|site| site.as_str() == raw) {
            return Some(found.clone());
        }
        let remedy = match nearest(&raw, sites.iter().map(SiteName::as_str)) {
            Some(near) => format!("did you mean {near}?"),
            None => "leave it out to let Glidepath choose".to_owned(),
        };
        self.refuse("site", format!("there is no site {:?}; {remedy}", shown(&raw)));
        None
    }

    /// The option, unless it was left out.
    fn given(&self, field: &str) -> Option<&Value> {
        self.options.get(field).filter(|value| match value {
            Value::Null => false,
            Value::String(text) => !text.trim().is_empty(),
            _ => true,
        })
    }

    fn text(&mut self, field: &str) -> Option<String> {
        match self.given(field)? {
            Value::String(text) => Some(text.trim().to_owned()),
            other => {
                let got = shown(&other.to_string());
                self.refuse(field, format!("must be a text; got {got}"));
                None
            }
        }
    }

    fn number(&mut self, field: &str, least: u64, most: u64, default: u64) -> u64 {
        let Some(value) = self.given(field) else { return default };
        if let Some(number) = whole(value).filter(|number| (least..=most).contains(number)) {
            return number;
        }
        let got = match value {
            Value::String(text) => format!("{:?}", shown(text)),
            other => shown(&other.to_string()),
        };
        self.refuse(field, format!("must be a whole number from {least} to {most}; got {got}"));
        default
    }

    fn refuse(&mut self, field: &str, sentence: String) {
        self.bad.push(BadOption { field: field.to_owned(), sentence });
    }
}

/// Reads `2`, `2.0` and `"2"`, and nothing that a person would not call a plain whole number.
fn whole(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64().or_else(|| {
            let float =
                number.as_f64().filter(|float| float.fract() == 0.0 && (0.0..=9e15).contains(float))?;
            Some(float as u64)
        }),
        Value::String(text) => {
            let text = text.trim();
            let plain = (1..=18).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| text.parse().ok()).flatten()
        }
        _ => None,
    }
}

/// A bounded part of what somebody sent, without control characters.
fn shown(raw: &str) -> String {
    const SHOWN: usize = 60;
    let mut out: String = raw.chars().filter(|c| !c.is_control()).take(SHOWN).collect();
    if raw.chars().nth(SHOWN).is_some() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn defaults() -> Defaults {
        let plain =
            Resources { cores: 2, memory_mb: 2048, gpus: Gpus::default(), arch: None, walltime_min: 480 };
        let gpus = Gpus { count: 1, kind: Some("a100".to_owned()), memory_mb: None };
        let big = Resources { cores: 16, memory_mb: 65536, gpus, arch: None, walltime_min: 480 };
        Defaults { resources: plain, presets: BTreeMap::from([("big".to_owned(), big)]) }
    }

    fn sites() -> Vec<SiteName> {
        ["here", "far"].map(|name| SiteName::parse(name).unwrap()).to_vec()
    }

    fn check(options: Value) -> Result<(Resources, Option<SiteName>), Vec<BadOption>> {
        let Value::Object(options) = options else { panic!("an object") };
        check_options(&options, &defaults(), &sites())
    }

    fn told(options: Value) -> Vec<String> {
        check(options).unwrap_err().into_iter().map(|bad| format!("{} {}", bad.field, bad.sentence)).collect()
    }

    #[test]
    fn no_options_are_the_defaults_and_glidepath_chooses() {
        assert_eq!(check(json!({})).unwrap(), (defaults().resources, None));
        assert_eq!(
            check(json!({"site": "auto", "cores": "", "gpus": null})).unwrap(),
            (defaults().resources, None)
        );
    }

    #[test]
    fn numbers_and_texts_of_a_form_are_the_same() {
        let as_numbers = json!({"site": "far", "cores": 1, "memory_mb": 1024, "gpus": 0, "walltime_min": 60});
        let as_texts =
            json!({"site": "far", "cores": "1", "memory_mb": " 1024 ", "gpus": "0", "walltime_min": "60"});
        let checked = check(as_numbers).unwrap();
        assert_eq!(checked, check(as_texts).unwrap());
        assert_eq!((checked.0.cores, checked.0.walltime_min), (1, 60));
        assert_eq!(checked.1, Some(SiteName::parse("far").unwrap()));
    }

    #[test]
    fn a_field_beats_the_preset_and_the_preset_the_default() {
        let (got, _) = check(json!({"preset": "big", "cores": 4})).unwrap();
        assert_eq!((got.cores, got.memory_mb, got.gpus.count, got.walltime_min), (4, 65536, 1, 480));
        let (without, _) = check(json!({"preset": "big", "gpus": 0, "gpu_kind": "a100"})).unwrap();
        assert_eq!(without.gpus, Gpus::default(), "no GPU has no kind");
        let (any, _) = check(json!({"preset": "big", "gpu_kind": "any"})).unwrap();
        assert_eq!(any.gpus.kind, None);
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let told = told(json!({
            "site": "fra", "cores": 0, "memory_mb": "lots", "gpus": -1, "gpu_kind": "a100; rm -rf /", "arch": "vax",
            "walltime_min": 1.5, "preset": "huge", "core": 3, "image": "x",
        }));
        assert_eq!(
            told,
            [
                "core there is no such option; did you mean cores?",
                "image there is no such option; the options are site, cores, memory_mb, gpus, gpu_kind, gpu_memory_mb, arch, walltime_min, preset",
                "preset there is no preset \"huge\"; choose one of big",
                "cores must be a whole number from 1 to 1024; got 0",
                "memory_mb must be a whole number from 128 to 16777216; got \"lots\"",
                "gpus must be a whole number from 0 to 64; got -1",
                "gpu_kind must be 1 to 63 of a-z, 0-9, `-`, `_` and `.`, starting with a letter or digit; got \"a100; rm -rf /\"",
                "arch must be x86_64, aarch64 or any; got \"vax\"",
                "walltime_min must be a whole number from 1 to 527040; got 1.5",
                "site there is no site \"fra\"; did you mean far?",
            ]
        );
    }

    #[test]
    fn the_nearest_known_word_is_found_and_nothing_far_off() {
        assert_eq!(nearest("memory", OPTIONS), Some("memory_mb"));
        assert_eq!(nearest("CORES", OPTIONS), Some("cores"));
        assert_eq!(nearest("walltime", OPTIONS), Some("walltime_min"));
        assert_eq!(nearest("colour", OPTIONS), None);
        assert_eq!(nearest("", OPTIONS), None);
    }

    proptest! {
        #[test]
        fn whatever_is_sent_the_answer_is_bounded_and_clean(
            field in proptest::sample::select(&OPTIONS[..]), raw in "\\PC{0,400}|[\\x00-\\x1f\"'$`;{}%<>]{0,40}",
        ) {
            let options = Map::from_iter([(field.to_owned(), Value::String(raw))]);
            match check_options(&options, &defaults(), &sites()) {
                Err(bad) => for bad in bad {
                    prop_assert!(bad.sentence.len() < 1000 && !bad.sentence.chars().any(char::is_control));
                },
                Ok((resources, site)) => {
                    prop_assert!(resources.gpus.kind.is_none_or(|kind| is_word(&kind)));
                    prop_assert!(site.is_none_or(|site| sites().contains(&site)));
                    prop_assert!((1..=CORES_MAX).contains(&resources.cores));
                    prop_assert!((MEMORY_MB_MIN..=MEMORY_MB_MAX).contains(&resources.memory_mb));
                    prop_assert!((1..=WALLTIME_MIN_MAX).contains(&resources.walltime_min));
                }
            }
        }
    }
}
