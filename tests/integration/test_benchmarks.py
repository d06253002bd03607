"""Benchmarks are run by hand; these tests check that the scripts work and that their figures are correct."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from lakeclip.ingestion.sources.synthetic import scenes
from tests.contract.test_train_clip_finetune import save_roberta

ROOT = Path(__file__).resolve().parents[2]

#: Packages that are missing on a machine with only PyTorch, Lightning and PyYAML.
ABSENT = (
    *("aiohttp", "deeplake", "ftfy", "jaxtyping", "jinja2", "matplotlib", "open_clip", "pyarrow", "pydantic", "regex"),
    *("rich", "safetensors", "simplejpeg", "timm", "tokenizers", "torchvision", "transformers", "tyro"),
)


@pytest.mark.slow
def test_gpu_benchmark_needs_only_pytorch_and_lightning(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    absent.mkdir()
    for name in ABSENT:
        (absent / f"{name}.py").write_text(f"raise ModuleNotFoundError('{name} is not installed')\n", encoding="utf-8")
    out = tmp_path / "result.json"
    finished = subprocess.run(
        [ROOT / "benchmarks" / "gpu.sh", "--rehearse", "--out", out],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable, "PEER_PATH": str(absent)},
    )
    assert finished.returncode == 0, finished.stderr
    assert "only lakeclip is measured" in finished.stderr
    (model,) = json.loads(out.read_text(encoding="utf-8"))["models"]
    assert set(model["sides"]) == {"lakeclip"}
    assert model["sides"]["lakeclip"]["samples_per_second"] > 0


def test_needed_flops_match_a_step_without_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from common import training_step
    from gpu import TINY

    from lakeclip.config.schema import ModelConfig

    config = ModelConfig(**TINY)  # type: ignore[arg-type]
    side = training_step.lakeclip_side(config, bf16=False)
    images = side.images(3, config.image_resolution)
    ids = torch.randint(1, config.vocab_size - 2, (3, 20))
    ids[:, -1] = config.vocab_size - 1
    counted = training_step.counted_flops(side, images, side.texts(ids))
    # A step does not compute the gradient of the pixels, but does compute the similarities of the features.
    assert 0.85 < counted / training_step.needed_flops(config, ids) < 1.05


def test_random_captions_have_the_lengths_of_flickr8k(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from common.training_step import random_ids, trim_padding, truncate

    ids = torch.cat(random_ids(100, 50))
    lengths = ids.argmax(dim=-1) + 1
    assert 13.6 < lengths.double().mean() < 14.6
    assert 20 <= lengths.double().quantile(0.95) <= 23
    assert trim_padding(ids).shape[1] == lengths.max()
    assert bool((truncate(ids, 10)[lengths > 10, -1] == ids.max()).all())


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a small text model with its tokenizer, in place of all-MiniLM-L6-v2."""
    folder = tmp_path_factory.mktemp("text-model")
    save_roberta(folder / "model")
    return folder / "model"


def write_shard(folder: Path, name: str, num: int, *, seed: int) -> None:
    with tarfile.open(folder / f"{name}-0000.tar", "w") as tar:
        for sample in scenes("train", num, seed=seed):
            label = json.dumps({"label": sample.metadata["label"]})
            for suffix, data in (
                ("jpg", sample.image),
                ("txt", "\n".join(sample.captions).encode()),
                ("json", label.encode()),
            ):
                info = tarfile.TarInfo(f"{sample.key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def run_benchmark(name: str, *arguments: str | Path, allowed_codes: tuple[int, ...] = (0,)) -> None:
    finished = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / name, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert finished.returncode in allowed_codes, finished.stderr


@pytest.mark.slow
def test_transfer(text_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from common.resnet20 import ResNet20

    write_shard(tmp_path, "train", 60, seed=0)
    write_shard(tmp_path, "test", 20, seed=1)
    weights = {f"module.{name}": value for name, value in ResNet20().state_dict().items()}
    torch.save({"state_dict": {**weights, "module.linear.weight": torch.zeros(10, 64)}}, tmp_path / "resnet20.th")
    flags = ["--cifar10", tmp_path, "--resnet20", tmp_path / "resnet20.th", "--minilm", text_model, "--pairs", "40"]
    short = ["--minutes", "0.02", "--scratch-minutes", "0.02", "--points", "2", "--batch-size", "10"]
    run_benchmark("transfer.py", *flags, *short, "--out", tmp_path / "result.json")
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert (result["pretrained"]["pairs"], result["from_scratch"]["pairs"]) == (40, 60)
    assert [row["steps"] for row in result["pretrained"]["curve"]][-1] == result["pretrained"]["steps"]
    assert str(tmp_path) not in json.dumps(result)


@pytest.mark.slow
def test_distillation(text_model: Path, tmp_path: Path) -> None:
    write_shard(tmp_path, "train", 40, seed=0)
    write_shard(tmp_path, "dev", 20, seed=1)
    flags = ["--flickr8k", tmp_path, "--minilm", text_model, "--image-tower", "ViT-Ti/4-32px", "--seeds", "1"]
    run_benchmark(
        "distillation.py",
        *flags,
        *("--minutes", "0.01", "--points", "2", "--batch-size", "10", "--out", tmp_path / "result.json"),
    )
    methods = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["ways"]
    assert list(methods) == ["InfoNCE", "KD", "OT", "earlier"]
    for method in methods.values():
        assert [run["seed"] for run in method["runs"]] == [0]
        assert 0 <= method["R@1"]["mean"] <= method["R@10"]["mean"] <= 1


@pytest.mark.slow
def test_load(tmp_path: Path) -> None:
    run_benchmark("load.py", "--rows", "600", "--lake", tmp_path / "lake", "--make")
    flags = ["--batch-size", "5", "--val-fraction", "0.1", "--every", "0.05", "--out", tmp_path / "result.json"]
    # A run this short says nothing about the claim, so both outcomes are fine.
    run_benchmark("load.py", "--lake", tmp_path / "lake", *flags, allowed_codes=(0, 1))
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert (result["lake"]["rows"], result["lake"]["different_images"]) == (600, 600)
    assert len(result["pairs_per_second_by_tenth"]) == 10
    # Two processes load training pairs, two load validation pairs.
    # Four loaders, the server that forks them, and Python's resource tracker.
    assert max(part["loaders"] for part in result["most_by_twentieth"]) == 6
    assert str(tmp_path) not in json.dumps(result)


def test_load_detects_leaks_and_slowdowns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from common.process_memory import ProcessUsage
    from load import Point, Sample, check_claim

    def check(memory: float, handles: float, slower: float) -> dict[str, object]:
        """Check an epoch of 1,000 steps in which memory, handles and seconds grow with every step."""
        samples = [
            Sample(
                step,
                ProcessUsage(*[500 + memory * step] * 4, 50 + int(handles * step)),
                ProcessUsage(100, 100, 100, 100, 10),
                2,
            )
            for step in range(1, 1001)
        ]
        return check_claim(samples, [Point(step, step + slower * step**2) for step in range(1, 1001)], 10)

    assert check(0, 0, 0)["holds"]
    leaking, opening, slowing = check(0.1, 0, 0), check(0, 0.02, 0), check(0, 0, 1e-4)
    assert not leaking["memory_is_flat"]
    assert leaking["handles_do_not_grow"]
    assert not opening["handles_do_not_grow"]
    assert opening["memory_is_flat"]
    assert not slowing["speed_is_kept"]
