"""The tables of agent.db, format 3."""

from __future__ import annotations

import sqlite3

from pipelines.contract.errors import TidewireError

FORMAT = 3

# pipelines: `params` are those in effect at the last commit (JSON), NULL before it; `digest` is the version that wrote the state;
# `state_sum` and `crc` are as checksums.py says.
# streams: one row per run of a stream. A run with `active` takes new segments; one with `successor` is being sealed anew under
# that run; one in `doubt` (JSON of a forks.Fork) waits to be told which of its segments the lake has. Segments to `sent_seq` may
# have been sent in a former life of the agent. The columns pending_* and `lost_rows` (those pending in stubs) are kept by the
# triggers below, in the same transaction, so that they cannot drift (I9).
# outbox: a segment, or with `void` a stub in place of the segments `first` to `seq`, whose bytes are gone; `digest` is that of
# segment `seq`, `run_rows` are the rows of the run through it; `data` of a stub are the ledgers of segment `seq` and whose
# they are (JSON), NULL where these are lost too.
# timers: node time when a note ends that was made for some time.
# gates: what the gate of a pipeline found out about its versions (JSON of gate.Book).
# artifacts: in the order in which they came; without `data` the bytes are a file in artifacts/ (artifacts.py).
# buffers: what the last version of the pipeline here said of its buffer (JSON of shares.Buffer).
_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE pipelines (
    name TEXT PRIMARY KEY, lineage TEXT NOT NULL, digest TEXT NOT NULL, number INTEGER NOT NULL,
    positions TEXT NOT NULL, ledger TEXT NOT NULL, params TEXT,
    state_sum INTEGER NOT NULL DEFAULT 0, crc INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE state (
    pipeline TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, crc INTEGER NOT NULL, PRIMARY KEY (pipeline, key)
);
CREATE TABLE streams (
    id INTEGER PRIMARY KEY, pipeline TEXT NOT NULL, stream TEXT NOT NULL, run TEXT NOT NULL, kind TEXT NOT NULL,
    lake_table TEXT NOT NULL, next_seq INTEGER NOT NULL DEFAULT 1, last_digest TEXT NOT NULL DEFAULT '',
    run_rows INTEGER NOT NULL DEFAULT 0, sent_seq INTEGER NOT NULL DEFAULT 0,
    mark_seq INTEGER NOT NULL DEFAULT 0, mark_digest TEXT NOT NULL DEFAULT '',
    mark_rows INTEGER NOT NULL DEFAULT 0, mark_stored INTEGER NOT NULL DEFAULT 0,
    active INTEGER NOT NULL DEFAULT 1, successor INTEGER REFERENCES streams (id), doubt TEXT NOT NULL DEFAULT '',
    pending_segments INTEGER NOT NULL DEFAULT 0, pending_rows INTEGER NOT NULL DEFAULT 0,
    pending_bytes INTEGER NOT NULL DEFAULT 0, lost_rows INTEGER NOT NULL DEFAULT 0, UNIQUE (run, stream)
);
CREATE UNIQUE INDEX streams_active ON streams (pipeline, stream) WHERE active;
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY, stream_id INTEGER NOT NULL REFERENCES streams (id), first INTEGER NOT NULL, seq INTEGER NOT NULL,
    digest TEXT NOT NULL, rows INTEGER NOT NULL, run_rows INTEGER NOT NULL, bytes INTEGER NOT NULL,
    void TEXT NOT NULL DEFAULT '', data BLOB, UNIQUE (stream_id, seq)
);
CREATE INDEX outbox_whole ON outbox (stream_id, seq) WHERE void = '';
CREATE INDEX outbox_stubs ON outbox (stream_id, seq) WHERE void <> '';
CREATE TRIGGER outbox_in AFTER INSERT ON outbox BEGIN
    UPDATE streams SET pending_segments = pending_segments + 1, pending_rows = pending_rows + NEW.rows,
        pending_bytes = pending_bytes + NEW.bytes, lost_rows = lost_rows + NEW.rows * (NEW.void <> '')
        WHERE id = NEW.stream_id;
END;
CREATE TRIGGER outbox_out AFTER DELETE ON outbox BEGIN
    UPDATE streams SET pending_segments = pending_segments - 1, pending_rows = pending_rows - OLD.rows,
        pending_bytes = pending_bytes - OLD.bytes, lost_rows = lost_rows - OLD.rows * (OLD.void <> '')
        WHERE id = OLD.stream_id;
END;
CREATE TRIGGER outbox_change AFTER UPDATE OF rows, bytes, void ON outbox BEGIN
    UPDATE streams SET pending_rows = pending_rows + NEW.rows - OLD.rows, pending_bytes = pending_bytes + NEW.bytes - OLD.bytes,
        lost_rows = lost_rows + NEW.rows * (NEW.void <> '') - OLD.rows * (OLD.void <> '') WHERE id = NEW.stream_id;
END;
CREATE TABLE stream_ledgers (
    pipeline TEXT NOT NULL, stream TEXT NOT NULL, stored_rows INTEGER NOT NULL DEFAULT 0,
    refused_rows INTEGER NOT NULL DEFAULT 0, forgotten_rows INTEGER NOT NULL DEFAULT 0,
    evicted_segments INTEGER NOT NULL DEFAULT 0, evicted_rows INTEGER NOT NULL DEFAULT 0,
    damaged_segments INTEGER NOT NULL DEFAULT 0, damaged_rows INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (pipeline, stream)
) WITHOUT ROWID;
CREATE TABLE buffers (pipeline TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE timers (note TEXT PRIMARY KEY, ends_us INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE gates (pipeline TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE incidents (
    incident TEXT PRIMARY KEY, pipeline TEXT NOT NULL, acknowledged INTEGER NOT NULL, body TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE actions (
    id TEXT PRIMARY KEY, pipeline TEXT NOT NULL, body TEXT NOT NULL, status TEXT NOT NULL, tries INTEGER NOT NULL DEFAULT 0,
    outcome TEXT NOT NULL DEFAULT '', finished_us INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX actions_status ON actions (status, finished_us);
CREATE TABLE artifacts (
    digest TEXT PRIMARY KEY, kind TEXT NOT NULL, number INTEGER NOT NULL, bytes INTEGER NOT NULL,
    signature BLOB NOT NULL, data BLOB
);
"""


# Raw bytes of rejected records that stay here: zlib of JSON, some rows a chunk.
# requests: what was taken up of the manifest's: how many rows of the answer are sealed, whether its end is.
_ADDED = """
CREATE TABLE IF NOT EXISTS quarantine (
    id INTEGER PRIMARY KEY, pipeline TEXT NOT NULL, rows INTEGER NOT NULL, bytes INTEGER NOT NULL, data BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS requests (
    id TEXT PRIMARY KEY, begun_us INTEGER NOT NULL, rows INTEGER NOT NULL DEFAULT 0, is_over INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
"""


def prepare(db: sqlite3.Connection) -> None:
    """Create the tables in a new file; raise `TidewireError` on a file that a newer agent wrote."""
    known = db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'meta'").fetchone()[0]
    if not known:
        db.executescript("BEGIN IMMEDIATE;" + _TABLES + _ADDED + f"INSERT INTO meta VALUES ('format', {FORMAT}); COMMIT;")
        return
    found = get_meta(db, "format")
    if found != FORMAT:
        raise TidewireError(f"its format is {found}, this agent reads {FORMAT}", op="open the store", hint="upgrade the agent")
    db.executescript("BEGIN IMMEDIATE;" + _ADDED + "COMMIT;")


def get_meta(db: sqlite3.Connection, key: str) -> object:
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return row[0] if row else None


def put_meta(db: sqlite3.Connection, key: str, value: object) -> None:
    db.execute("INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value))
