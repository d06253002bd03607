"""Choosing rows by Deep Lake's query language (TQL): a WHERE clause, or a whole SELECT.

Whatever a user asks runs beside the rows' own numbers, so that the result names rows of the lake itself, not of a view
that would run its query again in each process.
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

#: Words that keep their meaning in a clause even where a column is called so; as a column, put them in double quotes.
_CLAUSE_WORDS = frozenset({"and", "or", "not", "in", "is", "null", "like", "between", "order", "group", "by", "limit"})
_TOKEN = re.compile(r"'[^']*'|\"[^\"]*\"|[^\W\d]\w*|[()]|[^\s()'\"]+")
#: What may follow a SELECT's columns, from where on it is taken as it stands.
_TAILS = frozenset({"where", "order", "limit", "offset"})
#: What makes of rows something else, or (DISTINCT, SHUFFLE) is read by Deep Lake and not done.
_NOT_ROWS = frozenset(
    {"group", "having", "union", "intersect", "except", "join", "expand", "unnest", "distinct", "shuffle", "sample"}
)
_ROW = "lakeclipbaserow"
#: Rows of a result that are fetched at a time.
_BLOCK = 1_000_000
_SAFE_VALUE = "UNLIKELY"


class Chosen(NamedTuple):
    """The result of a query.

    Attributes:
        rows: numbers of the rows that are kept, in the result's order.
        columns: name in the result → name in the lake, of the columns that a SELECT named; None for all.
    """

    rows: Int64[np.ndarray, " kept"]
    columns: dict[str, str] | None


def select_rows(dataset: Any, query: str | None, path: str, *, conditions: Sequence[str] = ()) -> Chosen:
    """Rows of a dataset that a query keeps.

    Args:
        dataset: an opened dataset.
        query: a WHERE clause, such as `NSFW == 'UNLIKELY' and width > 200`, or a SELECT of rows of this dataset, such
            as `SELECT image, title AS text WHERE width > 200 ORDER BY similarity DESC LIMIT 1000`; None for every row.
        path: the lake's path, for errors.
        conditions: clauses of ours that must hold besides; a LIMIT counts the rows for which they do.

    Raises:
        LakeError: it is no valid query; the columns are listed.
    """
    types = type_names(dataset)
    text = "" if query is None else query.strip().rstrip(";").strip()
    text = re.sub(r"(?i)^where\b", "", text).strip()
    lowered = re.sub(r"'[^']*'", "''", text).lower()
    if query is not None and not text:
        raise _bad(query, types, path, "an empty clause")
    if re.search(r"\brandom\s*\(|\bshuffle\b|\bsample\s+by\b", lowered):
        # random() < 0.1 keeps no rows at all, SHUFFLE does nothing, and no seed makes any of them repeatable.
        found = "a random choice, which would be another one in each process; --weights draws rows by weight"
        raise _bad(text, types, path, found)
    for word in _TOKEN.findall(text):
        if word.lower() in _NOT_ROWS and word not in types:
            raise _bad(text, types, path, f"{word}: only rows of the lake as they are can be chosen")
    columns = None
    if is_select(text):
        columns, tail = _split_select(text, types, path)
    else:
        tail = f"where {text}" if text else ""
    if not len(dataset):
        return Chosen(np.empty(0, np.int64), columns)
    inner = f"select row_number() as {_ROW}, *"
    for condition in conditions:
        inner = f"select * from ({inner}) where {_quote_columns(condition, types)}"  # noqa: S608
    try:
        # The newline ends a trailing comment, the only way in which a clause could swallow what follows it.
        select = f"select {_ROW} from ({inner}) {_quote_columns(tail, types)}\n"  # noqa: S608
        return Chosen(_column(engine.query(dataset, select, path), _ROW).astype(np.int64), columns)
    except LakeError:
        raise
    except Exception as error:
        raise _bad(text, types, path, engine.one_line(error)) from None


def is_select(query: str | None) -> bool:
    """Whether a query is a whole SELECT, not a clause."""
    return re.match(r"(?i)\s*select\b", query or "") is not None


def row_weights(dataset: Any, expression: str, path: str) -> Float32[np.ndarray, " rows"]:
    """How often each row of a dataset is to be drawn, by a column or an expression over columns.

    Raises:
        LakeError: it is no number for every row, or it is negative, not finite, or zero for all.
    """
    types = type_names(dataset)
    try:
        view = engine.query(dataset, f"select {_quote_columns(expression, types)} as {_ROW}\n", path)
        weights = _column(view, _ROW).astype(np.float32)
    except LakeError:
        raise
    except Exception as error:
        raise _bad(expression, types, path, engine.one_line(error)) from None
    wrong = ~np.isfinite(weights) | (weights < 0)
    if len(weights) != len(dataset) or wrong.any() or not weights.any():
        found = f"{wrong.sum():,} of {len(weights):,} rows have a negative or a missing one, such as row "
        raise LakeError(
            f"the weights {expression!r} cannot be used on the lake at {path}",
            found=f"{found}{int(wrong.argmax())}: {weights[wrong.argmax()]}" if wrong.any() else "0 for every row",
            allowed="numbers of 0 or more, not all 0",
            next_step="leave the other rows out with --query" if wrong.any() else "",
        )
    return weights


def safe_clause(dataset: Any, path: str) -> str:
    """The clause that keeps what LAION's classifier held to be safe (`NSFW == 'UNLIKELY'`), and nothing more.

    It is written for what the column is really called, and for what it really holds.

    Raises:
        LakeError: there is no such column, or what its values mean cannot be told.
    """
    types = type_names(dataset)
    name = next((name for name in ("NSFW", *types) if name in types and name.lower() == "nsfw"), None)
    if name is None:
        raise LakeError(
            f"the lake at {path} has no column NSFW to filter by",
            found=list_columns(types),
            next_step="say with --query which rows are safe, or leave the filter out",
        )
    if types[name] == "bool":
        return f"{name} == false"
    if types[name] != "text":
        raise LakeError(
            f"what is safe cannot be told from the column {name} of the lake at {path}",
            found=f"type {types[name]}",
            allowed=f"text, one value being {_SAFE_VALUE}; or true and false",
            next_step=f'--query "{name} < 0.1", say',
        )
    values = list(count_values(dataset, name))
    # Other spellings only where they are all there is: beside this one they may mean something else.
    spelled = [value for value in values if value.strip().upper() == _SAFE_VALUE]
    safe = [_SAFE_VALUE] if _SAFE_VALUE in values else spelled
    if not safe:
        raise LakeError(
            f"no row of the lake at {path} is safe by its column {name}",
            found=", ".join(repr(value) for value in values[:10]) + (", …" if len(values) > 10 else ""),
            allowed=f"rows that say {_SAFE_VALUE}, in capitals or not",
            next_step="say with --query which rows are safe, or leave the filter out",
        )
    return " or ".join(f"{name} == {quote(value)}" for value in safe)


def count_values(dataset: Any, column: str) -> dict[str, int]:
    """How many rows hold each of the values of a text column."""
    # Of a view of this column alone: the dialect knows no capitals, and WIDTH beside width is an error to it.
    view = dataset.query(f'select "{column}"')
    counting = f'select "{column}", count(*) as n from deeplake group by "{column}"'  # noqa: S608
    groups = view.query(counting, dialect="postgres")
    return {value or "": int(count) for value, count in zip(groups[column][:], groups["n"][:], strict=True)}


def quote(text: str) -> str:
    """Text as it stands in a query."""
    return "'" + text.replace("'", "''") + "'"


def _split_select(text: str, types: dict[str, str], path: str) -> tuple[dict[str, str] | None, str]:
    """The columns that a SELECT names (None for `*`), and what follows them, from WHERE on."""
    depth, place, source, tail = 0, len("select"), None, len(text)
    for match in _TOKEN.finditer(text):
        word = match[0].lower()
        depth += (word == "(") - (word == ")")
        if depth == 0 and word == "from" and source is None:
            source = match
        if depth == 0 and word in _TAILS:
            tail = match.start()
            break
    projection = text[place : source.start() if source else tail].strip()
    if source is not None:
        origin = text[source.end() : tail].strip().strip("\"'")
        # `from` of this lake, or of anything that a name may stand for, is this lake.
        if origin != path and not re.fullmatch(r"[^\W\d]\w*", origin):
            raise _bad(text, types, path, f"FROM {origin}: the lake is named by --lake, and only it is read")
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
            raise _bad(text, types, path, f"{item or 'nothing'} is no column: a SELECT names columns, it computes none")
        name = match[1].strip('"')
        if name not in types:
            raise _bad(text, types, path, f"column {name!r} does not exist")
        columns[(match[2] or match[1]).strip('"')] = name
    return None if projection == "*" else columns


def _column(view: Any, name: str) -> np.ndarray:
    if not len(view):
        return np.empty(0)
    return np.concatenate([np.asarray(view[name][at : at + _BLOCK]).reshape(-1) for at in range(0, len(view), _BLOCK)])


def _quote_columns(clause: str, columns: dict[str, str]) -> str:
    """Put column names in double quotes: `key` and `format` are words of the language, `_id` is no word at all."""

    def quoted(match: re.Match[str]) -> str:
        word = match[0]
        is_call = clause[match.end() :].lstrip().startswith("(")
        if word[0] in "'\"" or word not in columns or word.lower() in _CLAUSE_WORDS or is_call:
            return word
        return f'"{word}"'

    return _TOKEN.sub(quoted, clause)


def _bad(query: str, columns: dict[str, str], path: str, found: str) -> LakeError:
    found = re.sub(r"^Pos \d+ - ", "", found).replace("Tensor ", "column ")
    return LakeError(
        f"the query {query!r} cannot be used on the lake at {path}",
        found=found + _near(found, columns),
        allowed="what follows WHERE in Deep Lake's query language, such as \"width > 200 and format == 'jpeg'\" "
        "(text in single quotes), or SELECT columns WHERE … ORDER BY … LIMIT …, "
        f"over the columns {list_columns(columns)}",
    )


def _near(found: str, columns: dict[str, str]) -> str:
    """A column whose name is like the one that an error says does not exist."""
    match = re.search(r"column [\"']?(\w+)[\"']? does not exist", found)
    if match is None:
        return ""
    lower = {name.lower(): name for name in columns}
    near = difflib.get_close_matches(match[1].lower(), lower, n=1, cutoff=0.7)
    return f"; did you mean {lower[near[0]]}?" if near else ""
