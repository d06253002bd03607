"""Claim: on one GPU in bfloat16, an optimisation step of ViT-B/32, B/16 and L/14 is at least 1.5 times as fast as
open_clip's, compiled or not, and reaches at least half of the GPU's stated peak.

    benchmarks/gpu.sh --out benchmarks/results/NAME.json

It needs PyTorch, Lightning and PyYAML. Images and captions are random (log-normal lengths, mean 14 tokens, as for
Flickr and COCO). If open_clip cannot be imported, only lakeclip is measured. Each measurement is a separate process;
the sides take turns. `--rehearse` runs everything on a CPU with a tiny model, to check that it works.

The claim is a target: it has not been measured on a GPU yet.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
import types
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from common.machine import machine, peak_mib
from common.results import command_line, log, ratio_stats, today, write_result
from common.subprocess_side import median_seconds, run_side

try:
    import jaxtyping  # noqa: F401
except ImportError:
    # lakeclip's shape annotations are never evaluated, so any names will do.
    _shapes = types.ModuleType("jaxtyping")
    for _type_name in ("Bool", "Float", "Float32", "Float64", "Int", "Int32", "Int64", "Num", "UInt8"):
        setattr(_shapes, _type_name, object)
    sys.modules["jaxtyping"] = _shapes

#: lakeclip's model name → open_clip's, and pairs per step on a GPU with 80 GB; halved until they fit.
MODELS = {
    "ViT-B/32": ("ViT-B-32-quickgelu", 2048),
    "ViT-B/16": ("ViT-B-16-quickgelu", 1024),
    "ViT-L/14": ("ViT-L-14-quickgelu", 512),
    "tiny": ("lakeclip-tiny", 4),
}
TINY = {
    "embed_dim": 32,
    "image_resolution": 32,
    "vision_layers": 2,
    "vision_width": 64,
    "vision_patch_size": 8,
    "context_length": 77,
    "vocab_size": 512,
    "transformer_width": 64,
    "transformer_heads": 2,
    "transformer_layers": 2,
}
#: Part of the GPU's name → the vendor's figure for dense bfloat16 in TFLOP/s. The first match counts.
STATED_PEAK = {
    "B200": 2250.0,
    "H200": 989.0,
    "GH200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "H800": 989.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "A10": 125.0,
    "A6000": 155.0,
    "4090": 165.0,
    "3090": 71.0,
}


def main() -> None:
    """Parse the flags; measure all models, print and write the result; or run one side for the main process."""
    flags = _flags()
    if flags.side:
        print(json.dumps(_side(flags)))
        return
    show(measure(flags))


# ── one side, in a separate process ────────────────────────────────────────────────────────────────────────────────


def _side(flags: argparse.Namespace) -> dict[str, Any]:
    import torch
    from common.training_step import (
        counted_flops,
        lakeclip_side,
        matmul_peak,
        needed_flops,
        open_clip_side,
        random_ids,
        synchronize,
    )

    device = flags.device
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    else:
        torch.set_num_threads(1)
    torch.manual_seed(0)
    if flags.side == "card":
        size = 8192 if device == "cuda" else 256
        card: dict[str, Any] = {"open_clip": _can_import("open_clip")}
        card["matmul"] = matmul_peak(bf16=True, clock=time.perf_counter, device=device, size=size)
        if device == "cuda":
            properties = torch.cuda.get_device_properties(0)
            card |= {"name": properties.name, "memory_gib": properties.total_memory / 2**30}
            card["capability"] = f"{properties.major}.{properties.minor}"
        return card
    config = _config(flags.model[0])
    try:
        if flags.side == "lakeclip":
            side = lakeclip_side(config, bf16=True, compiled=flags.compiled, device=device)
        else:
            _register_tiny_model(flags.model[0])
            options = [option for option in flags.peer.split(",") if option]
            name = MODELS[flags.model[0]][0]
            side = open_clip_side(name, bf16=True, options=options, compiled=flags.compiled, device=device)
        images = side.images(flags.batch, config.image_resolution)
        batches = random_ids(flags.batch, flags.steps, vocabulary=config.vocab_size)
        texts = [side.texts(ids) for ids in batches]
        if flags.count:
            counts = {"needed": needed_flops(config, batches[0]), "parameters": side.num_parameters}
            return counts | {"computed": counted_flops(side, images, texts[0])}
        start = time.perf_counter()
        # Lengths differ from batch to batch, so a compiler may compile again for the second and third.
        for ids in texts[: flags.warmup]:
            side.step(images, ids)
        synchronize(device)
        warm_up = time.perf_counter() - start
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds, loss = _timed(side, images, texts, device)
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}
    if not math.isfinite(loss):
        sys.exit(f"{flags.side}: the loss is {loss}")
    peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else peak_mib()
    return {"seconds": seconds, "warm_up_seconds": warm_up, "loss": loss, "peak_mib": peak}


def _timed(side: Any, images: Any, texts: list[Any], device: str) -> tuple[list[float], float]:
    """Return the seconds between the starts of consecutive steps on the device, and the last loss."""
    import torch

    if device != "cuda":
        seconds = []
        for ids in texts:
            start = time.perf_counter()
            loss = side.step(images, ids)
            seconds.append(time.perf_counter() - start)
        return seconds, float(loss)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(texts) + 1)]
    marks[0].record()
    for ids, mark in zip(texts, marks[1:], strict=True):
        loss = side.step(images, ids)
        mark.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in itertools.pairwise(marks)], float(loss)


def _can_import(module: str) -> bool:
    """Return whether a module and its dependencies can be imported."""
    try:
        import_module(module)
    except ImportError:
        return False
    return True


def _config(name: str) -> Any:
    """Read a model configuration without lakeclip's own reader, which needs more than PyTorch and Lightning."""
    import yaml

    import lakeclip
    from lakeclip.config.schema import ModelConfig

    if name == "tiny":
        return ModelConfig(**TINY)  # type: ignore[arg-type]
    file = Path(lakeclip.__file__).parent / "models" / "configs" / "ViT.yaml"
    return ModelConfig(**yaml.safe_load(file.read_text(encoding="utf-8"))[name])


def _register_tiny_model(name: str) -> None:
    """Register the tiny model with open_clip, which has the other ones."""
    if name != "tiny":
        return
    import open_clip

    vision = {"image_size": TINY["image_resolution"], "layers": TINY["vision_layers"], "width": TINY["vision_width"]}
    vision |= {"patch_size": TINY["vision_patch_size"], "head_width": 64}
    text = {"context_length": TINY["context_length"], "vocab_size": TINY["vocab_size"]}
    text |= {name: TINY[f"transformer_{name}"] for name in ("width", "heads", "layers")}
    sizes = {"embed_dim": TINY["embed_dim"], "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"{MODELS[name][0]}.json").write_text(json.dumps(sizes), encoding="utf-8")
        open_clip.add_model_config(Path(folder))


# ── both sides in turns ─────────────────────────────────────────────────────────────────────────────────────────────


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Measure every model, and write the result so far after each."""
    card = _run(flags, "card", flags.model[0], flags.batch or 1)
    stated = flags.peak_tflops or next(
        (peak for part, peak in STATED_PEAK.items() if part in card.get("name", "")), None
    )
    result: dict[str, Any] = {
        "date": today(),
        "command": command_line("gpu.sh"),
        "rehearsal": flags.rehearse,
        "machine": machine(len(os.sched_getaffinity(0))),
        "card": {name: value for name, value in card.items() if name not in ("matmul", "open_clip")},
        "stated_peak_tflops": stated,
        "matmul_peak_tflops": card["matmul"] / 1e12,
        "versions": {name: _version(name) for name in ("torch", "triton", "lightning", "open_clip_torch")},
        "captions": "random: log-normal lengths",
        "open_clip_options": flags.peer,
        "models": [],
    }
    sides = ["lakeclip"]
    if card["open_clip"]:
        sides.append("open_clip")
    else:
        log("open_clip cannot be imported: only lakeclip is measured")
    peak = stated * 1e12 if stated else card["matmul"]
    for model in flags.model:
        result["models"].append(_cell(flags, model, sides, card, peak))
        write_result(result, flags.out)
    return result


def _cell(flags: argparse.Namespace, model: str, sides: list[str], card: dict[str, Any], peak: float) -> dict[str, Any]:
    batch = flags.batch or MODELS[model][1]
    if not flags.batch:
        for _ in range(max(0, math.ceil(math.log2(80 / card.get("memory_gib", 80) - 0.1)))):
            batch //= 2
    variants = [(side, compiled) for compiled in ((False, True) if flags.compile else (False,)) for side in sides]
    while True:
        counts = {side: _run(flags, side, model, batch, "--count") for side in sides}
        rounds = (
            None
            if any("out_of_memory" in count for count in counts.values())
            else _rounds(flags, model, batch, variants)
        )
        if rounds is not None:
            break
        batch //= 2
        if batch < 1:
            sys.exit(f"{model} does not fit into the GPU's memory, even with one pair per step")
        log(f"{model}: out of memory; trying {batch} pairs per step")
    if len({count["parameters"] for count in counts.values()}) > 1:
        sys.exit(f"the sides' models have different numbers of parameters: {counts}")
    cell: dict[str, Any] = {"model": model, "batch": batch, "parameters": counts["lakeclip"]["parameters"], "sides": {}}
    for (side, compiled), runs in rounds.items():
        seconds = statistics.median(map(median_seconds, runs))
        cell["sides"][_name(side, compiled)] = {
            "samples_per_second": batch / seconds,
            "seconds_a_step": [median_seconds(run) for run in runs],
            "warm_up_seconds": [run["warm_up_seconds"] for run in runs],
            "peak_mib": max(run["peak_mib"] for run in runs),
            "tflop_computed": counts[side]["computed"] / 1e12,
            "utilisation": counts[side]["computed"] / seconds / peak,
            "mfu": counts[side]["needed"] / seconds / peak,
        }
    if len(sides) == 2:
        cell["against_open_clip"] = {}
        for compiled in sorted({compiled for _, compiled in variants}):
            ours, theirs = (cell["sides"][_name(side, compiled)]["seconds_a_step"] for side in sides)
            cell["against_open_clip"]["compiled" if compiled else "as it is"] = ratio_stats(theirs, ours)
    return cell


def _rounds(
    flags: argparse.Namespace, model: str, batch: int, variants: list[tuple[str, bool]]
) -> dict[tuple[str, bool], list[dict[str, Any]]] | None:
    """Measure every variant in turns; return None if one runs out of memory."""
    rounds: dict[tuple[str, bool], list[dict[str, Any]]] = {variant: [] for variant in variants}
    for turn in range(flags.rounds):
        for side, compiled in variants if turn % 2 == 0 else variants[::-1]:
            run = _run(flags, side, model, batch, *(["--compiled"] if compiled else []))
            if "out_of_memory" in run:
                return None
            rounds[side, compiled].append(run)
            log(f"{model}, round {turn + 1}: {_name(side, compiled)} {batch / median_seconds(run):.0f} samples/s")
    return rounds


def _run(flags: argparse.Namespace, side: str, model: str, batch: int, *more: str) -> dict[str, Any]:
    arguments = ["--side", side, "--model", model, "--batch", str(batch), "--device", flags.device]
    arguments += ["--peer", flags.peer, "--steps", str(flags.steps), "--warmup", str(flags.warmup), *more]
    return run_side(__file__, arguments, side=side)


def _name(side: str, compiled: bool) -> str:
    return f"{side}, compiled" if compiled else side


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def show(result: dict[str, Any]) -> None:
    """Print a result."""
    card, stated = result["card"].get("name", "CPU (rehearsal)"), result["stated_peak_tflops"]
    peak = f"stated peak {stated:.0f} TFLOP/s" if stated else "no stated peak, so MFU is of the measured one"
    print(f"{result['date']}  {card}; {peak}, matrix products reach {result['matmul_peak_tflops']:.1f}\n")
    print(f"{'model':10}{'batch':>6}  {'side':22}{'samples/s':>10}{'peak MiB':>10}{'of peak':>9}{'MFU':>6}")
    for cell in result["models"]:
        for name, row in cell["sides"].items():
            print(f"{cell['model']:10}{cell['batch']:6}  {name:22}{row['samples_per_second']:10.0f}", end="")
            print(f"{row['peak_mib']:10.0f}{row['utilisation']:9.0%}{row['mfu']:6.0%}")
        for variant, ratio in cell.get("against_open_clip", {}).items():
            print(f"{'':18}× open_clip, {variant}: {ratio['median']:.2f} ({ratio['min']:.2f}–{ratio['max']:.2f})")


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--model",
        nargs="+",
        choices=MODELS,
        default=["ViT-B/32", "ViT-B/16", "ViT-L/14"],
        help="models to measure (all three)",
    )
    add("--batch", type=int, help="pairs per step; by default 2048, 1024 or 512, halved until they fit")
    add("--steps", type=int, default=20, help="timed steps per measurement, of which the median counts (20)")
    add("--warmup", type=int, default=6, help="untimed steps before them (6)")
    add("--rounds", type=int, default=3, help="measurements of each side (3)")
    add("--no-compile", dest="compile", action="store_false", help="skip the compiled steps of both sides")
    add("--peer", default="fused", metavar="OPTIONS", help="open_clip's, from fused,foreach,channels_last (fused)")
    add("--peak-tflops", type=float, metavar="N", help="the GPU's stated peak for dense bfloat16, if unknown")
    add("--rehearse", action="store_true", help="two steps of a tiny model on the CPU, as a check")
    add("--device", choices=("cuda", "cpu"), default="cuda", help=argparse.SUPPRESS)
    add("--side", choices=("lakeclip", "open_clip", "card"), help=argparse.SUPPRESS)
    add("--compiled", action="store_true", help=argparse.SUPPRESS)
    add("--count", action="store_true", help=argparse.SUPPRESS)
    add("--out", metavar="FILE", help="write the result to this JSON file")
    flags = parser.parse_args()
    if flags.rehearse:
        flags.model, flags.batch, flags.steps, flags.warmup, flags.rounds = ["tiny"], 4, 2, 1, 1
        flags.device, flags.compile = "cpu", False
    if flags.side is None and flags.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.error("PyTorch finds no GPU; --rehearse runs without one")
    return flags


if __name__ == "__main__":
    main()
