"""A label column to class names and targets."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path

from lakeclip.errors import ConfigError, LakeError
from lakeclip.evaluation.prompts import clean_class_name
from lakeclip.lake.rows import RowSource

#: A class for every few rows is no label but a name or a caption.
_MAX_CLASSES = 50_000

_LOOKS_LIKE_LABELS = re.compile(r"label|class|categor|target|species|breed|kind", re.IGNORECASE)


@dataclass(frozen=True)
class Labels:
    """What each row shows.

    Attributes:
        classes: names as they are said, in the order of the classifier.
        positions: the rows of the source that have a label.
        targets: class of each of those.
        num_unlabelled: rows without one, left out.
        cleaned: label → name, where the two differ: "traffic_light" is said "traffic light".
    """

    classes: tuple[str, ...]
    positions: tuple[int, ...]
    targets: tuple[int, ...]
    num_unlabelled: int
    cleaned: dict[str, str] = field(default_factory=dict)

    def at(self, positions: Sequence[int]) -> Labels:
        """Those of some of the rows, which must have one."""
        target_of = dict(zip(self.positions, self.targets, strict=True))
        return replace(self, positions=tuple(positions), targets=tuple(target_of[one] for one in positions))


def read_labels(source: RowSource, column: str, classes: Sequence[str] | None = None) -> Labels:
    """Read the label column of a source.

    Args:
        column: of texts, where each distinct value is a class; or of integers, which count the names in `classes`
            from 0.
        classes: the names to choose among, in order. They may hold classes that no row has. Default: the labels there
            are, sorted.

    Raises:
        LakeError: no such column, no labels in it, labels that `classes` does not have, or fewer than two classes.
    """
    if column not in source.columns:
        raise _no_column(column, source.columns)
    values = source.column(column)
    known = [(position, value) for position, value in enumerate(values) if not _is_missing(value)]
    if not known:
        raise LakeError(
            f"no row has a label in column {column!r} of {source.path}",
            found=f"{len(values)} rows, all without a value",
            allowed=_choose_another(source.columns, column),
        )
    strange = [type(value).__name__ for _, value in known if not isinstance(value, (str, Integral))]
    if strange:
        raise LakeError(
            f"column {column!r} of {source.path} does not hold labels",
            found=f"a value of type {strange[0]}",
            allowed="texts, or integers together with --classes",
            next_step=_choose_another(source.columns, column),
        )
    if isinstance(known[0][1], str):
        labels, targets = _by_name(column, [str(value) for _, value in known], classes)
    else:
        numbers = [int(value) for _, value in known if isinstance(value, Integral)]
        labels, targets = _by_number(column, numbers, classes)
    if len(labels) < 2:
        raise LakeError(
            f"column {column!r} has a single class, so there is nothing to tell apart",
            found=repr(labels[0]),
            next_step="--classes FILE with all the names to choose among, or a query that keeps more",
        )
    if len(labels) > _MAX_CLASSES:
        raise LakeError(f"column {column!r} has {len(labels):,} classes", allowed=f"at most {_MAX_CLASSES:,}")
    names = tuple(clean_class_name(label) for label in labels)
    cleaned = {label: name for label, name in zip(labels, names, strict=True) if label != name}
    return Labels(names, tuple(position for position, _ in known), tuple(targets), len(values) - len(known), cleaned)


def parse_classes(names_or_file: str) -> list[str]:
    """Class names from a file, one a line in the order of their numbers, or from a list like "cat,dog".

    Raises:
        ConfigError: the file cannot be read, or a name stands twice.
    """
    path = Path(names_or_file)
    if "," not in names_or_file or path.is_file():
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"the class names cannot be read from {path}",
                found=getattr(error, "strerror", None) or str(error),
                allowed="a file with one name a line, or names between commas: --classes cat,dog",
            ) from None
        names = [line.strip() for line in lines]
        while names and not names[-1]:
            names.pop()
    else:
        names = [name.strip() for name in names_or_file.split(",")]
    if not names or "" in names:
        empty = names.index("") + 1 if names else 1
        raise ConfigError(f"a class has no name in --classes {names_or_file}", found=f"number {empty} is empty")
    return names


def _is_missing(value: object) -> bool:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    # The lake has no nulls: a missing text is "", a missing integer the smallest one; -1 is the custom elsewhere.
    return value.strip() == "" if isinstance(value, str) else isinstance(value, Integral) and int(value) < 0


def _by_name(column: str, values: list[str], classes: Sequence[str] | None) -> tuple[list[str], list[int]]:
    names = sorted(set(values)) if classes is None else list(classes)
    # "traffic_light" in the lake and "traffic light" in the list are one class.
    number = {clean_class_name(name): i for i, name in reversed(list(enumerate(names)))} if classes is not None else {}
    number |= {name: i for i, name in reversed(list(enumerate(names)))}
    found = [number.get(value, number.get(clean_class_name(value), -1)) for value in values]
    if unknown := Counter(value for value, target in zip(values, found, strict=True) if target < 0):
        shown = ", ".join(f"{value!r} ({count} rows)" for value, count in unknown.most_common(5))
        raise LakeError(
            f"column {column!r} has {len(unknown)} labels that --classes does not name",
            found=shown,
            allowed=", ".join(names[:10]) + (", …" if len(names) > 10 else ""),
        )
    return names, found


def _by_number(column: str, values: list[int], classes: Sequence[str] | None) -> tuple[list[str], list[int]]:
    if classes is None:
        raise LakeError(
            f"column {column!r} holds numbers, and a prompt needs names",
            found=f"integers from {min(values)} to {max(values)}",
            next_step="--classes FILE with one name a line, the first for 0; or --classes cat,dog,…",
        )
    if max(values) >= len(classes):
        raise LakeError(
            f"column {column!r} counts further than --classes",
            found=f"label {max(values)}",
            allowed=f"0 to {len(classes) - 1}, for {len(classes)} names",
        )
    return list(classes), values


def _no_column(column: str, columns: Mapping[str, str]) -> LakeError:
    listed = ", ".join(f"{name} ({kind})" for name, kind in columns.items())
    return LakeError(f"there is no column {column!r}", found=listed, next_step=_choose_another(columns, column))


def _choose_another(columns: Mapping[str, str], column: str) -> str:
    likely = [name for name in columns if _LOOKS_LIKE_LABELS.search(name) and name != column]
    return f"--label-column {likely[0]}" if likely else "a column with one label a row"
