"""Fetching by digest: cut and gone on with, verified, kept within a budget; and what a version may start with."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import NODE, new_key, until

from edge_agent import fetching, reserve, salvage
from edge_agent.artifacts import Artifacts
from edge_agent.config import Identity
from edge_agent.fetching import Fetcher
from edge_agent.link import LinkDown
from edge_agent.provisions import Needs, Provision, provide, to_fetch
from edge_agent.store import Store
from pipelines.contract import causes
from pipelines.contract.artifact import LOOKUP_TABLE, PIPELINE_VERSION, Artifact
from pipelines.contract.errors import Refused
from pipelines.contract.frames import canonical_json, sha256
from pipelines.contract.keys import Key
from pipelines.contract.messages import ArtifactReply, ArtifactRequest

KEY, CONTROL, AUTHOR = new_key(), new_key(), new_key()
IDENTITY = Identity(
    node=NODE, name="one", seed=KEY.seed, user_jwt="", control=CONTROL.public, author=AUTHOR.public, url="nats://nowhere"
)
TABLE = os.urandom(1_500_000)


class Line:
    """A link to a control plane that has some artifacts, and faults: `spoil` may change what it answers, or raise."""

    def __init__(self, *artifacts: tuple[str, bytes], author: Key = AUTHOR) -> None:
        self.artifacts = {a.digest: a for kind, data in artifacts for a in [Artifact.sign(kind, data, author)]}
        self.asked: list[tuple[int, int]] = []  # offset and length
        self.sent = 0
        self.is_up = True
        self.spoil: Callable[[int, bytes, int], tuple[bytes, int]] = lambda offset, chunk, size: (chunk, size)
        self._callbacks: list[Callable[[], None]] = []

    def on_change(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def set_up(self, is_up: bool) -> None:
        self.is_up = is_up
        for callback in self._callbacks:
            callback()

    def on_message(self, subject: str, callback: Callable[[], None]) -> None: ...
    async def publish(self, subject: str, data: bytes) -> None: ...
    async def run(self) -> None: ...

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        await asyncio.sleep(0)
        if not self.is_up:
            raise LinkDown("cut")
        request, _ = ArtifactRequest.unpack(data)
        artifact = self.artifacts.get(request.digest)
        if artifact is None:
            return ArtifactReply(request.nonce, error="there is no such artifact", node=NODE).seal(CONTROL)
        self.asked.append((request.offset, request.length))
        chunk, size = self.spoil(
            request.offset, artifact.data[request.offset : request.offset + request.length], len(artifact.data)
        )
        self.sent += len(chunk)
        return ArtifactReply(request.nonce, artifact.kind, size, 3, node=NODE).seal(CONTROL, [chunk, artifact.signature])


class Node:
    def __init__(self, store: Store, artifacts: Artifacts, fetcher: Fetcher, tasks: asyncio.TaskGroup) -> None:
        self.store, self.artifacts, self.fetcher, self._tasks = store, artifacts, fetcher, tasks
        self.changes = 0

    def want(self, *digests: str, kind: str = LOOKUP_TABLE) -> None:
        self.artifacts.need(digests)
        self.fetcher.want(dict.fromkeys(digests, kind), self._tasks)

    async def has(self, digest: str) -> bytes | None:
        path = (await self.artifacts.tables([digest])).get(digest)
        return path.read_bytes() if path else None

    async def gets(self, digest: str) -> bytes:
        self.want(digest)
        await until(lambda: digest not in self.fetcher.under_way, "it comes")
        data = await self.has(digest)
        assert data is not None
        return data

    def trouble(self, digest: str) -> tuple[str, str]:
        fetch = self.fetcher.under_way.get(digest)
        return (fetch.code, fetch.trouble) if fetch else ("", "")


@asynccontextmanager
async def node(folder: Path, line: Line, budget: int = 256 << 20) -> AsyncIterator[Node]:
    store = Store.open(folder, NODE, KEY)
    try:
        async with asyncio.TaskGroup() as tasks:
            artifacts = Artifacts(store, folder, AUTHOR.public, budget)
            await artifacts.load()
            made = Node(store, artifacts, None, tasks)  # type: ignore[arg-type]

            def on_change() -> None:
                made.changes += 1

            made.fetcher = Fetcher(artifacts, IDENTITY, line, 1.0, on_change)
            try:
                yield made
            finally:
                made.fetcher.cancel()
    finally:
        store.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "PAUSE_FIRST_S", 0.01)
    monkeypatch.setattr(fetching, "PAUSE_MAX_S", 0.05)


def test_a_fetch_goes_on_where_it_was_cut_also_after_a_restart(tmp_path: Path) -> None:
    line, digest = Line((LOOKUP_TABLE, TABLE)), sha256(TABLE)

    def cut_at(bytes_: int) -> None:
        def spoil(offset: int, chunk: bytes, size: int) -> tuple[bytes, int]:
            if offset >= bytes_:
                line.set_up(False)
                raise LinkDown("cut")
            return chunk, size

        line.spoil = spoil

    async def story() -> None:
        cut_at(400_000)
        async with node(tmp_path, line) as here:
            here.want(digest)
            await until(lambda: not line.is_up)
            assert await until(lambda: here.trouble(digest) == (causes.ARTIFACT_MISSING, "the control plane is out of reach"))
            first = here.fetcher.under_way[digest].bytes
            assert 400_000 <= first < 1_000_000
            cut_at(1_000_000)
            line.set_up(True)
            await until(lambda: not line.is_up, "cut once more")
            second = here.fetcher.under_way[digest].bytes
            assert await here.has(digest) is None, "nothing is used before it is whole"
        cut_at(1 << 40)
        line.set_up(True)
        async with node(tmp_path, line) as here:
            assert await here.gets(digest) == TABLE
            assert here.artifacts.held[digest].number == 3
        assert line.sent == len(TABLE), "not a byte twice"
        assert first < second and second in [offset for offset, _ in line.asked]
        async with node(tmp_path, Line()) as here:
            assert await here.has(digest) == TABLE, "it stays, with nobody in reach (I12)"

    asyncio.run(story())


def flip(offset: int, chunk: bytes, size: int) -> tuple[bytes, int]:
    return (chunk[:-1] + bytes([chunk[-1] ^ 1]) if offset == 0 else chunk), size


def truncate(offset: int, chunk: bytes, size: int) -> tuple[bytes, int]:
    return (chunk if offset < 500_000 else b""), size


def shrink(offset: int, chunk: bytes, size: int) -> tuple[bytes, int]:
    return chunk, (size if offset < 500_000 else 500)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (flip, "the bytes are not those that were released"),
        (truncate, "it does not end after 1500000"),
        (shrink, "it does not end after 500"),
    ],
)
def test_i13_wrong_bytes_are_thrown_away_told_and_fetched_again(
    tmp_path: Path, spoil: Callable[[int, bytes, int], tuple[bytes, int]], says: str
) -> None:
    line, digest = Line((LOOKUP_TABLE, TABLE)), sha256(TABLE)
    line.spoil = spoil

    async def story() -> None:
        async with node(tmp_path, line) as here:
            here.want(digest)
            code, trouble = await until(lambda: here.trouble(digest) if here.trouble(digest)[1] else None)
            assert code == causes.SIGNATURE and says in trouble and "thrown away" in trouble
            assert await here.has(digest) is None
            told = here.changes
            await until(lambda: [offset for offset, _ in line.asked].count(0) >= 3, "from the start again")
            assert here.changes == told, "said once"
            line.spoil = lambda offset, chunk, size: (chunk, size)
            assert await here.gets(digest) == TABLE

    asyncio.run(story())


@pytest.mark.parametrize("how", ["another author", "another kind", "too large", "unknown", "not the control plane"])
def test_i13_what_is_not_signed_or_not_asked_for_is_not_stored(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = sha256(TABLE)
    line = Line((LOOKUP_TABLE, TABLE))
    if how == "another author":
        line = Line((LOOKUP_TABLE, TABLE), author=new_key())
    elif how == "another kind":
        line = Line((PIPELINE_VERSION, TABLE))
    elif how == "too large":
        line.spoil = lambda offset, chunk, size: (chunk, 1 << 40)
    elif how == "unknown":
        line = Line()
    else:
        monkeypatch.setattr("test_fetching.CONTROL", new_key())

    async def story() -> None:
        async with node(tmp_path, line) as here:
            here.want(digest)
            _, trouble = await until(lambda: here.trouble(digest) if here.trouble(digest)[1] else None)
            says = {
                "another author": "the author's signature does not match",
                "another kind": "it is a pipeline-version, not a lookup-table",
                "too large": "it is said to have",
                "unknown": "there is no such artifact",
                "not the control plane": "the signature does not match",
            }[how]
            assert says in trouble
            assert list((tmp_path / "artifacts").iterdir()) == [], "not a byte of it"

    asyncio.run(story())


FAULTS = st.lists(st.sampled_from(["well", "cut", "flip", "short", "twice", "silent", "restart"]), max_size=24)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faults=FAULTS)
def test_i13_whatever_the_line_does_the_table_comes_and_nothing_else_is_ever_used(
    faults: list[str], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("MIN", 1024), ("FIRST", 4096), ("MAX", 4096)):
        monkeypatch.setattr(fetching, f"CHUNK_BYTES_{name}", size)
    monkeypatch.setattr(fetching, "PAUSE_FIRST_S", 0.001)
    monkeypatch.setattr(fetching, "PAUSE_MAX_S", 0.002)
    table = TABLE[:30_000]
    line, digest, folder = Line((LOOKUP_TABLE, table)), sha256(table), tmp_path_factory.mktemp("node")
    left, restart = list(faults), asyncio.Event()

    def spoil(offset: int, chunk: bytes, size: int) -> tuple[bytes, int]:
        fault = left.pop(0) if left else "well"
        if fault == "restart":
            restart.set()
        if fault in ("cut", "restart"):
            raise LinkDown("cut")
        if fault == "flip":
            return bytes([chunk[0] ^ 1]) + chunk[1:] if chunk else b"x", size
        return {"short": chunk[: len(chunk) // 3 + 1], "twice": chunk + chunk, "silent": b""}.get(fault, chunk), size

    line.spoil = spoil

    async def story() -> None:
        while True:
            restart.clear()
            async with node(folder, line) as here:
                here.want(digest)
                while digest in here.fetcher.under_way and not restart.is_set():
                    assert await here.has(digest) is None
                    await asyncio.sleep(0.001)
                if not restart.is_set():
                    assert await here.has(digest) == table
                    return

    asyncio.run(asyncio.wait_for(story(), 30))


def test_a_file_that_rots_is_found_and_fetched_again(tmp_path: Path) -> None:
    line, digest = Line((LOOKUP_TABLE, TABLE)), sha256(TABLE)

    async def story() -> None:
        async with node(tmp_path, line) as here:
            await here.gets(digest)
            path = here.artifacts.path(digest)
            damaged = bytearray(TABLE)
            damaged[700_000] ^= 4
            path.write_bytes(damaged)
            here.artifacts.doubt([digest])
            assert await here.has(digest) is None
            assert await here.gets(digest) == TABLE
            path.unlink()
        async with node(tmp_path, line) as here:
            assert await here.has(digest) is None and digest not in here.artifacts.held
            assert await here.gets(digest) == TABLE

    asyncio.run(story())


def test_a_crash_between_file_and_row_costs_no_byte(tmp_path: Path) -> None:
    line, digest = Line((LOOKUP_TABLE, TABLE)), sha256(TABLE)

    async def story() -> None:
        async with node(tmp_path, line) as here:
            await here.gets(digest)
            await here.store.forget_artifacts([digest])
        sent = line.sent
        async with node(tmp_path, line) as here:
            assert await here.gets(digest) == TABLE
        assert line.sent == sent

    asyncio.run(story())


def test_i9_the_oldest_that_nobody_needs_goes_and_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    tables = [os.urandom(400_000) for _ in range(4)]
    line = Line(*((LOOKUP_TABLE, data) for data in tables))
    a, b, c, d = (sha256(data) for data in tables)

    async def story() -> None:
        async with node(tmp_path, line, budget=1_000_000) as here:
            await here.gets(a)
            await here.gets(b)
            assert await here.has(a), "there is room for both"
            here.want(b, c)
            await until(lambda: not here.fetcher.under_way)
            assert set(here.artifacts.held) == {b, c} and not here.artifacts.path(a).exists()
            asked = len(line.asked)
            here.want(b, c, d)
            code, trouble = await until(lambda: here.trouble(d) if here.trouble(d)[1] else None)
            assert (code, trouble) == (causes.DISK, "needs 390.6 KiB for a table, 195.3 KiB left for tables")
            assert await here.has(b) and await here.has(c), "nothing changed"
            assert len(line.asked) > asked
            here.want(c, d)
            await until(lambda: not here.fetcher.under_way)
            assert set(here.artifacts.held) == {c, d}
            assert set(await here.store.artifacts()) and len(await here.store.artifacts()) == 2

    asyncio.run(story())


def test_a_disk_without_room_refuses_and_takes_it_once_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line, digest, free = Line((LOOKUP_TABLE, TABLE)), sha256(TABLE), [1 << 20]
    monkeypatch.setattr(reserve, "room_bytes", lambda path: free[0])

    async def story() -> None:
        async with node(tmp_path, line) as here:
            here.want(digest)
            await until(lambda: here.trouble(digest) == (causes.DISK, "needs 1.4 MiB for a table, 1 MiB free"))
            assert list((tmp_path / "artifacts").iterdir()) == []
            free[0] = 1 << 30
            assert await here.gets(digest) == TABLE

    asyncio.run(story())


def test_a_full_disk_in_the_middle_leaves_whole_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line, digest, real = Line((LOOKUP_TABLE, TABLE)), sha256(TABLE), os.pwrite
    full = [True]

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        if full[0] and offset > 600_000:
            if offset % 2 == 0:
                real(descriptor, bytes(100), offset)  # what a torn write leaves
            raise OSError(28, "No space left on device")
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)

    async def story() -> None:
        async with node(tmp_path, line) as here:
            here.want(digest)
            await until(lambda: here.trouble(digest) == (causes.DISK, "No space left on device"))
            full[0] = False
            assert await here.gets(digest) == TABLE
        assert [offset for offset, _ in line.asked].count(0) == 1, "what was whole is not asked for again"

    asyncio.run(story())


def test_a_version_does_not_wait_for_a_table_and_ends_in_the_store(tmp_path: Path) -> None:
    version = canonical_json({"pipeline": "p"})
    line = Line((LOOKUP_TABLE, TABLE), (PIPELINE_VERSION, version))
    waiting = asyncio.Event()

    async def story() -> None:
        real = line.request

        async def slow(subject: str, data: bytes, timeout_s: float) -> bytes:
            if ArtifactRequest.unpack(data)[0].digest == sha256(TABLE):
                await waiting.wait()
            return await real(subject, data, timeout_s)

        line.request = slow  # type: ignore[method-assign]
        async with node(tmp_path, line) as here:
            here.artifacts.need([sha256(TABLE), sha256(version)])
            here.fetcher.want({sha256(TABLE): LOOKUP_TABLE, sha256(version): PIPELINE_VERSION}, here._tasks)
            await until(lambda: sha256(version) not in here.fetcher.under_way)
            found = await here.store.artifact(sha256(version))
            assert found is not None and found[0].data == version and found[1] == 3
            assert sha256(TABLE) in here.fetcher.under_way
            waiting.set()
            await until(lambda: not here.fetcher.under_way)
            assert await here.store.artifact(sha256(TABLE)) is None, "its bytes are no blob"

    asyncio.run(story())


def test_chunks_are_as_large_as_the_line_carries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line, digest, now = Line((LOOKUP_TABLE, TABLE)), sha256(TABLE), [0.0]
    monkeypatch.setattr(fetching, "time", SimpleNamespace(monotonic=lambda: now[0]))
    rate = [50_000.0]

    def spoil(offset: int, chunk: bytes, size: int) -> tuple[bytes, int]:
        now[0] += len(chunk) / rate[0]
        rate[0] = 50_000.0 if offset < 600_000 else 50_000_000.0
        return chunk, size

    line.spoil = spoil

    async def story() -> None:
        async with node(tmp_path, line) as here:
            assert await here.gets(digest) == TABLE

    asyncio.run(story())
    slow = [length for offset, length in line.asked if 200_000 < offset < 600_000]
    assert set(slow) <= {32 * 1024, 64 * 1024}, "about a second each"
    assert max(length for _, length in line.asked) == 512 * 1024


def test_salvage_keeps_the_row_of_a_table(tmp_path: Path) -> None:
    line, digest = Line((LOOKUP_TABLE, TABLE)), sha256(TABLE)

    async def story() -> None:
        async with node(tmp_path, line) as here:
            await here.gets(digest)
        salvage.suspect(tmp_path / "agent.db", "the test says so")
        async with node(tmp_path, Line()) as here:
            assert await here.store.get(salvage.META), "it was salvaged"
            assert await here.has(digest) == TABLE

    asyncio.run(story())


def test_a_digest_is_no_path(tmp_path: Path) -> None:
    async def story() -> None:
        async with node(tmp_path, Line()) as here:
            for bad in ("sha256:../../../etc/passwd", "../x", "", "sha256:" + "A" * 64):
                with pytest.raises(Refused, match="not a digest"):
                    here.artifacts.path(bad)

    asyncio.run(story())


# -- what a version may start with

D1, D2 = sha256(b"1"), sha256(b"2")
ASSETS = Needs(frozenset({"assets"}))


@pytest.mark.parametrize(
    ("wanted", "here", "former", "expected"),
    [
        ({"assets": D1}, {D1}, None, Provision({"assets": D1})),
        ({"assets": D1}, set(), None, Provision({}, False, causes.ARTIFACT_MISSING, "table assets is being fetched")),
        (
            {"assets": D2},
            {D1},
            {"assets": D1},
            Provision({"assets": D1}, True, causes.ARTIFACT_MISSING, "table assets is being fetched; the former one is in use"),
        ),
        ({"assets": D2}, {D1}, None, Provision({}, False, causes.ARTIFACT_MISSING, "table assets is being fetched")),
        ({"assets": D2}, {D1, D2}, {"assets": D1}, Provision({"assets": D2})),
        (
            {},
            {D1},
            {"assets": D1},
            Provision(
                {"assets": D1}, True, causes.ARTIFACT_MISSING, "table assets is not in the manifest; the former one is in use"
            ),
        ),
        ({"assets": "../x"}, set(), None, Provision({}, False, causes.ARTIFACT_MISSING, "table assets is not in the manifest")),
    ],
)
def test_tables_of_a_version(wanted: Any, here: Any, former: Any, expected: Provision) -> None:
    assert provide(ASSETS, wanted, here, former, {}, 1 << 30) == expected


def test_why_a_table_does_not_come_is_said() -> None:
    troubles = {D1: (causes.DISK, "needs 40 MiB for a table, 12 MiB free")}
    made = provide(ASSETS, {"assets": D1}, (), None, troubles, 1 << 30)
    assert made == Provision({}, False, causes.DISK, "table assets is not here yet: needs 40 MiB for a table, 12 MiB free")
    assert to_fetch(ASSETS, {"assets": D1, "other": D2}, ()) == {D1}
    assert to_fetch(ASSETS, {"assets": "../x"}, ()) == set()


def test_a_buffer_that_the_disk_cannot_hold_is_refused_and_what_ran_before_goes_on() -> None:
    needs = Needs.of(canonical_json({"pipeline": "p", "buffer": {"max_size": "2GiB"}}))
    assert needs == Needs(frozenset(), 2 << 30)
    free = 1181116006
    assert provide(needs, {}, (), None, {}, free) == Provision({}, False, causes.DISK, "needs 2 GiB for its buffer, 1.1 GiB free")
    assert provide(needs, {}, (), {}, {}, free) == Provision({}), "it ran here when there was room"
    assert provide(needs, {}, (), None, {}, 2 << 30) == Provision({})
    absurd = Needs.of(canonical_json({"pipeline": "p", "buffer": {"max_size": "999999999999999GiB"}}))
    assert provide(absurd, {}, (), None, {}, free).code == causes.DISK
