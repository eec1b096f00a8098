"""What could not be stored, kept raw: one file with the segment's bytes, one with the reason. A verdict once given stands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from control_plane.config import write_private
from pipelines.contract.errors import Refused
from pipelines.contract.frames import sha256, unpack
from pipelines.contract.keys import SIGNATURE_BYTES
from pipelines.contract.segment import Segment, SegmentHeader


class Refusals:
    """A directory that only the control plane reads, shared by its processes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def reason(self, digest: str) -> str | None:
        """Why the segment was refused before; None when it was not."""
        try:
            return self._file(digest, "reason").read_text()
        except FileNotFoundError:
            return None

    def keep(self, segments: Iterable[Segment], reasons: Mapping[str, str]) -> None:
        """Those with a reason, on the disk when this returns: to be called before a commit moves the table's mark past them."""
        for segment in segments:
            if (reason := reasons.get(segment.digest)) and self.reason(segment.digest) is None:
                write_private(self._file(segment.digest, "segment"), segment.data)
                write_private(self._file(segment.digest, "reason"), reason.encode(errors="replace"))

    def segment(self, digest: str) -> Segment:
        """As it was kept, its signature checked when it came. Raises `Refused` when it is gone or damaged."""
        try:
            data = self._file(digest, "segment").read_bytes()
        except FileNotFoundError:
            hint = "restore the directory `refused` from a backup"
            raise Refused(f"{digest} is not kept here", op="read refused segment", hint=hint) from None
        if sha256(data) != digest:
            raise Refused(f"{digest} is damaged", op="read refused segment", hint="restore it from a backup")
        fields, blobs = unpack(data[SIGNATURE_BYTES:])
        return Segment(SegmentHeader(**fields), blobs[0], data)

    def _file(self, digest: str, suffix: str) -> Path:
        return self._directory / f"{digest.removeprefix('sha256:')}.{suffix}"
