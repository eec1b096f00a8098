"""syslog: RFC 5424 and RFC 3164, the latter as it is really written: without the priority, with ISO stamps, with a year."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.batch import Lines
from pipelines.engine.decoders.base import Columns
from pipelines.engine.decoders.regex import extract

NAMES = (
    "facility", "severity", "facility_code", "severity_code", "timestamp", "host", "app", "procid", "msgid", "message",
    "structured_data",
)  # fmt: skip
FACILITIES = (
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp", "audit", "alert",
    "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
)  # fmt: skip
SEVERITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
_PRIORITY_MAX = 191
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_AHEAD = timedelta(days=31)  # a stamp without a year that is further ahead of its arrival is one of last year

_PRIORITY = r"\A(?:<(?P<pri>[0-9]{1,3})>)?"
_ISO = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}(?:\.[0-9]+)?(?:Z|[+-][0-9]{2}:?[0-9]{2})?"
_OLD = rf"(?:{'|'.join(_MONTHS)}) [ 0-9]?[0-9](?: [0-9]{{4}})? [0-9]{{2}}:[0-9]{{2}}:[0-9]{{2}}(?:\.[0-9]+)?(?: [0-9]{{4}})?"
_OLD_PARTS = (
    r"\A(?P<month>[A-Z][a-z]{2}) +(?P<day>[0-9]+)(?: (?P<year>[0-9]{4}))? (?P<time>[0-9]{2}:[0-9.:]+)(?: (?P<year>[0-9]{4}))?\z"
)
_RFC3164 = (
    rf"{_PRIORITY}[*.]?(?P<timestamp>{_ISO}|{_OLD}):? (?P<host>\S+) +"
    r"(?:(?P<app>[^\s:\[\]]+(?: [^\s:\[\]]+)?)(?:\[(?P<procid>[^\]\s]+)\]|\[\])?:(?:\s+|\z))?(?P<message>(?s:.*))\z"
)
_DATA = r'(?:\[[^ =\]"]+(?: [^ =\]"]+="(?:[^"\\\]]|\\.)*")*\])+'
_RFC5424 = (
    rf"{_PRIORITY}[1-9][0-9]? (?P<timestamp>-|{_ISO}) (?P<host>\S+) (?P<app>\S+) (?P<procid>\S+) (?P<msgid>\S+) "
    rf"(?P<structured_data>-|{_DATA})(?: (?P<message>(?s:.*)))?\z"
)
_LOOKS_LIKE_5424 = rf"{_PRIORITY}[1-9][0-9]? (?:-|[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}T)".replace("?P<pri>", "")
_ELEMENT = re.compile(r'\[([^ =\]"]+)((?: [^ =\]"]+="(?:[^"\\\]]|\\.)*")*)\]', re.DOTALL)
_PARAMETER = re.compile(r' ([^ =\]"]+)="((?:[^"\\\]]|\\.)*)"', re.DOTALL)


@dataclass(frozen=True)
class SyslogDecoder:
    format: Literal["auto", "rfc3164", "rfc5424"] = "auto"
    year: int | None = None

    def names(self) -> tuple[str, ...]:
        return NAMES

    def columns(
        self, lines: Lines, wanted: Sequence[str], header: Sequence[str] = (), received_at_us: int | None = None
    ) -> tuple[Columns, dict[int, str]]:
        text = lines.text
        is_new = pc.fill_null(pc.match_substring_regex(text, _LOOKS_LIKE_5424), False) if self.format == "auto" else None
        if self.format == "rfc5424" or (is_new is not None and len(text) and pc.all(is_new).as_py()):
            return self._rfc5424(text, wanted)
        if is_new is None or not pc.any(is_new).as_py():
            return self._rfc3164(text, wanted, received_at_us)
        old, old_bad = self._rfc3164(pc.if_else(is_new, None, text), wanted, received_at_us)
        new, new_bad = self._rfc5424(pc.if_else(is_new, text, None), wanted)
        return {name: pc.if_else(is_new, new[name], old[name]) for name in wanted}, old_bad | new_bad

    def _rfc5424(self, text: pa.StringArray, wanted: Sequence[str]) -> tuple[Columns, dict[int, str]]:
        found, bad = _found(text, _RFC5424, wanted, "no syslog line of RFC 5424")
        for name in ("timestamp", "host", "app", "procid", "msgid", "structured_data"):
            if name in wanted:
                found[name] = pc.if_else(pc.equal(found[name], "-"), None, found[name])
        if "message" in wanted:
            found["message"] = pc.replace_substring_regex(found["message"], "\\A\ufeff", "")
        if "structured_data" in wanted:
            encoded = found["structured_data"].dictionary_encode()
            made = pa.array([_as_json(value) for value in encoded.dictionary.to_pylist()], pa.string())
            found["structured_data"] = made.take(encoded.indices)
        return found, bad

    def _rfc3164(self, text: pa.StringArray, wanted: Sequence[str], received_at_us: int | None) -> tuple[Columns, dict[int, str]]:
        found, bad = _found(text, _RFC3164, wanted, "no syslog line of RFC 3164")
        if "timestamp" in wanted:
            found["timestamp"] = self._with_year(found["timestamp"], received_at_us)
        return found, bad

    def _with_year(self, stamps: pa.StringArray, received_at_us: int | None) -> pa.StringArray:
        """`Jun 14 15:16:01` as `2005-06-14 15:16:01`; other stamps as they are, and without a year when nothing tells one."""
        parts, is_old = extract(stamps, _OLD_PARTS, ("month", "day", "year", "time"))
        if not pc.any(is_old).as_py():
            return stamps
        month = pc.cast(pc.add(pc.index_in(parts["month"], pa.array(_MONTHS)), 1), pa.string())
        rest = pc.binary_join_element_wise(_two_digits(month), _two_digits(parts["day"]), "-")
        rest = pc.binary_join_element_wise(rest, parts["time"], " ")
        year = pc.coalesce(parts["year"], self._year(rest, received_at_us))
        return pc.coalesce(pc.binary_join_element_wise(year, rest, "-"), stamps)

    def _year(self, rest: pa.StringArray, received_at_us: int | None) -> pa.StringArray:
        """The latest year in which the stamp is not too far ahead of its arrival."""
        if self.year is not None:
            return pa.repeat(str(self.year), len(rest))
        if received_at_us is None:
            return pa.nulls(len(rest), pa.string())
        limit = datetime.fromtimestamp(received_at_us / 1e6, UTC) + _AHEAD
        is_this_year = pc.less_equal(rest, limit.strftime("%m-%d %H:%M:%S.999999"))
        return pc.if_else(is_this_year, f"{limit.year:04}", f"{limit.year - 1:04}")


def _found(text: pa.StringArray, pattern: str, wanted: Sequence[str], why: str) -> tuple[Columns, dict[int, str]]:
    """The wanted parts, the priority in its words, and what is wrong."""
    found, matches = extract(text, pattern, [*(name for name in wanted if name in NAMES), "pri"])
    bad = dict.fromkeys(pc.indices_nonzero(pc.invert(pc.fill_null(matches, True))).to_pylist(), why)
    priority = found.pop("pri").cast(pa.int32())
    too_much = pc.fill_null(pc.greater(priority, _PRIORITY_MAX), False)
    bad |= {i: f"the priority {priority[i]} is more than {_PRIORITY_MAX}" for i in pc.indices_nonzero(too_much).to_pylist()}
    priority = pc.if_else(too_much, None, priority)
    for name, code, words in (
        ("facility", pc.shift_right(priority, 3), FACILITIES),
        ("severity", pc.bit_wise_and(priority, 7), SEVERITIES),
    ):
        found[name], found[f"{name}_code"] = pa.array(words).take(code), code.cast(pa.string())
    return {name: found[name] if name in found else pa.nulls(len(text), pa.string()) for name in wanted}, bad


def _two_digits(numbers: pa.StringArray) -> pa.StringArray:
    return pc.utf8_lpad(numbers, 2, "0")


def _as_json(data: str) -> str:
    """`[id name="value"]` as `{"id": {"name": "value"}}`."""
    elements = {
        element[1]: {name: re.sub(r'\\(["\\\]])', r"\1", value) for name, value in _PARAMETER.findall(element[2])}
        for element in _ELEMENT.finditer(data)
    }
    return json.dumps(elements, ensure_ascii=False)
