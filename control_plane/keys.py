"""The control plane's identities: made once, kept in files of mode 0600; and the NATS credentials minted from them.

Operator and accounts belong to NATS's operator mode. `control` signs manifests and replies, `author` signs artifacts.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nkeys

from control_plane.config import make_private_dir, write_private
from control_plane.durable import sync_directory
from pipelines.contract import subjects
from pipelines.contract.errors import TidewireError
from pipelines.contract.keys import Key

_KINDS = {
    "operator": nkeys.PREFIX_BYTE_OPERATOR,
    "system": nkeys.PREFIX_BYTE_ACCOUNT,
    "account": nkeys.PREFIX_BYTE_ACCOUNT,
    "server": nkeys.PREFIX_BYTE_USER,
    "control": nkeys.PREFIX_BYTE_USER,
    "author": nkeys.PREFIX_BYTE_USER,
}
_UNLIMITED = -1
_FOR_EVER = 253_402_300_799  # the end of the year 9999: no clock that was wrong saves a login
_ANSWER_WITHIN_NS = 120 * 10**9  # an upload is answered after its lake commit; later than this the node asks again anyway


@dataclass(frozen=True)
class KeyRing:
    """Every private key of one control plane."""

    operator: Key
    system: Key
    account: Key
    server: Key
    control: Key
    author: Key

    @classmethod
    def open(cls, directory: Path) -> KeyRing:
        """The keys in `directory`, all made at once when there is none. Raises `TidewireError` when one is missing: no node would
        believe a new one."""
        if not directory.exists() or not any(directory.iterdir()):
            _make_keys(directory)
        make_private_dir(directory)
        return cls(**{name: _open_key(directory / f"{name}.seed") for name in _KINDS})

    def operator_jwt(self, now: int) -> str:
        claims = {"type": "operator", "version": 2, "system_account": self.system.public}
        return mint(self.operator, self.operator.public, "tidewire", claims, now)

    def account_jwt(self, account: Key, name: str, now: int, revoked: Collection[str] = ()) -> str:
        """`revoked` are public keys of users that are no longer let in, whenever their login was made (I10)."""
        limits = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), _UNLIMITED)
        claims = {"type": "account", "version": 2, "limits": {**limits, "wildcards": True}}
        claims["default_permissions"] = {"pub": {}, "sub": {}}
        if revoked:
            claims["revocations"] = dict.fromkeys(sorted(revoked), _FOR_EVER)
        return mint(self.operator, account.public, name, claims, now)

    def server_creds(self, now: int) -> str:
        """The control plane's own login: besides poking it may only answer what it received."""
        publish, subscribe = subjects.server_permissions()
        answers = {"max": 1, "ttl": _ANSWER_WITHIN_NS}
        token = self._user_jwt(self.server.public, "control", publish, subscribe, now, answers=answers)
        return creds(token, self.server.seed)

    def node_jwt(self, node: str, public: str, now: int) -> str:
        """A node's login. It has no expiry (I10): trust ends by revocation."""
        publish, subscribe = subjects.node_permissions(node)
        return self._user_jwt(public, node, publish, subscribe, now)

    def standing_jwt(self, node: str, public: str, now: int) -> str:
        """A login that outlives the node's own, to ask why that is refused."""
        publish, subscribe = subjects.standing_permissions(node)
        return self._user_jwt(public, f"standing-{node}", publish, subscribe, now)

    def join_jwt(self, token_id: str, public: str, now: int, expires: int) -> str:
        publish, subscribe = subjects.join_permissions(token_id)
        return self._user_jwt(public, f"join-{token_id}", publish, subscribe, now, expires=expires)

    def _user_jwt(
        self,
        public: str,
        name: str,
        publish: list[str],
        subscribe: list[str],
        now: int,
        *,
        expires: int = 0,
        answers: dict[str, int] | None = None,
    ) -> str:
        claims: dict[str, Any] = {"type": "user", "version": 2, "subs": _UNLIMITED, "data": _UNLIMITED, "payload": _UNLIMITED}
        claims |= {"pub": {"allow": publish}, "sub": {"allow": subscribe}}
        if answers:
            claims["resp"] = answers
        return mint(self.account, public, name, claims, now, expires)


def new_key(kind: int = nkeys.PREFIX_BYTE_USER) -> Key:
    return Key.from_entropy(os.urandom(32), kind)


def mint(issuer: Key, subject: str, name: str, claims: dict[str, Any], now: int, expires: int = 0) -> str:
    """A NATS JWT (version 2). `now` and `expires` are seconds since 1970; 0 means no expiry."""
    body: dict[str, Any] = {"jti": "", "iat": now, "iss": issuer.public, "name": name, "sub": subject, "nats": claims}
    if expires:
        body["exp"] = expires
    digest = hashlib.sha256(json.dumps(body, separators=(",", ":")).encode()).digest()
    body["jti"] = base64.b32encode(digest).decode().rstrip("=")
    signed = f"{_segment({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_segment(body)}"
    return f"{signed}.{_base64(issuer.sign(signed.encode()))}"


def creds(jwt: str, seed: str) -> str:
    """The text of a NATS credentials file."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )


def _make_keys(directory: Path) -> None:
    """All of them or none, whenever we die."""
    fresh = directory.with_name(directory.name + ".new")
    make_private_dir(fresh)
    for name, kind in _KINDS.items():
        write_private(fresh / f"{name}.seed", new_key(kind).seed.encode())
    fresh.replace(directory)
    sync_directory(directory.parent)


def _open_key(path: Path) -> Key:
    try:
        return Key(path.read_text().strip())
    except FileNotFoundError:
        hint = "put it back from a backup; without any node or data to keep, remove the whole data directory"
        raise TidewireError("a key of this control plane is missing", op="open keys", place=str(path), hint=hint) from None


def _segment(value: dict[str, Any]) -> str:
    return _base64(json.dumps(value, separators=(",", ":")).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
