"""What commands print: tables on a terminal, the same columns plain elsewhere, JSON when asked."""

from __future__ import annotations

import csv
import json
import os
import sys
import unicodedata
from collections.abc import Sequence
from typing import Any, TextIO

_GAP = "  "
_STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format (bidirectional marks), halves of characters, line separators


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))  # noqa: T201 - the command line's output


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], indent: int = 0) -> None:
    texts = [[_text(value) for value in row] for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console  # 40 ms that a plain command does without
        from rich.padding import Padding
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold" if not indent else "dim")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in texts:
            table.add_row(*(cell.replace("[", "\\[") for cell in row))
        Console().print(Padding(table, (0, 0, 0, indent)))
        return
    widths = [max(len(row[i]) for row in [list(columns), *texts]) for i in range(len(columns))]
    for row in [list(columns), *texts]:
        line = _GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(" " * indent + line.rstrip())  # noqa: T201 - as above


def print_csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[_csv(value) for value in row] for row in rows])


def _csv(value: object) -> object:
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    return "" if value is None else value


def print_lines(lines: Sequence[Sequence[str]]) -> None:
    """Label and text, the labels in one column; a label that repeats is shown once."""
    width = max((len(label) for label, _ in lines), default=0)
    before = ""
    for label, text in lines:
        print(plain(f"{'' if label == before else label:<{width}}  {text}"))  # noqa: T201 - as above
        before = label


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    return plain(str(value))


def is_coloured(stream: TextIO) -> bool:
    """Whether colours help: on a terminal that does not ask for none (https://no-color.org), or where they are forced."""
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def plain(text: str) -> str:
    """Without what steers a terminal or turns text around: much of what is printed was written by nodes."""
    return "".join(" " if unicodedata.category(char) in _STEERING else char for char in text)
