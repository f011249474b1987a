//! Readers of HTTP/1.1 requests that disagree: a strict one, the one of the standard, and loose ones. What passes a
//! relay must be one thing to all of them.

/// How a reader takes what the standard forbids or leaves open.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Refuses whatever is not written as the standard says.
    strict: bool,
    /// A carriage return alone ends a line.
    bare_cr: bool,
    /// `Content-Length` counts even where there are chunks.
    length_first: bool,
    /// Of several lengths the last one counts.
    last_length: bool,
    /// `Content_Length` is `Content-Length`.
    underscores: bool,
    /// There are chunks where `chunked` is the last of all codings (RFC 9112, section 6.3); without this, the word anywhere
    /// makes them.
    last_coding: bool,
    /// After chunks beside a length nothing more is read, as the standard has it.
    ends_after_both: bool,
    /// A line feed alone ends no line of the fields after the last chunk.
    trailers_by_crlf: bool,
}

const LOOSE: Rules = Rules {
    strict: false,
    bare_cr: false,
    length_first: false,
    last_length: false,
    underscores: false,
    last_coding: false,
    ends_after_both: false,
    trailers_by_crlf: false,
};

/// Takes nothing that could be read in two ways.
pub const STRICT: Rules = Rules { strict: true, ..LOOSE };

/// As RFC 9112 tells a recipient to read: lenient where it says MAY.
const STANDARD: Rules = Rules { last_coding: true, ends_after_both: true, ..LOOSE };

/// As [`STANDARD`], but a line feed alone ends a line, which it MAY (section 2.2), in heads only.
const STANDARD_TOO: Rules = Rules { trailers_by_crlf: true, ..STANDARD };

/// The two readings of bytes that the standard allows.
#[must_use]
pub fn read_by_standard(bytes: &[u8]) -> [Reading; 2] {
    [read(bytes, STANDARD), read(bytes, STANDARD_TOO)]
}

/// Every combination of bad habits.
pub fn loose() -> impl Iterator<Item = Rules> {
    (0_u8..32).map(|bits| Rules {
        bare_cr: bits & 1 != 0,
        length_first: bits & 2 != 0,
        last_length: bits & 4 != 0,
        underscores: bits & 8 != 0,
        last_coding: bits & 16 != 0,
        ..LOOSE
    })
}

/// One whole request, as some reader finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Its first word.
    pub method: String,
    /// As it was written.
    pub target: String,
    /// It asks to switch protocols.
    pub upgrade: bool,
    /// Where it ends.
    pub end: usize,
}

/// The requests in a row of bytes, up to the first that is not whole, and what a strict reader will not have.
#[derive(Debug, Default)]
pub struct Reading {
    /// Whole requests, in their order.
    pub requests: Vec<Asked>,
    /// Why the reader stopped, if not for want of bytes.
    pub refused: Option<&'static str>,
}

impl Reading {
    /// The targets of the requests.
    #[must_use]
    pub fn targets(&self) -> Vec<&str> {
        self.requests.iter().map(|asked| asked.target.as_str()).collect()
    }

    /// Whether each of these targets is one of its own, and as often.
    #[must_use]
    pub fn asks_for(&self, targets: &[String]) -> bool {
        let mut left = self.targets();
        targets.iter().all(|target| {
            let known = left.iter().position(|wanted| same_target(wanted, target));
            known.map(|at| left.swap_remove(at)).is_some()
        })
    }
}

/// What a reader with these rules finds.
#[must_use]
pub fn read(bytes: &[u8], rules: Rules) -> Reading {
    let mut reading = Reading::default();
    let mut cursor = Cursor { bytes, at: 0, rules, in_trailers: false };
    loop {
        match request(&mut cursor) {
            Ok((asked, last)) => {
                reading.requests.push(asked);
                if last {
                    return reading;
                }
            }
            Err(Stop::NotWhole) => return reading,
            Err(Stop::Refused(why)) => {
                reading.refused = Some(why);
                return reading;
            }
        }
    }
}

enum Stop {
    NotWhole,
    Refused(&'static str),
}

struct Cursor<'b> {
    bytes: &'b [u8],
    at: usize,
    rules: Rules,
    in_trailers: bool,
}

impl Cursor<'_> {
    /// The next line without its end.
    fn line(&mut self) -> Result<Vec<u8>, Stop> {
        let rest = &self.bytes[self.at..];
        for (index, byte) in rest.iter().enumerate() {
            let (length, used) = match byte {
                b'\n' if index > 0 && rest[index - 1] == b'\r' => (index - 1, index + 1),
                b'\n' if self.in_trailers && self.rules.trailers_by_crlf => continue,
                b'\n' if self.rules.strict => return Err(Stop::Refused("a bare line feed")),
                b'\n' => (index, index + 1),
                b'\r' if rest.get(index + 1).is_none_or(|next| *next == b'\n') => continue,
                b'\r' if self.rules.strict => return Err(Stop::Refused("a bare carriage return")),
                b'\r' if self.rules.bare_cr => (index, index + 1),
                _ => continue,
            };
            self.at += used;
            return Ok(rest[..length].to_vec());
        }
        Err(Stop::NotWhole)
    }

    fn skip(&mut self, length: usize) -> Result<(), Stop> {
        if self.bytes.len() - self.at < length {
            return Err(Stop::NotWhole);
        }
        self.at += length;
        Ok(())
    }
}

fn request(cursor: &mut Cursor<'_>) -> Result<(Asked, bool), Stop> {
    let rules = cursor.rules;
    let mut first = cursor.line()?;
    while first.is_empty() && !rules.strict {
        first = cursor.line()?;
    }
    let first = String::from_utf8_lossy(&first).into_owned();
    let parts: Vec<&str> =
        if rules.strict { first.split(' ').collect() } else { first.split_ascii_whitespace().collect() };
    let [method, target, _version] = parts[..] else { return Err(Stop::Refused("no request line")) };
    let headers = fields(cursor)?;
    let values = |wanted: &str| -> Vec<&str> {
        headers.iter().filter(|(name, _)| name == wanted).map(|(_, value)| value.as_str()).collect()
    };
    let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
    if rules.strict && (lengths.len() > 1 || codings.len() > 1 || !lengths.is_empty() && !codings.is_empty())
    {
        return Err(Stop::Refused("two framings"));
    }
    let chunked = is_chunked(&codings, rules)?;
    let length_wins = rules.length_first && !lengths.is_empty();
    if chunked && !length_wins {
        chunks(cursor)?;
    } else {
        let length = if rules.last_length { lengths.last() } else { lengths.first() };
        cursor.skip(length.map_or(Ok(0), |raw| number(raw, 10, rules))?)?;
    }
    let upgrade = !values("upgrade").is_empty();
    let asked = Asked { method: method.to_owned(), target: target.to_owned(), upgrade, end: cursor.at };
    Ok((asked, rules.ends_after_both && chunked && !lengths.is_empty()))
}

/// Names in small letters, up to the empty line; used for heads and trailers.
fn fields(cursor: &mut Cursor<'_>) -> Result<Vec<(String, String)>, Stop> {
    let rules = cursor.rules;
    let mut fields: Vec<(String, String)> = Vec::new();
    loop {
        let line = String::from_utf8_lossy(&cursor.line()?).into_owned();
        if line.is_empty() {
            return Ok(fields);
        }
        let folded = line.starts_with([' ', '\t']);
        // Bytes above 0x7f are `obs-text`, which the standard allows, whatever they spell.
        if rules.strict && (folded || line.chars().any(|c| c.is_ascii_control() && c != '\t')) {
            return Err(Stop::Refused("a folded line or a control character"));
        }
        if folded && let Some((_, value)) = fields.last_mut() {
            value.push_str(&line);
            continue;
        }
        let Some((name, value)) = line.split_once(':') else {
            if rules.strict {
                return Err(Stop::Refused("a line without a colon"));
            }
            continue;
        };
        let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if rules.strict && (name.is_empty() || !name.chars().all(token)) {
            return Err(Stop::Refused("a name that is none"));
        }
        let mut name = name.trim().to_ascii_lowercase();
        if rules.underscores {
            name = name.replace('_', "-");
        }
        fields.push((name, value.trim().to_owned()));
    }
}

fn is_chunked(codings: &[&str], rules: Rules) -> Result<bool, Stop> {
    let plain = |raw: &&str| raw.eq_ignore_ascii_case("chunked");
    if rules.strict && !codings.iter().all(plain) {
        return Err(Stop::Refused("an odd coding"));
    }
    let last = codings.iter().flat_map(|raw| raw.split(',')).map(str::trim).next_back();
    Ok(if rules.last_coding {
        last.as_ref().is_some_and(plain)
    } else {
        codings.iter().any(|raw| raw.to_ascii_lowercase().contains("chunked"))
    })
}

fn chunks(cursor: &mut Cursor<'_>) -> Result<(), Stop> {
    loop {
        let line = String::from_utf8_lossy(&cursor.line()?).into_owned();
        let size = line.split(';').next().unwrap_or_default();
        let length = number(size, 16, cursor.rules)?;
        if length == 0 {
            cursor.in_trailers = true;
            let trailers = fields(cursor);
            cursor.in_trailers = false;
            return trailers.map(drop);
        }
        cursor.skip(length)?;
        if !cursor.line()?.is_empty() && cursor.rules.strict {
            return Err(Stop::Refused("a chunk that goes on after its end"));
        }
    }
}

/// Strict: digits alone. Loose: as C's strtol takes it, up to the first character that is none.
fn number(raw: &str, radix: u32, rules: Rules) -> Result<usize, Stop> {
    let digits = |text: &str| text.chars().take_while(|c| c.is_digit(radix)).count();
    let text = if rules.strict { raw } else { raw.trim().trim_start_matches('+') };
    let text = if radix == 16 && !rules.strict { text.trim_start_matches("0x") } else { text };
    let count = digits(text);
    if rules.strict && (count == 0 || count != text.len()) {
        return Err(Stop::Refused("a number that is none"));
    }
    if count == 0 {
        return Ok(0);
    }
    usize::from_str_radix(&text[..count], radix).map_err(|_| Stop::Refused("a number without bounds"))
}

/// Fails unless what a relay sent on, connection by connection, is one thing to all readers, is no more than it
/// answered, and is what one of the standard's readings of its input asks for, with `prefix` before each target.
pub fn check_passed(input: &[u8], prefix: &str, sent: &[Vec<u8>], answered: u64) {
    let shown = input.escape_ascii();
    let mut passed = Vec::new();
    for bytes in sent {
        let strict = read(bytes, STRICT);
        assert_eq!(strict.refused, None, "{shown} makes {}", bytes.escape_ascii());
        for rules in loose() {
            let found = read(bytes, rules);
            assert_eq!(
                found.targets(),
                strict.targets(),
                "{rules:?} of {} from {shown}",
                bytes.escape_ascii()
            );
        }
        passed.extend(strict.targets().into_iter().map(|target| format!("{prefix}{target}")));
    }
    let meant = read_by_standard(input).iter().any(|reading| reading.asks_for(&passed));
    assert!(meant, "{passed:?} is not what is asked for by {shown}");
    let count = u64::try_from(passed.len()).unwrap_or(u64::MAX);
    assert!(count <= answered, "{count} requests for {answered} answers to {shown}");
}

/// A fragment belongs to no request and is left out; of a target with scheme and authority, which a server must take (RFC
/// 9112, section 3.2.2), the path goes on.
fn same_target(asked: &str, sent: &str) -> bool {
    let path = match asked.split_once("://") {
        Some((scheme, rest)) if !scheme.contains('/') => rest.find('/').map_or("", |at| &rest[at..]),
        _ => asked,
    };
    path.split('#').next().unwrap_or_default() == sent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_agree_on_what_is_plain_and_disagree_on_every_trick() {
        let plain = "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcPOST /b HTTP/1.1\r\nHost: h\r\n\
                     Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\nGET /c HTTP/1.1\r\nHost: h\r\n\r\n";
        for rules in loose().chain([STRICT, STANDARD, STANDARD_TOO]) {
            let reading = read(plain.as_bytes(), rules);
            assert_eq!(reading.targets(), ["/a", "/b", "/c"], "{rules:?}");
            assert_eq!(reading.refused, None);
        }
        let inner = "GET /evil HTTP/1.1\r\nHost: h\r\n\r\n";
        for trick in [
            format!(
                "POST /a HTTP/1.1\r\nContent-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}",
                inner.len() + 5
            ),
            format!(
                "POST /a HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: {}\r\n\r\n{inner}",
                inner.len()
            ),
            format!("POST /a HTTP/1.1\r\nContent_Length: {}\r\n\r\n{inner}", inner.len()),
            format!("POST /a HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{inner}"),
            format!("GET /a HTTP/1.1\r\nX: y\rContent-Length: {}\r\n\r\n{inner}", inner.len()),
        ] {
            let readings: Vec<usize> =
                loose().map(|rules| read(trick.as_bytes(), rules).requests.len()).collect();
            assert!(readings.iter().any(|count| *count != readings[0]), "all agree on {trick:?}");
        }
    }
}
