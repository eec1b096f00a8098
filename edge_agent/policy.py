"""policy.yaml: what the owner of the node allows. It narrows what signed work may do, and never widens it (I13)."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, field_validator

from edge_agent.config import read_yaml
from pipelines.contract.node_state import REQUEST_KINDS

RequestKind = Literal["query", "tap", "logs"]


class Policy(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    exec: tuple[str, ...] = ()  # programs that `exec` actions may start, as absolute paths
    files: tuple[str, ...] = ("/**",)  # globs of what file sources may read; never the agent's own directory
    webhook_hosts: tuple[str, ...] | None = None  # globs of host names; None: any
    listen: tuple[str, ...] | None = None  # globs of addresses with ports that http sources may open; None: any
    requests: tuple[RequestKind, ...] = REQUEST_KINDS  # what the control plane may ask of what the node holds

    @classmethod
    def load(cls, data_dir: Path) -> Policy:
        return read_yaml(cls, data_dir / "policy.yaml")

    @field_validator("exec")
    @classmethod
    def _absolute(cls, programs: tuple[str, ...]) -> tuple[str, ...]:
        for program in programs:
            if not PurePosixPath(program).is_absolute():
                raise ValueError(f"{program!r} is not an absolute path")
        return programs

    def refuses_program(self, program: str) -> str:
        """Why the program may not be started; "" when it may."""
        return "" if program in self.exec else f"policy.yaml does not list {program} under exec"

    def refuses_listen(self, address: str) -> str:
        """Why the address may not be opened; "" when it may."""
        return "" if may_listen(self.listen, address) else f"policy.yaml does not list {address} under listen"

    def refuses_request(self, kind: str) -> str:
        """Why it is not answered; "" when it is."""
        if kind not in REQUEST_KINDS:
            return f"this agent knows no requests of kind {kind}: is it as new as the control plane?"
        return "" if kind in self.requests else f"policy.yaml does not list {kind} under requests"

    def refuses_url(self, url: str) -> str:
        """Why the URL may not be called; "" when it may."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return f"{url!r} is not an http or https URL"
        if self.webhook_hosts is not None and not any(fnmatch.fnmatchcase(parts.hostname, g) for g in self.webhook_hosts):
            return f"policy.yaml does not list {parts.hostname} under webhook_hosts"
        return ""


def may_listen(listed: Sequence[str] | None, address: str) -> bool:
    return listed is None or any(fnmatch.fnmatchcase(address, glob) for glob in listed)
