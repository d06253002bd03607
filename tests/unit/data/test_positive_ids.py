"""Test the ids of positives, from the lake to the batch."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lakeclip.config.schema import DataConfig
from lakeclip.data.datamodule import PairDataModule
from lakeclip.data.order import Order, hold_out
from lakeclip.data.plan import SourcePlan
from lakeclip.data.positive_ids import MISSING, compute_positive_ids, stable_hash
from lakeclip.data.stream import PairStream, Span
from lakeclip.data.transforms import EvalTransform
from lakeclip.errors import ConfigError, LakeError
from lakeclip.ingestion.run import fill_lake
from lakeclip.ingestion.sources.base import Samples
from lakeclip.lake.dataset import open_lake
from lakeclip.lake.mixture import LakeMixture
from lakeclip.lake.pairs import open_pairs
from lakeclip.lake.rows import Row
from lakeclip.text.tokenizer import Tokenizer
from tests.unit.data.memory_source import MemorySource
from tests.unit.lake.sample_files import picture, sample, write_files

LABELS = ("cat", "", "dog", "cat")


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a lake: rows 0 and 3 share a label (1 has none), 2 and 3 a number (0 and 1 have none), 0 and 2 a caption."""
    path = tmp_path_factory.mktemp("positives") / "lake"
    captions = ("one", "two", "one", "three")
    numbers = ({}, {}, {"number": 7}, {"number": 7})
    rows = [sample(i, (captions[i],), label=LABELS[i], **numbers[i]) for i in range(4)]
    fill_lake([Samples("x", iter(rows), 4)], str(path))
    return path


def positive_ids(path: Path, *same_by: str) -> list[list[int]]:
    module = PairDataModule(
        open_pairs(DataConfig(lake=str(path), same_by=same_by)), batch_size=4, shuffle=False, same_by=same_by
    )
    (batch,) = pickle.loads(pickle.dumps(module.train_dataloader()))
    assert batch.rows.tolist() == [0, 1, 2, 3]
    assert batch.positive_ids.dtype == torch.int64
    return batch.positive_ids.tolist()


def test_rows_of_a_lake_that_share_a_column(lake: Path) -> None:
    labels, captions, numbers = zip(*positive_ids(lake, "label", "caption", "number"), strict=True)
    assert labels[0] == labels[3] != labels[2]
    assert labels[1] == MISSING
    assert captions[0] == captions[2] != captions[1] != captions[3]
    assert numbers == (MISSING, MISSING, stable_hash(7), stable_hash("7"))


def test_lakes_of_a_mixture_share_ids(lake: Path) -> None:
    mixture = open_pairs(DataConfig(lake=f"{lake}:1 + {lake}:1", same_by=("label",)))
    assert isinstance(mixture, LakeMixture)
    assert [row.extras for row in mixture.read([0, 3, 4, 6])] == [("cat",), ("cat",), ("cat",), ("dog",)]


def test_images_are_compared_by_their_bytes(tmp_path: Path) -> None:
    """Check images of a folder."""
    images_by_name = {"a.jpg": picture(1), "b.jpg": picture(1), "c.jpg": picture(2)}
    write_files(tmp_path, {**images_by_name, **{f"{stem}.txt": stem.encode() for stem in "abc"}})
    source = open_pairs(DataConfig(folder=str(tmp_path), same_by=("image", "caption")))
    module = PairDataModule(source, batch_size=3, shuffle=False, same_by=("image", "caption"))
    (batch,) = module.train_dataloader()
    images, captions = batch.positive_ids.unbind(1)
    assert images[0] == images[1] != images[2]
    assert len(set(captions.tolist())) == 3


def test_a_replacement_row_has_its_own_ids() -> None:
    source = MemorySource(3, broken=[1])
    rows, _ = hold_out(3, 0)
    stream = PairStream(source, SourcePlan(rows, Order(3, shuffle=False)), EvalTransform(8), Tokenizer(), ("image",))
    batch = stream[Span(0, 0, 3)]
    assert batch.positive_ids is not None
    assert batch.positive_ids[:, 0].tolist() == [
        stable_hash(source.read([row])[0].image) for row in batch.rows.tolist()
    ]


def test_without_same_by_there_are_no_ids() -> None:
    (batch,) = PairDataModule(MemorySource(2), batch_size=2).train_dataloader()
    assert batch.positive_ids is None


def test_a_folder_has_no_columns_to_share(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="product_id") as error:
        open_pairs(DataConfig(folder=str(tmp_path), same_by=("image", "product_id")))
    assert "lakeclip ingest" in error.value.next_step


def test_an_unknown_column_raises_before_reading(lake: Path) -> None:
    with pytest.raises(LakeError, match="no column 'product'") as error:
        open_pairs(DataConfig(lake=str(lake), same_by=("product",)))
    assert "label (text)" in error.value.found


def test_a_source_without_the_extra_column_raises(lake: Path) -> None:
    with pytest.raises(ConfigError, match="label") as error:
        PairDataModule(open_lake(lake), batch_size=2, same_by=("label",))
    assert error.value.next_step == "open_lake(path, extra_columns=['label'])"


@pytest.mark.parametrize("value", [None, "", b"", math.nan, np.float32("nan")])
def test_missing_values_match_nothing(value: object) -> None:
    assert stable_hash(value) == MISSING


@given(st.one_of(st.integers(), st.text(min_size=1), st.binary(min_size=1)))
def test_hashes_fit_int64_and_are_never_missing(value: object) -> None:
    hashed = stable_hash(value)
    assert hashed != MISSING
    assert torch.tensor([hashed], dtype=torch.int64).tolist() == [hashed]
    assert hashed == stable_hash(value)


def test_hashes_are_the_same_in_any_process() -> None:
    """Check in another process, because Python's `hash` differs between processes."""
    code = (
        "from lakeclip.data.positive_ids import stable_hash; "
        "print(stable_hash('cat'), stable_hash(7), stable_hash(b'x'))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split() == [str(stable_hash(value)) for value in ("cat", "7", "x")]


def test_ids_are_in_the_requested_order() -> None:
    row = Row(0, b"jpeg", ("a cat", "a dog"), extras=("tom", 3))
    expected = [stable_hash(value) for value in ("tom", "a dog", b"jpeg", 3)]
    assert compute_positive_ids(row, "a dog", ("owner", "caption", "image", "number")) == expected
