from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lakeclip.lake import summary
from lakeclip.lake.dataset import open_lake
from lakeclip.lake.engine import deeplake
from lakeclip.lake.sources.base import Sample
from lakeclip.lake.sources.images import ImageInfo
from lakeclip.lake.summary import Spread, summarize
from lakeclip.lake.write import LakeWriter
from tests.unit.lake.pairs import picture


def make(path: Path, count: int) -> None:
    with LakeWriter(str(path)) as writer:
        for i in range(count):
            captions = tuple(f"{'word ' * (j + 1)}".strip() for j in range(i % 3))
            writer.append(Sample(f"{i}", b"x", captions, {}), ImageInfo("png" if i % 2 else "jpeg", 10 + i, 20))


def test_the_figures_of_a_small_lake_are_exact(tmp_path: Path) -> None:
    make(tmp_path / "lake", 30)
    found = summarize(open_lake(tmp_path / "lake"))
    assert (found.num_rows, found.rows_looked_at, found.sizes_looked_at, found.with_captions) == (30, 30, 30, 20)
    assert found.formats == {"jpeg": 15, "png": 15}
    assert found.width == Spread(10, 24.5, 24.5, 39)
    assert found.height == Spread(20, 20.0, 20.0, 20)
    assert found.captions_per_row == Spread(1, 1.5, 1.5, 2)
    assert found.caption_words == Spread(1, 1.0, 1.0, 1)
    assert found.examples == ["word"] * 5
    assert summarize(open_lake(tmp_path / "lake", "width < 15")).num_rows == 5
    values = found.to_dict()
    assert values["num_rows"] == 30
    assert isinstance(values["columns"], dict)


def test_a_large_lake_is_sampled_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "lake", 3_000)
    monkeypatch.setattr(summary, "MAX_ROWS", 1_000)
    found = summarize(open_lake(tmp_path / "lake"))
    assert found.num_rows == 3_000
    assert found.rows_looked_at == 1_000
    assert found.width is not None
    assert (found.width.min, found.width.max) == (10, 3_009)


def test_a_lake_without_usable_columns_has_them_listed(tmp_path: Path) -> None:
    dataset = deeplake().create(str(tmp_path / "lake"), schema={"n": deeplake().types.Int64()})
    dataset.append({"n": np.arange(5)})
    dataset.commit()
    found = summarize(open_lake(tmp_path / "lake"))
    assert (found.num_rows, found.columns) == (5, {"n": "int64"})
    assert found.image_column is found.caption_column is None


def test_sizes_come_from_headers_where_no_column_has_them(tmp_path: Path) -> None:
    types = deeplake().types
    dataset = deeplake().create(str(tmp_path / "lake"), schema={"image": types.Bytes()})
    dataset.append({"image": [picture(1, "PNG", size=(30, 20)), picture(2, size=(40, 20)), b"no image"]})
    dataset.commit()
    found = summarize(open_lake(tmp_path / "lake"))
    assert found.formats == {"png": 1, "jpeg": 1, "not an image": 1}
    assert found.width == Spread(30, 35.0, 35.0, 40)


def test_an_empty_lake(tmp_path: Path) -> None:
    types = deeplake().types
    deeplake().create(str(tmp_path / "lake"), schema={"image": types.Bytes(), "text": types.Text()}).commit()
    found = summarize(open_lake(tmp_path / "lake"))
    assert (found.num_rows, found.with_captions) == (0, 0)
