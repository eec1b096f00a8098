"""Text and numbers to timestamps: ISO 8601, strptime formats, local times of a zone, numbers since 1970.

Each has a definition for one value (in Python, exact) and a quick way for a whole column (Arrow kernels). The quick way gives
values and marks the rows it is not sure of; whoever asks looks at those alone. All are microseconds since 1970 in UTC.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal

import pyarrow as pa
import pyarrow.compute as pc

MICROS = pa.timestamp("us")
FIRST_US, LAST_US = -62_135_596_800_000_000, 253_402_300_799_999_999  # the years 1 to 9999
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  wall time: its zone is another question
_MICROSECOND = timedelta(microseconds=1)
_DAY_US = 86_400_000_000
PER_UNIT = {"s": Decimal(1_000_000), "ms": Decimal(1000), "us": Decimal(1), "ns": Decimal("0.001")}
_WHOLE = {"s": 1_000_000, "ms": 1000, "us": 1}
_EXACT = Context(prec=60, rounding=ROUND_HALF_EVEN)
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?", re.ASCII)
_ISO = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[ T](\d\d)(?::(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?)?(?: ?([Zz]|[-+]\d\d(?::?\d\d)?))?)?", re.ASCII
)
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH_NAMES = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_NAMES = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


class NotATime(ValueError):
    """The text or number is no timestamp; its text says why, or is empty."""


# -- numbers since 1970


def from_number(text: str, unit: str) -> int:
    """Exact; fractions of a microsecond are rounded half to even."""
    if unit != "ns" and text.isascii() and text.isdigit():
        return _in_calendar(int(text) * _WHOLE[unit])
    if not _NUMBER.fullmatch(text):
        raise NotATime("")
    return _in_calendar(int(_EXACT.multiply(Decimal(text), PER_UNIT[unit]).to_integral_value(ROUND_HALF_EVEN, _EXACT)))


def numbers_quickly(numbers: pa.Array, unit: str) -> tuple[pa.Array, pa.Array | None]:
    """(values, the rows to doubt or None) of int64 or double numbers."""
    if pa.types.is_integer(numbers.type):
        if unit == "ns":
            quotient = pc.divide(numbers, _int(1000))
            return quotient.view(MICROS), pc.not_equal(pc.multiply(quotient, _int(1000)), numbers)
        factor = int(PER_UNIT[unit])
        limit = LAST_US // factor
        doubt = outside(numbers, -(-FIRST_US // factor), limit)
        return pc.multiply(numbers, _int(factor)).view(MICROS), doubt
    micros = pc.multiply(numbers, pa.scalar(float(PER_UNIT[unit])))
    rounded = pc.round(micros)
    # Below 2^51 the double and its product are each off by an eighth of a microsecond at most: this near, rounding is exact.
    far = pc.greater(pc.abs(pc.subtract(micros, rounded)), pa.scalar(0.2))
    doubt = pc.or_(far, pc.invert(pc.less(pc.abs(micros), pa.scalar(float(2**51)))))
    return pc.if_else(doubt, None, rounded).cast(pa.int64()).view(MICROS), doubt


def outside(values: pa.Array, low: int, high: int) -> pa.Array | None:
    bounds = pc.min_max(values)
    if bounds["min"].is_valid and bounds["min"].as_py() >= low and bounds["max"].as_py() <= high:
        return None
    return pc.or_(pc.less(values, _int(low)), pc.greater(values, _int(high)))


def _int(value: int) -> pa.Scalar:
    """Typed: a plain number costs pyarrow ten times the time of a small operation."""
    return pa.scalar(value, pa.int64())


# -- text


@dataclass(frozen=True)
class Format:
    """A strptime format. `layout`: (directive or literal, width) where every part has one width, else empty."""

    text: str
    pattern: re.Pattern[str]
    has_year: bool
    layout: tuple[tuple[str, int], ...]


_PARTS = {
    "Y": r"(?P<Y>\d{4})",
    "y": r"(?P<y>\d\d)",
    "m": r"(?P<m>\d{1,2})",
    "d": r"(?P<d>[ ]?\d{1,2})",
    "e": r"(?P<d>[ ]?\d{1,2})",
    "H": r"(?P<H>\d{1,2})",
    "I": r"(?P<I>\d{1,2})",
    "M": r"(?P<M>\d{1,2})",
    "S": r"(?P<S>\d{1,2})",
    "f": r"(?P<f>\d{1,9})",
    "j": r"(?P<j>\d{1,3})",
    "p": r"(?P<p>[AaPp][Mm])",
    "z": r"(?P<z>[Zz]|[-+]\d\d(?::?\d\d)?)",
    "Z": r"(?P<Z>UTC|GMT|Z)",
    "s": r"(?P<s>-?\d{1,12})",
    "b": f"(?P<b>{'|'.join(MONTHS)})",
    "B": f"(?P<B>{'|'.join(_MONTH_NAMES)})",
    "a": f"(?:{'|'.join(_DAYS)})",
    "A": f"(?:{'|'.join(_DAY_NAMES)})",
    "%": "%",
}
_SHORT = {"T": "%H:%M:%S", "R": "%H:%M", "F": "%Y-%m-%d", "D": "%m/%d/%y", "h": "%b"}
DIRECTIVES = tuple(sorted({*_PARTS, *_SHORT}, key=str.lower))
_WIDTHS = {"Y": 4, "m": 2, "d": 2, "H": 2, "M": 2, "S": 2, "b": 3}


def compile_format(text: str) -> Format:
    """Raises ValueError, with what is wrong in a user's words."""
    for short, long in _SHORT.items():
        text = text.replace(f"%{short}", long)
    parts = re.findall(r"%.?|[^%]+", text, re.DOTALL)
    pattern, seen = "", set()
    for part in parts:
        if not part.startswith("%"):
            pattern += "".join(r"\s+" if piece.isspace() else re.escape(piece) for piece in re.findall(r"\s+|\S+", part))
            continue
        if part[1:] not in _PARTS:
            raise ValueError(f'"{part}" is no part of a format')
        if part[1:].replace("e", "d") in seen and part != "%%":
            raise ValueError(f'"{part}" stands twice')
        seen.add(part[1:].replace("e", "d"))
        pattern += _PARTS[part[1:]]
    if not seen & set("Yys") and not ("d" in seen and seen & set("mbB")):
        raise ValueError("the format has no date: it needs a year, or a month and a day")
    layout = tuple((part, _WIDTHS.get(part[1:], 0)) if part.startswith("%") else (part, len(part)) for part in parts)
    fixed = {"Y", "d", "H", "M"} <= seen and bool(seen & {"m", "b"}) and all(width for _, width in layout) and text.isascii()
    return Format(text, re.compile(pattern, re.ASCII | re.IGNORECASE), bool(seen & set("Yys")), layout if fixed else ())


def from_text(text: str, form: Format | None, zone: str | None, received_us: int) -> int:
    """One timestamp. `form` None: ISO 8601. A format without a year means the last such date before `received_us`, or the next
    within a day of it. Raises NotATime."""
    text = text.strip(" \t")
    wall_us, offset_us = _iso(text) if form is None else _by_format(text, form, received_us)
    if offset_us is not None or zone is None:
        return _in_calendar(wall_us - (offset_us or 0))
    (found,), (missing,) = (x.to_pylist() for x in localize(pa.array([wall_us], MICROS), zone))
    if missing:
        raise NotATime(f"does not exist in {zone}: the clocks went forward")
    return _in_calendar(pa.scalar(found, MICROS).value)


def texts_quickly(texts: pa.Array, form: Format | None, zone: str | None) -> tuple[pa.Array, pa.Array | None]:
    """(values, the rows to doubt or None). Raises ArrowInvalid when the texts are not all of one plain shape."""
    if form is not None:
        texts = _as_iso(texts, form)
    first = pc.index(pc.is_valid(texts), pa.scalar(True)).as_py()
    zoned = first >= 0 and _iso_zone(texts[first].as_py())  # asked first: a cast that fails takes 600 ns a value
    values = texts.cast(pa.timestamp("us", "UTC")).cast(MICROS) if zoned else texts.cast(MICROS)
    doubt = outside(values.view(pa.int64()), FIRST_US + _DAY_US, LAST_US - _DAY_US)
    if zone is None or zoned:
        return values, doubt
    values, missing = localize(values, zone)
    return values, missing if doubt is None else pc.or_kleene(doubt, missing)


def _iso_zone(text: str) -> bool:
    found = _ISO.fullmatch(text)
    return found is not None and found[8] is not None


def localize(wall: pa.Array, zone: str) -> tuple[pa.Array, pa.Array]:
    """Wall times of a zone in UTC, and which of them do not exist (spring). Of the two that an autumn hour has, the first."""
    try:
        return _assume(wall, zone, "raise"), pa.repeat(pa.scalar(False), len(wall))
    except pa.ArrowInvalid:
        before, after = _assume(wall, zone, "earliest"), _assume(wall, zone, "latest")
        return before, pc.not_equal(before, after)


def _assume(wall: pa.Array, zone: str, nonexistent: str) -> pa.Array:
    return (
        pc.assume_timezone(wall, zone, ambiguous="earliest", nonexistent=nonexistent).cast(pa.timestamp("us", "UTC")).cast(MICROS)
    )


def check_zone(zone: str) -> None:
    """Raises ValueError unless this machine knows the zone."""
    try:
        _assume(pa.array([0], MICROS), zone, "earliest")
    except pa.ArrowInvalid:
        raise ValueError(f'there is no time zone "{zone}"') from None


def _iso(text: str) -> tuple[int, int | None]:
    found = _ISO.fullmatch(text)
    if not found:
        raise NotATime("")
    year, month, day, hour, minute, second, fraction, offset = found.groups()
    return _wall(year, month, day, hour, minute, second, fraction), _offset_us(offset)


def _wall(year: str, month: str, day: str, hour: str | None, minute: str | None, second: str | None, fraction: str | None) -> int:
    micros = int((fraction or "0").ljust(6, "0")[:6])  # nanoseconds are cut
    try:
        moment = datetime(int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0), micros)  # noqa: DTZ001
    except ValueError:
        raise NotATime("") from None
    return (moment - _EPOCH) // _MICROSECOND


def _offset_us(offset: str | None) -> int | None:
    if not offset:
        return None
    if offset in ("Z", "z"):
        return 0
    digits = offset[1:].replace(":", "").ljust(4, "0")
    hours, minutes = int(digits[:2]), int(digits[2:])
    if hours > 23 or minutes > 59:
        raise NotATime("")
    return (-1 if offset[0] == "-" else 1) * (hours * 60 + minutes) * 60_000_000


def _by_format(text: str, form: Format, received_us: int) -> tuple[int, int | None]:
    found = form.pattern.fullmatch(text)
    if not found:
        raise NotATime("")
    parts = {k: v for k, v in found.groupdict().items() if v is not None}
    offset = 0 if "Z" in parts else _offset_us(parts.get("z"))
    if "s" in parts:
        return int(parts["s"]) * 1_000_000 + int(parts.get("f", "0").ljust(6, "0")[:6]), 0
    if form.has_year:
        return _assemble(parts, _year(parts)), offset
    year = (_EPOCH + timedelta(microseconds=received_us)).year
    for candidate in (year + 1, year, year - 1):
        try:
            wall = _assemble(parts, candidate)
        except NotATime:
            if candidate == year - 1:
                raise
            continue
        if wall <= received_us + _DAY_US:
            return wall, offset
    raise NotATime("")


def _year(parts: Mapping[str, str]) -> int:
    if "Y" in parts:
        return int(parts["Y"])
    short = int(parts["y"])
    return short + (2000 if short < 69 else 1900)


def _assemble(parts: Mapping[str, str], year: int) -> int:
    hour = int(parts.get("H", "0"))
    if "I" in parts:
        hour = int(parts["I"]) % 12 + (12 if parts.get("p", "am").lower() == "pm" else 0)
        if not 1 <= int(parts["I"]) <= 12:
            raise NotATime("")
    month, day = _month(parts), parts.get("d", "1").strip()
    wall = _wall(str(year), str(month), day, str(hour), parts.get("M"), parts.get("S"), parts.get("f"))
    if "j" in parts:
        wall += (int(parts["j"]) - 1) * _DAY_US
        if not 1 <= int(parts["j"]) <= 366 or (_EPOCH + timedelta(microseconds=wall)).year != year:
            raise NotATime("")
    return wall


def _month(parts: Mapping[str, str]) -> int:
    if "b" in parts:
        return MONTHS.index(parts["b"].lower()) + 1
    if "B" in parts:
        return _MONTH_NAMES.index(parts["B"].lower()) + 1
    return int(parts.get("m", "1"))


def _in_calendar(us: int) -> int:
    if not FIRST_US <= us <= LAST_US:
        raise NotATime("is not between the years 1 and 9999")
    return us


# -- a layout of fixed widths, rewritten as ISO 8601


_MONTH_CODES = pa.array([name.capitalize().encode() for name in MONTHS], pa.binary())
_MONTH_NUMBERS = pa.array([f"{i:02}".encode() for i in range(1, 13)], pa.binary())


def _as_iso(texts: pa.Array, form: Format) -> pa.Array:
    """Raises ArrowInvalid unless every text has the layout's widths and literals."""
    width = sum(size for _, size in form.layout)
    raw = texts.cast(pa.binary())
    lengths = pc.binary_length(raw)
    if not form.layout or not _all(pc.equal(lengths, width)):
        raise pa.ArrowInvalid("not of one width")
    found: dict[str, pa.Array] = {}
    start = 0
    for part, size in form.layout:
        piece = pc.binary_slice(raw, start, start + size)
        start += size
        if part.startswith("%"):
            found[part[1:]] = piece
        elif not _all(pc.equal(piece, part.encode())):
            raise pa.ArrowInvalid("other literals")
    month = found["m"] if "m" in found else _MONTH_NUMBERS.take(pc.index_in(found["b"], _MONTH_CODES))
    if month.null_count > raw.null_count:
        raise pa.ArrowInvalid("another month")
    pieces: Sequence[object] = [found["Y"], b"-", month, b"-", found["d"], b"T", found["H"], b":", found["M"]]
    if "S" in found:
        pieces = [*pieces, b":", found["S"]]
    return pc.binary_join_element_wise(*pieces, b"").cast(pa.string())


def _all(mask: pa.Array) -> bool:
    return pc.all(mask).as_py() is not False


def as_text(us: int) -> str:
    """For people: ISO 8601 in UTC."""
    return (_EPOCH + timedelta(microseconds=us)).replace(tzinfo=UTC).isoformat()
