"""References in settings: found, checked where they may stand, filled in once, never empty."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contract.interpolate import (
    Reference,
    Unset,
    Values,
    check,
    masked,
    needs,
    references,
    resolve,
    secrets_of_runner,
    taken,
)

VALUES = Values({"n": 4, "f": 85.0, "on": True, "empty": ""}, {"broker": "mqtt1"}, {"key": "s3cret"})


def pipeline(**parts: Any) -> dict[str, Any]:
    return {"pipeline": "p", "params": {"port": {"type": "integer"}}, **parts}


def webhook(**settings: Any) -> dict[str, Any]:
    return pipeline(triggers={"hot": {"when": "v > 1", "actions": {"on_raise": [{"webhook": settings}]}}})


def problems(data: dict[str, Any]) -> list[tuple[str, str]]:
    return [(problem.path, problem.message) for problem in check(data)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("http://${label:broker}:${param:n}/${secret:key}", "http://mqtt1:4/s3cret"),
        ("${param:f} ${param:on}", "85 true"),
        ("$${label:broker} $x ${ {}", "${label:broker} $x ${ {}"),
    ],
)
def test_references_are_replaced_in_one_pass(text: str, expected: str) -> None:
    assert resolve(text, VALUES) == expected
    assert resolve({"a": [text, 7, None]}, VALUES) == {"a": [expected, 7, None]}


@given(st.text(alphabet="${}:abparmsecrt", max_size=40))
def test_what_a_value_says_is_never_resolved_again(value: str) -> None:
    """A parameter that spells a reference must not read a secret."""
    hostile = Values({"x": value + "${secret:key}$"}, {}, {"key": "s3cret"})
    assert resolve("${param:x}", hostile) == value + "${secret:key}$"
    assert "s3cret" not in resolve("${param:x}{secret:key}", hostile)


@pytest.mark.parametrize("text", ["${param:none}", "${label:none}", "${secret:none}", "${param:empty}"])
def test_what_is_not_set_or_empty_is_an_error_with_the_way_out(text: str) -> None:
    with pytest.raises(Unset) as error:
        resolve(text, VALUES)
    assert references(text)[0].name in str(error.value) and references(text)[0].name in error.value.hint


def test_a_pipeline_needs_what_its_settings_refer_to() -> None:
    data = webhook(url="https://${label:pager}/${secret:path}", headers={"X": "${secret:path}"})
    data["steps"] = [{"redact": {"badge": {"hash": {"key": "${secret:badge}"}}}}]
    data["sources"] = {"log": {"file": {"path": ["/${label:line}/*"]}}}
    assert set(map(str, needs(data))) == {"${label:pager}", "${secret:path}", "${secret:badge}", "${label:line}"}
    assert secrets_of_runner(data) == {"badge"}
    assert not problems(data)


@pytest.mark.parametrize(
    ("parts", "path", "message"),
    [
        ({"sources": {"s": {"file": {"path": ["${secret:x}"]}}}}, "sources.s.file.path[0]", "cannot stand here"),
        ({"steps": [{"redact": {"b": {"hash": {"key": "${param:port}"}}}}]}, "steps[0].redact.b.hash.key", "cannot stand here"),
        ({"steps": [{"filter": "v > ${param:port}"}]}, "steps[0].filter", "cannot stand here"),
        ({"triggers": {"t": {"message": "at ${label:x}"}}}, "triggers.t.message", "cannot stand here"),
        ({"sources": {"s": {"file": {"path": ["${HOME}/x"]}}}}, "sources.s.file.path[0]", '"${HOME}" is no reference'),
        ({"sources": {"s": {"file": {"path": ["${label:"]}}}}, "sources.s.file.path[0]", "is no reference"),
        ({"sources": {"s": {"file": {"path": ["${params:x}"]}}}}, "sources.s.file.path[0]", 'did you mean "param"'),
        ({"sources": {"s": {"file": {"path": ["${param:prt}"]}}}}, "sources.s.file.path[0]", 'did you mean "port"'),
    ],
)
def test_a_wrong_reference_is_found_before_it_ships(parts: dict[str, Any], path: str, message: str) -> None:
    [(where, what)] = problems(pipeline(**parts))
    assert where == path and message in what


@pytest.mark.parametrize("action", [{"log": {"message": "${secret:x}"}}, {"exec": {"program": "/bin/${secret:x}"}}])
@pytest.mark.parametrize("escalated", [False, True])
def test_no_secret_where_it_would_be_told(action: dict[str, Any], escalated: bool) -> None:
    trigger = {"escalate": [{"after": "5m", "actions": [action]}]} if escalated else {"actions": {"on_raise": [action]}}
    assert len(problems(pipeline(triggers={"t": trigger}))) == 1


def test_patterns_of_decoders_may_look_like_references() -> None:
    assert not problems(pipeline(sources={"s": {"decode": {"regex": {"pattern": "a${HOME}"}}}}))


def test_what_is_kept_beside_stored_settings_holds_no_secret() -> None:
    kept = taken({"url": "http://${label:broker}/${param:n}", "headers": {"a": "${secret:key}"}}, VALUES)
    assert kept == {"params": {"n": 4}, "labels": {"broker": "mqtt1"}}


def test_values_do_not_print_secrets_and_texts_can_be_masked() -> None:
    assert "s3cret" not in repr(VALUES) and str(Reference("secret", "key")) == "${secret:key}"
    assert masked("a s3cret and a s3cret2", {"a": "s3cret", "b": "s3cret2"}) == "a *** and a ***"
    assert masked("port 's3cr'; %26%2Bx; ab", {"a": "s3cret", "b": "&+x y", "c": "ab"}) == "port '***'; ***; ***"


@given(st.text(min_size=4, max_size=30), st.text(max_size=20), st.data())
def test_no_four_characters_of_a_secret_are_told(secret: str, around: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(secret) - 4))
    told = masked(around + secret[start:] + around, {"x": secret})
    assert all(secret[i : i + 4] not in told for i in range(len(secret) - 3)) or "***" in secret
