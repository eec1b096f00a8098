"""What to do so that what runs is what should run. Pure: facts in, actions out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from edge_agent.target import Target
from pipelines.contract.node_state import Scalar

Params = Mapping[str, Scalar]


@dataclass(frozen=True, slots=True)
class Running:
    """A pipeline that is kept running (it may be between two tries), with the parameters, labels, secrets it was last given."""

    digest: str
    params: Params
    labels: Mapping[str, str] = field(default_factory=dict)
    secrets: str = ""  # a digest of those it was given


@dataclass(frozen=True, slots=True)
class FetchArtifact:
    """Its bytes are not on the node yet. What runs meanwhile goes on."""

    pipeline: str
    digest: str


@dataclass(frozen=True, slots=True)
class Start:
    pipeline: str
    digest: str
    params: Params


@dataclass(frozen=True, slots=True)
class Replace:
    pipeline: str
    digest: str
    params: Params


@dataclass(frozen=True, slots=True)
class UpdateParams:
    pipeline: str
    params: Params


@dataclass(frozen=True, slots=True)
class Stop:
    pipeline: str


Action = FetchArtifact | Start | Replace | UpdateParams | Stop


def reconcile(
    targets: Mapping[str, Target],
    effective: Mapping[str, Params],
    running: Mapping[str, Running],
    stored: Collection[str],
    labels: Mapping[str, str] = MappingProxyType({}),
    secrets: Mapping[str, str] = MappingProxyType({}),
) -> list[Action]:
    """The actions that lead from `running` to `targets`, stops first.

    `effective` are the folded parameters of the pipelines; one that is missing there (its version cannot be read, or a
    value does not fit) is left as it is. `stored` are the digests of the artifacts on the node. A runner knows the node's
    `labels` and its `secrets` (pipeline -> digest) from its start on, so other ones replace it, by the same version if need be.
    """
    actions: list[Action] = [Stop(name) for name in sorted(running.keys() - targets.keys())]
    for name, target in sorted(targets.items()):
        if target.lacks:
            actions.append(FetchArtifact(name, target.lacks))
        if name in effective and target.digest in stored:
            given = Running(target.digest, effective[name], labels, secrets.get(name, ""))
            actions += _bring_to(name, given, running.get(name))
    return actions


def _bring_to(name: str, wanted: Running, now: Running | None) -> list[Action]:
    if now is None:
        return [Start(name, wanted.digest, wanted.params)]
    if (now.digest, dict(now.labels), now.secrets) != (wanted.digest, dict(wanted.labels), wanted.secrets):
        return [Replace(name, wanted.digest, wanted.params)]
    return [UpdateParams(name, wanted.params)] if dict(now.params) != dict(wanted.params) else []
