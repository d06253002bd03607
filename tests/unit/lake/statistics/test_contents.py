from __future__ import annotations

import math

from lakeclip.lake.survey.contents import ColumnContent, ContentReader, find_label_columns, is_plain, show_value


def read(*blocks: list[object]) -> ColumnContent:
    reader = ContentReader()
    for block in blocks:
        reader.add(block)
    return reader.content()


def test_numbers_have_their_range_and_gaps() -> None:
    found = read([0.5, math.nan], [2.0, 0.25, math.inf])
    assert (found.min, found.median, found.max, found.missing) == (0.25, 0.5, 2.0, 2)
    assert found.words == "0.25 to 2, median 0.5; 2 missing"
    assert read([2**62, None, 1]).words.startswith("1 to 4,611,686,018,427,387,904, median")


def test_few_distinct_values_are_listed_with_their_counts() -> None:
    found = read(["cat", "dog"], ["cat", ""])
    assert found.common == [("cat", 2), ("dog", 1)]
    assert found.words == "cat (2), dog (1); 1 missing"
    assert read([True, False, True]).words == "True (2), False (1)"
    assert read([3, 3, 3]).words == "3 (3)"
    assert read([0, 1, 1]).words == "0 to 1, median 1; 1 (2), 0 (1)"
    assert read([str(i % 8) for i in range(80)]).words.endswith("4 (10) and 3 more")


def test_many_distinct_texts_are_counted_with_examples() -> None:
    found = read([f"http://x/{i}" for i in range(50)])
    assert (found.distinct, len(found.examples)) == (50, 2)
    assert found.words == "50 distinct, such as http://x/0, http://x/1"
    assert len(read([f"{i} {'long ' * 1000}" for i in range(50)]).words) < 250


def test_an_empty_column_says_so() -> None:
    assert read(["", None]).words == "nothing in it"
    assert read().words == ""


def test_only_columns_of_single_values_are_read() -> None:
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


def test_label_columns_are_told_by_name_or_type() -> None:
    columns = {"Label": "text", "url": "text", "c": "kind=class_label, dtype=int32", "class": "sequence[text]"}
    assert find_label_columns(columns) == ["Label", "c"]


def test_a_missing_value_is_shown_as_nothing() -> None:
    assert [show_value(value) for value in (None, math.nan, "", 0, "x")] == ["", "", "", "0", "x"]
