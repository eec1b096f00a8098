"""Arrow tables as the payload of a segment: one IPC stream, zstd."""

from __future__ import annotations

import pyarrow as pa

from pipelines.contract.errors import Refused

ROWS_MAX = 1_000_000
BYTES_MAX = 16 * 1024 * 1024
TIMESTAMP = pa.timestamp("us", tz="UTC")

_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")
_INLINE = pa.ipc.IpcReadOptions(use_threads=False)  # for a segment, handing columns to threads costs more than it saves


def encode_rows(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=_OPTIONS) as writer:
        writer.write_table(table.combine_chunks())
    return bytes(sink.getvalue())


def decode_rows(payload: bytes) -> pa.Table:
    """The rows of a segment. Raises `Refused` on anything that is not one, or that grows beyond the limits."""
    batches, rows, size = [], 0, 0
    try:
        with pa.ipc.open_stream(payload, options=_INLINE) as reader:
            schema = reader.schema
            for batch in reader:
                rows, size = rows + batch.num_rows, size + batch.nbytes
                if rows > ROWS_MAX or size > BYTES_MAX:
                    raise Refused(f"more than {ROWS_MAX} rows or {BYTES_MAX} bytes in one segment", op="decode rows")
                batch.validate(full=True)
                batches.append(batch)
    except (pa.ArrowException, OSError) as error:
        raise Refused(f"not an Arrow stream: {error}", op="decode rows") from None
    return pa.Table.from_batches(batches, schema)
