"""The functions of DuckDB that an expression may use: deterministic, of one row, and bounded in what they make.

An allow-list, because 350 entries of `duckdb_functions()` have no stability. A test checks that each exists and is CONSISTENT.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


OPERATORS = _words("+ - * / // % ^ ** & | ~ << >> || ~~ !~~ ~~* !~~* ~~~")

MATH = _words(
    "abs acos asin atan atan2 cbrt ceil ceiling cos cot degrees even exp floor fdiv fmod gamma greatest isfinite isinf isnan "
    "least lgamma ln log log10 log2 mod pi pow power radians round sign signbit sin sqrt tan trunc xor bit_count"
)
TEXT = _words(
    "ascii chr concat concat_ws contains ends_with suffix prefix starts_with instr strpos position left right length len "
    "like_escape not_like_escape ilike_escape not_ilike_escape lower lcase upper ucase ltrim rtrim trim md5 sha256 "
    "regexp_extract regexp_full_match regexp_matches regexp_replace replace reverse "
    "split_part string_split str_split substr substring levenshtein jaccard hamming translate unicode hex"
)
TIME = _words(
    "date_part datepart date_trunc datetrunc date_diff datediff dayname monthname year month day hour minute second millisecond "
    "microsecond dayofweek dayofyear isodow week weekofyear quarter epoch epoch_ms epoch_us epoch_ns make_timestamp strftime "
    "strptime time_bucket to_seconds to_milliseconds to_microseconds to_minutes to_hours to_days"
)
LOGIC = _words("coalesce ifnull nullif if error_if_null constant_or_null list_value list_contains list_extract array_extract")

ROW_FUNCTIONS = (OPERATORS | MATH | TEXT | TIME | LOGIC) - {"error_if_null"}

# What a window keeps of its rows, by aggregate: the mergeable parts. See window.py.
AGGREGATES = frozenset({"count", "count_star", "sum", "avg", "mean", "min", "max", "first", "last", "stddev"})
WINDOW_AGGREGATES = AGGREGATES | _words("distinct time_avg quantile histogram")  # the last four are ours, not DuckDB's
# A trigger sees every row of its span again, so it may use more.
SPAN_AGGREGATES = AGGREGATES | _words(
    "median quantile_cont quantile_disc stddev_samp stddev_pop var_samp var_pop variance arg_min arg_max min_by max_by "
    "bool_and bool_or any_value count_if approx_count_distinct"
)
ALL_AGGREGATES = SPAN_AGGREGATES | WINDOW_AGGREGATES

WORDS_INSTEAD = {
    "lag": "it would see only this batch, silently",
    "lead": "it would see only this batch, silently",
    "now": "it differs on every run; use the event time or meta.received_at",
    "current_timestamp": "it differs on every run; use the event time or meta.received_at",
    "random": "it differs on every run",
    "uuid": "it differs on every run; rows have a key already",
    "repeat": "its result has no bound",
    "range": "its result has no bound",
    "unnest": "it makes several rows of one",
}
