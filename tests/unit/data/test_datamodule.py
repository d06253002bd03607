"""The data modules without a trainer: sizes, checks, and the seed's arguments."""

from __future__ import annotations

import argparse
import inspect
import os
import pickle
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DistributedSampler
from transformers import BatchEncoding

from lakeclip.data.datamodule import PairDataModule
from lakeclip.data.order import hold_out
from lakeclip.data.seed import DeepLakeDataModule, TextImageDataModule
from lakeclip.data.stream import Span
from lakeclip.errors import ConfigError, DataError, LakeclipError
from lakeclip.text.tokenizer import Tokenizer
from tests.unit.data.sources import MemorySource, encode, photo
from tests.unit.text.test_huggingface import word_tokenizer


def make(num_rows: int = 40, **options) -> PairDataModule:
    return PairDataModule(MemorySource(num_rows), image_size=8, **{"batch_size": 4, **options})


def rows_of(loader) -> list[list[int]]:
    return [batch.rows.tolist() for batch in loader]


def flat(batches: list[list[int]]) -> list[int]:
    return list(chain(*batches))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "texts").mkdir()
    for number in range(6):
        (tmp_path / "images" / f"{number}.JPG").write_bytes(encode(photo(40, 50, number)))
        (tmp_path / "texts" / f"{number}.txt").write_text(f"a photo of a dog {number}\n" + "word " * 200 + "\n")
    return tmp_path


def test_sizes():
    module = make(43, val_fraction=0.25)
    assert module.num_train_rows + module.num_val_rows == 43
    assert module.has_validation
    assert module.steps_per_epoch == module.num_train_rows // 4 == len(module.train_dataloader())
    assert module.samples_seen == 0
    assert not make().has_validation


def test_each_iteration_by_hand_is_the_next_epoch():
    """Defect 20: never shuffled on the fast path."""
    loader = make().train_dataloader()
    epochs = [rows_of(loader) for _ in range(3)]
    for epoch in epochs:
        assert sorted(chain(*epoch)) == list(range(40))
    assert epochs[0] != epochs[1] != epochs[2]
    assert rows_of(make().train_dataloader()) == epochs[0], "and every run's epochs are the same"


def test_shuffle_false_is_false():
    """Defect 20: `--shuffle False` was true."""
    assert rows_of(make(8, shuffle=False).train_dataloader()) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_held_out_rows_are_validated_once_and_never_trained_on():
    module = make(200, val_fraction=0.2, batch_size=7)
    trained = set(flat(rows_of(module.train_dataloader())))
    validated = flat(rows_of(module.val_dataloader()))
    _, expected = hold_out(200, 0.2)
    assert sorted(validated) == expected[np.arange(len(expected))].tolist()
    assert not trained & set(validated)


def test_a_validation_source_of_its_own():
    module = make(20, val_source=MemorySource(30), val_fraction=0.5)
    assert module.num_train_rows == 20
    assert sorted(flat(rows_of(module.val_dataloader()))) == list(range(30))


def test_at_most_so_many_validation_rows_and_always_the_same():
    few = flat(rows_of(make(400, val_fraction=0.5, max_val_rows=50).val_dataloader()))
    assert len(set(few)) == len(few) == 50
    assert np.ptp(few) > 300, "from all over"
    assert few == flat(rows_of(make(400, val_fraction=0.5, max_val_rows=50, seed=9).val_dataloader()))


def test_no_validation_is_no_loader():
    module = make()
    assert not module.has_validation
    assert not is_overridden("val_dataloader", module)
    assert is_overridden("val_dataloader", make(val_fraction=0.5))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 41}, "--batch_size 40"),
        ({"batch_size": 40, "val_fraction": 0.1}, "4 are held out"),
        ({"batch_size": 41}, "found:   40 rows to train on in memory"),
        ({"batch_size": 41}, "at most 40"),
    ],
)
def test_a_batch_larger_than_the_data(options, said):
    with pytest.raises(ConfigError, match="pairs is too large") as error:
        make(40, **options).setup("fit")
    assert said in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"image_size": 0},
        {"resize_ratio": 0},
        {"resize_ratio": 1.5},
        {"num_workers": -1},
        {"max_val_rows": 0},
        {"val_fraction": 1.0},
        {"val_fraction": -0.1},
    ],
    ids=str,
)
def test_values_that_cannot_be(options):
    with pytest.raises(ConfigError):
        PairDataModule(MemorySource(40), **{"batch_size": 4, **options})


def test_empty_sources():
    with pytest.raises(DataError, match="no pairs"):
        make(0)
    with pytest.raises(DataError, match="no pairs"):
        make(5, val_source=MemorySource(0))


def test_state_is_plain_and_round_trips():
    module = make(20, batch_size=6)
    state = module.state_dict()
    assert all(type(value) in (int, bool) for value in state.values())
    module.load_state_dict({**state, "step": 2, "position": 12, "samples_seen": 12})
    assert module.samples_seen == 12


def test_a_position_in_other_data_begins_a_new_epoch(caplog):
    module = make(30)
    module.load_state_dict({**make(20).state_dict(), "step": 3, "epoch": 1, "position": 12, "samples_seen": 32})
    assert "12 of 20 rows" in caplog.text
    assert module.state_dict()["epoch"] == 2
    assert module.state_dict()["position"] == 0


def test_a_folder_of_pairs(folder):
    """The seed's folder: any suffix in any case, captions a line each; defect 28: over 77 tokens they raised."""
    module = TextImageDataModule(str(folder), 3, image_size=16)
    module.setup()
    batches = list(module.train_dataloader())
    assert [batch.images.shape for batch in batches] == [(3, 3, 16, 16)] * 2
    assert all(batch.texts.shape[1] <= 77 for batch in batches)
    assert pickle.loads(pickle.dumps(module.train_stream))[Span(0, 0, 2)].images.shape == (2, 3, 16, 16)


def test_a_hugging_face_tokenizer(folder):
    """Defect 25: the Hugging Face tokenizer path could not run."""
    tokenizer = word_tokenizer(pad_token="[PAD]", model_max_length=30)
    module = TextImageDataModule(folder, 6, image_size=16, custom_tokenizer=tokenizer)
    (batch,) = module.train_dataloader()
    assert isinstance(batch[1], BatchEncoding)
    assert batch[1]["input_ids"].shape[0] == 6
    assert batch[1]["input_ids"].shape[1] <= 30
    assert batch[0].shape == (6, 3, 16, 16)


def test_any_function_as_a_tokenizer(folder):
    module = TextImageDataModule(folder, 6, image_size=16, custom_tokenizer=lambda texts: torch.ones(len(texts), 4))
    (batch,) = module.train_dataloader()
    assert batch.texts.shape == (6, 4)


def test_a_tokenizer_that_is_none(folder):
    with pytest.raises(ConfigError, match="custom tokenizer") as error:
        TextImageDataModule(folder, 6, custom_tokenizer="gpt2")
    assert "str" in str(error.value)


@pytest.mark.parametrize("kind", [TextImageDataModule, DeepLakeDataModule])
def test_from_argparse_args_says_what_to_write(kind):
    """Defect 29: `from_argparse_args` with a Lightning that has none."""
    with pytest.raises(ConfigError, match="Lightning 2 does not have it") as error:
        kind.from_argparse_args(argparse.Namespace(folder="x", batch_size=3))
    assert f"{kind.__name__}(" in error.value.next_step


def test_the_seeds_arguments():
    """SEED.md: these calls are a contract."""
    assert list(inspect.signature(TextImageDataModule).parameters)[:7] == [
        "folder",
        "batch_size",
        "num_workers",
        "image_size",
        "resize_ratio",
        "shuffle",
        "custom_tokenizer",
    ]
    parameters = inspect.signature(DeepLakeDataModule).parameters
    assert {"path", "token", "batch_size", "filter_NSFW", "custom_tokenizer"} <= set(parameters)
    assert parameters["shuffle"].default is True


def test_a_folder_without_pairs(tmp_path):
    with pytest.raises(LakeclipError):
        TextImageDataModule(tmp_path, 2)


def test_the_default_tokenizer_is_clips():
    assert isinstance(make().tokenize, Tokenizer)


def test_lightning_sees_that_the_loaders_are_sharded():
    """Defect 19, and its opposite: under DDP Lightning shards once more every loader that it does not know to be."""
    module = make(40, val_fraction=0.5)
    for loader in (module.train_dataloader(), module.val_dataloader()):
        assert isinstance(loader.sampler, DistributedSampler)


def test_four_hundred_million_rows_begin_as_soon_as_few():
    """No permutation, no list of rows: the first batch comes in under a second, and memory stays as it is."""
    resident = Path("/proc/self/statm")
    before = int(resident.read_text().split()[1])
    began = time.monotonic()
    module = PairDataModule(MemorySource(400_000_000), batch_size=64, image_size=8, val_fraction=0.0001)
    module.setup("fit")
    loader = iter(module.train_dataloader())
    rows = next(loader).rows
    assert time.monotonic() - began < 1.0
    for _ in range(20):
        rows = torch.cat([rows, next(loader).rows])
    assert rows.max() > 300_000_000
    assert len(rows.unique()) == len(rows)
    grown = (int(resident.read_text().split()[1]) - before) * os.sysconf("SC_PAGE_SIZE")
    assert grown < 20 * 2**20
