"""What to send next and how much at once. Pure: the uplink tells what happened and when, and does what this decides."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.contract import segment

KIB, MIB = 1 << 10, 1 << 20
PRIORITY = 5  # of a stream that names none; 1 goes first, 9 last
URGENT = (segment.INCIDENTS, segment.LEDGER)  # before any data, in this order, in requests of their own
LIVE_SHARE = 0.7  # of the bytes, while a backlog waits too
BACKLOG_S = 60.0  # a stream whose backlog takes longer starts a new run, so that fresh data flows beside it
LANE_US = 3600 * 10**6  # ... but not more often than this, in node time

WINDOW_MIN, WINDOW_FIRST, WINDOW_MAX = 64 * KIB, 256 * KIB, 16 * MIB  # bytes under way
REQUEST_MIN = 32 * KIB  # of segments; a request holds one segment at least, whatever its size
REQUEST_S = 0.5  # a request takes the link about that long, so that it is answered well within its time-out
QUEUE_S = 2.0  # the window does not grow while answers come this much later than the quickest one: bytes only queue then
WINDOW_S = 10.0  # nor is it more than what arrives in this time: what is urgent, a ping and the state exchange wait behind it
RATE_MIN = 5_000  # bytes/s of the slowest line: what is assumed until a rate is measured
TIMEOUTS_MAX = 12  # times the first time-out: the longest one, for a segment of 512 KiB over such a line
_RATE_KEPT = 0.75  # of the rate, by each measurement

Position = tuple[str, str]  # (run, stream)


@dataclass(frozen=True, slots=True)
class Run:
    """A run of a stream that has segments pending, as the store knows it. `is_active`: it takes the stream's new segments."""

    pipeline: str
    stream: str
    run: str
    kind: str
    priority: int
    is_active: bool
    mark_seq: int
    next_seq: int
    bytes: int

    @property
    def position(self) -> Position:
        return self.run, self.stream

    @property
    def is_urgent(self) -> bool:
        return self.kind in URGENT

    @property
    def has_lane(self) -> bool:
        """Whether it takes turns with others: data and quarantine."""
        return not self.is_urgent and self.kind != segment.REQUESTS

    def after(self, sent: Mapping[Position, int]) -> int:
        """The segment after which it goes on."""
        return max(self.mark_seq, sent.get(self.position, 0))


@dataclass(frozen=True)
class Turns:
    """Who was served how much, in bytes by weight. Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996).

    Who had nothing to send has saved nothing up: its tag is at least `now`, the tag of whoever was served last.
    """

    now: float = 0.0
    ahead: Mapping[Hashable, float] = field(default_factory=dict)  # tags beyond `now`

    def tag(self, who: Hashable) -> float:
        return self.ahead.get(who, self.now)

    def served(self, amounts: Mapping[Any, float]) -> Turns:
        """After a request that held so much of each."""
        if not amounts:
            return self
        now = min(map(self.tag, amounts))
        tags = {**self.ahead, **{who: self.tag(who) + amount for who, amount in amounts.items()}}
        return Turns(now, {who: tag for who, tag in tags.items() if tag > now})


@dataclass(frozen=True)
class Shares:
    """Turns of the two lanes, and of the streams of equal priority within each."""

    lanes: Turns = Turns()
    live: Turns = Turns()
    backlog: Turns = Turns()

    def served(self, sizes: Mapping[Run, int]) -> Shares:
        """After a request that held so many bytes of each run."""
        data = {run: size for run, size in sizes.items() if run.has_lane}
        by_lane = {
            is_live: {(run.pipeline, run.stream): size for run, size in data.items() if run.is_active is is_live}
            for is_live in (True, False)
        }
        weights = {True: LIVE_SHARE, False: 1 - LIVE_SHARE}
        lanes = {is_live: sum(sizes.values()) / weights[is_live] for is_live, sizes in by_lane.items() if sizes}
        return Shares(self.lanes.served(lanes), self.live.served(by_lane[True]), self.backlog.served(by_lane[False]))


def order(runs: Sequence[Run], sent: Mapping[Position, int], shares: Shares, *, urgent_only: bool = False) -> list[Run]:
    """The runs from which the next request takes segments, first things first; `runs` come oldest first.

    Incidents and ledgers alone, while there are any. Else answers, which are few and somebody waits for; then the lane whose turn
    it is, then the other one; within a lane by priority (data before quarantine), then whose turn it is. Of a stream only the
    oldest run and the active one.
    """
    waiting = [run for run in runs if run.after(sent) + 1 < run.next_seq]
    if urgent := sorted((run for run in waiting if run.is_urgent), key=lambda run: URGENT.index(run.kind)):
        return urgent
    if urgent_only:
        return []
    answers = [run for run in waiting if run.kind == segment.REQUESTS]
    live = [run for run in waiting if run.is_active and run not in answers]
    older = (run for run in reversed(waiting) if not run.is_active and run not in answers)
    backlog = list({(run.pipeline, run.stream): run for run in older}.values())
    first = shares.lanes.tag(True) <= shares.lanes.tag(False)
    lanes = _by_turn(live, shares.live), _by_turn(backlog, shares.backlog)
    return [*answers, *lanes[0], *lanes[1]] if first else [*answers, *lanes[1], *lanes[0]]


def _by_turn(runs: Iterable[Run], turns: Turns) -> list[Run]:
    return sorted(runs, key=lambda r: (r.priority, r.kind == segment.QUARANTINE, turns.tag((r.pipeline, r.stream))))


def new_lanes(runs: Sequence[Run], rate: float, now_us: int, last_us: Mapping[str, int]) -> list[Run]:
    """The active runs to end, because at `rate` (bytes/s of the link, shared evenly) they take longer than BACKLOG_S.

    `last_us`: when a stream ("pipeline/stream") last started a lane, in node time like `now_us`.
    """
    data = [run for run in runs if run.has_lane]
    share = rate / max(len({(run.pipeline, run.stream) for run in data}), 1)
    return [
        run
        for run in data
        if run.is_active and run.bytes > share * BACKLOG_S and now_us - last_us.get(lane_key(run), -LANE_US) >= LANE_US
    ]


def lane_key(run: Run) -> str:
    return f"{run.pipeline}/{run.stream}"


@dataclass(frozen=True, slots=True)
class Pace:
    """How much may be under way, in requests of which size, and how long to wait for an answer.

    The window starts slowly, then grows by a request per round trip, and halves on trouble (RFC 5681). It stays while bytes
    only queue (the delay bound of RFC 6817), nor by requests that did not fill it (RFC 7661). Time-outs: RFC 6298.
    """

    timeout_first_s: float
    window: float = WINDOW_FIRST
    threshold: float = WINDOW_MAX  # below it the window doubles per round trip
    round_trip_s: float = 0.0  # smoothed; 0: not measured yet
    deviation_s: float = 0.0
    least_s: float = math.inf  # the quickest answer since there was trouble
    rate: float = 0.0  # bytes/s that arrive while there is more to send; 0: not measured yet
    patience: int = 1  # doubles with each time-out in a row

    def succeeded(self, size: int, round_trip_s: float, rate: float, *, is_full: bool) -> Pace:
        """A request of `size` bytes was answered; meanwhile `rate` bytes/s arrived. `is_full`: there was more to send."""
        error = abs(round_trip_s - self.round_trip_s)
        smoothed, deviation = self.round_trip_s + (round_trip_s - self.round_trip_s) / 8, self.deviation_s * 0.75 + error * 0.25
        if not self.round_trip_s:
            smoothed, deviation = round_trip_s, round_trip_s / 2
        least = min(self.least_s, round_trip_s)
        measured = replace(
            self, round_trip_s=smoothed, deviation_s=deviation, patience=1, rate=self._measured(rate, is_full),
            least_s=least,
        )  # fmt: skip
        if not is_full:
            return measured
        most = min(max(measured.rate * WINDOW_S, WINDOW_MIN), WINDOW_MAX)
        if round_trip_s - least > QUEUE_S:
            return replace(measured, window=min(self.window, most), threshold=min(self.threshold, self.window))
        step = size if self.window < self.threshold else size * size / self.window
        return replace(measured, window=min(self.window + step, most))

    def _measured(self, rate: float, is_full: bool) -> float:
        if not is_full and rate < self.rate:
            return self.rate  # there was too little to send to tell
        return rate if not self.rate else self.rate * _RATE_KEPT + rate * (1 - _RATE_KEPT)

    def troubled(self) -> Pace:
        """Busy, or no answer in time."""
        half = max(self.window / 2, WINDOW_MIN)
        return replace(self, window=half, threshold=half, least_s=math.inf, patience=min(self.patience * 2, TIMEOUTS_MAX))

    def restarted(self) -> Pace:
        """A new connection: another path perhaps, so it starts slowly again."""
        return replace(self, window=min(self.window, WINDOW_FIRST), threshold=max(self.window, self.threshold), least_s=math.inf)

    def request_bytes(self, most: int) -> int:
        """Of segments in one request; `most` is what the broker takes."""
        wanted = min(self.window / 2, self.rate * REQUEST_S if self.rate else math.inf, most)
        return int(max(wanted, min(REQUEST_MIN, most)))

    def timeout_s(self, under_way: int) -> float:
        """For a request, with which `under_way` bytes are."""
        expected = self.round_trip_s + 4 * self.deviation_s
        queued = 2 * under_way / (self.rate or RATE_MIN)
        return min(max(expected, queued, self.timeout_first_s) * self.patience, self.timeout_first_s * TIMEOUTS_MAX)


@dataclass(frozen=True, slots=True)
class Allowance:
    """A token bucket of `rate` bytes/s (0: no limit) that holds a second of it. What is urgent borrows: the rest then waits."""

    rate: float
    left: float = 0.0
    at_s: float = 0.0

    @property
    def request_bytes(self) -> int:
        """Of one request at most, so that it goes in small parts."""
        return int(self.rate * REQUEST_S) or WINDOW_MAX

    def wait_s(self, now_s: float) -> float:
        """How long until data may be sent again; 0: now."""
        return max(-self._now(now_s) / self.rate, 0.0) if self.rate else 0.0

    def spent(self, size: int, now_s: float) -> Allowance:
        return replace(self, left=self._now(now_s) - size, at_s=now_s) if self.rate else self

    def _now(self, now_s: float) -> float:
        return min(self.left + (now_s - self.at_s) * self.rate, self.rate)
