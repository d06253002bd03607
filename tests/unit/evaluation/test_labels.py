from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lakeclip.errors import ConfigError, LakeError
from lakeclip.evaluation.labels import parse_classes, read_labels
from tests.unit.evaluation.scenery import MemorySource, scenery


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


def test_rows_without_a_label_are_left_out_and_counted() -> None:
    labels = read_labels(labelled("dog", "", None, "cat", " "), "label")
    assert labels.positions == (0, 3)
    assert labels.num_unlabelled == 3
    labels = read_labels(labelled(1, -1, None, 0), "label", ["cat", "dog"])
    assert (labels.positions, labels.targets, labels.num_unlabelled) == ((0, 3), (1, 0), 2)


def test_given_classes_keep_their_order_and_may_be_more() -> None:
    labels = read_labels(labelled("traffic_light", "dog"), "label", ["zebra", "dog", "traffic light"])
    assert labels.classes == ("zebra", "dog", "traffic light")
    assert labels.targets == (2, 1)


@pytest.mark.parametrize("kind", [int, np.int64, np.int32])
def test_integers_count_the_given_classes(kind: type) -> None:
    labels = read_labels(labelled(kind(2), kind(0)), "label", ["a", "b", "c"])
    assert labels.classes == ("a", "b", "c")
    assert labels.targets == (2, 0)


def test_integers_without_names_are_refused() -> None:
    with pytest.raises(LakeError, match="a prompt needs names") as error:
        read_labels(labelled(3, 7), "label")
    assert "3 to 7" in error.value.found
    assert "--classes" in error.value.next_step


def test_integers_beyond_the_names_are_refused() -> None:
    with pytest.raises(LakeError, match="counts further") as error:
        read_labels(labelled(0, 2), "label", ["a", "b"])
    assert error.value.found == "label 2"


def test_labels_that_the_names_lack_are_listed() -> None:
    with pytest.raises(LakeError, match="2 labels that --classes does not name") as error:
        read_labels(labelled("cat", "cow", "cow", "pig"), "label", ["cat", "dog"])
    assert error.value.found == "'cow' (2 rows), 'pig' (1 rows)"


def test_no_such_column_lists_them_and_names_the_likely_one() -> None:
    with pytest.raises(LakeError, match="no column 'class'") as error:
        read_labels(labelled("cat", "dog"), "class")
    assert "image (bytes)" in error.value.found
    assert error.value.next_step == "--label-column label"


def test_a_column_without_any_label_is_refused() -> None:
    with pytest.raises(LakeError, match="no row has a label in column 'relation'"):
        read_labels(labelled("cat", "dog"), "relation")


def test_a_single_class_is_refused_unless_there_are_others_to_choose() -> None:
    with pytest.raises(LakeError, match="single class") as error:
        read_labels(labelled("cat", "cat"), "label")
    assert error.value.found == "'cat'"
    assert read_labels(labelled("cat", "cat"), "label", ["cat", "dog"]).targets == (0, 0)


@pytest.mark.parametrize("value", [2.5, b"x", [1]])
def test_values_that_are_no_labels_are_refused(value: object) -> None:
    with pytest.raises(LakeError, match="does not hold labels"):
        read_labels(labelled(value, value), "label")


def test_classes_from_a_list_or_a_file(tmp_path: Path) -> None:
    assert parse_classes("cat, dog ,red panda") == ["cat", "dog", "red panda"]
    file = tmp_path / "names.txt"
    file.write_text("cat\nred panda\n\n", "utf-8")
    assert parse_classes(str(file)) == ["cat", "red panda"]


def test_classes_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        parse_classes(str(tmp_path / "none.txt"))
    with pytest.raises(ConfigError, match="has no name"):
        parse_classes("cat,,dog")
    (tmp_path / "gap.txt").write_text("cat\n\ndog\n")
    with pytest.raises(ConfigError, match="has no name") as error:
        parse_classes(str(tmp_path / "gap.txt"))
    assert error.value.found == "number 2 is empty"
