"""The node's own API on a Unix socket that only its owner may open: what `status`, `set`, `unset` and `ack` talk to."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edge_agent import onsite
from edge_agent.agent import Agent
from edge_agent.status import status
from pipelines.contract.errors import TidewireError

SOCKET = "agent.sock"
_BODY_BYTES_MAX = 64 * 1024


async def serve(agent: Agent) -> None:
    """Until cancelled."""
    path = agent.config.data_dir / SOCKET
    server = _Server(uvicorn.Config(application(agent), log_config=None, lifespan="off", access_log=False, date_header=False))
    with _listen(path) as sock:
        try:
            await server.serve(sockets=[sock])
        finally:
            path.unlink(missing_ok=True)


def application(agent: Agent) -> Starlette:
    async def get_status(request: Request) -> object:
        return await status(agent)

    async def get_incidents(request: Request) -> object:
        return await agent.store.incidents()

    async def post_set(request: Request) -> object:
        body = await _body(request)
        return {"done": await onsite.set_params(agent, body["pipeline"], body["values"], **_who(body))}

    async def post_unset(request: Request) -> object:
        body = await _body(request)
        return {"done": await onsite.unset_params(agent, body["pipeline"], body["names"], **_who(body))}

    async def post_ack(request: Request) -> object:
        body = await _body(request)
        return {"done": await onsite.acknowledge(agent, body["incident"], **_who(body))}

    async def post_reset(request: Request) -> object:
        body = await _body(request)
        return {"done": await onsite.reset(agent, body["incident"], **_who(body))}

    async def post_look(request: Request) -> object:
        agent.wake()
        return {"done": []}

    reads = {"/status": get_status, "/incidents": get_incidents}
    writes = {"/set": post_set, "/unset": post_unset, "/ack": post_ack, "/reset": post_reset, "/look": post_look}
    routes = [Route(path, _answering(handler)) for path, handler in reads.items()]
    routes += [Route(path, _answering(handler), methods=["POST"]) for path, handler in writes.items()]
    return Starlette(routes=routes)


class _Server(uvicorn.Server):
    """Without its timer (ten wake-ups a second) and its signal handlers: both are the agent's business."""

    async def main_loop(self) -> None:
        await asyncio.Event().wait()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await self._serve(sockets)
        except asyncio.CancelledError:
            self.force_exit = True
            await self.shutdown(sockets)
            raise


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)  # the lock on the store says that no other agent uses it
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
    except OSError as error:
        sock.close()
        raise TidewireError(
            f"its socket cannot be made: {error}", op="run", place=str(path),
            hint="the data directory must be writable and its path shorter than about 95 bytes: --data-dir",
        ) from None  # fmt: skip
    path.chmod(0o600)
    return sock


def _answering(handler: Callable[[Request], Awaitable[object]]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            return JSONResponse(await handler(request))
        except TidewireError as error:
            return JSONResponse({"error": str(error), "hint": error.hint}, 400)
        except (KeyError, TypeError, ValueError) as error:
            return JSONResponse({"error": f"not a request this agent knows: {error!r}", "hint": "same version?"}, 400)

    return endpoint


async def _body(request: Request) -> Any:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > _BODY_BYTES_MAX:
            raise ValueError("too long")
    return json.loads(data)


def _who(body: dict[str, Any]) -> dict[str, Any]:
    return {"by": str(body["by"]), "reason": str(body["reason"]), "dry_run": bool(body["dry_run"])}
