"""The loop over the rows of a batch, written out for one trigger: aggregates and conditions in line, no call for a row that
changes nothing. Whatever is out of the ordinary goes to `slow`, which does the same for one row; a test compares both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.engine.triggers.condition import HELPERS, Abstain, Evaluate

if TYPE_CHECKING:
    from pipelines.engine.triggers.plan import Aggregate

Loop = Callable[..., Any]  # over spans it gives by how many rows more there are in sight

_LATEST = """
def loop(places, by_keys, each_keys, times, {columns}, groups, first_seq, arrival_us, touched, slow, judge):
    get = groups.get
    for i, key, each, te{v} in zip(places, by_keys, each_keys, times{columns_}):
        group = get(key)
        if group is None or group.bad:
            slow(i)
            continue
        seen = group.seen
        row = seen.rows.get(each)
        if row is None or row[1] > te:
            slow(i)
            continue
        if te > seen.t_us:
            if te >= seen.stale_at_us:
                slow(i)
                continue
            seen.t_us = te
        if row[2] < first_seq:
            touched.append(row)
        {olds}
        row[0] = seen.t_us
        row[1] = te
        row[2] = first_seq + i
        group.heard_us = arrival_us
        {same}
        {replaced}
        {judged}
"""

_SPAN = """
def loop(
    places, by_keys, times, {columns}, groups, first_seq, over_us, epoch, arrival_us, left, stored, stamps, slow, judge
):
    get, store, stamp = groups.get, stored.append, stamps.append
    in_sight = 0
    for i, key, te{v} in zip(places, by_keys, times{columns_}):
        group = get(key)
        if group is None or group.bad:
            slow(i)
            continue
        seen = group.seen
        rows = seen.rows
        t = seen.t_us
        if t is None or te > t:
            seen.t_us = t = te
        floor = t - over_us
        {tallies}
        while rows and rows[0][0] <= floor:
            _, chunk, o, _ = rows.popleft()
            left[chunk] = left.get(chunk, 0) + 1
            in_sight -= 1
            {removed}
        alone = not rows
        rows.append((t, epoch, ({values}), first_seq + i))
        {added}
        in_sight += 1
        store(i)
        stamp(t)
        group.heard_us = arrival_us
        {judged}
    return in_sight
"""


def write_loop(evaluate: Evaluate, aggregates: Sequence[Aggregate], is_latest: bool, n_by: int) -> Loop | None:
    """None for a trigger without aggregates."""
    n = len(aggregates)
    if not n:
        return None
    bound = [f"_a{i}" for i in range(n)]
    tallies = f"{', '.join(bound)}, = seen.tallies"
    group_values = [f"_v{n + i} = group.key[{i}]" for i in range(n_by)]
    results = [f"_v{i} = _a{i}.n" if a.is_count else f"_v{i} = _a{i}.result()" for i, a in enumerate(aggregates)]
    values = "".join(f"_v{i}, " for i in range(n))
    quiet = "(seen.t_us < group.quiet_us and arrival_us == group.quiet_at_us" + (")" if is_latest else " and not alone)")
    judged = [
        *results,
        *group_values,
        "try:",
        f"    out = {evaluate.source}",
        "except _Abstain:",
        "    out = None",
        f"if out != group.out or group.flagged or not (group.is_steady or {quiet}):",
        f"    judge(i, group, {'False' if is_latest else 'alone'}, ({values}), out)",
    ]
    added = [_add(i, a) for i, a in enumerate(aggregates)]
    removed = [_remove(i, a) for i, a in enumerate(aggregates)]
    replaced = [tallies] + [_replace(i, a) for i, a in enumerate(aggregates)]
    olds = f"o = row[4:]\nrow[4:] = {', '.join(f'v{i}' for i in range(n))},"
    if n == 1:
        olds = "o0 = row[4]\nrow[4] = v0"
    else:
        olds += "\n" + ", ".join(f"o{i}" for i in range(n)) + " = o"
    same = " and ".join(f"v{i} == o{i}" for i in range(n))
    skip = (
        ""
        if any(a.has_order for a in aggregates)
        else f"if {same} and not group.flagged and (group.is_steady or {quiet}):\n    continue"
    )
    columns = ", ".join(f"x{i}" for i in range(n))
    source = (_LATEST if is_latest else _SPAN).format(
        columns=columns,
        columns_="".join(f", x{i}" for i in range(n)),
        v="".join(f", v{i}" for i in range(n)),
        values="".join(f"v{i}, " for i in range(n)),
        olds=_indented(olds),
        same=_indented(skip),
        replaced=_indented("\n".join(replaced)),
        tallies=tallies,
        removed=_indented("\n".join(removed), 12),
        added=_indented("\n".join(added)),
        judged=_indented("\n".join(judged)),
    )
    names: dict[str, Any] = {**HELPERS, "__builtins__": {"zip": zip}, "_Abstain": Abstain}
    exec(source, names)  # noqa: S102 - written above, from expressions that condition.py wrote
    loop: Loop = names["loop"]
    return loop


def _add(i: int, aggregate: Aggregate) -> str:
    return f"if v{i} is not None: _a{i}.n += 1" if aggregate.is_count else f"_a{i}.add(v{i}, None)"


def _remove(i: int, aggregate: Aggregate) -> str:
    return f"if o[{i}] is not None: _a{i}.n -= 1" if aggregate.is_count else f"_a{i}.remove(o[{i}], None)"


def _replace(i: int, aggregate: Aggregate) -> str:
    if aggregate.is_count:
        return f"_a{i}.n += (v{i} is not None) - (o{i} is not None)"
    return f"_a{i}.remove(o{i}, each); _a{i}.add(v{i}, each)"


def _indented(text: str, spaces: int = 8) -> str:
    return text.replace("\n", "\n" + " " * spaces)
