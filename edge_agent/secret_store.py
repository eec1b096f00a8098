"""DATA/secrets.json: values that pipelines name and only this node knows. Readable by its owner alone, replaced whole.

Written by `tidewire-agent secret`, with or without an agent running; the agent reads it again when it has changed. A value goes
to the runner of a pipeline whose steps name it and into the actions that name it, and nowhere else.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from edge_agent.clock import wall_text
from edge_agent.config import make_private_dir, write_private
from pipelines.contract.errors import Refused, TidewireError
from pipelines.contract.frames import sha256
from pipelines.contract.interpolate import SECRET_NAME

VALUE_BYTES_MAX = 64 * 1024
_DIGITS = 6  # of a digest: enough to compare two nodes, of little use for guessing
_FILE = "secrets.json"


@dataclass(frozen=True, slots=True)
class Secret:
    value: str = field(repr=False)
    since: str  # the wall clock when it was set; a label

    @property
    def digest(self) -> str:
        return sha256(self.value.encode()).removeprefix("sha256:")[:_DIGITS]


class SecretStore:
    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / _FILE
        self._stamp: tuple[int, int, int] | None = None
        self._secrets: dict[str, Secret] = {}

    def all(self) -> Mapping[str, Secret]:
        """Every secret by name. Raises `TidewireError` when the file cannot be read."""
        stamp = self._look()
        if stamp != self._stamp:
            self._secrets = self._read() if stamp else {}
            self._stamp = stamp
        return self._secrets

    def values(self, names: Iterable[str]) -> dict[str, str]:
        """Those of `names` that are set."""
        known = self.all()
        return {name: known[name].value for name in sorted(set(names) & known.keys())}

    def put(self, name: str, value: str) -> None:
        if not SECRET_NAME.match(name):
            hint = "letters, digits, _ . and -, a letter first, at most 63"
            raise Refused("not the name of a secret", op="secret set", place=name, hint=hint)
        if not value or len(value.encode(errors="replace")) > VALUE_BYTES_MAX or "\0" in value:
            what = "the value is empty" if not value else f"a value is text of at most {VALUE_BYTES_MAX} bytes"
            raise Refused(
                what, op="secret set", place=name, hint="give it on standard input: tidewire-agent secret set NAME < FILE"
            )
        with self._changing() as secrets:
            secrets[name] = Secret(value, wall_text())

    def remove(self, name: str) -> None:
        with self._changing() as secrets:
            if name not in secrets:
                raise Refused("there is no such secret", op="secret remove", place=name, hint="see: tidewire-agent secret list")
            del secrets[name]

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Secret]]:
        make_private_dir(self._path.parent)
        with _locked(self._path.with_suffix(".lock")):
            self._stamp = None
            secrets = dict(self.all())
            yield secrets
            data = {name: {"value": s.value, "since": s.since} for name, s in sorted(secrets.items())}
            write_private(self._path, json.dumps(data, indent=1).encode())
            _give_to_owner(self._path)

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> dict[str, Secret]:
        try:
            raw = json.loads(self._path.read_text())
            return {str(name): Secret(str(entry["value"]), str(entry["since"])) for name, entry in raw.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            # not `error` itself: it may quote the file
            why = (error.strerror or "") if isinstance(error, OSError) else "not a file of secrets"
            hint = "mend its owner and mode, or remove it and set the secrets again"
            raise TidewireError(why, op="read", place=str(self._path), hint=hint) from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _give_to_owner(path: Path) -> None:
    """Set by root, it is to be read by whom the directory belongs to."""
    if os.geteuid() == 0:
        owner = path.parent.stat()
        for each in (path, path.with_suffix(".lock")):
            os.chown(each, owner.st_uid, owner.st_gid)
