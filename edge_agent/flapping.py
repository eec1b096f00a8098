"""How often what changes may be written down: at once while it is rare, seldom while it flaps (I9)."""

from __future__ import annotations

BURST = 8  # changes of one key that are written at once
REFILL_S = 300.0  # one more is, after each of these: 288 a day, where a pipeline that dies every half minute changes 5,400 times


class Flapping:
    """A token bucket per key. Times are seconds of any clock that does not go back."""

    def __init__(self) -> None:
        self._spent: dict[str, tuple[float, float]] = {}  # key -> (tokens spent, when that was)

    def forget(self, key: str) -> None:
        """What it did before no longer counts."""
        self._spent.pop(key, None)

    def wait_s(self, key: str, now_s: float) -> float:
        """Seconds until the key may change; 0: now, and that is counted."""
        spent, then_s = self._spent.get(key, (0.0, now_s))
        spent = max(0.0, spent - (now_s - then_s) / REFILL_S)
        if spent > BURST - 1:
            return (spent - (BURST - 1)) * REFILL_S
        self._spent[key] = (spent + 1, now_s)
        return 0.0
