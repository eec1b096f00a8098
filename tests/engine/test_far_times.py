"""Event times at the ends of the calendar."""

from __future__ import annotations

import json

import pytest
from engine_support import Run, batch, compiled, ledgers_balance, pipeline, row


@pytest.mark.parametrize("second", [253_402_300_799, 253_370_764_800, -62_135_596_800, -30_610_224_001])
@pytest.mark.parametrize("kind", ["every: 10s", "every: 7d", "every: 1d\n    timezone: Asia/Tokyo", "gap: 1h"])
def test_no_window_reaches_beyond_the_calendar(second: int, kind: str) -> None:
    body = f"windows:\n  w:\n    {kind}\n    select:\n      n: count(*)\n"
    far = json.dumps({"ts": second, "k": "a", "v": 1})
    run = Run(compiled(pipeline(body))).feed(batch([row(0), far, row(1)], 1)).finish()
    (reason,) = run.reasons()
    assert "is no event time: it is not between the years 1000 and 9000" in reason[0]
    assert [r["n"] for r in run.rows("out")] == [2]
    ledgers_balance(run.state)
