"""Claim: with stochastically rounded bfloat16, Adam's states and the weights take half the bytes, for the same loss.

    python benchmarks/optimizer_memory.py --data DIR --out benchmarks/results/NAME.json

DIR holds WebDataset shards: train-*.tar with KEY.jpg (32 × 32 pixels) and KEY.txt. The script first measures bytes,
peak memory and milliseconds of a step of the optimiser alone on ViT-B/32's 151 million parameters; each side is a
separate process, and they take turns. It then trains the same small CLIP on the photos with each setting, from the same
seeds.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tarfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from common.machine import machine, peak_mib, resident_mib
from common.results import command_line, log, today, write_result
from common.subprocess_side import run_side
from torch import Tensor
from torch.nn import functional as F

from lakeclip.config.schema import ModelConfig, OptimizerConfig
from lakeclip.losses import contrastive_loss
from lakeclip.losses.registry import MAX_LOGIT_SCALE
from lakeclip.models.clip import CLIP
from lakeclip.models.zoo import model_config
from lakeclip.text.tokenizer import Tokenizer
from lakeclip.training.optim.optimizers import adamw, store_text_in_bfloat16, with_paper_values
from lakeclip.training.optim.schedule import warmup_cosine


@dataclass(frozen=True)
class Setting:
    """Number formats of a run. `weights` covers both towers, which `lakeclip train` does not offer."""

    states: Literal["32", "bf16", "8bit"] = "32"
    text_weights: Literal["32", "bf16"] = "32"
    weights: Literal["32", "bf16"] = "32"


SETTINGS = {
    "float32": Setting(),
    "bf16 states": Setting(states="bf16"),
    "bf16 text weights": Setting(text_weights="bf16"),
    "bf16 states and text weights": Setting(states="bf16", text_weights="bf16"),
    "bf16 states and all weights": Setting(states="bf16", weights="bf16"),
    "8-bit states": Setting(states="8bit"),
}
_LARGE_MODEL = "ViT-B/32"
#: ViT-Ti/4-32px with patches of 8 pixels instead of 4, for a quarter of the work.
_SMALL_MODEL = replace(model_config("ViT-Ti/4-32px"), vision_patch_size=8)
_BATCH = 64
_LR = 5e-4
#: Points of the loss curve to record, as shares of the run.
_POINTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def main() -> None:
    """Parse the flags; measure, print and write the result; or run one side for the main process."""
    flags = _flags()
    torch.set_num_threads(flags.threads)
    if flags.side:
        print(json.dumps(measure_step(SETTINGS[flags.side], flags.repeats)))
        return
    sides = [name for name, setting in SETTINGS.items() if setting.states != "8bit" or _version("torchao")]
    steps = measure_steps(sides, flags)
    losses = measure_losses(sides, Path(flags.data), flags)
    result = {
        "date": today(),
        "command": command_line("optimizer_memory.py"),
        "machine": machine(flags.threads),
        "versions": {name: _version(name) for name in ("torch", "torchao")},
        "step": {"model": _LARGE_MODEL, "sides": steps},
        "loss": {"model": asdict(_SMALL_MODEL), "batch_size": _BATCH, "steps": flags.steps, "lr": _LR, "sides": losses},
    }
    write_result(result, flags.out)
    show(result)


def _build(sizes: ModelConfig, setting: Setting) -> tuple[CLIP, torch.optim.Optimizer]:
    model = CLIP(sizes)
    if setting.text_weights == "bf16":
        store_text_in_bfloat16(model)
    if setting.weights == "bf16":
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16 if parameter.ndim else torch.float32)
    config = OptimizerConfig(states=setting.states, text_weights=setting.text_weights, lr=_LR)
    return model, adamw(model, with_paper_values(config, "", is_resnet=False))


# ── a step of the optimiser alone ───────────────────────────────────────────────────────────────────────────────────


def measure_step(setting: Setting, repeats: int) -> dict[str, float]:
    """Measure bytes per parameter, the MiB that a step needs temporarily, and the best time of several steps."""
    torch.manual_seed(0)
    model, optimizer = _build(model_config(_LARGE_MODEL), setting)
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter) * 1e-3
    start = time.perf_counter()
    optimizer.step()
    first = time.perf_counter() - start
    # Reset the kernel's record of peak memory.
    Path("/proc/self/clear_refs").write_text("5")
    resident = resident_mib()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        optimizer.step()
        times.append(time.perf_counter() - start)
    count = sum(parameter.numel() for parameter in parameters)
    states = sum(_bytes(value) for entry in optimizer.state.values() for value in entry.values())
    return {
        "parameters": count,
        "state_bytes": states / count,
        "weight_bytes": sum(parameter.nbytes for parameter in parameters) / count,
        "gradient_bytes": sum(_bytes(parameter.grad) for parameter in parameters) / count,
        "first_step_s": first,
        "step_ms": min(times) * 1e3,
        "step_extra_mib": peak_mib() - resident,
    }


def _bytes(value: Any) -> int:
    """Return the bytes of a tensor; torchao's tensors consist of other tensors."""
    if hasattr(value, "__tensor_flatten__"):
        return sum(_bytes(getattr(value, part)) for part in value.__tensor_flatten__()[0])
    return value.nbytes if isinstance(value, Tensor) else 0


def measure_steps(sides: list[str], flags: argparse.Namespace) -> dict[str, Any]:
    """Measure all sides in turns."""
    rounds: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for turn in range(flags.rounds):
        for side in sides if turn % 2 == 0 else sides[::-1]:
            rounds[side].append(_run(side, flags))
            log(f"round {turn + 1}, {side}: {rounds[side][-1]['step_ms']:.0f} ms")
    return {
        side: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        | {"step_ms_of_rounds": [run["step_ms"] for run in runs]}
        for side, runs in rounds.items()
    }


def _run(side: str, flags: argparse.Namespace) -> dict[str, float]:
    arguments = ["--side", side, "--data", "-", "--threads", str(flags.threads), "--repeats", str(flags.repeats)]
    return run_side(__file__, arguments, side=side, threads=flags.threads)


# ── the loss of a real run ──────────────────────────────────────────────────────────────────────────────────────────


def measure_losses(sides: list[str], data: Path, flags: argparse.Namespace) -> dict[str, Any]:
    """Train with each setting from each seed, and return the loss curves."""
    images, texts = _pairs(data)
    results: dict[str, Any] = {}
    for side in sides:
        curves = [_losses(SETTINGS[side], images, texts, seed, flags.steps) for seed in range(flags.seeds)]
        last = max(1, flags.steps // 10)
        final = [statistics.mean(curve[-last:]) for curve in curves]
        results[side] = {
            "final": final,
            "final_mean": statistics.mean(final),
            "final_spread": max(final) - min(final),
            "points": _POINTS,
            "curves": [[_mean_before(curve, point, last) for point in _POINTS] for curve in curves],
        }
        log(f"{side}: final loss {results[side]['final_mean']:.4f}")
    return results


def _mean_before(curve: list[float], point: float, window: int) -> float:
    end = max(1, round(len(curve) * point))
    return statistics.mean(curve[max(0, end - window) : end])


def _losses(setting: Setting, images: Tensor, texts: Tensor, seed: int, steps: int) -> list[float]:
    """Return the loss of each step, under bfloat16 autocast for every format of the weights."""
    torch.manual_seed(seed)
    model, optimizer = _build(_SMALL_MODEL, setting)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, warmup=max(1, steps // 10), total=steps)
    )
    order = torch.Generator().manual_seed(seed)
    curve = []
    for _ in range(steps):
        rows = torch.randint(0, len(images), (_BATCH,), generator=order)
        with torch.autocast("cpu", torch.bfloat16):
            features = model.encode_image(images[rows]), model.encode_text(texts[rows])
        image_features, text_features = (F.normalize(side.float(), dim=-1) for side in features)
        loss = contrastive_loss(image_features, text_features, model.logit_scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        curve.append(loss.item())
    return curve


def _pairs(data: Path) -> tuple[Tensor, Tensor]:
    """Read all photos and captions: (pairs, 3, 32, 32) uint8 and token ids, trimmed to the longest caption."""
    import numpy as np
    from PIL import Image

    images, captions = [], []
    for photo, caption in _samples(data):
        pixels = np.asarray(Image.open(io.BytesIO(photo)).convert("RGB"))
        images.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1))
        captions.append(caption)
    ids = Tokenizer(_SMALL_MODEL.context_length)(captions)
    return torch.stack(images), ids[:, : int(ids.argmax(dim=-1).max()) + 1]


def _samples(data: Path) -> Iterator[tuple[bytes, str]]:
    for path in sorted(data.glob("train-*.tar")):
        with tarfile.open(path) as tar:
            members = {member.name: member for member in tar}
            for name, member in members.items():
                text = members.get(name.replace(".jpg", ".txt"))
                if name.endswith(".jpg") and text is not None:
                    caption = tar.extractfile(text).read().decode().splitlines()[0]  # type: ignore[union-attr]
                    yield tar.extractfile(member).read(), caption  # type: ignore[union-attr]


# ── result ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def show(result: dict[str, Any]) -> None:
    """Print a result."""
    print(f"{result['date']}  {result['machine']['cpu']}, {result['machine']['threads_per_side']} threads a side\n")
    columns = ("states", "weights", "both", "of fp32", "ms/step", "extra MiB", "final loss", "spread")
    print(f"{'bytes per parameter':30}" + "".join(f"{name:>11}" for name in columns))
    steps, losses = result["step"]["sides"], result["loss"]["sides"]
    float32_bytes = steps["float32"]["state_bytes"] + steps["float32"]["weight_bytes"]
    for side, step in steps.items():
        both = step["state_bytes"] + step["weight_bytes"]
        figures = (step["state_bytes"], step["weight_bytes"], both, both / float32_bytes)
        loss = losses[side]
        print(
            f"{side:30}" + "".join(f"{figure:11.2f}" for figure in figures) + f"{step['step_ms']:11.0f}"
            f"{step['step_extra_mib']:11.0f}{loss['final_mean']:11.4f}{loss['final_spread']:11.4f}"
        )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", help="folder with train-*.tar")
    add("--rounds", type=int, default=2, help="measurements of each side's step (2)")
    add("--repeats", type=int, default=4, help="steps per measurement, of which the best counts (4)")
    add("--steps", type=int, default=120, help="steps of each training run (120)")
    add("--seeds", type=int, default=2, help="training runs of each setting (2)")
    add("--threads", type=int, default=2, help="threads of each side (2)")
    add("--side", choices=SETTINGS, help=argparse.SUPPRESS)
    add("--out", metavar="FILE", help="write the result to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
