"""Letting nodes in: join tokens, and the answer to a node that shows one."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from control_plane import store
from control_plane.fleet import term
from control_plane.keys import KeyRing, new_key
from control_plane.store import now_us
from control_plane.times import iso
from pipelines.contract.document import NodeDocument
from pipelines.contract.errors import Refused
from pipelines.contract.keys import SIGNATURE_BYTES
from pipelines.contract.messages import Join, JoinReply
from pipelines.contract.token import JoinToken, is_proven

_GRACE_S = 7 * 86400  # the token's NATS login outlives it by this, so that we can say "expired" where NATS would just hang up
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_FACTS_BYTES_MAX = 16 * 1024
_HINT = "make a new one: tidewire join-token create"


def create_token(
    db: Connection,
    keys: KeyRing,
    *,
    url: str,
    ca: str,
    labels: Mapping[str, str],
    uses: int,
    ttl_s: int,
    by: str,
    replaces: str = "",
) -> JoinToken:
    """A new token. Only the public half of its login is kept. `replaces`: the id of a node whose place its user takes."""
    now = now_us()
    expires = now + ttl_s * 1_000_000
    token_id, login = _random_id(10), new_key()
    jwt = keys.join_jwt(token_id, login.public, now // 1_000_000, expires // 1_000_000 + _GRACE_S)
    token = JoinToken(token_id, url, keys.control.public, jwt, login.seed, ca)
    row = {"id": token_id, "public": login.public, "labels": json.dumps(dict(labels)), "uses_left": uses, "replaces": replaces}
    db.execute(store.tokens.insert().values(**row, expires_at=expires, by=by, at=now))
    store.record(db, by, "join-token create", token_id, f"{uses} uses until {iso(expires)}")
    return token


def join(db: Connection, keys: KeyRing, token_id: str, data: bytes) -> JoinReply:
    """The answer to a `Join`, idempotent for the same key: a node that lost our reply asks again and is itself.

    Raises `Refused` unless it is signed by the joining key and proves that its sender holds the token (I13).
    """
    request, proof = _open_request(data)
    try:
        token = _find_token(db, token_id)
    except Refused as error:
        return JoinReply(request.nonce, error=str(error), hint=error.hint)
    if not is_proven(token.public, request.nonce, request.public, proof):
        raise Refused("it does not prove that it holds the token", op="join", place=request.name)
    node = db.execute(sa.select(store.nodes).where(store.nodes.c.public == request.public)).first()
    if node is None:
        try:
            _check_key(db, request.public)
            labels = _use_token(db, token)
        except Refused as error:
            return JoinReply(request.nonce, error=str(error), hint=error.hint)
        _insert_node(db, request, token, labels)
        node = db.execute(sa.select(store.nodes).where(store.nodes.c.public == request.public)).one()
    now = now_us() // 1_000_000
    jwt = keys.node_jwt(node.id, request.public, now)
    standing = keys.standing_jwt(node.id, request.standing, now) if request.standing else ""
    return JoinReply(request.nonce, node.id, node.name, jwt, keys.author.public, json.loads(node.labels), standing_jwt=standing)


def _open_request(data: bytes) -> tuple[Join, bytes]:
    """The request, signed by the very key that it names, and what should prove that the sender holds the token."""
    claimed, _ = Join.unpack(data[SIGNATURE_BYTES:])
    request, blobs = Join.unseal(claimed.public, data)
    keys = [request.public, *([request.standing] if request.standing else [])]
    if not all(key.startswith("U") for key in keys) or len(json.dumps(request.facts)) > _FACTS_BYTES_MAX:
        raise Refused("the key is no user key, or the facts are too long", op="join", place=request.name)
    return request, blobs[0] if blobs else b""


def _find_token(db: Connection, token_id: str) -> Row[Any]:
    row = db.execute(sa.select(store.tokens).where(store.tokens.c.id == token_id)).first()
    if row is None:
        raise Refused(f"join token {token_id} is not known here", op="join", hint=_HINT)
    return row


def _check_key(db: Connection, public: str) -> None:
    """A node that was removed comes back as a new one, with a new key: never as a ghost of itself."""
    gone = db.execute(sa.select(store.removed_nodes).where(store.removed_nodes.c.public == public)).first()
    if gone is not None:
        what = f"this key is that of {gone.name} ({gone.id}), which was removed at {iso(gone.at)}"
        raise Refused(what, op="join", hint="tidewire-agent join --again TOKEN makes a new key")


def _use_token(db: Connection, token: Row[Any]) -> dict[str, str]:
    """Take one use of the token; its labels."""
    if token.expires_at <= now_us():
        raise Refused(f"join token {token.id} expired at {iso(token.expires_at)}", op="join", hint=_HINT)
    if token.uses_left < 1:
        raise Refused(f"join token {token.id} is used up", op="join", hint=_HINT)
    if token.replaces and db.scalar(sa.select(store.nodes.c.id).where(store.nodes.c.id == token.replaces)) is None:
        raise Refused(f"the node whose place join token {token.id} is for was removed", op="join", hint=_HINT)
    table = store.tokens
    db.execute(table.update().where(table.c.id == token.id).values(uses_left=table.c.uses_left - 1))
    return dict(json.loads(token.labels))


def _insert_node(db: Connection, request: Join, token: Row[Any], labels: Mapping[str, str]) -> None:
    document = NodeDocument()
    node_id, now = "n" + _random_id(12), now_us()
    name = _take_place(db, token, node_id) if token.replaces else _free_name(db, request.name)
    db.execute(
        store.nodes.insert().values(
            id=node_id,
            name=name,
            public=request.public,
            labels=json.dumps(dict(labels)),
            facts=json.dumps(request.facts),
            token=token.id,
            joined_at=now,
            last_seen=now,
            document=document.save(),
            document_digest=document.digest(),
            seen_digest="",
            seen_generation=0,
            seen_term=0,
            settled_term=term(db),
            replaced_by="",
        )
    )
    store.record(db, f"token {token.id}", "join", name, node_id)


def _take_place(db: Connection, token: Row[Any], node_id: str) -> str:
    """The name of the node that is replaced, which from now on has another one. What it sent stays under its id."""
    table = store.nodes
    old = db.execute(sa.select(table).where(table.c.id == token.replaces)).one()
    db.execute(table.update().where(table.c.id == old.id).values(name=_free_name(db, f"{old.name}.old"), replaced_by=node_id))
    store.record(db, token.by, "nodes replace", old.name, f"{old.id} -> {node_id}")
    return str(old.name)


def _free_name(db: Connection, asked: str) -> str:
    """`asked` in our alphabet, with a number behind it when another node has it."""
    cleaned = re.sub(r"[^a-z0-9.-]+", "-", asked.lower()[:56]).strip("-.")
    base = cleaned if _NAME.fullmatch(cleaned) else "node"
    taken = set(db.scalars(sa.select(store.nodes.c.name).where(store.nodes.c.name.startswith(base, autoescape=True))))
    names = (base if n == 1 else f"{base}-{n}" for n in range(1, len(taken) + 2))
    return next(name for name in names if name not in taken)


def _random_id(length: int) -> str:
    return base64.b32encode(os.urandom(length)).decode().lower()[:length]
