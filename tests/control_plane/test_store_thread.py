"""Many jobs, one commit: each is told its own end, and only once it is on disk."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from control_plane import store
from control_plane.store import Store
from control_plane.store_thread import StoreThread
from pipelines.contract.errors import Refused


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[tuple[Store, StoreThread]]:
    made, thread = Store(f"sqlite:///{tmp_path / 'control.db'}"), ThreadPoolExecutor(1)
    yield made, StoreThread(made, thread)
    thread.shutdown()
    made.close()


def written(made: Store) -> list[str]:
    with made.write() as db:
        return list(db.scalars(sa.select(store.audit.c.subject).order_by(store.audit.c.id)))


def commits(made: Store) -> list[int]:
    counted = list[int]()
    sa.event.listen(made._engine, "commit", lambda _: counted.append(1))
    return counted


def test_those_that_wait_share_a_commit_and_one_that_fails_undoes_only_its_own(opened: tuple[Store, StoreThread]) -> None:
    made, thread = opened
    counted = commits(made)

    def job(number: int) -> Any:
        def do(db: sa.Connection) -> int:
            store.record(db, "", "test", str(number))
            if number == 5:
                raise Refused("not this one", op="test")
            if number == 7:
                raise ZeroDivisionError
            return number

        return do

    async def work() -> list[Any]:
        asked = (thread.shared(f"n{number % 4}", job(number)) for number in range(20))
        return await asyncio.gather(*asked, return_exceptions=True)

    ends = asyncio.run(work())
    assert [type(end) for end in (ends[5], ends[7])] == [Refused, ZeroDivisionError]
    good = [number for number in range(20) if number not in (5, 7)]
    assert [ends[number] for number in good] == good
    assert sorted(written(made), key=int) == [str(number) for number in good]
    assert sum(counted) < 5
    by_node = [[int(s) for s in written(made) if int(s) % 4 == node] for node in range(4)]
    assert all(numbers == sorted(numbers) for numbers in by_node), "those of one node keep their order"


def test_nobody_is_told_a_good_end_of_what_was_not_committed(opened: tuple[Store, StoreThread]) -> None:
    made, thread = opened

    def fails(_: Any) -> None:
        raise sa.exc.OperationalError("COMMIT", {}, OSError("database or disk is full"))

    async def work() -> list[Any]:
        sa.event.listen(made._engine, "commit", fails)
        asked = (thread.shared("n", lambda db: store.record(db, "", "test", "lost")) for _ in range(10))
        ends = await asyncio.gather(*asked, return_exceptions=True)
        sa.event.remove(made._engine, "commit", fails)
        await thread.shared("n", lambda db: store.record(db, "", "test", "kept"))
        return ends

    assert {type(end) for end in asyncio.run(work())} == {sa.exc.OperationalError}
    assert written(made) == ["kept"]
