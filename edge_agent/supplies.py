"""What versions need besides their own bytes: fetched, kept within a budget, and remembered for a boot with nobody in reach."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge_agent.artifacts import Artifacts
from edge_agent.config import AgentConfig, Identity
from edge_agent.fetching import Fetcher
from edge_agent.host import Given
from edge_agent.keeper import Keeper
from edge_agent.link import Link
from edge_agent.provisions import Needs, Provision, Tables, provide, to_fetch
from edge_agent.store import Store
from pipelines.contract import causes
from pipelines.contract.artifact import LOOKUP_TABLE, PIPELINE_VERSION
from pipelines.contract.version import PipelineVersion

LOOK_AGAIN_S = 30.0  # at a disk that had no room
_META = "tables"
_VERSIONS_KEPT = 4  # of each pipeline, to go back to


@dataclass(frozen=True, slots=True)
class Wish:
    """A version that may be what should run, with the tables that the manifest names; `version` is None before its bytes are
    here."""

    pipeline: str
    digest: str
    version: PipelineVersion | None
    tables: Tables = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        return self.pipeline, self.digest


class Supplies:
    def __init__(self, config: AgentConfig, store: Store, identity: Identity, link: Link, on_change: Callable[[], None]) -> None:
        self._store, self._on_change = store, on_change
        self.artifacts = Artifacts(store, config.data_dir, identity.author, config.artifacts_bytes)
        self.fetcher = Fetcher(self.artifacts, identity, link, config.request_timeout_s, on_change)
        self._link = link
        self._former: dict[str, dict[str, dict[str, str]]] = {}  # pipeline -> version -> tables it ran with
        self._again: asyncio.TimerHandle | None = None
        self._restarts: dict[str, int] = {}
        self._provisions: dict[tuple[str, str], Provision] = {}

    async def load(self) -> None:
        await self.artifacts.load()
        self._former = await self._store.get(_META)

    async def look(self, wishes: Sequence[Wish], keepers: Mapping[str, Keeper], tasks: asyncio.TaskGroup) -> None:
        """Find out what each version can start with, and fetch what is lacking. What `keepers` run stays."""
        needs = {wish.key: (wish, Needs.of(wish.version.canonical)) for wish in wishes if wish.version}
        wanted = {digest for wish, _ in needs.values() for digest in wish.tables.values()}
        former = {digest for versions in self._former.values() for tables in versions.values() for digest in tables.values()}
        used = {digest for keeper in keepers.values() for digest in (keeper.version.digest, *keeper.tables_in_use.values())}
        self._doubt_what_failed(keepers)
        here = await self.artifacts.tables(wanted | former)
        gone_back_to = {digest for versions in self._former.values() for digest in versions}
        self.artifacts.need(wanted | former | used | gone_back_to | {wish.digest for wish in wishes})
        lacking = {wish.digest: PIPELINE_VERSION for wish in wishes if wish.version is None}
        for wish, need in needs.values():
            lacking |= dict.fromkeys(to_fetch(need, wish.tables, here), LOOKUP_TABLE)
        self.fetcher.want(lacking, tasks)
        room, troubles = await self._store.room(), self._troubles()
        self._provisions = {
            key: provide(need, wish.tables, here, self._former.get(wish.pipeline, {}).get(wish.digest), troubles, room)
            for key, (wish, need) in needs.items()
        }
        self._look_again(any(p.code == causes.DISK for p in self._provisions.values()))

    def provision(self, pipeline: str, version: str) -> Provision:
        return self._provisions[pipeline, version]

    async def give(self, versions: Mapping[str, str]) -> dict[str, Given]:
        """For the runners of these (pipeline -> version), the tables that they have. What they run with is on disk before they
        have it: they can run with it again."""
        now = {name: dict(had) for name, had in self._former.items() if any(name == key[0] for key in self._provisions)}
        for name, digest in versions.items():
            tables = dict(self._provisions[name, digest].tables)
            if (had := now.get(name, {})).get(digest) != tables:
                others = [(version, given) for version, given in had.items() if version != digest]
                now[name] = dict([*others[-_VERSIONS_KEPT + 1 :], (digest, tables)])
        if now != self._former:
            await self._store.put(_META, now)
            self._former = now
        return {name: self._given(self._provisions[name, digest].tables) for name, digest in versions.items()}

    def _given(self, tables: Tables) -> Given:
        return {name: (str(self.artifacts.path(digest)), digest) for name, digest in tables.items()}

    def _doubt_what_failed(self, keepers: Mapping[str, Keeper]) -> None:
        """A runner that did not get far may have found its table damaged."""
        for name, keeper in keepers.items():
            if keeper.restarts != self._restarts.get(name, 0):
                self.artifacts.doubt([digest for _, digest in keeper.tables.values()])
        self._restarts = {name: keeper.restarts for name, keeper in keepers.items()}

    def why_not_here(self, digest: str) -> tuple[str, str]:
        """Code and words of a version that is not here."""
        code, trouble = self._troubles().get(digest, ("", ""))
        return (
            code or causes.FETCHING,
            f"its version could not be fetched: {trouble}" if trouble else "its version is being fetched",
        )

    @property
    def under_way(self) -> list[dict[str, Any]]:
        """For `status`: how far each fetch is."""
        return [
            {"digest": f.digest, "kind": f.kind, "bytes": f.bytes, "size": f.size, "trouble": f.trouble}
            for f in self.fetcher.under_way.values()
        ]

    def close(self) -> None:
        self._look_again(False)
        self.fetcher.cancel()

    def _troubles(self) -> dict[str, tuple[str, str]]:
        found = {fetch.digest: (fetch.code, fetch.trouble) for fetch in self.fetcher.under_way.values()}
        if not self._link.is_up:
            cut = "the control plane is out of reach"
            found = {digest: (code, trouble or cut) for digest, (code, trouble) in found.items()}
        return found

    def _look_again(self, is_needed: bool) -> None:
        if self._again is not None:
            self._again.cancel()
        self._again = asyncio.get_running_loop().call_later(LOOK_AGAIN_S, self._on_change) if is_needed else None
