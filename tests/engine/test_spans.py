"""Texts where they lie in a block: what the vectors say of them is what a look at each text says."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipelines.engine.records.spans import Spans, differ, find

TEXTS = st.lists(st.tuples(st.text("a,;é\0", max_size=4), st.sampled_from(["", "\n", ",", "\r\n,"])), min_size=1, max_size=12)


def laid(pieces: list[tuple[str, str]]) -> tuple[list[str], Spans]:
    """The texts, and where they lie in a block with other bytes between them."""
    block, starts, stops = b",", [], []
    for text, behind in pieces:
        starts.append(len(block))
        block += text.encode()
        stops.append(len(block))
        block += behind.encode()
    return [text for text, _ in pieces], Spans(np.frombuffer(block, np.uint8), np.array(starts), np.array(stops))


@given(TEXTS)
def test_texts_are_copied_as_they_lie(pieces: list[tuple[str, str]]) -> None:
    texts, spans = laid(pieces)
    for found in (spans, Spans.of(pa.array(["x", *texts])[1:])):
        made = found.texts()
        made.validate(full=True)
        assert made.to_pylist() == texts
        assert found.pick(slice(1, None)).texts().to_pylist() == texts[1:]
        assert found.pick(np.array([i % 2 == 0 for i in range(len(texts))])).texts().to_pylist() == texts[::2]


@given(TEXTS, st.sampled_from([",", ";", "é"]), st.integers(0, 3))
def test_a_text_is_cut_where_its_marks_are(pieces: list[tuple[str, str]], mark: str, count: int) -> None:
    texts, spans = laid(pieces)
    marks, odd = spans.cut(mark.encode(), count)
    told = odd if odd is not None else np.zeros(len(texts), np.bool_)
    assert told.tolist() == [text.encode().count(mark.encode()) != count for text in texts]
    for i, text in enumerate(texts):
        if not told[i]:
            assert [text.encode()[at - spans.starts[i] :][: len(mark.encode())] for at in marks[i]] == [mark.encode()] * count
            assert (np.diff(marks[i]) > 0).all()


@given(st.binary(min_size=1, max_size=40), st.binary(min_size=1, max_size=20), st.data())
def test_other_bytes_are_seen_at_every_place(block: bytes, text: bytes, data: st.DataObject) -> None:
    there = len(block)
    block += text + block
    places = data.draw(st.lists(st.one_of(st.integers(0, len(block) - len(text)), st.just(there)), max_size=5))
    other = differ(np.frombuffer(block, np.uint8), np.array(places, np.int64), text)
    expected = [block[at : at + len(text)] != text for at in places]
    assert (other.tolist() if other is not None else [False] * len(places)) == expected


@given(st.text("ab,", max_size=30).map(str.encode), st.sampled_from([b",", b"ab", b"a,b"]), st.integers(0, 5))
def test_marks_are_found(block: bytes, mark: bytes, start: int) -> None:
    expected = [at for at in range(start, len(block)) if block.startswith(mark, at)]
    assert find(np.frombuffer(block, np.uint8), mark, start, len(block)).tolist() == expected
