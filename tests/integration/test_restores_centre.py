"""The control plane's store or the lake from an old backup, a table renamed with a backlog: nothing twice, nobody stuck."""

from __future__ import annotations

import asyncio
import shutil
from functools import partial
from pathlib import Path

from prove.cluster import eventually
from tests.integration.restore_rig import NUMBERS, Rig, deploy


def test_i2_a_lake_from_an_old_backup_gets_what_nodes_hold_and_counts_what_they_freed(tmp_path: Path) -> None:
    async def work(rig: Rig) -> None:
        await rig.join("node-1")
        rig.write("node-1", range(10))
        await rig.arrived(range(10))
        await rig.works("node-1")
        await stop_centre(rig)
        shutil.copytree(rig.lake, tmp_path / "backup")
        await rig.start_server()
        rig.write("node-1", range(10, 20))
        await rig.arrived(range(20))
        await rig.works("node-1")
        await stop_centre(rig)
        rig.write("node-1", range(20, 25))
        await rig.sealed("node-1", 5)
        shutil.rmtree(rig.lake)
        shutil.copytree(tmp_path / "backup", rig.lake)
        await rig.start_server()
        await rig.arrived([*range(10), *range(20, 25)])
        await rig.told("node-1", "went on under new runs: the lake is at", action="restored")
        await rig.works("node-1")
        backlog = (await rig.status("node-1"))["backlog"]
        assert (backlog["forgotten_rows"], backlog["stored_rows"]) == (10, 15)
        rig.write("node-1", range(25, 30))
        await rig.arrived([*range(10), *range(20, 30)])
        status, text = await rig.audit()
        assert status == 1 and "where 30 should be: written is not stored" in text

    run(tmp_path, work)


def test_a_control_store_from_an_old_backup_loses_no_row_and_goes_on_after_recover(tmp_path: Path) -> None:
    async def work(rig: Rig) -> None:
        await rig.join("node-1")
        rig.write("node-1", range(10))
        await rig.arrived(range(10))
        await rig.works("node-1")
        await stop_centre(rig)
        back_up(rig, tmp_path / "backup")
        await rig.start_server()
        second = NUMBERS.replace("n: {type: integer}\n", "n: {type: integer}\n  extra: {type: string, nullable: true}\n")
        deploy(rig, second)
        rig.client.post("/v1/params", {"pipeline": "numbers", "params": {"most": "500"}, "select": "all"})
        await eventually("the node to run version 2", lambda: runs_version(rig, 2))
        rig.write("node-1", range(10, 20))
        await rig.arrived(range(20))
        await rig.works("node-1")
        await stop_centre(rig)
        put_back(rig, tmp_path / "backup")
        rig.write("node-1", range(20, 25))
        await rig.sealed("node-1", 5)
        await rig.start_server()
        await eventually("the centre to know", lambda: is_ahead(rig))
        assert "newer than any issued here: tidewire recover" in (await rig.node("node-1"))["why"]
        assert "tidewire recover" in await rig.tidewire("why", "node-1", "numbers")
        await rig.told("node-1", "restored from a backup?")
        await eventually("the rows to be kept raw", lambda: bool(rig.client.get("/v1/refused")["refused"]))
        deploy(rig, second)
        said = await rig.tidewire("set", "numbers", "most=600", "--select", "all")
        assert "nothing is issued before `tidewire recover`" in said
        assert "1 ahead of this control plane: node-1" in await rig.tidewire("recover", "--dry-run")
        assert await is_ahead(rig), "rehearsed only"
        await rig.tidewire("recover", "--reason", "the disk of the control plane died")
        await rig.works("node-1")
        assert (await rig.status("node-1"))["manifest"]["term"] == 2
        assert (await rig.node("node-1"))["reported"]["numbers"]["params"]["most"] == 600
        rig.write("node-1", range(25, 30))
        await rig.arrived([*range(20), *range(25, 30)])
        status, text = await rig.audit()
        assert status == 0 and "no version of numbers registered here" in text
        assert "stored" in await rig.tidewire("refused", "retry")
        await rig.arrived(range(30))
        assert (await rig.audit())[0] == 0

    run(tmp_path, work)


def test_i2_a_table_renamed_while_a_backlog_waits_leaves_both_tables_right(tmp_path: Path) -> None:
    async def work(rig: Rig) -> None:
        await rig.join("node-1")
        await rig.works("node-1")
        await rig.stop("node-1")
        settings = rig.home / "node-1" / "agent" / "agent.yaml"
        config = settings.read_text()
        settings.write_text(config + "uplink_bytes_per_s: 10\n")
        await rig.start("node-1")
        for first in range(0, 150, 50):
            rig.write("node-1", range(first, first + 50))
            await eventually("a segment", partial(has_written, rig, first + 50))
        deploy(rig, NUMBERS.replace("table: numbers", "table: renamed"))
        await eventually("the node to run version 2", lambda: runs_version(rig, 2))
        rig.write("node-1", range(900, 910))
        await eventually("a segment of version 2", lambda: has_written(rig, 160))
        assert sum(rig.numbers().values()) < 150, "a backlog for the old table"
        await rig.stop("node-1")
        settings.write_text(config)
        await rig.start("node-1")
        await rig.arrived(range(900, 910), name="renamed")
        await rig.arrived(range(150))
        await rig.works("node-1")
        status, text = await rig.audit()
        assert status == 0 and "160 rows in 2 tables, each once" in text

    run(tmp_path, work)


def run(home: Path, work) -> None:  # type: ignore[no-untyped-def]
    async def whole() -> None:
        rig = Rig(home / "rig")
        rig.home.mkdir()
        try:
            await rig.open()
            deploy(rig)
            await work(rig)
        finally:
            await rig.close()

    asyncio.run(whole())


async def stop_centre(rig: Rig) -> None:
    assert rig.server is not None
    await rig.server.stop()


def back_up(rig: Rig, to: Path) -> None:
    to.mkdir()
    for file in (rig.home / "control").glob("control.db*"):
        shutil.copy(file, to)


def put_back(rig: Rig, backup: Path) -> None:
    for file in (rig.home / "control").glob("control.db*"):
        file.unlink()
    for file in backup.iterdir():
        shutil.copy(file, rig.home / "control")


async def runs_version(rig: Rig, number: int) -> bool:
    return [p["running"] for p in (await rig.node("node-1")).get("pipelines", [])] == [number]


async def has_written(rig: Rig, rows: int) -> bool:
    backlog = (await rig.status("node-1")).get("backlog", {})
    return bool(backlog and backlog["rows"] + backlog["stored_rows"] == rows)


async def is_ahead(rig: Rig) -> bool:
    node = await rig.node("node-1")
    return bool(node and node["received_generation"] > node["generation"])
