from __future__ import annotations

import math

from lakeclip.lake.statistics.contents import ColumnContent, ColumnStats, find_label_columns, is_plain, show_value


def read(*blocks: list[object]) -> ColumnContent:
    stats = ColumnStats()
    for block in blocks:
        stats.add(block)
    return stats.content()


def test_numbers_are_summarized_by_range_and_missing_values() -> None:
    found = read([0.5, math.nan], [2.0, 0.25, math.inf])
    assert (found.min, found.median, found.max, found.missing) == (0.25, 0.5, 2.0, 2)
    assert found.one_line == "0.25 to 2, median 0.5; 2 missing"
    assert read([2**62, None, 1]).one_line.startswith("1 to 4,611,686,018,427,387,904, median")


def test_few_distinct_values_are_listed_with_their_counts() -> None:
    found = read(["cat", "dog"], ["cat", ""])
    assert found.common == [("cat", 2), ("dog", 1)]
    assert found.one_line == "cat (2), dog (1); 1 missing"
    assert read([True, False, True]).one_line == "True (2), False (1)"
    assert read([3, 3, 3]).one_line == "3 (3)"
    assert read([0, 1, 1]).one_line == "0 to 1, median 1; 1 (2), 0 (1)"
    assert read([str(i % 8) for i in range(80)]).one_line.endswith("4 (10) and 3 more")


def test_many_distinct_texts_are_counted_with_examples() -> None:
    found = read([f"http://x/{i}" for i in range(50)])
    assert (found.distinct, len(found.examples)) == (50, 2)
    assert found.one_line == "50 distinct, such as http://x/0, http://x/1"
    assert len(read([f"{i} {'long ' * 1000}" for i in range(50)]).one_line) < 250


def test_an_empty_column() -> None:
    assert read(["", None]).one_line == "empty"
    assert read().one_line == ""


def test_only_columns_of_single_values_are_summarized() -> None:
    for kind in ("text", "int64", "float32", "bool", "uint8", "nullable[int32]", "kind=class_label, dtype=int32"):
        assert is_plain(kind), kind
    for kind in (
        "sequence[text]",
        "bytes",
        "image",
        "link[image]",
        "embedding(8, clustered)",
        "dict",
        "sequence[int32]",
    ):
        assert not is_plain(kind), kind
    assert not is_plain("array(dtype=float32, shape=(None))")


def test_label_columns_are_found_by_name_or_type() -> None:
    columns = {"Label": "text", "url": "text", "c": "kind=class_label, dtype=int32", "class": "sequence[text]"}
    assert find_label_columns(columns) == ["Label", "c"]


def test_a_missing_value_is_shown_as_an_empty_text() -> None:
    assert [show_value(value) for value in (None, math.nan, "", 0, "x")] == ["", "", "", "0", "x"]
