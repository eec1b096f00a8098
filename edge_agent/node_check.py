"""Whether a pipeline can do its work on this node: what policy.yaml allows, what is set, what the disk holds."""

from __future__ import annotations

import fnmatch
import glob
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edge_agent import reserve
from edge_agent.policy import Policy
from pipelines.contract import interpolate
from pipelines.contract.errors import Problem
from pipelines.contract.interpolate import SECRET, Unset, Values
from pipelines.contract.size import shown_size
from pipelines.contract.spec import PipelineSpec
from pipelines.contract.version import PipelineVersion


@dataclass(frozen=True)
class Here:
    """What the node is, has and allows. `secrets` are names."""

    data_dir: Path
    policy: Policy
    secrets: frozenset[str]
    labels: Mapping[str, str]
    buffer_bytes: int
    held_bytes: int = 0  # of the buffer, now


def problems(spec: PipelineSpec, here: Here) -> list[Problem]:
    """What keeps the pipeline from working here."""
    found = [*_secrets(spec, here), *_files(spec, here), *_listens(spec, here), *_actions(spec, here), *_buffer(spec, here)]
    return [spec.locate(problem) for problem in found]


def warnings(spec: PipelineSpec, here: Here) -> list[Problem]:
    """What works, but perhaps not as meant."""
    return list(disk(here))


def _buffer(spec: PipelineSpec, here: Here) -> Iterator[Problem]:
    """An agent does not start what asks for more."""
    own, free = spec.buffer.max_size or 0, fitting_bytes(here)
    if own > free:
        hint = "free some space, ask for less, or raise buffer_bytes in agent.yaml"
        yield Problem(f"needs {shown_size(own)} for its buffer, {shown_size(free)} free", "buffer.max_size", hint)


def disk(here: Here) -> Iterator[Problem]:
    """The node's buffer against the disk it is on."""
    fits = fitting_bytes(here)
    if fits < here.buffer_bytes:
        yield Problem(
            f"the disk of {here.data_dir} has room for {fits:,} bytes of the buffer's {here.buffer_bytes:,}",
            "agent.yaml: buffer_bytes",
            "free some space, or lower it: the buffer is taken for full when the disk nearly is",
        )


def fitting_bytes(here: Here) -> int:
    """Of the node's buffer what the disk can hold."""
    return min(here.buffer_bytes, here.held_bytes + reserve.room_bytes(here.data_dir / "agent.db"))


def _secrets(spec: PipelineSpec, here: Here) -> Iterator[Problem]:
    missing = {need.name for need in interpolate.needs(json.loads(PipelineVersion.of(spec).canonical)) if need.kind == SECRET}
    for name in sorted(missing - here.secrets):
        yield Problem(f"secret {name} is not set on this node", "", f"tidewire-agent secret set {name}")


def _files(spec: PipelineSpec, here: Here) -> Iterator[Problem]:
    """Paths that are not allowed, or where there is nothing; a pattern is judged by its folder and by what matches now."""
    for name, source in spec.sources.items():
        if source.file is None:
            continue
        try:
            settings = interpolate.resolve(source.file.model_dump(mode="json"), Values(spec.defaults(), here.labels))
        except Unset as error:
            yield Problem(str(error), f"sources.{name}", error.hint)
            continue
        for pattern in [settings["path"]] if isinstance(settings["path"], str) else settings["path"]:
            matching = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - an absolute pattern has no folder to start from
            for path in matching or [pattern]:
                yield from _file(path, f"sources.{name}.file.path", here)
            if not matching and not Path(pattern).parent.is_dir() and not glob.has_magic(str(Path(pattern).parent)):
                yield Problem(
                    f"there is no folder {Path(pattern).parent}", f"sources.{name}.file.path", "create it, or correct the path"
                )


def _file(path: str, place: str, here: Here) -> Iterator[Problem]:
    real = os.path.realpath(path)
    if real.startswith(os.path.realpath(here.data_dir) + os.sep):
        yield Problem(f"{path} is in the agent's own directory", place, "no pipeline may read that")
    elif not any(fnmatch.fnmatch(real, allowed) for allowed in here.policy.files):
        yield Problem(f"policy.yaml does not list {path} under files", place, "its owner may add it there")
    elif Path(real).exists() and not os.access(real, os.R_OK):
        yield Problem(f"{path} may not be read by this user", place, "check its owner and mode")


def _listens(spec: PipelineSpec, here: Here) -> Iterator[Problem]:
    for name, source in spec.sources.items():
        if source.http is not None:
            with suppress(Unset):  # what is not set is told of where it is checked
                address = interpolate.resolve(source.http.listen, Values(spec.defaults(), here.labels))
                yield from _refused(here.policy.refuses_listen(address), f"sources.{name}.http.listen")


def _actions(spec: PipelineSpec, here: Here) -> Iterator[Problem]:
    for name, trigger in spec.triggers.items():
        place = f"triggers.{name}.actions"
        for action in trigger.actions.every():
            if action.exec is not None:
                refusal = here.policy.refuses_program(action.exec.program)
                if not refusal and not os.access(action.exec.program, os.X_OK):
                    refusal = f"{action.exec.program} is no program that this user may start"
                yield from _refused(refusal, place)
            elif action.webhook is not None and not interpolate.references(action.webhook.url):
                yield from _refused(here.policy.refuses_url(action.webhook.url), place)


def _refused(reason: str, place: str) -> Sequence[Problem]:
    return [Problem(reason, place, "the owner of the node may allow it in policy.yaml")] if reason else []
