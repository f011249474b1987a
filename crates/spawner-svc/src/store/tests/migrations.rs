//! The migrations of both databases mean the same.

use std::collections::BTreeMap;

use sqlx::migrate::Migrator;

use super::*;

/// Columns by table: name, whether it may be absent, kind of value.
type Tables = BTreeMap<String, Vec<(String, bool, &'static str)>>;

#[test]
fn both_databases_have_migrations_of_the_same_versions_and_names() {
    let named = |migrations: &Migrator| -> Vec<(i64, String)> {
        migrations.iter().map(|one| (one.version, one.description.to_string())).collect()
    };
    assert!(!named(&database::SQLITE).is_empty());
    assert_eq!(named(&database::SQLITE), named(&database::POSTGRESQL));
}

/// A file whose checksum differs is refused by a service of tomorrow: what was released must not be edited.
#[test]
fn the_first_migrations_are_those_that_were_released() {
    let sum = |migrations: &Migrator| -> String {
        migrations.iter().next().unwrap().checksum.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    };
    assert_eq!(sum(&database::SQLITE), "2a4c5e69fc49ea9f");
    assert_eq!(sum(&database::POSTGRESQL), "84624b9dda48408e");
}

#[tokio::test]
async fn both_databases_have_the_same_tables_and_columns() {
    let (sqlite, postgresql) = (of_sqlite().await, of_postgresql().await);
    assert_eq!(sqlite.keys().collect::<Vec<_>>(), ["attempts", "events", "orders", "runs"]);
    assert_eq!(sqlite, postgresql);
}

async fn of_sqlite() -> Tables {
    let house = House::sqlite().await;
    // An INTEGER PRIMARY KEY is never absent, whatever the pragma says.
    let query = "SELECT t.name AS tbl, c.name AS col, c.\"notnull\" = 0 AND c.pk = 0 AS may, c.type AS kind \
                 FROM sqlite_schema t, pragma_table_info(t.name) c \
                 WHERE t.type = 'table' AND t.name NOT LIKE '\\_sqlx%' ESCAPE '\\' AND t.name NOT LIKE 'sqlite%' \
                 ORDER BY 1, c.cid";
    tables(&house, query).await
}

async fn of_postgresql() -> Tables {
    let house = House::postgresql().await;
    let query = "SELECT table_name::text AS tbl, column_name::text AS col, \
                 CASE WHEN is_nullable = 'YES' THEN 1 ELSE 0 END AS may, upper(data_type::text) AS kind \
                 FROM information_schema.columns WHERE table_schema = current_schema() \
                 AND table_name NOT LIKE '\\_sqlx%' ORDER BY 1, ordinal_position";
    tables(&house, query).await
}

async fn tables(house: &House, query: &'static str) -> Tables {
    let mut tables = Tables::new();
    for row in sqlx::query(query).fetch_all(&mut house.elsewhere().await).await.unwrap() {
        let (table, column): (String, String) = (get(&row, "tbl").unwrap(), get(&row, "col").unwrap());
        let may_be_absent: i64 = get(&row, "may").unwrap();
        let kind: String = get(&row, "kind").unwrap();
        let kind = match kind.as_str() {
            "TEXT" => "text",
            "BIGINT" | "INTEGER" => "number",
            "BLOB" | "BYTEA" => "bytes",
            other => panic!("{table}.{column} is {other}"),
        };
        tables.entry(table).or_default().push((column, may_be_absent != 0, kind));
    }
    tables
}
