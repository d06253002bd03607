"""Tests of the data modules with a Deep Lake dataset and a folder of pairs."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import pytest

from lakeclip.compat.train_clip_data import DeepLakeDataModule, TextImageDataModule
from lakeclip.errors import ConfigError, DataError, LakeError
from lakeclip.ingestion.run import fill_lake
from lakeclip.ingestion.sources.base import Sample, Samples
from tests.unit.data.memory_source import encode, photo

RATINGS = ["UNLIKELY", "UNSURE", "NSFW", "", "unlikely", "UNLIKELY"]
SIZES = [30, 100, 460]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a lake of 36 rows: every rating with every size, twice."""
    samples = [
        Sample(f"{n:02}", encode(photo(20, 25, n), "png"), (f"photo {n}",), metadata)
        for n in range(36)
        if (metadata := {"NSFW": RATINGS[n % 6], "WIDTH": SIZES[n // 6 % 3]})
    ]
    path = tmp_path_factory.mktemp("lakes") / "lake"
    fill_lake([Samples("rows made here", samples, len(samples))], str(path))
    return path


def rows_of(module: DeepLakeDataModule) -> list[int]:
    return sorted(row for batch in module.train_dataloader() for row in batch.rows.tolist())


def test_filter_nsfw_filters_nothing_else(lake):
    module = DeepLakeDataModule(path=str(lake), batch_size=1, filter_NSFW=True, image_size=8)
    rows = rows_of(module)
    assert rows == [n for n in range(36) if RATINGS[n % 6] == "UNLIKELY"]
    widths = Counter(module.source.column("WIDTH"))
    assert widths == {30: 4, 100: 4, 460: 4}


def test_filter_nsfw_and_a_query(lake):
    module = DeepLakeDataModule(
        str(lake), batch_size=1, filter_NSFW=True, query="WIDTH == 30 or WIDTH == 460 -- not 100", image_size=8
    )
    assert rows_of(module) == [n for n in range(36) if RATINGS[n % 6] == "UNLIKELY" and n // 6 % 3 != 1]


def test_a_whole_lake_in_batches(lake):
    module = DeepLakeDataModule(str(lake), batch_size=6, image_size=16)
    module.setup()
    batches = list(module.train_dataloader())
    assert [batch.images.shape for batch in batches] == [(6, 3, 16, 16)] * 6
    assert rows_of(module) == list(range(36))


def test_a_query_that_keeps_too_few_rows(lake):
    module = DeepLakeDataModule(str(lake), batch_size=20, filter_NSFW=True)
    with pytest.raises(ConfigError, match="20 pairs is too large") as error:
        module.setup("fit")
    assert "12 rows" in error.value.found


def test_a_query_without_matches(lake):
    with pytest.raises(DataError, match="no pairs") as error:
        DeepLakeDataModule(str(lake), batch_size=1, query="WIDTH == 7")
    assert error.value.found == "0 of 36 rows for which WIDTH == 7"


def test_the_token_is_not_stored(lake, monkeypatch):
    monkeypatch.setenv("ACTIVELOOP_TOKEN", "")
    module = DeepLakeDataModule(str(lake), token="secret-token", batch_size=2, image_size=8)
    assert b"secret-token" not in pickle.dumps(module.train_stream)
    assert not any("secret-token" in str(value) for value in vars(module).values())


def test_a_missing_column_raises_before_training(lake):
    with pytest.raises(LakeError) as error:
        DeepLakeDataModule(str(lake), batch_size=2, caption_column="story").setup("fit")
    assert "text" in str(error.value), "the columns are listed"


def test_a_folder_with_workers(tmp_path):
    """Read a folder in train-CLIP's layout with worker processes, which get paths and not bytes."""
    for number in range(8):
        (tmp_path / "a" / "b").mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / "b" / f"p{number}.PNG").write_bytes(encode(photo(20, 20, number), "png"))
        (tmp_path / f"p{number}.txt").write_text(f"photo {number}\n")
    module = TextImageDataModule(tmp_path, 4, 2, image_size=16)
    batches = list(module.train_dataloader())
    assert sorted(row for batch in batches for row in batch.rows.tolist()) == list(range(8))
