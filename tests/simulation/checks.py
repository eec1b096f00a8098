"""What must hold once everything healed and went quiet: each complaint begins with the number of the invariant that is broken."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from control_plane import fleet, requests, rollout_store
from control_plane.audit import Scope, run_audit
from control_plane.lake import retaken_run
from control_plane.rollout import RUNNING
from pipelines.contract.folds import decide
from tests.simulation.pipeline import PIPELINE

if TYPE_CHECKING:
    from tests.simulation.world import Node, World

Rows = list[dict[str, Any]]
LINEAGE = ("_node", "_run", "_stream", "_seq", "_row")
AUDIT_EVERY = 5  # seeds
AT_ONCE_S = 5.0  # two looks at the sources, which are far apart here
_REFUSED = "the control plane refused a segment"
_HARMLESS = (
    "security",
    "the version failed its gate",
    "the store does not take writes",
    "ingest: a group could not be stored",
)  # what is said in the log as an error on purpose


class Lake:
    """Every table as rows, read once."""

    def __init__(self, directory: Path) -> None:
        self.tables: dict[str, Rows] = {}
        for path in sorted(directory.iterdir()):
            try:
                self.tables[path.name] = DeltaTable(path).to_pyarrow_table().to_pylist()
            except TableNotFoundError:
                continue

    def of(self, table: str, node: str) -> Rows:
        name = "node" if table == "segments" else "_node"
        return [row for row in self.tables.get(table, []) if row[name] == node]

    def has_stubs(self, node: str) -> bool:
        return any(row.get("void") for row in self.of("segments", node))

    def void_rows(self, node: str, stream: str) -> int:
        """Rows of which the lake says that they are void or refused: of each run those sealed and not stored so far."""
        last: dict[str, dict[str, Any]] = {}
        retaken = 0
        for row in self.of("segments", node):
            if row["stream"] == stream:
                retaken += row["rows"] if row["reason"].startswith("retaken") else 0
                last[row["run"]] = max(last.get(row["run"], row), row, key=lambda row: int(row["seq"]))
        return sum(row["run_rows"] - row["run_stored"] for row in last.values()) - retaken

    def refused(self, node: str) -> Rows:
        """Segments that are refused, and were not taken after all."""
        rows = self.of("segments", node)
        runs = {row["run"] for row in rows}
        return [row for row in rows if row["verdict"] == "refused" and retaken_run(row["run"], row["seq"]) not in runs]

    def windows(self, node: str) -> Rows:
        """The newest revision of each window."""
        newest: dict[tuple[Any, ...], dict[str, Any]] = {}
        rows = self.of("sim_windows__log", node) or self.of("sim_windows", node)
        for row in rows:
            key = (row["g"], row["_window_start"])
            if key not in newest or row["_revision"] >= newest[key]["_revision"]:
                newest[key] = row
        return list(newest.values())


def complaints(world: World) -> list[str]:
    lake = Lake(world.control.config.lake_dir)
    found = [text for check in CHECKS for text in check(world, lake)]
    world.rows_checked = sum(len(rows) for rows in lake.tables.values())
    for name, rows in sorted(lake.tables.items()):
        world.note("table", name=name, rows=len(rows))
    return found


def i2_rows_are_unique(world: World, lake: Lake) -> Iterator[str]:
    for name, rows in lake.tables.items():
        keys = Counter(
            tuple(row[c] for c in (LINEAGE if name != "segments" else ("node", "run", "stream", "seq"))) for row in rows
        )
        if twice := [key for key, count in keys.items() if count > 1]:
            yield f"I2: {len(twice)} keys of {name} are there more than once, such as {twice[0]}"


def i2_content_is_there_once(world: World, lake: Lake) -> Iterator[str]:
    """What a node read once is stored once, unless its card was restored: it then reads again what came after the copy."""
    for node in world.nodes:
        counts = Counter(row["n"] for row in lake.of("sim_rows", node.id))
        twice = sorted(n for n, count in counts.items() if count > 1 and n not in node.read_again)
        if twice:
            yield f"I2: {node.name}: {len(twice)} rows are stored more than once: {twice[:5]}"
        good = {line.n for line in node.writer.lines if line.kind == "good"}
        if strange := sorted(counts.keys() - good):
            yield f"I2: {node.name}: rows that nobody wrote: {strange[:5]}"
        by_run = Counter((row["_run"], row["n"]) for row in lake.of("sim_rows", node.id))
        if doubled := [key for key, count in by_run.items() if count > 1]:
            yield f"I2: {node.name}: one run holds a row twice: {doubled[:3]}"


def i3_nothing_is_lost(world: World, lake: Lake) -> Iterator[str]:
    """What was read is stored, or a stub says that it is void (I3, I4), or a lake that was lost had it, as rows or as a stub. Or
    both: what the lost lake had may be evicted before its receipt came."""
    for node in world.nodes:
        stored = {row["n"] for row in lake.of("sim_rows", node.id)}
        gone = [line.n for line in node.writer.lines if line.kind == "good" and line.n not in stored]
        missing = [n for n in gone if n not in node.lost_with_lake]
        void = lake.void_rows(node.id, "readings")
        if len(missing) > void + node.void_lost_with_lake:
            yield f"I3: {node.name}: {len(missing)} rows are not in the lake, {void} are accounted void: {missing[:5]}"
        if len(gone) < void and not node.read_again:
            yield f"I4: {node.name}: {void} rows are accounted void, but only {len(gone)} are missing"
        refused = lake.refused(node.id)
        if refused and not world.retyped and not node.was_restored:
            yield f"I3: {node.name}: {len(refused)} segments were refused: {refused[0]['reason']}"


def i3_marks_agree(world: World, lake: Lake) -> Iterator[str]:
    """What the node takes for confirmed is in the lake, and after quiet nothing is pending."""
    for node in world.nodes:
        reached: dict[tuple[str, str], int] = defaultdict(int)
        for row in lake.of("segments", node.id):
            key = (row["run"], row["stream"])
            reached[key] = max(reached[key], row["seq"])
        for run, stream, mark, pending in node.select("SELECT run, stream, mark_seq, pending_segments FROM streams"):
            if mark > reached[run, stream]:
                yield f"I3: {node.name}: {stream} of {run} is freed up to {mark}, the lake has it up to {reached[run, stream]}"
            if pending:
                yield f"I6: {node.name}: {pending} segments of {stream} are still pending"


def i4_chains_have_no_gap(world: World, lake: Lake) -> Iterator[str]:
    for node in world.nodes:
        runs: dict[tuple[str, str], Rows] = defaultdict(list)
        for row in lake.of("segments", node.id):
            runs[row["run"], row["stream"]].append(row)
        for key, rows in runs.items():
            at, link, total = 0, "", 0
            for row in sorted(rows, key=lambda row: row["seq"]):
                first = row.get("first") or row["seq"]
                total += row["rows"]
                if first != at + 1 or row["previous"] != link:
                    yield f"I4: {node.name}: run {key} goes from {at} to {first}, or does not follow"
                    break
                if row["run_rows"] != total:
                    yield f"I4: {node.name}: run {key} has {total} rows through {row['seq']}, its header says {row['run_rows']}"
                    break
                at, link = row["seq"], row.get("stands_for") or row["digest"]


def i4_ledgers_add_up(world: World, lake: Lake) -> Iterator[str]:
    """The source's ledger of the newest ledger segment of each node against what its files held."""
    for node in world.nodes:
        rows = [row for row in lake.of("segments", node.id) if json.loads(row["ledgers"]).get("source")]
        if not rows or node.read_again:
            continue
        newest = max(rows, key=lambda row: json.loads(row["ledgers"])["source"].get("lines", {}).get("read", 0))
        counts = json.loads(newest["ledgers"])["source"].get("lines", {})
        words = ("undecodable", "quarantined", "dropped_invalid", "deduplicated", "filtered", "filtered_null", "accepted")
        total = sum(n for name, n in counts.items() if name.split(".")[0] in words)
        if counts.get("read", 0) != total:
            yield f"I4: {node.name}: read {counts.get('read')} is not the sum of its outcomes, {total}: {counts}"
        if counts.get("read", 0) > len(node.writer.lines):
            yield f"I4: {node.name}: read {counts['read']} of {len(node.writer.lines)} lines"


def i4_rejected_rows_are_kept(world: World, lake: Lake) -> Iterator[str]:
    for node in world.nodes:
        if node.read_again or node.lost_with_lake or lake.has_stubs(node.id):
            continue
        written = sum(line.kind == "invalid" for line in node.writer.lines)
        stored = len(lake.of("quarantine", node.id))
        if stored != written:
            yield f"I4: {node.name}: {written} lines are invalid, {stored} are in quarantine"


def i14_windows_hold_every_row(world: World, lake: Lake) -> Iterator[str]:
    """`contributed = emitted + open + too_late`, whatever crashed in between (I1, I14)."""
    for node in world.nodes:
        if node.read_again or node.lost_with_lake or lake.has_stubs(node.id) or world.retyped or world.tables:
            continue
        expected: dict[tuple[str, int], list[int]] = defaultdict(list)
        for line in node.writer.lines:
            if line.kind == "good":
                expected[line.group, line.ts_us // 10_000_000].append(line.n)
        found = {
            (row["g"], int(row["_window_start"].timestamp()) // 10): (row["number"], row["total"])
            for row in lake.windows(node.id)
        }
        wrong = [k for k, ns in expected.items() if k in found and found[k] != (len(ns), sum(ns))]
        if wrong:
            yield f"I1: {node.name}: {len(wrong)} windows hold other rows than were read, such as {wrong[0]}: {found[wrong[0]]}"
        missing = expected.keys() - found.keys()
        if missing:
            yield f"I4: {node.name}: {len(missing)} windows never closed or are lost, such as {min(missing)}"


def i6_replicas_agree(world: World, nodes: list[Node]) -> Iterator[str]:
    plane = world.control.plane
    if plane is None or world.control.life is None:
        yield "I12: the control plane is down"
        return
    with plane._store.write() as db:
        for node in nodes:
            stored, agent = fleet.find_node(db, node.id), node.agent
            if agent is None:
                yield f"I12: {node.name} is down"
                continue
            if stored.document.digest() != agent.record.document.digest():
                yield f"I6: {node.name}: the documents differ"
            if world.store_was_restored:
                continue
            if stored.manifest is None or stored.manifest.order != agent.record.manifest.order:
                yield f"I6: {node.name}: the manifests differ"
            for name, why in fleet.convergence(db, stored).items():
                reported = stored.document.reported().get(name)
                if reported is None or not (reported.reason or reported.code or reported.gate == "held"):
                    yield f"I6: {node.name}: {name} has not converged and does not say why: {why}"


def i9_bounds(world: World, lake: Lake) -> Iterator[str]:
    yield from sorted(world.out_of_bounds)


def i4_audit_agrees(world: World, lake: Lake) -> Iterator[str]:
    """`tidewire audit` finds no difference. It is slow: some seeds only; of a restored lake or card it rightly complains."""
    if world.seed % AUDIT_EVERY or any(node.lost_with_lake or node.was_restored for node in world.nodes):
        return
    for difference in run_audit(world.control.config.lake_dir, Scope()).differences:
        yield f"I4: audit: {dict(difference)}"


def i10_node_time_never_falls(world: World, lake: Lake) -> Iterator[str]:
    for node in world.nodes:
        if node.read_again:
            continue
        at: dict[tuple[str, str], int] = defaultdict(int)
        sealed = [row for row in lake.of("segments", node.id) if not row["void"]]  # a stub is made when it is sent
        for row in sorted(sealed, key=lambda row: (row["run"], row["stream"], row["seq"])):
            key = (row["run"], row["stream"])
            if row["node_time_us"] < at[key]:
                yield f"I10: {node.name}: node time falls within run {key}"
                break
            at[key] = row["node_time_us"]


def i15_every_alarm_sounded(world: World, lake: Lake) -> Iterator[str]:
    """The incidents and actions are those of one uninterrupted evaluation of the same rows."""
    for node in world.nodes:
        expected = sum(line.raises for line in node.writer.lines)
        performed = {a["incident"] for name, _, a in world.actions if name == node.name and a.get("transition") == "raised"}
        raised = Counter(row["incident"] for row in lake.of("incidents", node.id) if row["transition"] == "raised")
        may_differ = (node.read_again and len(performed) >= expected) or (node.was_shelved and len(performed) <= expected)
        if len(performed) != expected and not may_differ:
            yield f"I15: {node.name}: {expected} alarms, actions were performed for {len(performed)}"
        if node.read_again or world.faults["lake_restored"]:
            continue
        if twice := [incident for incident, count in raised.items() if count > 1]:
            yield f"I15: {node.name}: incident {twice[0]} was raised {raised[twice[0]]} times"
        if len(raised) != expected:
            yield f"I15: {node.name}: {expected} alarms, {len(raised)} incidents in the lake"


def i15_alarms_sound_at_once(world: World, lake: Lake) -> Iterator[str]:
    """Where nothing crashed, an action follows its row within seconds, whatever disk, link and lake do meanwhile."""
    for node in world.nodes:
        if node.crashes or node.was_shelved or node.supervisor is None or node.supervisor.started > 1:
            continue
        raised = [line.ts_us / 1e6 - world.epoch_s for line in node.writer.lines if line.raises]
        done = [at for name, at, action in world.actions if name == node.name and action.get("transition") == "raised"]
        late = [(row_s, action_s) for row_s, action_s in zip(raised, done, strict=False) if action_s > row_s + AT_ONCE_S]
        if late:
            yield f"I15: {node.name}: a row of {late[0][0]:.1f} sounded at {late[0][1]:.1f}"


def i2_values_are_those_sealed(world: World, lake: Lake) -> Iterator[str]:
    for node in world.nodes:
        wrong = [
            row["n"] for row in lake.of("sim_rows", node.id)
            if row["twice"] != row["n"] * 2 + (0.5 if row["_version"] in world.retyped else 0)
        ]  # fmt: skip
        if wrong:
            yield f"I2: {node.name}: {len(wrong)} rows hold another value than was sealed: {wrong[:5]}"


def i5_parameters_fold_by_what_was_seen(world: World, lake: Lake) -> Iterator[str]:
    """The last value set on site holds, else the central one, whatever the clocks said."""
    for node in world.nodes:
        if world.store_was_restored or node.was_restored or node.agent is None:
            continue
        possible = {value or central for value in (node.limits or {0.0}) for central in world.limits}
        reported = node.agent.record.document.reported().get("sim")
        if reported is None or reported.params.get("limit_c") not in possible:
            found = reported and reported.params.get("limit_c")
            yield f"I5: {node.name}: limit_c is {found}, it should be one of {sorted(possible)}"


def i5_what_was_taken_back_is_gone(world: World, lake: Lake) -> Iterator[str]:
    """After everybody resumed and unpinned, no pause and no pin is left, on either side."""
    for node in world.nodes:
        if node.agent is None:
            continue
        for register, decision in decide(node.agent.record.document.notes(), node=node.id).items():
            if register.kind in ("pause", "pin") and decision.is_set:
                yield f"I5: {node.name}: {register.kind} still holds: {decision.note.name} beat {decision.beaten}"


def i12_no_node_stays_with_what_crashes(world: World, lake: Lake | None) -> Iterator[str]:
    for node in world.nodes:
        now = node.agent.record.document.reported().get(PIPELINE) if node.agent else None
        if now is None or now.number in world.crashing or now.phase != "running":
            yield f"I12: {node.name}: it should run a version that does not crash: {now}"


def i6_rollouts_end(world: World, lake: Lake | None) -> Iterator[str]:
    """With every node in contact none waits, but for a gate that has no rows to judge by (I8)."""
    plane = world.control.plane
    if plane is None or world.store_was_restored:
        return
    with plane._store.write() as db:
        gates = {now.gate for found in fleet.all_nodes(db) if (now := found.reported.get(PIPELINE))}
        if gates & {"soaking", "held"}:
            return
        for rollout in rollout_store.load(db, rollout_store.current_ids(db)).values():
            if rollout.state == RUNNING and rollout.is_paced:
                yield f"I6: the rollout of version {rollout.number} is still at step {rollout.step}: {rollout.why}"


def i6_requests_end(world: World, lake: Lake | None) -> Iterator[str]:
    """Each that was asked is over, and no node is asked any more: cancelled by absence (I7)."""
    plane = world.control.plane
    if plane is None or world.store_was_restored:
        return
    with plane._store.write() as db:
        for name in requests.open_until(db):
            yield f"I6: the request {name} is still open"
    for node in world.nodes:
        if node.agent is not None and node.agent.record.manifest.requests:
            yield f"I7: {node.name}: it is still asked {sorted(node.agent.record.manifest.requests)}"


def i2_every_answer_comes_once(world: World, lake: Lake) -> Iterator[str]:
    """Rows numbered from 1 without a gap, then one end that says how many there were."""
    for node in world.nodes:
        if node.read_again or node.lost_with_lake or lake.has_stubs(node.id):
            continue
        answers: dict[str, Rows] = defaultdict(list)
        for row in lake.of("requests", node.id):
            answers[row["request"]].append(row)
        for name, rows in answers.items():
            numbers = sorted(row["n"] for row in rows if row["kind"] == "row")
            ends = [row for row in rows if row["kind"] != "row"]
            if numbers != list(range(1, len(numbers) + 1)):
                yield f"I2: {node.name}: the answer to {name} has the rows {numbers}"
            is_asked_again = world.store_was_restored  # of two answers the first counts
            if (len(ends) > 1 and not is_asked_again) or any(end["kind"] == "done" and end["n"] != len(numbers) for end in ends):
                yield f"I2: {node.name}: the answer to {name} of {len(numbers)} rows ends with {ends}"
        if name := next(iter(answers.keys() - world.requests), ""):
            yield f"I7: {node.name}: it answered {name}, which nobody asked"


def i2_rows_name_the_table_they_were_made_with(world: World, lake: Lake) -> Iterator[str]:
    for node in world.nodes:
        segments = {(row["run"], row["seq"]): row for row in lake.of("segments", node.id) if row["stream"] == "readings"}
        for row in lake.of("sim_rows", node.id):
            segment = segments.get((row["_run"], row["_seq"]))
            digest = json.loads(segment["lookups"]).get("marks") if segment and not segment["void"] else None
            if segment and not segment["void"] and row.get("mark") != world.tables.get(digest or ""):
                yield f"I2: {node.name}: row {row['n']} has the mark {row.get('mark')}, its segment names {digest}"
                break


def i15_acknowledged_once(world: World, lake: Lake) -> Iterator[str]:
    """However many people did, on whichever side."""
    for node in world.nodes:
        if node.read_again or world.faults["lake_restored"]:
            continue
        count = Counter(row["incident"] for row in lake.of("incidents", node.id) if row["transition"] == "acknowledged")
        if twice := [incident for incident, times in count.items() if times > 1]:
            yield f"I15: {node.name}: incident {twice[0]} was acknowledged {count[twice[0]]} times"


def no_defects_logged(world: World, lake: Lake) -> Iterator[str]:
    restored = {node.name for node in world.nodes if node.was_restored}
    for machine, text in world.errors:
        if text.startswith("security") and restored | {""} == {""} and not world.store_was_restored:
            yield f"log: {machine}: {text}"
        if not text.startswith(_HARMLESS) and not (
            text.startswith(_REFUSED) and (world.retyped or machine in restored or world.store_was_restored)
        ):
            yield f"log: {machine}: {text}"
    for text in world.loop.errors:
        yield f"log: {text}"


CHECKS: tuple[Callable[[World, Lake], Iterator[str]], ...] = (
    i2_rows_are_unique,
    i2_content_is_there_once,
    i3_nothing_is_lost,
    i3_marks_agree,
    i4_chains_have_no_gap,
    i4_ledgers_add_up,
    i4_rejected_rows_are_kept,
    i14_windows_hold_every_row,
    lambda world, lake: i6_replicas_agree(world, world.nodes),
    i9_bounds,
    i4_audit_agrees,
    i10_node_time_never_falls,
    i15_every_alarm_sounded,
    i15_alarms_sound_at_once,
    i2_values_are_those_sealed,
    i5_parameters_fold_by_what_was_seen,
    i5_what_was_taken_back_is_gone,
    i12_no_node_stays_with_what_crashes,
    i6_rollouts_end,
    i6_requests_end,
    i2_every_answer_comes_once,
    i2_rows_name_the_table_they_were_made_with,
    i15_acknowledged_once,
    no_defects_logged,
)
