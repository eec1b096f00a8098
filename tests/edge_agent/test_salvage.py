"""A damaged agent.db: what verifies is kept, what does not is counted, and the agent starts."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from fake_control import FakeLake
from support import new_key, open_store, until
from world import READY, World, version

from edge_agent import keeper as keeper_module
from edge_agent import salvage
from edge_agent.agent import Agent
from edge_agent.clock import Anchor
from edge_agent.gate import Book
from edge_agent.outbox import Mark, Sealed
from edge_agent.pages import Pages
from edge_agent.salvage import Report
from edge_agent.shares import Buffer
from edge_agent.store import Commit, Store
from pipelines.contract import segment
from pipelines.contract.errors import TidewireError
from tests.nats_broker import Broker

KEY = new_key()
PIPELINES = ("a", "b")
Number = tuple[str, int]  # pipeline, n


def rows(pipeline: str, first: int, count: int, pad: int) -> Sealed:
    return Sealed("numbers", "rows", f"t_{pipeline}", count, json.dumps([*range(first, first + count)]).encode() + b" " * pad)


@dataclass(frozen=True)
class Backlog:
    path: Path
    numbers: frozenset[Number]  # pending

    def copy(self, to: Path) -> Backlog:
        for name in ("agent.db", "agent.db-wal"):
            shutil.copy(self.path.with_name(name), to / name)
        return replace(self, path=to / "agent.db")


def make_backlog(data_dir: Path, seed: int, segments: int = 80) -> Backlog:
    """Two pipelines with state; some of the first segments are confirmed; a fifth is in the log, as a power cut leaves it."""
    rng = random.Random(seed)
    ends = dict.fromkeys(PIPELINES, 0)
    confirmed: set[Number] = set()

    async def commit(store: Store) -> None:
        pipeline = rng.choice(PIPELINES)
        first, count = ends[pipeline], rng.randint(1, 9)
        ends[pipeline] += count
        state = {f"key{rng.randrange(30)}": rng.randbytes(rng.randint(1, 900))}
        sealed = [rows(pipeline, first, count, rng.choice([10, 3_000, 30_000]))]
        await store.commit(pipeline, "sha256:v", 1, Commit({"s": ends[pipeline]}, {}, state, sealed=sealed))

    async def confirm(store: Store) -> None:
        for pending in (await store.pending_segments(1 << 40))[: segments // 6]:
            header = pending.header()
            await store.confirm(
                [Mark(pending.run, pending.stream, pending.seq, pending.digest, header.run_rows, header.run_rows)]
            )
            confirmed.update((header.pipeline, n) for n in json.loads(pending.payload()))

    async def fill(store: Store) -> None:
        for pipeline in PIPELINES:
            await store.checkpoint(pipeline)
        for step in range(segments):
            await commit(store)
            if step == segments // 2:
                await confirm(store)
            if step == segments * 4 // 5:
                with closing(sqlite3.connect(data_dir / "agent.db", timeout=10)) as db:
                    assert db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0

    with open_store(data_dir, KEY, buffer_bytes=1 << 30) as store:
        asyncio.run(fill(store))
        crashed = {name: (data_dir / name).read_bytes() for name in ("agent.db", "agent.db-wal")}
    for name, data in crashed.items():
        (data_dir / name).write_bytes(data)
    return Backlog(data_dir / "agent.db", frozenset((p, n) for p, end in ends.items() for n in range(end)) - confirmed)


@pytest.fixture(scope="module")
def backlogs(tmp_path_factory: pytest.TempPathFactory) -> list[Backlog]:
    return [make_backlog(tmp_path_factory.mktemp("backlog"), seed) for seed in range(3)]


@pytest.fixture
def backlog(backlogs: list[Backlog], tmp_path: Path) -> Backlog:
    return backlogs[0].copy(tmp_path)


@dataclass(frozen=True)
class Found:
    kept: Counter[Number]
    stub_rows: int
    pipelines: dict[str, int]  # position of those that are intact


def look(path: Path) -> Found:
    """What is in the store; asserts that it is one: chains hold, counters are those of the rows, everything is signed."""
    kept: Counter[Number] = Counter()
    stub_rows = 0
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        runs = db.execute(
            "SELECT id, pipeline, mark_seq, mark_digest, mark_rows, next_seq, last_digest, run_rows, pending_rows, lost_rows"
            " FROM streams"
        ).fetchall()
        for run, pipeline, reached, link, so_far, next_seq, last_digest, run_rows, pending_rows, lost_rows in runs:
            pending = lost = 0
            for first, seq, digest, count, after, void, data in db.execute(
                "SELECT first, seq, digest, rows, run_rows, void, data FROM outbox WHERE stream_id = ? ORDER BY seq", (run,)
            ):
                assert (first, after) == (reached + 1, so_far + count), "a gap would block the run"
                if void:
                    lost += count
                else:
                    made = segment.decode(data, KEY.public)
                    assert (made.digest, made.header.previous, made.header.rows) == (digest, link, count)
                    kept.update((pipeline, n) for n in json.loads(made.payload))
                pending, reached, link, so_far = pending + count, seq, digest, after
            assert (reached, link, so_far) == (next_seq - 1, last_digest, run_rows), "the next segment would not fit"
            assert (pending_rows, lost_rows) == (pending, lost)
            stub_rows += lost
        states = dict(db.execute("SELECT name, positions FROM pipelines"))
    return Found(kept, stub_rows, {name: json.loads(positions).get("s", 0) for name, positions in states.items()})


def run_salvage(backlog: Backlog, tmp_path: Path) -> tuple[Report, Found]:
    fresh = tmp_path / "fresh.db"
    report = salvage.rebuild(backlog.path, fresh, KEY.public)
    return report, look(fresh)


def test_an_unharmed_store_comes_over_whole(backlog: Backlog, tmp_path: Path) -> None:
    report, found = run_salvage(backlog, tmp_path)
    assert found.kept == Counter(backlog.numbers)
    assert (found.stub_rows, report.restarted, report.damaged_rows, report.rows) == (0, [], 0, len(backlog.numbers))
    with closing(sqlite3.connect(backlog.path)) as old, closing(sqlite3.connect(tmp_path / "fresh.db")) as new:
        for table in ("streams", "outbox", "state", "pipelines", "stream_ledgers", "buffers"):
            query = f"SELECT * FROM {table} ORDER BY 1, 2"
            assert new.execute(query).fetchall() == old.execute(query).fetchall(), table


def flip_bits(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 5, 50, 500])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def zero_pages(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 3, 20])):
        at = rng.randrange(len(data) // 4096) * 4096
        data[at : at + 4096] = bytes(4096)


def cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(4096, len(data)) :]


def scramble(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 10, 50])):
        at = rng.randrange(len(data) // 512) * 512
        data[at : at + 512] = rng.randbytes(512)


@pytest.mark.parametrize("harm", [flip_bits, zero_pages, cut, scramble], ids=lambda harm: harm.__name__)
@pytest.mark.parametrize("seed", range(12))
def test_i9_what_verifies_is_kept_and_the_rest_is_counted(
    backlogs: list[Backlog], tmp_path: Path, harm: Callable[[bytearray, random.Random], None], seed: int
) -> None:
    backlog = backlogs[seed % len(backlogs)].copy(tmp_path)
    rng = random.Random(seed)
    data = bytearray(backlog.path.read_bytes())
    harm(data, rng)
    backlog.path.write_bytes(data)
    report, found = run_salvage(backlog, tmp_path)
    assert found.kept.keys() <= backlog.numbers
    assert max(found.kept.values(), default=1) == 1, "a row came over twice"
    assert found.stub_rows == report.damaged_rows == len(backlog.numbers) - len(found.kept)
    for pipeline in PIPELINES:
        assert (pipeline in found.pipelines) is (pipeline not in report.restarted)


def pages_of_trees(path: Path) -> list[int]:
    with Pages(path) as pages:
        return [n for n in range(1, pages.count + 1) if pages.read(n)[100 if n == 1 else 0] in (2, 5, 10, 13)]


def test_no_page_is_so_important_that_its_loss_takes_more_than_it_holds(backlog: Backlog, tmp_path: Path) -> None:
    with closing(sqlite3.connect(backlog.path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    whole = backlog.path.read_bytes()
    leaves = pages_of_trees(backlog.path)
    assert leaves[0] == 1, "the head of the file, with the list of tables"
    for number in leaves:
        data = bytearray(whole)
        data[(number - 1) * 4096 : number * 4096] = bytes(4096)
        backlog.path.write_bytes(data)
        (tmp_path / "fresh.db").unlink(missing_ok=True)
        _, found = run_salvage(backlog, tmp_path)
        assert found.kept.keys() <= backlog.numbers
        assert max(found.kept.values()) == 1
        assert len(found.kept) >= len(backlog.numbers) * 0.85, number
        assert len(found.kept) + found.stub_rows == len(backlog.numbers), number


def test_bytes_that_are_no_database_are_set_aside_and_two_such_files_are_kept(tmp_path: Path) -> None:
    for n in range(4):
        (tmp_path / "agent.db").write_bytes(b"garbage %d" % n * 1000)
        with open_store(tmp_path, KEY) as store:
            asyncio.run(commit_one(store))
    kept = salvage.asides(tmp_path / "agent.db")
    assert [path.read_bytes()[:9] for path in kept] == [b"garbage 2", b"garbage 3"]


async def commit_one(store: Store) -> None:
    await store.checkpoint("a")
    await store.commit("a", "sha256:v", 1, Commit({}, {}, sealed=[rows("a", 10**6, 1, 10)]))


def damage(backlog: Backlog) -> None:
    """Of the file's first page nothing is left: SQLite refuses it."""
    with closing(sqlite3.connect(backlog.path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with backlog.path.open("r+b") as file:
        file.write(bytes(4096))


def test_the_store_opens_and_goes_on_where_it_was(backlog: Backlog, tmp_path: Path) -> None:
    damage(backlog)
    with open_store(tmp_path, KEY) as store:
        asyncio.run(commit_one(store))
        assert asyncio.run(store.checkpoint("b")).positions["s"] > 0
    found = look(backlog.path)
    assert found.kept == Counter([*backlog.numbers, ("a", 10**6)])
    assert len(salvage.asides(backlog.path)) == 1
    with closing(sqlite3.connect(backlog.path)) as db:
        told = salvage.report_of(db)
        assert told is not None
        assert (told.rows, told.reason) == (len(backlog.numbers), "file is not a database")


@pytest.mark.parametrize("steps", range(8))
def test_a_power_cut_amid_the_swap_loses_nothing(
    backlog: Backlog, tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    salvage.suspect(backlog.path, "and its log is not empty")
    left = steps

    def cut_after(work: Callable[..., object]) -> Callable[..., object]:
        def step(*args: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return work(*args, **options)

        return step

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", cut_after(Path.replace))
        patched.setattr(salvage, "_sync", cut_after(salvage._sync))
        with suppress(KeyboardInterrupt):
            salvage.opened(
                backlog.path, KEY.public, lambda: sqlite3.connect(backlog.path).execute("SELECT * FROM meta").fetchall()
            )
    with open_store(tmp_path, KEY):
        pass
    assert look(backlog.path).kept == Counter(backlog.numbers)


@pytest.mark.parametrize(
    "change",
    [
        "next_seq = next_seq - 2",
        "last_digest = 'sha256:other'",
        "run_rows = run_rows - 1",
        "mark_seq = mark_seq + 3",
        "mark_digest = 'sha256:other'",
        "mark_rows = mark_rows + 1",
    ],
)
def test_a_run_whose_row_contradicts_its_segments_goes_on_as_they_tell(backlog: Backlog, tmp_path: Path, change: str) -> None:
    with closing(sqlite3.connect(backlog.path)) as db:
        db.execute(f"UPDATE streams SET {change}")
        db.commit()
    report, found = run_salvage(backlog, tmp_path)
    assert (report.cut_runs, found.kept, found.stub_rows) == (len(PIPELINES), Counter(backlog.numbers), 0)
    with closing(sqlite3.connect(tmp_path / "fresh.db")) as db:
        assert db.execute("SELECT sum(active) FROM streams").fetchone() == (0,), "it must take no more"


def test_damage_found_while_it_runs_is_salvaged_at_the_next_opening(backlog: Backlog, tmp_path: Path) -> None:
    told = []
    with open_store(tmp_path, KEY) as store, sqlite3.connect(backlog.path) as db:
        db.execute("UPDATE pipelines SET positions = '{}' WHERE name = 'b'")
        db.commit()
        store.on_damage(lambda: told.append(store.damage))
        with pytest.raises(TidewireError, match="positions or state of b"), store.telling_damage():
            asyncio.run(store.checkpoint("b"))
    assert told == ["positions or state of b are not those that were written"]
    with open_store(tmp_path, KEY) as store:
        assert asyncio.run(store.checkpoint("a")).positions["s"] > 0
        assert asyncio.run(store.checkpoint("b")).positions == {}, "never a half of it: the pipeline begins anew"
    with closing(sqlite3.connect(backlog.path)) as db:
        told_report = salvage.report_of(db)
        assert told_report is not None
        assert told_report.restarted == ["b"]
    assert look(backlog.path).kept == Counter(backlog.numbers)


_TEXTS = {
    "meta": ("key", "value", ["tables", "standing", "lanes", "anchor", "rates", "history", "clock", "hardware"]),
    "gates": ("pipeline", "body", ["p"]),
    "buffers": ("pipeline", "body", ["p"]),
    "incidents": ("incident, pipeline, acknowledged", "body", ["i', 'p', '0"]),
    "actions": ("id, pipeline, status", "body", ["a', 'p', 'pending"]),
}


@pytest.mark.parametrize(("table", "name"), [(table, name) for table, (_, _, names) in _TEXTS.items() for name in names])
@pytest.mark.parametrize("text", ['{"a" 1}', "7"])
def test_a_text_that_the_disk_changed_never_keeps_the_agent_from_starting(
    tmp_path: Path, table: str, name: str, text: str
) -> None:
    """At the first or second opening everything can be read; what the text said begins anew."""
    key, column, _ = _TEXTS[table]

    async def read_all(store: Store) -> None:
        for word in ("tables", "standing", "lanes"):
            assert isinstance(await store.get(word), dict)
        await store.history()
        await store.gates()
        await store.incidents()
        await store.pending_actions()
        await store.set_buffer("q", Buffer())
        await store.rates()
        await store.commit("p", "sha256:v", 1, Commit({"s": 2}, {}, sealed=[Sealed("rows", "rows", "t", 1, b"x")]))

    async def begin(store: Store) -> None:
        await store.checkpoint("p")
        await store.set_buffer("p", Buffer(priorities={"a": 2}))
        for word in ("tables", "standing", "lanes"):
            await store.put(word, {"a": 1})
        await store.put_gate("p", Book())
        await store.anchor(Anchor("", 1, 2, 3))

    with open_store(tmp_path, KEY) as store:
        asyncio.run(begin(store))
    with closing(sqlite3.connect(tmp_path / "agent.db")) as db, db:
        db.execute(f"INSERT OR REPLACE INTO {table} ({key}, {column}) VALUES ('{name}', ?)", (text,))
    for life in (1, 2):
        with open_store(tmp_path, KEY) as store:
            try:
                asyncio.run(read_all(store))
                return
            except TidewireError as error:
                assert life == 1 and "the store is damaged" in str(error)


def test_with_too_little_room_the_oldest_rows_go_and_leave_stubs(backlog: Backlog, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh.db"
    report = salvage.rebuild(backlog.path, fresh, KEY.public, room_bytes=200_000)
    found = look(fresh)
    assert 0 < report.rows == len(found.kept)
    assert report.evicted_rows == found.stub_rows == len(backlog.numbers) - len(found.kept)
    assert report.damaged_rows == 0


def test_a_freed_segment_does_not_come_back(tmp_path: Path) -> None:
    """Its bytes may still lie in a free page, whole and signed."""
    backlog = make_backlog(tmp_path, 7, segments=30)

    async def confirm_all(store: Store) -> None:
        for pending in await store.pending_segments(1 << 40):
            rows_so_far = pending.header().run_rows
            await store.confirm([Mark(pending.run, pending.stream, pending.seq, pending.digest, rows_so_far, rows_so_far)])

    with open_store(tmp_path, KEY) as store:
        asyncio.run(confirm_all(store))
    with closing(sqlite3.connect(backlog.path)) as db:
        (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'outbox'").fetchone()
    with backlog.path.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(bytes(4096))
    with Pages(backlog.path) as pages:
        assert sum(1 for _ in pages.loose_rows()) > 10, "there is nothing to come back: the test tests nothing"
    _, found = run_salvage(backlog, tmp_path)
    assert (found.kept, found.stub_rows) == (Counter(), 0)


class Lake(FakeLake):
    """That of a while ago: of what it took then only the marks are known."""

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[tuple[str, str], tuple[int, str, int, int]] = {}

    def mark(self, key: tuple[str, str]) -> tuple[int, str, int, int]:
        if not self.runs.get(key):
            return self.before.get(key, super().mark(key))
        seq, link, run_rows, stored = super().mark(key)
        return seq, link, run_rows, stored + self.before.get(key, (0, "", 0, 0))[3]


async def drain(store: Store, lake: Lake) -> None:
    """As the uplink does: it asks where the lake stands, settles what is in doubt, and sends what lies after the marks."""
    positions = await store.open_positions()
    await store.confirm([Mark(*position, *lake.mark(position)) for position in positions], asked=True)
    while doubts := await store.doubtful():
        found = [(run, stream, s.header.seq, s.link) for (run, stream), held in lake.runs.items() for s in held]
        asked = {(doubt.run, doubt.stream): range(doubt.first, doubt.last + 1) for doubt in doubts}
        await store.settle_fork(doubts, [one for one in found if one[2] in asked.get((one[0], one[1]), ())])
    while batch := await store.pending_segments(1 << 20):
        touched = dict.fromkeys(lake.put(segment.decode(pending.data, KEY.public)) for pending in batch)
        await store.confirm([Mark(*position, *lake.mark(position)) for position in touched])


def stored(lake: Lake) -> Counter[Number]:
    held = [one for run in lake.runs.values() for one in run if one.payload]
    return Counter((one.header.pipeline, n) for one in held for n in json.loads(one.payload))


@pytest.mark.parametrize("seed", range(8))
def test_i2_what_the_lake_had_before_the_damage_is_not_doubled(backlog: Backlog, tmp_path: Path, seed: int) -> None:
    """Segments arrived whose receipts never came; then pages of trees are lost, rows of runs among them."""
    rng = random.Random(seed)
    lake = Lake()

    async def send(store: Store) -> None:
        for pending in (await store.pending_segments(1 << 40))[: rng.randrange(60)]:
            lake.put(segment.decode(pending.data, KEY.public))

    async def catch_up(store: Store) -> None:
        await asyncio.wait_for(drain(store, lake), 30)
        assert (await store.backlog()).segments == 0

    def begin_at_marks() -> None:
        """The lake holds what was confirmed before: stand-ins for it."""
        with closing(sqlite3.connect(backlog.path)) as db:
            for run, stream, seq, link, count in db.execute("SELECT run, stream, mark_seq, mark_digest, mark_rows FROM streams"):
                if seq:
                    lake.before[run, stream] = (seq, link, count, count)

    with open_store(tmp_path, KEY) as store:
        begin_at_marks()
        asyncio.run(send(store))
    data = bytearray(backlog.path.read_bytes())
    for number in rng.sample(pages_of_trees(backlog.path), 3):
        data[(number - 1) * 4096 : number * 4096] = bytes(4096)
    backlog.path.write_bytes(data)
    salvage.suspect(backlog.path, "pages were zeroed")
    with open_store(tmp_path, KEY) as store:
        asyncio.run(catch_up(store))
    came = stored(lake)
    assert came.keys() <= backlog.numbers
    assert max(came.values()) == 1
    with closing(sqlite3.connect(backlog.path)) as db:
        told = salvage.report_of(db)
        assert told is not None
    assert told.cut_runs or len(came) >= len(backlog.numbers) - told.damaged_rows
    assert len(came) >= told.rows


def test_the_agent_ends_with_the_reason_when_its_store_is_damaged_and_goes_on_when_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = Broker(tmp_path)
    world = World(tmp_path, broker)
    path = world.folder / "node" / "agent.db"

    async def run() -> None:
        await world.control.serve(world.broker)
        await world.control.assign(version(READY, {"commits": 5}))
        async with world.agent():
            await until(lambda: len(world.control.numbers()) == 5)
        world.broker.kill()
        async with world.agent() as agent:
            await until(lambda: agent.keepers and agent.keepers["press"].is_ready)
            await until(lambda: pending(agent, 5))
        harm(path)
        world.broker.start()
        async with world.agent() as agent:
            assert len(salvage.asides(path)) == 1
            await until(lambda: world.control.numbers() == list(range(15)), "what it held, and then what the runner makes now")
            with closing(sqlite3.connect(path)) as db:
                db.execute("UPDATE pipelines SET positions = '{}'")
                db.commit()
            with pytest.raises(TidewireError, match="positions or state of press"), agent.store.telling_damage():
                await agent.store.checkpoint("press")
            await asyncio.wait_for(agent._stopped.wait(), 10)
        await world.control.close()

    async def pending(agent: Agent, segments: int) -> bool:
        return (await agent.store.backlog()).segments == segments

    def harm(path: Path) -> None:
        with path.open("r+b") as file:
            file.write(bytes(4096))

    monkeypatch.setattr(keeper_module, "BACKOFF_FIRST_S", 0.05)
    try:
        asyncio.run(asyncio.wait_for(run(), 60))
    finally:
        broker.kill()
