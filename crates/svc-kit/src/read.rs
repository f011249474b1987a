//! Turns a parsed document into a type and tells *everything* that does not fit, each with its path.
//!
//! serde stops at the first error. Here the part that it stumbled over is noted, taken out, and the rest is tried
//! again, until it reads or nothing can be taken out. The types keep `deny_unknown_fields`: an unknown key is told
//! with the known one nearest to it. What was sent is never repeated in a message: it may be a secret.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::problems::Problems;

/// Problems after which the rest is not looked at.
const ROUNDS: usize = 32;
/// Entries of one table that are tried in the search for the culprit.
const TRIED: usize = 256;

/// Reads `T`, noting all problems below `prefix`. Some of `T` may be read in spite of problems: callers go on checking
/// what there is, and ask the problems in the end whether it counts.
pub fn read<T: DeserializeOwned>(mut value: Value, prefix: &str, problems: &mut Problems) -> Option<T> {
    if !value.is_object() {
        problems.add(if prefix.is_empty() { "document" } else { prefix }, "must be a table");
        return None;
    }
    for _ in 0..ROUNDS {
        let error = match T::deserialize(&value) {
            Ok(read) => return Some(read),
            Err(error) => error.to_string(),
        };
        let missing = between(&error, "missing field `").map(str::to_owned);
        if let Some(field) = missing.as_ref().filter(|field| stand_in::<T>(&mut value, field, &error)) {
            let key = join(prefix, field);
            if !problems.about(&key) {
                problems.add(key, "is missing");
            }
            continue;
        }
        let Some(path) = culprit::<T>(&value, &error, missing.is_some()) else {
            problems.add(if prefix.is_empty() { "document" } else { prefix }, in_words(&error));
            return None;
        };
        let key = path.iter().chain(&missing).fold(prefix.to_owned(), |at, step| join(&at, step));
        match missing {
            Some(_) if problems.about(&key) => {}
            Some(_) => problems.add(key, "is missing"),
            None => problems.add(key, in_words(&error)),
        }
        take(&mut value, &path);
    }
    None
}

/// The way to the smallest part whose absence changes the error.
///
/// With `tables_only`, to the smallest table: something is missing *in* it.
fn culprit<T: DeserializeOwned>(value: &Value, error: &str, tables_only: bool) -> Option<Vec<String>> {
    let mut path: Vec<String> = Vec::new();
    loop {
        let here = path.iter().try_fold(value, |at, step| child(at, step))?;
        let steps: Vec<String> = match here {
            Value::Object(map) => map.keys().take(TRIED).cloned().collect(),
            Value::Array(list) => (0..list.len().min(TRIED)).map(|n| n.to_string()).collect(),
            _ => break,
        };
        let found = steps
            .into_iter()
            .filter(|step| !tables_only || child(here, step).is_some_and(Value::is_object))
            .find(|step| {
                let mut without = value.clone();
                let way: Vec<String> = path.iter().chain([step]).cloned().collect();
                take(&mut without, &way);
                T::deserialize(&without).err().is_none_or(|other| other.to_string() != error)
            });
        match found {
            Some(step) => path.push(step),
            None => break,
        }
    }
    (!path.is_empty()).then_some(path)
}

/// Puts something readable where a field is missing, so that what comes after it is looked at too.
fn stand_in<T: DeserializeOwned>(value: &mut Value, field: &str, error: &str) -> bool {
    let candidates = [
        Value::Null,
        "".into(),
        0.into(),
        Value::Array(vec![]),
        Value::Object(Default::default()),
        false.into(),
    ];
    for candidate in candidates {
        let Value::Object(map) = &mut *value else { return false };
        map.insert(field.to_owned(), candidate);
        let still = T::deserialize(&*value).err().map(|error| error.to_string());
        // Another missing field means that serde was content with this one.
        if still.is_none_or(|still| still != error && still.starts_with("missing field")) {
            return true;
        }
    }
    take(value, &[field.to_owned()]);
    false
}

fn child<'a>(value: &'a Value, step: &str) -> Option<&'a Value> {
    match value {
        Value::Object(map) => map.get(step),
        Value::Array(list) => list.get(step.parse::<usize>().ok()?),
        _ => None,
    }
}

fn take(value: &mut Value, path: &[String]) {
    let Some((last, way)) = path.split_last() else { return };
    let mut at = value;
    for step in way {
        let next = match at {
            Value::Object(map) => map.get_mut(step),
            Value::Array(list) => step.parse::<usize>().ok().and_then(|n| list.get_mut(n)),
            _ => None,
        };
        match next {
            Some(next) => at = next,
            None => return,
        }
    }
    match at {
        Value::Object(map) => drop(map.remove(last)),
        Value::Array(list) => {
            if let Some(n) = last.parse::<usize>().ok().filter(|n| *n < list.len()) {
                list.remove(n);
            }
        }
        _ => {}
    }
}

/// serde's message without what was sent, in an operator's words.
fn in_words(error: &str) -> String {
    if let Some(unknown) = between(error, "unknown field `") {
        let known: Vec<&str> = error.split('`').skip(3).step_by(2).collect();
        return match nearest(unknown, &known) {
            Some(near) => format!("there is no such key; did you mean {near}?"),
            None if known.is_empty() => "there is no such key".to_owned(),
            None => format!("there is no such key; the keys are {}", known.join(", ")),
        };
    }
    if error.starts_with("unknown variant") {
        let known: Vec<&str> = error.split('`').skip(3).step_by(2).collect();
        return format!("must be one of {}", known.join(", "));
    }
    match error.rsplit_once(", expected ") {
        Some((_, expected)) if error.starts_with("invalid ") => {
            format!("must be {}", expected_words(expected))
        }
        _ => error.to_owned(),
    }
}

fn expected_words(expected: &str) -> &str {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a string" | "a path string" | "a borrowed string" => "a text",
        "a map" => "a table",
        other if other.starts_with("struct ") => "a table",
        other => other,
    }
}

/// The known word that was most likely meant.
fn nearest<'a>(raw: &str, known: &[&'a str]) -> Option<&'a str> {
    let likeness = |word: &str| {
        let within = raw.len() >= 3 && word.len() >= 3 && (raw.contains(word) || word.contains(raw));
        if within { 90 } else { (strsim::normalized_damerau_levenshtein(raw, word) * 100.0) as u32 }
    };
    let (like, word) = known.iter().map(|word| (likeness(word), *word)).max_by_key(|(like, _)| *like)?;
    (like >= 60).then_some(word)
}

fn between<'a>(text: &'a str, before: &str) -> Option<&'a str> {
    text.strip_prefix(before)?.split('`').next()
}

fn join(prefix: &str, step: &str) -> String {
    let step = if step.len() > 80 { step.chars().take(80).collect() } else { step.to_owned() };
    let step: String = step.chars().filter(|c| !c.is_control()).collect();
    if prefix.is_empty() { step } else { format!("{prefix}.{step}") }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Order {
        name: String,
        #[serde(default)]
        groups: Vec<String>,
        env: BTreeMap<String, String>,
        #[serde(default)]
        inner: Option<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        port: u16,
    }

    fn told(value: Value) -> Vec<String> {
        let mut problems = Problems::default();
        let _ = read::<Order>(value, "", &mut problems);
        problems.iter().map(|problem| format!("{}: {}", problem.key, problem.message)).collect()
    }

    #[test]
    fn what_fits_is_read() {
        let mut problems = Problems::default();
        let read: Option<Order> =
            read(json!({"name": "x", "env": {"A": "b"}, "inner": {"port": 7}}), "", &mut problems);
        let order = read.unwrap();
        assert_eq!((order.name.as_str(), order.env["A"].as_str()), ("x", "b"));
        assert_eq!((order.groups.len(), order.inner.unwrap().port), (0, 7));
        assert!(problems.is_empty());
    }

    #[test]
    fn everything_that_does_not_fit_is_told_with_its_path() {
        let value = json!({
            "nam": "x", "groups": ["a", 7], "env": {"A": "b", "TOKEN": 12345}, "inner": {"port": -1, "prot": 3},
        });
        let mut told = told(value);
        told.sort();
        assert_eq!(
            told,
            [
                "env.TOKEN: must be a text",
                "groups.1: must be a text",
                "inner.port: must be a whole number, 0 or more",
                "inner.prot: there is no such key; did you mean port?",
                "nam: there is no such key; did you mean name?",
                "name: is missing",
            ]
        );
    }

    #[test]
    fn every_missing_key_is_told() {
        assert_eq!(told(json!({})), ["name: is missing", "env: is missing"]);
        assert_eq!(told(json!({"inner": {}, "env": {}})), ["inner.port: is missing", "name: is missing"]);
    }

    #[test]
    fn a_document_of_another_kind_is_told_as_such() {
        assert_eq!(told(json!([1, 2, 3])), ["document: must be a table"]);
        assert_eq!(told(json!("x")), ["document: must be a table"]);
    }

    #[test]
    fn a_hostile_document_ends_in_a_bounded_list() {
        let wide: serde_json::Map<String, Value> = (0..5000).map(|n| (format!("k{n}"), json!(n))).collect();
        let told = told(Value::Object(wide));
        assert!((1..=ROUNDS).contains(&told.len()), "{}", told.len());
    }

    #[test]
    fn no_value_is_repeated() {
        let told = told(json!({"name": {"deep": "s3cret"}, "env": "s3cret", "groups": "s3cret"})).join("\n");
        assert!(!told.contains("s3cret"), "{told}");
    }
}
