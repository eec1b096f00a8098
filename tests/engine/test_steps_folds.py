"""Steps that remember: what each lets through, and that neither batches nor restarts show (I14, I1)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from decimal import Decimal
from functools import cache
from typing import Any

import pyarrow as pa
import pytest
from engine_support import T0, Run, S, batch, compiled, ledgers_balance, pipeline, row
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contract.errors import SpecError
from pipelines.contract.spec import PipelineSpec, load_spec
from pipelines.engine.plan import Plan, compile_plan
from pipelines.engine.stage import owners
from pipelines.engine.state import State, entries, restore

SCHEMA = pa.schema(
    [
        *(("_row", pa.int32()), ("_fate", pa.int16()), ("_et", pa.int64()), ("ts", pa.timestamp("us"))),
        *(("k", pa.string()), ("v", pa.float64()), ("n", pa.int64())),
    ]
)
Row = tuple[float, str | None, float | None, int | None]  # seconds after T0, k, v, n


def steps(text: str) -> Plan:
    return compiled(pipeline(f"steps:\n  - {text}\n"))


def rows(*given: Row) -> list[str]:
    return [row(second, k, v, n=n) for second, k, v, n in given]


def run(text: str, *given: Row) -> Run:
    made = Run(steps(text)).feed(batch(rows(*given)))
    ledgers_balance(made.state)
    return made


def passed(text: str, *given: Row) -> list[float]:
    """The seconds of the rows that the step passes on."""
    return [round(r["ts"].timestamp() - T0 / S, 3) for r in run(text, *given).rows()]


def made(text: str, column: str, *given: Row) -> list[Any]:
    return [r[column] for r in run(text, *given).rows()]


def problem(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        compile_plan(steps_spec(text))
    return str(caught.value.problems[0])


def steps_spec(text: str) -> PipelineSpec:
    return load_spec(pipeline(f"steps:\n  - {text}\n"))


# -- dedupe


def test_dedupe_looks_back_to_the_row_that_was_passed_on() -> None:
    given = [(0.0, "a", 1.0, 1), (4.0, "a", 1.0, 1), (8.0, "a", 1.0, 1), (12.0, "a", 1.0, 1), (12.0, "b", 1.0, 1)]
    assert passed("dedupe: {by: [k], within: 10s}", *given) == [0, 12, 12]


def test_dedupe_counts_what_it_dropped_before_a_row() -> None:
    given = [(0.0, "a", 1.0, 1), (4.0, "a", 1.0, 1), (8.0, "a", 1.0, 1), (12.0, "a", 1.0, 1), (30.0, "a", 1.0, 1)]
    result = run("dedupe: {by: [k], within: 10s, count_into: repeats}", *given)
    assert [r["repeats"] for r in result.rows()] == [0, 2, 0]
    assert result.state.sources["s"]["deduplicated.0"] == 2


def test_dedupe_without_by_compares_whole_rows() -> None:
    given = [(0.0, "a", 1.0, 1), (0.0, "a", 1.0, 1), (0.0, "a", 1.0, 2), (0.0, "a", None, 2), (0.0, "a", None, 2)]
    assert len(passed("dedupe: {within: 10s}", *given)) == 3


def test_dedupe_of_long_texts_keeps_only_their_digest() -> None:
    long = "x" * 5000
    result = run("dedupe: {by: [k], within: 10s}", (0, long, 1, 1), (1, long, 1, 1), (2, long + "y", 1, 1))
    assert len(result.rows()) == 2
    (owner,) = owners(steps("dedupe: {by: [k], within: 10s}").stages)
    assert all(len(key[0]) < 64 for key in result.state.of(owner))


@pytest.mark.parametrize(
    ("text", "second", "expected"),
    [
        ("dedupe: {by: [k], within: 10s}", 3e8, [0, 3e8, 1, 20]),
        ("rate_limit: {rows: 1, per: 10s, by: [k]}", 3e8, [0, 3e8, 1, 20]),
        ("deadband: {of: {v: 1}, by: [k], at_least_every: 10s}", 3e8, [0, 3e8, 1, 20]),
    ],
)
def test_one_row_of_the_far_future_holds_nobody_up(text: str, second: float, expected: list[float]) -> None:
    given: list[Row] = [(0, "a", 1, 1), (second, "a", 1, 1), (1, "a", 1, 1), (2, "a", 1, 1), (20, "a", 1, 1)]
    assert passed(text, *given) == expected


# -- deadband, changes


def test_deadband_passes_what_moved_from_the_last_row_passed_on() -> None:
    given: list[Row] = [(i, "a", v, 1) for i, v in enumerate([10.0, 10.4, 10.8, 11.1, 10.2, 10.0])]
    assert passed("deadband: {of: {v: 1}, by: [k]}", *given) == [0, 3, 5]


def test_deadband_in_percent_of_the_last_value() -> None:
    given: list[Row] = [(i, "a", v, 1) for i, v in enumerate([100.0, 100.9, 101.1, 0.0, 0.001, 0.0])]
    assert passed('deadband: {of: {v: "1%"}, by: [k]}', *given) == [0, 2, 3, 4, 5]


def test_deadband_passes_null_and_what_comes_after_it() -> None:
    given: list[Row] = [(0, "a", 1, 1), (1, "a", None, 1), (2, "a", None, 1), (3, "a", 1, 1)]
    assert passed("deadband: {of: {v: 5}, by: [k]}", *given) == [0, 1, 3]


def test_deadband_of_several_columns_passes_when_one_moved_and_when_a_row_is_due() -> None:
    given: list[Row] = [(0, "a", 1, 1), (1, "a", 1.2, 1), (2, "a", 1.2, 2), (10, "a", 1.2, 2), (62, "a", 1.2, 2), (63, "b", 1, 1)]
    assert passed("deadband: {of: {v: 0.5, n: any}, by: [k], at_least_every: 60s}", *given) == [0, 2, 62, 63]


def test_changes_passes_the_first_row_and_each_that_differs() -> None:
    given: list[Row] = [(0, "a", 1, 1), (1, "a", 2, 1), (2, "a", 2, 2), (3, "b", 2, 2), (4, "a", 3, None), (5, "a", 3, None)]
    result = run("changes: {of: [n], by: [k]}", *given)
    assert [r["ts"].second for r in result.rows()] == [0, 2, 3, 4]
    assert result.state.sources["s"]["filtered.0"] == 2


# -- sample, rate_limit


def test_sample_keeps_the_first_of_every_few() -> None:
    given: list[Row] = [(i, "ab"[i % 2], 1, 1) for i in range(12)]
    assert passed("sample: {every: 3, by: [k]}", *given) == [0, 1, 6, 7]
    assert passed("sample: {every: 5}", *given) == [0, 5, 10]


def test_sample_of_a_share_keeps_the_same_rows_whatever_their_order() -> None:
    given: list[Row] = [(i, f"s{i}", 1, 1) for i in range(400)]
    there = passed("sample: {share: 0.25, by: [k]}", *given)
    assert sorted(passed("sample: {share: 0.25, by: [k]}", *reversed(given))) == there
    assert 70 < len(there) < 130
    assert set(passed("sample: {share: 0.5, by: [k]}", *given)) > set(there)


def test_rate_limit_passes_so_many_rows_of_a_group_in_each_span() -> None:
    given: list[Row] = [(i / 4, "a", 1, 1) for i in range(12)] + [(2.9, "b", 1, 1)]
    assert passed("rate_limit: {rows: 2, per: 1s, by: [k]}", *given) == [0, 0.25, 1, 1.25, 2, 2.25, 2.9]


# -- counter


def counted(options: str, *readings: int | None, of: str = "n") -> list[Any]:
    given = [(float(i), "a", reading if of == "v" else 1, reading if of == "n" else 1) for i, reading in enumerate(readings)]
    return made(f"counter: {{of: {of}, into: used, by: [k]{options}}}", "used", *given)  # type: ignore[arg-type]  # readings


def test_counter_gives_what_was_added_since_the_row_before() -> None:
    assert counted("", 100, 103, 103, None, 110) == [None, 3, 0, None, 7]
    assert counted("", 100, 103, 110, of="v") == [None, 3.0, 7.0]


def test_counter_after_a_reset() -> None:
    assert counted("", 100, 103, 2, 5) == [None, 3, 2, 3]
    assert counted(', on_reset: "null"', 100, 103, 2, 5) == [None, 3, None, 3]
    assert counted(", on_reset: skip", 100, 103, 2, 5) == [None, 3, 3]


def test_counter_that_wraps() -> None:
    assert counted(", wraps_at: 1000, max_step: 50", 990, 10, 20) == [None, 20, 10]
    assert counted(", wraps_at: 1000", 990, 10, 20) == [None, 20, 10]
    assert counted(", wraps_at: 1000", 400, 10, 20) == [None, 10, 10], "too far from the end for a wrap: a reset"


def test_counter_does_not_believe_a_step_that_is_too_large() -> None:
    assert counted(", max_step: 50", 100, 103, 99999, 106, 108) == [None, 3, None, None, 2]
    assert counted(", max_step: 50", 100, 500, 503) == [None, None, 3]
    assert counted(", max_step: 50", 100, 70) == [None, None]


def test_a_late_reading_counts_nothing_twice() -> None:
    given: list[Row] = [(0, "a", 1, 100), (10, "a", 1, 110), (5, "a", 1, 105), (20, "a", 1, 120)]
    assert made("counter: {of: n, into: used, by: [k]}", "used", *given) == [None, 10, None, 10]


def test_a_counter_whose_device_starts_again_in_1970_goes_on() -> None:
    given: list[Row] = [(0, "a", 1, 100), (10, "a", 1, 110), (-T0 / S, "a", 1, 0), (-T0 / S + 10, "a", 1, 4)]
    assert made("counter: {of: n, into: used, by: [k]}", "used", *given) == [None, 10, 0, 4]


def test_counter_as_a_rate() -> None:
    given: list[Row] = [(0, "a", 1, 100), (4, "a", 1, 110), (4, "a", 1, 111), (6, "a", 1, 112)]
    assert made("counter: {of: n, into: rate, by: [k], per: 1m}", "rate", *given) == [None, 150.0, None, 30.0]


def test_a_counter_beyond_its_type_is_null() -> None:
    assert counted("", -(2**63), 2**63 - 1, 2**63 - 1) == [None, None, 0]
    assert counted("", -1.7e308, 1.7e308, of="v") == [None, None]  # type: ignore[arg-type]  # floats


# -- previous


def test_previous_takes_columns_of_the_groups_row_before() -> None:
    given: list[Row] = [(0, "a", 1, 1), (1, "b", 2, 2), (2, "a", 3, None), (3, "a", 4, 4)]
    result = run("previous: {by: [k], take: {last_v: v, last_at: ts, last_n: n}}", *given).rows()
    assert [(r["last_v"], r["last_n"]) for r in result] == [(None, None), (None, None), (1.0, 1), (3.0, None)]
    assert result[2]["last_at"] == result[0]["ts"]


def test_previous_does_not_remember_what_is_too_long() -> None:
    result = run("previous: {take: {was: k}}", (0, "a", 1, 1), (1, "x" * 20_000, 1, 1), (2, "b", 1, 1))
    assert [r["was"] for r in result.rows()] == [None, "a"]
    assert result.reasons() == [["steps[0].previous: a value has more than 16384 bytes to remember"]]


# -- for all of them

STEPS = [
    "dedupe: {by: [k], within: 5s, count_into: repeats, max_groups: 10}",
    "dedupe: {within: 1h}",
    "deadband: {of: {v: 1.5, n: any}, by: [k], at_least_every: 20s, max_groups: 10}",
    "changes: {of: [n, k], by: [k], max_groups: 10}",
    "sample: {every: 3, by: [k], max_groups: 10}",
    "sample: {share: 0.5, by: [k, n]}",
    "rate_limit: {rows: 2, per: 7s, by: [k], max_groups: 10}",
    "counter: {of: n, into: used, by: [k], wraps_at: 50, max_step: 10, on_reset: skip, max_groups: 10}",
    "counter: {of: v, into: used, by: [k], per: 1s}",
    "previous: {by: [k], take: {a: v, b: ts}, max_groups: 10}",
]
ROWS = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 60), st.sampled_from([-1_700_000_000, 400_000_000, 3])),
        st.one_of(st.none(), st.integers(0, 25).map(str)),
        st.one_of(st.none(), st.floats(-10, 10, width=16)),
        st.one_of(st.none(), st.integers(0, 60)),
        st.sampled_from([0, 0, 0, 2]),
    ),
    max_size=60,
)


def table(given: Sequence[Any]) -> pa.Table:
    columns = {
        "_row": range(len(given)),
        "_fate": [fate for *_, fate in given],
        "_et": [T0 + second * S for second, *_ in given],
        "ts": [T0 + second * S for second, *_ in given],
        "k": [k for _, k, *_ in given],
        "v": [v for _, _, v, *_ in given],
        "n": [n for _, _, _, n, _ in given],
    }
    return pa.table({name: pa.array(list(columns[name]), SCHEMA.field(name).type) for name in SCHEMA.names})


@cache
def plan_of(text: str) -> Plan:
    """A plan of its own: stages hold what they know of the last state."""
    return compile_plan(steps_spec(text))


def pass_through(plan: Plan, state: State, rows: pa.Table) -> tuple[State, list[Any]]:
    for stage in plan.stages:
        state, rows = stage(state, rows)
    return state, [r for r in rows.drop_columns(["_row"]).to_pylist() if r["_fate"] != 2]


@pytest.mark.parametrize("text", STEPS)
@settings(max_examples=120)
@given(given=ROWS, data=st.data())
def test_no_split_and_no_restart_shows(text: str, given: list[Any], data: st.DataObject) -> None:
    plan, whole = plan_of(text), table(given)
    state, expected = pass_through(plan, State("l"), whole)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(given)), max_size=4)))
    restarts = data.draw(st.booleans())
    parts, got = State("l"), []
    for start, stop in zip([0, *cuts], [*cuts, len(given)], strict=True):
        parts, some = pass_through(plan, parts, whole.slice(start, stop - start))
        got += some
        if restarts:
            stored, _ = entries(parts, None)
            parts = restore("l", sorted(stored.items(), reverse=True), {}, 2)
    assert got == expected
    for owner in owners(plan.stages):
        assert dict(parts.of(owner)) == dict(state.of(owner))
        assert len(state.of(owner)) <= max(10, 60 if "max_groups" not in text else 10)


STATELESS = [
    "filter: n is distinct from 7",
    "filter: n % (n - 3) < 2",
    "derive: {{d{i}: n * 1000000000000000000, e{i}: k || '-'}}",
]


@settings(max_examples=25)
@given(given=ROWS, data=st.data())
def test_no_split_of_rows_through_many_steps_shows(given: list[Any], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from([*STEPS, *STATELESS]), min_size=2, max_size=5))
    texts = [text.format(i=i) if text in STATELESS else _renumbered(text, i) for i, text in enumerate(chosen)]
    spec = load_spec(pipeline("steps:\n" + "".join(f"  - {text}\n" for text in texts)))
    lines = [row(second, k, v, n=n) if fate == 0 else "{" for second, k, v, n, fate in given]
    whole = Run(compile_plan(spec)).feed(batch(lines))
    parted = Run(compile_plan(spec))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(lines)), max_size=4)))
    for start, stop in zip([0, *cuts], [*cuts, len(lines)], strict=True):
        parted.feed(batch(lines[start:stop]))
    assert parted.rows() == whole.rows()
    assert [(r["step"], r["reasons"], r["raw"]) for r in parted.quarantine()] == [
        (r["step"], r["reasons"], r["raw"]) for r in whole.quarantine()
    ]
    assert parted.state.sources == whole.state.sources
    assert {o: dict(c) for o, c in parted.state.cells.items()} == {o: dict(c) for o, c in whole.state.cells.items()}
    if lines:
        ledgers_balance(whole.state)


def _renumbered(text: str, i: int) -> str:
    """The step with names of its own for what it makes."""
    return re.sub(r"\b(repeats|used|a|b)(?=[,:}]| )", rf"\g<1>{i}", text)


@pytest.mark.parametrize("text", STEPS)
def test_a_batch_leaves_the_state_it_came_from_alone(text: str) -> None:
    plan = plan_of(text)
    first, _ = pass_through(plan, State("l"), table([(0, "a", 1.0, 1, 0), (1, "b", 1.0, 1, 0)]))
    frozen = {owner: dict(first.of(owner)) for owner in owners(plan.stages)}
    one = pass_through(plan, first, table([(2, "a", 9.0, 9, 0)]))
    again = pass_through(plan, first, table([(2, "a", 9.0, 9, 0)]))
    assert frozen == {owner: dict(first.of(owner)) for owner in owners(plan.stages)}
    assert one[1] == again[1]
    assert one[0].cells == again[0].cells


def test_beyond_max_groups_the_tenth_written_longest_ago_is_forgotten() -> None:
    text = "previous: {by: [k], take: {was: v}, max_groups: 20}"
    given = [(float(i), f"k{i}", float(i), 1) for i in range(20)]
    touched: list[Row] = [(20, "k0", 20, 1), (21, "new", 21, 1), (22, "k0", 22, 1), (23, "k1", 23, 1), (24, "k3", 24, 1)]
    assert made(text, "was", *given, *touched)[20:] == [0.0, None, 20.0, None, 3.0]  # type: ignore[arg-type]  # rows


def test_state_goes_on_while_the_meaning_stays() -> None:
    def owner(text: str) -> set[str]:
        return owners(steps(text).stages)

    base = owner("counter: {of: n, into: used, by: [k]}")
    assert base == owner("counter: {of: n, into: other, by: [k], max_step: 7, on_reset: skip}")
    assert base != owner("counter: {of: v, into: used, by: [k]}")
    assert base != owner("counter: {of: n, into: used}")
    twice = pipeline("steps:\n  - changes: {of: [n]}\n  - filter: v > 1\n  - changes: {of: [n]}\n")
    assert len(owners(compiled(twice).stages)) == 2, "each has its own memory"


def test_an_unchanged_group_is_not_written_again() -> None:
    plan = plan_of("deadband: {of: {v: 5}, by: [k]}")
    state, _ = pass_through(plan, State("l"), table([(0, "a", 1.0, 1, 0), (0, "b", 1.0, 1, 0)]))
    same, _ = pass_through(plan, state, table([(1, "a", 2.0, 1, 0)]))
    assert same is state
    moved, _ = pass_through(plan, state, table([(1, "a", 9.0, 1, 0)]))
    assert len(entries(moved, state)[0]) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dedupe: {by: [kk], within: 1s}", 'steps[0].dedupe.by: column "kk" is not in the rows; did you mean "k"?'),
        ("dedupe: {by: [k], within: 1s, count_into: v}", 'steps[0].dedupe.count_into: there is a column "v" already'),
        ("deadband: {of: {k: 0.5}}", 'steps[0].deadband.of.k: "k" is VARCHAR, which has no deadband'),
        ("counter: {of: k, into: x}", 'steps[0].counter.of: "k" is VARCHAR, a counter is a number'),
        ("counter: {of: nn, into: x}", 'steps[0].counter.of: column "nn" is not in the rows; did you mean "n"?'),
        ("counter: {of: n, into: x, wraps_at: 1.5}", 'steps[0].counter.wraps_at: "n" is an integer, 1.5 is not'),
        ("previous: {take: {v: n}}", 'steps[0].previous.take.v: there is a column "v" already'),
        ("previous: {take: {x: nope}}", 'steps[0].previous.take: column "nope" is not in the rows'),
        ("changes: {of: [m]}", 'steps[0].changes.of: column "m" is not in the rows'),
        ("sample: {share: 0.5, by: [q]}", 'steps[0].sample.by: column "q" is not in the rows'),
    ],
)
def test_what_is_refused(text: str, says: str) -> None:
    assert says in problem(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dedupe: {by: [k]}", '"within" is missing'),
        ("dedupe: {by: [k], within: 0s}", "longer than nothing"),
        ("dedup: {by: [k], within: 1s}", 'unknown key "dedup"; did you mean "dedupe"?'),
        ("dedupe: {by: [k], withn: 1s}", 'unknown key "withn"; did you mean "within"?'),
        ('deadband: {of: {v: "1 %"}}', "is no deadband"),
        ("deadband: {of: {v: -1}}", "zero or more"),
        ("sample: {by: [k]}", "exactly one kind of: every, share"),
        ("rate_limit: {rows: 0, per: 1s}", "greater than or equal to 1"),
        ("counter: {of: n, into: x, on_reset: zero}", "is not 'from_zero', 'null' or 'skip'"),
        ("previous: {by: [k], take: {}}", "at least one"),
    ],
)
def test_what_has_not_the_shape(text: str, says: str) -> None:
    assert says in problem(text)


TYPED = """
  ts: {type: timestamp, event_time: true, unit: s}
  d: {type: decimal, precision: 10, scale: 2, nullable: true}
  b: {type: binary, nullable: true}
  t: {type: timestamp, nullable: true}
  f: {type: boolean, nullable: true}
  l: {type: list, of: integer, nullable: true}
"""


def typed(text: str, *records: dict[str, Any]) -> Run:
    plan = compile_plan(load_spec(pipeline(f"steps:\n  - {text}\n", schema=TYPED)))
    run = Run(plan)
    for i, record in enumerate(records):
        run.feed(batch([json.dumps({"ts": T0 / S + i, **record})]))
        stored, _ = entries(run.state, None)
        run.state = restore("l", stored.items(), run.state.ledger(), 2)
    ledgers_balance(run.state)
    return run


def test_groups_and_values_of_every_type_are_remembered() -> None:
    one = {"d": "1.50", "b": "AAE=", "t": "2026-01-01T00:00:00Z", "f": True, "l": [1, 2]}
    two = {**one, "d": "1.51"}
    assert len(typed("dedupe: {by: [d, b, t, f], within: 1h}", one, one, two, one).rows()) == 2
    assert len(typed("changes: {of: [d, b, t, f]}", one, one, two, one).rows()) == 3
    found = typed("previous: {take: {d0: d, b0: b, t0: t, f0: f, l0: l}}", one, two).rows()[1]
    assert [found[f"{name}0"] for name in "dbtfl"] == [Decimal("1.50"), b"\0\1", found["t"], True, [1, 2]]
    assert len(typed("deadband: {of: {d: 0.5, f: any}}", one, two, {**one, "f": False}, {**one, "d": "2.01"}).rows()) == 3
    made = typed("counter: {of: d, into: used, wraps_at: 99999999.99}", one, two, {**one, "d": None}, {"d": "0.25"}).rows()
    assert [r["used"] for r in made] == [None, Decimal("0.01"), None, Decimal("0.25")]


def test_rows_are_not_told_apart_by_lists() -> None:
    with pytest.raises(SpecError, match=r'"l" is a BIGINT\[\]: rows are not compared by it'):
        typed("dedupe: {by: [l], within: 1h}")
