"""The functions of DuckDB that an expression may use: deterministic, of one row, and bounded in what they make.

An allow-list, because 350 entries of `duckdb_functions()` have no stability. A test checks that each exists and is CONSISTENT.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


OPERATORS = _words("+ - * / // % ^ ** & | ~ << >> || ~~ !~~ ~~* !~~* ~~~ ^@ ->> &&")

MATH = _words(
    "abs acos acosh add asin asinh atan atan2 atanh bit_count bit_length cbrt ceil ceiling cos cosh cot degrees divide even exp "
    "fdiv floor fmod gamma gcd greatest greatest_common_divisor isfinite isinf isnan lcm least least_common_multiple lgamma ln "
    "log log10 log2 mod multiply pi pow power radians round round_even roundbankers sign signbit sin sinh sqrt subtract tan tanh "
    "trunc xor"
)
TEXT = _words(
    "ascii base64 bin char_length character_length chr concat concat_ws contains damerau_levenshtein decode editdist3 encode "
    "ends_with format_bytes from_base64 from_hex hamming hex ilike_escape instr jaccard jaro_similarity jaro_winkler_similarity "
    "json_array_length json_contains json_exists json_extract_string json_keys json_type json_valid lcase left len length "
    "levenshtein like_escape lower lpad ltrim md5 mismatches nfc_normalize not_ilike_escape not_like_escape octet_length ord "
    "overlay parse_dirname parse_filename parse_path position prefix regexp_escape regexp_extract regexp_extract_all "
    "regexp_full_match regexp_matches regexp_replace regexp_split_to_array replace reverse right rpad rtrim sha1 sha256 split "
    "split_part starts_with str_split str_split_regex string_split string_split_regex string_to_array strip_accents strlen "
    "strpos substr substring suffix to_base64 to_binary to_hex translate trim ucase unhex unicode upper url_decode url_encode"
)
TIME = _words(
    "century date_diff date_part date_sub date_trunc datediff datepart datesub datetrunc day dayname dayofmonth dayofweek "
    "dayofyear decade epoch epoch_ms epoch_ns epoch_us hour isodow isoyear julian last_day make_date make_timestamp "
    "make_timestamp_ms make_timestamp_ns microsecond millisecond minute month monthname quarter second strftime strptime "
    "time_bucket timezone to_days to_hours to_microseconds to_milliseconds to_minutes to_months to_quarters to_seconds "
    "to_timestamp to_weeks to_years try_strptime week weekday weekofyear year yearweek"
)
LOGIC = _words("coalesce constant_or_null if ifnull nullif")
NESTED = _words(
    "array_cat array_concat array_contains array_extract array_has array_length array_position array_slice array_to_string "
    "list_aggr list_aggregate list_any_value list_avg list_bool_and list_bool_or list_cat list_concat list_contains list_count "
    "list_element list_extract list_first list_has list_has_all list_has_any list_indexof list_last list_max list_median "
    "list_min list_position list_product list_reverse_sort list_slice list_sort list_stddev_pop list_stddev_samp list_sum "
    "list_unique list_value struct_extract struct_pack"
)

ROW_FUNCTIONS = OPERATORS | MATH | TEXT | TIME | LOGIC | NESTED

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
    **dict.fromkeys(("lag", "lead"), "it would see only this batch, silently: use a `previous` step"),
    **dict.fromkeys(
        ("row_number", "rank", "dense_rank"), "it would see only this batch, silently: use a `sample` or `counter` step"
    ),
    **dict.fromkeys(
        ("now", "current_timestamp", "current_date", "current_time", "today", "get_current_timestamp"),
        "it differs on every run; use the event time or meta.received_at",
    ),
    **dict.fromkeys(("random", "setseed"), "it differs on every run: use a `sample` step"),
    **dict.fromkeys(("uuid", "gen_random_uuid", "uuidv4", "uuidv7"), "it differs on every run; rows have a key already"),
    "hash": "it differs between builds of the engine: use md5 or sha256, or a `redact` step",
    **dict.fromkeys(("repeat", "range", "generate_series", "printf", "format", "bar", "list_resize"), "its result has no bound"),
    **dict.fromkeys(("flatten", "list_zip", "list_distinct", "list_intersect"), "the order or size of its result is not certain"),
    **dict.fromkeys(("list_transform", "list_filter", "list_reduce", "list_apply"), "it takes a lambda, which is not allowed"),
    **dict.fromkeys(("unnest", "unlist", "explode"), "it makes several rows of one: use `rows:` of the decoder"),
    "row": "name the members: {'a': x, 'b': y}",
    "element_at": "write s.name, or l[1]",
    "initcap": "write upper(left(x, 1)) || lower(substr(x, 2))",
}
