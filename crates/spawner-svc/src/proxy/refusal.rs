//! What the relay says in its own name, when no server can answer.
//!
//! Always 5xx where a server could have answered: the Hub takes anything below 500 as a sign of life. Plain text for
//! programs, a small page for browsers; text from outside is shortened and escaped.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use crate::notable::Refusal as Refused;

/// Longest sentence that is shown, in characters.
const SENTENCE_MAX: usize = 1000;

/// Marks the relay's own answers; taken off what a server sends, so that neither is taken for the other.
pub(super) const MARK: HeaderName = HeaderName::from_static("x-glidepath");

/// One answer in the relay's own name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// As the operator's log and counts name it.
    pub(super) note: Refused,
    pub(super) status: StatusCode,
    pub(super) title: &'static str,
    /// Plain text, possibly from outside.
    pub(super) sentence: String,
    /// When coming again may help; a browser's page then comes again by itself.
    pub(super) retry_after_s: Option<u32>,
}

impl Refusal {
    pub(super) fn bad_request(sentence: &str) -> Self {
        let sentence = sentence.to_owned();
        Self {
            note: Refused::PageMalformed,
            status: StatusCode::BAD_REQUEST,
            title: "Bad request",
            sentence,
            retry_after_s: None,
        }
    }

    pub(super) fn unavailable(
        note: Refused,
        title: &'static str,
        sentence: String,
        retry_after_s: u32,
    ) -> Self {
        let (status, retry_after_s) = (StatusCode::SERVICE_UNAVAILABLE, Some(retry_after_s));
        Self { note, status, title, sentence, retry_after_s }
    }

    pub(super) fn bad_gateway(sentence: String) -> Self {
        let title = "The server did not answer properly";
        let note = Refused::PageBroken;
        Self { note, status: StatusCode::BAD_GATEWAY, title, sentence, retry_after_s: None }
    }

    /// The answer, in the form that the asker reads.
    pub(super) fn response(&self, asked_with: &HeaderMap) -> Response<Bytes> {
        let accept = asked_with.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (kind, text) = if accept.contains("text/html") {
            ("text/html; charset=utf-8", self.page())
        } else {
            ("text/plain; charset=utf-8", format!("{}: {}\n", self.title, plain(&self.sentence)))
        };
        let mut response = Response::new(Bytes::from(text));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        let policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'";
        headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
        headers.insert(MARK, HeaderValue::from_static("relay"));
        if self.status == StatusCode::BAD_REQUEST {
            // What comes after it may be a part of it.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }

    fn page(&self) -> String {
        let refresh = match self.retry_after_s {
            Some(seconds) => format!("<meta http-equiv=\"refresh\" content=\"{seconds}\">"),
            None => String::new(),
        };
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">{refresh}\
             <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>\
             <style>body{{font:1rem/1.5 system-ui,sans-serif;max-width:36rem;margin:15vh auto;padding:0 1rem;\
             color:#222;background:#fff}}h1{{font-size:1.4rem}}@media(prefers-color-scheme:dark)\
             {{body{{color:#ddd;background:#111}}}}</style></head>\
             <body><main><h1>{title}</h1><p>{sentence}</p></main></body></html>\n",
            title = escaped(self.title),
            sentence = escaped(&plain(&self.sentence)),
        )
    }
}

/// One line, shortened, without control characters.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SENTENCE_MAX).collect()
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_stays_text_in_both_forms() {
        let refusal = "<img src=x onerror=\"a('1')\">\r\n\u{1b}[31m&".to_owned();
        let refusal = Refusal::unavailable(Refused::PageEnded, "Not running", refusal, 5);
        let mut browser = HeaderMap::new();
        browser.insert(header::ACCEPT, HeaderValue::from_static("text/html,*/*"));
        let page = refusal.response(&browser);
        let text = String::from_utf8(page.body().to_vec()).unwrap();
        assert!(text.contains("&lt;img src=x onerror=&quot;a(&#39;1&#39;)&quot;&gt;   [31m&amp;"), "{text}");
        assert!(!text.contains("<img"), "{text}");
        let told = refusal.response(&HeaderMap::new());
        assert_eq!(told.headers()[header::CONTENT_TYPE], "text/plain; charset=utf-8");
        assert_eq!(told.headers()[header::RETRY_AFTER], "5");
        assert_eq!(told.headers()[header::CACHE_CONTROL], "no-store");
        assert!(!told.body().contains(&0x1b));
    }

    #[test]
    fn a_long_reason_is_shortened() {
        let refusal = Refusal::bad_gateway("x".repeat(100_000));
        assert!(refusal.response(&HeaderMap::new()).body().len() < 2 * SENTENCE_MAX);
    }
}
