"""Join a control plane: the node makes its own key and shows a token; what comes back is its identity."""

from __future__ import annotations

import asyncio
import os
import platform
import secrets
from contextlib import suppress
from pathlib import Path

from edge_agent.agent import facts
from edge_agent.config import Identity, make_private_dir, write_private
from edge_agent.link import LinkDown, Login, NatsLink
from pipelines.contract import subjects
from pipelines.contract.errors import OutOfReach, Refused, TidewireError
from pipelines.contract.keys import Key
from pipelines.contract.messages import Join, JoinReply
from pipelines.contract.token import JoinToken, prove

CONNECT_WITHIN_S = 15.0
_REPLY_S = 10.0


async def join(token: JoinToken, data_dir: Path, name: str = "") -> tuple[Identity, bool]:
    """The node's identity, and whether it is new. Doing it again changes nothing; a lost reply is no harm."""
    if (known := Identity.load(data_dir)) is not None:
        if known.control != token.control:
            raise Refused(
                f"this node is {known.name} of another control plane ({known.url})", op="join", place=str(data_dir),
                hint="give another place with --data-dir, or remove identity.json there to leave the other one",
            )  # fmt: skip
        return known, False
    make_private_dir(data_dir)
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
    )
    identity.save(data_dir)
    (data_dir / "joining.key").unlink(missing_ok=True)
    return identity, True


def _own_key(data_dir: Path) -> Key:
    """The same key on every try, so that asking again after a lost reply is the same node asking."""
    path = data_dir / "joining.key"
    if not path.exists():
        write_private(path, Key.from_entropy(os.urandom(32)).seed.encode())
    return Key(path.read_text().strip())


async def _ask(token: JoinToken, key: Key, name: str) -> JoinReply:
    link = NatsLink(Login(token.url, subjects.inbox(token.id), token.jwt, token.seed, token.ca, f"joining {name}"))
    tried = asyncio.Event()
    link.on_change(tried.set)
    running = asyncio.create_task(link.run())
    try:
        with suppress(TimeoutError):
            await asyncio.wait_for(tried.wait(), CONNECT_WITHIN_S)
        if not link.is_up:
            raise _not_connected(token, link.trouble)
        request = Join(key.public, secrets.token_hex(8), name, facts())
        raw = await link.request(
            subjects.join(token.id), request.seal(key, [prove(Key(token.seed), request.nonce, key.public)]), _REPLY_S
        )
    except LinkDown as error:
        raise OutOfReach(error.cause, op="join", place=token.url, hint="is the control plane running? `tidewire up`") from None
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
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
