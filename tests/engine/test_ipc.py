"""Payloads: a table is read as it was written, and what is none, or grows beyond the limits, is refused."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contract.errors import Refused
from pipelines.engine import ipc
from pipelines.engine.ipc import TIMESTAMP, decode_rows, encode_rows

TIMES = st.lists(st.one_of(st.none(), st.integers(0, 2**40)), max_size=30)


def stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


@given(TIMES, st.data())
def test_a_table_comes_back_as_it_was(times: list[int | None], data: st.DataObject) -> None:
    n = len(times)
    texts = st.lists(st.one_of(st.none(), st.text("ab", max_size=2), st.text(max_size=5)), min_size=n, max_size=n)
    other = data.draw(st.one_of(st.just(times), st.permutations(times)))
    table = pa.table(
        {
            "_event_time": pa.array(times, TIMESTAMP),
            "s": pa.array(data.draw(texts), pa.string()),
            "ts": pa.array(other, TIMESTAMP),
            "naive": pa.array(times, pa.timestamp("us")),
            "l": pa.array([[text] for text in data.draw(texts)], pa.list_(pa.string())),
        }
    )
    columns = data.draw(st.permutations(table.column_names))
    table = pa.concat_tables([table.select(columns).slice(0, n // 2), table.select(columns).slice(n // 2)])
    found = decode_rows(encode_rows(table))
    assert found.equals(table)
    assert found.schema.equals(table.schema, check_metadata=True)


def test_what_repeats_is_written_once() -> None:
    n = 10_000
    at = pa.array(range(1_767_225_600_000_000, 1_767_225_600_000_000 + n * 7919, 7919), TIMESTAMP)
    names, others = pa.array([f"press-{i * 7919 % 100}" for i in range(n)]), pa.array([f"x{i * 7919 % n}" for i in range(n)])
    twice = pa.table({"_event_time": at, "ts": at, "s": names})
    once = pa.table({"ts": at, "s": names})
    assert len(encode_rows(twice)) < len(encode_rows(once)) + 200
    assert len(encode_rows(once)) < len(stream(once)) / 3
    assert pa.ipc.open_stream(encode_rows(pa.table({"s": others}))).schema.field("s").type == pa.string()


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"a": [1]}).replace_schema_metadata({"event_time": "b"}),
        pa.table([pa.array([1]), pa.array([1])], ["a", "a"]).replace_schema_metadata({"event_time": "a"}),
        pa.table({"a": [1]}).replace_schema_metadata({"event_time": b"\xff"}),
        pa.table({"a": pa.DictionaryArray.from_arrays([0], [1])}),
        pa.table({"a": pa.DictionaryArray.from_arrays(pa.array([5], pa.int8()), ["x"], safe=False)}),
        pa.table({"a": pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int8()), ["x" * (ipc.BYTES_MAX // 999)])}),
    ],
    ids=["no twin", "two twins", "a name that is no text", "numbers", "an index out of range", "a bomb"],
)
def test_what_is_no_payload_is_refused(table: pa.Table) -> None:
    with pytest.raises(Refused):
        decode_rows(stream(table))
