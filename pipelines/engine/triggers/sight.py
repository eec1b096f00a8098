"""What one trigger has in sight: rows enter and leave its groups, its conditions are asked, its incidents told.

Each row is evaluated at its own event time over the rows of its group that are in sight: those of the span `over` before it, or,
with `over: latest`, the newest of each key. So the split into batches is invisible (I14). Event time within a group never goes
back, and keeps within an hour of the watermark.

Between its rows a group stays as its last row left it: a writer, a link or an agent that stalls changes nothing. Timers let node
time pass for what is under way (`for`, `clear_for`, reminders), until the group was silent for `over` or `stale_after`: then it
has no data, and `on_no_data` decides.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa

from pipelines.engine.cells import GONE, Census, Chunks, changed, in_order
from pipelines.engine.state import Group, State
from pipelines.engine.triggers import alarm as machine
from pipelines.engine.triggers.absent import BEGUN, CLOCK
from pipelines.engine.triggers.alarm import Moment
from pipelines.engine.triggers.arrived import Arrived, as_keys, as_tuple, from_tuple
from pipelines.engine.triggers.capture import Keeper, row_bytes
from pipelines.engine.triggers.condition import Abstain
from pipelines.engine.triggers.incident import Book, Identity, Shelves, Suppression, Transition, is_more
from pipelines.engine.triggers.latest import Latest
from pipelines.engine.triggers.plan import TriggerPlan
from pipelines.engine.triggers.sliding import Sliding
from pipelines.engine.watermark import FAR_US

SPAN_ROWS_MAX = 100_000  # rows in sight of one trigger with a span: about 20 MB; the oldest leave early
_AT_END = 1 << 62
_DELAY_MAX_S = 1_000 * 365 * 86_400
Out = tuple[Any, ...]  # what `evaluate` gives


class _Group:
    __slots__ = ("bad", "flagged", "heard_us", "is_steady", "key", "out", "quiet_at_us", "quiet_us", "seen")

    def __init__(self, key: Group, seen: Any) -> None:
        self.key = key
        self.seen = seen  # Sliding or Latest
        self.heard_us = 0  # node time of its last row
        self.out: Out | None = None  # what its last row gave
        self.is_steady = False  # seeing the same again changes nothing
        self.quiet_us = 0  # before this event time neither, if node time is still `quiet_at_us` and the row is not alone
        self.quiet_at_us: int | None = None
        self.flagged: bool | None = None  # what its incident says of its inputs; None: there is none
        self.bad: dict[Any, int] = {}  # keys whose newest row is unfit -> the group's time then


class _Entry(NamedTuple):
    """A row that was let in, and what was in sight then."""

    place: int
    group: _Group
    alone: bool  # no other row
    is_bad: bool
    t_us: int
    in_sight: int  # rows
    values: tuple[Any, ...]  # of the aggregates
    fits: bool


class Sight:
    """What one trigger has in sight while a batch is evaluated. A cache: all of it follows from the cells it was made of."""

    def __init__(self, plan: TriggerPlan, state: State) -> None:
        self.plan, self.spec = plan, plan.spec
        self.book = Book(plan.identity, state.lineage, state)
        self.books = [self.book]
        if plan.degraded:
            self.books.append(Book(plan.degraded, state.lineage, state))
        self.over_us = plan.spec.over_us or 0
        self.limit_us = plan.spec.stale_after if plan.spec.is_latest else self.over_us
        self.groups: dict[Any, _Group] = {}
        self.restless: dict[Any, _Group] = {}  # groups that a timer may change
        self.cells, self.bad_cells = state.of(plan.owner), state.of(plan.bad_owner)
        self.chunks = Chunks.of({} if plan.spec.is_latest else self.cells)
        self.floor: tuple[int, int] | None = self.chunks.rest.get(("floor",))  # newest row that left early, and the watermark
        self.census = Census()
        self.order: deque[tuple[_Group, Any]] | None = None  # rows of spans, oldest first; only near the limit
        self.left: dict[int, int] = {}  # rows that left, by chunk
        self.next = self.rows_in_sight = 0
        self.is_full = False
        self.touched: list[Any] = []  # rows of `latest`
        self.gone: set[Group] = set()  # cells of `latest`
        self.told_by_key = {*plan.by, *plan.each}
        self.kept = tuple(name for name in plan.kept if name not in self.told_by_key)
        self.bad_touched: dict[Any, _Group] = {}
        self.emptied_cells = state.of(plan.emptied_owner)
        self.emptied: dict[Group, _Group] = {}  # without rows, and kept for their alarms
        self.sweep_at_us = _AT_END  # event time
        self.inputs: list[list[Any]] = []
        self.suppression: Sequence[Suppression] = ()
        self.fresh: tuple[Arrived, list[int], list[int]] | None = None  # rows to store: places, times
        self.keeper = Keeper(plan.spec.capture, plan.capture_owner, plan.by, plan.columns, state) if plan.spec.capture else None
        self.seen_by_keeper: tuple[Arrived, list[int], list[int], list[int]] | None = None  # places, bytes, times
        self._makers = [aggregate.make for aggregate in plan.aggregates]
        self._restore()

    def is_of(self, state: State) -> bool:
        if self.keeper is not None and not self.keeper.is_of(state):
            return False
        rows = self.cells is state.of(self.plan.owner) and (bool(self.cells) or not self.groups)
        others = self.bad_cells is state.of(self.plan.bad_owner) and self.emptied_cells is state.of(self.plan.emptied_owner)
        return rows and others and all(book.is_of(state) for book in self.books)

    def begin(self) -> None:
        for book in self.books:
            book.begin()

    def transitions(self) -> list[Transition]:
        return [transition for book in self.books for transition in book.transitions]

    # -- rows

    def rows(self, state: State, rows: Arrived | None, arrival_us: int, suppression: Sequence[Suppression]) -> None:
        if rows is not None and rows.n:
            self.fresh = (rows, [], [])
            self.inputs = self._inputs(rows)
            self.suppression = suppression
            fits = self.spec.is_latest or self.rows_in_sight + rows.n <= SPAN_ROWS_MAX
            if self.plan.loop is not None and self.keeper is None and fits and (rows.unfit is None or self.spec.quality == "any"):
                self.order = None
                self._loop(rows, state.epoch)
            else:
                self._one_by_one(rows, state.epoch)
            self.next += rows.n
        for one in suppression:
            one.advance(_AT_END, arrival_us)

    def _loop(self, rows: Arrived, epoch: int) -> None:
        assert self.plan.loop is not None and self.fresh is not None
        by_keys = rows.keys(self.plan.by)

        def slow(i: int) -> None:
            for entry, out in self._with_outs(self._enter(epoch, rows, (i,))):
                self._consider(rows, entry, out)

        def judge(i: int, group: _Group, alone: bool, values: tuple[Any, ...], out: Out | None) -> None:
            if out is None:
                out = self._ask_duckdb([(values, group.key)])[0]
            seen = group.seen
            self._consider(rows, _Entry(i, group, alone, False, seen.t_us, len(seen.rows), values, True), out)

        if self.spec.is_latest:
            columns = [range(rows.n), by_keys, rows.keys(self.plan.each), rows.te_us, *self.inputs]
            self.plan.loop(*columns, self.groups, self.next, rows.arrival_us, self.touched, slow, judge)
        else:
            columns = [range(rows.n), by_keys, rows.te_us, *self.inputs]
            own = (self.next, self.over_us, epoch, rows.arrival_us, self.left, *self.fresh[1:])
            more = self.plan.loop(*columns, self.groups, *own, slow, judge)
            self.rows_in_sight += more  # after the call, which changes it

    def _one_by_one(self, rows: Arrived, epoch: int) -> None:
        """As `_loop`, for all that it has no words for."""
        entries = self._enter(epoch, rows, range(rows.n))
        judged = self._with_outs(entries) if self.plan.evaluate is not None else self._with_outs_of_duckdb(list(entries))
        sizes = row_bytes(rows, self.plan.columns) if self.keeper is not None else []
        self.seen_by_keeper = (rows, [], [], [])
        for entry, out in judged:
            if self.keeper is not None:
                self._keep(entry, sizes[entry.place], epoch)
            self._consider(rows, entry, out)

    def _consider(self, rows: Arrived, entry: _Entry, out: Out | None) -> None:
        """Judge a row, unless nothing can come of it. None: as the row before it."""
        group = entry.group
        if out is None:
            out = group.out
            if out is None:
                return
        is_quiet = entry.t_us < group.quiet_us and rows.arrival_us == group.quiet_at_us and not entry.alone
        if not ((group.is_steady or is_quiet) and out == group.out and group.flagged in (None, entry.is_bad)):
            for one in self.suppression:
                one.advance(rows.row[entry.place], rows.arrival_us)
            self._judge(rows, entry, out, self.suppression)

    def _enter(self, epoch: int, rows: Arrived, places: Sequence[int]) -> Iterator[_Entry]:
        """Let rows in, one by one."""
        assert self.fresh is not None
        spec, groups, is_latest = self.spec, self.groups, self.spec.is_latest
        by_keys = rows.keys(self.plan.by)
        each_keys = rows.keys(self.plan.each) if is_latest else by_keys
        unfit = rows.unfit if spec.quality == "good" else None
        _, stored, stamps = self.fresh
        gone: list[Any] = []
        for i in places:
            key, te_us = by_keys[i], rows.te_us[i]
            group = groups.get(key)
            is_fit = unfit is None or not unfit[i]
            if is_latest and is_fit and (self.rows_in_sight >= spec.max_groups or self.is_full):
                if not self._has_room(group, each_keys[i], rows, i):
                    continue
                group = groups.get(key)
            group = group or self._admit(key, rows, i)
            if group is None:
                continue
            seen = group.seen
            if not is_fit:
                self._note_bad(group, each_keys[i] if is_latest else None, te_us)
                t_us = te_us if seen.t_us is None else seen.t_us
                yield _Entry(i, group, False, True, t_us, len(seen.rows), seen.results(), False)
                continue
            before, values = len(seen.rows), tuple([column[i] for column in self.inputs])
            if is_latest:
                each = each_keys[i]
                alone = seen.push(te_us, spec.stale_after, each, self.next + i, self._cell(key, each), values, gone)
                if gone:
                    self.gone.update(gone)
                    gone.clear()
                if alone is not None:
                    self.touched.append(seen.rows[each])
                    group.heard_us = rows.arrival_us
                    if group.bad:
                        self._forget_bad(group, each)
            else:
                alone = seen.push(te_us, self.over_us, epoch, self.next + i, values, self.left)
                stored.append(i)
                stamps.append(seen.t_us)
                group.heard_us = rows.arrival_us
                if self.order is not None:
                    self.order.append((group, seen.rows[-1]))
                if group.bad:
                    self._forget_bad(group, None)
            self.rows_in_sight += len(seen.rows) - before
            if not is_latest and self.rows_in_sight > SPAN_ROWS_MAX:
                self._make_room(rows.at_us[i])
            yield _Entry(i, group, bool(alone), bool(group.bad), seen.t_us, len(seen.rows), seen.results(), True)

    def _with_outs(self, entries: Iterator[_Entry]) -> Iterator[tuple[_Entry, Out | None]]:
        """None as the out of a row that is not judged."""
        evaluate = self.plan.evaluate
        assert evaluate is not None
        for entry in entries:
            if not entry.fits:
                yield entry, None
                continue
            try:
                out = evaluate(*entry.values, *entry.group.key)
            except Abstain:
                out = self._ask_duckdb([(entry.values, entry.group.key)])[0]
            yield entry, out

    def _with_outs_of_duckdb(self, entries: Sequence[_Entry]) -> Iterator[tuple[_Entry, Out | None]]:
        outs = iter(self._ask_duckdb([(entry.values, entry.group.key) for entry in entries if entry.fits]))
        for entry in entries:
            yield entry, next(outs) if entry.fits else None

    def _inputs(self, rows: Arrived) -> list[list[Any]]:
        """What each row brings, by aggregate."""
        if not all(self.plan.arguments):
            arguments = self._arguments(rows.table)
            return [aggregate.inputs(arguments) for aggregate in self.plan.aggregates]
        arguments = [rows.column(name) for name in self.plan.arguments]
        return [rows.on_grid(self.plan.arguments[a.value]) if a.on_grid else a.inputs(arguments) for a in self.plan.aggregates]

    def _arguments(self, rows: pa.Table) -> list[list[Any]]:
        """What the aggregates take, computed from the kept columns."""
        kept = self.plan.kept
        if not rows.num_rows:
            return [[] for _ in self.plan.arguments]
        columns = {name: rows[name].cast(type_) for name, type_ in kept.items()} or {"_": pa.nulls(rows.num_rows, pa.int64())}
        made = self.plan.argument_values(pa.table(columns))
        return [made.column(i).to_pylist() for i in range(len(self.plan.arguments))]

    def _ask_duckdb(self, cases: Sequence[tuple[tuple[Any, ...], Group]]) -> list[Out]:
        if not cases:
            return []
        lists = zip(*((*values, *group) for values, group in cases), strict=True)
        columns = {n: _array(list(v), type_) for v, (n, type_) in zip(lists, self.plan.values.items(), strict=True)}
        try:
            made = self.plan.evaluation(pa.table(columns))
        except duckdb.Error:  # the engine itself fails, whatever TRY holds
            if len(cases) == 1:
                return [(None,) * len(self.plan.outputs)]
            return [out for case in cases for out in self._ask_duckdb([case])]
        return list(zip(*(made.column(i).to_pylist() for i in range(made.num_columns)), strict=True))

    # -- who is let in

    def _admit(self, key: Any, rows: Arrived, i: int) -> _Group | None:
        """A new group, unless there are too many."""
        full = len(self.groups) >= self.spec.max_groups
        if full:
            self._sweep(rows.at_us[i])
            full = len(self.groups) >= self.spec.max_groups
        if full or self.book.has_limit("groups"):
            text = f"more than {self.spec.max_groups} groups: rows of new ones are not judged"
            self.book.limit("groups", full, rows.te_us[i], rows.row[i], text)
        if full:
            return None
        if self.limit_us is not None:
            self.sweep_at_us = min(self.sweep_at_us, rows.te_us[i] + FAR_US + self.limit_us)
        return self._new_group(key)

    def _new_group(self, key: Any) -> _Group:
        seen = Latest(self._makers) if self.spec.is_latest else Sliding(self._makers)
        group = self.groups[key] = _Group(as_tuple(key, self.plan.by), seen)
        return group

    def _has_room(self, group: _Group | None, each: Any, rows: Arrived, i: int) -> bool:
        """Whether one more key may come: else the row is not judged."""
        if group is not None and each in group.seen.rows:
            return True
        self._sweep(rows.at_us[i])
        full = self.rows_in_sight >= self.spec.max_groups
        text = f"more than {self.spec.max_groups} keys: rows of new ones are not judged"
        self.book.limit("keys", full, rows.te_us[i], rows.row[i], text)
        self.is_full = full
        return not full

    def _make_room(self, at_us: int) -> None:
        """The oldest rows of a span leave early."""
        self._sweep(at_us)
        if self.order is None or len(self.order) > 2 * SPAN_ROWS_MAX:
            rows = [(group, row) for group in self.groups.values() for row in group.seen.rows]
            self.order = deque(sorted(rows, key=lambda entry: int(entry[1][3])))
        while self.rows_in_sight > SPAN_ROWS_MAX:
            group, row = self.order.popleft()
            if group.seen.rows and group.seen.rows[0] is row:
                group.seen.drop_oldest(self.left)
                self.rows_in_sight -= 1
                self.floor = (row[3], at_us)

    def _sweep(self, at_us: int) -> None:
        """Forget groups that were silent for so long that no row of theirs can see another: nobody can tell."""
        self._note_revived()
        if at_us < self.sweep_at_us or self.limit_us is None:
            return
        floor_us = at_us - FAR_US - self.limit_us
        self.sweep_at_us = _AT_END
        for key, group in list(self.groups.items()):
            newest_us = max([group.seen.t_us or 0, *group.bad.values()])
            if newest_us > floor_us:
                self.sweep_at_us = min(self.sweep_at_us, newest_us + FAR_US + self.limit_us)
                continue
            self._empty(key, group)
            self.emptied[group.key] = group
            self._let_go(group, floor_us)

    def _let_go(self, group: _Group, floor_us: int | None = None) -> None:
        """Forget a group that was emptied, unless it has an alarm or raises that count. None: any raise counts."""
        for book in self.books:
            rules = book.identity.rules
            if not book.forget(group.key, -1 if floor_us is None else floor_us - rules.flapping_us):
                last_us = max(book.alarm(group.key).raises, default=None)
                if last_us is not None:
                    self.sweep_at_us = min(self.sweep_at_us, last_us + rules.flapping_us + FAR_US + (self.limit_us or 0))
                return
        key = from_tuple(group.key)
        del self.groups[key], self.emptied[group.key]
        self.restless.pop(key, None)

    def _note_revived(self) -> None:
        """Groups that have rows again."""
        for key, group in list(self.emptied.items()):
            if group.seen.rows or group.bad:
                newest_us = max(group.seen.t_us or 0, *group.bad.values(), 0)
                self.sweep_at_us = min(self.sweep_at_us, newest_us + FAR_US + (self.limit_us or 0))
            if group.seen.rows:
                del self.emptied[key]

    def _let_go_of_emptied(self) -> None:
        """After what can close an alarm without a row."""
        for group in list(self.emptied.values()):
            if not group.bad:
                self._let_go(group)

    def _empty(self, key: Any, group: _Group) -> None:
        group.out = None
        self.rows_in_sight -= len(group.seen.rows)
        if self.spec.is_latest:
            gone: list[Any] = []
            group.seen.drop_stale(_AT_END, 0, gone)
            self.gone.update(gone)
        else:
            while group.seen.rows:
                group.seen.drop_oldest(self.left)
        if group.bad:
            group.bad = {}
            self.bad_touched[group.key] = group

    # -- judging

    def _judge(self, rows: Arrived, entry: _Entry, out: Out, suppression: Sequence[Suppression]) -> None:
        group, i = entry.group, entry.place
        max_age_us = self.spec.max_age
        late = max_age_us is not None and rows.late_us is not None and rows.late_us[i] > max_age_us
        base = Moment(None, None, entry.t_us, rows.arrival_us, alone=entry.alone, late=late, unreliable=entry.is_bad)
        told = lambda: self._told(entry.values, entry.in_sight, entry.t_us)  # noqa: E731 - only when something is told
        self._see(group, base, out, told, rows.row[i], suppression)

    def _see(
        self,
        group: _Group,
        base: Moment,
        out: Out | None,
        told: Callable[[], Mapping[str, Any]],
        row: int,
        suppression: Sequence[Suppression],
        *,
        silent: bool = False,
        at_us: int | None = None,
    ) -> None:
        group.is_steady = not silent  # its next row is news
        quiet_us = machine.FOREVER_US
        for which, book in enumerate(self.books):
            moment = self._moment(book.identity, base, out)
            if suppression:
                moment = moment._replace(suppressor=suppression[which].of(group.key))
            was = book.alarm(group.key)
            alarm = book.see(group.key, moment, told, row, silent=silent, at_us=at_us)
            group.is_steady = group.is_steady and machine.is_steady(book.identity.rules, alarm)
            quiet_us = min(quiet_us, machine.quiet_until(book.identity.rules, alarm, moment))
            if self.keeper is not None and which == 0 and alarm.is_open and alarm.active and not (was.active and was.is_open):
                self.keeper.raised(group.key, alarm.incident, base.t_us)
        group.quiet_us, group.quiet_at_us = quiet_us, None if silent or suppression else base.arrival_us
        group.out = out
        own = self.book.alarm(group.key)
        group.flagged = own.unreliable if own.is_open else None
        if group.is_steady and not any(book.alarm(group.key).is_open for book in self.books):
            self.restless.pop(from_tuple(group.key), None)
        else:
            self.restless[from_tuple(group.key)] = group

    def _moment(self, identity: Identity, base: Moment, out: Out | None) -> Moment:
        said = dict(zip(self.plan.outputs, out, strict=True)) if out is not None else {}
        for_us = _delay(self.spec.for_, said.get("for"))
        clear_for_us = _delay(self.spec.clear_for, said.get("clear_for"))
        if identity.kind:
            when = said.get("degraded")
            settle_us = max(for_us, self.limit_us or 0)  # rows come one by one: at first there are always too few
            return base._replace(when=when, clear=when is False, for_us=settle_us, clear_for_us=clear_for_us, late=False)
        when = said.get("when")
        clear = said.get("clear", None if when is None else not when)
        only = said.get("only") if self.spec.only_when else True
        return base._replace(when=when, clear=clear, only=only, for_us=for_us, clear_for_us=clear_for_us)

    def _told(self, values: tuple[Any, ...], count: int, t_us: int) -> dict[str, Any]:
        """What messages and the incident's `value` say."""
        aggregates = self.plan.aggregates
        told = {a.label: value for a, value in zip(aggregates, values, strict=True) if not a.is_secret}
        if self.floor is not None and self.floor[1] + self.over_us > t_us:
            told["truncated"] = True  # rows left the span early
        first = None if aggregates[0].is_secret else values[0]
        return {**told, "value": first, "count": count}

    # -- unfit rows

    def _note_bad(self, group: _Group, key: Any, te_us: int) -> None:
        group.bad[key] = te_us if group.seen.t_us is None else max(group.seen.t_us, te_us)
        self.bad_touched[group.key] = group

    def _forget_bad(self, group: _Group, good: Any) -> None:
        """Unfit rows that are out of sight, or that a good one came after."""
        floor_us = None if self.limit_us is None else group.seen.t_us - self.limit_us
        is_latest = self.spec.is_latest
        kept = {k: t for k, t in group.bad.items() if not (is_latest and k == good) and (floor_us is None or t > floor_us)}
        if len(kept) < len(group.bad):
            group.bad = kept
            self.bad_touched[group.key] = group

    # -- timers

    def pass_time(self, state: State, arrival_us: int, now_us: int, suppression: Sequence[Suppression]) -> None:
        for one in suppression:
            one.advance(_AT_END, arrival_us)
        begun_us = state.of(CLOCK)[BEGUN]
        if self.spec.on_no_data == "raise" and not self.plan.by and not self.groups:
            self._new_group(())
        newest_us = max((mark.us for mark in state.watermarks.values() if mark.us is not None), default=0)
        self._sweep(newest_us)
        looks_at_all = self.limit_us is not None and (self.spec.on_no_data != "hold" or self.plan.degraded is not None)
        groups = (self.groups if looks_at_all else self.restless).values()
        for group in sorted(groups, key=lambda group: repr(group.key)):
            elapsed_us = max(arrival_us - max(group.heard_us, begun_us), 0)
            t_us = (newest_us if group.seen.t_us is None else group.seen.t_us) + elapsed_us
            self._pass_time(group, arrival_us, elapsed_us, t_us, now_us, suppression)
        self._let_go_of_emptied()

    def _pass_time(
        self, group: _Group, arrival_us: int, elapsed_us: int, t_us: int, now_us: int, suppression: Sequence[Suppression]
    ) -> None:
        seen = group.seen
        silent = self.limit_us is not None and elapsed_us >= self.limit_us
        at_us = now_us if seen.t_us is None else t_us
        values = seen.results()
        out = group.out
        if out is None and seen.rows:
            out = next(self._with_outs_of_duckdb([_Entry(0, group, False, False, t_us, len(seen.rows), values, True)]))[1]
        if silent or (out is not None and not group.is_steady):
            base = Moment(None, None, t_us, arrival_us, late=None, unreliable=bool(group.bad))
            told = lambda: self._told(values, len(seen.rows), t_us)  # noqa: E731 - only when something is told
            self._see(group, base, out, told, -1, suppression, silent=silent, at_us=at_us)
        for book in self.books:
            book.pass_time(group.key, arrival_us, at_us)

    # -- by hand, and the end

    def by_hand(self, verb: str, incident: str, by: str, reason: str, at_us: int) -> bool:
        for book in self.books:
            for group, alarm in book.alarms.items():
                if alarm.incident == incident:
                    act = machine.acknowledge if verb == "acknowledge" else machine.reset
                    book.by_hand(group, act(book.identity.rules, alarm, by, reason), at_us)
                    self._look_again([group])
                    return True
        return False

    def shelve(self, shelves: Shelves, at_us: int, arrival_us: int) -> None:
        for book in self.books:
            self._look_again(book.shelve(shelves, at_us, arrival_us))

    def _look_again(self, groups: Iterable[Group]) -> None:
        for group in groups:
            if not is_more(group):
                self._group(group).is_steady, self._group(group).quiet_at_us = False, None
        self._let_go_of_emptied()

    # -- state

    def commit(self, state: State, captured: dict[str, pa.Table]) -> State:
        state = self._commit_latest(state) if self.spec.is_latest else self._commit_span(state)
        if self.bad_touched:
            bad = {key: tuple(group.bad.items()) or GONE for key, group in self.bad_touched.items()}
            state = state.put(self.plan.bad_owner, changed(self.bad_cells, bad))
            self.bad_cells, self.bad_touched = state.of(self.plan.bad_owner), {}
        state = self._commit_emptied(state)
        for book in self.books:
            state = book.commit(state)
        if self.keeper is not None:
            state = self._commit_capture(state, self.keeper, captured)
        self.fresh = self.seen_by_keeper = None
        return state

    def _commit_emptied(self, state: State) -> State:
        self._note_revived()
        if not self.emptied and not self.emptied_cells:
            return state
        times = {key: (group.seen.t_us, group.heard_us) for key, group in self.emptied.items()}
        changes = {key: GONE for key in self.emptied_cells if key not in times}
        changes |= {key: value for key, value in times.items() if self.emptied_cells.get(key) != value}
        state = state.put(self.plan.emptied_owner, changed(self.emptied_cells, changes)) if changes else state
        self.emptied_cells = state.of(self.plan.emptied_owner)
        return state

    def _commit_latest(self, state: State) -> State:
        if not self.touched and not self.gone:
            return state
        changes: dict[Group, Any] = {}
        if self.fresh is not None:
            rows = self.fresh[0]
            first, arrival_us, tuples = self.next - rows.n, rows.arrival_us, rows.tuples(self.kept)
            for row in self.touched:
                changes[row[3]] = (row[2], row[1], row[0], arrival_us, *tuples[row[2] - first])
        for cell in self.gone:
            group = self.groups.get(from_tuple(cell[: len(self.plan.by)]))
            if group is None or from_tuple(cell[len(self.plan.by) :]) not in group.seen.rows:
                changes[cell] = GONE
        state = state.put(self.plan.owner, changed(self.cells, changes))
        self.cells, self.touched, self.gone = state.of(self.plan.owner), [], set()
        return state

    def _cell(self, key: Any, each: Any) -> Group:
        return (*as_tuple(key, self.plan.by), *as_tuple(each, self.plan.each))

    def _commit_span(self, state: State) -> State:
        chunks, epoch = self.chunks, state.epoch
        if self.fresh is not None and self.fresh[1]:
            rows, places, stamps = self.fresh
            n = len(places)
            self.census.store(epoch, n)
            self.census.count(epoch, n)
            chunks = chunks.with_rows(epoch, rows.as_stored(tuple(self.plan.kept), places, stamps, self.next - rows.n))
        for chunk, left in self.left.items():
            self.census.count(chunk, -left)
        self.left.clear()
        if gone := self.census.forget_empty(epoch):
            chunks = chunks.without(gone)
        if self.floor is not None and chunks.rest.get(("floor",)) != self.floor:
            chunks = chunks.with_rest({("floor",): self.floor})
        sparse = self.census.is_sparse
        if sparse:
            alive = sorted(row[3] for group in self.groups.values() for row in group.seen.rows)
            chunks = chunks.compacted(epoch, alive)
        if chunks is not self.chunks:
            state = state.put(self.plan.owner, chunks)
            self.chunks, self.cells = chunks, state.of(self.plan.owner)
        if sparse:
            self.cells = {}  # made anew from what is stored now: chunks have other numbers
        return state

    def _commit_capture(self, state: State, keeper: Keeper, captured: dict[str, pa.Table]) -> State:
        table, places, sizes, times = None, *(self.seen_by_keeper or (None, [], [], []))[1:]
        if self.seen_by_keeper is not None:
            table = self.seen_by_keeper[0].table
            if len(places) < table.num_rows:
                table = table.take(pa.array(places, pa.int64()))
        state, taken = keeper.commit(state, table, sizes, times)
        if taken is not None and taken.num_rows and self.spec.capture is not None:
            captured[self.spec.capture.to] = taken
        return state

    def _keep(self, entry: _Entry, size: int, epoch: int) -> None:
        assert self.keeper is not None and self.seen_by_keeper is not None
        self.keeper.row(entry.group.key, entry.t_us, size, epoch)
        for values, value in zip(self.seen_by_keeper[1:], (entry.place, size, entry.t_us), strict=True):
            values.append(value)

    def _restore(self) -> None:
        if self.spec.is_latest:
            self._restore_latest()
        else:
            self._restore_span()
        for key, bad in self.bad_cells.items():
            self._group(key).bad = dict(bad)
        for key, (t_us, heard_us) in self.emptied_cells.items():
            group = self.emptied[key] = self._group(key)
            group.seen.t_us, group.heard_us = t_us, heard_us
        for book in self.books:
            for key in book.alarms:
                if not is_more(key):
                    self.restless[from_tuple(key)] = self._group(key)
        self.sweep_at_us, self.is_full = 0, self.book.has_limit("keys")

    def _group(self, key: Group) -> _Group:
        return self.groups.get(from_tuple(key)) or self._new_group(from_tuple(key))

    def _restore_latest(self) -> None:
        rows = sorted(self.cells.items(), key=lambda cell: int(cell[1][0]))
        told = zip((*self.plan.by, *self.plan.each, *self.kept), zip(*((*k, *v[4:]) for k, v in rows), strict=True), strict=False)
        kept = {name: pa.array(list(values), self.plan.kept[name]) for name, values in told}
        inputs = self._restored_inputs(pa.table(kept), len(rows))
        n_by = len(self.plan.by)
        for (cell, (seq, te_us, t_us, arrival_us, *_)), values in zip(rows, inputs, strict=True):
            group = self._group(cell[:n_by])
            group.seen.restore(t_us, te_us, from_tuple(cell[n_by:]), seq, cell, values, self.spec.stale_after)
            group.heard_us = max(group.heard_us, arrival_us)
            self.next = seq + 1
            self.rows_in_sight += 1

    def _restore_span(self) -> None:
        floor = self.floor[0] if self.floor else -1
        for epoch, table in in_order(self.chunks):
            inputs = self._restored_inputs(table, table.num_rows)
            self.census.store(epoch, table.num_rows)
            keys = as_keys([table[name].to_pylist() for name in self.plan.by], table.num_rows)
            own = zip(*(table[name].to_pylist() for name in ("_t", "_seq", "_arrival")), strict=True)
            for key, (t_us, seq, arrival_us), values in zip(keys, own, inputs, strict=True):
                if seq > floor:
                    group = self.groups.get(key) or self._new_group(key)
                    before = len(group.seen.rows)
                    group.seen.push(t_us, self.over_us, epoch, seq, values, self.left)
                    self.rows_in_sight += len(group.seen.rows) - before
                    self.census.count(epoch, 1)
                    group.heard_us = max(group.heard_us, arrival_us)
                self.next = max(self.next, seq + 1)

    def _restored_inputs(self, kept: pa.Table, n: int) -> list[tuple[Any, ...]]:
        arguments = self._arguments(kept) if n else []
        columns = [aggregate.inputs(arguments) for aggregate in self.plan.aggregates] if n else []
        return list(zip(*columns, strict=True)) if columns else [()] * n


def _delay(given: int | str, seconds: Any) -> int:
    """Microseconds; an expression in seconds that is NULL or below 0 is no delay, one beyond `_DELAY_MAX_S` is never over."""
    if isinstance(given, int):
        return given
    if seconds is None or seconds <= 0:
        return 0
    return round(float(seconds) * 1_000_000) if seconds < _DELAY_MAX_S else _AT_END  # NaN is not below it


def _array(values: list[Any], type_: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, type_)
    except (pa.ArrowInvalid, OverflowError):
        return pa.array([v if isinstance(v, int) and -(2**63) <= v < 2**63 else None for v in values], type_)
