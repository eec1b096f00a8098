"""The node's replica of its NodeState: document and manifest, stored before they are obeyed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import structlog

from edge_agent import clock
from edge_agent.config import Identity
from edge_agent.store import Store
from pipelines.contract.document import DOCUMENT_BYTES_MAX, NodeDocument
from pipelines.contract.errors import Refused
from pipelines.contract.frames import canonical_json, sha256
from pipelines.contract.node_state import CONTROL, Manifest, Note, Reported, SignedManifest

REPORTS_BYTES_MAX = 192 * 1024  # of the document, from which on reports wait for the next epoch: there is room for notes then
_log = structlog.get_logger("state")


class NodeRecord:
    """Changes go one after another; `on_change` callbacks run after each that is on disk."""

    def __init__(self, store: Store, identity: Identity) -> None:
        self._store, self._identity = store, identity
        self._lock = asyncio.Lock()
        self._callbacks: list[Callable[[], None]] = []
        self.document = NodeDocument()
        self.manifest_digest = ""  # of the signed bytes
        self.is_agreed = False  # whether the document continues what the control plane has; nothing is written before it does
        self.manifest = Manifest(identity.node, 0, 0, labels=identity.labels)  # before the first one: nothing should run

    def on_change(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    async def load(self) -> None:
        """What the store holds, verified again (I12, I13): what does not verify is as if it were not there."""
        document, signed = await self._store.load_state()
        try:
            if signed is not None:
                self.manifest = signed.open(self._identity.node, self._identity.control)
                self.manifest_digest = sha256(signed.body)
        except Refused as error:
            _log.error("the stored manifest does not verify; waiting for the control plane", reason=str(error))
        try:
            if document is not None:
                self.document = NodeDocument(document)
                self.is_agreed = True
        except Refused as error:
            _log.error("the stored document cannot be read; starting with a new one", reason=str(error))

    async def accept_manifest(self, signed: SignedManifest) -> bool:
        """Whether it was newer than ours. Raises `Refused` on one that is not for us or not signed (I13)."""
        manifest = signed.open(self._identity.node, self._identity.control)
        async with self._lock:
            if manifest.order <= self.manifest.order:
                self._note_other(manifest, sha256(signed.body))
                return False
            await self._store.save_state(None, signed)
            self.manifest, self.manifest_digest = manifest, sha256(signed.body)
        _log.info("new manifest", term=manifest.term, generation=manifest.generation, pipelines=len(manifest.assignments))
        self._changed()
        return True

    def _note_other(self, manifest: Manifest, digest: str) -> None:
        if manifest.order == self.manifest.order and digest != self.manifest_digest:
            _log.error(
                "security: two manifests of one number (was the control plane restored?); keeping the first",
                term=manifest.term, generation=manifest.generation, ours=self.manifest_digest, other=digest,
            )  # fmt: skip

    async def merge(self, foreign: bytes, *, sent: str = "") -> None:
        """Take over what the control plane's replica has. Raises `Refused` with ours untouched.

        Its document of a later epoch than ours replaces ours, which an older card holds, once it took what only we had: `sent` is
        the digest of the document that it answers.
        """
        node = self._identity.node
        async with self._lock:
            theirs = NodeDocument(foreign)
            if theirs.epoch <= self.document.epoch:
                merged = self.document.merged(theirs, author=CONTROL, owner=node)
            elif sent == self.document.digest():
                merged = theirs.checked(node)
                _log.warning("this card's document was of an older epoch", epoch=self.document.epoch, agreed=theirs.epoch)
            else:
                return
            if merged.digest() == self.document.digest():
                return
            if self.is_agreed:
                await self._store.save_state(merged.save(), None)
            self.document = merged
        self._changed()

    async def begin_epoch(self, proposal: bytes) -> None:
        """Take the next epoch that the control plane proposes, if it is exactly what ours comes to: stored before it is believed.
        Whoever wrote something since lets it be."""
        async with self._lock:
            proposed = NodeDocument(proposal)
            if not self.is_agreed or proposed.made_of != self.document.digest():
                return
            if not self.document.begins(proposed, self._identity.node):
                raise Refused("what it proposes is not what our document comes to", op="begin epoch", place=str(proposed.epoch))
            await self._store.save_state(proposal, None)
            self.document = proposed
        _log.info("the document starts again", epoch=self.document.epoch, bytes=len(proposal))
        self._changed()

    async def agree(self, digest: str) -> None:
        """The control plane's replica has this digest. Once it is ours, a new store's document may be written to.

        Before that, the numbers of notes that a lost store held would be given out again.
        """
        async with self._lock:
            if self.is_agreed or digest != self.document.digest():
                return
            await self._store.save_state(self.document.save(), None)
            self.is_agreed = True
        self._changed()

    async def report(self, pipeline: str, reported: Reported) -> None:
        await self._write({f"reported/pipeline/{pipeline}": reported.to_json()})

    async def report_node(self, name: str, told: Mapping[str, object]) -> None:
        """`name` is one of `facts`, `history`."""
        await self._write({f"reported/{name}": canonical_json(told).decode()})

    def differs(self, name: str, told: Mapping[str, object]) -> bool:
        """Whether `report_node` would write: a twin of this node may have, in between."""
        return self.is_agreed and self.document.values().get(f"reported/{name}") != canonical_json(told).decode()

    async def add_note(self, kind: str, subject: str, body: dict[str, object], *, by: str, reason: str) -> Note:
        """A note of this node's own, on disk when this returns."""
        author = self._identity.node
        async with self._lock:
            if not self.is_agreed:
                raise Refused(
                    "this node's store is new, and what it held before is not back yet", op=kind, place=subject,
                    hint="try again once the control plane is in reach",
                )  # fmt: skip
            note = Note(
                author,
                self.document.next_seq(author),
                kind,
                subject,
                body,
                by,
                reason,
                self.manifest.generation,
                self.document.seen_by(author),
                clock.wall_text(),
            )
            self.document.check_quota(note)
            note.check_author()
            await self._save(lambda document: document.add_note(note))
        self._changed()
        return note

    async def _write(self, entries: dict[str, str]) -> None:
        async with self._lock:
            changed = self.is_agreed and await self._save(lambda document: document.write(entries), REPORTS_BYTES_MAX)
        if changed:
            self._changed()

    async def _save(self, change: Callable[[NodeDocument], bool], bytes_max: int = DOCUMENT_BYTES_MAX) -> bool:
        document = self.document.copy()
        if len(document.save()) > bytes_max or not change(document):
            return False
        await self._store.save_state(document.save(), None)
        self.document = document
        return True

    def _changed(self) -> None:
        for callback in self._callbacks:
            callback()
