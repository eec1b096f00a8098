"""The pure folds: parameters, manifests, differences (I5, I6)."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contract.errors import Refused
from pipelines.contract.folds import differences, effective_params
from pipelines.contract.keys import Key
from pipelines.contract.node_state import (
    Assignment,
    Manifest,
    Note,
    Reported,
    Setting,
    SignedManifest,
)

KEY = Key.from_entropy(bytes([1]) * 32)
DEFAULTS = {"limit": 85}


def note(seq: int, value: int, after: int = 1, kind: str = "param") -> Note:
    body = {"name": "limit", "value": value} if kind == "param" else {"name": "limit"}
    return Note("n1", seq, kind, "press", body, "m.durand", "hot", after)


def effective(setting: Setting | None, *notes: Note) -> object:
    assignment = Assignment("sha256:1", 1, {"limit": setting} if setting else {})
    return effective_params(DEFAULTS, assignment, notes, node="n1", pipeline="press")["limit"]


CENTRAL = Setting(70, "rule:1", generation=5)


@pytest.mark.parametrize(
    ("setting", "notes", "value", "losing"),
    [
        (None, (), 85, ()),
        (CENTRAL, (), 70, (("default", 85),)),
        (CENTRAL, (note(1, 60),), 60, (("rule:1", 70), ("default", 85))),
        (None, (note(1, 60),), 60, (("default", 85),)),
        (CENTRAL, (note(1, 60), note(2, 0, kind="unset")), 70, (("default", 85),)),
        (replace(CENTRAL, force=True), (note(1, 60, after=4),), 70, (("on-site", 60), ("default", 85))),
        (replace(CENTRAL, force=True), (note(1, 60, after=5),), 60, (("rule:1", 70), ("default", 85))),
        (replace(CENTRAL, locked=True), (note(1, 60, after=9),), 70, (("on-site", 60), ("default", 85))),
    ],
)
def test_the_ladder_of_a_parameter(setting: Setting | None, notes: tuple[Note, ...], value: int, losing: object) -> None:
    found = effective(setting, *notes)
    assert (found.value, found.losing) == (value, losing)  # type: ignore[attr-defined]


def test_notes_of_others_change_nothing() -> None:
    foreign = [replace(note(1, 60), author="n2"), replace(note(1, 60), subject="oven"), replace(note(1, 60), author="control")]
    assert effective(CENTRAL, *foreign) == effective(CENTRAL)


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 9), st.sampled_from(["param", "unset"])), max_size=8), st.randoms())
def test_the_fold_does_not_depend_on_order_or_duplication(steps: list[tuple[int, int, str]], dice: random.Random) -> None:
    notes = [note(seq, value, after, kind) for seq, (value, after, kind) in enumerate(steps, 1)]
    shuffled = notes + dice.sample(notes, k=len(notes) // 2)
    dice.shuffle(shuffled)
    for setting in (None, CENTRAL, replace(CENTRAL, force=True), replace(CENTRAL, locked=True)):
        assert effective(setting, *shuffled) == effective(setting, *notes)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
settings_ = st.builds(
    Setting, scalars, st.text(max_size=5), generation=st.integers(0, 9), force=st.booleans(), locked=st.booleans()
)
assignments = st.builds(
    Assignment, st.text(max_size=5), st.integers(), st.dictionaries(st.text(max_size=5), settings_, max_size=3)
)
manifests = st.builds(
    Manifest,
    st.just("n1"),
    st.integers(0, 9),
    st.integers(0, 9),
    st.dictionaries(st.text(max_size=5), assignments, max_size=3),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
)


@given(manifests)
def test_i13_a_manifest_comes_back_only_for_its_node_and_from_its_signer(manifest: Manifest) -> None:
    signed = SignedManifest.sign(manifest, KEY)
    assert signed.open("n1", KEY.public) == manifest
    assert signed.open("n1", KEY.public).to_bytes() == manifest.to_bytes()
    for bad, node, public in [
        (signed, "n2", KEY.public),
        (signed, "n1", Key.from_entropy(bytes([2]) * 32).public),
        (replace(signed, body=signed.body + b" "), "n1", KEY.public),
    ]:
        with pytest.raises(Refused):
            bad.open(node, public)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"format":2}', b'{"format":1}', b'{"format":1,"assignments":[]}', b"[" * 100_000]
)
def test_what_is_no_manifest_is_refused(body: bytes) -> None:
    with pytest.raises(Refused):
        Manifest.from_bytes(body)


@pytest.mark.parametrize("artifacts", [["assets"], "assets", {"assets": 1}, {"assets": None}, None, 7])
def test_artifacts_of_a_manifest_are_digests_by_name(artifacts: object) -> None:
    body = json.loads(Manifest("n1", 1, 1, {"p": Assignment("sha256:1", 1)}).to_bytes())
    body["assignments"]["p"]["artifacts"] = artifacts
    with pytest.raises(Refused, match="not a manifest"):
        Manifest.from_bytes(json.dumps(body).encode())


@given(st.text())
def test_any_text_is_a_report_or_a_note_or_refused(text: str) -> None:
    for read in (Reported.from_json, Note.from_json):
        with pytest.raises(Refused):
            read(text)


WANTED = Manifest("n1", 1, 1, {"press": Assignment("sha256:2", 2)})


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        ({}, {"press": "wanted version 2, nothing reported"}),
        ({"press": Reported("sha256:1", 1, "running")}, {"press": "wanted version 2, version 1 reported"}),
        ({"press": Reported("sha256:2", 2, "running")}, {}),
        ({"press": Reported("sha256:2", 2, "failed", reason="no file")}, {"press": "failed: no file"}),
        ({"press": Reported("sha256:2", 2, "pending")}, {"press": "pending"}),
        (
            {"press": Reported("sha256:2", 2, "running"), "oven": Reported("sha256:9", 1, "running")},
            {"oven": "version 1 is running though nothing wants it"},
        ),
        ({"press": Reported("sha256:2", 2, "running"), "oven": Reported("sha256:9", 1, "stopped")}, {}),
    ],
)
def test_i6_differences_name_every_pipeline_that_is_not_as_wanted(
    reported: dict[str, Reported], expected: dict[str, str]
) -> None:
    assert differences(WANTED, reported) == expected


def test_what_could_not_be_written_again_is_no_report_and_no_note() -> None:
    report, note = Reported("sha256:d", 1, "failed", reason="why").to_json(), Note("n1", 1, "comment", "press").to_json()
    assert Reported.from_json(report).to_json() == report and Note.from_json(note).to_json() == note
    for wrong in (report.replace("why", "\\ud800"), report.replace('"params":{}', '"params":{"x":NaN}'), f" {report}"):
        assert wrong != report
        with pytest.raises(Refused):
            Reported.from_json(wrong)
    for wrong in (note.replace('"body":{}', '"body":{"x":NaN}'), note.replace("press", "\\ud800"), f"{note} "):
        assert wrong != note
        with pytest.raises(Refused):
            Note.from_json(wrong)
