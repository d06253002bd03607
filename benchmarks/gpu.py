"""The claim: on one GPU, in bfloat16, an optimisation step of ViT-B/32, B/16 and L/14 is at least 1.5 times as fast as
open_clip's, compiled or not, and uses at least half of the card's stated peak.

    benchmarks/gpu.sh --out benchmarks/results/NAME.json

It needs PyTorch and Lightning; images are random and captions drawn (log-normal lengths, mean 14 tokens, as Flickr's
and COCO's are). Where open_clip cannot be imported, lakeclip alone is measured. Each measurement is a process of its
own; the sides take turns. `--rehearse` does it all on a CPU with a tiny model, to see that it runs.

It has not been measured on a GPU yet: the claim is a target.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import types
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from machine import machine, peak_mib

try:
    import jaxtyping  # noqa: F401
except ImportError:
    # lakeclip's shapes are comments to Python, which never evaluates them: any names will do.
    _shapes = types.ModuleType("jaxtyping")
    for _name_of_kind in ("Bool", "Float", "Float32", "Float64", "Int", "Int32", "Int64", "Num", "UInt8"):
        setattr(_shapes, _name_of_kind, object)
    sys.modules["jaxtyping"] = _shapes

#: lakeclip's name → open_clip's, and pairs a step on a card of 80 GB; halved until they fit.
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
#: A part of the card's name → its makers' figure for dense bfloat16, in TFLOP/s. The first that fits counts.
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
    """Parse the flags; measure every model, print and write the result; or be one side."""
    flags = _flags()
    if flags.side:
        print(json.dumps(_side(flags)))
        return
    show(measure(flags))


# ── one side, in a process of its own ───────────────────────────────────────────────────────────────────────────────


def _side(flags: argparse.Namespace) -> dict[str, Any]:
    import torch
    from optimisation_step import counted_flops, drawn_ids, lakeclip, matmul_peak, needed_flops, open_clip, settle

    device = flags.device
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    else:
        torch.set_num_threads(1)
    torch.manual_seed(0)
    if flags.side == "card":
        size = 8192 if device == "cuda" else 256
        found: dict[str, Any] = {"open_clip": _importable("open_clip")}
        found |= {"matmul": matmul_peak(bf16=True, clock=time.perf_counter, device=device, size=size)}
        if device == "cuda":
            card = torch.cuda.get_device_properties(0)
            found |= {"name": card.name, "memory_gib": card.total_memory / 2**30}
            found["capability"] = f"{card.major}.{card.minor}"
        return found
    config = _config(flags.model[0])
    try:
        if flags.side == "lakeclip":
            side = lakeclip(config, bf16=True, compiled=flags.compiled, device=device)
        else:
            _make_known(flags.model[0])
            options = [word for word in flags.peer.split(",") if word]
            name = MODELS[flags.model[0]][0]
            side = open_clip(name, bf16=True, options=options, compiled=flags.compiled, device=device)
        images = side.images(flags.batch, config.image_resolution)
        drawn = drawn_ids(flags.batch, flags.steps, vocabulary=config.vocab_size)
        texts = [side.texts(ids) for ids in drawn]
        if flags.count:
            found = {"needed": needed_flops(config, drawn[0]), "parameters": side.parameters}
            return found | {"computed": counted_flops(side, images, texts[0])}
        began = time.perf_counter()
        # The lengths differ from batch to batch, and a compiler may start anew at the second and third.
        for ids in texts[: flags.warmup]:
            side.step(images, ids)
        settle(device)
        warm = time.perf_counter() - began
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds, loss = _timed(side, images, texts, device)
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}
    if not math.isfinite(loss):
        sys.exit(f"{flags.side}: the loss is {loss}")
    peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else peak_mib()
    return {"seconds": seconds, "warm_up_seconds": warm, "loss": loss, "peak_mib": peak}


def _timed(side: Any, images: Any, texts: list[Any], device: str) -> tuple[list[float], float]:
    """Seconds of each step, from its start to the next one's on the device; and the last loss."""
    import torch

    if device != "cuda":
        seconds = []
        for ids in texts:
            began = time.perf_counter()
            loss = side.step(images, ids)
            seconds.append(time.perf_counter() - began)
        return seconds, float(loss)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(texts) + 1)]
    marks[0].record()
    for ids, mark in zip(texts, marks[1:], strict=True):
        loss = side.step(images, ids)
        mark.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in itertools.pairwise(marks)], float(loss)


def _importable(module: str) -> bool:
    """Whether it and what it needs are there."""
    try:
        import_module(module)
    except ImportError:
        return False
    return True


def _config(name: str) -> Any:
    """Read without lakeclip's own reader, which needs more than PyTorch and Lightning bring."""
    import yaml

    import lakeclip
    from lakeclip.config.schema import ModelConfig

    if name == "tiny":
        return ModelConfig(**TINY)  # type: ignore[arg-type]
    file = Path(lakeclip.__file__).parent / "models" / "configs" / "ViT.yaml"
    return ModelConfig(**yaml.safe_load(file.read_text(encoding="utf-8"))[name])


def _make_known(name: str) -> None:
    """Tell open_clip of the tiny model; the others it knows."""
    if name != "tiny":
        return
    import open_clip

    vision = {"image_size": TINY["image_resolution"], "layers": TINY["vision_layers"], "width": TINY["vision_width"]}
    vision |= {"patch_size": TINY["vision_patch_size"], "head_width": 64}
    text = {"context_length": TINY["context_length"], "vocab_size": TINY["vocab_size"]}
    text |= {word: TINY[f"transformer_{word}"] for word in ("width", "heads", "layers")}
    sizes = {"embed_dim": TINY["embed_dim"], "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"{MODELS[name][0]}.json").write_text(json.dumps(sizes), encoding="utf-8")
        open_clip.add_model_config(Path(folder))


# ── both sides in turns ─────────────────────────────────────────────────────────────────────────────────────────────


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Every model; what there is so far is written after each."""
    card = _run(flags, "card", flags.model[0], flags.batch or 1)
    stated = flags.peak_tflops or next(
        (peak for part, peak in STATED_PEAK.items() if part in card.get("name", "")), None
    )
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["benchmarks/gpu.sh", *_shown(sys.argv[1:])]),
        "rehearsal": flags.rehearse,
        "machine": machine(len(os.sched_getaffinity(0))),
        "card": {name: value for name, value in card.items() if name not in ("matmul", "open_clip")},
        "stated_peak_tflops": stated,
        "matmul_peak_tflops": card["matmul"] / 1e12,
        "versions": {name: _version(name) for name in ("torch", "triton", "lightning", "open_clip_torch")},
        "captions": "drawn: log-normal lengths",
        "open_clip_options": flags.peer,
        "models": [],
    }
    sides = ["lakeclip"]
    if card["open_clip"]:
        sides.append("open_clip")
    else:
        _say("open_clip cannot be imported: lakeclip alone is measured")
    peak = stated * 1e12 if stated else card["matmul"]
    for model in flags.model:
        result["models"].append(_cell(flags, model, sides, card, peak))
        if flags.out:
            text = json.dumps(result, indent=2, ensure_ascii=False)
            Path(flags.out).write_text(text + "\n", encoding="utf-8")
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
            if any("out_of_memory" in found for found in counts.values())
            else _rounds(flags, model, batch, variants)
        )
        if rounds is not None:
            break
        batch //= 2
        if batch < 1:
            sys.exit(f"{model} does not fit this card at all")
        _say(f"{model}: out of memory; {batch} pairs a step now")
    if len({count["parameters"] for count in counts.values()}) > 1:
        sys.exit(f"the models differ in size: {counts}")
    cell: dict[str, Any] = {"model": model, "batch": batch, "parameters": counts["lakeclip"]["parameters"], "sides": {}}
    for (side, compiled), run in rounds.items():
        seconds = statistics.median(map(_median, run))
        cell["sides"][_name(side, compiled)] = {
            "samples_per_second": batch / seconds,
            "seconds_a_step": [_median(found) for found in run],
            "warm_up_seconds": [found["warm_up_seconds"] for found in run],
            "peak_mib": max(found["peak_mib"] for found in run),
            "tflop_computed": counts[side]["computed"] / 1e12,
            "utilisation": counts[side]["computed"] / seconds / peak,
            "mfu": counts[side]["needed"] / seconds / peak,
        }
    if len(sides) == 2:
        cell["against_open_clip"] = {}
        for compiled in sorted({compiled for _, compiled in variants}):
            ours, theirs = (cell["sides"][_name(side, compiled)]["seconds_a_step"] for side in sides)
            ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
            found = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
            cell["against_open_clip"]["compiled" if compiled else "as it is"] = found
    return cell


def _rounds(
    flags: argparse.Namespace, model: str, batch: int, variants: list[tuple[str, bool]]
) -> dict[tuple[str, bool], list[dict[str, Any]]] | None:
    """Every variant in turns; None if one has too little memory."""
    rounds: dict[tuple[str, bool], list[dict[str, Any]]] = {variant: [] for variant in variants}
    for turn in range(flags.rounds):
        for side, compiled in variants if turn % 2 == 0 else variants[::-1]:
            found = _run(flags, side, model, batch, *(["--compiled"] if compiled else []))
            if "out_of_memory" in found:
                return None
            rounds[side, compiled].append(found)
            _say(f"{model}, round {turn + 1}: {_name(side, compiled)} {batch / _median(found):.0f} samples/s")
    return rounds


def _run(flags: argparse.Namespace, side: str, model: str, batch: int, *more: str) -> dict[str, Any]:
    words = ["--side", side, "--model", model, "--batch", str(batch), "--device", flags.device, "--peer", flags.peer]
    words += ["--steps", str(flags.steps), "--warmup", str(flags.warmup), *more]
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _name(side: str, compiled: bool) -> str:
    return f"{side}, compiled" if compiled else side


def _median(found: dict[str, Any]) -> float:
    return statistics.median(found["seconds"])


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _shown(words: list[str]) -> list[str]:
    """The command without this machine's folders."""
    return ["FILE" if before == "--out" else word for before, word in zip(["", *words], words, strict=False)]


def show(result: dict[str, Any]) -> None:
    """Print a result."""
    card, stated = result["card"].get("name", "a CPU, as a rehearsal"), result["stated_peak_tflops"]
    said = f"stated peak {stated:.0f} TFLOP/s" if stated else "no stated peak: of the measured one"
    print(f"{result['date']}  {card}; {said}, matrix products reach {result['matmul_peak_tflops']:.1f}\n")
    print(f"{'model':10}{'batch':>6}  {'side':22}{'samples/s':>10}{'peak MiB':>10}{'of peak':>9}{'MFU':>6}")
    for cell in result["models"]:
        for name, row in cell["sides"].items():
            print(f"{cell['model']:10}{cell['batch']:6}  {name:22}{row['samples_per_second']:10.0f}", end="")
            print(f"{row['peak_mib']:10.0f}{row['utilisation']:9.0%}{row['mfu']:6.0%}")
        for how, ratio in cell.get("against_open_clip", {}).items():
            print(f"{'':18}× open_clip, {how}: {ratio['median']:.2f} ({ratio['min']:.2f}–{ratio['max']:.2f})")


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", nargs="+", choices=MODELS, default=["ViT-B/32", "ViT-B/16", "ViT-L/14"], help="(all three)")
    add("--batch", type=int, help="pairs a step; by default as many as fit of 2048, 1024 and 512, halved")
    add("--steps", type=int, default=20, help="timed in each measurement (20); their median counts")
    add("--warmup", type=int, default=6, help="steps before them (6)")
    add("--rounds", type=int, default=3, help="times that each side is measured (3)")
    add("--no-compile", dest="compile", action="store_false", help="leave out both sides' compiled steps")
    add("--peer", default="fused", metavar="OPTIONS", help="open_clip's, of fused,foreach,channels_last (fused)")
    add("--peak-tflops", type=float, metavar="N", help="the card's stated peak in dense bfloat16, if it is not known")
    add("--rehearse", action="store_true", help="a tiny model on the CPU, two steps: only to see that it runs")
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
            parser.error("there is no GPU that PyTorch can use; --rehearse runs without one")
    return flags


if __name__ == "__main__":
    main()
