"""NodeState: what should run on a node, what does, and what people changed; and the pure folds over it (I5, I6)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines.contract.errors import Refused
from pipelines.contract.frames import canonical_json, sha256
from pipelines.contract.keys import Key, is_signed_by

Scalar = str | int | float | bool | None

CONTROL = "control"  # the author of the control plane's notes
PHASES = ("pending", "running", "failed", "stopped")


@dataclass(frozen=True, slots=True)
class Setting:
    """One central value of one parameter. `origin` is `deployment` or `rule:<id>`; `generation` is that of the manifest that
    first carried it, so that an on-site note can be told to have seen it or not."""

    value: Scalar
    origin: str
    by: str = ""
    reason: str = ""
    generation: int = 0
    force: bool = False
    locked: bool = False


@dataclass(frozen=True, slots=True)
class Assignment:
    """A version that should run, and why: who asked for it, with which words, at what time (a label)."""

    digest: str
    number: int
    params: Mapping[str, Setting] = field(default_factory=dict)
    by: str = ""
    reason: str = ""
    at: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What should run on one node: replaced whole; the higher `(term, generation)` wins; absence means remove."""

    # written by: the control plane
    node: str
    term: int
    generation: int
    assignments: Mapping[str, Assignment] = field(default_factory=dict)  # pipeline -> assignment
    labels: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Scalar] = field(default_factory=dict)
    format: int = 1

    @property
    def order(self) -> tuple[int, int]:
        return self.term, self.generation

    def to_bytes(self) -> bytes:
        return canonical_json(asdict(self))

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        try:
            raw = json.loads(data)
            if raw["format"] != 1:
                raise Refused(f"manifest format {raw['format']} is not known here", op="read manifest", hint="upgrade the agent")
            assignments = {
                name: Assignment(**{**a, "params": {p: Setting(**s) for p, s in a["params"].items()}})
                for name, a in raw["assignments"].items()
            }
            return cls(**{**raw, "assignments": assignments})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Refused(f"not a manifest: {error}", op="read manifest") from None


@dataclass(frozen=True, slots=True)
class SignedManifest:
    """A manifest's canonical bytes with the control plane's signature: the only form that is stored, sent or obeyed (I13)."""

    body: bytes
    signature: bytes

    @classmethod
    def sign(cls, manifest: Manifest, key: Key) -> SignedManifest:
        body = manifest.to_bytes()
        return cls(body, key.sign(body))

    def open(self, node: str, public: str) -> Manifest:
        """The manifest, once its signature and target are checked. Raises `Refused` otherwise."""
        if not is_signed_by(public, self.body, self.signature):
            raise Refused("the control plane's signature does not match", op="open manifest", place=node)
        manifest = Manifest.from_bytes(self.body)
        if manifest.node != node:
            raise Refused(f"this manifest is for node {manifest.node}", op="open manifest", place=node)
        return manifest


@dataclass(frozen=True, slots=True)
class Reported:
    """What one pipeline does on the node: transitions only, never moving figures."""

    # written by: the node
    digest: str
    number: int
    phase: str  # one of PHASES
    params: Mapping[str, Scalar] = field(default_factory=dict)  # in effect
    params_digest: str = ""
    reason: str = ""
    since: str = ""  # the node's wall clock when this phase began; a label
    generation: int = 0  # of the manifest it answers

    def to_json(self) -> str:
        return canonical_json(asdict(self)).decode()

    @classmethod
    def from_json(cls, text: str) -> Reported:
        """Raises `Refused` on anything that a node of this format does not write."""
        try:
            reported = cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError) as error:
            raise Refused(f"not a report: {error}", op="read report") from None
        texts = (reported.digest, reported.phase, reported.params_digest, reported.reason, reported.since)
        numbers = (reported.number, reported.generation)
        well_formed = all(type(text) is str for text in texts) and all(type(number) is int for number in numbers)
        if not well_formed or not isinstance(reported.params, dict) or reported.phase not in PHASES:
            raise Refused("a report whose fields have other types", op="read report")
        _check_written(reported, text)
        return reported


NOTE_KINDS = frozenset({"param", "unset", "acknowledge", "reset", "comment"})


@dataclass(frozen=True, slots=True)
class Note:
    """What a person did, on either side. Add-only; `(author, seq)` names it; `after` is the generation its author had seen.

    `subject` is a pipeline (`param`, `unset`, `comment`) or an incident id (`acknowledge`, `reset`); `body` depends on the kind:
    `{"name":.., "value":..}` for `param`, `{"name":..}` for `unset`.
    """

    # written by: its author
    author: str  # CONTROL or the node's id
    seq: int
    kind: str
    subject: str
    body: Mapping[str, Any] = field(default_factory=dict)
    by: str = ""
    reason: str = ""
    after: int = 0
    at: str = ""  # the author's wall clock; a label

    def to_json(self) -> str:
        return canonical_json(asdict(self)).decode()

    @classmethod
    def from_json(cls, text: str) -> Note:
        try:
            note = cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError) as error:
            raise Refused(f"not a note: {error}", op="read note") from None
        texts = (note.author, note.subject, note.by, note.reason, note.at)
        if not all(type(text) is str for text in texts) or not isinstance(note.body, dict):
            raise Refused("a note whose fields have other types", op="read note")
        if note.kind not in NOTE_KINDS or type(note.seq) is not int or note.seq < 1 or type(note.after) is not int:
            raise Refused(f"not a note of a known kind: {note.kind!r}", op="read note")
        _check_written(note, text)
        return note


def _check_written(entry: Reported | Note, text: str) -> None:
    """Refuse what `to_json` does not write: NaN, half a character, a member twice."""
    try:
        is_ours = entry.to_json() == text
    except (ValueError, TypeError, RecursionError):
        is_ours = False
    if not is_ours:
        raise Refused("an entry that is not in canonical form", op=f"read {type(entry).__name__.lower()}")


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
    Order among the notes is their author's own (`seq`), never a clock's.
    """
    on_site: dict[str, Note] = {}
    for note in sorted(notes, key=lambda n: n.seq):
        if note.author == node and note.subject == pipeline and note.kind in ("param", "unset"):
            on_site[str(note.body.get("name"))] = note
    return {name: _fold_param(default, assignment.params.get(name), on_site.get(name)) for name, default in defaults.items()}


def _fold_param(default: Scalar, central: Setting | None, note: Note | None) -> Effective:
    ladder = [Effective(default, "default")]
    if central is not None:
        ladder.append(Effective(central.value, central.origin, central.by, central.reason))
    if note is not None and note.kind == "param":
        entry = Effective(note.body.get("value"), "on-site", note.by, note.reason)
        beaten = central is not None and (central.locked or (central.force and note.after < central.generation))
        ladder.insert(len(ladder) - 1 if beaten else len(ladder), entry)
    winner, *losers = reversed(ladder)
    return Effective(winner.value, winner.origin, winner.by, winner.reason, tuple((e.origin, e.value) for e in losers))


def params_digest(values: Mapping[str, Scalar]) -> str:
    return sha256(canonical_json(dict(values)))


def differences(manifest: Manifest, reported: Mapping[str, Reported]) -> dict[str, str]:
    """Per pipeline, how what runs differs from what should: empty when the node has converged (I6)."""
    wrong: dict[str, str] = {}
    for name, assignment in manifest.assignments.items():
        now = reported.get(name)
        if now is None or now.digest != assignment.digest:
            running = f"version {now.number}" if now else "nothing"
            wrong[name] = f"wanted version {assignment.number}, {running} reported"
        elif now.phase != "running":
            wrong[name] = f"{now.phase}: {now.reason}" if now.reason else now.phase
    for name, now in reported.items():
        if name not in manifest.assignments and now.phase != "stopped":
            wrong[name] = f"version {now.number} is {now.phase} though nothing wants it"
    return wrong
