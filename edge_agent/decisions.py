"""Hands to runners what people decided about incidents; only a runner's commit makes an acknowledgement count (I7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_agent.host import Shelves
from edge_agent.keeper import Keeper
from edge_agent.node_record import NodeRecord
from edge_agent.store import Store
from pipelines.contract import epochs
from pipelines.contract.folds import decide
from pipelines.contract.node_state import Note


class Decisions:
    def __init__(self, store: Store, record: NodeRecord, keepers: Mapping[str, Keeper], node: str) -> None:
        self._store, self._record, self._keepers, self._node = store, record, keepers, node
        self._handed: set[tuple[int, str]] = set()  # (runner, note): what it was told

    async def hand_over(self) -> None:
        """Give each runner what people shelved, and once what they decided about its open incidents."""
        written = self._record.document.notes()
        for pipeline, keeper in self._keepers.items():
            await keeper.set_shelves(shelves_of(written, self._node, pipeline))
        notes: dict[str, list[Note]] = {}
        for note in written:
            if note.kind in ("acknowledge", "reset"):
                notes.setdefault(note.subject, []).append(note)
        for incident in await self._store.incidents() if notes else ():
            for note in notes.get(incident["incident"], ()):
                await self._hand_over(note, incident)
        await self._close(written)

    async def _close(self, notes: Sequence[Note]) -> None:
        """Say of incidents about which something was noted that they are closed: the document may then forget them (I9)."""
        if not self._record.is_agreed or not epochs.to_close(notes, (), node=self._node):
            return
        still_open = {incident["incident"] for incident in await self._store.incidents()}
        for incident in epochs.to_close(notes, still_open, node=self._node):
            await self._record.add_note("ended", incident, {}, by="", reason="the incident is closed")

    async def _hand_over(self, note: Note, incident: Mapping[str, Any]) -> None:
        """A note has its effect once: an incident that is raised again is not acknowledged by what was said before."""
        name, mark = incident["incident"], f"{note.kind} {note.author}/{note.seq}"
        keeper = self._keepers.get(incident["pipeline"])
        if incident.get("notes", {}).get(mark) == "done":
            return
        if _is_moot(note, incident):
            await self._store.mark_note(name, mark, "done")
        elif keeper is not None and keeper.is_ready and (keeper.pid, mark) not in self._handed:
            self._handed.add((keeper.pid, mark))
            await self._store.mark_note(name, mark, "handed")
            await keeper.tell(note.kind, name, by=note.by or note.author, reason=note.reason, at=note.at)


def shelves_of(notes: Sequence[Note], node: str, pipeline: str) -> Shelves:
    """What people decided about shelving triggers of this pipeline, and incidents: whose they are its runner knows."""
    found: dict[str, tuple[bool, str, str]] = {}
    for register, decision in decide(notes, node=node).items():
        of, _, trigger = register.subject.partition("/")
        if register.kind == "shelve" and (not trigger or of == pipeline):
            note, is_over = decision.note, decision.note.kind == "shelve" and not decision.is_set
            words = ("", "its time was over") if is_over else (note.by or note.author, note.reason)
            found[trigger or register.subject] = (decision.is_set, *words)
    return found


def _is_moot(note: Note, incident: Mapping[str, Any]) -> bool:
    if note.kind == "acknowledge":
        return bool(incident["acknowledged"])
    return incident.get("flags") is not None and "latched" not in incident["flags"]
