"""Mistakes of users end with one clear message and exit code 2, before any training."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lakeclip.cli.app import main
from lakeclip.ingestion.run import fill_lake
from lakeclip.ingestion.sources.base import Samples
from tests.conftest import scene_samples


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Iterator[object]:
    """Function that runs a command that must be refused, and returns its message."""

    def run(*words: str | Path) -> str:
        with pytest.raises(SystemExit) as exit_:
            main([str(word) for word in words])
        errors = capsys.readouterr().err
        assert exit_.value.code == 2, errors
        assert errors.startswith("error: ")
        assert "Traceback" not in errors
        return errors

    return run


def train(lake: Path, models: Path, runs: Path, *more: str | Path) -> list[str | Path]:
    model = ["--model", "tiny-vit", "--model-config", models, "--accelerator", "cpu", "--num-workers", "0"]
    return ["train", "--lake", lake, *model, "--runs", runs, "--batch-size", "8", "--max-steps", "1", *more]


def test_an_empty_folder(refusal, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty" in refusal("ingest", tmp_path / "empty", tmp_path / "lake")
    assert "empty" in refusal("train", "--folder", tmp_path / "empty")
    assert not (tmp_path / "lake").exists()


def test_no_captions(refusal, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for sample in scene_samples(3):
        (folder / f"{sample.key}.jpg").write_bytes(sample.image)
    assert "caption" in refusal("ingest", folder, tmp_path / "lake")
    assert "caption" in refusal("train", "--folder", folder)


def test_no_images(refusal, tmp_path: Path) -> None:
    folder = tmp_path / "words"
    folder.mkdir()
    (folder / "a.txt").write_text("a red circle")
    assert "image" in refusal("ingest", folder, tmp_path / "lake")
    assert "image" in refusal("train", "--folder", folder)


def test_an_unknown_model_offers_near_names(refusal, pairs_lake: Path) -> None:
    assert "ViT-B/32" in refusal("train", "--lake", pairs_lake, "--model", "ViT-B32")


def test_a_vocabulary_too_small_for_the_tokenizer(refusal, pairs_lake: Path, tiny_models: Path, tmp_path: Path) -> None:
    models = tmp_path / "models.yaml"
    models.write_text(tiny_models.read_text().replace("vocab_size: 49408", "vocab_size: 1000"))
    assert "49408" in refusal(*train(pairs_lake, models, tmp_path / "runs"))


def test_a_lake_without_images_lists_its_columns(refusal, tmp_path: Path) -> None:
    import deeplake

    lake = deeplake.create(str(tmp_path / "lake"))
    lake.add_column("title", deeplake.types.Text())
    lake.append({"title": ["one", "two"]})
    lake.commit()
    assert "title" in refusal("train", "--lake", tmp_path / "lake")


def test_a_lake_without_captions(refusal, tmp_path: Path, tiny_models: Path) -> None:
    """A labelled test set is a lake, but nothing to train on."""
    bare = (sample._replace(captions=()) for sample in scene_samples(16))
    fill_lake([Samples("labelled", bare, 16)], str(tmp_path / "lake"))
    assert "caption" in refusal(*train(tmp_path / "lake", tiny_models, tmp_path / "runs"))


def test_a_query_without_matches(refusal, tmp_path: Path, pairs_lake: Path, tiny_models: Path) -> None:
    errors = refusal(*train(pairs_lake, tiny_models, tmp_path / "runs", "--query", "label == 'dog'"))
    assert "0 rows" in errors


def test_a_query_on_an_unknown_column(refusal, tmp_path: Path, pairs_lake: Path, tiny_models: Path) -> None:
    errors = refusal(*train(pairs_lake, tiny_models, tmp_path / "runs", "--query", "nfsw == 'UNLIKELY'"))
    assert "NSFW" in errors


def test_a_batch_larger_than_the_data(refusal, tmp_path: Path, pairs_lake: Path, tiny_models: Path) -> None:
    errors = refusal(*train(pairs_lake, tiny_models, tmp_path / "runs", "--batch-size", "100000"))
    assert "100000" in errors
    assert not (tmp_path / "runs").exists(), "nothing was made"


def test_a_checkpoint_of_another_model(refusal, tmp_path: Path, pairs_lake: Path, tiny_models: Path) -> None:
    main([str(word) for word in train(pairs_lake, tiny_models, tmp_path, "--name", "a")])
    config = tmp_path / "a/config.yaml"
    config.write_text(config.read_text().replace("model: tiny-vit", "model: tiny-resnet"))
    assert "tiny-vit" in refusal("train", "--resume", tmp_path / "a")
    assert "holds a run already" in refusal(*train(pairs_lake, tiny_models, tmp_path, "--name", "a"))


def test_invalid_checkpoints_are_refused(refusal, tmp_path: Path, pairs_lake: Path) -> None:
    (tmp_path / "notes.ckpt").write_text("no weights here")
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    for name in ("notes.ckpt", "other.ckpt", "missing.ckpt"):
        test = ("evaluate", "zeroshot", "--lake", pairs_lake, "--label-column", "label")
        assert name in refusal(*test, "--checkpoint", tmp_path / name)
    assert "config.yaml" in refusal("train", "--resume", tmp_path)


def test_an_output_that_cannot_be_written(refusal, tmp_path: Path, pairs_lake: Path, tiny_models: Path) -> None:
    (tmp_path / "file").write_text("a file where a folder should be")
    assert "cannot be written" in refusal(*train(pairs_lake, tiny_models, tmp_path / "file"))


def test_a_full_disk(refusal, tmp_path: Path, pairs_lake: Path, tiny_models: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        assert "too full" in refusal(*train(pairs_lake, tiny_models, disk / "runs"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_recipe_with_mistakes_names_them_all(refusal, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("modle: RN50\ndata: {batchsize: 3}\noptimizer: {lr: fast}\n")
    errors = refusal("train", "--recipe", tmp_path / "mine.yaml")
    for mistake in ("modle", "data.batchsize", "did you mean batch_size?", "optimizer.lr"):
        assert mistake in errors


def test_neither_lake_nor_folder(refusal, pairs_lake: Path) -> None:
    assert "--lake" in refusal("train")
    assert "both" in refusal("train", "--lake", pairs_lake, "--folder", "x")


def test_values_out_of_range(refusal, pairs_lake: Path) -> None:
    assert "batch_size" in refusal("train", "--lake", pairs_lake, "--batch-size", "0")
    assert "resize_ratio" in refusal("train", "--lake", pairs_lake, "--resize-ratio", "1.5")
