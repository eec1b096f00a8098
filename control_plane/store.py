"""The control plane's relational store: SQLAlchemy Core, SQLite by default, nothing that PostgreSQL lacks.

Times are integers: microseconds since 1970. JSON is text. Every change runs in one transaction that begins as a writer.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from pipelines.contract.errors import TidewireError

SCHEMA_FORMAT = 7
_REPEATS = 5  # security events of a subject that are not told again
SECURITY = "security"  # the audit action of an event that somebody should look at
_metadata = sa.MetaData()

meta = sa.Table("meta", _metadata, sa.Column("key", sa.Text, primary_key=True), sa.Column("value", sa.Text, nullable=False))

versions = sa.Table(
    "versions",
    _metadata,
    sa.Column("pipeline", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("digest", sa.Text, nullable=False, index=True),
    sa.Column("canonical", sa.LargeBinary, nullable=False),
    sa.Column("signature", sa.LargeBinary, nullable=False),
    sa.Column("by", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("pipeline", "digest"),
)

artifacts = sa.Table(
    "artifacts",
    _metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False, index=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Column("signature", sa.LargeBinary, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("by", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
)

version_artifacts = sa.Table(  # which artifacts a version names, as it names them: NAME or NAME@N
    "version_artifacts",
    _metadata,
    sa.Column("version", sa.Text, primary_key=True),  # digest
    sa.Column("reference", sa.Text, primary_key=True),
)

targets = sa.Table(
    "deployment_targets",
    _metadata,
    sa.Column("pipeline", sa.Text, primary_key=True),
    sa.Column("selector", sa.Text, primary_key=True),  # canonical text
    sa.Column("position", sa.Integer, nullable=False),  # first match wins
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("params", sa.Text, nullable=False),  # JSON: name -> value
    sa.Column("gate", sa.Text, nullable=False),  # JSON: `Gate`
    sa.Column("rollout", sa.Integer, nullable=False),  # its newest
    sa.Column("by", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
)

deployment_states = sa.Table(  # every state that a deployment had: what `rollout undo` goes back to
    "deployment_states",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("pipeline", sa.Text, nullable=False, index=True),
    sa.Column("back", sa.Integer),  # the state that an undo of this one returns to
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("targets", sa.Text, nullable=False),  # JSON: rows of `deployment_targets`
    sa.Column("by", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sqlite_autoincrement=True,
)

rollouts = sa.Table(
    "rollouts",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("pipeline", sa.Text, nullable=False, index=True),
    sa.Column("selector", sa.Text, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("steps", sa.Text, nullable=False),  # as written; "" for everywhere at once
    sa.Column("soak_us", sa.BigInteger, nullable=False),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),  # one of rollout.STATES
    sa.Column("was", sa.Text, nullable=False),  # the state before it was superseded
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("since", sa.BigInteger, nullable=False),  # when a node was first admitted in this step; 0: none yet
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("by", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sqlite_autoincrement=True,
)

rollout_nodes = sa.Table(
    "rollout_nodes",
    _metadata,
    sa.Column("rollout", sa.Integer, primary_key=True),
    sa.Column("node", sa.Text, primary_key=True),
    sa.Column("admitted", sa.BigInteger, nullable=False),  # when; 0: not
    sa.Column("generation", sa.Integer, nullable=False),  # of the manifest that first carried it; 0: none
    sa.Column("failed", sa.Text, nullable=False),  # why it failed there; "": it did not
    sa.Column("excused", sa.Boolean, nullable=False),  # `rollout resume` went on in spite of it
    sa.Column("before", sa.Text, nullable=False),  # JSON: `Assignment` that it had; "" for none
)

lifts = sa.Table(  # bans that a node pronounced with a lower number are over
    "lifts",
    _metadata,
    sa.Column("pipeline", sa.Text, primary_key=True),
    sa.Column("node", sa.Text, primary_key=True),
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("lift", sa.Integer, nullable=False),
)

silences = sa.Table(  # incidents of nodes that nobody hears; see silence_store.Silence
    "silences",
    _metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("node", sa.Text, nullable=False, index=True),
    sa.Column("since", sa.BigInteger, nullable=False),
    sa.Column("raised_at", sa.BigInteger, nullable=False),
    sa.Column("resolved_at", sa.BigInteger, nullable=False),
    sa.Column("acked_at", sa.BigInteger, nullable=False),
    sa.Column("acked_by", sa.Text, nullable=False),
    sa.Column("ack_reason", sa.Text, nullable=False),
    sa.Column("told", sa.Text, nullable=False),
)

notify_targets = sa.Table(
    "notify_targets",
    _metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("webhook", sa.Text, nullable=False),  # it may hold a secret: never shown, never logged
    sa.Column("selector", sa.Text, nullable=False),
    sa.Column("severity", sa.Text, nullable=False),  # comma-separated, as `words`
    sa.Column("words", sa.Text, nullable=False),
    sa.Column("silent_after_us", sa.BigInteger, nullable=False),
    sa.Column("by", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
)

notifications = sa.Table(  # what is to be sent to a target, or was
    "notifications",
    _metadata,
    sa.Column("id", sa.Text, primary_key=True),  # the receiver's idempotency key
    sa.Column("target", sa.Text, nullable=False, index=True),
    sa.Column("gathers", sa.Text, nullable=False),  # while gathering: what is gathered; else ""
    sa.Column("items", sa.Text, nullable=False),  # JSON: what is told
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("touched_at", sa.BigInteger, nullable=False),  # when the last item came
    sa.Column("status", sa.Text, nullable=False),  # gathering | pending | done | failed | expired
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("next_at", sa.BigInteger, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
)

notified = sa.Table(  # what was taken for a target: each thing once
    "notified",
    _metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("at", sa.BigInteger, nullable=False, index=True),
)

rules = sa.Table(
    "param_rules",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("pipeline", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("value", sa.Text, nullable=False),  # JSON
    sa.Column("selector", sa.Text, nullable=False),
    sa.Column("force", sa.Boolean, nullable=False),
    sa.Column("locked", sa.Boolean, nullable=False),
    sa.Column("until", sa.BigInteger, nullable=False),  # ends then; 0: does not
    sa.Column("by", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sqlite_autoincrement=True,  # an id is never used twice: on-site notes refer to it
)

nodes = sa.Table(
    "nodes",
    _metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("public", sa.Text, nullable=False, unique=True),
    sa.Column("labels", sa.Text, nullable=False),  # JSON
    sa.Column("facts", sa.Text, nullable=False),  # JSON, as of the join
    sa.Column("token", sa.Text, nullable=False),
    sa.Column("joined_at", sa.BigInteger, nullable=False),
    sa.Column("last_seen", sa.BigInteger, nullable=False),
    sa.Column("manifest", sa.LargeBinary),  # signed body
    sa.Column("signature", sa.LargeBinary),
    sa.Column("document", sa.LargeBinary, nullable=False),
    sa.Column("document_digest", sa.Text, nullable=False),
    sa.Column("seen_digest", sa.Text, nullable=False),  # of the document, as the node last claimed to hold it
    sa.Column("seen_generation", sa.Integer, nullable=False),  # of the manifest, as the node last claimed to hold it
    sa.Column("seen_term", sa.Integer, nullable=False),  # of that manifest
    sa.Column("sent_generation", sa.Integer, nullable=False, server_default="0"),  # of the newest manifest that it was sent
    sa.Column("settled_term", sa.Integer, nullable=False),  # both sides have agreed on the document in this term
    sa.Column("settled_seq", sa.Integer, nullable=False, default=0),  # the newest note of ours that the node has
    sa.Column("document_changes", sa.Integer, nullable=False, default=0),
    sa.Column("epoch", sa.Integer, nullable=False, default=0),  # of the document
    sa.Column("proposal", sa.LargeBinary),  # the document of the next epoch, as offered
    sa.Column("proposal_digest", sa.Text, nullable=False, default=""),
    sa.Column("proposal_of", sa.Text, nullable=False, default=""),  # digest of the document that it continues
    sa.Column("replaced_by", sa.Text, nullable=False),  # id of the node that has its name now; "" for none
    sa.Column("local", sa.Text, nullable=False, default="{}"),  # JSON: the labels that people put on the node itself
)

reports = sa.Table(
    "reports",  # a copy of what is under `reported/` in each node's document
    _metadata,
    sa.Column("node", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),  # pipeline/<name>, facts, history
    sa.Column("body", sa.Text, nullable=False),  # JSON as the node wrote it
    sa.Column("received_at", sa.BigInteger, nullable=False),
)

history = sa.Table(
    "history",  # how reports changed; append-only
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("node", sa.Text, nullable=False),
    sa.Column("pipeline", sa.Text, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("phase", sa.Text, nullable=False),
    sa.Column("gate", sa.Text, nullable=False),
    sa.Column("code", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("at", sa.Text, nullable=False),  # the node's clock: a label
    sa.Column("received_at", sa.BigInteger, nullable=False),
    sa.Index("history_node", "node", "pipeline"),
    sa.Index("history_pipeline", "pipeline"),
)

notes = sa.Table(
    "notes",  # of both sides, for ever: a document forgets what is over
    _metadata,
    sa.Column("node", sa.Text, primary_key=True),  # whose document it is in
    sa.Column("author", sa.Text, primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False, index=True),
    sa.Column("body", sa.Text, nullable=False),  # JSON
    sa.Column("by", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("after", sa.Integer, nullable=False),
    sa.Column("seen", sa.Integer, nullable=False),
    sa.Column("at", sa.Text, nullable=False),  # the author's clock: a label
    sa.Column("received_at", sa.BigInteger, nullable=False),
    sa.Column("collected", sa.Integer, nullable=False),  # the epoch without it; 0: it is in the document
)

refused_documents = sa.Table(
    "refused_documents",
    _metadata,
    sa.Column("node", sa.Text, primary_key=True),  # one whose document was not taken when it last sent it
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
)

removed_nodes = sa.Table(
    "removed_nodes",
    _metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),  # as it was: another node may have it now
    sa.Column("public", sa.Text, nullable=False, index=True),  # its login is revoked for ever
    sa.Column("labels", sa.Text, nullable=False),  # JSON
    sa.Column("last_seen", sa.BigInteger, nullable=False),
    sa.Column("document", sa.LargeBinary, nullable=False),  # what it reported last, and the notes of both sides
    sa.Column("by", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
)

tokens = sa.Table(
    "tokens",
    _metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("public", sa.Text, nullable=False),  # of the login in the token: the token itself is not kept
    sa.Column("labels", sa.Text, nullable=False),
    sa.Column("uses_left", sa.Integer, nullable=False),
    sa.Column("replaces", sa.Text, nullable=False),  # id of the node whose place its user takes; "" for none
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Column("by", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
)

requests = sa.Table(
    "requests",  # to nodes
    _metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("selector", sa.Text, nullable=False),
    sa.Column("request", sa.Text, nullable=False),  # JSON, as in the manifests
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("until", sa.BigInteger, nullable=False),
    sa.Column("closed", sa.Text, nullable=False, index=True),  # why it is in no manifest any more; "" while it is
)

request_answers = sa.Table(
    "request_answers",  # a copy of the ends in the lake's table `requests`: these nodes are asked no more
    _metadata,
    sa.Column("request", sa.Text, primary_key=True),
    sa.Column("node", sa.Text, primary_key=True),
    sa.Column("how", sa.Text, nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
)

audit = sa.Table(
    "audit",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("by", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),  # a verb of the command line, or security
    sa.Column("subject", sa.Text, nullable=False, index=True),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)


class Store:
    """The open database. Not for two threads at once: all callers share the server's one store thread."""

    def __init__(self, url: str) -> None:
        self._engine = _engine(url)
        with self.write() as db:
            if not sa.inspect(db).has_table("meta"):
                _metadata.create_all(db)
                db.execute(meta.insert().values(key="format", value=str(SCHEMA_FORMAT)))
            found = db.scalar(sa.select(meta.c.value).where(meta.c.key == "format"))
        if found != str(SCHEMA_FORMAT):
            raise TidewireError(
                f"its format is {found}, this build knows {SCHEMA_FORMAT}",
                op="open store",
                place=url,
                hint="run the Tidewire version that wrote it",
            )

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction: committed at the end, rolled back by an exception."""
        with self._engine.begin() as db:
            yield db

    @contextmanager
    def rehearse(self) -> Iterator[Connection]:
        """One transaction that is always rolled back: what a write would do (`--dry-run`)."""
        with self._engine.connect() as db, db.begin() as transaction:
            yield db
            transaction.rollback()

    def close(self) -> None:
        self._engine.dispose()


def record(db: Connection, by: str, action: str, subject: str, detail: str = "", reason: str = "") -> None:
    """Append to the audit log."""
    row = {"at": now_us(), "by": by, "action": action, "subject": subject, "detail": detail, "reason": reason}
    db.execute(audit.insert().values(row))


def record_security(db: Connection, subject: str, detail: str) -> None:
    """Append a security event, unless it is among the subject's last ones: peers try again for ever."""
    c = audit.c
    last = sa.select(c.detail).where(c.subject == subject, c.action == SECURITY).order_by(c.id.desc()).limit(_REPEATS)
    if detail not in db.scalars(last).all():
        record(db, "", SECURITY, subject, detail)


def now_us() -> int:
    return time.time_ns() // 1000


def _engine(url: str) -> Engine:
    engine = sa.create_engine(url)
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _configure_sqlite)
        engine.dialect.do_begin = _begin_writing  # type: ignore[method-assign]
    return engine


def _begin_writing(dbapi_connection: Any) -> None:
    dbapi_connection.execute("BEGIN IMMEDIATE")


def _configure_sqlite(connection: sqlite3.Connection, _: Any) -> None:
    connection.isolation_level = None  # we begin transactions ourselves, as writers from the start
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "busy_timeout=10000",
        "journal_size_limit=16777216",
    ):
        connection.execute(f"PRAGMA {pragma}")
