//! Where a Hub's API is: one door for what the operator wrote, so that what was checked is what is called.

use reqwest::Url;

/// Address of a Hub's API: `http://127.0.0.1:8081/hub/api`, without a slash at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubApi(Url);

impl HubApi {
    /// Takes the API's address, or the Hub's alone, such as `http://127.0.0.1:8081`: the API is below its base URL then.
    pub fn parse(raw: &str, base_url: &str) -> Result<Self, &'static str> {
        const RULE: &str = "must be a URL like http://127.0.0.1:8081/hub/api or http://[::1]:8081/hub/api, without user and query";
        let mut url = Url::parse(raw.trim()).map_err(|_| RULE)?;
        let plain = matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none();
        let path = match url.path().trim_end_matches('/') {
            "" => format!("{base_url}hub/api"),
            path => path.to_owned(),
        };
        if !plain || !path.ends_with("/hub/api") {
            return Err(RULE);
        }
        url.set_path(&path);
        Ok(Self(url))
    }

    /// The address itself.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::HubApi;

    #[test]
    fn an_address_is_the_apis_or_is_made_so() {
        for (raw, base_url, whole) in [
            ("http://127.0.0.1:8081/hub/api", "/", "http://127.0.0.1:8081/hub/api"),
            (" https://hub.example.org/jhub/hub/api/ ", "/jhub/", "https://hub.example.org/jhub/hub/api"),
            ("http://[::1]:8081", "/", "http://[::1]:8081/hub/api"),
            ("http://hub:8081/", "/j%20hub/", "http://hub:8081/j%20hub/hub/api"),
        ] {
            assert_eq!(HubApi::parse(raw, base_url).unwrap().url().as_str(), whole, "{raw}");
        }
    }

    #[test]
    fn an_address_at_which_no_hub_answers_is_refused() {
        for raw in [
            "127.0.0.1:8081",
            "ftp://h/hub/api",
            "http://u:p@h/hub/api",
            "http://h/hub/api?x",
            "http://h/hub/api#x",
            "unix:/x",
            "http:///hub/api?",
            "http://h/hub",
            "http://h/jhub/",
            "http://h/xhub/api",
        ] {
            assert!(HubApi::parse(raw, "/").is_err(), "{raw}");
        }
    }
}
