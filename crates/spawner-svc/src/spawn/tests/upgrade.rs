//! The store of the first service that could run servers is read by this one, and means what it meant.

use std::path::Path;

use glidepath_domain::run::{EndReason, State};
use secrecy::ExposeSecret as _;
use sqlx::{Connection as _, SqliteConnection};

use super::super::launch::SealedOrder;
use super::super::record::{Record, read_view};
use crate::seal::Seal;
use crate::store::{Bound, Store};

/// A state folder as the first service left it, killed: `samples/stores/make_first.py` made it.
async fn first() -> tempfile::TempDir {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples/stores");
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("keys")).unwrap();
    let key = dir.path().join("keys/seal.key");
    std::fs::copy(samples.join("first.key"), &key).unwrap();
    std::fs::set_permissions(key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let dump = std::fs::read_to_string(samples.join("first.sql")).unwrap();
    let url = format!("sqlite://{}?mode=rwc", dir.path().join("glidepath.db").display());
    let mut file = SqliteConnection::connect(&url).await.unwrap();
    let dump = format!("PRAGMA foreign_keys = OFF;\n{dump}"); // it has its tables by name
    sqlx::raw_sql(sqlx::AssertSqlSafe(dump)).execute(&mut file).await.unwrap();
    file.close().await.unwrap();
    dir
}

#[tokio::test]
async fn a_store_of_the_first_service_is_brought_up_to_date_and_every_row_means_the_same() {
    let dir = first().await;
    let store = Store::open(dir.path(), Seal::in_state_dir(dir.path()).unwrap()).await.unwrap();
    let rows = store.last_runs().await.unwrap();
    let mut found = Vec::new();
    for row in &rows {
        let (record, view) = (Record::read(row).unwrap(), read_view(&row.view).unwrap());
        assert_eq!((record.run.id, record.run.state), (row.run, view.state));
        assert_eq!(record.key().full(), row.server_key);
        assert_eq!(record.spawn_id, format!("spawn-of-{}", view.key.user));
        assert_eq!(record.request.resources.memory_mb, 512);
        assert_eq!(row.alive, view.state != State::Ended);
        assert_eq!(row.settled, record.run.is_settled());
        let end = view.end.as_ref().map(|end| (end.reason, end.exit_code));
        let order = store.order(row.run).await.unwrap().map(|order| SealedOrder::read(&order).unwrap());
        let token = order.and_then(|order| order.hub_token()).map(|token| token.expose_secret().to_owned());
        let site = view.site.as_ref().map(ToString::to_string).unwrap_or_default();
        found.push((view.key.user.to_string(), site, view.state, end, token));
    }
    let token = |user: &str| Some(format!("t0ken-of-{user}"));
    let row =
        |user: &str, site: &str, state, end, token| (user.to_owned(), site.to_owned(), state, end, token);
    let expected = [
        row("ada", "here", State::Ready, None, token("ada")),
        row("bob", "here", State::Ended, Some((EndReason::Stopped, Some(0))), None),
        row("eve", "here", State::Ended, Some((EndReason::Exited, Some(3))), None),
        row("max", "queue", State::Queued, None, token("max")),
    ];
    assert_eq!(found, expected);

    let unsettled: Vec<String> =
        store.unsettled().await.unwrap().into_iter().map(|row| row.spawn_id).collect();
    let all = ["spawn-of-ada", "spawn-of-bob", "spawn-of-eve", "spawn-of-max"];
    assert_eq!(unsettled, all, "it was killed before what is left of the ended ones was removed");
    let events = store.events_after("main", 0, 1000).await.unwrap();
    for event in &events {
        read_view(&event.view).unwrap();
    }
    let (oldest, newest) = store.event_ids().await.unwrap().unwrap();
    assert_eq!((oldest, newest), (1, events.len() as u64));
    let ada = glidepath_domain::names::Attempt { run: rows[0].run, number: 1 };
    let stranger = store.bind(ada, &[9; 32], true).await.unwrap();
    assert_eq!(stranger, Bound::ToAnotherKey, "the key of its agent is bound still");

    // And it is written on.
    store.save(rows[0].clone(), true, false).await.unwrap();
    assert_eq!(store.event_ids().await.unwrap(), Some((1, newest + 1)));
}
