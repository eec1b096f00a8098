"""The bytes of a lookup table's CSV as columns of text: the same for a file of the node, an artifact, and whoever checks one."""

from __future__ import annotations

import pyarrow as pa
from pyarrow import csv

from pipelines.contract.language.lookups import LOOKUP_BYTES_MAX, LOOKUP_ROWS_MAX


def read_table(data: bytes) -> pa.Table:
    """Every column as text, an empty field as "". Raises `ValueError` in one line for what is no table."""
    if len(data) > LOOKUP_BYTES_MAX:
        raise ValueError(f"it has more than {LOOKUP_BYTES_MAX >> 20} MiB")
    parse = csv.ParseOptions(newlines_in_values=True)
    try:
        with csv.open_csv(pa.BufferReader(data), parse_options=parse) as first:
            names = first.schema.names
        _check_names(names)
        convert = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
        read = csv.ReadOptions(use_threads=False)
        table = csv.read_csv(pa.BufferReader(data), read_options=read, parse_options=parse, convert_options=convert)
    except pa.ArrowException as error:
        raise ValueError(str(error).splitlines()[0][:200]) from None
    if table.num_rows > LOOKUP_ROWS_MAX:
        raise ValueError(f"it has {table.num_rows} rows, {LOOKUP_ROWS_MAX} are the most")
    return table


def _check_names(names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two columns are called {twice[0]}")
