//! `doctor`: what is wrong with a deployment, and the remedies.

use std::path::Path;
use std::process::ExitCode;

use glidepath_svc_kit::kept::Inherited;

use super::words::{coloured, in_colour, plain};
use super::{complain, say};
use crate::config::Config;
use crate::doctor::{Finding, Weight, examine};

const CODE_WARNINGS: u8 = 1;
const CODE_ERRORS: u8 = 2;

/// Tells it. Exit code 0 when nothing is wrong, 1 with warnings, 2 with errors.
pub(super) async fn tell(path: Option<&Path>, inherited: &Inherited, as_json: bool) -> ExitCode {
    let Some(path) = path else {
        complain("name the config: glidepath-spawner --config FILE doctor");
        return ExitCode::from(CODE_ERRORS);
    };
    let findings = match Config::load(path) {
        Ok(config) => examine(&config, inherited).await,
        Err(problems) => problems.iter().map(|problem| of_config(&problem.key, &problem.message)).collect(),
    };
    if as_json {
        say(&format!("{}\n", serde_json::json!(findings)));
    } else {
        say(&in_words(&findings));
    }
    match findings.iter().map(|finding| finding.weight).max() {
        Some(Weight::Error) => ExitCode::from(CODE_ERRORS),
        Some(Weight::Warning) => ExitCode::from(CODE_WARNINGS),
        Some(Weight::Note) | None => ExitCode::SUCCESS,
    }
}

fn of_config(key: &str, message: &str) -> Finding {
    let remedy = "correct the file; nothing else is looked at before".to_owned();
    Finding { weight: Weight::Error, about: key.to_owned(), found: message.to_owned(), remedy }
}

fn in_words(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { weight, about, found, remedy } in findings {
        let (word, colour) = match weight {
            Weight::Error => ("error  ", "31"),
            Weight::Warning => ("warning", "33"),
            Weight::Note => ("note   ", "2"),
        };
        text += &format!("{}  {}: {}\n", coloured(word, colour, in_colour()), plain(about), plain(found));
        if !remedy.is_empty() {
            text += &format!("         → {remedy}\n");
        }
    }
    let count = |wanted| findings.iter().filter(|finding| finding.weight == wanted).count();
    let told = |n: usize, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
    let (errors, warnings) = (count(Weight::Error), count(Weight::Warning));
    text + &format!("{}, {}\n", told(errors, "error"), told(warnings, "warning"))
}
