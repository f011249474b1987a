//! A look into the store for people: read only, beside a service that runs or after one that died.
//!
//! Whoever may read the state folder, or the file that names the database, may look. Nothing is written, no table is brought up to date: what a newer
//! or older version wrote is told as far as it reads.

use std::path::Path;

use sqlx::any::AnyRow;
use sqlx::{AnyPool, Row as _};

use super::faults::failed;
use super::{ANSWER_WITHIN, AttemptRow, Database, RunRow, StoreError, get, run_row, unreadable};

/// The store, seen from outside.
pub struct Look {
    readers: AnyPool,
    database: Database,
}

impl Look {
    /// The store in this database. Connects at the first look.
    pub fn open(database: Database) -> Result<Self, StoreError> {
        if let Database::Sqlite(file) = &database
            && let Err(error) = std::fs::File::open(file)
        {
            let words = glidepath_svc_kit::files::in_words(&error);
            let why = match error.kind() {
                std::io::ErrorKind::NotFound => {
                    "holds no database: no service was started with it yet, or it is another folder"
                        .to_owned()
                }
                _ => format!("cannot be read ({words}): run this as the service's account, or as root"),
            };
            let path = file.parent().unwrap_or(Path::new(".")).to_owned();
            return Err(StoreError::Folder { path, why });
        }
        Ok(Self { readers: database.readers(ANSWER_WITHIN)?, database })
    }

    /// Every run that is kept, oldest first, with its attempts; `alive` leaves out those of which nothing is left.
    pub async fn runs(&self, alive: bool) -> Result<Vec<RunRow>, StoreError> {
        let settled = if alive { 0_i64 } else { 1 };
        let query = sqlx::query("SELECT * FROM runs WHERE settled <= $1 ORDER BY run").bind(settled);
        self.with_attempts(query.fetch_all(&self.readers).await).await
    }

    /// The runs whose id begins so.
    pub async fn named(&self, beginning: &str) -> Result<Vec<RunRow>, StoreError> {
        let query =
            sqlx::query("SELECT * FROM runs WHERE substr(run, 1, CAST($1 AS INTEGER)) = $2 ORDER BY run");
        let length = i64::try_from(beginning.len()).unwrap_or(i64::MAX);
        let query = query.bind(length).bind(beginning.to_owned());
        self.with_attempts(query.fetch_all(&self.readers).await).await
    }

    /// What SQLite's file says of itself: `None` when it is whole. A server looks after its own.
    pub async fn damage(&self) -> Result<Option<String>, StoreError> {
        if !self.database.is_sqlite() {
            return Ok(None);
        }
        let row = sqlx::query("PRAGMA quick_check(1)").fetch_one(&self.readers).await;
        let said: String = row.and_then(|row| row.try_get(0)).map_err(|error| failed("read", &error))?;
        Ok((said != "ok").then_some(said))
    }

    /// Bytes on the disk, what waits in SQLite's log counted in.
    pub async fn size_bytes(&self) -> Result<u64, StoreError> {
        let Database::Sqlite(file) = &self.database else {
            let query = sqlx::query("SELECT pg_database_size(current_database())");
            let row = query.fetch_one(&self.readers).await.map_err(|error| failed("read", &error))?;
            let bytes: i64 = row.try_get(0).map_err(|error| failed("read", &error))?;
            return Ok(bytes.unsigned_abs());
        };
        let of = |ending: &str| {
            let mut path = file.clone().into_os_string();
            path.push(ending);
            std::fs::metadata(path).map_or(0, |meta| meta.len())
        };
        Ok(of("") + of("-wal"))
    }

    async fn with_attempts(&self, rows: sqlx::Result<Vec<AnyRow>>) -> Result<Vec<RunRow>, StoreError> {
        let rows = rows.map_err(|error| failed("read", &error))?;
        let mut runs = Vec::with_capacity(rows.len());
        for row in &rows {
            let mut run = run_row(row)?;
            let query =
                sqlx::query("SELECT number, site, fenced, job FROM attempts WHERE run = $1 ORDER BY number");
            let attempts = query.bind(run.run.to_string()).fetch_all(&self.readers).await;
            for row in &attempts.map_err(|error| failed("read", &error))? {
                let (number, fenced): (i64, i64) = (get(row, "number")?, get(row, "fenced")?);
                run.attempts.push(AttemptRow {
                    number: u32::try_from(number).map_err(|error| unreadable(&error.to_string()))?,
                    site: get(row, "site")?,
                    fenced: fenced != 0,
                    job: get(row, "job")?,
                });
            }
            runs.push(run);
        }
        Ok(runs)
    }
}
