"""Which segments go next, and how many at once: the decisions, without a link."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent import sending
from edge_agent.sending import LANE_US, LIVE_SHARE, MIB, Allowance, Pace, Run, Shares, new_lanes, order

BIG = 1 << 40
REQUEST = 1 * MIB


def run(stream: str = "s", name: str = "r", kind: str = "rows", *, is_active: bool = True, **more: int) -> Run:
    values = {"priority": 5, "mark_seq": 0, "next_seq": BIG, "bytes": BIG, **more}
    return Run("p", stream, name, kind, is_active=is_active, **values)


def names(runs: list[Run], sent: dict[tuple[str, str], int] | None = None) -> list[str]:
    return [r.run for r in order(runs, sent or {}, Shares())]


def test_incidents_then_ledgers_go_alone_and_before_all_else() -> None:
    runs = [run(name="data", priority=1), run("l", "ledger", "ledger"), run("i", "incidents", "incidents")]
    assert names(runs) == ["incidents", "ledger"]
    assert names(runs, {("incidents", "i"): BIG, ("ledger", "l"): BIG}) == ["data"]
    assert [r.run for r in order(runs, {}, Shares(), urgent_only=True)] == ["incidents", "ledger"]
    assert order(runs[:1], {}, Shares(), urgent_only=True) == []


def test_then_by_priority_and_quarantine_after_data_of_its_priority() -> None:
    runs = [run("a", "low", priority=9), run("q", "rejects", "quarantine"), run("b", "normal"), run("c", "high", priority=1)]
    assert names(runs) == ["high", "normal", "rejects", "low"]


def test_answers_go_before_data_and_take_nobodys_turn() -> None:
    runs = [run("a", "data", priority=1), run("_requests", "answers", "requests"), run("b", "old", is_active=False)]
    assert names(runs) == ["answers", "data", "old"]
    assert Shares().served({runs[1]: REQUEST}) == Shares()
    assert new_lanes(runs[1:2], 1.0, 10**12, {}) == [], "one run is enough for answers"


def test_of_a_stream_only_the_oldest_run_and_the_active_one() -> None:
    runs = [run(name=f"r{n}", is_active=n == 3) for n in range(4)]
    assert names(runs) == ["r3", "r0"]
    assert names(runs, {("r0", "s"): BIG}) == ["r3", "r1"]


def test_a_stub_counts_by_its_last_segment() -> None:
    one = run(mark_seq=3, next_seq=10)
    assert names([one], {("r", "s"): 8}) == ["r"]
    assert names([one], {("r", "s"): 9}) == []


class Line:
    """Sends what `order` says, request by request, and notes what went."""

    def __init__(self, runs: list[Run], sizes: list[int]) -> None:
        self.runs, self.sizes = runs, sizes
        self.sent: dict[tuple[str, str], int] = {}
        self.went: dict[str, int] = {}  # bytes by run
        self.log: list[tuple[str, int]] = []
        self.shares = Shares()

    def send(self) -> None:
        left, sizes = REQUEST, dict[Run, int]()
        for picked in order(self.runs, self.sent, self.shares):
            while picked.after(self.sent) + 1 < picked.next_seq:
                seq = picked.after(self.sent) + 1
                size = self.sizes[seq % len(self.sizes)]
                if sizes and size > left:
                    self.shares = self.shares.served(sizes)
                    return
                self.sent[picked.position] = seq
                self.log.append((picked.run, seq))
                self.went[picked.run] = self.went.get(picked.run, 0) + size
                sizes[picked] = sizes.get(picked, 0) + size
                left -= size
        self.shares = self.shares.served(sizes)

    def share(self, name: str) -> float:
        return self.went.get(name, 0) / sum(self.went.values())


SIZES = st.lists(st.integers(64 * 1024, 512 * 1024), min_size=1, max_size=9)
FEW = settings(max_examples=30)


@FEW
@given(SIZES, st.integers(1, 4), st.integers(1, 4))
def test_live_and_backlog_share_70_to_30_and_within_a_lane_nobody_starves(sizes: list[int], live: int, backlog: int) -> None:
    runs = [run(f"s{n}", f"live{n}") for n in range(live)]
    runs += [run(f"s{n}", f"old{n}", is_active=False) for n in range(backlog)]
    line, rounds = Line(runs, sizes), 200
    for _ in range(rounds):
        line.send()
    off = 2 * (live + backlog) / rounds + 0.01  # a request for each
    assert abs(sum(line.share(f"live{n}") for n in range(live)) - LIVE_SHARE) < off
    for n in range(live):
        assert abs(line.share(f"live{n}") - LIVE_SHARE / live) < off
    for n in range(backlog):
        assert abs(line.share(f"old{n}") - (1 - LIVE_SHARE) / backlog) < off


@FEW
@given(SIZES, st.data())
def test_i2_within_a_run_the_order_is_that_of_seq_whatever_waits_beside_it(sizes: list[int], data: st.DataObject) -> None:
    line = Line([], sizes)
    for _ in range(30):
        chosen = data.draw(st.sets(st.sampled_from("abcd")))
        line.runs = [run(name[0], name, is_active=name > "b", next_seq=data.draw(st.integers(1, 200))) for name in sorted(chosen)]
        line.send()
    for name in "abcd":
        seqs = [seq for who, seq in line.log if who == name]
        assert seqs == list(range(1, len(seqs) + 1))


@FEW
@given(SIZES, st.integers(0, 100))
def test_an_idle_lane_gives_its_share_away_and_saves_nothing_up(sizes: list[int], idle: int) -> None:
    live, old = run(name="live"), run(name="old", is_active=False)
    line = Line([old], sizes)
    for _ in range(idle):
        line.send()
    assert set(line.went) <= {"old"}
    line.runs, line.went = [old, live], {}
    for _ in range(200):
        line.send()
    assert abs(line.share("live") - LIVE_SHARE) < 0.03, "neither what it missed nor a punishment"


def test_a_stream_whose_backlog_takes_over_a_minute_starts_one_new_run_an_hour() -> None:
    rate, hour = 1000.0, LANE_US
    small, large = run("a", bytes=29_000), run("b", bytes=31_000)  # half of the line each: 58 s and 62 s
    assert new_lanes([small, large], rate, hour, {}) == [large]
    assert new_lanes([small, large], rate, hour, {"p/b": 1}) == []
    assert new_lanes([small, large], rate, hour + 1, {"p/b": 1}) == [large]
    assert new_lanes([replace(large, is_active=False)], rate, hour, {}) == []
    assert new_lanes([replace(large, kind="incidents", bytes=BIG)], rate, hour, {}) == []


EVENTS = st.lists(
    st.one_of(
        st.just(None),
        st.tuples(st.integers(1, 4 * MIB), st.floats(0.001, 60), st.floats(1, 1e9), st.booleans()),
    ),
    max_size=60,
)


@given(EVENTS)
def test_i9_whatever_happens_the_pace_stays_within_bounds(events: list[tuple[int, float, float, bool] | None]) -> None:
    pace = Pace(10.0)
    for event in events:
        if event is None:
            before = pace.window
            pace = pace.troubled()
            assert pace.window == max(before / 2, sending.WINDOW_MIN)
        else:
            size, took_s, rate, is_full = event
            pace = pace.succeeded(size, took_s, rate, is_full=is_full)
        assert sending.WINDOW_MIN <= pace.window <= sending.WINDOW_MAX
        assert min(sending.REQUEST_MIN, MIB) <= pace.request_bytes(MIB) <= MIB
        assert 10.0 <= pace.timeout_s(int(pace.window)) <= 10.0 * sending.TIMEOUTS_MAX


def test_a_connection_starts_slowly_and_doubles_per_round_trip_until_there_was_trouble() -> None:
    pace = Pace(10.0).restarted()
    for _ in range(3):
        before = pace.window
        pace = pace.succeeded(int(before), 0.1, before / 0.1, is_full=True)
        assert pace.window == 2 * before
    pace = pace.troubled().restarted()
    assert pace.window == sending.WINDOW_FIRST
    for _ in range(20):
        pace = pace.succeeded(64 * 1024, 0.1, 1e8, is_full=True)
    assert pace.window < 1.3 * before, "from half of what was too much on it only adds"


def test_what_did_not_fill_the_window_does_not_widen_it_nor_lower_the_rate() -> None:
    pace = Pace(10.0).succeeded(MIB, 0.1, 1e7, is_full=True)
    after = pace.succeeded(1000, 0.1, 1e4, is_full=False)
    assert (after.window, after.rate) == (pace.window, pace.rate)


@pytest.mark.parametrize("rate", [5e3, 2e4, 2e5, 5e6, 5e7])
@pytest.mark.parametrize("answer_s", [0.005, 0.1, 2.0])
def test_the_pace_fills_a_line_of_any_speed_without_a_time_out(rate: float, answer_s: float) -> None:
    """Requests queue on a line of `rate` bytes/s and are answered `answer_s` after they arrived."""
    segment, pace = 256 * 1024, Pace(10.0)
    now = free = busy_s = started = 0.0
    delivered, flying = 0, list[tuple[float, float, int, int]]()  # (done, sent, size, delivered before)
    for _ in range(1500):
        while sum(size for _, _, size, _ in flying) < pace.window:
            size = max(pace.request_bytes(4 * MIB) // segment, 1) * segment
            free = max(free, now) + size / rate
            flying.append((free + answer_s, now, size, delivered))
            assert free + answer_s - now < pace.timeout_s(sum(size for _, _, size, _ in flying)), "a request times out"
            if delivered > 50 * segment:
                busy_s += size / rate
        if delivered <= 50 * segment:
            started = now
        done, sent, size, before = flying.pop(0)
        now, delivered = done, delivered + size
        pace = pace.succeeded(size, now - sent, (delivered - before) / (now - sent), is_full=True)
    possible = min(1, sending.WINDOW_MAX / (rate * (answer_s + 0.5)), segment / rate / (segment / rate + answer_s) * 2)
    assert busy_s > 0.8 * possible * (now - started), "the line idles"
    assert pace.rate < 1.1 * rate
    assert free - now < 2 * sending.QUEUE_S + 2 * segment / rate, "what is urgent waits for little"


@given(st.lists(st.tuples(st.integers(1, MIB), st.floats(0, 5)), max_size=50), st.integers(1000, 10**7))
def test_the_cap_holds_over_any_time_but_for_one_request(requests: list[tuple[int, float]], rate: int) -> None:
    allowance, now, total, largest = Allowance(rate), 100.0, 0, 0
    allowance = replace(allowance, at_s=now)
    for size, idle_s in requests:
        now += idle_s + allowance.wait_s(now + idle_s)
        allowance = allowance.spent(size, now)
        total, largest = total + size, max(largest, size)
        assert total <= rate * (now - 100.0 + 1) + largest + 1
    assert Allowance(0).spent(10**9, now).wait_s(now) == 0
