"""The node's own API on a Unix socket that only its owner may open: what `status` and the on-site verbs talk to."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edge_agent.agent import Agent
from edge_agent.onsite import incidents, labels, params, pipelines
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

    async def post_look(request: Request) -> object:
        agent.wake()
        return {"done": []}

    reads = {"/status": get_status, "/incidents": get_incidents}
    routes = [Route(path, _answering(handler)) for path, handler in reads.items()]
    routes += [Route("/look", _answering(post_look), methods=["POST"])]
    routes += [Route(path, _answering(partial(_perform, agent, verb)), methods=["POST"]) for path, verb in _VERBS.items()]
    return Starlette(routes=routes)


_VERBS: dict[str, tuple[Callable[..., Awaitable[list[str]]], tuple[str, ...]]] = {  # path -> what does it, its words in order
    "/set": (params.set_params, ("pipeline", "values", "for_s")),
    "/unset": (params.unset_params, ("pipeline", "names")),
    "/pin": (pipelines.pin, ("pipeline", "number", "for_s")),
    "/unpin": (pipelines.unpin, ("pipeline",)),
    "/pause": (pipelines.pause, ("pipeline", "for_s")),
    "/resume": (pipelines.resume, ("pipeline",)),
    "/label": (labels.label, ("labels",)),
    "/ack": (incidents.acknowledge, ("incident",)),
    "/reset": (incidents.reset, ("incident",)),
    "/shelve": (incidents.shelve, ("subject", "for_s")),
    "/unshelve": (incidents.unshelve, ("subject",)),
    "/comment": (incidents.comment, ("subject", "text")),
}
_MAY_LACK = ("for_s", "number")


async def _perform(agent: Agent, verb: tuple[Callable[..., Awaitable[list[str]]], tuple[str, ...]], request: Request) -> object:
    does, names = verb
    body = await _body(request)
    words = [body.get(name) if name in _MAY_LACK else body[name] for name in names]
    if not all(value is None or (type(value) in (int, float) and value > 0) for value in map(body.get, _MAY_LACK)):
        raise ValueError(" and ".join(_MAY_LACK) + " are positive numbers")
    who = {"by": str(body["by"]), "reason": str(body["reason"]), "dry_run": bool(body["dry_run"])}
    return {"done": await does(agent, *words, **who)}


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
