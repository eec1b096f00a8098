"""What the entries of a NodeState amount to: pure folds, the same on both sides (I5, I6). Order never comes from a clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipelines.contract.causes import RUNS_AS_WANTED
from pipelines.contract.node_state import Assignment, Ban, Manifest, Note, Reported, Scalar, Setting

# kind -> (register, whether the note sets it). A register holds one thing per subject; `param` and `label` have one per name.
_REGISTERS = {
    "param": ("param", True),
    "unset": ("param", False),
    "pin": ("pin", True),
    "unpin": ("pin", False),
    "pause": ("pause", True),
    "resume": ("pause", False),
    "label": ("label", True),
    "unlabel": ("label", False),
    "shelve": ("shelve", True),
    "unshelve": ("shelve", False),
}


@dataclass(frozen=True, slots=True)
class Register:
    """Something that either side may set and take back: a pin, a pause, a label, a shelf, an on-site parameter."""

    subject: str
    kind: str  # param | pin | pause | label | shelve
    name: str = ""  # of the parameter or label


@dataclass(frozen=True, slots=True)
class Decision:
    """The note that holds, and the other side's newest when it was beaten: it stays visible."""

    note: Note
    is_set: bool
    beaten: Note | None = None


def register_of(note: Note) -> Register | None:
    """What `note` is about; None for what only adds up (acknowledge, reset, comment, ended)."""
    known = _REGISTERS.get(note.kind)
    return Register(note.subject, known[0], str(note.body.get("name", ""))) if known else None


def ended(notes: Iterable[Note], *, node: str) -> frozenset[str]:
    """Names of the notes whose time is over, as the node wrote: nobody else counts its time (I10)."""
    return frozenset(str(n.body["note"]) for n in notes if n.kind == "ended" and n.author == node and "note" in n.body)


def closed_incidents(notes: Iterable[Note], *, node: str) -> frozenset[str]:
    """Incidents about which nothing that was noted matters any more, as the node wrote."""
    return frozenset(n.subject for n in notes if n.kind == "ended" and n.author == node and "note" not in n.body)


def decide(notes: Iterable[Note], *, node: str) -> dict[Register, Decision]:
    """For each register the note that holds.

    Of one author the newest counts (`seq`). Of two sides, the one that had seen the other's (`seen`). When neither had, the site
    wins, which is nearer, unless the control plane forced. What has ended is as if it had been taken back.
    """
    notes = list(notes)
    over = ended(notes, node=node)
    newest: dict[Register, dict[bool, Note]] = {}
    for note in sorted(notes, key=lambda n: n.seq):
        if (register := register_of(note)) is not None:
            newest.setdefault(register, {})[note.author == node] = note
    return {register: _decide(sides.get(True), sides.get(False), over) for register, sides in newest.items()}


def _decide(on_site: Note | None, central: Note | None, over: frozenset[str]) -> Decision:
    winner, loser = (on_site, central) if _site_wins(on_site, central) else (central, on_site)
    assert winner is not None
    return Decision(winner, _REGISTERS[winner.kind][1] and winner.name not in over, loser)


def _site_wins(on_site: Note | None, central: Note | None) -> bool:
    if on_site is None or central is None:
        return central is None
    if central.seen >= on_site.seq:
        return False
    return on_site.seen >= central.seq or not central.body.get("force", False)


def local_labels(notes: Iterable[Note], *, node: str) -> dict[str, str]:
    """The labels that people put on the node itself; every name starts with `local.`."""
    decided = decide(notes, node=node).items()
    return {register.name: str(d.note.body.get("value", "")) for register, d in decided if _is_label(register, d)}


def _is_label(register: Register, decision: Decision) -> bool:
    return register.kind == "label" and decision.is_set and register.name.startswith("local.")


@dataclass(frozen=True, slots=True)
class Effective:
    """A parameter's value in effect and where it comes from; `losing` are the entries it beat, strongest first."""

    value: Scalar
    origin: str  # default | deployment | rule:<id> | on-site
    by: str = ""
    reason: str = ""
    losing: tuple[tuple[str, Scalar], ...] = ()  # (origin, value)


def effective_params(
    defaults: Mapping[str, Scalar], assignment: Assignment, notes: Iterable[Note], *, node: str, pipeline: str
) -> dict[str, Effective]:
    """Fold the entries of every parameter into the value in effect (design, section 8).

    Default < central setting < on-site note; a central force beats notes that had not seen it; a locked setting beats all.
    Order among the notes is their author's own (`seq`), never a clock's. A note that has ended is gone.
    """
    notes = list(notes)
    over = ended(notes, node=node)
    on_site: dict[str, Note] = {}
    for note in sorted(notes, key=lambda n: n.seq):
        if note.author == node and note.subject == pipeline and note.kind in ("param", "unset"):
            on_site[str(note.body.get("name"))] = note
    standing = {name: note for name, note in on_site.items() if note.kind == "param" and note.name not in over}
    return {name: _fold_param(default, assignment.params.get(name), standing.get(name)) for name, default in defaults.items()}


def _fold_param(default: Scalar, central: Setting | None, note: Note | None) -> Effective:
    ladder = [Effective(default, "default")]
    if central is not None:
        ladder.append(Effective(central.value, central.origin, central.by, central.reason))
    if note is not None:
        entry = Effective(note.body.get("value"), "on-site", note.by, note.reason)
        beaten = central is not None and (central.locked or (central.force and note.after < central.generation))
        ladder.insert(len(ladder) - 1 if beaten else len(ladder), entry)
    winner, *losers = reversed(ladder)
    return Effective(winner.value, winner.origin, winner.by, winner.reason, tuple((e.origin, e.value) for e in losers))


def is_banned(bans: Iterable[Ban], digest: str, params_digest: str, lift: int) -> bool:
    """Whether the node will not run this version with these parameters (I12)."""
    return any((ban.digest, ban.params_digest) == (digest, params_digest) and ban.lift >= lift for ban in bans)


def differences(manifest: Manifest, reported: Mapping[str, Reported]) -> dict[str, str]:
    """Per pipeline, how what runs differs from what should: empty when the node has converged (I6)."""
    wrong: dict[str, str] = {}
    for name, assignment in manifest.assignments.items():
        now = reported.get(name)
        if now is None or now.digest != assignment.digest:
            running = f"version {now.number}" if now else "nothing"
            told = f": {now.reason}" if now and now.reason else ""
            wrong[name] = f"wanted version {assignment.number}, {running} reported{told}"
        elif now.phase != "running":
            wrong[name] = f"{now.phase}: {now.reason}" if now.reason else now.phase
        elif now.code and now.code not in RUNS_AS_WANTED:
            wrong[name] = f"running, but {now.code}" + (f": {now.reason}" if now.reason else "")
        elif other := sorted(assignment.artifacts.items() - now.artifacts.items()):
            names = ", ".join(table for table, _ in other)
            wrong[name] = f"running, but not yet with the wanted table {names}" + (f": {now.reason}" if now.reason else "")
    for name, now in reported.items():
        if name not in manifest.assignments and now.phase != "stopped":
            wrong[name] = f"version {now.number} is {now.phase} though nothing wants it"
    return wrong
