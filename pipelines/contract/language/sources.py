"""Sources: where rows come from, and how their bytes become records."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pipelines.contract.duration import Duration
from pipelines.contract.language.base import Model, Texts
from pipelines.contract.language.decoders import Decode, decode_short_form
from pipelines.contract.size import Size, format_size

BODY_BYTES_LIMIT = 64 * 1024 * 1024  # of `max_body`
RECORD_BYTES_LIMIT = 4 * 1024 * 1024  # of `max`: what a runner holds of one source is four times this at most


def _record_size(size: int) -> int:
    if not 16 <= size <= RECORD_BYTES_LIMIT:
        raise ValueError(f"{format_size(size)}: the longest record is from 16B to {format_size(RECORD_BYTES_LIMIT)}")
    return size


def _mark(text: str) -> str:
    if not 1 <= len(text.encode()) <= 16:
        raise ValueError("a delimiter has 1 to 16 bytes")
    return text


RecordSize = Annotated[Size, AfterValidator(_record_size)]
RECORD_BYTES_MAX = 256 * 1024


class LineFraming(Model):
    """Records end with a line end: LF or CR LF."""

    max: RecordSize = RECORD_BYTES_MAX


class DelimiterFraming(Model):
    """Records end with a text. Line ends around a record are no part of it."""

    text: Annotated[str, AfterValidator(_mark)]
    max: RecordSize = RECORD_BYTES_MAX


class LengthFraming(Model):
    """Records follow their length, an unsigned binary number of so many `bytes`."""

    bytes: Literal[1, 2, 4]
    order: Literal["big", "little"] = "big"
    includes_itself: bool = False
    max: RecordSize = RECORD_BYTES_MAX


class MultilineFraming(Model):
    """Lines that belong together. Exactly one of: the pattern of lines that begin a record, of lines that continue one.
    The last record of a growing file is handed on when nothing came for `flush_after`."""

    NOUN, ONE_OF = "multiline framing", ("starts_with", "continues_with")

    starts_with: str | None = Field(None, min_length=1, max_length=8192)
    continues_with: str | None = Field(None, min_length=1, max_length=8192)
    max: RecordSize = RECORD_BYTES_MAX
    flush_after: Duration = 1_000_000


def _framing_short_form(value: Any) -> Any:
    return {value: {}} if isinstance(value, str) else value


def _delimiter_short_form(value: Any) -> Any:
    return {"text": value} if isinstance(value, str) else value


class Framing(Model):
    """How a stream of bytes is cut into records: exactly one kind; `delimiter: ";"` is short for `delimiter: {text: ";"}`."""

    NOUN, ONE_OF = "framing", ("lines", "delimiter", "length", "multiline")

    lines: LineFraming | None = None
    delimiter: Annotated[DelimiterFraming, BeforeValidator(_delimiter_short_form)] | None = None
    length: LengthFraming | None = None
    multiline: MultilineFraming | None = None


class FileSource(Model):
    """Records of the files that match; follows growing and new files, resumes where the last commit stood."""

    path: Texts
    compression: Literal["auto", "none"] = "auto"  # auto: gzip, zstd, bzip2 and xz are known by their first bytes


def listen_address(text: str) -> tuple[str, int]:
    """Host and port of `127.0.0.1:8088`, `[::1]:8088` or `localhost:8088`. Raises ValueError."""
    host, _, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
        if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
            raise ValueError(port)
    except ValueError:
        raise ValueError(f"{text!r} is not an address and a port: write 127.0.0.1:8088 or [::1]:8088") from None
    return host, int(port)


def _listen(text: str) -> str:
    if "${" not in text:  # what a reference stands for is known on the node
        listen_address(text)
    return text


def _url_path(text: str) -> str:
    if "${" not in text and not re.fullmatch(r"/[!\"$->@-~]{0,200}", text):
        raise ValueError(f"{text!r} is not a path: write one such as /rows")
    return text


def _body_size(size: int) -> int:
    if not 1024 <= size <= BODY_BYTES_LIMIT:
        raise ValueError(f"{format_size(size)}: the longest body is from 1KiB to {format_size(BODY_BYTES_LIMIT)}")
    return size


class HttpSource(Model):
    """Records that clients POST. Each body is answered 200 once its rows are committed; before that a client sends it again."""

    listen: Annotated[str, AfterValidator(_listen)]
    path: Annotated[str, AfterValidator(_url_path)] = "/"
    token: str | None = None  # what a client must bring as `Authorization: Bearer`; None: nothing, on loopback only
    max_body: Annotated[Size, AfterValidator(_body_size)] = 4 * 1024 * 1024  # as sent, and unpacked

    @model_validator(mode="after")
    def _open_to_none(self) -> Self:
        if self.token is None and "${" not in self.listen:
            host, _ = listen_address(self.listen)
            if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
                raise ValueError(f"others can reach {self.listen}: add `token: ${{secret:name}}`, or listen on 127.0.0.1")
        return self


class SimulatedValue(Model):
    base: float = 20.0
    swing: Annotated[float, Field(ge=0)] = 0.0
    period: Duration = 600_000_000
    noise: Annotated[float, Field(ge=0)] = 0.0


class SimulatedFault(Model):
    """`offset` adds `by` to the value of the first `sensors` sensors from `at` on for `lasts`, again each `every`.
    `garbage`, `missing` and `text` spoil a `share` of the rows: bytes that do not decode, no value, a value that is no number."""

    kind: Literal["offset", "garbage", "missing", "text"]
    at: Duration = 0
    lasts: Duration = 0
    every: Duration = 0
    sensors: int = Field(1, ge=1)
    by: float = 0.0
    share: float = Field(0.0, ge=0, le=1)


class SimulateSource(Model):
    """Seeded sensors: the same seed gives the same rows `{"ts", "sensor", "value", "n"}` as JSON lines, for ever."""

    seed: int = 0
    sensors: int = Field(4, ge=1, le=10_000)
    every: Duration = 1_000_000  # each sensor speaks once in this time
    rows: int | None = Field(None, ge=1)  # then it ends; None: for ever
    start: str | None = None  # event time of the first row (ISO 8601, UTC); None: when the pipeline first starts
    value: SimulatedValue = SimulatedValue()
    faults: list[SimulatedFault] = []


class Source(Model):
    """Where rows come from: exactly one kind; how its bytes are cut into records, and how a record is decoded."""

    NOUN, ONE_OF = "source", ("file", "http", "simulate")

    file: FileSource | None = None
    http: HttpSource | None = None
    simulate: SimulateSource | None = None
    framing: Annotated[Framing, BeforeValidator(_framing_short_form)] | None = None  # None: lines
    encoding: Literal["utf-8", "latin-1", "cp1252", "utf-16"] = "utf-8"
    decode: Annotated[Decode, BeforeValidator(decode_short_form)] = Decode.model_validate({"json": {}})

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.simulate and not self.decode.json_:
            raise ValueError("a simulate source gives JSON lines: remove `decode` or write `decode: json`")
        if self.simulate and (self.framing or self.encoding != "utf-8"):
            raise ValueError("a simulate source gives JSON lines: remove `framing` and `encoding`")
        return self
