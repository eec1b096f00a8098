from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.selector import Selector, check_label, parse_selector
from pipelines.contract.errors import WrongUsage

LYON_A = {"site": "lyon", "line": "a"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("*", True),
        ("all", True),
        ("site=lyon", True),
        ("site==lyon", True),
        ("site=paris", False),
        ("site!=paris", True),
        ("site!=lyon", False),
        ("rack!=7", True),  # a node without the label is not in rack 7
        ("line in (a,b)", True),
        ("line in ( b , c )", False),
        ("line notin (b,c)", True),
        ("line", True),
        ("!line", False),
        ("!spare", True),
        ("name=pi17", True),
        ("name in (pi1,pi2)", False),
        ("site=lyon,line in (a,b),!spare", True),
        ("site=lyon,line in (b,c)", False),
    ],
)
def test_selects(text: str, expected: bool) -> None:
    assert parse_selector(text).matches("pi17", LYON_A) is expected


def test_local_labels_match_only_selectors_that_name_them() -> None:
    labels = {"local.site": "lyon"}
    assert not parse_selector("site=lyon").matches("pi", labels)
    assert parse_selector("local.site=lyon").matches("pi", labels)


@pytest.mark.parametrize(
    "text", ["site=", "=lyon", "site=lyon,,line=a", "site lyon", "line in a,b", "line in (a,)", "!site=lyon", "a=b c"]
)
def test_nonsense_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(WrongUsage) as caught:
        parse_selector(text)
    assert (caught.value.hint and repr(text) in str(caught.value)) or "is not a value" in str(caught.value)


words = st.from_regex(r"[a-z][a-z0-9.-]{0,8}", fullmatch=True)
requirements = st.one_of(
    words,
    words.map(lambda w: f"!{w}"),
    st.tuples(words, st.sampled_from(["=", "!="]), words).map("".join),
    st.tuples(words, st.sampled_from([" in ", " notin "]), st.lists(words, min_size=1)).map(
        lambda t: f"{t[0]}{t[1]}({','.join(t[2])})"
    ),
)


@given(st.lists(requirements, max_size=4), st.dictionaries(words, words), words)
def test_the_canonical_text_means_the_same(parts: list[str], labels: dict[str, str], name: str) -> None:
    selector = parse_selector(",".join(parts))
    again = parse_selector(str(selector))
    assert again == selector and again.matches(name, labels) == selector.matches(name, labels)


@given(st.text())
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        assert isinstance(parse_selector(text), Selector)
    except WrongUsage as error:
        assert error.hint


@pytest.mark.parametrize(("key", "value"), [("name", "x"), ("local.a", "x"), ("a b", "x"), ("a", ""), ("a", "x,y"), ("1a", "x")])
def test_labels_no_selector_could_spell_are_refused(key: str, value: str) -> None:
    with pytest.raises(WrongUsage):
        check_label(key, value)
