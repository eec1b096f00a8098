"""Every NATS subject, and who may use it. A node id is one token; a node speaks only under its own."""

from __future__ import annotations

import hashlib

PARTITIONS = 16


def partition(node: str) -> int:
    """The ingest partition of a node, 0 to 15: the unit that ingest processes lease."""
    return hashlib.sha256(node.encode()).digest()[0] % PARTITIONS


def data(node: str) -> str:
    return f"tw.data.{partition(node)}.{node}"


def data_of(partition: int) -> str:
    """Where the nodes of a partition send their segments."""
    return f"tw.data.{partition}.*"


def state(node: str) -> str:
    return f"tw.state.{node}"


def artifact(node: str) -> str:
    return f"tw.artifact.{node}"


def poke(node: str) -> str:
    return f"tw.poke.{node}"


def heartbeat(node: str) -> str:
    return f"tw.heartbeat.{node}"


def join(token_id: str) -> str:
    return f"tw.join.{token_id}"


def standing(node: str) -> str:
    return f"tw.standing.{node}"


def inbox(owner: str) -> str:
    """The reply prefix of one connection: without its own, a node could read the replies of others."""
    return f"_INBOX_{owner}"


def node_permissions(node: str) -> tuple[list[str], list[str]]:
    """What a node may publish and subscribe to."""
    return [data(node), state(node), artifact(node), heartbeat(node)], [f"{inbox(node)}.>", poke(node)]


def join_permissions(token_id: str) -> tuple[list[str], list[str]]:
    """What the bearer of a join token may do: ask to join, and read the answer."""
    return [join(token_id)], [f"{inbox(token_id)}.>"]


def standing_permissions(node: str) -> tuple[list[str], list[str]]:
    """What a node may still do once its own login is revoked: ask why, and read the answer."""
    return [standing(node)], [f"{inbox(node)}.>"]


def server_permissions() -> tuple[list[str], list[str]]:
    """What the control plane may do besides answering the requests it received."""
    return ["tw.poke.*"], ["tw.data.>", "tw.state.*", "tw.artifact.*", "tw.heartbeat.*", "tw.join.*", "tw.standing.*"]
