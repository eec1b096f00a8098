"""Text decoders: a column of texts to a text column for each name. A text that does not decode spoils only itself."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.contract.language.decoders import Decode
from pipelines.contract.language.sources import Source
from pipelines.engine.decoders.base import PatternError, TextDecoder
from pipelines.engine.decoders.grok import expand
from pipelines.engine.decoders.keyvalue import KeyValueDecoder
from pipelines.engine.decoders.regex import RegexDecoder, check_match, check_pattern
from pipelines.engine.decoders.syslog import SyslogDecoder
from pipelines.engine.decoders.value import ValueDecoder

__all__ = ["TextDecoder", "check", "check_framing", "text_decoder"]


def text_decoder(decode: Decode) -> TextDecoder | None:
    """The decoder, None for json and csv, which have their own. Its patterns must have passed `check`."""
    if decode.logfmt:
        return KeyValueDecoder("", "=")
    if decode.keyvalue:
        pair, separator = decode.keyvalue.pair, decode.keyvalue.separator
        return KeyValueDecoder(pair if pair.strip() else "", separator.strip())
    if decode.regex:
        return RegexDecoder(decode.regex.pattern)
    if decode.grok:
        return RegexDecoder(expand(decode.grok.pattern, decode.grok.patterns))
    if decode.syslog:
        return SyslogDecoder(decode.syslog.format, decode.syslog.year)
    return ValueDecoder() if decode.value else None


def check(decode: Decode) -> Iterator[tuple[str, str, str]]:
    """(path below `decode`, message, hint) of everything wrong with its patterns."""
    try:
        if decode.regex:
            check_pattern(decode.regex.pattern, "regex.pattern")
        if decode.grok:
            check_pattern(expand(decode.grok.pattern, decode.grok.patterns), "grok.pattern")
    except PatternError as error:
        yield error.path, error.message, error.hint


def check_framing(source: Source) -> Iterator[tuple[str, str, str]]:
    """The same for the patterns of a source's framing; the path is below the source."""
    multiline = source.framing.multiline if source.framing else None
    for name in ("starts_with", "continues_with"):
        pattern = getattr(multiline, name, None)
        if pattern is not None:
            try:
                check_match(pattern, f"framing.multiline.{name}")
            except PatternError as error:
                yield error.path, error.message, error.hint
