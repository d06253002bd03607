"""Test the data modules without a trainer: sizes, checks, and train-CLIP's arguments."""

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

from lakeclip.compat.train_clip_data import DeepLakeDataModule, TextImageDataModule
from lakeclip.data.datamodule import PairDataModule
from lakeclip.data.order import hold_out
from lakeclip.data.stream import Span
from lakeclip.errors import ConfigError, DataError, LakeclipError
from lakeclip.text.tokenizer import Tokenizer
from tests.unit.data.memory_source import MemorySource, encode, photo
from tests.unit.text.test_huggingface import word_tokenizer


def make_data(num_rows: int = 40, **options) -> PairDataModule:
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


def test_numbers_of_rows_and_steps():
    module = make_data(43, val_fraction=0.25)
    assert module.num_train_rows + module.num_val_rows == 43
    assert module.has_validation
    assert module.steps_per_epoch == module.num_train_rows // 4 == len(module.train_dataloader())
    assert module.samples_seen == 0
    assert not make_data().has_validation


def test_without_a_trainer_each_iteration_is_the_next_epoch():
    """Guard against a fixed order: train-CLIP never shuffled on its fast path."""
    loader = make_data().train_dataloader()
    epochs = [rows_of(loader) for _ in range(3)]
    for epoch in epochs:
        assert sorted(chain(*epoch)) == list(range(40))
    assert epochs[0] != epochs[1] != epochs[2]
    assert rows_of(make_data().train_dataloader()) == epochs[0], "every run has the same epochs"


def test_shuffle_can_be_disabled():
    """Guard against train-CLIP's `--shuffle False`, which was parsed as true."""
    assert rows_of(make_data(8, shuffle=False).train_dataloader()) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_held_out_rows_are_validated_once_and_never_trained_on():
    module = make_data(200, val_fraction=0.2, batch_size=7)
    trained = set(flat(rows_of(module.train_dataloader())))
    validated = flat(rows_of(module.val_dataloader()))
    _, expected = hold_out(200, 0.2)
    assert sorted(validated) == expected[np.arange(len(expected))].tolist()
    assert not trained & set(validated)


def test_a_separate_validation_source():
    module = make_data(20, val_source=MemorySource(30), val_fraction=0.5)
    assert module.num_train_rows == 20
    assert sorted(flat(rows_of(module.val_dataloader()))) == list(range(30))


def test_max_val_rows_selects_a_fixed_sample():
    sample = flat(rows_of(make_data(400, val_fraction=0.5, max_val_rows=50).val_dataloader()))
    assert len(set(sample)) == len(sample) == 50
    assert np.ptp(sample) > 300, "spread over the whole source"
    assert sample == flat(rows_of(make_data(400, val_fraction=0.5, max_val_rows=50, seed=9).val_dataloader()))


def test_without_validation_there_is_no_loader():
    module = make_data()
    assert not module.has_validation
    assert not is_overridden("val_dataloader", module)
    assert is_overridden("val_dataloader", make_data(val_fraction=0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 41}, "--batch-size 40"),
        ({"batch_size": 40, "val_fraction": 0.1}, "4 are held out"),
        ({"batch_size": 41}, "found:   40 rows to train on in memory"),
        ({"batch_size": 41}, "at most 40"),
    ],
)
def test_a_batch_larger_than_the_data(options, message):
    with pytest.raises(ConfigError, match="pairs is too large") as error:
        make_data(40, **options).setup("fit")
    assert message in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"batches_per_step": 0},
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
def test_invalid_values_raise(options):
    with pytest.raises(ConfigError):
        PairDataModule(MemorySource(40), **{"batch_size": 4, **options})


def test_empty_sources():
    with pytest.raises(DataError, match="no pairs"):
        make_data(0)
    with pytest.raises(DataError, match="no pairs"):
        make_data(5, val_source=MemorySource(0))


def test_the_state_is_plain_numbers_and_round_trips():
    module = make_data(20, batch_size=6)
    state = module.state_dict()
    assert all(type(value) in (int, bool) for value in state.values())
    module.load_state_dict({**state, "step": 2, "position": 12, "samples_seen": 12})
    assert module.samples_seen == 12


def test_changed_data_begins_a_new_epoch(caplog):
    module = make_data(30)
    module.load_state_dict({**make_data(20).state_dict(), "step": 3, "epoch": 1, "position": 12, "samples_seen": 32})
    assert "12 of 20 rows" in caplog.text
    assert module.state_dict()["epoch"] == 2
    assert module.state_dict()["position"] == 0


def test_a_folder_of_pairs(folder):
    """Check train-CLIP's folders: any suffix in any case, one caption a line, and captions over 77 tokens."""
    module = TextImageDataModule(str(folder), 3, image_size=16)
    module.setup()
    batches = list(module.train_dataloader())
    assert [batch.images.shape for batch in batches] == [(3, 3, 16, 16)] * 2
    assert all(batch.texts.shape[1] <= 77 for batch in batches)
    assert pickle.loads(pickle.dumps(module.train_stream))[Span(0, 0, 2)].images.shape == (2, 3, 16, 16)


def test_a_hugging_face_tokenizer(folder):
    """Guard against a failure of train-CLIP, whose Hugging Face tokenizer path could not run."""
    tokenizer = word_tokenizer(pad_token="[PAD]", model_max_length=30)
    module = TextImageDataModule(folder, 6, image_size=16, custom_tokenizer=tokenizer)
    (batch,) = module.train_dataloader()
    assert isinstance(batch[1], BatchEncoding)
    assert batch[1]["input_ids"].shape[0] == 6
    assert batch[1]["input_ids"].shape[1] <= 30
    assert batch[0].shape == (6, 3, 16, 16)


def test_a_function_as_tokenizer(folder):
    module = TextImageDataModule(folder, 6, image_size=16, custom_tokenizer=lambda texts: torch.ones(len(texts), 4))
    (batch,) = module.train_dataloader()
    assert batch.texts.shape == (6, 4)


def test_an_invalid_tokenizer_raises(folder):
    with pytest.raises(ConfigError, match="custom tokenizer") as error:
        TextImageDataModule(folder, 6, custom_tokenizer="gpt2")
    assert "str" in str(error.value)


@pytest.mark.parametrize("kind", [TextImageDataModule, DeepLakeDataModule])
def test_error_of_from_argparse_args_names_the_replacement(kind):
    """Guard against a bare AttributeError: Lightning 2 has no `from_argparse_args`."""
    with pytest.raises(ConfigError, match="Lightning 2 does not have it") as error:
        kind.from_argparse_args(argparse.Namespace(folder="x", batch_size=3))
    assert f"{kind.__name__}(" in error.value.next_step


def test_the_arguments_of_train_clip():
    """Check the arguments that train-CLIP's users pass."""
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
    assert isinstance(make_data().tokenize, Tokenizer)


def test_lightning_sees_that_the_loaders_are_sharded():
    """Guard against sharding twice: under DDP Lightning shards every loader without a `DistributedSampler`."""
    module = make_data(40, val_fraction=0.5)
    for loader in (module.train_dataloader(), module.val_dataloader()):
        assert isinstance(loader.sampler, DistributedSampler)


def test_400_million_rows_start_as_fast_as_few():
    """Check that no list of rows is built: the first batch takes under a second, and memory does not grow."""
    memory_file = Path("/proc/self/statm")
    before = int(memory_file.read_text().split()[1])
    start = time.process_time()  # not the time that other processes had
    module = PairDataModule(MemorySource(400_000_000), batch_size=64, image_size=8, val_fraction=0.0001)
    module.setup("fit")
    loader = iter(module.train_dataloader())
    rows = next(loader).rows
    assert time.process_time() - start < 1.0
    for _ in range(20):
        rows = torch.cat([rows, next(loader).rows])
    assert rows.max() > 300_000_000
    assert len(rows.unique()) == len(rows)
    growth = (int(memory_file.read_text().split()[1]) - before) * os.sysconf("SC_PAGE_SIZE")
    assert growth < 20 * 2**20
