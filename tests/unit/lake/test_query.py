"""Tests of quoting in queries: untrusted values and column names cannot change a query."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deeplake
import pytest

from lakeclip.lake.query import count_values, quote, safe_clause, select_rows

VALUES = [
    *("plain", "it's", "''", "' or '1'=='1", "x' --", "x' or 1==1 --", "a\\", "\\'", "a\\' or 1==1 --", "\\\\"),
    *("x\ny", "tab\t", "\r", 'a"b', "%", "_", "\\n", "--c", "/* c */", "a;b", "", "é😀", "\u2028", "{0}", "$1", "?"),
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = deeplake.create(str(tmp_path_factory.mktemp("lakes") / "x.lake"))
    for name in ("text", 'x" from elsewhere --', "it's", "nsfw"):
        made.add_column(name, deeplake.types.Text())
    made.append({column.name: VALUES for column in made.schema.columns})
    made.commit()
    return made


@pytest.mark.parametrize("row", range(len(VALUES)), ids=[repr(value) for value in VALUES])
def test_a_quoted_value_matches_exactly_its_rows(dataset: Any, row: int) -> None:
    clause = f"text == {quote(VALUES[row])}"
    assert select_rows(dataset, clause, "x.lake").rows.tolist() == [row]
    assert select_rows(dataset, None, "x.lake", conditions=[clause]).rows.tolist() == [row]


def test_values_are_counted_unchanged(dataset: Any) -> None:
    assert count_values(dataset, "text") == dict.fromkeys(VALUES, 1)


def test_the_safe_clause_quotes_the_lakes_values(tmp_path: Path) -> None:
    made = deeplake.create(str(tmp_path / "y.lake"))
    made.add_column("NSFW", deeplake.types.Text())
    made.append({"NSFW": ["unlikely", "UNLIKELY ", "' or '1'=='1"]})
    made.commit()
    assert select_rows(made, safe_clause(made, "y.lake"), "y.lake").rows.tolist() == [0, 1]
