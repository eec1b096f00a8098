"""NodeState: what should run on a node, what does, and what people changed, as typed values. `folds` says what they amount to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pipelines.contract.errors import Refused
from pipelines.contract.frames import canonical_json, sha256
from pipelines.contract.keys import Key, is_signed_by

Scalar = str | int | float | bool | None

CONTROL = "control"  # the author of the control plane's notes
PHASES = ("pending", "running", "paused", "failed", "stopped")
REQUEST_KINDS: tuple[Literal["query", "tap", "logs"], ...] = ("query", "tap", "logs")
REQUESTS_MAX = 16  # open on one node
GATES = ("", "soaking", "held", "passed", "failed")  # "": no gate is asked for, or nothing has run yet


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
class Gate:
    """What a new version must hold to on a node until it ran there for `soak_s` seconds of node time; else the node takes the
    last version that passed (I12). It judges only what a version controls, and a share above that of its predecessor."""

    soak_s: float = 60.0
    crashes: int = 2  # the runner may end by itself this often
    memory_bytes: int = 0  # of the runner, resident; 0: only the agent's own limit holds
    slower: float = 10.0  # times the predecessor's time per row
    rejected: float = 0.05  # rejected rows per row read, above the predecessor's share


@dataclass(frozen=True, slots=True)
class Assignment:
    """A version that should run, and why: who asked for it, with which words, at what time (a label)."""

    digest: str
    number: int
    params: Mapping[str, Setting] = field(default_factory=dict)
    by: str = ""
    reason: str = ""
    at: str = ""
    gate: Gate = Gate()
    lift: int = 0  # bans of this version that a node pronounced with a lower one are over (`rollout unban`)
    artifacts: Mapping[str, str] = field(default_factory=dict)  # name of a lookup table -> digest of its bytes


@dataclass(frozen=True, slots=True)
class Request:
    """A question to the node, answered once with segments of `requests`. It is cancelled by absence: lateness is the centre's
    to decide. The limits are those of one node; `max_s` is node time, from when the node takes it up.

    `body` depends on the kind: `query` `{"sql"}`; `tap` `{"pipeline", "where"}` ("": every row); `logs` `{"pipeline"}` ("": all).
    """

    kind: str  # one of REQUEST_KINDS
    body: Mapping[str, Any] = field(default_factory=dict)
    by: str = ""
    reason: str = ""
    at: str = ""
    max_s: float = 30.0
    max_rows: int = 1000
    max_bytes: int = 1024 * 1024


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
    requests: Mapping[str, Request] = field(default_factory=dict)  # id -> request
    format: int = 1

    @property
    def order(self) -> tuple[int, int]:
        return self.term, self.generation

    def to_bytes(self) -> bytes:
        return canonical_json(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        try:
            raw = json.loads(data)
            if raw["format"] != 1:
                raise Refused(f"manifest format {raw['format']} is not known here", op="read manifest", hint="upgrade the agent")
            assignments = {name: read_assignment(a) for name, a in raw["assignments"].items()}
            requests = {name: Request(**r) for name, r in raw["requests"].items()}
            return cls(**{**raw, "assignments": assignments, "requests": requests})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Refused(f"not a manifest: {error}", op="read manifest") from None


def read_assignment(raw: Mapping[str, Any]) -> Assignment:
    params = {name: Setting(**setting) for name, setting in raw["params"].items()}
    if not all(isinstance(text, str) for pair in raw["artifacts"].items() for text in pair):
        raise ValueError("artifacts are digests by name")
    return Assignment(**{**raw, "params": params, "gate": Gate(**raw["gate"])})


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
class Ban:
    """A version with these parameters failed its gate here. Over with other parameters, or once the assignment's `lift` is
    higher than it was."""

    # written by: the node
    digest: str
    number: int
    params_digest: str
    reason: str = ""
    lift: int = 0
    at: str = ""  # the node's wall clock; a label


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
    code: str = ""  # one of `causes.CODES`: why it is not as wanted; "" for as wanted, or when only `reason` says
    gate: str = ""  # one of GATES, of the version that runs
    bans: tuple[Ban, ...] = ()
    artifacts: Mapping[str, str] = field(default_factory=dict)  # in use: name -> digest
    since: str = ""  # the node's wall clock when this phase began; a label
    generation: int = 0  # of the manifest it answers

    def to_json(self) -> str:
        return canonical_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> Reported:
        """Raises `Refused` on anything that a node of this format does not write."""
        try:
            raw = json.loads(text)
            reported = cls(**{**raw, "bans": tuple(Ban(**ban) for ban in raw["bans"])})
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise Refused(f"not a report: {error}", op="read report") from None
        if not reported._is_well_formed() or reported.phase not in PHASES or reported.gate not in GATES:
            raise Refused("a report whose fields have other types", op="read report")
        _check_written(reported, text)
        return reported

    def _is_well_formed(self) -> bool:
        texts = [self.digest, self.phase, self.params_digest, self.reason, self.code, self.gate, self.since]
        numbers = [self.number, self.generation]
        for ban in self.bans:
            texts += [ban.digest, ban.params_digest, ban.reason, ban.at]
            numbers += [ban.number, ban.lift]
        maps = isinstance(self.params, dict) and isinstance(self.artifacts, dict)
        return maps and all(type(text) is str for text in texts) and all(type(number) is int for number in numbers)


NOTE_KINDS = frozenset(
    {"param", "unset", "pin", "unpin", "pause", "resume", "label", "unlabel"}
    | {"acknowledge", "reset", "shelve", "unshelve", "comment", "ended"}
)


@dataclass(frozen=True, slots=True)
class Note:
    """What a person did, on either side. Add-only; `(author, seq)` names it.

    Two things say what its author knew, so that order is causal and never a clock's (I5): `after`, the generation of the
    manifest, and `seen`, the newest note of the other side (0: none).

    `subject` is a pipeline (`param`, `unset`, `pin`, `unpin`, `pause`, `resume`, `comment`), "" for the node itself (`label`,
    `unlabel`, `comment`), an incident id (`acknowledge`, `reset`, `shelve`, `unshelve`, `comment`) or `pipeline/trigger`
    (`shelve`, `unshelve`). `body` depends on the kind; a key that does not apply is left out:

    * `param` `{"name", "value"}`, `unset` `{"name"}`
    * `label` `{"name", "value"}`, `unlabel` `{"name"}`, of the site only: the name starts with `local.`
    * `pin` `{"digest", "number"}`: this version runs, whatever the manifest says, until `unpin`
    * `param`, `pin`, `pause`, `shelve` may have `for_s`, seconds of node time from when the node first holds the note; the
      node then writes `ended` with `{"note": "author/seq"}`
    * `ended` without `note`: the incident `subject` is closed, and with it all that was noted about it
    * those of the control plane may have `"force": true`: it also beats what the site said without having seen it
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
    seen: int = 0
    at: str = ""  # the author's wall clock; a label

    @property
    def name(self) -> str:
        return f"{self.author}/{self.seq}"

    def check_author(self) -> None:
        """Raises `Refused` on what its author may not say: labels are the site's and under `local.`, and only the node ends."""
        if self.kind in ("label", "unlabel", "ended") and self.author == CONTROL:
            raise Refused(f"{self.kind} is for the site to say, not for the control plane", op="check note", place=self.name)
        if self.kind in ("label", "unlabel") and not str(self.body.get("name", "")).startswith("local."):
            raise Refused("a label that is put on site begins with local.", op="check note", place=self.name)

    def to_json(self) -> str:
        return canonical_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> Note:
        try:
            note = cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError) as error:
            raise Refused(f"not a note: {error}", op="read note") from None
        texts = (note.author, note.subject, note.by, note.reason, note.at)
        if not all(type(text) is str for text in texts) or not isinstance(note.body, dict):
            raise Refused("a note whose fields have other types", op="read note")
        numbers = (note.seq, note.after, note.seen)
        if note.kind not in NOTE_KINDS or not all(type(number) is int for number in numbers) or note.seq < 1:
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


def params_digest(values: Mapping[str, Scalar]) -> str:
    return sha256(canonical_json(dict(values)))
