"""Join a control plane: the node makes its own key and shows a token; what comes back is its identity."""

from __future__ import annotations

import os
import platform
import secrets
from contextlib import nullcontext
from pathlib import Path

from edge_agent import former
from edge_agent.config import Identity, make_private_dir, write_private
from edge_agent.link import LinkDown, Login, connected
from edge_agent.reporting import facts
from pipelines.contract import subjects
from pipelines.contract.errors import OutOfReach, Refused, TidewireError
from pipelines.contract.keys import Key
from pipelines.contract.messages import Join, JoinReply
from pipelines.contract.token import JoinToken, prove

CONNECT_WITHIN_S = 15.0
_REPLY_S = 10.0


async def join(token: JoinToken, data_dir: Path, name: str = "", *, again: bool = False) -> tuple[Identity, bool]:
    """The node's identity, and whether it is new. Doing it again changes nothing; a lost reply is no harm.

    `again`: leave the identity that is there, which `former.set_aside` keeps, for a new one.
    """
    known = Identity.load(data_dir)
    if known is not None and not again:
        if known.control != token.control:
            raise Refused(
                f"this node is {known.name} of another control plane ({known.url})", op="join", place=str(data_dir),
                hint="give another place with --data-dir, or set this identity aside with --again",
            )  # fmt: skip
        return known, False
    make_private_dir(data_dir)
    with former.unused(data_dir) if known is not None else nullcontext():
        return await _become(token, data_dir, name, known), True


async def _become(token: JoinToken, data_dir: Path, name: str, known: Identity | None) -> Identity:
    key = _own_key(data_dir)
    reply = await _ask(token, key, name or platform.node() or "node")
    identity = Identity(
        node=reply.node,
        name=reply.name,
        seed=key.seed,
        user_jwt=reply.user_jwt,
        control=token.control,
        author=reply.author,
        url=token.url,
        ca=token.ca,
        labels=reply.labels,
        standing_jwt=reply.standing_jwt,
    )
    if known is not None:
        former.set_aside(data_dir, known)
    identity.save(data_dir)
    (data_dir / "joining.key").unlink(missing_ok=True)
    return identity


def _own_key(data_dir: Path) -> Key:
    """The same key on every try, so that asking again after a lost reply is the same node asking."""
    path = data_dir / "joining.key"
    if not path.exists():
        write_private(path, Key.from_entropy(os.urandom(32)).seed.encode())
    return Key(path.read_text().strip())


async def _ask(token: JoinToken, key: Key, name: str) -> JoinReply:
    login = Login(token.url, subjects.inbox(token.id), token.jwt, token.seed, token.ca, f"joining {name}")
    request = Join(key.public, secrets.token_hex(8), name, facts(), key.derived("standing").public)
    try:
        async with connected(login, CONNECT_WITHIN_S) as link:
            proof = prove(Key(token.seed), request.nonce, key.public)
            raw = await link.request(subjects.join(token.id), request.seal(key, [proof]), _REPLY_S)
    except LinkDown as error:
        if error.op == "connect":
            raise _not_connected(token, error.cause) from None
        raise OutOfReach(error.cause, op="join", place=token.url, hint="is the control plane running? `tidewire up`") from None
    reply, _ = JoinReply.unseal(token.control, raw)
    if reply.nonce != request.nonce or reply.error:
        raise Refused(reply.error or "the answer belongs to another question", op="join", place=token.url, hint=reply.hint)
    return reply


def _not_connected(token: JoinToken, trouble: str) -> TidewireError:
    if "refused this node's credentials" in trouble:
        return Refused(
            "the broker does not accept this token", op="join", place=token.url,
            hint="make a new one where the control plane runs: tidewire join-token create",
        )  # fmt: skip
    return OutOfReach(
        trouble or "no connection", op="join", place=token.url, hint="check the address and the network, then join again"
    )
