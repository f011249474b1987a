//! What a database's errors mean: as one sentence that an operator can act on, and whether a try again can help.

use sqlx::migrate::MigrateError;
use sqlx::postgres::PgDatabaseError;

use super::StoreError;

/// The service's user may make no tables.
pub(super) const NO_RIGHT: &str = "its user may make no tables in the schema: make it the database's owner, or as its owner say \
                                   GRANT USAGE, CREATE ON SCHEMA public TO it";

/// Why a change was not written, by what can help.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    /// The connection is gone: a new one.
    Lost(StoreError),
    /// The database gave the transaction up for the sake of another: the same again.
    Again(StoreError),
    /// Nothing of ours.
    Final(StoreError),
}

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        let told = failed("written", &error);
        if is_lost(&error) {
            Self::Lost(told)
        } else if matches!(state(&error), Some("40001" | "40P01" | "55P03")) {
            Self::Again(told)
        } else {
            Self::Final(told)
        }
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Final(error)
    }
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Lost(error) | Fault::Again(error) | Fault::Final(error) => error,
        }
    }
}

/// Whether the connection is of no more use. A server that has become a standby counts: the next one may be the primary.
pub(super) fn is_lost(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => {
            true
        }
        _ => state(error).is_some_and(|state| {
            matches!(state, "57P01" | "57P02" | "57P03" | "57P05" | "25P03" | "25006")
                || state.starts_with("08")
        }),
    }
}

/// The five letters by which PostgreSQL names an error.
fn state(error: &sqlx::Error) -> Option<&str> {
    Some(error.as_database_error()?.try_downcast_ref::<PgDatabaseError>()?.code())
}

pub(super) fn failed(step: &'static str, error: &sqlx::Error) -> StoreError {
    StoreError::Database { step, why: sentence(error, "the address in the config") }
}

/// An error of the database as one sentence. `place` is where the database is, as people may see it.
pub(super) fn sentence(error: &sqlx::Error, place: &str) -> String {
    match error {
        sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => unproven(place, error),
        sqlx::Error::Tls(error) => unproven(place, error),
        sqlx::Error::Io(error) => {
            format!("nobody answers at {place} ({error}): is the server running, and is that its address?")
        }
        _ => match (state(error), sqlite_code(error)) {
            (Some(state), _) => of_postgresql(state, error, place),
            (None, Some(code)) => of_sqlite(code, error),
            (None, None) => error.to_string(),
        },
    }
}

/// Whoever answers is not who the URL names.
fn unproven(place: &str, error: &impl std::fmt::Display) -> String {
    format!(
        "the server at {place} cannot prove itself ({error}): name its authority's file as sslrootcert=FILE in the URL, \
         and the host as the certificate names it"
    )
}

fn of_postgresql(state: &str, error: &sqlx::Error, place: &str) -> String {
    let said =
        error.as_database_error().map_or_else(|| error.to_string(), |error| error.message().to_owned());
    match state {
        "28P01" => format!(
            "the server refuses its user or password ({said}): write the right ones into the file that store.url_file names"
        ),
        "28000" => format!(
            "the server lets its user not in ({said}): give the role LOGIN, and a line in pg_hba.conf"
        ),
        "3D000" => format!("there is no such database ({said}): make it, CREATE DATABASE NAME OWNER USER"),
        "42501" => format!("{NO_RIGHT} ({said})"),
        "25006" => format!("the server at {place} only reads: it is a standby, name the primary"),
        "53100" => "the disk of the database's server is full: make room there".to_owned(),
        "53300" => format!(
            "the server takes no more connections ({said}): it needs {} for this service; raise max_connections or the role's limit",
            super::database::READERS + 1
        ),
        "57P01" | "57P02" | "57P03" => {
            format!("the server at {place} is starting or stopping ({said}): try again in a moment")
        }
        "XX001" | "XX002" => format!("it is damaged ({said}): restore it from a backup"),
        _ => format!("{said} (SQLSTATE {state})"),
    }
}

fn sqlite_code(error: &sqlx::Error) -> Option<i64> {
    error.as_database_error()?.code()?.parse().ok()
}

fn of_sqlite(code: i64, error: &sqlx::Error) -> String {
    match code & 0xff {
        13 => "the disk is full: make room in the state folder".to_owned(),
        8 => "the file is read-only: the service's account must be able to write it".to_owned(),
        5 | 6 => "another process holds it: does a second service use this state folder?".to_owned(),
        11 | 26 => format!("it is damaged ({error}): restore the state folder from a backup"),
        10 => format!("the disk failed ({error})"),
        14 => "the file cannot be opened: the service's account must own the state folder".to_owned(),
        _ => error.to_string(),
    }
}

/// Why the tables could not be brought up to date. Only what the database says of its own version speaks of one.
pub(super) fn not_migrated(error: &MigrateError, failed: impl Fn(&sqlx::Error) -> StoreError) -> StoreError {
    let why = match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => return failed(error),
        MigrateError::VersionMissing(_)
        | MigrateError::VersionMismatch(_)
        | MigrateError::VersionTooNew(..) => {
            format!("{error}: it was written by a newer version, which must serve it")
        }
        _ => error.to_string(),
    };
    StoreError::Database { step: "opened", why }
}
