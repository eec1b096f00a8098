"""The HTTP API: JSON over loopback, one bearer token. Thin: pydantic at the door, then `commands` and `views`."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Collection
from dataclasses import asdict
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from control_plane import artifacts, incident_views, parameters, requests, rollouts, store, tables, views
from control_plane.api_incidents import IncidentApi
from control_plane.audit import Scope, run_audit
from control_plane.commands import VERBS, Commands, Done, Writer
from control_plane.deployment_file import RolloutWords
from control_plane.effects import Contact
from control_plane.incident_commands import IncidentCommands
from control_plane.notes_commands import NoteCommands
from control_plane.notify import Notifier
from control_plane.query import ROWS_MAX, check_query, run_query
from control_plane.ran import ran
from control_plane.why import why
from pipelines.contract.errors import OutOfReach, Refused, TidewireError, WrongUsage
from pipelines.contract.language.lookups import LOOKUP_BYTES_MAX
from pipelines.contract.node_state import Request as NodeRequest
from pipelines.engine.sql import as_json

T = TypeVar("T")
ONE_NODE_S = 600.0  # a tap or the lines of a log are of no use to anybody later
BODY_BYTES_MAX = 16 * 1024 * 1024


class Backend(Protocol):
    """What the server offers the API."""

    commands: Commands
    notes: NoteCommands
    incidents: IncidentCommands
    notifier: Notifier
    api_token: str

    def contact(self) -> Contact: ...
    async def with_db(self, do: Callable[..., T], *args: Any) -> T:
        """`do(db, *args)` in one read on the store thread."""

    async def on_store(self, do: Callable[..., T], *args: Any, **options: Any) -> T:
        """`do(*args)` on the store thread."""

    async def in_background(self, do: Callable[..., T], *args: Any) -> T:
        """`do(*args)` on a thread for long reads."""

    async def poke(self, nodes: list[str]) -> None: ...

    async def remove_node(self, name: str, who: Writer) -> Done:
        """See `removal.remove`; the broker knows when it returns."""

    async def refused(self) -> list[dict[str, Any]]:
        """See `Settler.refused`."""

    async def retake(self, digests: Collection[str]) -> dict[str, str]:
        """See `Settler.retake`."""


class _Write(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    by: str = Field("", max_length=200)
    reason: str = Field("", max_length=2000)
    dry_run: bool = False

    @property
    def who(self) -> Writer:
        return Writer(self.by, self.reason, self.dry_run)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    text: str


class Apply(_Write):
    files: Annotated[list[_File], Field(min_length=1)]
    allow_empty: bool = False


class Deploy(_Write):
    reference: str
    select: str
    params: dict[str, str] = {}
    remove: bool = False
    allow_empty: bool = False
    rollout: RolloutWords = RolloutWords()


class Steer(_Write):
    node: str = ""
    version: int | None = Field(None, ge=1)


class SetParams(_Write):
    pipeline: str
    params: dict[str, str]
    select: str
    force: bool = False
    lock: bool = False
    for_s: int = Field(0, ge=0, le=3650 * 86400)
    allow_empty: bool = False


class Decide(_Write):
    kind: str = Field(pattern="^(pause|resume|pin|unpin)$")
    reference: str
    select: str
    for_s: int = Field(0, ge=0, le=3650 * 86400)
    force: bool = False


class Comment(_Write):
    subject: str
    text: str


class UnsetParams(_Write):
    pipeline: str
    names: Annotated[list[str], Field(min_length=1)]
    select: str


class Label(_Write):
    labels: Annotated[dict[str, str | None], Field(min_length=1)]


class CreateToken(_Write):
    labels: dict[str, str] = {}
    uses: int = Field(1, ge=1, le=100_000)
    ttl_s: int = Field(8 * 3600, ge=1, le=365 * 86400)


class Replace(_Write):
    ttl_s: int = Field(8 * 3600, ge=1, le=365 * 86400)


class Retry(_Write):
    digests: list[str] = []  # beginnings will do; none: all


class PutArtifact(_Write):
    """In the query: the body is the file."""

    model_config = ConfigDict(extra="forbid", strict=False)


class Query(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    sql: str
    limit: int = Field(1000, ge=1, le=ROWS_MAX)
    timeout_s: float = Field(60, gt=0, le=600)


class AskQuery(_Write):
    sql: str = Field(max_length=16_384)  # it is in every manifest
    select: str
    until_s: float = Field(86_400, gt=0, le=7 * 86_400)  # nodes that return later are asked no more
    max_s: float = Field(30, gt=0, le=600)
    max_rows: int = Field(1000, ge=1, le=ROWS_MAX)


class AskNode(_Write):
    """Of one node: a tap of a pipeline, or lines of its log (of a pipeline)."""

    node: str
    pipeline: str = Field("", max_length=100)
    where: str = Field("", max_length=4096)
    max_s: float = Field(30, gt=0, le=600)
    max_rows: int = Field(100, ge=1, le=ROWS_MAX)


class Ledgers(BaseModel):
    """What an audit is to look at; times in microseconds since 1970, by when it was received."""

    model_config = ConfigDict(extra="forbid")
    pipeline: str = ""
    node: str = ""
    from_us: int = Field(0, ge=0, lt=2**62)
    to_us: int = Field(2**62, ge=0, le=2**62)


class Api:
    """Routes to methods. `url` and `ca` go into join tokens."""

    def __init__(self, backend: Backend, lake_dir: Any, url: str, ca: str) -> None:
        self._backend, self._lake_dir, self._url, self._ca = backend, lake_dir, url, ca

    def app(self) -> Starlette:
        routes = [
            ("GET", "/v1/health", self.health),
            ("GET", "/v1/pipelines", self.pipelines),
            ("POST", "/v1/apply", self.apply),
            ("GET", "/v1/artifacts", self.artifacts),
            ("GET", "/v1/artifacts/{reference:path}", self.artifact),
            ("POST", "/v1/artifacts/{name:path}", self.put_artifact),
            ("POST", "/v1/deployments", self.deploy),
            ("POST", "/v1/params", self.set_params),
            ("POST", "/v1/params/unset", self.unset_params),
            ("POST", "/v1/notes", self.decide),
            ("POST", "/v1/comments", self.comment),
            ("GET", "/v1/pipelines/{pipeline}/params", self.params),
            ("GET", "/v1/pipelines/{pipeline}/history", self.history),
            ("GET", "/v1/rollouts", self.rollouts),
            ("POST", "/v1/rollouts/{pipeline}/undo", self.undo),
            ("POST", "/v1/rollouts/{pipeline}/{verb}", self.steer),
            ("GET", "/v1/nodes", self.nodes),
            ("GET", "/v1/nodes/{name:path}", self.node),
            ("POST", "/v1/nodes/{name:path}/labels", self.label),
            ("POST", "/v1/nodes/{name:path}/replace", self.replace),
            ("POST", "/v1/nodes/{name:path}/remove", self.remove_node),
            ("POST", "/v1/recover", self.recover),
            ("GET", "/v1/why/{subject:path}", self.why),
            *IncidentApi(self._backend, self._lake_dir, _body, self._done).routes(),
            ("POST", "/v1/query", self.query),
            ("GET", "/v1/requests", self.requests),
            ("GET", "/v1/requests/{id:path}", self.request),
            ("POST", "/v1/requests/query", self.ask_query),
            ("POST", "/v1/requests/tap", self.ask_tap),
            ("POST", "/v1/requests/logs", self.ask_logs),
            ("POST", "/v1/requests/{id:path}/cancel", self.cancel_request),
            ("GET", "/v1/refused", self.refused),
            ("POST", "/v1/refused/retry", self.retry),
            ("POST", "/v1/join-tokens", self.create_token),
            ("GET", "/v1/ledgers", self.ledgers),
            ("GET", "/v1/audit", self.audit),
        ]
        return Starlette(
            routes=[Route(path, self._guarded(handler), methods=[method]) for method, path, handler in routes],
            exception_handlers={
                TidewireError: _answer_error,
                ValidationError: _answer_invalid,
                HTTPException: _answer_http,
                Exception: _answer_crash,
            },
        )

    async def health(self, request: Request) -> Any:
        return {"status": "ok"}

    async def pipelines(self, request: Request) -> Any:
        return {"pipelines": await self._backend.with_db(views.pipelines)}

    async def apply(self, request: Request) -> Any:
        body = Apply.model_validate_json(await _body(request))
        files = [(file.name, file.text) for file in body.files]
        args = (files, body.who, self._backend.contact())
        return await self._done(self._backend.commands.apply, *args, allow_empty=body.allow_empty)

    async def artifacts(self, request: Request) -> Any:
        found = await self._backend.with_db(artifacts.listed, request.query_params.get("name", ""))
        return {"artifacts": [row.as_json() for row in found]}

    async def artifact(self, request: Request) -> Any:
        def read(db: Any) -> tuple[artifacts.Registered, artifacts.Whole | None, dict[str, Any]]:
            found = artifacts.find(db, request.path_params["reference"])
            users = [str(user) for user in tables.users(db, found.name)]
            return found, artifacts.whole(db, found.digest), {"pipelines": users, "nodes": tables.use(db, found.digest)}

        found, whole, use = await self._backend.with_db(read)
        assert whole is not None, "artifacts are append-only"
        return {**found.as_json(), **use, **await self._backend.in_background(tables.shown, whole.data)}

    async def put_artifact(self, request: Request) -> Any:
        name, who = request.path_params["name"], PutArtifact.model_validate(dict(request.query_params)).who
        data = await _body(request, LOOKUP_BYTES_MAX)
        table = await self._backend.in_background(tables.read_csv, data, tables.checked_name(name))
        users = await self._backend.with_db(tables.users, name)
        warnings = await self._backend.in_background(tables.check_users, users, table)
        return await self._done(self._backend.commands.put_artifact, name, data, warnings, who, self._backend.contact())

    async def deploy(self, request: Request) -> Any:
        body, commands = Deploy.model_validate_json(await _body(request)), self._backend.commands
        if body.remove:
            return await self._done(commands.remove, body.reference, body.select, body.who, self._backend.contact())
        args = (body.reference, body.select, body.params, body.who, self._backend.contact(), body.rollout.pacing)
        return await self._done(commands.deploy, *args, allow_empty=body.allow_empty)

    async def params(self, request: Request) -> Any:
        return await self._backend.with_db(parameters.params, request.path_params["pipeline"])

    async def history(self, request: Request) -> Any:
        return await self._backend.with_db(ran, request.path_params["pipeline"], request.query_params.get("node"))

    async def rollouts(self, request: Request) -> Any:
        pipeline = request.query_params.get("pipeline")
        return {"rollouts": await self._backend.with_db(rollouts.status, pipeline, self._backend.contact())}

    async def undo(self, request: Request) -> Any:
        body = _Write.model_validate_json(await _body(request))
        return await self._done(self._backend.commands.undo, request.path_params["pipeline"], body.who, self._backend.contact())

    async def steer(self, request: Request) -> Any:
        body, verb = Steer.model_validate_json(await _body(request)), request.path_params["verb"]
        if verb not in VERBS:
            raise HTTPException(404, "not found")
        args = (verb, request.path_params["pipeline"], body.who, self._backend.contact())
        return await self._done(self._backend.commands.steer, *args, node=body.node, number=body.version)

    async def set_params(self, request: Request) -> Any:
        body, commands = SetParams.model_validate_json(await _body(request)), self._backend.commands
        args = (body.pipeline, body.params, body.select, body.who, self._backend.contact())
        options = {"force": body.force, "lock": body.lock, "for_us": body.for_s * 1_000_000, "allow_empty": body.allow_empty}
        return await self._done(commands.set_param, *args, **options)

    async def unset_params(self, request: Request) -> Any:
        body, commands = UnsetParams.model_validate_json(await _body(request)), self._backend.commands
        return await self._done(commands.unset_param, body.pipeline, body.names, body.select, body.who, self._backend.contact())

    async def decide(self, request: Request) -> Any:
        body, notes = Decide.model_validate_json(await _body(request)), self._backend.notes
        args = (body.kind, body.reference, body.select, body.who, self._backend.contact())
        return await self._done(notes.decide, *args, for_s=body.for_s, force=body.force)

    async def comment(self, request: Request) -> Any:
        body = Comment.model_validate_json(await _body(request))
        rows = await self._backend.in_background(incident_views.incident_rows, self._lake_dir)
        return await self._done(self._backend.notes.comment, body.subject, body.text, rows, body.who, self._backend.contact())

    async def nodes(self, request: Request) -> Any:
        found = {"nodes": await self._backend.with_db(views.nodes, self._backend.contact())}
        if request.query_params.get("all"):
            found["removed"] = await self._backend.with_db(views.removed_nodes)
        return found

    async def node(self, request: Request) -> Any:
        return await self._backend.with_db(views.node, request.path_params["name"], self._backend.contact())

    async def label(self, request: Request) -> Any:
        body, commands = Label.model_validate_json(await _body(request)), self._backend.commands
        return await self._done(commands.label, request.path_params["name"], body.labels, body.who, self._backend.contact())

    async def replace(self, request: Request) -> Any:
        body, commands = Replace.model_validate_json(await _body(request)), self._backend.commands
        args = (request.path_params["name"], self._url, self._ca, body.ttl_s, body.who, self._backend.contact())
        return await self._done(commands.replace, *args)

    async def remove_node(self, request: Request) -> Any:
        body = _Write.model_validate_json(await _body(request))
        return (await self._backend.remove_node(request.path_params["name"], body.who)).result

    async def recover(self, request: Request) -> Any:
        body = _Write.model_validate_json(await _body(request))
        return await self._done(self._backend.commands.recover, body.who, self._backend.contact())

    async def why(self, request: Request) -> Any:
        subject, pipeline = request.path_params["subject"], request.query_params.get("pipeline")
        return await self._backend.with_db(why, subject, pipeline, self._backend.contact())

    async def refused(self, request: Request) -> Any:
        found = await self._backend.refused()
        return {"refused": [{name: as_json(value) for name, value in row.items()} for row in found]}

    async def retry(self, request: Request) -> Any:
        body = Retry.model_validate_json(await _body(request))
        open_ = [row["digest"] for row in await self._backend.refused() if not row["retaken"]]
        chosen = [digest for digest in open_ if not body.digests or any(_begins(digest, word) for word in body.digests)]
        unknown = [word for word in body.digests if not any(_begins(digest, word) for digest in open_)]
        if unknown:
            hint = "list them with: tidewire refused list"
            raise Refused(f"no segment {unknown[0]} is refused", op="refused retry", hint=hint)
        if body.dry_run:
            return {"segments": [{"digest": digest, "reason": ""} for digest in chosen]}
        done = await self._backend.retake(chosen)
        for digest, reason in done.items():
            await self._backend.with_db(store.record, body.by, "refused retry", digest, reason or "stored", body.reason)
        return {"segments": [{"digest": digest, "reason": reason} for digest, reason in done.items()]}

    async def query(self, request: Request) -> Any:
        body = Query.model_validate_json(await _body(request))
        nodes = await self._backend.with_db(views.node_names, self._backend.contact())

        def run() -> dict[str, Any]:
            result = run_query(self._lake_dir, body.sql, limit=body.limit, timeout_s=body.timeout_s, nodes=nodes)
            rows = [[as_json(value) for value in row] for row in result.rows]
            return {"columns": list(result.columns), "rows": rows, "truncated": result.truncated}

        return await self._backend.in_background(run)

    async def requests(self, request: Request) -> Any:
        return {"requests": await self._backend.with_db(views.all_requests, self._backend.contact())}

    async def request(self, request: Request) -> Any:
        """With `?after=N`, the rows from number N on, too: `after=0` for all."""
        name, after = request.path_params["id"], request.query_params.get("after", "")
        found = await self._backend.in_background(requests.ends, self._lake_dir, [name])
        shown = await self._backend.with_db(views.request, name, found, self._backend.contact())
        if not (after.isascii() and after.isdigit()):
            return shown
        nodes = {node["id"]: node["node"] for node in shown["nodes"]}
        rows = await self._backend.in_background(requests.rows, self._lake_dir, name, nodes, int(after[:18]))
        return {**shown, "rows": rows}

    async def ask_query(self, request: Request) -> Any:
        body = AskQuery.model_validate_json(await _body(request))
        await self._backend.in_background(check_query, body.sql)
        limits = {"max_s": body.max_s, "max_rows": body.max_rows}
        return await self._ask("query", {"sql": body.sql}, limits, body.select, body.until_s, body.who)

    async def ask_tap(self, request: Request) -> Any:
        body = AskNode.model_validate_json(await _body(request))
        if body.where:
            await self._backend.in_background(check_query, f"SELECT 1 WHERE ({body.where}\n)")
        return await self._ask_node("tap", {"pipeline": body.pipeline, "where": body.where}, body)

    async def ask_logs(self, request: Request) -> Any:
        body = AskNode.model_validate_json(await _body(request))
        return await self._ask_node("logs", {"pipeline": body.pipeline}, body)

    async def _ask_node(self, kind: str, words: dict[str, Any], body: AskNode) -> Any:
        name = await self._backend.with_db(views.node_name, body.node)
        limits = {"max_s": body.max_s, "max_rows": body.max_rows}
        return await self._ask(kind, words, limits, f"name={name}", ONE_NODE_S, body.who)

    async def _ask(
        self, kind: str, body: dict[str, Any], limits: dict[str, Any], select: str, until_s: float, who: Writer
    ) -> Any:
        asked = NodeRequest(kind, body, **limits)
        return await self._done(self._backend.commands.ask, asked, select, until_s, who, self._backend.contact())

    async def cancel_request(self, request: Request) -> Any:
        body = _Write.model_validate_json(await _body(request))
        return await self._done(self._backend.commands.cancel_request, request.path_params["id"], body.who)

    async def ledgers(self, request: Request) -> Any:
        asked = Ledgers.model_validate(dict(request.query_params))
        nodes = await self._backend.with_db(views.node_names, self._backend.contact())
        node = await self._backend.with_db(views.node_id, asked.node) if asked.node else ""
        scope = Scope(asked.pipeline, node, asked.from_us, asked.to_us)
        return asdict(await self._backend.in_background(run_audit, self._lake_dir, scope, nodes))

    async def create_token(self, request: Request) -> Any:
        body = CreateToken.model_validate_json(await _body(request))
        commands = self._backend.commands
        return await self._done(commands.create_token, self._url, self._ca, body.labels, body.uses, body.ttl_s, body.who)

    async def audit(self, request: Request) -> Any:
        return {"audit": await self._backend.with_db(views.audit, 200, bool(request.query_params.get("security")))}

    async def _done(self, command: Callable[..., Done], *args: Any, **options: Any) -> dict[str, Any]:
        done = await self._backend.on_store(command, *args, **options)
        await self._backend.poke(done.poke)
        return done.result

    def _guarded(self, handler: Callable[[Request], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            scheme, _, token = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self._backend.api_token.encode()):
                hint = "use the token in api.json of the server's data directory: TIDEWIRE_TOKEN"
                return _error(Refused("the token is missing or wrong", op="api", hint=hint), 401)
            return JSONResponse(await handler(request))

        return guarded


def _begins(digest: str, word: str) -> bool:
    return bool(word) and (digest.startswith(word) or digest.removeprefix("sha256:").startswith(word))


async def _body(request: Request, bytes_max: int = BODY_BYTES_MAX) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > bytes_max:
            raise Refused(f"more than {bytes_max >> 20} MiB in one request", op="api")
        parts.append(part)
    return b"".join(parts)


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, TidewireError)
    return _error(error, 503 if isinstance(error, OutOfReach) else 400)


async def _answer_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, ValidationError)
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return _error(WrongUsage(first["msg"], op="api", place=place), 422)


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(
        Refused(error.detail.lower(), op="api", place=request.url.path, hint="is this `tidewire` as new as the server?"),
        error.status_code,
    )


async def _answer_crash(request: Request, error: Exception) -> Response:
    hint = "the server's log has the details; a full disk or a defect"
    return _error(TidewireError(f"the server failed: {type(error).__name__}", op="api", hint=hint), 500)


def _error(error: TidewireError, status: int) -> Response:
    return JSONResponse({"error": error.lines(), "exit_status": error.exit_status}, status)
