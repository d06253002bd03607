"""The benchmarks of the step are run by hand; here is seen that they run, and that their figures mean what they say."""

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

from lakeclip.lake.sources.scenes import scenes
from tests.contract.test_seed_finetune import save_roberta

ROOT = Path(__file__).resolve().parents[2]

#: What a machine with PyTorch and Lightning alone does not have.
ABSENT = (
    *("aiohttp", "deeplake", "ftfy", "jaxtyping", "jinja2", "matplotlib", "open_clip", "pyarrow", "pydantic", "regex"),
    *("rich", "safetensors", "simplejpeg", "timm", "tokenizers", "torchvision", "transformers", "tyro"),
)


@pytest.mark.slow
def test_the_gpu_benchmark_runs_where_there_is_only_pytorch_and_lightning(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    absent.mkdir()
    for name in ABSENT:
        (absent / f"{name}.py").write_text(f"raise ModuleNotFoundError('there is no {name} here')\n", encoding="utf-8")
    out = tmp_path / "result.json"
    done = subprocess.run(
        [ROOT / "benchmarks" / "gpu.sh", "--rehearse", "--out", out],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable, "PEER_PATH": str(absent)},
    )
    assert done.returncode == 0, done.stderr
    assert "lakeclip alone is measured" in done.stderr
    (model,) = json.loads(out.read_text(encoding="utf-8"))["models"]
    assert set(model["sides"]) == {"lakeclip"}
    assert model["sides"]["lakeclip"]["samples_per_second"] > 0


def test_the_operations_said_to_be_needed_are_those_of_a_step_without_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import optimisation_step
    from gpu import TINY

    from lakeclip.config.schema import ModelConfig

    config = ModelConfig(**TINY)  # type: ignore[arg-type]
    side = optimisation_step.lakeclip(config, bf16=False)
    images = side.images(3, config.image_resolution)
    ids = torch.randint(1, config.vocab_size - 2, (3, 20))
    ids[:, -1] = config.vocab_size - 1
    counted = optimisation_step.counted_flops(side, images, side.texts(ids))
    # A step does not ask for the gradient of the pixels, and compares the features besides.
    assert 0.85 < counted / optimisation_step.needed_flops(config, ids) < 1.05


def test_drawn_captions_are_as_long_as_flickrs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from optimisation_step import drawn_ids, shortened, trimmed

    ids = torch.cat(drawn_ids(100, 50))
    lengths = ids.argmax(dim=-1) + 1
    assert 13.6 < lengths.double().mean() < 14.6
    assert 20 <= lengths.double().quantile(0.95) <= 23
    assert trimmed(ids).shape[1] == lengths.max()
    assert bool((shortened(ids, 10)[lengths > 10, -1] == ids.max()).all())


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text model and its tokenizer where the benchmarks of fine-tuning expect all-MiniLM-L6-v2."""
    folder = tmp_path_factory.mktemp("words")
    save_roberta(folder / "model")
    return folder / "model"


def shards(folder: Path, name: str, num: int, *, seed: int) -> None:
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


def benchmark(name: str, *words: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / name, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_transfer(words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from resnet20 import ResNet20

    shards(tmp_path, "train", 60, seed=0)
    shards(tmp_path, "test", 20, seed=1)
    weights = {f"module.{name}": value for name, value in ResNet20().state_dict().items()}
    torch.save({"state_dict": {**weights, "module.linear.weight": torch.zeros(10, 64)}}, tmp_path / "resnet20.th")
    flags = ["--cifar10", tmp_path, "--resnet20", tmp_path / "resnet20.th", "--minilm", words, "--pairs", "40"]
    short = ["--minutes", "0.02", "--scratch-minutes", "0.02", "--points", "2", "--batch-size", "10"]
    benchmark("transfer.py", *flags, *short, "--out", tmp_path / "result.json")
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert (result["pretrained"]["pairs"], result["from_scratch"]["pairs"]) == (40, 60)
    assert [row["steps"] for row in result["pretrained"]["curve"]][-1] == result["pretrained"]["steps"]
    assert str(tmp_path) not in json.dumps(result)


@pytest.mark.slow
def test_distillation(words: Path, tmp_path: Path) -> None:
    shards(tmp_path, "train", 40, seed=0)
    shards(tmp_path, "dev", 20, seed=1)
    flags = ["--flickr8k", tmp_path, "--minilm", words, "--image-tower", "ViT-Ti/4-32px", "--seeds", "1"]
    benchmark(
        "distillation.py",
        *flags,
        *("--minutes", "0.01", "--points", "2", "--batch-size", "10", "--out", tmp_path / "result.json"),
    )
    ways = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["ways"]
    assert list(ways) == ["InfoNCE", "KD", "OT", "earlier"]
    for way in ways.values():
        assert [run["seed"] for run in way["runs"]] == [0]
        assert 0 <= way["R@1"]["mean"] <= way["R@10"]["mean"] <= 1


@pytest.mark.slow
def test_load(tmp_path: Path) -> None:
    benchmark("load.py", "--rows", "600", "--lake", tmp_path / "lake", "--make")
    flags = ["--batch-size", "5", "--val-fraction", "0.1", "--every", "0.05", "--out", tmp_path / "result.json"]
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "load.py", "--lake", tmp_path / "lake", *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode in (0, 1), done.stderr  # so short a run says nothing of the claim
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert (result["lake"]["rows"], result["lake"]["different_images"]) == (600, 600)
    assert len(result["pairs_per_second_by_tenth"]) == 10
    assert max(part["loaders"] for part in result["most_by_twentieth"]) == 4  # two that train, two that validate
    assert str(tmp_path) not in json.dumps(result)


def test_a_leak_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from load import Point, Sample, judge
    from processes import Held

    def run(memory: float, handles: float, slower: float) -> dict[str, object]:
        """An epoch of 1,000 steps in which these grow from step to step."""
        samples = [
            Sample(step, Held(*[500 + memory * step] * 4, 50 + int(handles * step)), Held(100, 100, 100, 100, 10), 2)
            for step in range(1, 1001)
        ]
        return judge(samples, [Point(step, step + slower * step**2) for step in range(1, 1001)], 10)

    assert run(0, 0, 0)["holds"]
    leaking, opening, slowing = run(0.1, 0, 0), run(0, 0.02, 0), run(0, 0, 1e-4)
    assert not leaking["memory_is_flat"]
    assert leaking["handles_do_not_grow"]
    assert not opening["handles_do_not_grow"]
    assert opening["memory_is_flat"]
    assert not slowing["speed_is_kept"]
