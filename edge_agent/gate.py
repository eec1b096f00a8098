"""Whether a version may stay on this node: what is found out about it while it soaks, and what is done when it fails. Pure.

It judges only what a version controls: how often it ends by itself, its memory, the time that a row takes and the share of rows
that it rejects, the last two against the last version that passed here. Never the link, the lake or a lag (I12).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import sqrt
from typing import Any

from pipelines.contract.folds import is_banned
from pipelines.contract.frames import canonical_json
from pipelines.contract.node_state import Assignment, Ban, Gate, Scalar, params_digest

ROWS_MIN = 20  # fewer are no share, and no pace
CPU_MIN_US = 1_000_000  # of evaluating: less is no pace
CERTAIN = 3.0  # standard deviations that a share must be off by: 1 of 1,000 good versions fails by chance
BANS_MAX = 8  # of one pipeline; the oldest goes
ROWS_REMEMBERED = 200_000  # of a version that passed: beyond, what it did long ago counts half
REASONS_MAX = 16

SOAKING, HELD, PASSED, FAILED = "soaking", "held", "passed", "failed"


@dataclass(frozen=True, slots=True)
class Measure:
    """What a version did with rows. `pace` is by size of batch, since a row of a large one costs a thousandth of a lone one:
    `size_class` -> (rows, microseconds of CPU). `reasons` are why rows were rejected, without their values."""

    rows: int = 0
    rejected: int = 0
    pace: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    reasons: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Measure:
        """From JSON, whose keys are text. Raises what a wrong one raises."""
        pace = {int(size): (int(rows), int(busy_us)) for size, (rows, busy_us) in told["pace"].items()}
        return cls(int(told["rows"]), int(told["rejected"]), pace, {str(why): int(n) for why, n in told["reasons"].items()})

    def plus(self, other: Measure, sign: int = 1) -> Measure:
        pace = dict(self.pace)
        for size, (rows, busy_us) in other.pace.items():
            before = pace.get(size, (0, 0))
            pace[size] = (before[0] + sign * rows, before[1] + sign * busy_us)
        reasons = dict(self.reasons)
        for why, count in other.reasons.items():
            reasons[why] = reasons.get(why, 0) + sign * count
        reasons = {why: count for why, count in reasons.items() if count > 0}
        most = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:REASONS_MAX]
        return Measure(self.rows + sign * other.rows, self.rejected + sign * other.rejected, pace, dict(most))

    def since(self, before: Measure) -> Measure:
        """What came after `before`, an earlier measure of the same life of a runner."""
        return self.plus(before, -1)

    def recent(self) -> Measure:
        """Half of it, once it is more than is remembered."""
        if self.rows <= ROWS_REMEMBERED:
            return self
        pace = {size: (rows // 2, busy_us // 2) for size, (rows, busy_us) in self.pace.items()}
        return Measure(self.rows // 2, self.rejected // 2, pace, {why: n // 2 for why, n in self.reasons.items()})


def size_class(rows: int) -> int:
    """Of a batch of so many rows: 0 for 1 to 3, then each four times as large."""
    return (max(rows, 1).bit_length() - 1) // 2


@dataclass(frozen=True, slots=True)
class Trial:
    """A version that soaks. `soaked_us`: node time through which it ran as it should. `failed`: why it did, when there was no
    other version to go back to: it goes on, and may pass yet."""

    digest: str
    number: int
    soaked_us: int = 0
    crashes: int = 0
    crash: str = ""  # how it ended the last time
    measure: Measure = Measure()
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Good:
    """The last version that passed, as it ran then: what the node goes back to."""

    digest: str
    number: int
    params: Mapping[str, Scalar] = field(default_factory=dict)
    artifacts: Mapping[str, str] = field(default_factory=dict)
    measure: Measure = Measure()


@dataclass(frozen=True, slots=True)
class Book:
    """All that the node knows of the versions of one pipeline."""

    good: Good | None = None
    trial: Trial | None = None
    bans: tuple[Ban, ...] = ()

    def to_json(self) -> str:
        return canonical_json(asdict(self)).decode()

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Book:
        """The inverse of `to_json`."""
        good, trial = raw["good"], raw["trial"]
        return cls(
            Good(**{**good, "measure": Measure.of(good["measure"])}) if good else None,
            Trial(**{**trial, "measure": Measure.of(trial["measure"])}) if trial else None,
            tuple(Ban(**ban) for ban in raw["bans"]),
        )

    def bans_it(self, digest: str, params: Mapping[str, Scalar], lift: int) -> bool:
        return is_banned(self.bans, digest, params_digest(params), lift)


EMPTY = Book()


@dataclass(frozen=True, slots=True)
class Verdict:
    state: str  # one of GATES, "" apart
    why: str = ""


def opened(book: Book, assignment: Assignment) -> Book:
    """The book when this version is wanted: a new one is on trial, the one that passed is not; bans that were lifted are over."""
    bans = tuple(ban for ban in book.bans if ban.digest != assignment.digest or ban.lift >= assignment.lift)
    if book.good is not None and book.good.digest == assignment.digest:
        return replace(book, trial=None, bans=bans)
    is_new = book.trial is None or book.trial.digest != assignment.digest
    trial = Trial(assignment.digest, assignment.number) if is_new else book.trial
    return replace(book, trial=trial, bans=bans)


def judge(gate: Gate, book: Book, *, memory_bytes: int = 0, trouble: str = "", is_running: bool = True) -> Verdict:
    """How the trial stands. `trouble`: what keeps sources or sinks from working, now."""
    trial = book.trial
    if trial is None:
        return Verdict(PASSED if book.good else "")
    if why := _fault(gate, trial, memory_bytes) or ("" if trouble else _excess(gate, trial, book.good)):
        return Verdict(FAILED, why)
    if not is_running:
        return Verdict(HELD, "it does not run")
    if trial.soaked_us >= gate.soak_s * 1e6:
        return Verdict(PASSED)
    if trouble:
        return Verdict(HELD, trouble)
    if not trial.measure.rows:
        return Verdict(HELD, "no rows have come yet")
    return Verdict(SOAKING)


def grown(book: Book, done: Measure, ran_us: int) -> Book:
    """The book after the trial ran for `ran_us` without trouble and did `done`. Without any rows so far that is no soaking."""
    if book.trial is None:
        return book
    measure = book.trial.measure.plus(done)
    soaked_us = book.trial.soaked_us + (ran_us if measure.rows else 0)
    return replace(book, trial=replace(book.trial, soaked_us=soaked_us, measure=measure))


def crashed(book: Book, why: str) -> Book:
    """The book after the trial's runner ended by itself."""
    if book.trial is None:
        return book
    return replace(book, trial=replace(book.trial, crashes=book.trial.crashes + 1, crash=why))


def passed(book: Book, params: Mapping[str, Scalar], artifacts: Mapping[str, str]) -> Book:
    """The trial is over: this is what the node goes back to from now on."""
    if book.trial is None:
        return book
    trial = book.trial
    return replace(book, good=Good(trial.digest, trial.number, dict(params), dict(artifacts), trial.measure), trial=None)


def failed(book: Book, why: str, params: Mapping[str, Scalar], lift: int, at: str) -> Book:
    """The trial is over: the pair is banned, when there is another version to go back to. Without one a ban would leave nothing
    to run: then it is tried again and again, and judged anew."""
    if book.trial is None:
        return book
    if book.good is None:
        return replace(book, trial=Trial(book.trial.digest, book.trial.number, failed=why))
    ban = Ban(book.trial.digest, book.trial.number, params_digest(params), why, lift, at)
    others = [b for b in book.bans if (b.digest, b.params_digest) != (ban.digest, ban.params_digest)]
    return replace(book, trial=None, bans=(*others, ban)[-BANS_MAX:])


def _fault(gate: Gate, trial: Trial, memory_bytes: int) -> str:
    """What it does wrong whatever comes in."""
    if trial.crashes > gate.crashes:
        return f"it ended by itself {_times(trial.crashes)} (limit {gate.crashes}): {trial.crash}"
    if gate.memory_bytes and memory_bytes > gate.memory_bytes:
        return f"its runner holds {memory_bytes >> 20} MiB (limit {gate.memory_bytes >> 20} MiB)"
    return ""


def _excess(gate: Gate, trial: Trial, good: Good | None) -> str:
    """What it does worse than the last version that passed."""
    if good is None:
        return ""
    return _rejects(gate, trial.measure, good) or _dawdles(gate, trial.measure, good)


def _rejects(gate: Gate, measure: Measure, good: Good) -> str:
    if measure.rows < ROWS_MIN or not good.measure.rows:
        return ""
    at_least, _ = share_bounds(measure.rejected, measure.rows)
    _, at_most = share_bounds(good.measure.rejected, good.measure.rows)
    if at_least <= at_most + gate.rejected:
        return ""
    share, before = measure.rejected / measure.rows, good.measure.rejected / good.measure.rows
    limit = f"(limit {_percent(gate.rejected)} above version {good.number}'s {_percent(before)})"
    told = ", ".join(f'"{why}" x {n:,}' for why, n in list(measure.reasons.items())[:2])
    return f"{_percent(share)} of {measure.rows:,} rows rejected {limit}" + (f": {told}" if told else "")


def _dawdles(gate: Gate, measure: Measure, good: Good) -> str:
    """At equal sizes of batches, or smaller ones of the former version, where a row costs more."""
    known = {size: busy_us / rows for size, (rows, busy_us) in good.measure.pace.items() if rows >= ROWS_MIN}
    rows = spent_us = 0
    expected_us = 0.0
    for size, (count, busy_us) in measure.pace.items():
        like = max((k for k in known if k <= size), default=None)
        if like is not None:
            rows, spent_us, expected_us = rows + count, spent_us + busy_us, expected_us + count * known[like]
    if rows < ROWS_MIN or spent_us < CPU_MIN_US or spent_us <= gate.slower * expected_us:
        return ""
    now_us, then_us = spent_us / rows, expected_us / rows
    times = f"{now_us / then_us:,.0f} times " if then_us else ""
    return f"a row takes {times}as long as with version {good.number} (limit {gate.slower:g} times): {now_us:,.0f} us of CPU"


def share_bounds(part: int, whole: int) -> tuple[float, float]:
    """Between what a share surely lies, given `part` of `whole` seen (Wilson, 1927)."""
    if whole <= 0:
        return 0.0, 1.0
    share, slack = part / whole, CERTAIN**2 / whole
    middle = (share + slack / 2) / (1 + slack)
    reach = sqrt(max(share * (1 - share), 0.0) * slack + slack**2 / 4) / (1 + slack)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %" if share >= 0.0995 else f"{share * 100:.1f} %".replace(".0 ", " ")


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
