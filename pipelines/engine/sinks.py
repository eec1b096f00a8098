"""What a sink takes of the rows of its stream."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pyarrow as pa

from pipelines.contract.language.sinks import Sink
from pipelines.contract.spec_problems import did_you_mean
from pipelines.engine.bind import Binder


def check_select(binder: Binder, streams: Mapping[str | None, Collection[str]]) -> None:
    """`streams`: the columns of each stream that is bound, under the name that `from:` calls it; None are the accepted rows."""
    for name, sink in binder.spec.sinks.items():
        known = [column for column in streams.get(sink.from_, ()) if not column.startswith("_")]
        for i, column in enumerate(sink.select or () if sink.from_ in streams else ()):
            if column not in known:
                message = f'column "{column}" is not in the rows{did_you_mean(column, known)}'
                binder.complain(f"sinks.{name}.select[{i}]", message, f"they have {', '.join(known)}")


def narrowed(sink: Sink, stream: pa.Table) -> pa.Table:
    """The columns that the sink takes, besides those that are Tidewire's own."""
    if sink.select is None:
        return stream
    return stream.select([*(name for name in stream.schema.names if name.startswith("_")), *sink.select])
