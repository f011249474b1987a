//! What users are offered, and how that is drawn: presets, plain fields, each site with its verdict.
//!
//! In: the operator's presets and sites, a choice so far, what placement says of it. Out: the options form as HTML in
//! which every text is escaped.

use std::collections::BTreeSet;

use glidepath_api_types::spawner::{PlacementBody, PlacementReply};
use glidepath_domain::names::SiteName;
use glidepath_domain::request::{self, Defaults};
use glidepath_domain::resources::{Gpus, Resources};
use glidepath_domain::site::{Home, Site};
use serde::Serialize;
use serde_json::{Map, Value};
use tera::{Context, Tera};

use crate::config::Preset;

const TEMPLATE: &str = "form.html"; // the ending makes tera escape
const TEMPLATE_TEXT: &str = include_str!("../../templates/form.html");
/// Longest text of a choice so far that is shown again.
const SHOWN_MAX_CHARS: usize = 80;

/// Why the form cannot be drawn.
#[derive(Debug, thiserror::Error)]
#[error("the options form")]
pub struct FormError(#[from] tera::Error);

/// What users are offered. Built once from config.
pub(super) struct Offer {
    defaults: Defaults,
    presets: Vec<Preset>,
    sites: Vec<Site>,
    site_names: Vec<SiteName>,
    templates: Tera,
}

impl Offer {
    /// Reads the template.
    pub(super) fn new(defaults: Defaults, presets: Vec<Preset>, sites: Vec<Site>) -> Result<Self, FormError> {
        let mut templates = Tera::default();
        templates.add_raw_template(TEMPLATE, TEMPLATE_TEXT)?;
        let site_names = sites.iter().map(|site| site.name.clone()).collect();
        Ok(Self { defaults, presets, sites, site_names, templates })
    }

    pub(super) fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    pub(super) fn site_names(&self) -> &[SiteName] {
        &self.site_names
    }

    /// Draws the form for this choice and what placement says of it.
    pub(super) fn draw(&self, body: &PlacementBody, reply: &PlacementReply) -> Result<String, FormError> {
        let preset = self.preset_shown(&body.options);
        let stand_in = self.presets.iter().find(|one| Some(&one.name) == preset.as_ref());
        let stand_in = stand_in.map_or(&self.defaults.resources, |one| &one.resources);
        let kinds: BTreeSet<&str> =
            self.sites.iter().flat_map(|site| site.gpus.iter().map(|gpu| gpu.kind.as_str())).collect();
        let archs: BTreeSet<&str> =
            self.sites.iter().flat_map(|site| site.archs.iter().map(|arch| arch.as_str())).collect();
        let mut context = Context::new();
        context.insert("presets", &self.presets.iter().map(Card::of).collect::<Vec<_>>());
        context.insert("preset", &preset.unwrap_or_default());
        context.insert("fields", &self.fields(&body.options));
        context.insert("bounds", &Bounds::around(stand_in));
        context.insert("gpu_kinds", &kinds);
        context.insert("archs", &archs);
        context.insert(
            "chosen",
            &shown(&body.options, "site").filter(|site| self.can_choose(site, reply)).unwrap_or_default(),
        );
        context.insert("verdicts", &self.rows(reply));
        context.insert("problems", &reply.problems);
        context.insert("live_url", body.live_url.as_deref().unwrap_or_default());
        context.insert("user", &body.user);
        context.insert("server", &body.server);
        Ok(self.templates.render(TEMPLATE, &context)?)
    }

    /// The preset that is picked at first: the one chosen before, or the first one when nothing was.
    fn preset_shown(&self, options: &Map<String, Value>) -> Option<String> {
        let before = shown(options, "preset").filter(|name| self.presets.iter().any(|one| one.name == *name));
        let fresh = options.keys().all(|name| name == "site");
        before.or_else(|| self.presets.first().filter(|_| fresh).map(|one| one.name.clone()))
    }

    /// What the plain fields hold: the choice so far. An empty field takes the preset's value, or the default.
    fn fields(&self, options: &Map<String, Value>) -> Map<String, Value> {
        let plain = &self.defaults.resources;
        let default_of = |name: &str| match name {
            _ if !self.presets.is_empty() => String::new(),
            "cores" => plain.cores.to_string(),
            "memory_mb" => plain.memory_mb.to_string(),
            "gpus" => plain.gpus.count.to_string(),
            "walltime_min" => plain.walltime_min.to_string(),
            _ => String::new(),
        };
        let value = |name: &str| shown(options, name).unwrap_or_else(|| default_of(name));
        request::OPTIONS.iter().map(|name| ((*name).to_owned(), value(name).into())).collect()
    }

    fn can_choose(&self, site: &str, reply: &PlacementReply) -> bool {
        reply.verdicts.iter().any(|verdict| verdict.site == site && verdict.fits)
    }

    fn rows(&self, reply: &PlacementReply) -> Vec<Row> {
        let scratch = |name: &str| {
            self.sites.iter().any(|site| site.name.as_str() == name && site.home == Home::Scratch)
        };
        let row = |verdict: &glidepath_api_types::spawner::VerdictView| Row {
            site: verdict.site.clone(),
            title: verdict.title.clone(),
            fits: verdict.fits,
            sentence: verdict.sentence.clone(),
            home: if scratch(&verdict.site) { "scratch" } else { "kept" },
        };
        reply.verdicts.iter().map(row).collect()
    }
}

/// A choice so far, as the page shows it again: bounded, and never more than text.
fn shown(options: &Map<String, Value>, name: &str) -> Option<String> {
    let text = match options.get(name)? {
        Value::Null => return None,
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let text: String = text.trim().chars().filter(|c| !c.is_control()).take(SHOWN_MAX_CHARS).collect();
    Some(text).filter(|text| !text.is_empty())
}

#[derive(Serialize)]
struct Card {
    name: String,
    title: String,
    description: String,
    summary: String,
    cores: u32,
    memory_mb: u64,
    gpus: u32,
    walltime_min: u32,
}

impl Card {
    fn of(preset: &Preset) -> Self {
        let Resources { cores, memory_mb, gpus, walltime_min, .. } = &preset.resources;
        Self {
            name: preset.name.clone(),
            title: preset.title.clone(),
            description: preset.description.clone(),
            summary: summary(&preset.resources),
            cores: *cores,
            memory_mb: *memory_mb,
            gpus: gpus.count,
            walltime_min: *walltime_min,
        }
    }
}

fn summary(resources: &Resources) -> String {
    let Resources { cores, memory_mb, gpus, .. } = resources;
    let cores = if *cores == 1 { "1 core".to_owned() } else { format!("{cores} cores") };
    let memory = if memory_mb.is_multiple_of(1024) {
        format!("{} GB", memory_mb / 1024)
    } else {
        format!("{memory_mb} MB")
    };
    let gpus = match gpus {
        Gpus { count: 0, .. } => String::new(),
        Gpus { count, kind: Some(kind), .. } => format!(" · {count} × {kind}"),
        Gpus { count: 1, .. } => " · 1 GPU".to_owned(),
        Gpus { count, .. } => format!(" · {count} GPUs"),
    };
    format!("{cores} · {memory}{gpus}")
}

#[derive(Serialize)]
struct Bounds {
    cores: u32,
    memory_mb: u64,
    gpus: u32,
    walltime_min: u32,
    default_cores: u32,
    default_memory_mb: u64,
    default_gpus: u32,
    default_walltime_min: u32,
}

impl Bounds {
    fn around(stand_in: &Resources) -> Self {
        Self {
            cores: request::CORES_MAX,
            memory_mb: request::MEMORY_MB_MAX,
            gpus: request::GPUS_MAX,
            walltime_min: request::WALLTIME_MIN_MAX,
            default_cores: stand_in.cores,
            default_memory_mb: stand_in.memory_mb,
            default_gpus: stand_in.gpus.count,
            default_walltime_min: stand_in.walltime_min,
        }
    }
}

#[derive(Serialize)]
struct Row {
    site: String,
    title: String,
    fits: bool,
    sentence: String,
    home: &'static str,
}

#[cfg(test)]
pub(super) fn draw(
    offer: &Offer,
    body: &PlacementBody,
    verdicts: Vec<glidepath_api_types::spawner::VerdictView>,
    problems: Vec<glidepath_api_types::spawner::FieldProblem>,
) -> String {
    offer.draw(body, &PlacementReply { verdicts, problems }).expect("the template draws")
}
