"""Cases in virtual time: what they can say, what passes, what fails, what is refused and where."""

from __future__ import annotations

from textwrap import dedent

import pytest

from pipelines.contract.errors import SpecError
from pipelines.contract.spec import load_spec
from pipelines.tools.cases import Act, Expect, Instant, load_cases
from pipelines.tools.play import Player, _repeated
from tests.tools.support import PRESS, fails, passes, play, refused


def test_rows_in_rows_out() -> None:
    passes("""
        at 0s:
          rows:
            - {sensor: a, temp_c: 20}
            - {sensor: test, temp_c: 21}
            - {sensor: b, temp_c: 500}
            - {sensor: c}
          expect:
            rows: [{sensor: a, temp_c: 20, machine: m1}]
            quarantine: [above the maximum, /temp_c.*missing|required/]
            ledger: {read: 4, accepted: 1, filtered: 1, filtered.0: 1, quarantined: 2, sensors: {read: 4}}
            incidents: []
            windows: 0
    """)


def test_raw_lines_go_through_the_decoder() -> None:
    passes("""
        at 0s:
          lines: |
            {"ts": 1767225600000, "sensor": "a", "temp_c": 20}
            not json
          expect:
            rows: [{sensor: a, ts: 0s}]
            quarantine: [{reason: not a JSON object, step: undecodable, raw: not json}]
            ledger: {undecodable: 1}
    """)


def test_a_csv_source_takes_rows_and_lines() -> None:
    csv = PRESS.replace("file: {path: x}", "file: {path: x}\n    decode: {csv: {delimiter: ';'}}")
    passes(
        """
        at 0s:
          - rows: [{sensor: a, temp_c: 20}, {sensor: "b;c", temp_c: 21}]
          - file: other.csv
            lines: |
              sensor;temp_c;ts
              d;22;1767225601000
          - file: other.csv
            lines: |
              e;23;1767225602000
        expect:
          rows: [{sensor: a}, {sensor: b;c}, {sensor: d, ts: 1s}, {sensor: e, temp_c: 23, ts: 2s}]
        """,
        csv,
    )


def test_event_time_is_filled_in_as_the_schema_wants_it() -> None:
    case = """
        at 1m:
          rows: [{sensor: a, temp_c: 1}, {sensor: a, temp_c: 1, ts: 30s}, {sensor: a, temp_c: 1, ts: -2s}]
          expect:
            rows: [{ts: 1m}, {ts: 30s}, {ts: 58s}]
    """
    for form in ("unit: s", "unit: ms", "unit: us", "format: '%d/%m/%Y %H:%M:%S'", "nullable: false"):
        passes(case, PRESS.replace("unit: ms", form))


def test_event_time_deep_in_a_record() -> None:
    passes(
        "at 1m: {rows: [{sensor: a, temp_c: 1}, {sensor: a, temp_c: 1, data: {at: 30s}}], expect: {rows: [{ts: 1m}, {ts: 30s}]}}",
        PRESS.replace("unit: ms", "from: data.at"),
    )


def test_event_time_in_a_zone() -> None:
    zoned = PRESS.replace("unit: ms", "format: '%Y-%m-%d %H:%M:%S', timezone: Europe/Paris")
    passes("at 0s: {rows: [{sensor: a, temp_c: 1}], expect: {rows: [{ts: 0s}]}}", zoned)


def test_windows_by_the_window_by_the_sink_or_as_the_only_one() -> None:
    rows = "at 0s: {rows: [{sensor: a, temp_c: 20.004}], repeat: 61}\nfinish: true\nexpect:\n  windows: "
    wanted = "[{mean_c: 20.0, readings: 60, _window_start: 0s, _window_end: 1m}, {readings: 1}]"
    for windows in (wanted, f"{{minute: {wanted}}}", f"{{minutes: {wanted}}}", "2", "{minute: 2}"):
        passes(rows + windows)


HOT = """
    at 0s: {rows: [{sensor: a, temp_c: 90}], expect: {nothing: false, incidents: []}}
    at 5s: {rows: [{sensor: a, temp_c: 90}]}
    at 6s:
      expect:
        incidents: [{trigger: hot, transition: raised, group: {machine: m1}, severity: critical, message: m1 over 85, at: 5s}]
        alarms: {hot: {state: active, acked: false, group: {machine: m1}}}
        actions: [horn]
"""


def test_an_alarm_its_acknowledgement_and_a_restart() -> None:
    passes(
        HOT
        + """
    at 8s: {ack: hot, expect: {actions: [{exec: {program: /usr/bin/horn, args: ["off"]}, on: acknowledged, trigger: hot}]}}
    at 9s: {restart: true, expect: {alarms: {hot: {state: active, acked: true}}}}
    at 9.5s: {rows: [{sensor: a, temp_c: 20, ts: 30s}], expect: {incidents: [hot cleared], alarms: {hot: closed}}}
    """
    )


def test_a_restart_forgets_nothing_and_a_stop_stops_the_clock() -> None:
    """I1: the window and the alarm that were open go on from what was stored."""
    passes("""
        at 0s: {rows: [{sensor: a, temp_c: 20}], repeat: 30}
        at 30s: {restart: true}
        at 31s: {rows: [{sensor: a, temp_c: 40}], repeat: 29}
        finish: true
        expect: {windows: [{readings: 59}], ledger: {read: 59}}
    """)
    passes("""
        at 0s: {rows: [{sensor: a, temp_c: 20}], expect: {rows: 1}}
        at 1s: {stop: true}
        at 10m: {expect: {nothing: true}}
        at 11m: {restart: true, expect: {windows: 1}}
    """)


def test_repeat_repeats_rows_and_nothing_else() -> None:
    act = Act(rows=[{}], repeat=3, every="2us", params={"limit_c": 40}, restart=True, link="down", ack="hot", expect=Expect())
    played = _repeated([Instant(7, "at 7us", act, ())])
    assert [one.at_us for one in played] == [7, 9, 11]
    first, between, last = (one.act for one in played)
    assert (first.params, first.restart, first.link) == ({"limit_c": 40}, True, "down")
    assert (first.ack, first.expect) == (None, None)
    assert between == Act(rows=[{}], repeat=3, every="2us")
    assert (last.params, last.restart, last.link) == ({}, False, None)
    assert (last.ack, last.expect) == (act.ack, act.expect)


def test_a_restart_before_repeated_rows_is_one() -> None:
    """Silence counts from a restart: were there one with every row, b would never be silent for 5 s."""
    lines = PRESS.replace("over: 10s", "absent: 5s").replace("by: [machine]\n    when: max(temp_c) > $limit_c", "by: [sensor]")
    silence = lines.replace("    for: 5s\n", "").replace("{machine}", "{sensor}")
    passes(
        """
        at 0s: {rows: [{sensor: a, temp_c: 1}, {sensor: b, temp_c: 1}]}
        at 1s: {restart: true, rows: [{sensor: a, temp_c: 1}], repeat: 20}
        expect: {incidents: [{transition: raised, message: b over 85}]}
        """,
        silence,
    )


def test_the_link_changes_nothing() -> None:
    passes("at 0s: {link: down, rows: [{sensor: a, temp_c: 1}], expect: {rows: 1}}\nat 1s: {link: up, expect: {nothing: true}}")


def test_parameters_of_the_case_of_the_file_and_in_the_middle() -> None:
    passes("at 0s: {rows: [{sensor: a, temp_c: 50}], repeat: 7, expect: {incidents: [hot raised]}}\nparams: {limit_c: 40}")
    passes("at 0s: {rows: [{sensor: a, temp_c: 50}], repeat: 7, expect: {incidents: [hot raised]}}", head="params: {limit_c: 40}")
    passes("""
        at 0s: {rows: [{sensor: a, temp_c: 50}], repeat: 7, expect: {incidents: []}}
        at 7s: {params: {limit_c: 40}}
        at 8s: {rows: [{sensor: a, temp_c: 50}], repeat: 7, expect: {incidents: [hot raised]}}
    """)


def test_node_facts() -> None:
    text = PRESS.replace("steps:\n", "steps:\n  - enrich:\n      site: node.site\n      fw: node.facts.fw\n      me: node.name\n")
    passes(
        "node: {name: pi17, labels: {site: lyon}, facts: {fw: '7'}}\n"
        "at 0s: {rows: [{sensor: a, temp_c: 1}], expect: {rows: [{site: lyon, fw: '7', me: pi17}]}}",
        text,
    )


def test_what_is_expected_covers_everything_since_the_last_expect() -> None:
    case = """
        at 0s: {rows: [{sensor: a, temp_c: 1}]}
        at 1s: {rows: [{sensor: b, temp_c: 1}], expect: {rows: [{sensor: a}, {sensor: b}]}}
        at 2s: {rows: [{sensor: c, temp_c: 1}], expect: {rows: [{sensor: c}]}}
        at 3s: {expect: {nothing: true}}
        expect: {rows: 3}
    """
    passes(case)


def test_weeks_pass_in_no_time() -> None:
    passes("at 0s: {rows: [{sensor: a, temp_c: 1}]}\nat 14d: {expect: {windows: 1}}")


@pytest.mark.parametrize(
    ("rows", "fine"),
    [
        ("[{sensor: a}, {sensor: b}, {sensor: c}]", True),
        ("[{sensor: a}, {sensor: c}, {sensor: b}]", False),
        ("{any_order: [{sensor: c}, {sensor: a}, {sensor: b}]}", True),
        ("{any_order: [{sensor: c}, {sensor: a}]}", False),
        ("{any_order: [{temp_c: 1}, {sensor: a}, {sensor: b}]}", True),  # the first fits all: another takes its row
        ("{contains: [{sensor: a}, {sensor: c}]}", True),
        ("{contains: [{sensor: c}, {sensor: a}]}", False),
        ("{contains: [{sensor: a}], count: 3}", True),
        ("{contains: [{sensor: a}], count: 2}", False),
        ("3", True),
        ("4", False),
        ("[]", False),
        ("{exactly: [{}, {}, {}]}", True),
        ("[{}, {}, {}, {}]", False),
        ("{readings: [{}, {}, {}]}", True),
    ],
)
def test_lists(rows: str, fine: bool) -> None:
    three = "[{sensor: a, temp_c: 1}, {sensor: b, temp_c: 1}, {sensor: c, temp_c: 1}]"
    assert (not play(f"at 0s: {{rows: {three}, expect: {{rows: {rows}}}}}")) == fine


@pytest.mark.parametrize(
    ("expected", "what"),
    [
        ("{rows: [{sensor: b}]}", "rows of sink readings: 0 of 1 as expected, 1 came"),
        ("{windows: 1}", "rows of window minutes: 1 were expected, 0 came"),
        ("{quarantine: [x]}", "quarantine: 0 of 1 as expected, 0 came"),
        ("{incidents: [hot raised]}", "incidents: 0 of 1 as expected, 0 came"),
        ("{actions: [horn]}", "actions: 0 of 1 as expected, 0 came"),
        ("{alarms: {hot: active}}", "alarm hot stands otherwise"),
        ("{ledger: {read: 2}}", "ledger: read is 1, expected 2"),
        ("{ledger: {sensors: {accepted: 0}}}", "ledger of sensors: accepted is 1, expected 0"),
        ("{nothing: true}", "rows of sink readings: nothing was expected, 1 came"),
    ],
)
def test_what_fails_is_told_at_its_place(expected: str, what: str) -> None:
    failure = fails(f"at 0s:\n  rows: [{{sensor: a, temp_c: 20}}]\n  expect: {expected}")
    assert failure.what == what
    assert failure.when == "at 0s"
    assert failure.line == 6


def test_references_in_settings_mean_what_the_case_says() -> None:
    text = PRESS.replace("/usr/bin/horn", '"/usr/bin/${label:horn}"').replace('args: ["on"]', 'args: ["${param:limit_c}"]')
    case = HOT.replace("[horn]", '[{exec: {program: /usr/bin/klaxon, args: ["85"]}}]')
    passes("node: {labels: {horn: klaxon}}\n" + dedent(case), text)
    passes(dedent(case).replace("/usr/bin/klaxon", '"/usr/bin/${label:horn}"'), text)


def test_facts_of_rows() -> None:
    text = PRESS.replace(
        "machine: {type: string, default: m1}",
        "machine: {type: string, from: meta.topic.machine}\n  q: {type: string, from: meta.quality}",
    )
    case = """
        at 0s:
          meta: {topic: {machine: m7}, quality: bad}
          rows: [{sensor: a, temp_c: 1}]
          expect: {rows: [{machine: m7, q: bad}]}
    """
    passes(case, text)
    passes(case.replace("topic: {machine: m7}", "topic.machine: m7"), text)


LOOKUP = PRESS.replace(
    "steps:\n",
    "lookups:\n  assets:\n    file: assets.csv\n    key: sensor\n    columns: {sensor: string, line: integer}\n"
    "steps:\n  - lookup: {table: assets, take: [line]}\n",
)


def test_lookup_tables() -> None:
    rows = "at 0s: {rows: [{sensor: a, temp_c: 1}, {sensor: x, temp_c: 1}], expect: {rows: [{line: 7}, {line: null}]}}\n"
    passes(rows + "lookups: {assets: [{sensor: a, line: 7}, {sensor: b, line: 8}]}", LOOKUP)
    passes(rows, LOOKUP, head="lookups: {assets: [{sensor: a, line: 7}]}")
    assert 'the rows of lookup table "assets" are not given' in refused(rows, LOOKUP).message
    wrong = refused(rows + "lookups: {assets: [{sensor: a, line: 7}], asets: []}", LOOKUP)
    assert 'no lookup table "asets" from a CSV; did you mean "assets"' in wrong.message


def test_nobody_to_acknowledge_is_a_failure() -> None:
    assert fails("at 0s: {ack: hot}").what == "there is no incident of hot to acknowledge"


@pytest.mark.parametrize(
    ("case", "line", "path", "message", "hint"),
    [
        ("at 0s: {rwos: []}", 4, "cases[0].at 0s.rwos", 'unknown key "rwos"; did you mean "rows"?', "known here: params"),
        ("at 3x: {}", 4, "cases[0].at 3x", "'3x' is not a duration", "write `at 3s:`"),
        ("att 3s: {}", 4, "cases[0].att 3s", 'unknown key "att 3s"', "known here: name"),
        ("at 0s: {expect: {incidents: [5]}}", 4, "cases[0].at 0s.expect.incidents[0]", "5 is not a map of keys", ""),
        (
            "at 0s: {expect: {incidents: [latched]}}",
            4,
            "cases[0].at 0s.expect.incidents[0]",
            '"latched" is not a trigger and a transition',
            "write `TRIGGER latched`",
        ),
        ("at 0s: {expect: {incidents: [hot]}}", 4, "cases[0].at 0s.expect.incidents[0]", '"hot" is not', "`TRIGGER raised`"),
        ("at 0s: {expect: {alarms: {hot: on}}}", 4, "cases[0].at 0s.expect.alarms.hot.state", '"on" is not', "one of active"),
        ("at 0s: {link: maybe}", 4, "cases[0].at 0s.link", '"maybe" is not', "up"),
        (
            "at 0s: {source: sensor, rows: [{}]}",
            4,
            "cases[0].at 0s.source",
            'no source "sensor"; did you mean "sensors"?',
            "known",
        ),
        ("at 0s: {expect: {rows: {reading: 1}}}", 4, "cases[0].at 0s.expect.rows.reading", 'no sink "reading"', "known"),
        ("at 0s: {expect: {windows: {x: 1}}}", 4, "cases[0].at 0s.expect.windows.x", 'no sink takes the rows of "x"', "known"),
        ("at 0s: {ack: hott}", 4, "cases[0].at 0s.ack", 'there is no trigger "hott"; did you mean "hot"?', "known"),
        ("at 0s: {}\nparams: {limit: 3}", 5, "cases[0].params.limit", 'no parameter "limit"', "known: limit_c"),
        ("at 0s: {}\nparams: {limit_c: 999}", 5, "cases[0].params.limit_c", "above the maximum", ""),
        ("at 0s: {}\nstart: monday", 5, "cases[0].start", '"monday" is not a time', "2026"),
        ("at 0s: {stop: true}\nat 1s: {rows: [{}]}", 5, "cases[0].at 1s", "the pipeline is stopped here", "restart"),
        ("description: nothing", 3, "cases[0]", "nothing happens in this case", "add `at 0s:`"),
    ],
)
def test_what_cannot_be_played(case: str, line: int, path: str, message: str, hint: str) -> None:
    problem = refused(case)
    assert (problem.line, problem.path) == (line, path), problem
    assert message in problem.message
    assert hint in problem.hint


def test_a_decoder_of_text_takes_lines_not_rows() -> None:
    text = PRESS.replace(
        "file: {path: x}", "file: {path: x}\n    decode:\n      regex: {pattern: '(?P<sensor>\\w+) (?P<temp_c>.+)'}"
    )
    text = text.replace("event_time: true, unit: ms", "event_time: true, from: meta.received_at").replace(
        "  machine: {type: string, default: m1}\n", ""
    )
    text = text.replace("    by: [machine]\n", "").replace("{machine}", "press")
    passes("at 5s: {lines: a 20, expect: {rows: [{sensor: a, temp_c: 20, ts: 5s}]}}", text)
    assert "write its text as `lines: |`" in refused("at 0s: {rows: [{sensor: a}]}", text).message


def test_two_cases_of_one_name() -> None:
    with pytest.raises(SpecError, match='two cases are named "a"'):
        load_cases("cases:\n  - {name: a, expect: {}}\n  - {name: a, expect: {}}\n")


def test_plans_are_compiled_once_for_cases_that_start_from_the_same() -> None:
    cases = load_cases("cases:\n" + "".join(f"  - {{name: c{i}, at 0s: {{expect: {{nothing: true}}}}}}\n" for i in range(3)))
    player = Player(load_spec(PRESS), cases)
    assert not [failure for i in range(3) for failure in player.play(i).failures]
    assert len(player._plans) == 1
