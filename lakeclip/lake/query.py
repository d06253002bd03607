"""Choosing rows by a WHERE clause of Deep Lake's query language (TQL)."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lakeclip.errors import LakeError
from lakeclip.lake import engine
from lakeclip.lake.columns import list_columns, type_names

#: Words that keep their meaning in a clause even where a column is called so; as a column, put them in double quotes.
_CLAUSE_WORDS = frozenset({"and", "or", "not", "in", "is", "null", "like", "between", "order", "group", "by", "limit"})
_TOKEN = re.compile(r"'[^']*'|\"[^\"]*\"|[^\W\d]\w*")
_ALIAS = "lakeclipbaserow"


def select_rows(dataset: Any, clause: str, path: str) -> NDArray[np.int64]:
    """Rows of a dataset for which a WHERE clause holds.

    The clause runs beside the rows' own numbers, so that the result names rows of the lake itself, not of a view that
    would run its query again in each process.

    Args:
        dataset: an opened dataset.
        clause: such as `NSFW == 'UNLIKELY' and width > 200`.
        path: the lake's path, for errors.

    Returns:
        (rows,) numbers of the rows that are kept.

    Raises:
        LakeError: it is no valid clause; the columns are listed.
    """
    text = clause.strip().rstrip(";").strip()
    lowered = re.sub(r"'[^']*'", "''", text).lower()
    if not text or re.match(r"(select|where)\b", lowered):
        raise _bad(clause, dataset, path, "an empty clause" if not text else f"it begins with {text.split()[0]!r}")
    if re.search(r"\brandom\s*\(|\bshuffle\b|\bsample\s+by\b", lowered):
        # random() < 0.1 keeps no rows at all, SHUFFLE does nothing, and no seed makes either repeatable.
        raise _bad(clause, dataset, path, "a random choice, which would be another one in each process")
    columns = type_names(dataset)
    if not len(dataset):
        return np.empty(0, np.int64)
    try:
        # The newline ends a trailing comment, the only way in which a clause could swallow what follows it.
        where = _quote_columns(text, columns)
        select = f"select {_ALIAS} from (select row_number() as {_ALIAS}, *) where {where}\n"  # noqa: S608
        view = engine.query(dataset, select, path)
        return np.asarray(view[_ALIAS][:], dtype=np.int64).reshape(-1) if len(view) else np.empty(0, np.int64)
    except LakeError:
        raise
    except Exception as error:
        raise _bad(clause, dataset, path, engine.one_line(error)) from None


def _quote_columns(clause: str, columns: dict[str, str]) -> str:
    """Put column names in double quotes: `key` and `format` are words of the language, `_id` is no word at all."""

    def quoted(match: re.Match[str]) -> str:
        word = match[0]
        is_call = clause[match.end() :].lstrip().startswith("(")
        if word[0] in "'\"" or word not in columns or word.lower() in _CLAUSE_WORDS or is_call:
            return word
        return f'"{word}"'

    return _TOKEN.sub(quoted, clause)


def _bad(clause: str, dataset: Any, path: str, found: str) -> LakeError:
    found = re.sub(r"^Pos \d+ - ", "", found).replace("Tensor ", "column ")
    return LakeError(
        f"the query {clause!r} cannot be used on the lake at {path}",
        found=found,
        allowed="what follows WHERE in Deep Lake's query language, such as \"width > 200 and format == 'jpeg'\" "
        f"(text in single quotes), over the columns {list_columns(type_names(dataset))}",
    )
