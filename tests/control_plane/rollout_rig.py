"""A control plane's store and a fleet around it, in one process: time and contact are what the test says."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from server_process import PRESS

from control_plane import rollouts, store
from control_plane.commands import Commands, Writer
from control_plane.deployment_file import RolloutWords
from control_plane.effects import Contact
from control_plane.exchange import exchange
from control_plane.keys import KeyRing
from control_plane.store import Store, now_us
from pipelines.contract.document import NodeDocument
from pipelines.contract.folds import effective_params, is_banned
from pipelines.contract.keys import Key
from pipelines.contract.messages import Exchange
from pipelines.contract.node_state import CONTROL, Assignment, Ban, Manifest, Note, Reported, params_digest
from pipelines.contract.spec import load_spec

MINUTE = 60_000_000
WHO = Writer("ana", "why not")


class Edge:
    """A node that runs what its manifest says, unless it is `bad_for` that version; then it does as a gate does."""

    def __init__(self, plant: Plant, name: str, labels: str) -> None:
        self.plant, self.name, self.id = plant, name, f"n-{name}"
        self.key, self.document = Key.from_entropy(os.urandom(32)), NodeDocument()
        self.manifest = Manifest(self.id, 0, 0)
        self.bad_for: set[int] = set()
        self.bans: dict[str, list[Ban]] = {}
        self.passed: dict[str, Assignment] = {}
        with plant.store.write() as db:
            row = {"id": self.id, "name": name, "public": self.key.public, "labels": labels, "facts": "{}", "token": ""}
            row |= {"joined_at": 1, "last_seen": 1, "document": self.document.save(), "document_digest": self.document.digest()}
            row |= {"seen_digest": "", "seen_generation": 0, "seen_term": 0, "settled_term": 1, "replaced_by": ""}
            db.execute(store.nodes.insert().values(row))

    def hear(self, *, obey: bool = True) -> None:
        """Exchange, do what is asked, tell it. Without `obey` the answer is heard and nothing is told any more."""
        self._exchange()
        if obey:
            for pipeline, wanted in self.manifest.assignments.items():
                self._run(pipeline, wanted)
            for pipeline, now in self.document.reported().items():
                if pipeline not in self.manifest.assignments:
                    self.document.report(pipeline, Reported(now.digest, now.number, "stopped"))
            self._exchange()
        self.plant.seen[self.id] = self.plant.now

    def runs(self, pipeline: str = "press") -> int:
        """The version that it said it runs; 0 for none."""
        now = self.document.reported().get(pipeline)
        return now.number if now and now.phase == "running" else 0

    def note(self, kind: str, subject: str, **body: Any) -> None:
        self.document.add_note(Note(self.id, self.document.next_seq(self.id), kind, subject, body, "m.durand", "on site"))

    def _run(self, pipeline: str, wanted: Assignment) -> None:
        values = self._values(pipeline, wanted)
        bans = self.bans.setdefault(pipeline, [])
        if not is_banned(bans, wanted.digest, params_digest(values), wanted.lift):
            bans[:] = [ban for ban in bans if ban.digest != wanted.digest]
            if wanted.number not in self.bad_for:
                self.passed[pipeline] = wanted
            else:
                bans.append(Ban(wanted.digest, wanted.number, params_digest(values), "temp_c is text", wanted.lift, "16:05"))
        runs = self.passed.get(pipeline)
        told, gate, phase = (runs, "passed", "running") if runs else (wanted, "failed", "failed")
        values = self._values(pipeline, told)
        report = Reported(told.digest, told.number, phase, values, params_digest(values), gate=gate, bans=tuple(bans))
        self.document.report(pipeline, report)

    def _values(self, pipeline: str, assignment: Assignment) -> dict[str, Any]:
        notes = self.document.notes()
        found = effective_params(self.plant.defaults, assignment, notes, node=self.id, pipeline=pipeline)
        return {name: entry.value for name, entry in found.items()}

    def _exchange(self) -> None:
        request = Exchange(self.id, "x", *self.manifest.order, self.document.digest(), True)
        with self.plant.store.write() as db:
            reply, blobs = exchange(db, self.plant.keys, self.id, request.seal(self.key, [self.document.save()]))
        if signed := reply.manifest(blobs):
            self.manifest = signed.open(self.id, self.plant.keys.control.public)
        if reply.has_document:
            self.document = self.document.merged(blobs[-1], author=CONTROL, owner=self.id)


class Plant:
    """`now` moves only by hand."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.keys = KeyRing.open(directory / "keys")
        self.restart()
        self.now, self.seen = now_us(), dict[str, int]()
        self.edges: dict[str, Edge] = {}
        self.defaults = load_spec(PRESS).defaults()

    def restart(self) -> None:
        """A control plane that remembers nothing but its store."""
        self.store = Store(f"sqlite:///{self.directory / 'control.db'}")
        self.commands = Commands(self.store, self.keys)

    @property
    def contact(self) -> Contact:
        return Contact(dict(self.seen), self.now)

    def join(self, *names: str, labels: str = "{}") -> list[Edge]:
        made = [Edge(self, name, labels) for name in names]
        self.edges |= {edge.name: edge for edge in made}
        with self.store.write() as db:
            rollouts.issue(db, self.keys, self.contact)
        return made

    def apply(self, count: int = 1) -> None:
        """So many versions of the pipeline `press`."""
        for number in range(1, count + 1):
            text = PRESS.replace("Press temperatures", f"Press temperatures {number}")
            self.commands.apply([("press.yaml", text)], WHO, self.contact)

    def deploy(self, reference: str, select: str = "all", **rollout: Any) -> dict[str, Any]:
        pacing = RolloutWords.model_validate(rollout).pacing
        return self.commands.deploy(reference, select, {}, WHO, self.contact, pacing).result

    def tick(self, minutes: int = 0) -> list[str]:
        self.now += minutes * MINUTE
        with self.store.write() as db:
            return rollouts.tick(db, self.keys, self.contact)

    def hear(self, edges: Iterable[Edge]) -> None:
        for edge in edges:
            edge.hear()

    def status(self, pipeline: str = "press") -> dict[str, Any]:
        with self.store.write() as db:
            return rollouts.status(db, pipeline, self.contact)[0]

    def words(self) -> dict[str, str]:
        return {node["name"]: node["state"] for node in self.status()["nodes"]}

    def run(self, edges: list[Edge], rounds: int = 12, minutes: int = 11) -> None:
        """Time passes, and these are heard."""
        for _ in range(rounds):
            self.now += minutes * MINUTE
            self.hear(edges)
            self.tick()
