//! The door of the fuzz target: any text as a config file. Not for use.

use std::path::Path;

use glidepath_svc_kit::problems::Problems;

use super::Config;

/// The first byte says TOML or JSON. What is refused is refused with a place for each problem; what is taken shows no
/// secret and is taken the same again.
pub fn config(input: &[u8]) {
    let Some((kind, text)) = input.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let path = Path::new(if kind % 2 == 0 { "/nowhere/c.toml" } else { "/nowhere/c.json" });
    match Config::from_text(path, text) {
        Ok(config) => {
            let again = Config::from_text(path, text).map_err(|problems| problems.to_string());
            assert_eq!(again.map(|again| format!("{again:?}")), Ok(format!("{config:?}")));
            assert!(!config.hubs.is_empty() && !config.sites.is_empty(), "it serves nobody, nowhere");
            for hub in &config.hubs {
                assert!(hub.base_url.starts_with('/') && hub.base_url.ends_with('/'), "{:?}", hub.base_url);
                assert!(
                    hub.api.url().path().starts_with(hub.base_url.as_str())
                        || !hub.api.url().cannot_be_a_base()
                );
            }
        }
        Err(problems) => check(&problems),
    }
}

fn check(problems: &Problems) {
    assert!(!problems.is_empty(), "refused without a word");
    for problem in problems.iter() {
        assert!(!problem.key.is_empty(), "a problem of nothing: {}", problem.message);
        assert!(!problem.message.is_empty(), "{} has no problem", problem.key);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_file_that_was_kept_or_changed_is_taken_whole_or_refused_with_a_place() {
        glidepath_testkit::corpus::replay("config", 3_000, super::config);
    }
}
