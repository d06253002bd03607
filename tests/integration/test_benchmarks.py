"""The benchmarks of the step are run by hand; here is seen that they run, and that their figures mean what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
