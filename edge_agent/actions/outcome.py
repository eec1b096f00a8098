"""How one try of an action ended."""

from __future__ import annotations

from dataclasses import dataclass

RETRY = "retry"


@dataclass(frozen=True, slots=True)
class Outcome:
    """`status`: done | failed | refused | expired, or `retry` when another try may succeed."""

    status: str
    text: str = ""
    was_reached: bool = True  # whether the target answered at all

    @property
    def is_final(self) -> bool:
        return self.status != RETRY


class Done(Outcome):
    def __init__(self, text: str = "") -> None:
        super().__init__("done", text)


class Failed(Outcome):
    """Another try would end the same way."""

    def __init__(self, text: str) -> None:
        super().__init__("failed", text)


class Refusal(Outcome):
    """The node's policy, or this build, does not do that."""

    def __init__(self, text: str) -> None:
        super().__init__("refused", text)


class Retry(Outcome):
    def __init__(self, text: str, *, was_reached: bool = True) -> None:
        super().__init__(RETRY, text, was_reached)
