"""Arrow columns of every type, in Parquet and Arrow files."""

from __future__ import annotations

import datetime
import decimal
import tempfile
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lakeclip.errors import SourceError
from lakeclip.ingestion.run import ingest
from lakeclip.ingestion.sources.arrow_values import column_reader, to_python
from lakeclip.ingestion.sources.base import Sample
from lakeclip.ingestion.sources.tables import Tables
from lakeclip.lake.dataset import open_lake
from lakeclip.lake.folder.records import Rejected
from tests.unit.lake.sample_files import picture

URL = "https://example.org/1.jpg"
NS = pa.timestamp("ns")
FIRST = "1970-01-01 00:00:00.000000001"
DAY = datetime.date(2024, 5, 6)


def columns() -> dict[str, tuple[pa.Array, object]]:
    """Return a column of each type, with the value of its first row."""
    return {
        "map of times": (pa.array([[("k", 1)]], pa.map_(pa.string(), NS)), {"k": FIRST}),
        "map of numbers": (pa.array([[(7, "a")]], pa.map_(pa.int64(), pa.string())), [[7, "a"]]),
        "struct": (pa.array([{"t": 1}], pa.struct([("t", NS)])), {"t": FIRST}),
        "struct of one name": (
            pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], fields=[pa.field("a", pa.int64())] * 2),
            {"a": 1, "a 2": 2},
        ),
        "list of lists": (pa.array([[[1], None]], pa.list_(pa.list_(NS))), [[FIRST], None]),
        "fixed list": (pa.array([[1, 2]], pa.list_(NS, 2)), [FIRST, FIRST[:-1] + "2"]),
        "list view": (pa.array([[1]], pa.list_view(pa.duration("ns"))), [1]),
        "dictionary": (pa.array([1], NS).dictionary_encode(), FIRST),
        "decimal": (pa.array([decimal.Decimal("1.50")]), "1.50"),
        "decimal in a list": (pa.array([[decimal.Decimal("1.50")]]), ["1.50"]),
        "fixed bytes": (pa.array([b"\x01\x02"], pa.binary(2)), "0102"),
        "time": (pa.array([1], pa.time64("ns")), "00:00:00.000000001"),
        "date": (pa.array([DAY], pa.date64()), "2024-05-06"),
        "far future": (pa.array([2**62], pa.timestamp("s")), f"{2**62} s since 1970"),
        "half": (pa.array([0.5], pa.float32()).cast(pa.float16()), 0.5),
        "unsigned": (pa.array([2**64 - 1], pa.uint64()), 2**64 - 1),
        "interval": (
            pa.array([pa.MonthDayNano([1, 2, 3])]),
            {"months": 1, "days": 2, "nanoseconds": 3},
        ),
        "uuid": (
            pa.ExtensionArray.from_storage(pa.uuid(), pa.array([uuid.UUID(int=7).bytes], pa.binary(16))),
            str(uuid.UUID(int=7)),
        ),
        "encoded runs": (pa.RunEndEncodedArray.from_arrays([1], ["a"]), "a"),
        "union": (
            pa.UnionArray.from_sparse(pa.array([1], pa.int8()), [pa.array([1]), pa.array([2], NS)]),
            FIRST[:-1] + "2",
        ),
        "text view": (pa.array(["a"], pa.string_view()), "a"),
        "large text": (pa.array(["a"], pa.large_string()), "a"),
        "null": (pa.nulls(1), None),
        "bool": (pa.array([True]), True),
    }


@pytest.mark.parametrize("name", list(columns()))
def test_every_type_has_a_value(name: str) -> None:
    column, value = columns()[name]
    assert to_python(column) == [value]
    assert column_reader(column.type) is not None


@pytest.mark.parametrize("suffix", [".arrow", ".parquet"])
def test_every_type_reaches_the_lake(tmp_path: Path, suffix: str) -> None:
    parts: dict[str, Any] = {"image": pa.array([picture(0)]), "caption": pa.array(["a cat"])}
    for name, (column, _) in columns().items():
        if suffix == ".parquet":  # some types exist in memory only
            try:
                pq.write_table(pa.table({"x": column}), tmp_path / "probe.parquet")
            except (pa.ArrowException, NotImplementedError):
                continue
        parts[name] = column
    path = tmp_path / f"t{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table(parts), path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, pa.table(parts).schema) as writer:
            writer.write_batch(pa.record_batch(list(parts.values()), names=list(parts)))
    result = ingest(str(path), str(tmp_path / "lake"), progress=False)
    assert result.rows == 1
    assert len(parts) > 12
    lake = open_lake(tmp_path / "lake")
    assert lake.values("map of times", [0]) == ['{"k": "1970-01-01 00:00:00.000000001"}']
    assert set(parts) <= {*lake.columns, "caption", "null"}, "a column without any value is not stored"


def test_columns_of_one_name_are_kept(tmp_path: Path) -> None:
    table = pa.Table.from_arrays(
        [pa.array([URL]), pa.array(["a cat"]), pa.array(["second"]), pa.array([3])],
        names=["url", "caption", "caption", "caption"],
    )
    pq.write_table(table, tmp_path / "t.parquet")
    source = Tables([str(tmp_path / "t.parquet")])
    (item,) = source
    assert item == Sample("0", b"", ("a cat",), {"url": URL, "caption 3": "second", "caption 4": 3}, URL)
    assert sum("there are several columns caption" in note for note in source.notes) == 2


def test_texts_that_are_not_utf8(tmp_path: Path) -> None:
    captions = pa.array([b"a cat", b"caf\xe9"]).view(pa.string())
    pq.write_table(pa.table({"url": [URL] * 2, "caption": captions}), tmp_path / "t.parquet")
    assert [item.captions for item in Tables([str(tmp_path / "t.parquet")]) if isinstance(item, Sample)] == [
        ("a cat",),
        ("caf\ufffd",),
    ]


def test_the_rows_of_a_damaged_group_are_lost_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    captions = [uuid.UUID(int=i * 7**20).hex for i in range(300)]
    pq.write_table(pa.table({"url": [URL] * 300, "caption": captions}), path, row_group_size=100, use_dictionary=False)
    info = pq.ParquetFile(path).metadata.row_group(1).column(1)
    data = bytearray(path.read_bytes())
    data[info.data_page_offset : info.data_page_offset + 40] = b"\xff" * 40
    path.write_bytes(data)
    source = Tables([str(path)])
    items = list(source)
    assert [item.key for item in items if isinstance(item, Sample)] == [
        *map(str, range(100)),
        *map(str, range(200, 300)),
    ]
    (bad,) = (item for item in items if isinstance(item, Rejected))
    assert bad.reason.endswith("rows 100 to 199 are lost")
    assert (source.account.read["rows"], source.account.left_out["rows", "broken file"]) == (300, 100)
    source.account.check("the table")
    assert source.completed == []


def test_files_that_are_no_tables_say_why(tmp_path: Path) -> None:
    whole = tmp_path / "whole.parquet"
    pq.write_table(pa.table({"url": [URL], "caption": ["a cat"]}), whole)
    (tmp_path / "cut.parquet").write_bytes(whole.read_bytes()[:-20])
    (tmp_path / "empty.parquet").write_bytes(b"")
    (tmp_path / "html.feather").write_bytes(b"<html></html>")
    for name, words in {
        "cut.parquet": "its end is missing",
        "empty.parquet": "an empty file",
        "html.feather": "as an Arrow file",
    }.items():
        with pytest.raises(SourceError, match=words):
            Tables([str(tmp_path / name)])
        source = Tables([str(tmp_path / name), str(whole)])
        bad, good = source
        assert isinstance(bad, Rejected)
        assert isinstance(good, Sample)
        assert (source.account.read["files"], source.account.used["files"]) == (2, 1)
        source.account.check("the tables")


def test_no_rows_and_no_row_groups(tmp_path: Path) -> None:
    schema = pa.schema([("url", pa.string()), ("caption", pa.string())])
    pq.write_table(schema.empty_table(), tmp_path / "rows.parquet")
    pq.ParquetWriter(tmp_path / "groups.parquet", schema).close()
    for name in ("rows.parquet", "groups.parquet"):
        source = Tables([str(tmp_path / name)])
        assert list(source) == []
        assert [part for part, _ in source.completed] == [name]


def test_partitions_become_columns(tmp_path: Path) -> None:
    for year, split in (("2023", "train"), ("2024", "__HIVE_DEFAULT_PARTITION__")):
        folder = tmp_path / f"year={year}/split%20name={split}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"url": [URL], "caption": ["a cat"]}), folder / "0.parquet")
    ingest(str(tmp_path), str(tmp_path / "lake"), progress=False)
    lake = open_lake(tmp_path / "lake", include_unusable=True)
    assert lake.column("year") == [2023, 2024]
    assert lake.column("split name") == ["train", ""]


def test_arrow_files_of_every_kind(tmp_path: Path) -> None:
    table = pa.table({"url": [URL] * 3, "caption": ["a", "b", "c"]})
    pyarrow.feather.write_feather(table, tmp_path / "t.feather")
    with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=2):
            writer.write_batch(batch)
    for name in ("t.feather", "t.arrow"):
        source = Tables([str(tmp_path / name)])
        assert [item.captions for item in source if isinstance(item, Sample)] == [("a",), ("b",), ("c",)]
        assert [part for part, _ in source.completed] == [name]


_LEAVES = [
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.float64(), st.floats(allow_nan=False, allow_infinity=False)),
    (pa.string(), st.text(st.characters(blacklist_categories=("Cs",)), max_size=6)),
    (pa.bool_(), st.booleans()),
    (pa.timestamp("ns"), st.integers(-(2**63) + 1, 2**63 - 1)),
    (pa.date32(), st.dates()),
    (pa.duration("us"), st.integers(0, 10**12)),
    (pa.decimal128(10, 2), st.integers(0, 10**6).map(lambda i: decimal.Decimal(i) / 100)),
    (pa.binary(3), st.binary(min_size=3, max_size=3)),
]


@st.composite
def _typed(draw: st.DrawFn, depth: int = 2) -> tuple[pa.DataType, st.SearchStrategy[Any]]:
    kind = draw(st.sampled_from(["leaf", "leaf", "list", "fixed", "struct", "map"])) if depth else "leaf"
    if kind == "leaf":
        dtype, values = draw(st.sampled_from(_LEAVES))
        return dtype, st.none() | values
    dtype, values = draw(_typed(depth - 1))
    if kind == "list":
        return pa.list_(dtype), st.none() | st.lists(values, max_size=2)
    if kind == "fixed":
        return pa.list_(dtype, 2), st.lists(values, min_size=2, max_size=2)
    if kind == "map":
        return pa.map_(pa.string(), dtype), st.none() | st.dictionaries(
            st.text("ab", max_size=2), values, max_size=2
        ).map(lambda entries: list(entries.items()))
    return pa.struct([("x", dtype), ("y", pa.int8())]), st.none() | st.fixed_dictionaries(
        {"x": values, "y": st.integers(-128, 127)}
    )


def _shape(value: object) -> object:
    """Return the structure of a value: what is missing, the lengths of lists, the names of dictionaries."""
    if isinstance(value, dict):
        return {name: _shape(part) for name, part in value.items()}
    return [_shape(part) for part in value] if isinstance(value, list) else value is None


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_any_type_is_read_as_it_was_written(data: st.DataObject) -> None:
    dtype, values = data.draw(_typed())
    written = data.draw(st.lists(values, min_size=1, max_size=4))
    table = pa.table({"url": [URL] * len(written), "caption": ["a cat"] * len(written), "x": pa.array(written, dtype)})
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(table, f"{folder}/t.parquet")
        items = list(Tables([f"{folder}/t.parquet"]))
    found = [item.metadata["x"] for item in items if isinstance(item, Sample)]
    assert len(found) == len(written)

    def expected(value: object) -> object:
        if isinstance(value, list) and value and isinstance(value[0], tuple):
            return {name: expected(part) for name, part in value}
        if isinstance(value, list):
            return [expected(part) for part in value]
        return {name: expected(part) for name, part in value.items()} if isinstance(value, dict) else value

    for value, read in zip(written, found, strict=True):
        if not ("map" in str(dtype) and "[]" in repr(value)):  # an empty map is a list here, and {} there
            assert _shape(read) == _shape(expected(value))
        if pa.types.is_int64(dtype) or pa.types.is_string(dtype) or pa.types.is_boolean(dtype):
            assert read == value
