"""A sink takes some of the columns of its stream, and Tidewire's own with them."""

from __future__ import annotations

import pytest
from engine_support import Run, batch, compiled, pipeline, row

from pipelines.contract.errors import SpecError

WINDOW = """
windows:
  w:
    every: 10s
    by: [k]
    select:
      n: count(*)
      top: max(v)
"""


def with_sinks(sinks: str) -> str:
    return pipeline(WINDOW).partition("sinks:")[0] + "sinks:\n" + sinks


def test_a_sink_takes_the_columns_it_selects() -> None:
    text = with_sinks(
        "  few: {lake: {table: few}, select: [v, k], where: n = 1}\n  out: {lake: {table: o}, from: w, select: [top]}\n"
    )
    run = Run(compiled(text)).feed(batch([row(1, v=2.0, n=1), row(2, v=3.0, n=2)])).finish()
    assert [set(r) for r in run.rows("few")] == [{"_event_time", "v", "k"}]
    [window] = run.rows("out")
    assert window["top"] == 3.0 and "_window_start" in window and not {"n", "k"} & set(window)


@pytest.mark.parametrize(
    ("sink", "message"),
    [
        ("{lake: {table: a}, select: [vv]}", 'sinks.x.select[0]: column "vv" is not in the rows; did you mean "v"?'),
        ("{lake: {table: a}, from: w, select: [n, v]}", 'sinks.x.select[1]: column "v" is not in the rows'),
        ("{lake: {table: a}, select: [v, v]}", 'sinks.x.select: "v" stands here twice'),
        ("{lake: {table: a}, select: []}", "sinks.x.select: there must be at least one"),
    ],
)
def test_what_it_selects_is_checked_before_it_ships(sink: str, message: str) -> None:
    with pytest.raises(SpecError) as error:
        compiled(with_sinks(f"  x: {sink}\n"))
    assert message in str(error.value)
