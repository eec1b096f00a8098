"""The canonical form: fmt changes what a file looks like, never what it says."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contract.errors import SpecError
from pipelines.contract.spec import load_spec
from pipelines.contract.yaml_reader import read
from pipelines.tools.cases import load_cases
from pipelines.tools.fmt import _comment_texts, format_text
from tests.docs.blocks import blocks

ROOT = Path(__file__).parents[2]
FILES = sorted(
    [*(ROOT / "pipelines").rglob("*.yaml"), *(ROOT / "control_plane").rglob("*.yaml"), *(ROOT / "tests").rglob("*.yaml")]
)
DOCS = [
    (path.name, block.text)
    for path in sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
    for block in blocks(path)
    if block.info == "yaml"
]


def check(text: str, file: str) -> str:
    """`text` in canonical form, having checked all that is promised of it."""
    made = format_text(text, file)
    assert format_text(made, file) == made, "not idempotent"
    assert _comment_texts(made) == _comment_texts(text), "a comment got lost"
    assert made.endswith("\n") and not made.endswith("\n\n")
    assert re.search(r"[ \t]+$", text, re.MULTILINE) or not re.search(r"[ \t]+$", made, re.MULTILINE)
    return made


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_keep_their_meaning(path: Path) -> None:
    text = path.read_text()
    made = check(text, path.name)
    if path.name.endswith(".cases.yaml"):
        assert load_cases(made).model_dump() == load_cases(text).model_dump()
    elif "pipeline:" in text:
        assert load_spec(made).canonical_bytes() == load_spec(text).canonical_bytes()


@pytest.mark.parametrize(("name", "text"), DOCS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(DOCS)])
def test_pipelines_of_the_docs_keep_their_meaning(name: str, text: str) -> None:
    assert load_spec(check(text, name)).canonical_bytes() == load_spec(text).canonical_bytes()


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").rglob("*.yaml")), ids=lambda path: path.name)
def test_what_we_ship_is_in_canonical_form(path: Path) -> None:
    assert format_text(path.read_text(), path.name) == path.read_text(), "run: tidewire fmt pipelines"


MESSY = dedent("""\
    # a licence

    sinks:                      # where it goes
      # the only one
      r: {lake: {table: t}, where: a > 3, from: w}   # trailing
      # foot of sinks

    tidewire: 1   # language
    pipeline:    p


    sources:
        s:
            # in s
            file:
              path: [a, b]   # list
            decode: {csv: {
                delimiter: ";",   # semi
                columns: [a, b]
            }}
    schema: {a: {type: double}, b: {type: string, one_of: ["no", 'yes', off, "it's", "a # b"]}}
    steps:
    - filter: "a <> 3"
    - filter: >-
        a > 3
          and b = 'x'
        # not a comment
      # after folded
    - derive:
        x: |
          a + 1
        y: "'a # b'"
        z: "%s"
        # foot of derive
    # foot of steps
    windows:
      w: {every: 1m, select: {m: "quantile(a, 0.5)", n: count(*)}, by: [b]}
    # the end
    """) % " and ".join(["a > 3"] * 30)

NEAT = dedent("""\
    # a licence

    tidewire: 1   # language
    pipeline: p

    sources:
      s:
        # in s
        file:
          path: [a, b]       # list
        decode:
          csv:
            delimiter: ";"  # semi
            columns: [a, b]
    schema: {a: {type: double}, b: {type: string, one_of: ["no", "yes", off, "it's", "a # b"]}}
    steps:
      - filter: a <> 3
      - filter: >-
          a > 3
            and b = 'x'
          # not a comment
        # after folded
      - derive:
          x: |
            a + 1
          y: "'a # b'"
          z: >-
            {fold}
          # foot of derive
    # foot of steps
    windows:
      w:
        every: 1m
        by: [b]
        select:
          m: quantile(a, 0.5)
          n: count(*)
    sinks:                      # where it goes
      # the only one
      r:  # trailing
        lake: {table: t}
        from: w
        where: a > 3
      # foot of sinks
    # the end
    """)


def test_a_messy_file() -> None:
    made = check(MESSY, "p.yaml")
    folded = re.search(r"z: >-\n((?: {8}.*\n)+?)(?= {6}#)", made)
    assert folded and all(len(line) <= 110 for line in folded[1].splitlines())
    fold = folded[1].strip()
    assert made == NEAT.replace("{fold}", fold)
    assert read(made).data["steps"][2]["derive"]["z"] == " and ".join(["a > 3"] * 30)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a: 'x'", 'a: "x"'),
        ("a: 'it''s'", 'a: "it\'s"'),
        ("a: '\\d+'", "a: '\\d+'"),
        ('a: "\\\\d \' +"', "a: '\\d '' +'"),
        ('a: "tab\\t"', 'a: "tab\\t"'),
        ("a: on", "a: on"),
        ('a: "on"', 'a: "on"'),
        ("a:   1.50", "a: 1.50"),
        ("a: ~", "a: ~"),
        ("a:", "a:"),
        ("a: {}", "a: {}"),
        ("a: []", "a: []"),
        ("a: [ x,y ]", "a: [x, y]"),
        ("a: {b: , c: 1}", None),
        ("a:\n- x\n-   y", "a:\n  - x\n  - y"),
        ("a:\n- - x\n  - y\n- z", "a:\n  - - x\n    - y\n  - z"),
        ("a:\n-\n  x: 1\n  y: 2", "a:\n  - x: 1\n    y: 2"),
        ("a: long\n  text", "a: long text"),
        ('"a": 1', "a: 1"),
        ('"on": 1', '"on": 1'),
        ("a b: 1", "a b: 1"),
        ("a: |+\n  x\n\nb: 1", 'a: "x\\n\\n"\n\nb: 1'),
        ("a: |2\n    x", 'a: "  x\\n"'),
        ("a: |-\n  x", "a: |-\n  x"),
        ("a: |\n  x \n  y\t\nb:  1", 'a: "x \\ny\\t\\n"\nb: 1'),
        ("a: |\n  x \n  y\nb:  1 ", "a: |\n  x \n  y\nb: 1"),
        ("a: |\n  x\n     \n  y\nb: 1", 'a: "x\\n   \\ny\\n"\nb: 1'),
        ("---\na: 1", "a: 1"),
        ("\ufeffa: 1\r\nb: 2", "a: 1\nb: 2"),
        ("a: 1 # x\n\n\n\nb: 2", "a: 1 # x\n\nb: 2".replace(" #", "  #")),
    ],
)
def test_small_things(before: str, after: str | None) -> None:
    if after is None:
        with pytest.raises(SpecError):
            format_text(before)
        return
    assert check(f"{before}\n", "x.yaml") == f"{after}\n"


def test_a_block_of_text_at_the_end_of_a_file_without_a_line_end() -> None:
    assert check("a: |\n  x", "x.yaml") == "a: |-\n  x\n"


def test_what_is_not_yaml_is_refused() -> None:
    with pytest.raises(SpecError):
        format_text("a: [", "x.yaml")


_WORDS = st.sampled_from(
    [
        *"abc",
        "on",
        "1",
        "it's",
        "a # b",
        "a: b",
        "#x",
        "- x",
        "x,y",
        "{x}",
        "a\nb",
        " x ",
        "",
        "é",
        "\\d",
        '"q"',
        "%",
        "!x",
        "?",
        "|",
        ">",
    ]
)
_DATA = st.recursive(
    _WORDS | st.integers(-5, 5) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS.filter(bool), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["steps", "sinks", "schema", "x"]), _DATA, min_size=1), st.booleans(), st.randoms())
def test_any_file_keeps_its_meaning(data: dict[str, object], flow: bool, random: object) -> None:
    import yaml

    text = yaml.safe_dump(data, default_flow_style=flow, allow_unicode=True, sort_keys=False)
    chance = random.random  # type: ignore[attr-defined]
    lines = [f"{line}  # c{i}" if _can_end(line) and chance() < 0.3 else line for i, line in enumerate(text.splitlines())]
    commented = "\n".join(lines) + "\n"
    for version in (text, commented):
        try:
            before = read(version).data
        except SpecError:
            continue
        assert read(check(version, "x.yaml")).data == before


def _can_end(line: str) -> bool:
    return line.endswith(("]", "}", "true", "false", "null", ":")) and "'" not in line and '"' not in line
