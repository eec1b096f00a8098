"""A deployment as a file: which nodes run which version of a pipeline, with which parameters, and how a change goes out. Pure.

```yaml
deployment: press-overheat
targets:                      # the first that matches a node wins
  - select: line=4
    version: 4                # or newest
    params: {min_sensors: 5}
  - select: site=lyon,!spare
    version: 3
rollout: {steps: [1, 10%, 100%], soak: 10m, gate: {rejected: 1%, crashes: 0, memory: 200MiB, slower: 3}}
```
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, ValidationError

from control_plane.rollout import Pacing, Step, parse_steps
from control_plane.selector import Selector, parse_selector
from pipelines.contract import yaml_reader
from pipelines.contract.duration import US_PER, Duration, format_duration
from pipelines.contract.errors import Problem, SpecError, WrongUsage
from pipelines.contract.language.base import Model, PipelineName, Word
from pipelines.contract.node_state import Gate, Scalar
from pipelines.contract.size import Size, format_size
from pipelines.contract.spec_problems import explain

_SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9]+)?)%\Z")
_DEFAULT = Gate()


def _share(value: object) -> float:
    match = _SHARE.match(value) if isinstance(value, str) else None
    if match is None or float(match[1]) > 100:
        raise ValueError(f"{value!r} is not a share: write it in percent, as in 1%")
    return float(match[1]) / 100


def _number(value: object) -> object:
    """Also as a word of the command line."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", value):
        return float(value) if "." in value else int(value)
    return value


def _steps(value: object) -> object:
    return list(parse_steps(value.split(",") if isinstance(value, str) else value)) if isinstance(value, (str, list)) else value


def _selector(text: str) -> str:
    try:
        return str(parse_selector(text))
    except WrongUsage as error:
        raise ValueError(f"{error.cause}; {error.hint}") from None


Share = Annotated[float, BeforeValidator(_share), PlainSerializer(lambda share: f"{share * 100:g}%", return_type=str)]
Count = Annotated[int, BeforeValidator(_number), Field(ge=0, le=1_000_000)]


class GateWords(Model):
    """What a version must hold to on each node; see `Gate`."""

    rejected: Share = _DEFAULT.rejected
    crashes: Count = _DEFAULT.crashes
    memory: Size | Literal[0] = 0
    slower: Annotated[float, BeforeValidator(_number), Field(ge=1, le=10_000)] = _DEFAULT.slower


class RolloutWords(Model):
    """How a change goes out. Without steps: to everybody at once, each node behind its own gate."""

    steps: Annotated[
        list[Step], BeforeValidator(_steps), PlainSerializer(lambda s: [str(x) for x in s], return_type=list[str])
    ] = Field(default_factory=list)
    soak: Duration = round(_DEFAULT.soak_s * US_PER["s"])
    failures: Count = 0  # nodes that may fail before it is held
    gate: GateWords = GateWords()

    @property
    def pacing(self) -> Pacing:
        gate = self.gate
        made = Gate(self.soak / US_PER["s"], gate.crashes, int(gate.memory), float(gate.slower), gate.rejected)
        return Pacing(tuple(self.steps), self.soak, self.failures, made)


class TargetWords(Model):
    """One line of a deployment."""

    select: Annotated[str, AfterValidator(_selector)]
    version: Annotated[int, Field(ge=1)] | Literal["newest"] = "newest"
    params: dict[Word, Scalar] = Field(default_factory=dict)

    @property
    def selector(self) -> Selector:
        return parse_selector(self.select)


class DeploymentFile(Model):
    """A whole deployment file."""

    deployment: PipelineName
    targets: Annotated[list[TargetWords], Field(min_length=1, max_length=1000)]
    rollout: RolloutWords = RolloutWords()


def is_deployment(text: str, file: str = "") -> bool:
    """Whether the file says it is one. Raises `SpecError` when it is not YAML."""
    data = yaml_reader.read(text, file).data
    return isinstance(data, dict) and "deployment" in data and "pipeline" not in data


def load_deployment(text: str, file: str = "") -> DeploymentFile:
    """Raises `SpecError` with every problem and its place."""
    source = yaml_reader.read(text, file)
    try:
        made = DeploymentFile.model_validate(source.data)
    except ValidationError as error:
        raise SpecError(sorted(explain(error, DeploymentFile, source), key=lambda p: (p.line, p.column))) from None
    seen: dict[str, int] = {}
    for index, target in enumerate(made.targets):
        if target.select in seen:
            problem = Problem(f"targets[{seen[target.select]}] selects the same nodes", f"targets[{index}].select", "remove one")
            raise SpecError([source.locate(problem)])
        seen[target.select] = index
    return made


def located(problem: Problem, text: str, file: str) -> Problem:
    """`problem`, found when the file met what is registered, with its place in the file."""
    return yaml_reader.read(text, file).locate(problem)


def as_lines(targets: Iterable[tuple[str, int, Mapping[str, Scalar], Gate]]) -> list[str]:
    """Targets much as a file has them: what two states are compared by."""
    lines = ["targets:"]
    for select, version, params, gate in targets:
        lines += [f"  - select: {select}", f"    version: {version}"]
        lines += ["    params:"] if params else []
        lines += [f"      {name}: {_scalar(value)}" for name, value in sorted(params.items())]
        lines += [f"    gate: {describe_gate(gate)}"] if gate != _DEFAULT else []
    return lines


def describe_gate(gate: Gate) -> str:
    memory = f", memory {format_size(gate.memory_bytes)}" if gate.memory_bytes else ""
    soak = format_duration(round(gate.soak_s * US_PER["s"]))
    return f"soak {soak}, rejected {gate.rejected * 100:g}%, crashes {gate.crashes}{memory}, slower {gate.slower:g}"


def _scalar(value: Scalar) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
