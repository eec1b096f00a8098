"""A runner that needs neither pyarrow nor duckdb: it speaks the protocol and does what its version's `do` says.

`do` is a list in the version's JSON: {"number_rows": n} commits rows n.. for ever, {"die": status}, {"fail": reason},
{"act": [...]}, {"sleep": s}, {"garbage": true}. With `drain`, a drain fails for that reason.
"""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any

from edge_agent.wire import Channel


class FakeRunner:
    def __init__(self, sock: socket.socket) -> None:
        self.channel = Channel(sock)
        got = self.channel.receive(10)
        assert got is not None
        self.start, self.blobs = got
        self.version = json.loads(self.blobs[0])
        if text := self.version.get("description"):
            self.version = {"do": json.loads(text)}  # a version that a real agent can read as well
        self.state: dict[str, bytes] = {}
        for _ in range(self.start["state_parts"]):
            got = self.channel.receive(10)
            assert got is not None
            self.state |= zip(got[0]["keys"], got[1], strict=True)
        self.committed = 0
        self.n = 0
        self.stopping = False
        self.told: list[str] = []

    def run(self) -> None:
        if self.start["mode"] == "drain" and (reason := self.version.get("drain")):
            self.do_fail(reason)
        if self.start["mode"] == "drain":
            self.channel.send({"type": "ready"})
            self.commit(1, state_delete=list(self.state))
            self.channel.send({"type": "stopped"})
            return
        for step in self.version.get("do", []):
            for name, argument in step.items():
                getattr(self, f"do_{name}")(argument)
        self.do_ready(None) if not self.version.get("do") else None
        while not self.stopping:
            self.listen(None)
        self.channel.send({"type": "stopped"})

    def listen(self, timeout_s: float | None) -> None:
        got = self.channel.receive(timeout_s)
        if got is None:
            return
        header, _ = got
        if header["type"] == "committed":
            assert header["n"] == self.committed + 1, "committed out of order"
            self.committed = header["n"]
        elif header["type"] == "stop":
            self.stopping = True
        elif header["type"] == "tables":
            self.start["tables"] = header["tables"]
            self.channel.send({"type": "tables", "tables": self.tables})
        elif header["type"] == "params":
            self.channel.send({"type": "stats", "params": header["params"]})
        elif header["type"] == "shelves":
            self.channel.send({"type": "stats", "shelves": header["shelves"], "told_later": True})
        elif header["type"] == "acknowledge":
            self.told.append(header["type"])
            self.transition(header["incident"], "acknowledged", by=header["by"])
        elif header["type"] == "reset":
            self.transition(header["incident"], "reset", by=header["by"], state="closed")

    def commit(self, rows: int, **more: Any) -> None:
        """One segment that holds the next `rows` numbers as text."""
        first = self.start["positions"].get("numbers", 0) if self.n == 0 else self.next_number
        self.next_number = first + rows
        self.n += 1
        payload = json.dumps(list(range(first, first + rows))).encode()
        position = {"numbers": self.next_number}
        sealed = {
            "stream": "numbers",
            "kind": "rows",
            "table": self.version.get("table", "numbers"),
            "rows": rows,
            "positions": {"numbers": {"from": first, "to": self.next_number}},
            "ledgers": {"stream": {"written": self.next_number}},
        }
        header = {
            "type": "commit",
            "n": self.n,
            "positions": position,
            "ledger": {"read": self.next_number},
            "params_digest": self.start["params_digest"],
            "state_set": ["last"],
            "state_delete": [],
            "sealed": [sealed],
            "transitions": [],
            "actions": [],
        }
        self.channel.send({**header, **more}, [str(self.next_number).encode(), payload])

    def transition(self, incident: str, transition: str, **fields: Any) -> None:
        row = {"incident": incident, "trigger": "t", "transition": transition, "severity": "critical", "message": "hot", **fields}
        self.commit(1, transitions=[row])

    def do_ready(self, _: Any) -> None:
        self.channel.send({"type": "ready", "tables": self.tables})

    @property
    def tables(self) -> dict[str, str]:
        return {name: digest for name, (_, digest) in self.start["tables"].items()}

    def do_number_rows(self, rows: int) -> None:
        """Commit without end, up to four commits in flight."""
        while not self.stopping:
            while self.n - self.committed >= 4:
                self.listen(None)
            self.commit(rows)
            self.listen(0)

    def do_commits(self, count: int) -> None:
        for _ in range(count):
            self.commit(1)
        while self.committed < self.n:
            self.listen(None)

    def do_stop(self, _: Any) -> None:
        self.stopping = True

    def do_raise(self, incident: str) -> None:
        self.transition(incident, "raised")

    def do_await(self, what: str) -> None:
        while what not in self.told and not self.stopping:
            self.listen(None)

    def do_say(self, words: list[Any]) -> None:
        incident, transition, more = words
        self.transition(incident, transition, **more)

    def do_act(self, actions: list[dict[str, Any]]) -> None:
        self.channel.send({"type": "act", "actions": actions})

    def do_die(self, status: int) -> None:
        os._exit(status)

    def do_fail(self, reason: str, code: str = "") -> None:
        self.channel.send({"type": "failed", "reason": reason, "hint": "mend it", "code": code})
        time.sleep(10)

    def do_fail_by(self, words: list[str]) -> None:
        self.do_fail(*words)

    def do_trouble(self, text: str) -> None:
        self.channel.send({"type": "note", "level": "warning" if text else "info", "text": text, "about": "source s"})

    def do_stats(self, stats: dict[str, Any]) -> None:
        self.channel.send({"type": "stats", **stats})

    def do_tell_shelves(self, _: Any) -> None:
        self.channel.send({"type": "stats", "shelves": self.start["shelves"]})

    def do_tell_secrets(self, _: Any) -> None:
        self.channel.send({"type": "stats", "secrets": self.start["secrets"]})

    def do_tell_labels(self, _: Any) -> None:
        self.channel.send({"type": "stats", "labels": self.start["node"]["labels"]})

    def do_sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def do_hang(self, _: Any) -> None:
        while True:
            pass

    def do_garbage(self, _: Any) -> None:
        self.channel.send({"type": "commit", "nonsense": 1})
        time.sleep(10)


def main(sock: socket.socket) -> None:
    FakeRunner(sock).run()
