"""The catalog's log parsers on the Loghub samples: every line, every field, against the tables published beside them."""

from __future__ import annotations

import csv
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.catalog.real_data import DATA, catalog_text
from tests.catalog.test_real_data import run_alone, table

LOGHUB = DATA / "loghub"
pytestmark = pytest.mark.skipif(not LOGHUB.exists(), reason="the shared data sets are not on this machine")


def structured(name: str) -> list[dict[str, str]]:
    with (LOGHUB / f"{name}_2k.log_structured.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def parsed(home: Path, pipeline: str, log: str, table_name: str, decode: str = "") -> list[dict[str, Any]]:
    """The rows in the order of the file, from a stand-alone run of the catalog's pipeline."""
    text = catalog_text(pipeline, [LOGHUB / log])
    if decode:
        text, count = re.subn(r"decode: syslog\n", f"decode: {decode}\n", text)
        assert count == 1
    counts = run_alone(home, pipeline, [], text)["sources"]["log"]
    assert (counts["read"], counts["made"], counts["accepted"]) == (2000, 2000, 2000)
    return sorted(table(home, table_name).to_pylist(), key=lambda row: (row["_seq"], row["_row"]))


def test_linux(tmp_path: Path) -> None:
    rows = parsed(tmp_path, "linux-syslog", "Linux_2k.log", "linux_syslog", "{syslog: {year: 2005}}")
    expected = [
        (
            datetime.strptime(f"2005 {line['Month']} {line['Date']} {line['Time']} +0000", "%Y %b %d %H:%M:%S %z"),
            line["Level"],  # the table's name for what is the host
            line["Component"],
            int(line["PID"]) if line["PID"] else None,
            line["Content"],
        )
        for line in structured("Linux")
    ]
    got = [(r["ts"], r["host"], r["component"], r["pid"], r["content"]) for r in rows]
    assert got == expected


def test_hdfs(tmp_path: Path) -> None:
    rows = parsed(tmp_path, "hdfs-log", "HDFS_2k.log", "hdfs_log")
    expected = [
        (line["Date"], line["Time"], int(line["Pid"]), line["Level"], line["Component"], line["Content"])
        for line in structured("HDFS")
    ]
    got = [(f"{r['ts']:%y%m%d}", f"{r['ts']:%H%M%S}", r["pid"], r["level"], r["component"], r["content"]) for r in rows]
    assert got == expected
