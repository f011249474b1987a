//! A site as tests need one: named, and otherwise without a wish.

use std::collections::BTreeMap;

use glidepath_domain::names::SiteName;
use glidepath_domain::site::{Access, Home, Limits, Reach, Site};

/// A site behind a tunnel that everybody may use, without limits. Tests change the fields that they are about.
#[must_use]
pub fn site(name: SiteName) -> Site {
    Site {
        title: name.to_string(),
        name,
        labels: BTreeMap::new(),
        reach: Reach::Tunnel,
        limits: Limits::default(),
        archs: vec![],
        gpus: vec![],
        access: Access::Everyone,
        home: Home::Kept,
        preference: 0,
    }
}
