"""One small family of errors. Each says what failed, where, why, and how to fix it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace


class TidewireError(Exception):
    """An error a user should see: one line of what, one of how to fix it.

    `op` is what was attempted, `place` where (a path, an address, a node), `cause` why it failed, `hint` the fix; `code` is one
    of `causes.CODES` when it says why a pipeline does not run.
    """

    exit_status = 1

    def __init__(self, cause: str, *, op: str = "", place: str = "", hint: str = "", code: str = "") -> None:
        self.cause, self.op, self.place, self.hint, self.code = cause, op, place, hint, code
        super().__init__(": ".join(part for part in (op, place, cause) if part))

    def lines(self) -> list[str]:
        """What to print on stderr, one string a line."""
        return [str(self), *([f"  fix: {self.hint}"] if self.hint else [])]


class WrongUsage(TidewireError):
    """The command's words do not fit together."""

    exit_status = 2


class OutOfReach(TidewireError):
    """The control plane, the node or a broker does not answer."""

    exit_status = 3


class Refused(TidewireError):
    """Foreign bytes or a request that a check turned down. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a document: `path` like `steps[2].filter`, `line` and `column` counted from 1 (0: unknown)."""

    message: str
    path: str = ""
    hint: str = ""
    line: int = 0
    column: int = 0
    file: str = ""

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part)
        return ": ".join(part for part in (place, self.path, self.message) if part)

    def at(self, line: int, column: int, file: str = "") -> Problem:
        return replace(self, line=self.line or line, column=self.column or column, file=self.file or file)


class SpecError(TidewireError):
    """A pipeline that may not ship, with every problem found in it."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(str(problem) for problem in self.problems))

    def lines(self) -> list[str]:
        return [line for p in self.problems for line in (str(p), *([f"  fix: {p.hint}"] if p.hint else []))]
