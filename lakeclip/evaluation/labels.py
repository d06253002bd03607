"""Conversion of a label column to class names and targets."""

from __future__ import annotations

import ast
import html
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import NamedTuple

from lakeclip.errors import ConfigError, InputWarning, LakeError
from lakeclip.evaluation.prompts import clean_class_name
from lakeclip.lake.rows import RowSource

#: A column with more distinct values holds names or captions, not labels.
_MAX_CLASSES = 50_000

#: An integer as text, also in the form of a float.
_NUMBER = re.compile(r"([+-]?\d{1,9})(?:\.0*)?")

_LOOKS_LIKE_LABELS = re.compile(r"label|class|categor|target|species|breed|kind", re.IGNORECASE)


@dataclass(frozen=True)
class Labels:
    """Classes of the rows of a source.

    Attributes:
        classes: names for prompts, in the order of the classifier; no two are the same text for a model.
        positions: indices of the rows that have a label.
        targets: class of each of these rows.
        num_unlabelled: number of rows without a label.
        cleaned: label → class name where they differ: "traffic_light" → "traffic light".
        names: the labels or the given names before equal ones were merged, to number another source's labels alike.
        warnings: what the user should know about the labels.
    """

    classes: tuple[str, ...]
    positions: tuple[int, ...]
    targets: tuple[int, ...]
    num_unlabelled: int
    cleaned: dict[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    warnings: tuple[InputWarning, ...] = field(default=(), compare=False)

    def select_rows(self, positions: Sequence[int]) -> Labels:
        """Select some of the labelled rows by their positions in the source."""
        target_of = dict(zip(self.positions, self.targets, strict=True))
        return replace(self, positions=tuple(positions), targets=tuple(target_of[position] for position in positions))


def read_labels(
    source: RowSource, column: str, classes: Sequence[str] | None = None, *, numbers_are_names: bool = False
) -> Labels:
    """Read the label column of a source.

    A label may be a text or an integer; also as a float without a fraction, as a list with one entry, or as a text of
    digits. Names that differ only in case or blanks are one class, because a model reads the same prompt.

    Args:
        column: name of a column of texts, where each distinct value is a class; or of integers, which index `classes`
            from 0.
        classes: class names in order; some may have no rows. Default: the sorted labels in the column.
        numbers_are_names: True to take integers as names, for scores that need no prompts.

    Raises:
        LakeError: the column is missing or has no labels, `classes` lacks a label, or there are fewer than two classes.
    """
    if column not in source.columns:
        raise _no_column(column, source.columns)
    values = [_plain_label(source, column, position, value) for position, value in enumerate(source.column(column))]
    labelled = [(position, value) for position, value in enumerate(values) if not _is_missing(value)]
    if not labelled:
        raise LakeError(
            f"no row has a label in column {column!r} of {source.path}",
            found=f"{len(values)} rows, all without a value",
            allowed=_choose_another(source.columns, column),
        )
    found: list[str | int] = []
    for _, value in labelled:
        if not isinstance(value, (str, int)):
            raise LakeError(
                f"column {column!r} of {source.path} does not hold labels",
                found=f"a value of type {type(value).__name__}",
                allowed="texts, or integers together with --classes",
                next_step=_choose_another(source.columns, column),
            )
        found.append(value)
    names, targets = _number_labels(column, found, classes, numbers_are_names=numbers_are_names)
    positions = [position for position, _ in labelled]
    if any(target < 0 for target in targets):  # numbers below 0 in a column of texts: rows without a label
        kept = [index for index, target in enumerate(targets) if target >= 0]
        positions, targets = [positions[index] for index in kept], [targets[index] for index in kept]
    merged = merge_names(names, Counter(names[target] for target in targets) if classes is None else {})
    targets = [merged.index_of[target] for target in targets]
    if len(merged.names) < 2:
        also = f", also written {', '.join(map(repr, names[1:4]))}" if len(names) > 1 else ""
        raise LakeError(
            f"column {column!r} has a single class, so there is nothing to classify",
            found=f"{merged.names[0]!r}{also}",
            next_step="--classes FILE with all class names, or a query that selects more classes",
        )
    if len(merged.names) > _MAX_CLASSES:
        raise LakeError(f"column {column!r} has {len(merged.names):,} classes", allowed=f"at most {_MAX_CLASSES:,}")
    cleaned = {name: clean for name in merged.names if (clean := clean_class_name(name)) != name}
    return Labels(
        tuple(clean_class_name(name) for name in merged.names),
        tuple(positions),
        tuple(targets),
        len(values) - len(positions),
        cleaned,
        tuple(names),
        tuple(_warnings(column, found, merged, targets, is_given=classes is not None, as_text=not numbers_are_names)),
    )


class MergedNames(NamedTuple):
    """Class names without repetitions.

    Attributes:
        names: one for each class.
        index_of: index in the original names → index in `names`.
        groups: the spellings of each class that has several; also a name that was given twice.
    """

    names: list[str]
    index_of: list[int]
    groups: list[list[str]]


def merge_names(names: Sequence[str], counts: Mapping[str, int]) -> MergedNames:
    """Merge names that are the same prompt for a model: equal but for case, blanks, underscores and HTML entities.

    Args:
        counts: name → number of rows. A class has the name with the most rows, or else the first.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(prompt_key(name), []).append(name)
    order = {key: index for index, key in enumerate(groups)}
    return MergedNames(
        [max(group, key=lambda name: counts.get(name, 0)) for group in groups.values()],
        [order[prompt_key(name)] for name in names],
        [group for group in groups.values() if len(group) > 1],
    )


def prompt_key(name: str) -> str:
    """Return a key that is equal for names that make the same prompt."""
    return clean_class_name(unicodedata.normalize("NFC", html.unescape(name))).lower()


def _plain_label(source: RowSource, column: str, position: int, value: object) -> object:
    """Unwrap a label from numpy, from a list with one entry, and from a float without a fraction.

    Raises:
        LakeError: the row has several labels.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, str) and value.lstrip()[:1] == "[" and value.rstrip()[-1:] == "]":
        value = _parse_list(value)
    if isinstance(value, (list, tuple)):
        if len(value) > 1:
            raise LakeError(
                f"column {column!r} of {source.path} has several labels in one row, and a class is one label",
                found=f"row {position}: {str(value)[:100]}",
                allowed="one label in each row; a list with one entry is read as that entry",
                next_step=_choose_another(source.columns, column),
            )
        return _plain_label(source, column, position, value[0]) if value else None
    if isinstance(value, bool):
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _parse_list(text: str) -> object:
    """Parse a list that was stored as text, JSON or Python's; return the text if it is none."""
    for parse in (json.loads, ast.literal_eval):
        try:
            value: object = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return value if isinstance(value, list) else text
    return text


def _number_labels(
    column: str, values: list[str | int], classes: Sequence[str] | None, *, numbers_are_names: bool
) -> tuple[list[str], list[int]]:
    """Return the names, and the index of each value among them; -1 for a number below 0."""
    if numbers_are_names:
        values = [_digits(value) for value in values]
    numbers = [_as_number(value) for value in values]
    are_numbers = None not in numbers
    if all(isinstance(value, int) for value in values):
        return _by_number(column, [int(value) for value in values], classes)
    texts = [str(value) for value in values]
    if are_numbers and classes is not None:
        known = {prompt_key(name) for name in classes}
        if not any(prompt_key(text) in known for text in texts):
            return _by_number(column, [number for number in numbers if number is not None], classes)
    return _by_name(column, texts, classes)


def _digits(value: str | int) -> str:
    number = _as_number(value)
    return str(value) if number is None else str(number)


def _as_number(value: str | int) -> int | None:
    """Return an integer label, also if it is a text of digits such as "3" or "3.0"; None for other texts."""
    if isinstance(value, int):
        return value
    match = _NUMBER.fullmatch(value.strip())
    return int(match[1]) if match else None


def _warnings(
    column: str,
    values: Sequence[str | int],
    merged: MergedNames,
    targets: Sequence[int],
    *,
    is_given: bool,
    as_text: bool,
) -> Iterator[InputWarning]:
    if merged.groups:
        shown = "; ".join(" = ".join(map(repr, group[:4])) for group in merged.groups[:3])
        more = f"; and {len(merged.groups) - 3} more" if len(merged.groups) > 3 else ""
        num = sum(map(len, merged.groups))
        yield InputWarning(
            f"{num} class names are the same prompt for the model as another, and are merged into "
            f"{len(merged.groups)}: {shown}{more}",
            "give them names that differ in --classes, if they are different classes" if is_given else "",
        )
    if as_text and not is_given and all(_as_number(value) is not None for value in values):
        yield InputWarning(
            f"the labels in column {column!r} are digits, so the prompts are of the kind 'a photo of a {values[0]}.'",
            "--classes FILE with one name per line, the first for 0, if they are numbers of classes",
        )
    counts = Counter(targets)
    if single := sum(count == 1 for count in counts.values()):
        yield InputWarning(
            f"{single} of {len(merged.names)} classes have a single image: their accuracy is 0% or 100%, "
            "and the mean per class says little",
            "more images of these classes, or a --query without them",
        )


def parse_classes(names_or_file: str) -> list[str]:
    """Read class names from a file with one per line, in the order of their numbers, or split a list like "cat,dog".

    Raises:
        ConfigError: the file cannot be read, or a name is empty.
    """
    path = Path(names_or_file)
    if "," not in names_or_file or path.is_file():
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"the class names cannot be read from {path}",
                found=getattr(error, "strerror", None) or str(error),
                allowed="a file with one name per line, or names separated by commas: --classes cat,dog",
            ) from None
        names = [line.strip() for line in lines]
        while names and not names[-1]:
            names.pop()
    else:
        names = [name.strip() for name in names_or_file.split(",")]
    if not names or "" in names:
        empty = names.index("") + 1 if names else 1
        raise ConfigError(f"a class name in --classes {names_or_file} is empty", found=f"name number {empty} is empty")
    return names


def _is_missing(value: object) -> bool:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    # Deep Lake has no nulls: a missing text is "", a missing integer the smallest one; other data sets use -1.
    return value.strip() == "" if isinstance(value, str) else isinstance(value, Integral) and int(value) < 0


def _by_name(column: str, values: list[str], classes: Sequence[str] | None) -> tuple[list[str], list[int]]:
    names = sorted(set(values)) if classes is None else list(classes)
    # "traffic_light" in the lake matches "Traffic light" in the list.
    index_of = {prompt_key(name): index for index, name in reversed(list(enumerate(names)))}
    index_of |= {name: index for index, name in reversed(list(enumerate(names)))}
    targets = [index_of.get(value, index_of.get(prompt_key(value), -1)) for value in values]
    if unknown := Counter(value for value, target in zip(values, targets, strict=True) if target < 0):
        examples = ", ".join(f"{value!r} ({count} rows)" for value, count in unknown.most_common(5))
        raise LakeError(
            f"column {column!r} has {len(unknown)} labels that --classes does not name",
            found=examples,
            allowed=", ".join(names[:10]) + (", …" if len(names) > 10 else ""),
        )
    return names, targets


def _by_number(column: str, values: list[int], classes: Sequence[str] | None) -> tuple[list[str], list[int]]:
    if classes is None:
        raise LakeError(
            f"column {column!r} holds integers, but prompts need class names",
            found=f"integers from {min(values)} to {max(values)}",
            next_step="--classes FILE with one name per line, the first for 0; or --classes cat,dog,…",
        )
    if max(values) >= len(classes):
        raise LakeError(
            f"column {column!r} has numbers beyond the end of --classes",
            found=f"label {max(values)}",
            allowed=f"0 to {len(classes) - 1}, for {len(classes)} names",
        )
    return list(classes), values


def _no_column(column: str, columns: Mapping[str, str]) -> LakeError:
    listed = ", ".join(f"{name} ({kind})" for name, kind in columns.items())
    return LakeError(f"there is no column {column!r}", found=listed, next_step=_choose_another(columns, column))


def _choose_another(columns: Mapping[str, str], column: str) -> str:
    likely = [name for name in columns if _LOOKS_LIKE_LABELS.search(name) and name != column]
    return f"--label-column {likely[0]}" if likely else "a column with one label per row"
