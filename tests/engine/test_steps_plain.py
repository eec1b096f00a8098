"""Steps that remember nothing: select, drop, rename, enrich, redact, lookup; and what may leave the node."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from engine_support import T0, Run, S, batch, ledgers_balance, pipeline, row

from pipelines.contract.errors import SpecError
from pipelines.contract.spec import load_spec
from pipelines.engine.plan import NodeFacts, Plan, compile_plan
from pipelines.engine.stage import PlainStage, SqlStage

SENSITIVE = """
  ts: {type: timestamp, event_time: true, unit: s}
  k: {type: string, nullable: true, sensitive: true}
  v: {type: double, nullable: true, sensitive: true}
  n: {type: integer, nullable: true}
"""


def plan_of(steps: str, head: str = "", tail: str = "", schema: str = "", **more: Any) -> Plan:
    text = pipeline(steps, head=head, **({"schema": schema} if schema else {})) + tail
    node = NodeFacts("n1", "press", {"site": "lyon"}, {"firmware": "7"})
    return compile_plan(load_spec(text), node=node, **{"secrets": {"badge": "s3cret"}, **more})


def run(steps: str, *rows: str, **more: Any) -> Run:
    made = Run(plan_of(steps, **more)).feed(batch(rows))
    ledgers_balance(made.state)
    return made


def one(steps: str, record: str | None = None, **more: Any) -> Mapping[str, Any]:
    (found,) = run(steps, record or row(1, "abcdefgh", 1.25, n=7), **more).rows()
    return {name: value for name, value in found.items() if name != "_event_time"}


def problem(steps: str, **more: Any) -> tuple[str, str]:
    with pytest.raises(SpecError) as caught:
        plan_of(steps, **more)
    found = caught.value.problems[0]
    return f"{found.path}: {found.message}", found.hint


def statements(plan: Plan) -> int:
    return sum(isinstance(stage, SqlStage) for stage in plan.stages)


# -- columns


def test_select_keeps_these_columns_in_this_order() -> None:
    assert list(one("steps:\n  - select: [n, k]\n").items()) == [("n", 7), ("k", "abcdefgh")]


def test_drop_and_rename_change_names_only() -> None:
    steps = "steps:\n  - drop: [v, ts]\n  - rename:\n      count: n\n      n: k\n"
    assert one(steps) == {"n": "abcdefgh", "count": 7}
    assert statements(plan_of(steps)) == 0


def test_a_name_that_was_dropped_or_renamed_may_be_made_again() -> None:
    steps = "steps:\n  - rename:\n      raw: v\n  - derive:\n      v: raw * 2\n  - drop: raw\n  - derive:\n      raw: v + 1\n"
    assert one(steps) == {"ts": one("")["ts"], "k": "abcdefgh", "n": 7, "v": 2.5, "raw": 3.5}


def test_event_time_stays_when_its_column_goes() -> None:
    (found,) = run("steps:\n  - drop: ts\n", row(5)).rows()
    assert found["_event_time"].timestamp() == T0 / S + 5


def test_consecutive_stateless_steps_are_one_statement() -> None:
    steps = (
        "steps:\n  - filter: v > 0\n  - derive:\n      a: v * 2\n  - enrich:\n      site: node.site\n  - rename:\n      b: a\n"
        "  - derive:\n      c: b || site\n  - redact:\n      k: {mask: {keep_last: 2}}\n  - select: [c, k]\n"
        "  - lookup: {table: t, by: [k], take: [x]}\n"
    )
    tail = "  far: {lake: {table: far}, where: c <> ''}\n"
    head = "lookups:\n  t: {key: [k], rows: [{k: a, x: 1}]}"
    plan = plan_of(steps, head=head, tail=tail)
    assert statements(plan) == 2, "one before the lookup, which needs k; one for the condition of the sink"
    assert statements(plan_of(steps.replace("[k], take", "[c], take"), head=head)) == 1


def test_only_what_is_named_goes_through_the_statement() -> None:
    (stage, *_) = plan_of("steps:\n  - filter: v * 2 > 0\n").stages
    assert isinstance(stage, SqlStage)
    assert stage.inputs == ("_fate", "v")


def test_filters_of_nothing_but_comparisons_need_no_statement() -> None:
    plan = plan_of(
        "steps:\n  - filter: v > 0\n  - filter: k <> 'b' or v < $lim\n", head="params: {lim: {type: double, default: 5}}"
    )
    (stage,) = plan.stages
    assert isinstance(stage, PlainStage)
    counts = "triggers:\n  hot: {over: latest, each: [k], when: count(*) filter (where v > $lim) >= 2}\n"
    (stage,) = plan_of("steps:\n  - filter: v > 0\n" + counts, head="params: {lim: {type: double, default: 5}}").stages
    assert isinstance(stage, PlainStage) and len(stage.hidden) == 1
    assert [statements(plan_of(f"steps:\n{steps}")) for steps in _NOT_PLAIN] == [1] * len(_NOT_PLAIN)


_NOT_PLAIN = (
    "  - filter: v > 0\n  - derive:\n      d: v * 2\n",
    "  - derive:\n      d: v * 2\n  - filter: d > 0\n",
    "  - filter: v is null\n",
)


def test_a_step_after_which_nobody_is_left_still_makes_its_columns() -> None:
    steps = "steps:\n  - filter: v > 100\n  - changes: {of: [n]}\n  - derive:\n      d: v * 2\n  - filter: d > 0\n"
    made = run(steps, row(0), row(1))
    assert made.rows() == []
    assert made.state.sources["s"]["filtered.0"] == 2


def test_no_statement_runs_where_there_is_nothing_to_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not plan_of("").stages
    plan = plan_of("steps:\n  - filter: v * 1 > 100\n  - changes: {of: [n]}\n  - derive:\n      d: v * 2\n")
    first, last = (stage for stage in plan.stages if isinstance(stage, SqlStage))
    ran: list[tuple[object, int]] = []
    real = type(first.statement).__call__

    def noted(self: Any, table: pa.Table) -> pa.Table:
        ran.append((self, table.num_rows))
        return real(self, table)

    monkeypatch.setattr(type(first.statement), "__call__", noted)
    Run(plan).feed(batch([row(0), row(1)]))
    assert (first.statement, 2) in ran
    assert (last.statement, 2) not in ran, "nobody is left for it"


def test_a_row_on_which_the_engine_itself_fails_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import duckdb

    plan = plan_of("steps:\n  - derive:\n      d: v * 2\n")
    (stage, *_) = plan.stages
    assert isinstance(stage, SqlStage)
    real = type(stage.statement).__call__

    def fails_on_13(self: Any, table: pa.Table) -> pa.Table:
        if self is stage.statement and 13.0 in table["v"].to_pylist():
            raise duckdb.Error("an inner error")
        return real(self, table)

    monkeypatch.setattr(type(stage.statement), "__call__", fails_on_13)
    made = Run(plan).feed(batch([row(i, v=float(i)) for i in range(20)]))
    assert made.reasons() == [["steps[0]: the engine fails on this row"]]
    assert [r["d"] for r in made.rows()] == [i * 2 for i in range(20) if i != 13]
    ledgers_balance(made.state)


# -- values of every type


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("[n, 1]", [7, 1]),
        ("{'a': k, 'b': [v]}", {"a": "abcdefgh", "b": [1.25]}),
        ("[n, 2][2]", 2),
        ("{'a': n}.a", 7),
        ("CAST(v AS DECIMAL(10, 3)) + 0.001", Decimal("1.251")),
        ("encode(k)", b"abcdefgh"),
        ("lpad(CAST(n AS VARCHAR), 3, '0')", "007"),
        ("hour(timezone('Europe/Paris', timezone('UTC', ts)))", 1),
        ("list_sum([v, v])", 2.5),
        ("'{\"a\": {\"b\": 5}}' ->> '$.a.b'", "5"),
        ("CAST(DATE '2026-02-03' AS VARCHAR)", "2026-02-03"),
        ("date_diff('minute', ts, ts + INTERVAL 2 hours)", 120),
    ],
)
def test_values_of_every_type(expression: str, value: object) -> None:
    assert one(f"steps:\n  - derive:\n      x: |-\n        {expression}\n")["x"] == value


@pytest.mark.parametrize(
    "expression",
    [
        "[v / 0]",
        "[[v], [v / 0]]",
        "{'a': [v / 0]}",
        "encode(repeat_ || repeat_ || repeat_ || repeat_ || 'x')",
        "string_split(repeat_ || repeat_, '')",
        "{'a': long}",
    ],
)
def test_what_is_unfit_within_a_list_or_struct_fails_the_row(expression: str) -> None:
    many = "{" + ", ".join(f"'{name}': repeat_" for name in "abcde") + "}"
    long = "long: lpad(k, 1024, 'x')\n      repeat_: long || long || long || long"
    steps = f"steps:\n  - derive:\n      {long}\n      x: |-\n        {many if 'long' in expression else expression}\n"
    assert run(steps, row(0)).reasons()[0][0].startswith("steps[0].derive.x: the expression fails on this row")


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("replace(k, 'a', k)", "replace() of one column by another has no bound"),
        ("regexp_replace(k, '.', k, 'g')", "no bound"),
        ("lpad(k, n, 'x')", "the length in lpad() is a number up to 1024"),
        ("length(lpad(k, 1000000, 'x'))", "the length in lpad() is a number up to 1024"),
        ("repeat(k, 3)", "repeat() is not allowed"),
        ("array_to_string(string_split(k, 'a'), k)", "array_to_string() of one column by another has no bound"),
        ("k ->> '$.*'", "the path in ->>() is a text without *"),
        ("json_extract_string(k, k)", "the path in json_extract_string() is a text without *"),
        (" || ".join(["k"] * 70), "more than 64 times as long"),
        ("replace(replace(k, 'a', 'aaaaaaaaaaaaaaaa'), 'a', 'aaaaaaaaaaaaaaaa')", "more than 64 times as long"),
        ("list_transform([1], lambda x: x)", "list_transform() is not allowed"),
    ],
)
def test_what_could_grow_without_bound_is_refused(expression: str, says: str) -> None:
    assert says in problem(f"steps:\n  - derive:\n      x: |-\n        {expression}\n")[0]


def test_what_grows_a_little_is_not() -> None:
    many = "replace(" * 12 + "k" + ", 'a', 'b')" * 12
    joined = "upper(k) || concat_ws(k, k, v, n, ts) || array_to_string([k, 'b'], ', ')"
    assert one(f"steps:\n  - derive:\n      x: |-\n        {many} || {joined}\n")["x"]


@pytest.mark.parametrize(
    "call", ["replace(k)", "lpad(k)", "concat_ws()", "json_extract_string(k)", "array_to_string([k])", "lower()"]
)
def test_a_call_with_too_few_arguments_is_a_problem_like_others(call: str) -> None:
    assert problem(f"steps:\n  - derive:\n      x: {call}\n")[0].startswith("steps[0].derive.x: ")


# -- redact


def test_a_hash_is_the_hmac_that_others_compute() -> None:
    expected = hmac.new(b"s3cret", b"abcdefgh", hashlib.sha256).hexdigest()
    key = '{hash: {key: "${secret:badge}"'
    assert one(f"steps:\n  - redact:\n      k: {key}}}}}\n")["k"] == expected
    assert one(f"steps:\n  - redact:\n      k: {key}, length: 16}}}}\n")["k"] == expected[:16]
    assert one(f"steps:\n  - redact:\n      n: {key}}}}}\n")["n"] == hmac.new(b"s3cret", b"7", hashlib.sha256).hexdigest()
    assert one(f"steps:\n  - redact:\n      k: {key}}}}}\n", row(0, None))["k"] is None
    long = {"badge": "k" * 100}
    expected = hmac.new(b"k" * 100, "é".encode(), hashlib.sha256).hexdigest()
    assert one(f"steps:\n  - redact:\n      k: {key}}}}}\n", row(0, "é"), secrets=long)["k"] == expected


@pytest.mark.parametrize(
    ("mask", "value", "expected"),
    [
        ("mask", "4111 1111", "*********"),
        ("{mask: {keep_last: 4}}", "41111234", "****1234"),
        ("{mask: {keep_first: 2, keep_last: 1, with: x}}", "abcdef", "abxxxf"),
        ("{mask: {keep_last: 4}}", "1234", "****"),
        ("{mask: {keep_last: 2}}", "naïve", "***ve"),
        ("{mask: {keep_last: 2}}", None, None),
    ],
)
def test_a_mask_hides_all_but_what_it_keeps(mask: str, value: str | None, expected: str | None) -> None:
    assert one(f"steps:\n  - redact:\n      k: {mask}\n", row(0, value))["k"] == expected


def test_a_pattern_is_replaced_wherever_it_stands() -> None:
    steps = "steps:\n  - redact:\n      k: {pattern: '\\b\\d{13,19}\\b', with: card}\n"
    assert one(steps, row(0, "paid 4111111111111111, then 5500000000000004."))["k"] == "paid card, then card."
    assert one(steps.replace(", with: card", ""), row(0, "paid 4111111111111111"))["k"] == "paid ***"
    assert one(steps.replace("with: card", "with: '\\1'"), row(0, "4111111111111111"))["k"] == "\\1", "it is text, not a group"


def test_coordinates_and_times_become_coarser() -> None:
    assert one("steps:\n  - redact:\n      v: {generalise: {to: 1}}\n", row(0, v=48.8566))["v"] == 48.9
    assert one("steps:\n  - redact:\n      n: {generalise: {to: -2}}\n", row(0, n=1234))["n"] == 1200
    (found,) = run("steps:\n  - redact:\n      ts: {generalise: {to: 1h}}\n", row(3725)).rows()
    assert found["ts"].timestamp() == T0 / S + 3600
    assert found["_event_time"] == found["ts"], "the exact time would leave as the row's own"
    assert one("steps:\n  - redact:\n      ts: {generalise: {to: 1h}}\n", row(-T0 / S - 1))["ts"].minute == 0


def test_redact_drops() -> None:
    assert set(one("steps:\n  - redact:\n      k: drop\n      v: {drop: {}}\n")) == {"ts", "n"}


@pytest.mark.parametrize(
    ("redaction", "says"),
    [
        ("kk: drop", 'steps[0].redact.kk: column "kk" is not in the rows; did you mean "k"?'),
        ("k: {pattern: '(', with: x}", "steps[0].redact.k.pattern: not a pattern: missing ): ("),
        ("v: {pattern: '1', with: x}", "steps[0].redact.v: a pattern is for texts, this is DOUBLE"),
        ("k: {generalise: {to: 1h}}", "steps[0].redact.k: only a timestamp is rounded to 1h, this is VARCHAR"),
        ("ts: {generalise: {to: 2}}", "steps[0].redact.ts: there are no 2 decimals to keep, this is TIMESTAMP"),
        ('k: {hash: {key: "${secret:other}"}}', "steps[0].redact.k.hash.key: secret other is not set on this node"),
    ],
)
def test_a_redaction_that_cannot_be_done_is_refused(redaction: str, says: str) -> None:
    assert problem(f"steps:\n  - redact:\n      {redaction}\n")[0] == says


@pytest.mark.parametrize(
    ("redaction", "says"),
    [
        ("k: {hash: {key: swordfish}}", "the key is a secret of the node"),
        ("k: {mask: {}, drop: {}}", "exactly one kind of"),
        ("k: {mask: {}, with: x}", "`with` belongs to `pattern`"),
        ("k: {generalise: {to: soon}}", "is not a duration"),
    ],
)
def test_a_redaction_has_one_shape(redaction: str, says: str) -> None:
    assert says in problem(f"steps:\n  - redact:\n      {redaction}\n")[0]


def test_a_pipeline_is_checked_without_the_secrets_of_a_node() -> None:
    plan_of('steps:\n  - redact:\n      k: {hash: {key: "${secret:unknown}"}}\n', secrets=None)


# -- lookup

ASSETS = """lookups:
  assets:
    key: [tag]
    rows:
      - {tag: a, asset: pump, hi: 80, on: true}
      - {tag: b, asset: fan, hi: 60.5}
"""


def test_lookup_takes_columns_of_the_row_with_the_same_key() -> None:
    steps = "steps:\n  - lookup: {table: assets, by: [k], take: {machine: asset, hi: hi, is_on: on}}\n"
    made = run(steps, row(0, "b"), row(1, "x"), row(2, None), row(3, "a"), head=ASSETS).rows()
    assert [(r["machine"], r["hi"], r["is_on"]) for r in made] == [
        ("fan", 60.5, None),
        (None, None, None),
        (None, None, None),
        ("pump", 80.0, True),
    ]


def test_lookup_by_the_columns_that_are_called_like_the_key() -> None:
    steps = "steps:\n  - rename:\n      tag: k\n  - lookup: {table: assets, take: [asset]}\n"
    assert one(steps, row(0, "a"), head=ASSETS)["asset"] == "pump"


def test_lookup_may_quarantine_what_it_does_not_find() -> None:
    steps = "steps:\n  - filter: n = 1\n  - lookup: {table: assets, by: [k], take: [asset], on_missing: quarantine}\n"
    made = run(steps, row(0, "a", n=1), row(1, "x", n=1), row(2, "x", n=2), head=ASSETS)
    assert made.reasons() == [['steps[1].lookup: "assets" has no row with this key']]
    assert len(made.rows()) == 1


def test_a_table_from_a_file_is_typed_by_its_columns() -> None:
    head = "lookups:\n  t: {file: t.csv, key: [a, b], columns: {b: integer, limit: double, since: timestamp}}\n"
    table = pa.table(
        {"a": ["x", "y"], "b": ["1", "2"], "limit": ["1.5", ""], "since": ["2026-01-01", "2026-01-01T01:00:00+01:00"]}
    )
    steps = "steps:\n  - lookup: {table: t, by: [k, n], take: [limit, since]}\n"
    made = run(steps, row(0, "x", n=1), row(0, "y", n=2), row(0, "x", n=2), head=head, lookups={"t": table}).rows()
    assert [r["limit"] for r in made] == [1.5, None, None]
    assert made[0]["since"] == made[1]["since"]
    plan_of(steps, head=head)  # without the node's files it is checked all the same


@pytest.mark.parametrize(
    ("steps", "head", "says"),
    [
        ("{table: asset, take: [x]}", ASSETS, 'steps[0].lookup.table: there is no lookup table "asset"; did you mean "assets"?'),
        ("{table: assets, take: [asset]}", ASSETS, 'steps[0].lookup: column "tag" is not in the rows'),
        (
            "{table: assets, by: [k], take: [aset]}",
            ASSETS,
            'steps[0].lookup.take: the table has no column "aset"; did you mean "asset"?',
        ),
        ("{table: assets, by: [k, n], take: [asset]}", ASSETS, "steps[0].lookup.by: the key of assets has 1 columns, here are 2"),
        ("{table: assets, by: [n], take: [asset]}", ASSETS, 'steps[0].lookup: "n" is BIGINT, "tag" of the table is VARCHAR'),
        ("{table: assets, by: [k], take: {v: hi}}", ASSETS, 'steps[0].lookup.take.v: there is a column "v" already'),
        (
            "{table: assets, by: [k], take: [asset]}",
            ASSETS + "      - {tag: a, asset: other}\n",
            "lookups.assets: two rows have the key a",
        ),
        ("{table: assets, by: [k], take: [asset]}", ASSETS + "      - {asset: other}\n", "lookups.assets: a row has no key"),
        (
            "{table: assets, by: [k], take: [asset]}",
            ASSETS.replace("key: [tag]", "key: [tga]"),
            'lookups.assets.key: the table has no column "tga"; did you mean "tag"?',
        ),
        (
            "{table: assets, by: [k], take: [asset]}",
            ASSETS.replace("key: [tag]", "key: [tag]\n    columns: {asset: integer}"),
            'lookups.assets.columns.asset: "pump" is not of type integer',
        ),
    ],
)
def test_a_lookup_that_cannot_work_is_refused(steps: str, head: str, says: str) -> None:
    assert problem(f"steps:\n  - lookup: {steps}\n", head=head)[0].startswith(says)


ARTIFACT = "lookups:\n  t: {artifact: asset_register, key: [a], columns: {limit: double}}\n"


def test_a_table_from_an_artifact_is_like_one_from_a_file() -> None:
    steps = "steps:\n  - lookup: {table: t, by: [k], take: [limit]}\n"
    table = pa.table({"a": ["x"], "limit": ["2.5"]})
    assert run(steps, row(0, "x"), head=ARTIFACT, lookups={"t": table}).rows()[0]["limit"] == 2.5
    assert "there is no table from asset_register on this node" in str(missing_table(steps))


def missing_table(steps: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        run(steps, row(0, "x"), head=ARTIFACT, lookups={})
    return caught.value


@pytest.mark.parametrize("name", ["", "9lives", "a b", "../../etc/passwd", "a@0", "a@x", "a@-1", "x" * 64])
def test_an_artifact_has_a_name_and_perhaps_a_number(name: str) -> None:
    assert "an artifact is NAME, or NAME@N" in problem("", head=f"lookups:\n  t: {{artifact: '{name}', key: [a]}}")[0]


# -- parse


def parsed(parse: str, *texts: str | None) -> list[dict[str, Any]]:
    found = run(f"steps:\n  - parse: {parse}\n  - drop: [ts, k, v, n]\n", *(row(i, text) for i, text in enumerate(texts))).rows()
    return [{name: value for name, value in r.items() if name != "_event_time"} for r in found]


def test_parse_without_fields_makes_texts_of_all_names() -> None:
    regex = r"{from: k, regex: {pattern: '(?P<level>\w+): (?P<code>\d+)?'}}"
    assert parsed(regex, "warn: 12", "info: ", None) == [
        {"level": "warn", "code": "12"},
        {"level": "info", "code": None},
        {"level": None, "code": None},
    ]


@pytest.mark.parametrize(
    ("decoder", "text"),
    [
        ("regex: {pattern: 'user (?P<u>\\w+) took (?P<ms>[0-9.]+)'}", "user ada took 12.5"),
        ('grok: {pattern: "%{WORD:u} %{NUMBER:ms}"}', "ada 12.5"),
        ("logfmt: {}", "u=ada ms=12.5 x=1"),
        ("json: {}", '{"u": "ada", "ms": 12.5}'),
        ("csv: {columns: [u, other, ms]}", "ada,x,12.5"),
        ("keyvalue: {}", "u=ada;ms=12.5"),
    ],
)
def test_parse_takes_every_decoder_and_types_its_fields(decoder: str, text: str) -> None:
    fields = "fields: {who: {type: string, from: u}, ms: {type: double, max: 100}}"
    assert parsed(f"{{from: k, {decoder}, {fields}}}", text) == [{"who": "ada", "ms": 12.5}]


def test_parse_quarantines_what_does_not_decode_and_what_breaks_a_field() -> None:
    parse = "{from: k, logfmt: {}, fields: {ms: {type: double, max: 100}, at: {type: timestamp, nullable: true}}}"
    steps = f"steps:\n  - filter: n = 1\n  - parse: {parse}\n"
    texts = ["ms=5", "ms=500", "ms=x", "ms", 'ms="5', "at=2026-01-01T00:00:00Z ms=7", "ms=7 at=soon"]
    made = run(steps, *(row(i, text, n=1) for i, text in enumerate(texts)), row(9, "ms=x", n=0), row(10, None, n=1))
    assert [(r["ms"], r["at"] is None) for r in made.rows()] == [(5.0, True), (7.0, False), (None, True)]
    field, text = "steps[1].parse.{}: missing, or not as `fields` says", "steps[1].parse: the text does not decode"
    assert sorted({why for (why,) in made.reasons()}) == sorted({field.format("ms"), field.format("at"), text})
    assert len(made.reasons()) == 5


@pytest.mark.parametrize(
    ("parse", "says"),
    [
        (
            "{from: kk, json: {}, fields: {a: {type: string}}}",
            'steps[0].parse.from: column "kk" is not in the rows; did you mean "k"?',
        ),
        ("{from: v, value: {}}", 'steps[0].parse.from: "v" is DOUBLE, not a text'),
        ("{from: k, json: {}}", "steps[0].parse: any name may occur in the text"),
        ("{from: k, csv: {}}", "steps[0].parse.csv: a text has no header"),
        ("{from: k, regex: {pattern: '('}}", "steps[0].parse.regex.pattern: not a regular expression"),
        ("{from: k, regex: {pattern: '(?P<v>.)'}}", 'steps[0].parse: there is a column "v" already'),
        (
            "{from: k, regex: {pattern: '(?P<level>.)'}, fields: {x: {type: string, from: levl}}}",
            'steps[0].parse.fields.x: the text gives no "levl"; did you mean "level"?',
        ),
        (
            "{from: k, logfmt: {}, fields: {t: {type: timestamp, event_time: true}}}",
            "steps[0].parse.fields.t: event_time, check and meta",
        ),
        ("{from: k}", "exactly one kind of"),
    ],
)
def test_a_parse_that_cannot_work_is_refused(parse: str, says: str) -> None:
    assert says in problem(f"steps:\n  - parse: {parse}\n")[0]


# -- what must not leave


def test_a_sensitive_column_must_be_redacted_before_a_sink() -> None:
    says, hint = problem("", schema=SENSITIVE)
    assert says == 'sinks.rows: column "k" is sensitive and not redacted'
    assert hint == "redact it in a step, or leave it out with drop:"
    plan_of("steps:\n  - redact:\n      k: mask\n      v: drop\n", schema=SENSITIVE)
    plan_of("steps:\n  - filter: v > 1\n  - drop: [k, v]\n", schema=SENSITIVE)
    plan_of("steps:\n  - select: [ts, n]\n", schema=SENSITIVE)


@pytest.mark.parametrize(
    ("steps", "column"),
    [
        ("  - derive:\n      x: k || 'y'\n", "x"),
        ("  - derive:\n      x: upper(k)\n      y: length(x)\n  - drop: x\n", "y"),
        ("  - rename:\n      x: k\n", "x"),
        ("  - previous: {take: {x: k}}\n", "x"),
        ("  - counter: {of: v, into: x}\n", "x"),
        ("  - lookup: {table: assets, by: [k], take: {x: asset}}\n", "x"),
        ("  - parse: {from: k, logfmt: {}, fields: {x: {type: string}}}\n", "x"),
    ],
)
def test_what_comes_of_a_sensitive_column_is_sensitive(steps: str, column: str) -> None:
    drop = "  - drop: [v]\n" if "rename" in steps else "  - drop: [k, v]\n"
    says, _ = problem(f"steps:\n{steps}{drop}", schema=SENSITIVE, head=ASSETS)
    assert says == f'sinks.rows: column "{column}" is sensitive and not redacted'
    plan_of(f"steps:\n{steps}{drop}  - redact:\n      {column}: mask\n", schema=SENSITIVE, head=ASSETS)


def test_groups_and_windows_do_not_tell_of_a_sensitive_column_either() -> None:
    drop = "steps:\n  - derive:\n      who: k\n  - drop: [k]\n"
    window = "windows:\n  w: {every: 1m, by: [n], select: {top: max(v), rows_: count(*)}}\n"
    keep_v = drop.replace("[k]", "[k, who]")
    text = pipeline(keep_v + window, schema=SENSITIVE).replace("{table: rows}}", "{table: rows}, select: [n]}")
    with pytest.raises(SpecError, match=r'sinks\.out: column "top" is sensitive'):
        compile_plan(load_spec(text))
    compile_plan(load_spec(text.replace("top: max(v), ", "")))
    trigger = "triggers:\n  t: {over: latest, each: [who], by: [who], when: count(*) > 3}\n"
    text = pipeline(drop + trigger, schema=SENSITIVE).replace("{table: rows}}", "{table: rows}, select: [n]}")
    with pytest.raises(SpecError, match=r'triggers\.t\.by: column "who" is sensitive'):
        compile_plan(load_spec(text))


def test_a_sensitive_event_time_leaves_with_every_row() -> None:
    schema = "  ts: {type: timestamp, event_time: true, unit: s, sensitive: true}\n  n: {type: integer}\n"
    says, hint = problem("steps:\n  - drop: ts\n", schema=schema)
    assert says == 'sinks.rows: "ts" is sensitive and leaves with every row as its event time'
    assert "generalise" in hint
    plan_of("steps:\n  - redact:\n      ts: {generalise: {to: 1d}}\n", schema=schema)


# -- what may not be what was meant


@pytest.mark.parametrize(
    ("condition", "warns"),
    [
        ("k <> 'x'", True),
        ("k <> 'x' and n > 1", True),
        ("(k <> 'x') is not false", False),
        ("k is not null and k <> 'x'", False),
        ("coalesce(k, '') <> 'x'", False),
        ("ts > TIMESTAMP '2026-01-01'", False),
    ],
)
def test_a_filter_that_drops_null_is_warned_of(condition: str, warns: bool) -> None:
    found = plan_of(f"steps:\n  - filter: |-\n      {condition}\n").warnings
    assert bool(found) == warns
    if warns:
        assert str(found[0]).endswith('steps[0].filter: rows in which "k" is NULL are dropped too, and counted as filtered_null')


def test_whether_a_column_may_be_null_is_followed() -> None:
    steps = "steps:\n  - derive:\n      a: n + 1\n      b: year(ts)\n  - filter: b > 1\n  - previous: {take: {c: b}}\n"
    assert not plan_of(steps).warnings
    assert plan_of(steps + "  - filter: a > 1\n").warnings
    assert plan_of(steps + "  - filter: c > 1\n").warnings
