"""Records that clients POST: a body is answered 200 once the commit that holds its rows is on disk, and not before (I1).

The server has a thread of its own; `Inbox` is what it shares with the runner's. Bodies are numbered as they are read, a position
is such a number, so a confirmed position answers every body up to it. Where nothing is answered, in a crash or a stop, the client
sends the body again: with an Idempotency-Key its rows are taken once, since keys are part of the position.
"""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from edge_agent.sources import Block, SourceContext
from edge_agent.sources.http_server import Server
from edge_agent.sources.stream import recoder
from pipelines.contract.errors import TidewireError
from pipelines.contract.language.sources import HttpSource as HttpSpec
from pipelines.contract.language.sources import Source as SourceSpec
from pipelines.engine.batch import Lines, parse_header
from pipelines.engine.records.framing import open_framer

KEYS_KEPT = 1_000
HELD_BYTES_MAX = 16 * 1024 * 1024  # of bodies that come in, wait, or are not committed yet; or twice the longest body
READ_BYTES_MAX = 4 * 1024 * 1024  # that are read and not committed yet: beyond, nothing is read
BLOCK_BYTES = 2 * 1024 * 1024
STALL_S = 5.0  # without a commit of what was read: nothing more is read then, and no body is accepted (I15)


@dataclass
class Post:
    """A body on its way. `answer` becomes the number of its records, or None when nothing can be promised."""

    data: bytes
    key: str
    n: int = 0  # once it is read
    records: int = 0
    at_s: float = field(default_factory=time.monotonic)
    answer: Future[int | None] = field(default_factory=Future)

    def settle(self, records: int | None) -> None:
        if not self.answer.done():
            self.answer.set_result(records)


class Inbox:
    """Bodies between two threads: offered by the server's, taken and confirmed by the runner's."""

    def __init__(self, count: int, keys: Mapping[str, Any], held_bytes_max: int) -> None:
        self._lock = threading.Lock()
        self._max_bytes, self._held_bytes = held_bytes_max, 0
        self._waiting: deque[Post] = deque()
        self._read: deque[Post] = deque()  # and not confirmed
        self._by_key: dict[str, Post] = {}  # of both
        self.count, self.keys, self._confirmed = count, dict(keys), 0
        self._is_closed = False

    # -- the server's side

    def reserve(self, size: int) -> bool:
        """Room for so many bytes of a body that comes in."""
        with self._lock:
            if self._is_closed or self._is_stalled() or self._held_bytes + size > self._max_bytes:
                return False
            self._held_bytes += size
            return True

    def release(self, size: int) -> None:
        with self._lock:
            self._held_bytes -= size

    def offer(self, data: bytes, key: str) -> Post:
        """Take a body, whose bytes are reserved no longer; or find the one that had this key."""
        with self._lock:
            if key in self._by_key:
                return self._by_key[key]
            post = Post(data, key)
            if key in self.keys:
                post.data, (post.n, post.records) = b"", self.keys[key]
                if post.n <= self._confirmed:
                    post.settle(post.records)
                else:
                    self._read.append(post)
                return post
            if self._is_closed:
                post.settle(None)
                return post
            self._waiting.append(post)
            self._held_bytes += len(data)
            if key:
                self._by_key[key] = post
            return post

    def withdraw(self, post: Post) -> None:
        """Nobody waits for it any more. If it was not read yet, it never is."""
        with self._lock:
            if post in self._waiting:
                self._waiting.remove(post)
                self._forget(post)
        post.settle(None)

    # -- the runner's side

    def take(self, size: int, most: int) -> list[Post]:
        """The next bodies, at least one where any may be read: up to `size` bytes, `most` of them."""
        with self._lock:
            unconfirmed = sum(len(post.data) for post in self._read)
            if unconfirmed >= READ_BYTES_MAX or self._is_stalled(of=self._read):
                return []
            taken: list[Post] = []
            while self._waiting and len(taken) < most and (not taken or size >= len(self._waiting[0].data)):
                taken.append(self._waiting.popleft())
                size -= len(taken[-1].data)
            return taken

    def note_read(self, posts: list[Post]) -> None:
        """Number them, and remember their keys. One without records has nothing to wait for."""
        now_s = time.monotonic()
        with self._lock:
            for post in posts:
                if not post.records:
                    self._forget(post)
                    post.settle(0)
                    continue
                self.count += 1
                post.n, post.at_s = self.count, now_s
                if post.key:
                    self.keys[post.key] = [post.n, post.records]
                self._read.append(post)
            while len(self.keys) > KEYS_KEPT:
                del self.keys[next(iter(self.keys))]

    def confirm(self, n: int) -> None:
        """The bodies up to number `n` are committed."""
        with self._lock:
            self._confirmed = n
            done = [post for post in self._read if post.n <= n]
            self._read = deque(post for post in self._read if post.n > n)
            for post in done:
                self._forget(post)
        for post in done:
            post.settle(post.records)

    def close(self) -> None:
        """Nothing is taken any more, and nothing more is promised."""
        with self._lock:
            self._is_closed = True
            left = [*self._waiting, *self._read]
            self._waiting.clear()
        for post in left:
            post.settle(None)

    def _forget(self, post: Post) -> None:
        self._held_bytes -= len(post.data)
        if self._by_key.get(post.key) is post:
            del self._by_key[post.key]

    def _is_stalled(self, of: deque[Post] | None = None) -> bool:
        oldest = [posts[0].at_s for posts in ((self._read, self._waiting) if of is None else (of,)) if posts]
        return bool(oldest) and time.monotonic() - min(oldest) >= STALL_S


class HttpSource:
    def __init__(self, spec: SourceSpec, position: Mapping[str, Any], context: SourceContext) -> None:
        assert spec.http is not None
        if context.until_eof:
            hint = "run without --until-eof, or read a file"
            raise TidewireError("an http source never ends", op="open source", hint=hint)
        self._csv, self._framer, self._encoding = spec.decode.csv, open_framer(spec.framing), spec.encoding
        held_bytes_max = max(HELD_BYTES_MAX, 2 * spec.http.max_body)
        self._inbox = Inbox(int(position.get("count", 0)), position.get("keys", {}), held_bytes_max)
        self._refusal = _refusal(spec.http, context)
        self._server = None if self._refusal else Server(spec.http, self._inbox)

    @property
    def position(self) -> dict[str, Any]:
        """How many bodies were read; of the last ones with a key, by its digest, their number and how many records they had."""
        return {"count": self._inbox.count, **({"keys": dict(self._inbox.keys)} if self._inbox.keys else {})}

    exhausted = False

    def trouble(self) -> str:
        return self._server.trouble if self._server else self._refusal

    def acknowledge(self, position: Mapping[str, Any]) -> None:
        self._inbox.confirm(int(position.get("count", 0)))

    def close(self) -> None:
        self._inbox.close()
        if self._server:
            self._server.close()

    def read(self) -> Block | None:
        has_header = self._csv is not None and self._csv.columns is None
        posts = self._inbox.take(BLOCK_BYTES, 1 if has_header else BLOCK_BYTES)
        if not posts:
            return None
        framed = [self._records(post) for post in posts]
        header = tuple(self._csv.columns) if self._csv and self._csv.columns else ()
        if has_header and framed[0]:
            assert self._csv is not None
            header = parse_header(framed[0].text[0].as_py().encode(), self._csv.delimiter)
            framed[0] = framed[0].without_first()
        for post, lines in zip(posts, framed, strict=True):
            post.records = len(lines) if lines else 0
        self._inbox.note_read(posts)
        found = [lines for lines in framed if lines]
        return Block(_joined(found), header=header, is_awaited=True) if found else None

    def _records(self, post: Post) -> Lines | None:
        return self._framer.frame(recoder(self._encoding)(post.data), 0, is_last=True).lines


def key_digest(key: str) -> str:
    """72 bits of SHA-256 stand for a key: a position holds a thousand of them, and is written with each commit."""
    return base64.b64encode(hashlib.sha256(key.encode()).digest()[:9]).decode() if key else ""


def _joined(parts: list[Lines]) -> Lines:
    if len(parts) == 1:
        return parts[0]
    bad: dict[int, str] = {}
    before = 0
    for part in parts:
        bad |= {before + i: why for i, why in part.bad.items()}
        before += len(part)
    return Lines(pa.concat_arrays([p.text for p in parts]), pa.concat_arrays([p.offsets for p in parts]), bad)


def _refusal(spec: HttpSpec, context: SourceContext) -> str:
    return "" if context.may_listen(spec.listen) else f"local policy does not allow listening on {spec.listen}"
