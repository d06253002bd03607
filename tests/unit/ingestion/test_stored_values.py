"""Property: whatever values a lake is given, it can be opened, and holds them or names what it changed."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lakeclip.errors import SourceError
from lakeclip.ingestion.sources.base import Sample
from lakeclip.ingestion.writer import LakeWriter
from lakeclip.lake.dataset import Lake, open_lake
from lakeclip.lake.images import ImageInfo
from lakeclip.lake.values import MAX_FLOAT, MAX_TEXT_BYTES
from tests.unit.lake.sample_files import sample

INFO = ImageInfo("jpeg", 24, 16)
#: With lone surrogates and control characters, which `st.text()` leaves out or seldom makes.
TEXTS = st.text(st.characters() | st.characters(categories=["Cs", "Cc"]), max_size=20)
NUMBERS = (
    st.booleans()
    | st.integers()
    | st.integers(-(2**65), 2**65)
    | st.sampled_from([2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, 2**63, -(2**63), 10**4000])
    | st.floats()
    | st.floats(width=16).map(np.float16)
    | st.sampled_from([math.inf, -math.inf, math.nan, 1.7e308, -1.7e308, 1e290, 1.1e290, 5e-324, -0.0])
    | st.integers(-(2**63), 2**63 - 1).map(np.int64)
)
SCALARS = (
    st.none()
    | NUMBERS
    | TEXTS
    | st.binary(max_size=10)
    | st.datetimes()
    | st.dates()
    | st.decimals(places=3)
    | st.just(object())
)
VALUES = st.recursive(
    SCALARS, lambda part: st.lists(part, max_size=3) | st.dictionaries(TEXTS, part, max_size=3), max_leaves=6
)
#: Columns of one type, of two, and of any, which are widened from batch to batch.
COLUMNS = {
    "bools": st.booleans() | st.none(),
    "ints": st.integers() | st.none(),
    "floats": st.floats() | st.none(),
    "numbers": NUMBERS,
    "texts": TEXTS,
    "width": st.integers(-5, 5),
    "numbers widened": NUMBERS,
    'say "x"\n': TEXTS,
    "any": VALUES,
    "": SCALARS,
}
ROWS = st.lists(st.fixed_dictionaries({}, optional=COLUMNS), max_size=12)
QUICK = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def write(folder: str, *batches: list[Sample], part: str = "") -> tuple[Lake, LakeWriter]:
    """Write a lake with one append per batch and one commit per two, and open it."""
    with LakeWriter(f"{folder}/lake") as writer:
        for number, batch in enumerate(batches):
            for item in batch:
                writer.append(item, INFO, part)
            writer._flush()
            if number % 2:
                writer.commit()
    return open_lake(f"{folder}/lake"), writer


def is_stored(value: object, stored: object) -> bool:
    """Return whether a stored value equals the given one. This is written without the code that it tests."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return stored in (None, "") or (isinstance(stored, float) and math.isnan(stored))
    if isinstance(value, decimal.Decimal):
        return is_stored(None, stored) if value.is_nan() else stored == str(value)
    if isinstance(value, (bool, int, float)):
        if isinstance(value, float) and not abs(value) <= MAX_FLOAT:
            return False
        return (json_number(stored) if isinstance(stored, str) else stored) == value
    if isinstance(value, str):
        return stored == value.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")
    if isinstance(value, bytes):
        return stored == value.hex()
    if isinstance(value, (datetime.datetime, datetime.date)):
        return stored == value.isoformat()
    if isinstance(value, (list, dict)):
        return isinstance(stored, str) and is_part_stored(value, json.loads(stored, parse_constant=pytest.fail))
    return False


def json_number(stored: str) -> object:
    """Return the number in a text column; None if it holds something else."""
    try:
        return json.loads(stored)
    except ValueError:
        return None


def is_part_stored(value: object, stored: object) -> bool:
    """Return whether JSON holds the given value."""
    if isinstance(value, list):
        return isinstance(stored, list) and len(value) == len(stored) and all(map(is_part_stored, value, stored))
    if isinstance(value, dict):
        return (
            isinstance(stored, dict)
            and len(value) == len(stored)
            and all(map(is_part_stored, value.values(), stored.values()))
        )
    value = value.item() if isinstance(value, np.generic) else value
    is_nan = isinstance(value, (float, decimal.Decimal)) and str(value).lower().endswith(
        "nan"
    )  # math.isnan(sNaN) raises
    if value is None or is_nan:
        return stored is None
    if isinstance(value, float) and math.isfinite(value):  # of any size
        return stored == value
    return stored is not None and is_stored(value, stored)


@QUICK
@given(st.lists(ROWS, min_size=3, max_size=3))
def test_values_are_stored_or_named(batches: list[list[dict[str, object]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        samples = [[Sample(str(i), b"x", ("a",), row) for i, row in enumerate(rows)] for rows in batches]
        lake, writer = write(folder, *samples)
        rows = [row for batch in batches for row in batch]
        assert len(lake) == len(rows)
        changed: Counter[str] = Counter()
        for reason, count in writer.changed.items():
            changed[reason.partition(": ")[0]] += count
        for name in {name for row in rows for name in row}:
            column = writer.renamed.get(name, name)
            stored = lake.column(column) if column in lake.columns else [None] * len(rows)
            differing = sum(not is_stored(row.get(name), value) for row, value in zip(rows, stored, strict=True))
            assert differing <= changed[f"column {column}"], (name, writer.changed)
        assert lake.column("text") == ["a"] * len(rows)


@QUICK
@given(st.lists(st.tuples(TEXTS, st.lists(TEXTS, max_size=3), st.binary(max_size=5)), max_size=20), TEXTS)
def test_names_captions_and_images_are_stored(rows: list[tuple[str, list[str], bytes]], part: str) -> None:
    samples = [Sample(key, image, tuple(captions), {}) for key, captions, image in rows]
    with tempfile.TemporaryDirectory() as folder:
        if "\0" in part and rows:
            with pytest.raises(SourceError, match="zero byte"):
                write(folder, samples, part=part)
            return
        lake, writer = write(folder, samples, part=part)
        read = lake.read(range(len(lake)))
        keys, parts = lake.column("key"), lake.column("source")
    assert [row.image for row in read] == [image for _, _, image in rows]
    assert all(map(is_clean, [part] * len(rows), parts))
    differing = sum(not is_stored(key, stored) for (key, _, _), stored in zip(rows, keys, strict=True))
    assert differing <= writer.changed.total()
    for (_, captions, _), row in zip(rows, read, strict=True):
        assert len(captions) == len(row.captions)
        assert all(map(is_clean, captions, row.captions))


def is_clean(given: str, stored: object) -> bool:
    return stored == given.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (sample(0)._replace(key="k" * 5_000), "name of more than 4,096 bytes"),
        (sample(0)._replace(captions=("a" * (MAX_TEXT_BYTES + 1),)), "caption of more than 4 MiB"),
    ],
    ids=["long key", "long caption"],
)
def test_samples_that_no_row_can_hold_are_refused(tmp_path: Path, bad: Sample, reason: str) -> None:
    with LakeWriter(str(tmp_path / "lake")) as writer:
        writer.append(sample(1), INFO)
        with pytest.raises(SourceError, match=reason):
            writer.append(bad, INFO)
        with pytest.raises(SourceError, match="pixels on a side"):
            writer.append(sample(2), ImageInfo("png", 2**31, 1))
    assert open_lake(tmp_path / "lake").column("key") == ["key1"]


def test_captions_beyond_the_limit_are_left_out_and_counted(tmp_path: Path) -> None:
    long = sample(0)._replace(captions=("a cat", "x" * (MAX_TEXT_BYTES + 1), "a dog"))
    with LakeWriter(str(tmp_path / "lake")) as writer:
        writer.append(long, INFO)
    assert open_lake(tmp_path / "lake").captions([0]) == [("a cat", "a dog")]
    assert writer.changed == {"caption: text of more than 4 MiB, left out": 1}


def test_names_that_are_the_same_as_text_are_counted(tmp_path: Path) -> None:
    metadata: dict[object, object] = {1: "a", "1": "b"}
    with LakeWriter(str(tmp_path / "lake")) as writer:
        writer.append(sample(0)._replace(metadata=metadata), INFO)  # type: ignore[arg-type]
    assert open_lake(tmp_path / "lake").column("1") == ["a"]
    assert writer.changed == {"column 1: second value of a row, left out": 1}


def test_columns_with_odd_names_can_be_queried(tmp_path: Path) -> None:
    names = ['size"', "a\nb", "x" * 300, "row", "row 2", "numbers widened", "Key", "n", "a\0b", "\ud800"]
    with LakeWriter(str(tmp_path / "lake")) as writer:
        writer.append(sample(0, **dict.fromkeys(names, 1)), INFO)
        writer.append(sample(1, **dict.fromkeys(names, 2)), INFO)
    for name in names:
        assert len(open_lake(tmp_path / "lake", f'"{writer.renamed.get(name, name)}" == 2')) == 1, name


def test_a_column_of_an_earlier_version_keeps_its_name(tmp_path: Path) -> None:
    """Earlier versions of lakeclip did not change names with quotes."""
    with LakeWriter(str(tmp_path / "lake")) as writer:
        writer.append(sample(0, plain=1), INFO)
        writer.commit()
        writer._dataset.add_column('size"', "int64")
        writer._dataset['size"'][0:1] = [5]
        writer._dataset.commit()
    with LakeWriter(str(tmp_path / "lake"), existing=True) as writer:
        writer.append(sample(1, **{'size"': 6}), INFO)
    assert open_lake(tmp_path / "lake").column('size"') == [5, 6]


def test_a_commit_that_cannot_be_opened_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should a value pass all checks and destroy the lake, the rows before it are kept."""
    path = tmp_path / "lake"
    with LakeWriter(str(path)) as writer:
        writer.append(sample(0, score=1.0), INFO)
    monkeypatch.setattr("lakeclip.ingestion.writer.convert", lambda value, kind: value)
    monkeypatch.setattr("lakeclip.lake.values.math.isinf", lambda number: False)
    monkeypatch.setattr("lakeclip.lake.values.MAX_FLOAT", math.inf)
    writer = LakeWriter(str(path), existing=True)
    writer.append(sample(1, score=math.inf), INFO)
    with pytest.raises(Exception, match=f"{path} holds 1 rows"):
        writer.close()
    writer.abandon()
    assert writer.rows == 1
    monkeypatch.undo()
    with LakeWriter(str(path), existing=True) as writer:
        writer.append(sample(2, score=2.0), INFO)
    assert open_lake(path).column("score") == [1.0, 2.0]
