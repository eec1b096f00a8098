"""Arrow tables as the payload of a segment: one IPC stream, zstd.

What rows say twice is written once: texts that repeat go as a dictionary, and event times that another column has already go as
that column's name. Reading gives the table back as it was.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.errors import Refused

ROWS_MAX = 1_000_000
BYTES_MAX = 16 * 1024 * 1024
TIMESTAMP = pa.timestamp("us", tz="UTC")

_STAMP = "_event_time"
_SAME_AS = b"event_time"  # in the stream's metadata: the column that `_event_time` is the same as
_LOOK, _FEW = 1024, 64  # so many texts are looked at first; a dictionary has no more than one for so many rows, or so many in all
_INDEX = pa.int16()
_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)  # for a segment, handing columns to threads costs more
_INLINE = pa.ipc.IpcReadOptions(use_threads=False)  # than it saves


def encode_rows(table: pa.Table) -> bytes:
    table = _without_twin(table.combine_chunks())
    for at, field in enumerate(table.schema):
        if field.type == pa.string() and (found := _dictionary(table[at])) is not None:
            table = table.set_column(at, field.with_type(found.type), found)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=_OPTIONS) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def decode_rows(payload: bytes) -> pa.Table:
    """The rows of a segment. Raises `Refused` on anything that is not one, or that grows beyond the limits."""
    batches, rows, size = [], 0, 0
    try:
        with pa.ipc.open_stream(payload, options=_INLINE) as reader:
            schema = reader.schema
            for batch in reader:
                rows, size = rows + batch.num_rows, size + batch.nbytes
                _check_size(rows, size)
                batch.validate(full=True)
                size += sum(_decoded_bytes(column) for column in batch.columns)
                _check_size(rows, size)
                batches.append(batch)
        return _with_twin(_plain(pa.Table.from_batches(batches, schema)))
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        raise Refused(f"not an Arrow stream: {error}", op="decode rows") from None


def _check_size(rows: int, size: int) -> None:
    if rows > ROWS_MAX or size > BYTES_MAX:
        raise Refused(f"more than {ROWS_MAX} rows or {BYTES_MAX} bytes in one segment", op="decode rows")


def _without_twin(table: pa.Table) -> pa.Table:
    if table.column_names[:1] == [_STAMP]:
        for name in table.column_names[1:]:
            if table.schema.field(name).type == table.schema.field(0).type and table[name].equals(table[0]):
                return table.drop_columns([_STAMP]).replace_schema_metadata({_SAME_AS: name})
    return table


def _with_twin(table: pa.Table) -> pa.Table:
    """Raises KeyError for a twin that there is not."""
    same_as = (table.schema.metadata or {}).get(_SAME_AS)
    if same_as is None:
        return table
    return table.replace_schema_metadata().add_column(0, _STAMP, table[same_as.decode()])


def _dictionary(texts: pa.ChunkedArray) -> pa.Array | None:
    """None where they do not repeat."""
    if len(pc.unique(texts.slice(0, _LOOK))) > max(2, min(len(texts), _LOOK) // 8):
        return None
    found = texts.combine_chunks().dictionary_encode()
    if len(found.dictionary) > min(32_767, max(_FEW, len(texts) // _FEW)):
        return None
    return pa.DictionaryArray.from_arrays(found.indices.cast(_INDEX), found.dictionary)


def _decoded_bytes(column: pa.Array) -> int:
    if not pa.types.is_dictionary(column.type):
        return 0
    return pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0


def _plain(table: pa.Table) -> pa.Table:
    for at, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            type_ = field.type.value_type
            table = table.set_column(at, field.with_type(type_), table[at].cast(type_))
    return table
