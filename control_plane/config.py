"""Where the control plane keeps its data, what it listens on, and how a command on the same machine finds it."""

from __future__ import annotations

import ipaddress
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from control_plane.durable import sync_directory
from pipelines.contract.errors import TidewireError, WrongUsage

API_PORT, NATS_PORT = 7420, 4222
IN_CONTACT_S = 90.0  # three heartbeats, as agents send them unless told otherwise
LOOPBACK = "127.0.0.1"


def default_data_dir() -> Path:
    return Path(os.environ.get("TIDEWIRE_HOME") or "~/.tidewire").expanduser()


@dataclass(frozen=True)
class ControlConfig:
    """Settings of one control plane. A port of 0 means any free one. `listen` is for nodes; the HTTP API stays on loopback."""

    data_dir: Path
    api_port: int = API_PORT
    nats_port: int = NATS_PORT
    listen: str = LOOPBACK
    public_url: str = ""  # what nodes dial; needed when `listen` is no address they could dial
    in_contact_s: float = IN_CONTACT_S  # after it was last heard of

    def __post_init__(self) -> None:
        if self.uses_tls and not self.public_host:
            raise WrongUsage(
                f"nodes cannot dial {self.listen}",
                op="up",
                hint="say what they dial, such as --public-url nats://192.168.1.10:4222",
            )

    @property
    def uses_tls(self) -> bool:
        """Off loopback every connection is encrypted."""
        return not is_loopback(self.listen)

    @property
    def public_host(self) -> str:
        if self.public_url:
            return urlsplit(self.public_url).hostname or ""
        return "" if self.listen in ("0.0.0.0", "::") else self.listen  # noqa: S104 - compared, not bound

    def dialled_url(self, nats_port: int) -> str:
        """What a join token tells a node to connect to."""
        return self.public_url or f"nats://{bracketed(self.listen)}:{nats_port}"

    @property
    def api_file(self) -> Path:
        return self.data_dir / "api.json"

    @property
    def lake_dir(self) -> Path:
        return self.data_dir / "lake"

    @property
    def refused_dir(self) -> Path:
        return self.data_dir / "refused"

    @property
    def keys_dir(self) -> Path:
        return self.data_dir / "keys"

    @property
    def nats_dir(self) -> Path:
        return self.data_dir / "nats"

    @property
    def database_url(self) -> str:
        return f"sqlite:///{self.data_dir / 'control.db'}"


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def write_private(path: Path, data: bytes) -> None:
    """Put `data` at `path` as a whole or not at all, readable by the owner only."""
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_directory(path.parent)


def make_private_dir(path: Path) -> None:
    """Make `path` with mode 0700. Raises `TidewireError` when it cannot be made or written."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(13, "it is not writable")
    except OSError as error:
        raise TidewireError(
            error.strerror or str(error),
            op="open data directory",
            place=str(path),
            hint="pick another one with --data-dir, or fix its owner",
        ) from None


@dataclass(frozen=True)
class ApiAddress:
    """Where the HTTP API answers and the bearer token it asks for; `broker` is where processes on this machine reach NATS."""

    url: str
    token: str
    pid: int = 0
    broker: str = ""

    def write(self, path: Path) -> None:
        write_private(path, json.dumps(asdict(self)).encode())

    @classmethod
    def find(cls, data_dir: Path) -> ApiAddress | None:
        """The environment's address, else what the server on this machine wrote, whose token goes to that server only."""
        written = _read_json(data_dir / "api.json")
        url = os.environ.get("TIDEWIRE_URL") or written.get("url")
        own = written.get("token") if url == written.get("url") else ""
        token = os.environ.get("TIDEWIRE_TOKEN") or own
        pid, broker = int(written.get("pid") or 0), str(written.get("broker") or "")
        return cls(str(url).rstrip("/"), str(token or ""), pid, broker) if url else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
