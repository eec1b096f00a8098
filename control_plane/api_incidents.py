"""The part of the HTTP API about incidents and who is notified of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from control_plane import incident_stats, incident_views, notify_store
from control_plane.commands import Done, Writer
from control_plane.incident_views import Wanted
from control_plane.notify_store import SEVERITIES, SILENT_AFTER_S, WORDS
from control_plane.selector import parse_selector
from control_plane.store import now_us

_DAY_US = 24 * 3600 * 1_000_000


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")
    by: str
    reason: str = ""
    dry_run: bool = False

    @property
    def who(self) -> Writer:
        return Writer(self.by, self.reason, self.dry_run)


class Filter(BaseModel):
    model_config = ConfigDict(extra="forbid")
    node: str = ""
    pipeline: str = ""
    trigger: str = ""
    severity: str = ""
    state: str = ""
    select: str = ""
    since_us: int = Field(0, ge=0, lt=2**62)
    open_only: bool = False

    def wanted(self) -> Wanted:
        words = self.model_dump(exclude={"select"})
        return Wanted(**words, selector=parse_selector(self.select) if self.select else None)


class ByHand(_Body):
    incidents: list[str] = []
    filter: Filter | None = None


class Shelve(_Body):
    subject: str
    select: str = ""
    for_s: float = Field(0, ge=0)
    force: bool = False


class AddTarget(_Body):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
    webhook: Annotated[str, Field(pattern=r"^https?://[^\s/]+", max_length=2000)]
    select: str = "all"
    severity: Annotated[list[str], Field(min_length=1)] = list(SEVERITIES[:2])
    on: Annotated[list[str], Field(min_length=1)] = list(WORDS)
    silent_after_s: float = Field(SILENT_AFTER_S, ge=30, le=30 * 86_400)


Routes = list[tuple[str, str, Callable[[Request], Awaitable[Any]]]]


class IncidentApi:
    """`body` reads a request, `done` performs a command and pokes nodes."""

    def __init__(
        self,
        backend: Any,
        lake_dir: Any,
        body: Callable[[Request], Awaitable[bytes]],
        done: Callable[..., Awaitable[dict[str, Any]]],
    ) -> None:
        self._backend, self._lake_dir, self._body, self._done = backend, lake_dir, body, done

    def routes(self) -> Routes:
        return [
            ("GET", "/v1/incidents", self.incidents),
            ("GET", "/v1/incident-stats", self.stats),
            ("POST", "/v1/incidents/acknowledge", self.acknowledge),
            ("POST", "/v1/incidents/reset", self.reset),
            ("POST", "/v1/incidents/shelve", self.shelve),
            ("POST", "/v1/incidents/unshelve", self.unshelve),
            ("GET", "/v1/incidents/{id:path}", self.incident),
            ("GET", "/v1/notify", self.targets),
            ("POST", "/v1/notify", self.add_target),
            ("POST", "/v1/notify/{name}/remove", self.remove_target),
            ("POST", "/v1/notify/{name}/test", self.test_target),
        ]

    async def _rows(self) -> Any:
        return await self._backend.in_background(incident_views.incident_rows, self._lake_dir)

    async def incidents(self, request: Request) -> Any:
        wanted = Filter.model_validate(dict(request.query_params)).wanted()
        rows, contact = await self._rows(), self._backend.contact()
        return {"incidents": await self._backend.with_db(incident_views.all_incidents, rows, contact, wanted)}

    async def incident(self, request: Request) -> Any:
        rows, contact = await self._rows(), self._backend.contact()
        return await self._backend.with_db(incident_views.incident, rows, request.path_params["id"], contact)

    async def stats(self, request: Request) -> Any:
        words = Filter.model_validate(dict(request.query_params))
        rows, now = await self._rows(), now_us()
        since = words.since_us or now - _DAY_US
        wanted = words.model_copy(update={"since_us": 0}).wanted()
        found = await self._backend.with_db(incident_views.all_incidents, rows, self._backend.contact(), wanted)
        return incident_stats.stats(found, since, now)

    async def acknowledge(self, request: Request) -> Any:
        return await self._by_hand("acknowledge", request)

    async def reset(self, request: Request) -> Any:
        return await self._by_hand("reset", request)

    async def _by_hand(self, kind: str, request: Request) -> Any:
        body = ByHand.model_validate_json(await self._body(request))
        wanted = body.filter.wanted() if body.filter else None
        args = (kind, body.incidents, wanted, await self._rows(), body.who, self._backend.contact())
        return await self._done(self._backend.incidents.by_hand, *args)

    async def shelve(self, request: Request) -> Any:
        return await self._shelve("shelve", request)

    async def unshelve(self, request: Request) -> Any:
        return await self._shelve("unshelve", request)

    async def _shelve(self, kind: str, request: Request) -> Any:
        body = Shelve.model_validate_json(await self._body(request))
        args = (kind, body.subject, body.select, body.for_s, await self._rows(), body.who, self._backend.contact())
        return await self._done(self._backend.incidents.shelve, *args, force=body.force)

    async def targets(self, request: Request) -> Any:
        return {"targets": await self._backend.with_db(notify_store.listed)}

    async def add_target(self, request: Request) -> Any:
        body = AddTarget.model_validate_json(await self._body(request))
        words = body.model_dump(exclude={"by", "reason", "dry_run"})
        return await self._write(lambda db: notify_store.add(db, words, body.who), body.who)

    async def remove_target(self, request: Request) -> Any:
        body, name = _Body.model_validate_json(await self._body(request)), request.path_params["name"]
        return await self._write(lambda db: notify_store.remove(db, name, body.who), body.who)

    async def test_target(self, request: Request) -> Any:
        body, name = _Body.model_validate_json(await self._body(request)), request.path_params["name"]
        target = await self._backend.with_db(notify_store.find, name)
        if body.dry_run:
            return {"summary": [f"would post a test message to {target.place}"], "dry_run": True}
        return await self._backend.notifier.test(target, body.who)

    async def _write(self, do: Callable[[Any], Done], who: Writer) -> Any:
        return await self._done(self._backend.incidents.transact, do, who)
