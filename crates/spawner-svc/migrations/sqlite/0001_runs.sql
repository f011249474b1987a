-- One life of a server. `doc` is the state machine's own record, `view` what everybody may see of it.
CREATE TABLE runs (
    run          TEXT PRIMARY KEY,
    hub          TEXT NOT NULL,
    server_key   TEXT NOT NULL,
    spawn_id     TEXT NOT NULL,
    state        TEXT NOT NULL,
    alive        BIGINT NOT NULL, -- 1 until it ended
    settled      BIGINT NOT NULL, -- 1 once it ended and nothing is left of it at any site
    requested_ms BIGINT NOT NULL,
    ended_ms     BIGINT,
    doc          TEXT NOT NULL,
    view         TEXT NOT NULL
);
-- The last guard against two lives of one server at a time.
CREATE UNIQUE INDEX runs_one_alive ON runs (server_key) WHERE alive = 1;
CREATE INDEX runs_by_key ON runs (server_key, run);
CREATE INDEX runs_unsettled ON runs (settled) WHERE settled = 0;

-- One submit. A fenced attempt may not attach; `bound_key` is the agent key that redeemed its ticket, in hexadecimal.
CREATE TABLE attempts (
    run       TEXT NOT NULL REFERENCES runs (run) ON DELETE CASCADE,
    number    BIGINT NOT NULL,
    site      TEXT NOT NULL,
    fenced    BIGINT NOT NULL,
    job       TEXT,
    bound_key TEXT,
    PRIMARY KEY (run, number)
);

-- What was told to Hubs, in the order of the telling.
CREATE TABLE events (
    id   INTEGER PRIMARY KEY AUTOINCREMENT,
    hub  TEXT NOT NULL,
    run  TEXT NOT NULL,
    view TEXT NOT NULL
);
CREATE INDEX events_by_hub ON events (hub, id);

-- Launch orders, sealed; the key lies outside the database. Erased when the run ended.
CREATE TABLE orders (
    run    TEXT PRIMARY KEY REFERENCES runs (run) ON DELETE CASCADE,
    sealed BLOB NOT NULL
);
