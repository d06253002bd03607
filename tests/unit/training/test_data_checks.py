"""Checks of a run's data: what is refused, what is warned about, and what passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from lakeclip.config.schema import DataConfig, FinetuneConfig, LossConfig, TrainConfig, TrainerConfig
from lakeclip.data.datamodule import PairDataModule
from lakeclip.errors import ConfigError, DataError, InputWarning
from lakeclip.lake.rows import Row
from lakeclip.text.tokenizer import Tokenizer
from lakeclip.training.data_checks import check_batch, check_data, validation_warnings, worker_warnings
from tests.unit.data.memory_source import MemorySource, encode

ANIMALS = ("cat", "dog", "cow", "owl", "fox", "pig", "bee", "ant")


class Pairs(MemorySource):
    """Rows with chosen images and captions."""

    def __init__(
        self,
        num: int,
        caption: Callable[[int], str] = lambda row: f"a photo of {ANIMALS[row % 8]} {row}",
        image: Callable[[int], bytes] | None = None,
        extra: Callable[[int], object] | None = None,
    ) -> None:
        super().__init__(num)
        self._caption, self._image, self._extra = caption, image, extra
        self.extra_columns = ("product",) if extra else ()

    def _row(self, index: int) -> Row:
        row = super()._row(index)
        extras = (self._extra(index),) if self._extra else ()
        image = self._image(index) if self._image else row.image
        return row._replace(captions=(self._caption(index),), image=image, extras=extras)


def check(source: MemorySource, *, batch_size: int = 64, val_fraction: float = 0.1, **data: object) -> list[str]:
    config = TrainConfig(data=DataConfig(lake="m", batch_size=batch_size, val_fraction=val_fraction, **data))  # type: ignore[arg-type]
    module = PairDataModule(
        source,
        batch_size=batch_size,
        image_size=8,
        val_fraction=val_fraction,
        same_by=config.data.same_by,
        tokenize=Tokenizer(64),
    )
    return [str(warning) for warning in check_data(config, module, world_size=1)]


def test_reasonable_data_has_no_warnings() -> None:
    assert check(Pairs(2000)) == []


@pytest.mark.parametrize(
    ("objective", "why"), [("softmax", "its loss is 0"), ("sigmoid", "can only make all pairs alike")]
)
def test_a_batch_of_one_pair_is_refused(objective: str, why: str) -> None:
    config = TrainConfig(
        data=DataConfig(lake="my.lake", batch_size=1),
        loss=LossConfig(objective=objective),
        trainer=TrainerConfig(accumulate=4),
    )
    with pytest.raises(ConfigError, match="a batch of 1 pair has no other pair to compare with") as caught:
        check_batch(config, world_size=1, num_rows=80)
    assert why in caught.value.what
    assert "--accumulate 4 does not help" in caught.value.found
    assert "2 pairs or more over all devices" in caught.value.allowed
    assert "--batch-size 20" in caught.value.next_step
    assert "--minibatch-size 1" in caught.value.next_step


def test_one_pair_on_each_of_two_devices_is_a_batch_of_two() -> None:
    check_batch(TrainConfig(data=DataConfig(batch_size=1)), world_size=2, num_rows=80)
    with pytest.raises(ConfigError, match="batch of 1 pair"):
        check_batch(FinetuneConfig(data=DataConfig(batch_size=1)), world_size=1, num_rows=80)


GREY = encode(np.full((8, 8, 3), 7, np.uint8), "png")


@pytest.mark.parametrize(
    ("source", "what", "found"),
    [
        (Pairs(300, image=lambda row: GREY), "all images of memory look the same", "one image"),
        (
            Pairs(300, image=lambda row: encode(np.full((9 + row, 9, 3), 7, np.uint8), "png")),
            "all images of memory look the same",
            "the same pixels",
        ),
        (Pairs(300, lambda row: "a photo"), "all captions of memory are the same", "one caption"),
        (Pairs(300, lambda row: " A  photo" if row % 2 else "a PHOTO"), "all captions", "one caption"),
        (Pairs(300, lambda row: "very " * 80 + str(row)), "all captions", "as far as the model reads them"),
        (Pairs(300, lambda row: "\u200b \u2060"), "all captions", "one caption"),
        (Pairs(3, lambda row: "a photo"), "all captions", "rows, spread over the data: one caption"),
    ],
    ids=["one file", "one colour", "one caption", "case and blanks", "all too long", "invisible", "three rows"],
)
def test_data_without_differences_is_refused(source: Pairs, what: str, found: str) -> None:
    with pytest.raises(DataError, match=what) as caught:
        check(source, batch_size=2)
    assert found in caught.value.found
    assert caught.value.next_step


def test_one_value_of_same_by_is_refused() -> None:
    with pytest.raises(DataError, match="--same-by product makes all pairs positives"):
        check(Pairs(300, extra=lambda row: "shop"), same_by=("product",))
    assert check(Pairs(2000, extra=lambda row: row // 2), same_by=("product",)) == []


def test_class_names_as_captions_limit_the_loss() -> None:
    source = Pairs(2000, lambda row: f"a photo of a {ANIMALS[row * 2654435761 % 8]}")
    (warning,) = check(source, batch_size=128)
    assert "shares its caption with about 1" in warning
    assert "of ln 128 = 4.85" in warning
    assert "--same-by caption" in warning
    assert check(source, batch_size=128, same_by=("caption",)) == []


@pytest.mark.parametrize(
    ("caption", "what"),
    [
        (lambda row: f"{row} " + "very " * 80, "100% of the captions are longer than the model's context"),
        (lambda row: f"{row}" if row % 4 else "\x07", "of the captions have no tokens"),
        (lambda row: f"一只漂亮的狗在海滩上{chr(0x4E00 + row)}", "does not know: it splits them into bytes, 2."),
        (lambda row: f"красивая собака {chr(0x430 + row % 32)}{chr(0x430 + row // 32)}", "in a script that CLIP's"),
    ],
    ids=["too long", "empty", "Chinese", "Russian"],
)
def test_captions_that_the_model_cannot_read_are_warned_about(caption: Callable[[int], str], what: str) -> None:
    warnings = check(Pairs(1500, caption))
    assert any(what in warning and "next:" in warning for warning in warnings), warnings


def test_accents_are_not_a_foreign_script() -> None:
    assert check(Pairs(2000, lambda row: f"ein schöner größer Hund über dem Fluß {row}")) == []


def test_few_pairs_are_warned_about_from_scratch_only() -> None:
    module = PairDataModule(Pairs(400), batch_size=64, image_size=8, val_fraction=0.1)
    config = TrainConfig(data=DataConfig(batch_size=64))
    (warning,) = check_data(config, module, world_size=1)
    assert "expect scores at chance" in warning.what
    assert "lakeclip finetune --from" in warning.advice
    assert check_data(FinetuneConfig(data=config.data), module, world_size=1) == []


def _text(warnings: Sequence[InputWarning]) -> str:
    return " ".join(map(str, warnings))


def test_validation_rows_that_say_nothing_are_warned_about() -> None:
    assert "its loss is 0 and its recall 100% for any model" in _text(validation_warnings(1, 47, 8))
    assert "--val-fraction 0.42" in _text(validation_warnings(1, 47, 8))
    assert "only 4 rows are held out" in _text(validation_warnings(4, 200, 8))
    assert "last validation batch has a single pair" in _text(validation_warnings(33, 600, 32))
    assert validation_warnings(0, 100, 8) == [], "none was requested"
    assert validation_warnings(128, 5000, 64) == []


def test_workers_without_work_are_warned_about() -> None:
    (warning,) = worker_warnings(64, 3)
    assert "64 loading processes for an epoch of 3 batches" in warning.what
    assert warning.advice == "--num-workers 2"
    assert worker_warnings(2, 1) == [], "the default"
    assert worker_warnings(8, 100) == []


def test_a_remote_lake_is_sampled_thinly_and_only_warned_about() -> None:
    source = Pairs(2000, lambda row: "a photo")
    source.is_remote = True
    reads: list[int] = []
    read = source.read
    source.read = lambda indices, **options: (reads.extend(indices), read(indices, **options))[1]  # type: ignore[method-assign, func-returns-value]
    (warning,) = check(source)
    assert "the loss cannot fall below 4.16 of ln 64 = 4.16" in warning
    assert len(reads) <= 16


def test_undecodable_rows_are_left_to_the_quarantine() -> None:
    source = MemorySource(2000, broken=range(0, 2000, 2))
    assert check(source) == []


def test_a_loss_that_compares_no_pairs_may_have_a_batch_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from lakeclip.losses.registry import LOSSES

    monkeypatch.setitem(LOSSES, "alone", replace(LOSSES["softmax"], min_batch=1))
    config = TrainConfig(data=DataConfig(batch_size=1), loss=LossConfig(objective="alone"))
    check_batch(config, world_size=1, num_rows=80)
