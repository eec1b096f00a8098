"""Every way out of the node, checked for columns that carry what must not leave it (`sensitive: true`) and were not redacted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipelines.engine.bind import Binder, Columns

_HINT = "redact it in a step, or leave it out with drop:"


def refuse_sensitive(binder: Binder, path: str, leaving: Iterable[str], columns: Columns, hint: str = _HINT) -> None:
    """Complain of each column that leaves at `path` and is sensitive."""
    for name in leaving:
        if name in columns and columns[name].sensitive:
            binder.complain(path, f'column "{name}" is sensitive and not redacted', hint)


def _coarser(event_time: str) -> str:
    return f"make it coarser: redact: {{{event_time}: {{generalise: {{to: 1h}}}}}}"


def check_exits(binder: Binder, columns: Columns, windows: Mapping[str, Columns], event_time: str) -> None:
    """Of sinks, and of the groups that incidents and window rows are named by. `columns` are those of an accepted row, `windows`
    those of each window's rows, `event_time` the field that stamps rows if that is still sensitive, else ""."""
    spec = binder.spec
    for name, sink in spec.sinks.items():
        rows = windows.get(sink.from_, {}) if sink.from_ in spec.windows else columns
        refuse_sensitive(binder, f"sinks.{name}", sink.select or rows, rows)
        if event_time:
            message = f'"{event_time}" is sensitive and leaves with every row as its event time'
            binder.complain(f"sinks.{name}", message, _coarser(event_time))
    for name, trigger in spec.triggers.items():
        if event_time:
            message = f'"{event_time}" is sensitive and leaves with every incident as the time at which it happened'
            binder.complain(f"triggers.{name}", message, _coarser(event_time))
        seen = windows.get(trigger.from_, {}) if trigger.from_ else columns
        refuse_sensitive(binder, f"triggers.{name}.by", trigger.by, seen, "an incident names its group: redact it in a step")
