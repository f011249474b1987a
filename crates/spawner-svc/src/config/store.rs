//! Where the store is, as `[store]` says it: a file in the state folder, or a PostgreSQL server. The URL of a server may
//! hold a password: it is shown nowhere, and no sentence repeats what was written.

use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use glidepath_svc_kit::files::{in_words, read_private};
use glidepath_svc_kit::problems::Problems;
use reqwest::Url;
use secrecy::SecretString;

use super::file::StoreFile;

/// Where the store is.
#[derive(Debug, Clone, Default)]
pub enum StoreConfig {
    /// SQLite, in the state folder.
    #[default]
    Sqlite,
    /// A database of a PostgreSQL server.
    PostgreSql(PostgreSql),
}

/// A database of a PostgreSQL server.
#[derive(Debug, Clone)]
pub struct PostgreSql {
    /// The whole URL, with its password.
    pub url: SecretString,
    /// The URL as people may see it.
    pub shown: String,
    /// The key of the config that names it.
    pub key: &'static str,
}

/// What a URL may say beside user, host and database. Anything else would be passed over in silence.
const PARAMETERS: [&str; 4] = ["sslmode", "sslrootcert", "sslcert", "sslkey"];
const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];
const FORM: &str = "must be a URL like postgresql://USER:PASSWORD@HOST/DATABASE?sslmode=verify-full, or \
                    postgresql://USER@%2Frun%2Fpostgresql/DATABASE for a socket of this machine";

pub(super) fn store(file: StoreFile, here: &Path, p: &mut Problems) -> StoreConfig {
    let parsed = match file {
        StoreFile { url: None, url_file: None } => return StoreConfig::Sqlite,
        StoreFile { url: Some(_), url_file: Some(_) } => {
            p.add("store.url_file", "goes instead of url, not beside it");
            None
        }
        StoreFile { url: Some(url), url_file: None } => p.keep("store.url", open_url(&url, here)),
        StoreFile { url: None, url_file: Some(path) } => {
            let key = "store.url_file";
            let text = p.keep(key, read_private(&here.join(path)));
            text.and_then(|text| p.keep(key, parse(text.trim(), here, key)))
        }
    };
    parsed.map(StoreConfig::PostgreSql).unwrap_or_default()
}

/// A URL that stands in the config itself, where many may read it.
fn open_url(raw: &str, here: &Path) -> Result<PostgreSql, String> {
    if Url::parse(raw).is_ok_and(|url| url.password().is_some()) {
        return Err(
            "must hold no password: write the whole URL into a 0600 file and name that as store.url_file"
                .to_owned(),
        );
    }
    parse(raw, here, "store.url")
}

fn parse(raw: &str, here: &Path, key: &'static str) -> Result<PostgreSql, String> {
    let mut url = Url::parse(raw).map_err(|_| FORM.to_owned())?;
    let database = url.path().trim_start_matches('/');
    if !matches!(url.scheme(), "postgresql" | "postgres")
        || database.contains('/')
        || url.fragment().is_some()
    {
        return Err(FORM.to_owned());
    }
    if database.is_empty() {
        return Err("must name a database: postgresql://USER:PASSWORD@HOST/DATABASE".to_owned());
    }
    let Some(host) = url.host_str().filter(|host| !host.is_empty()).map(str::to_owned) else {
        return Err(
            "must name a host, or a folder with a socket: postgresql://USER@%2Frun%2Fpostgresql/DATABASE"
                .to_owned(),
        );
    };
    let mut said: Vec<(String, String)> = Vec::new();
    for (name, value) in url.query_pairs() {
        let value = match name.as_ref() {
            "sslmode" if SSL_MODES.contains(&value.as_ref()) => value.into_owned(),
            "sslmode" => return Err(format!("sslmode must be one of {}", SSL_MODES.join(", "))),
            name if PARAMETERS.contains(&name) => readable(name, &here.join(value.as_ref()))?,
            _ => {
                return Err(format!(
                    "may say no more than {} behind the question mark",
                    PARAMETERS.join(", ")
                ));
            }
        };
        said.push((name.into_owned(), value));
    }
    if !said.iter().any(|(name, _)| name == "sslmode") {
        // Over a network nobody shall listen or stand in between, unless the operator says so.
        let mode = if is_here(&host) { "prefer" } else { "verify-full" };
        said.push(("sslmode".to_owned(), mode.to_owned()));
    }
    url.query_pairs_mut().clear().extend_pairs(said);
    Ok(PostgreSql { shown: shown(&url), url: url.to_string().into(), key })
}

fn readable(name: &str, path: &PathBuf) -> Result<String, String> {
    File::open(path)
        .map_err(|error| format!("{name}: cannot read {}: {}", path.display(), in_words(&error)))?;
    Ok(path.display().to_string())
}

fn is_here(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost")
        || host.to_ascii_lowercase().starts_with("%2f")
        || address.is_ok_and(|address| address.is_loopback())
}

fn shown(url: &Url) -> String {
    let mut shown = url.clone();
    let _ = shown.set_password(None); // it has a host
    shown.set_query(None);
    shown.to_string()
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    fn parsed(raw: &str) -> Result<PostgreSql, String> {
        parse(raw, Path::new("/nowhere"), "store.url_file")
    }

    #[test]
    fn tls_is_verified_unless_the_server_is_here_or_the_operator_says_so() {
        for (raw, end) in [
            ("postgresql://g:pw@db.example.org/glidepath", "?sslmode=verify-full"),
            ("postgres://g:pw@db.example.org:6432/g?sslmode=require", "?sslmode=require"),
            ("postgresql://g:pw@10.0.0.7/g", "?sslmode=verify-full"),
            ("postgresql://g:pw@[::1]/g", "?sslmode=prefer"),
            ("postgresql://g:pw@localhost/g", "?sslmode=prefer"),
            ("postgresql://g@%2Frun%2Fpostgresql/g", "?sslmode=prefer"),
        ] {
            let url = parsed(raw).unwrap().url;
            assert!(url.expose_secret().ends_with(end), "{raw}");
        }
    }

    #[test]
    fn what_leads_to_no_database_is_refused_and_no_password_is_told() {
        for raw in [
            "s3cret",
            "mysql://g:s3cret@h/g",
            "postgresql://g:s3cret@h",
            "postgresql://g:s3cret@h/",
            "postgresql:///g?password=s3cret",
            "postgresql://g:s3cret@h/a/b",
            "postgresql://g:s3cret@h/g?sslmode=s3cret",
            "postgresql://g@h/g?password=s3cret",
            "postgresql://g:s3cret@h/g?sslrootcert=none.pem",
            "postgresql://g:s3cret@h/g#x",
        ] {
            let told = parsed(raw).expect_err(raw);
            assert!(!told.contains("s3cret"), "{told}");
        }
        let right = parsed("postgresql://g:s3cret@h:6432/g").unwrap();
        assert_eq!(right.shown, "postgresql://g@h:6432/g");
        assert!(!format!("{right:?}").contains("s3cret"));
    }

    #[test]
    fn a_password_does_not_belong_into_the_config() {
        let told = open_url("postgresql://g:s3cret@h/g", Path::new("/")).unwrap_err();
        assert!(told.contains("store.url_file") && !told.contains("s3cret"), "{told}");
        let told = open_url("postgresql://g@h/g?password=s3cret", Path::new("/")).unwrap_err();
        assert!(!told.contains("s3cret"), "{told}");
        open_url("postgresql://g@h/g", Path::new("/")).unwrap();
    }
}
