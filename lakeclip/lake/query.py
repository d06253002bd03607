"""Choosing rows with Deep Lake's query language (TQL): a WHERE clause or a SELECT.

The user's query runs on the rows and their numbers, so the result is a list of row numbers of the lake itself, not a
view that would run its query again in each process.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from lakeclip.errors import LakeError
from lakeclip.lake import engine
from lakeclip.lake.columns import list_columns, type_names

#: Keywords of a clause, even if a column has such a name; a column of that name needs double quotes.
_CLAUSE_WORDS = frozenset({"and", "or", "not", "in", "is", "null", "like", "between", "order", "group", "by", "limit"})
_TOKEN = re.compile(r"'[^']*'|\"[^\"]*\"|[^\W\d]\w*|[()]|[^\s()'\"]+")
#: Keywords that end a SELECT's columns; the rest of the query is used unchanged.
_TAILS = frozenset({"where", "order", "limit", "offset"})
#: Keywords whose result is not rows of the lake, or (DISTINCT, SHUFFLE) that Deep Lake accepts and ignores.
_NOT_ROWS = frozenset(
    {"group", "having", "union", "intersect", "except", "join", "expand", "unnest", "distinct", "shuffle", "sample"}
)
_ROW = "lakeclipbaserow"
#: Rows of a result that are fetched at once.
_BLOCK = 1_000_000
_SAFE_VALUE = "UNLIKELY"


class SelectedRows(NamedTuple):
    """The result of a query.

    Attributes:
        rows: row numbers, in the result's order.
        columns: name in the result → name in the lake, of the columns that a SELECT names; None for all columns.
    """

    rows: Int64[np.ndarray, " kept"]
    columns: dict[str, str] | None


def select_rows(dataset: Any, query: str | None, path: str, *, conditions: Sequence[str] = ()) -> SelectedRows:
    """Run a query and return the rows that it keeps.

    Args:
        dataset: an opened dataset.
        query: a WHERE clause, such as `NSFW == 'UNLIKELY' and width > 200`, or a SELECT of rows of this dataset, such
            as `SELECT image, title AS text WHERE width > 200 ORDER BY similarity DESC LIMIT 1000`; None for every row.
        path: the lake's path, for errors.
        conditions: further clauses that must hold; a LIMIT counts only rows for which they do.

    Raises:
        LakeError: the query is invalid; the columns are listed.
    """
    types = type_names(dataset)
    text = "" if query is None else query.strip().rstrip(";").strip()
    text = re.sub(r"(?i)^where\b", "", text).strip()
    lowered = re.sub(r"'[^']*'", "''", text).lower()
    if query is not None and not text:
        raise _query_error(query, types, path, "an empty clause")
    if re.search(r"\brandom\s*\(|\bshuffle\b|\bsample\s+by\b", lowered):
        # random() < 0.1 keeps no rows at all, SHUFFLE does nothing, and none of them can be seeded.
        found = "a random choice, which would differ between processes; --weights draws rows by weight"
        raise _query_error(text, types, path, found)
    for word in _TOKEN.findall(text):
        if word.lower() in _NOT_ROWS and word not in types:
            raise _query_error(
                text, types, path, f"{word}: a query can only choose rows of the lake, not compute new ones"
            )
    columns = None
    if is_select(text):
        columns, tail = _split_select(text, types, path)
    else:
        tail = f"where {text}" if text else ""
    if not len(dataset):
        return SelectedRows(np.empty(0, np.int64), columns)
    inner = f"select row_number() as {_ROW}, *"
    for condition in conditions:
        inner = f"select * from ({inner}) where {_quote_columns(condition, types)}"  # noqa: S608
    try:
        # The newline ends a trailing comment, which would hide what follows the clause.
        select = f"select {_ROW} from ({inner}) {_quote_columns(tail, types)}\n"  # noqa: S608
        return SelectedRows(_column(engine.query(dataset, select, path), _ROW).astype(np.int64), columns)
    except LakeError:
        raise
    except Exception as error:
        raise _query_error(text, types, path, engine.one_line(error)) from None


def is_select(query: str | None) -> bool:
    """Return True if a query is a SELECT, not a WHERE clause."""
    return re.match(r"(?i)\s*select\b", query or "") is not None


def row_weights(dataset: Any, expression: str, path: str) -> Float32[np.ndarray, " rows"]:
    """Return each row's sampling weight, from a column or an expression over columns.

    Raises:
        LakeError: a weight is missing, negative or not finite, or all are 0.
    """
    types = type_names(dataset)
    try:
        view = engine.query(dataset, f"select {_quote_columns(expression, types)} as {_ROW}\n", path)
        weights = _column(view, _ROW).astype(np.float32)
    except LakeError:
        raise
    except Exception as error:
        raise _query_error(expression, types, path, engine.one_line(error)) from None
    is_bad = ~np.isfinite(weights) | (weights < 0)
    if len(weights) != len(dataset) or is_bad.any() or not weights.any():
        found = f"{is_bad.sum():,} of {len(weights):,} rows have a negative or missing weight, such as row "
        raise LakeError(
            f"the weights {expression!r} cannot be used on the lake at {path}",
            found=f"{found}{int(is_bad.argmax())}: {weights[is_bad.argmax()]}" if is_bad.any() else "0 for every row",
            allowed="numbers of 0 or more, not all 0",
            next_step="exclude those rows with --query" if is_bad.any() else "",
        )
    return weights


def safe_clause(dataset: Any, path: str) -> str:
    """Return the clause that keeps the rows that LAION's classifier rated as safe (`NSFW == 'UNLIKELY'`).

    It uses the column's spelling of its name and of its value.

    Raises:
        LakeError: there is no such column, or its values are not LAION's.
    """
    types = type_names(dataset)
    name = next((name for name in ("NSFW", *types) if name in types and name.lower() == "nsfw"), None)
    if name is None:
        raise LakeError(
            f"the lake at {path} has no column NSFW to filter by",
            found=list_columns(types),
            next_step="choose the safe rows with --query, or omit --filter-nsfw",
        )
    if types[name] == "bool":
        return f"{name} == false"
    if types[name] != "text":
        raise LakeError(
            f"the column {name} of the lake at {path} does not tell which rows are safe",
            found=f"type {types[name]}",
            allowed=f"text with the value {_SAFE_VALUE}; or true and false",
            next_step=f'for example --query "{name} < 0.1"',
        )
    values = list(count_values(dataset, name))
    # Other spellings count only without this one: beside it they may mean something else.
    spellings = [value for value in values if value.strip().upper() == _SAFE_VALUE]
    safe = [_SAFE_VALUE] if _SAFE_VALUE in values else spellings
    if not safe:
        raise LakeError(
            f"no row of the lake at {path} is marked as safe in its column {name}",
            found=", ".join(repr(value) for value in values[:10]) + (", …" if len(values) > 10 else ""),
            allowed=f"the value {_SAFE_VALUE}, in capitals or not",
            next_step="choose the safe rows with --query, or omit --filter-nsfw",
        )
    return " or ".join(f"{name} == {quote(value)}" for value in safe)


def count_values(dataset: Any, column: str) -> dict[str, int]:
    """Return value → number of rows, for a text column."""
    # On a view of this column alone: the dialect ignores case, so WIDTH beside width would be an error.
    view = dataset.query(f'select "{column}"')
    count_query = f'select "{column}", count(*) as n from deeplake group by "{column}"'  # noqa: S608
    groups = view.query(count_query, dialect="postgres")
    return {value or "": int(count) for value, count in zip(groups[column][:], groups["n"][:], strict=True)}


def quote(text: str) -> str:
    """Quote a text for use in a query."""
    return "'" + text.replace("'", "''") + "'"


def _split_select(text: str, types: dict[str, str], path: str) -> tuple[dict[str, str] | None, str]:
    """Split a SELECT into its columns (None for `*`) and what follows them, from WHERE on."""
    depth, start, source, tail = 0, len("select"), None, len(text)
    for match in _TOKEN.finditer(text):
        word = match[0].lower()
        depth += (word == "(") - (word == ")")
        if depth == 0 and word == "from" and source is None:
            source = match
        if depth == 0 and word in _TAILS:
            tail = match.start()
            break
    projection = text[start : source.start() if source else tail].strip()
    if source is not None:
        origin = text[source.end() : tail].strip().strip("\"'")
        # FROM this lake's path, or from any plain name, means this lake.
        if origin != path and not re.fullmatch(r"[^\W\d]\w*", origin):
            raise _query_error(text, types, path, f"FROM {origin}: a query reads only the lake that --lake names")
    return _projection(projection, text, types, path), text[tail:]


def _projection(projection: str, text: str, types: dict[str, str], path: str) -> dict[str, str] | None:
    columns: dict[str, str] = {}
    for part in projection.split(","):
        item = part.strip()
        if item == "*":
            columns |= {name: name for name in types}
            continue
        match = re.fullmatch(r"(\"[^\"]+\"|[^\W\d]\w*)(?:\s+as\s+(\"[^\"]+\"|[^\W\d]\w*))?", item, re.IGNORECASE)
        if match is None:
            raise _query_error(
                text, types, path, f"{item or 'nothing'} is not a column: a SELECT can name columns, not compute them"
            )
        name = match[1].strip('"')
        if name not in types:
            raise _query_error(text, types, path, f"column {name!r} does not exist")
        columns[(match[2] or match[1]).strip('"')] = name
    return None if projection == "*" else columns


def _column(view: Any, name: str) -> np.ndarray:
    if not len(view):
        return np.empty(0)
    return np.concatenate(
        [np.asarray(view[name][start : start + _BLOCK]).reshape(-1) for start in range(0, len(view), _BLOCK)]
    )


def _quote_columns(clause: str, columns: dict[str, str]) -> str:
    """Put column names in double quotes: `key` and `format` are keywords, and `_id` is not an identifier."""

    def quoted(match: re.Match[str]) -> str:
        word = match[0]
        is_call = clause[match.end() :].lstrip().startswith("(")
        if word[0] in "'\"" or word not in columns or word.lower() in _CLAUSE_WORDS or is_call:
            return word
        return f'"{word}"'

    return _TOKEN.sub(quoted, clause)


def _query_error(query: str, columns: dict[str, str], path: str, found: str) -> LakeError:
    found = re.sub(r"^Pos \d+ - ", "", found).replace("Tensor ", "column ")
    return LakeError(
        f"the query {query!r} cannot be used on the lake at {path}",
        found=found + _suggestion(found, columns),
        allowed="what follows WHERE in Deep Lake's query language, such as \"width > 200 and format == 'jpeg'\" "
        "(text in single quotes), or SELECT columns WHERE … ORDER BY … LIMIT …, "
        f"over the columns {list_columns(columns)}",
    )


def _suggestion(found: str, columns: dict[str, str]) -> str:
    """Suggest a column whose name is similar to the one that does not exist; return '' if there is none."""
    match = re.search(r"column [\"']?(\w+)[\"']? does not exist", found)
    if match is None:
        return ""
    lower = {name.lower(): name for name in columns}
    similar = difflib.get_close_matches(match[1].lower(), lower, n=1, cutoff=0.7)
    return f"; did you mean {lower[similar[0]]}?" if similar else ""
