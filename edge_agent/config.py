"""What an operator sets on the node (DATA/agent.yaml) and who the node is (DATA/identity.json)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.contract.errors import TidewireError
from pipelines.contract.keys import Key

MIB, GIB = 1 << 20, 1 << 30
M = TypeVar("M", bound=BaseModel)


class AgentConfig(BaseModel):
    """Rhythms and limits. Every field but `data_dir` may be set in DATA/agent.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data_dir: Path
    heartbeat_s: float = Field(30.0, gt=0)  # with up to 20 % jitter, so that a fleet does not beat in step
    exchange_s: float = Field(30.0, gt=0)  # longest time a change goes unnoticed when every hint is lost (I7)
    request_timeout_s: float = Field(10.0, gt=0)  # two in a row and the connection is rebuilt
    uplink_bytes_per_s: int = Field(0, ge=0)  # of segments, on average; 0: as fast as the link. Incidents do not wait
    commit_s: float = Field(5.0, gt=0, le=60)  # rows of a slow source wait this long to be durable and sealed; alarms never wait
    buffer_bytes: int = Field(2 * GIB, ge=MIB)  # about 10 days offline at 2.5 kB/s
    quarantine_bytes: int = Field(64 * MIB, ge=MIB)  # raw bytes of rejected records that stay on the node; the oldest go
    artifacts_bytes: int = Field(256 * MIB, ge=MIB)  # versions, lookup tables; of what is not needed the oldest go
    runner_memory_bytes: int = Field(2 * GIB, ge=256 * MIB)  # address space of one runner process
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$")

    @classmethod
    def load(cls, data_dir: Path | None = None) -> AgentConfig:
        directory = (data_dir or default_data_dir()).expanduser().absolute()
        return read_yaml(cls, directory / "agent.yaml", data_dir=directory)


class Identity(BaseModel):
    """Who the node is and whom it believes. `seed` is a secret: it never enters a log or a message."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    node: str
    name: str
    seed: str = Field(repr=False)
    user_jwt: str = Field(repr=False)
    control: str  # nkey that signs manifests and replies
    author: str  # nkey that signs versions
    url: str
    ca: str = ""  # PEM; "" on loopback, where there is no TLS
    labels: dict[str, str] = {}
    standing_jwt: str = Field(default="", repr=False)  # of `key.derived("standing")`: only for asking why `user_jwt` is refused

    @property
    def key(self) -> Key:
        return Key(self.seed)

    @classmethod
    def load(cls, data_dir: Path) -> Identity | None:
        """The node's identity, or None before it joined."""
        path = data_dir / "identity.json"
        if not path.exists():
            return None
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise TidewireError(
                one_line(error), op="read", place=str(path), hint="remove the file and join again with a new token"
            ) from None

    def save(self, data_dir: Path) -> None:
        write_private(data_dir / "identity.json", self.model_dump_json(indent=1).encode())


def default_data_dir() -> Path:
    if given := os.environ.get("TIDEWIRE_AGENT_DIR"):
        return Path(given)
    return Path("/var/lib/tidewire") if os.geteuid() == 0 else Path.home() / ".local/share/tidewire-agent"


def make_private_dir(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise TidewireError(
            error.strerror or str(error), op="create", place=str(path), hint="give another place with --data-dir"
        ) from None


def write_private(path: Path, data: bytes) -> None:
    """Replace the file whole, durably, readable by its owner only."""
    make_private_dir(path.parent)
    scratch = path.with_suffix(".new")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read_yaml(model: type[M], path: Path, **given: object) -> M:
    """`model` from the mapping in `path` (all defaults when there is no such file) and from what is `given`."""
    try:
        raw = yaml.safe_load(path.read_text()) if path.exists() else None
        if not isinstance(raw, dict | None):
            raise TidewireError("not a mapping", op="read", place=str(path), hint="write one `key: value` a line")
        return model.model_validate({**(raw or {}), **given})
    except ValidationError as error:
        raise TidewireError(one_line(error), op="read", place=str(path), hint="correct or remove that entry") from None
    except (OSError, yaml.YAMLError) as error:
        raise TidewireError(" ".join(str(error).split()), op="read", place=str(path), hint="correct or remove the file") from None


def one_line(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors(include_url=False))
