"""Runs from which nothing can be learned, or in which nothing was: refused before, or named after."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path

import lightning
import numpy as np
import pytest
from PIL import Image

from lakeclip.cli.app import main
from lakeclip.config.load import read_recipe
from lakeclip.config.schema import TrainConfig
from lakeclip.data.datamodule import PairDataModule
from lakeclip.errors import ConfigError
from lakeclip.ingestion.run import fill_lake
from lakeclip.ingestion.sources.base import Sample, Samples
from lakeclip.lake.dataset import open_lake
from lakeclip.models import bfloat16_support as support_module
from lakeclip.training.module import CLIPWrapper
from tests.conftest import TINY
from tests.integration.test_train import train_args

WORDS = ("red", "green", "blue", "small", "large", "old", "new", "wet", "dry", "round", "flat", "near", "far")


def noise(seed: int) -> bytes:
    """Return a photo that shows nothing."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def meaningless(num: int, caption: str = "") -> Iterator[Sample]:
    """Yield photos of noise with random captions, or with one caption; half of them have the label 'a'."""
    choose = random.Random(0)
    for index in range(num):
        text = caption or " ".join(choose.sample(WORDS, 4))
        yield Sample(str(index), noise(index), (text,), {"label": "ab"[index % 2]})


@pytest.fixture(scope="module")
def noise_lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("noise") / "noise.lake"
    fill_lake([Samples("noise", meaningless(200), 200)], str(path))
    return path


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("more", [(), ("--dry-run",), ("--objective", "sigmoid"), ("--accumulate", "2")])
def test_a_batch_of_one_is_refused_before_anything_is_written(
    more: tuple[str, ...], pairs_lake: Path, tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = refusal(train_args(pairs_lake, tiny_models, tmp_path, "a", "--batch-size", "1", *more), capsys)
    assert "a batch of 1 pair has no other pair to compare with" in errors
    assert "next:" in errors
    assert "--minibatch-size 1" in errors
    assert list(tmp_path.iterdir()) == []


def test_captions_that_are_all_the_same_are_refused(
    tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill_lake([Samples("same", meaningless(40, "a photo"), 40)], str(tmp_path / "same.lake"))
    errors = refusal(train_args(tmp_path / "same.lake", tiny_models, tmp_path / "runs", "a"), capsys)
    assert "are the same for the model, so the loss cannot fall" in errors
    assert not (tmp_path / "runs").exists()


def test_a_run_at_chance_says_so_in_its_first_line(
    noise_lake: Path, tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(train_args(noise_lake, tiny_models, tmp_path, "a", "--max-steps", "20", "--lr", "1e-5"))
    output = capsys.readouterr().out
    assert "180 pairs are few" in output or "pairs are few for a model from scratch" in output, "before the run"
    _, _, conclusion = output.partition("the model is guessing: its loss stayed at 2.")
    first, advice, *_ = conclusion.split("\n")
    assert "where guessing is (ln 8 = 2.08); text → image R@1 is" in first
    assert advice.strip().startswith(f"next:  lakeclip finetune --from NAME --lake {noise_lake}")
    page = (tmp_path / "a/report.html").read_text()
    assert "<h1>No better than guessing" in page
    for command in (["retrieval"], ["zeroshot", "--label-column", "label"]):
        main(["evaluate", *command, "--checkpoint", str(tmp_path / "a"), "--lake", str(noise_lake)])
        assert capsys.readouterr().out.lstrip().startswith("the model does no better than guessing: ")


def colours() -> Iterator[Sample]:
    """Yield 64 photos of one colour each, and its name."""
    for index in range(64):
        red, green, blue = index // 16, index // 4 % 4, index % 4
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32), (80 * red, 80 * green, 80 * blue)).save(buffer, "png")
        text = f"{('no', 'little', 'some', 'much')[red]} red {WORDS[green]} {('cat', 'dog', 'owl', 'fox')[blue]}"
        yield Sample(str(index), buffer.getvalue(), (text,), {})


@pytest.mark.slow
def test_a_run_that_learned_does_not_say_so(
    tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = tmp_path / "colours.lake"
    fill_lake([Samples("colours", colours(), 64)], str(lake))
    flags = ("--max-steps", "60", "--batch-size", "16", "--val-lake", str(lake), "--lr", "3e-3")
    main(train_args(lake, tiny_models, tmp_path, "a", *flags, "--val-every-steps", "60"))
    output = capsys.readouterr().out
    assert "guessing" not in output
    assert "× chance" in (tmp_path / "a/report.html").read_text()


def test_a_batch_of_one_in_an_own_trainer_is_refused(pairs_lake: Path, tmp_path: Path) -> None:
    data = PairDataModule(open_lake(str(pairs_lake)), batch_size=1, image_size=32, val_fraction=0.1)
    trainer = lightning.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    with pytest.raises(ConfigError, match="a batch of 1 pair has no other pair"):
        trainer.fit(CLIPWrapper("tiny", TINY), data)


@pytest.fixture
def haswell(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let lakeclip read the flags of a processor with AVX2 only."""
    monkeypatch.setattr(support_module, "cpu_flags", lambda: frozenset(("avx", "fma", "avx2")))
    support_module.bfloat16_support.cache_clear()
    yield
    support_module.bfloat16_support.cache_clear()


@pytest.mark.usefixtures("haswell")
@pytest.mark.slow
def test_bfloat16_on_a_processor_without_it_is_named_with_the_right_flag(
    pairs_lake: Path, tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = train_args(pairs_lake, tiny_models, tmp_path, "a", "--max-steps", "2", "--val-fraction", "0")
    main([*arguments, "--precision", "bf16", "--dry-run"])
    warning = "warning: --precision bf16 is slow here: the processor has AVX2 but no bfloat16 instructions"
    plan = capsys.readouterr().out
    assert warning in plan
    assert "next:  --precision 32" in plan
    main([*arguments, "--precision", "auto"])
    output = capsys.readouterr().out
    assert "is slow here" not in output
    assert read_recipe(tmp_path / "a/config.yaml", TrainConfig).trainer.precision == "32", "what auto meant here"
    main(
        ["evaluate", "retrieval", "--checkpoint", str(tmp_path / "a"), "--lake", str(pairs_lake), "--precision", "bf16"]
    )
    assert warning in capsys.readouterr().err


def test_auto_is_what_this_processor_does_fast(
    pairs_lake: Path, tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = train_args(pairs_lake, tiny_models, tmp_path, "a", "--max-steps", "2", "--val-fraction", "0")
    main([*arguments, "--precision", "auto"])
    fast = support_module.bfloat16_support("cpu").is_fast
    assert read_recipe(tmp_path / "a/config.yaml", TrainConfig).trainer.precision == ("bf16" if fast else "32")
    assert "is slow here" not in capsys.readouterr().out
