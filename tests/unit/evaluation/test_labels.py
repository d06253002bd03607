"""Reading of labels and class names, and the errors for wrong ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lakeclip.errors import ConfigError, LakeError
from lakeclip.evaluation.labels import parse_classes, prompt_key, read_labels
from tests.unit.evaluation.fixtures import MemorySource, scenery


def labelled(*values: object) -> MemorySource:
    source = scenery(len(values))
    source.samples = [
        sample._replace(metadata={"label": value, "relation": ""})  # type: ignore[dict-item]
        for sample, value in zip(source.samples, values, strict=True)
    ]
    return source


def test_distinct_texts_become_sorted_classes() -> None:
    labels = read_labels(labelled("dog", "ice_cream", "cat", "dog"), "label")
    assert labels.classes == ("cat", "dog", "ice cream")
    assert labels.targets == (1, 2, 0, 1)
    assert labels.positions == (0, 1, 2, 3)
    assert labels.num_unlabelled == 0


def test_rows_without_a_label_are_skipped_and_counted() -> None:
    labels = read_labels(labelled("dog", "", None, "cat", " "), "label")
    assert labels.positions == (0, 3)
    assert labels.num_unlabelled == 3
    labels = read_labels(labelled(1, -1, None, 0), "label", ["cat", "dog"])
    assert (labels.positions, labels.targets, labels.num_unlabelled) == ((0, 3), (1, 0), 2)


def test_given_classes_keep_their_order_and_may_lack_rows() -> None:
    labels = read_labels(labelled("traffic_light", "dog"), "label", ["zebra", "dog", "traffic light"])
    assert labels.classes == ("zebra", "dog", "traffic light")
    assert labels.targets == (2, 1)


@pytest.mark.parametrize("kind", [int, np.int64, np.int32])
def test_integers_index_the_given_classes(kind: type) -> None:
    labels = read_labels(labelled(kind(2), kind(0)), "label", ["a", "b", "c"])
    assert labels.classes == ("a", "b", "c")
    assert labels.targets == (2, 0)


def test_integers_without_names_are_rejected() -> None:
    with pytest.raises(LakeError, match="prompts need class names") as error:
        read_labels(labelled(3, 7), "label")
    assert "3 to 7" in error.value.found
    assert "--classes" in error.value.next_step


def test_integers_beyond_the_names_are_rejected() -> None:
    with pytest.raises(LakeError, match="has numbers beyond the end of --classes") as error:
        read_labels(labelled(0, 2), "label", ["a", "b"])
    assert error.value.found == "label 2"


def test_labels_missing_from_the_names_are_listed() -> None:
    with pytest.raises(LakeError, match="2 labels that --classes does not name") as error:
        read_labels(labelled("cat", "cow", "cow", "pig"), "label", ["cat", "dog"])
    assert error.value.found == "'cow' (2 rows), 'pig' (1 rows)"


def test_missing_column_lists_the_columns_and_suggests_one() -> None:
    with pytest.raises(LakeError, match="no column 'class'") as error:
        read_labels(labelled("cat", "dog"), "class")
    assert "image (bytes)" in error.value.found
    assert error.value.next_step == "--label-column label"


def test_column_without_labels_is_rejected() -> None:
    with pytest.raises(LakeError, match="no row has a label in column 'relation'"):
        read_labels(labelled("cat", "dog"), "relation")


def test_single_class_is_rejected_without_further_names() -> None:
    with pytest.raises(LakeError, match="single class") as error:
        read_labels(labelled("cat", "cat"), "label")
    assert error.value.found == "'cat'"
    assert read_labels(labelled("cat", "cat"), "label", ["cat", "dog"]).targets == (0, 0)


@pytest.mark.parametrize("value", [2.5, b"x", {"a": 1}])
def test_values_of_other_types_are_rejected(value: object) -> None:
    with pytest.raises(LakeError, match="does not hold labels"):
        read_labels(labelled(value, value), "label")


def test_classes_from_a_list_or_a_file(tmp_path: Path) -> None:
    assert parse_classes("cat, dog ,red panda") == ["cat", "dog", "red panda"]
    file = tmp_path / "names.txt"
    file.write_text("cat\nred panda\n\n", "utf-8")
    assert parse_classes(str(file)) == ["cat", "red panda"]


def test_unreadable_classes_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        parse_classes(str(tmp_path / "none.txt"))
    with pytest.raises(ConfigError, match=r"a class name in --classes .* is empty"):
        parse_classes("cat,,dog")
    (tmp_path / "gap.txt").write_text("cat\n\ndog\n")
    with pytest.raises(ConfigError, match=r"a class name in --classes .* is empty") as error:
        parse_classes(str(tmp_path / "gap.txt"))
    assert error.value.found == "name number 2 is empty"


@pytest.mark.parametrize(
    "values",
    [
        ("Cat", "cat", " CAT ", "dog"),
        ("cat", "c\u0061t", "cat\t", "dog"),
        ("traffic_light", "Traffic  light", "traffic light", "dog"),
        ("caf\u00e9", "cafe\u0301", "CAF\u00c9", "dog"),
        ("cats &amp; dogs", "cats & dogs", "Cats & Dogs", "dog"),
    ],
    ids=["case", "blanks", "underscores", "accents", "entities"],
)
def test_labels_that_make_the_same_prompt_are_one_class(values: tuple[str, ...]) -> None:
    labels = read_labels(labelled(*values, *values), "label")
    assert len(labels.classes) == 2
    first = labels.targets[0]
    assert labels.targets == (first, first, first, 1 - first) * 2
    if len(set(values)) > 2:
        (warning,) = labels.warnings
        assert "are merged into 1" in warning.what
    assert len({prompt_key(name) for name in labels.classes}) == 2


def test_a_class_has_its_most_common_spelling() -> None:
    assert read_labels(labelled("Cat", "cat", "cat", "dog", "dog"), "label").classes == ("cat", "dog")


def test_given_names_that_repeat_are_one_class_and_numbers_follow_them() -> None:
    labels = read_labels(labelled(0, 1, 2, 3, 3, 1), "label", ["crane", "owl", "Crane", "fox"])
    assert labels.classes == ("crane", "owl", "fox")
    assert labels.targets == (0, 1, 0, 2, 2, 1)
    (warning,) = labels.warnings
    assert "'crane' = 'Crane'" in warning.what
    assert "--classes" in warning.advice
    again = read_labels(labelled(3, 2), "label", labels.names)
    assert again.targets == (2, 0), "the names before merging number another lake alike"


def test_names_of_one_prompt_are_a_single_class() -> None:
    with pytest.raises(LakeError, match="single class") as error:
        read_labels(labelled("cat", "Cat", "CAT"), "label")
    assert "also written" in error.value.found


@pytest.mark.parametrize(
    "values",
    [
        (2, 0, 2),
        (2.0, 0.0, 2.0),
        ("2", "0", " 2 "),
        ("2.0", "0.", "02"),
        ([2], [0], [2]),
        (np.array([2]), np.array(0), np.float32(2)),
        ("[2]", "[0]", "[2]"),
        (["2"], ["0"], ("2",)),
        (2, "0", 2.0),
    ],
    ids=["integers", "floats", "digits", "floats as text", "lists", "arrays", "JSON", "lists of digits", "mixed"],
)
def test_numbers_in_any_form_index_the_given_names(values: tuple[object, ...]) -> None:
    labels = read_labels(labelled(*values), "label", ["a", "b", "c"])
    assert (labels.classes, labels.targets) == (("a", "b", "c"), (2, 0, 2))


@pytest.mark.parametrize("values", [(["cat"], ["dog"]), ('["cat"]', "['dog']"), (("cat",), np.array(["dog"]))])
def test_a_list_with_one_entry_is_that_label(values: tuple[object, ...]) -> None:
    assert read_labels(labelled(*values), "label").classes == ("cat", "dog")


@pytest.mark.parametrize("value", [["cat", "dog"], '["cat", "dog"]', "['cat', 'dog']", np.array([1, 2]), (1, 2)])
def test_several_labels_in_a_row_are_refused(value: object) -> None:
    with pytest.raises(LakeError, match="several labels in one row") as error:
        read_labels(labelled("cat", value), "label")
    assert error.value.found.startswith("row 1: ")
    assert error.value.allowed


def test_an_empty_list_is_no_label() -> None:
    labels = read_labels(labelled("cat", [], "dog", "[]"), "label")
    assert (labels.positions, labels.num_unlabelled) == ((0, 2), 2)


def test_a_text_in_brackets_is_a_name() -> None:
    assert read_labels(labelled("[sic]", "dog"), "label").classes == ("[sic]", "dog")


def test_digits_as_names_are_warned_about() -> None:
    labels = read_labels(labelled("3", "7", "3", "7"), "label")
    assert labels.classes == ("3", "7")
    (warning,) = labels.warnings
    assert "'a photo of a 3.'" in warning.what
    assert "--classes FILE" in warning.advice
    assert read_labels(labelled("3", "7", "3", "7"), "label", ["3", "7"]).targets == (0, 1, 0, 1), "names given"


def test_numbers_below_zero_in_a_column_of_digits_are_no_labels() -> None:
    labels = read_labels(labelled("1", "-1", "0"), "label", ["a", "b"])
    assert (labels.positions, labels.targets, labels.num_unlabelled) == ((0, 2), (1, 0), 1)


def test_numbers_are_names_where_no_prompt_is_made() -> None:
    labels = read_labels(labelled(3, 7, 7, 3), "label", numbers_are_names=True)
    assert (labels.classes, labels.targets, labels.warnings) == (("3", "7"), (0, 1, 1, 0), ())


def test_classes_with_a_single_image_are_warned_about() -> None:
    (warning,) = read_labels(labelled("cat", "cat", "dog", "owl"), "label").warnings
    assert "2 of 3 classes have a single image" in warning.what
