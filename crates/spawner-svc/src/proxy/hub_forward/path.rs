//! Which paths of the Hub an agent may ask for: its API, and nothing beside it. Pure.

use percent_encoding::percent_decode_str;

/// The part of a raw path below `<base_url>hub/api`, as received (empty, or starting with `/`), or why the path is
/// refused. Whatever two readers could understand differently is refused, not repaired.
pub(super) fn below_api<'p>(raw_path: &'p str, base_url: &str) -> Result<&'p str, &'static str> {
    let decoded = percent_decode_str(raw_path).decode_utf8().map_err(|_| "the path is no UTF-8")?;
    if raw_path.contains('\\') {
        return Err("the path has a bare backslash"); // a name has it as %5C
    }
    if decoded.chars().any(char::is_control) {
        return Err("the path has a control character");
    }
    if decoded.split('/').count() != raw_path.split('/').count() {
        return Err("the path has an encoded slash");
    }
    if decoded.bytes().filter(|b| *b == b'.').count() != raw_path.bytes().filter(|b| *b == b'.').count() {
        return Err("the path has an encoded dot");
    }
    if percent_decode_str(&decoded).decode_utf8_lossy() != decoded {
        return Err("the path is encoded twice");
    }
    let inner = raw_path.strip_prefix('/').ok_or("the path is not absolute")?;
    let mut segments = inner.split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        // An encoded backslash belongs to a name; whoever takes it for a slash still reads plain names on both sides.
        for part in percent_decode_str(segment).decode_utf8_lossy().split('\\') {
            match part.split(';').next().unwrap_or_default() {
                "." | ".." => return Err("the path has a dot segment"),
                "" if !(last && segment.is_empty()) => return Err("the path has an empty segment"),
                _ => {}
            }
        }
    }
    let wanted = base_url.split('/').filter(|part| !part.is_empty()).chain(["hub", "api"]);
    let mut rest = inner;
    for part in wanted {
        let (first, tail) = rest.split_once('/').map_or((rest, None), |(first, tail)| (first, Some(tail)));
        let same =
            percent_decode_str(first).decode_utf8_lossy() == percent_decode_str(part).decode_utf8_lossy();
        if !same {
            return Err("only the Hub's API is served here");
        }
        match tail {
            Some(tail) => rest = tail,
            None => rest = &inner[inner.len()..],
        }
    }
    let used = raw_path.len() - rest.len();
    Ok(if raw_path[..used].ends_with('/') { &raw_path[used - 1..] } else { &raw_path[used..] })
}

#[cfg(test)]
mod tests {
    use super::below_api;
    use proptest::prelude::*;

    #[test]
    fn the_api_and_what_is_below_it_pass_as_received() {
        for (base, path, rest) in [
            ("/", "/hub/api", ""),
            ("/", "/hub/api/", "/"),
            ("/", "/hub/api/user", "/user"),
            ("/", "/hub/api/users/ada@example.org/activity", "/users/ada@example.org/activity"),
            ("/", "/hub/api/users/ada%40example.org/activity", "/users/ada%40example.org/activity"),
            ("/", "/hub/api/users/%C3%BCn%c3%af/servers/", "/users/%C3%BCn%c3%af/servers/"),
            ("/", "/hub/api/users/corp%5Cada/activity", "/users/corp%5Cada/activity"),
            ("/", "/hub/api/oauth2/token", "/oauth2/token"),
            ("/", "/hub/api/users/100%25", "/users/100%25"),
            ("/jhub/", "/jhub/hub/api/user", "/user"),
            ("/a/b/", "/a/b/hub/api", ""),
            ("/j%20hub/", "/j%20hub/hub/api/user", "/user"),
        ] {
            assert_eq!(below_api(path, base), Ok(rest), "{base} {path}");
        }
    }

    #[test]
    fn every_trick_is_refused() {
        for path in [
            "",
            "*",
            "hub/api/user",
            "/",
            "/hub",
            "/hub/",
            "/hub/apis",
            "/hub/api.json",
            "/hub/apix/user",
            "/Hub/api/user",
            "/hub/home",
            "/user/bob/api",
            "/hub/api/../home",
            "/hub/api/..",
            "/hub/api/./user",
            "/hub/api/.",
            "/hub/api/..;/home",
            "/hub/api/..;x=1/home",
            "/hub/../hub/api/user",
            "//hub/api/user",
            "/hub//api/user",
            "/hub/api//user",
            "/hub/api//",
            "/hub%2fapi/user",
            "/hub/api%2Fuser",
            "/hub/api%2f..%2fhome",
            "/hub/api/%2e%2e/home",
            "/hub/api/.%2E/home",
            "/hub/api/%2e",
            "/hub/api/ada%2eexample",
            "/hub/api/%252e%252e/home",
            "/hub/api/%252fhome",
            "/hub/api/\\..\\home",
            "/hub/api/%5c..%5chome",
            "/hub/api/%5chome",
            "/hub/api/x%5c..%5c..%5chome",
            "/hub/api/x%5c",
            "/hub%5capi/user",
            "/hub/api/;x",
            "/hub/api/user%00",
            "/hub/api/user%0d%0aX:1",
            "/hub/api/%ff",
            "/jhub/hub/api/user",
        ] {
            assert!(below_api(path, "/").is_err(), "{path}");
        }
        for path in ["/hub/api/user", "/jhub/api/user", "/jhubx/hub/api/user", "/jhub/../hub/api/user"] {
            assert!(below_api(path, "/jhub/").is_err(), "{path}");
        }
    }

    proptest! {
        /// However the pieces are put together: what passes is below the API for a reader that decodes as often as
        /// it likes and collapses as much as it likes.
        #[test]
        fn what_passes_stays_below_the_api_for_every_reader(
            pieces in prop::collection::vec(
                prop::sample::select(vec![
                    "/", "hub", "api", "/hub/api", "/hub/api/", "..", ".", "%2e", "%2E", "%2f", "%2F", "%5c", "\\",
                    "%25", "25", "2e", "2f", "%", "user", ";", "%00", "//", "a",
                ]),
                0..12,
            )
        ) {
            let path = pieces.concat();
            if below_api(&path, "/").is_ok() {
                let mut seen = path.replace('\\', "/");
                for _ in 0..4 {
                    prop_assert!(collapsed(&seen).starts_with("/hub/api"), "{} read as {}", path, seen);
                    seen = percent_encoding::percent_decode_str(&seen).decode_utf8_lossy().replace('\\', "/");
                }
            }
        }

        #[test]
        fn nothing_panics(path in ".{0,60}", base in "(/[a-z%0-9]{0,4}){0,3}/") {
            let _ = below_api(&path, &base);
        }
    }

    fn collapsed(path: &str) -> String {
        let mut out: Vec<&str> = Vec::new();
        for segment in path.split('/') {
            match segment.split(';').next().unwrap_or_default() {
                "" | "." => {}
                ".." => drop(out.pop()),
                _ => out.push(segment),
            }
        }
        format!("/{}", out.join("/"))
    }
}
