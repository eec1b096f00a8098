"""Figures: on the screen, as JSON, and as a table in the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

BEGIN, END = "<!-- figures: written by make bench -->", "<!-- end of figures -->"


@dataclass(frozen=True)
class Figure:
    """`budget` is what the design promises, None where it promises nothing; `better` says on which side of it is good."""

    name: str
    value: float
    unit: str
    budget: float | None = None
    better: str = "higher"

    @property
    def holds(self) -> bool:
        return self.budget is None or (self.value >= self.budget if self.better == "higher" else self.value <= self.budget)

    def line(self) -> str:
        return f"{self.name:62} {self.shown:>12} {self.unit:18} {self.verdict}"

    @property
    def shown(self) -> str:
        return f"{self.value:,.0f}" if abs(self.value) >= 100 else f"{self.value:.2f}"

    @property
    def verdict(self) -> str:
        if self.budget is None:
            return ""
        sign = ">=" if self.better == "higher" else "<="
        return f"{'holds' if self.holds else 'MISSED'}: {sign} {self.budget:,g}"

    def as_json(self) -> dict[str, object]:
        return {"name": self.name, "value": self.value, "unit": self.unit, "budget": self.budget, "holds": self.holds}


def publish(path: Path, figures: Sequence[Figure], machine: Mapping[str, object]) -> None:
    """Replace the table between the two marks."""
    text = path.read_text()
    about = ", ".join(f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in machine.items())
    rows = [f"| {f.name} | {f.shown} {f.unit} | {f.verdict} |" for f in figures]
    table = "\n".join([BEGIN, f"Measured with {about}.", "", "| what | measured | budget |", "|---|---|---|", *rows, END])
    path.write_text(text[: text.index(BEGIN)] + table + text[text.index(END) + len(END) :])
