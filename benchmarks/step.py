"""Claim: one optimisation step of a batch of 64 with captions of real lengths takes lakeclip less time and memory than
open_clip, with the same model, PyTorch and threads: at least 1.4 times as fast with ViT-B/32 and 1.3 times with RN50,
in float32 and in bfloat16.

    .venv-peer/bin/python benchmarks/step.py --captions FILE --out benchmarks/results/NAME.json

FILE holds a caption per line. Without it, captions are random (log-normal lengths, mean 14 tokens, as for Flickr and
COCO). Each measurement is a separate process; the sides take turns. README.md in this folder says what is the same on
both sides and what is not.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from importlib.metadata import version
from typing import Any

from common.machine import machine, peak_mib
from common.results import command_line, log, ratio_stats, today, write_result
from common.subprocess_side import median_seconds, run_side

#: lakeclip's name of a model → open_clip's.
MODELS = {
    "ViT-B/32": "ViT-B-32-quickgelu",
    "ViT-B/16": "ViT-B-16-quickgelu",
    "ViT-L/14": "ViT-L-14-quickgelu",
    "RN50": "RN50-quickgelu",
    "RN101": "RN101-quickgelu",
}
#: Sets of open_clip's options that may help it on a CPU. The fastest is compared with lakeclip. `context=32` is not
#: among them, since that model cannot read longer texts.
PEER_OPTION_SETS = ("", "fused", "foreach", "channels_last", "fused,channels_last", "foreach,channels_last")

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    """Parse the flags; measure all models, print and write the result; or run one side for the main process."""
    flags = _flags()
    if flags.side:
        print(json.dumps(_side(flags)))
        return
    result = measure(flags)
    write_result(result, flags.out)
    show(result)


# ── one side, in a separate process ────────────────────────────────────────────────────────────────────────────────


def _side(flags: argparse.Namespace) -> dict[str, Any]:
    import torch
    from common.training_step import (
        caption_ids,
        counted_flops,
        lakeclip_side,
        matmul_peak,
        needed_flops,
        open_clip_side,
    )

    from lakeclip.models.zoo import model_config

    torch.set_num_threads(flags.threads)
    torch.manual_seed(0)
    bf16 = flags.precision[0] == "bf16"
    if flags.side == "peak":
        return {"flops_per_second": matmul_peak(bf16=bf16, clock=CLOCKS[flags.clock])}
    name = flags.model[0]
    config = model_config(name)
    if flags.side == "lakeclip":
        side = lakeclip_side(config, bf16=bf16, compiled=flags.compile)
    else:
        options, context = _parse_peer_options(flags.peer)
        side = open_clip_side(MODELS[name], bf16=bf16, options=options, context=context, compiled=flags.compile)
    images = side.images(flags.batch, config.image_resolution)
    batches = caption_ids(flags.captions, flags.batch, flags.steps)
    if flags.count:
        counted = counted_flops(side, images, side.texts(batches[0]))
        return {"computed": counted, "needed": needed_flops(config, batches[0]), "parameters": side.num_parameters}
    texts = [side.texts(ids) for ids in batches]
    start = time.perf_counter()
    for ids in texts[: flags.warmup]:
        side.step(images, ids)
    warm_up = time.perf_counter() - start
    clock = CLOCKS[flags.clock]
    seconds, losses = [], []
    for ids in texts:
        start = clock()
        loss = side.step(images, ids)
        seconds.append(clock() - start)
        losses.append(float(loss))
    if not all(math.isfinite(loss) for loss in losses):
        sys.exit(f"{flags.side}: the losses are not all finite: {losses}")
    return {"seconds": seconds, "warm_up_seconds": warm_up, "loss": losses[-1], "peak_mib": peak_mib()}


def _parse_peer_options(text: str) -> tuple[list[str], int | None]:
    parts = [part for part in text.split(",") if part]
    context = next((int(part.removeprefix("context=")) for part in parts if part.startswith("context=")), None)
    return [part for part in parts if "=" not in part], context


# ── both sides in turns ─────────────────────────────────────────────────────────────────────────────────────────────


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Measure every model in every precision."""
    from common.training_step import caption_ids

    peaks = {precision: _run(flags, "peak", "RN50", precision)["flops_per_second"] for precision in flags.precision}
    load = os.getloadavg()[0]
    cells = []
    for model in flags.model:
        for precision in flags.precision:
            cells.append(_cell(flags, model, precision, peaks[precision]))
    lengths = [
        int(ids.argmax()) + 1 for batch in caption_ids(flags.captions, flags.batch, flags.steps) for ids in batch
    ]
    return {
        "date": today(),
        "command": command_line("step.py"),
        "machine": machine(flags.threads),
        "load_before": round(load, 2),
        "versions": {name: version(name) for name in ("torch", "lightning", "open_clip_torch")},
        "batch": flags.batch,
        "captions": "random: log-normal lengths" if flags.captions is None else "from a file",
        "tokens_a_caption": round(statistics.mean(lengths), 2),
        "compiled": flags.compile,
        "clock": flags.clock,
        "matmul_peak_gflops": {precision: round(peak / 1e9, 1) for precision, peak in peaks.items()},
        "cells": cells,
    }


def _cell(flags: argparse.Namespace, model: str, precision: str, peak: float) -> dict[str, Any]:
    peer, tried = flags.peer, {}
    if peer == "fastest":
        for options in PEER_OPTION_SETS:
            if "channels_last" not in options or model.startswith("RN"):
                name = options or "as it is"
                tried[name] = median_seconds(_run(flags, "open_clip", model, precision, peer=options))
                log(f"{model} {precision}: open_clip {name}: {tried[name]:.2f} s")
        peer = min(tried, key=lambda name: tried[name]).replace("as it is", "")
    if flags.peer_context:
        peer = f"{peer},context={flags.peer_context}"
    sides = ("lakeclip", "open_clip") if flags.sides == "both" else (flags.sides,)
    counts = {side: _run(flags, side, model, precision, "--count", peer=peer) for side in sides}
    if len({count["parameters"] for count in counts.values()}) > 1 and not flags.peer_context:
        sys.exit(f"the models differ in size: {counts}")
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for turn in range(flags.rounds):
        for side in sides if turn % 2 == 0 else sides[::-1]:
            rounds[side].append(_run(flags, side, model, precision, peer=peer))
        log(
            f"{model} {precision}, round {turn + 1}: "
            + ", ".join(f"{side} {median_seconds(runs[-1]):.2f} s" for side, runs in rounds.items())
        )
    cell: dict[str, Any] = {"model": model, "precision": precision, "open_clip_options": peer or "none"}
    cell |= {"tried_seconds_a_step": tried, "parameters": counts[sides[0]]["parameters"]}
    for side in sides:
        seconds = statistics.median(map(median_seconds, rounds[side]))
        cell[side] = {
            "samples_per_second": flags.batch / seconds,
            "seconds_a_step": [median_seconds(run) for run in rounds[side]],
            "warm_up_seconds": [run["warm_up_seconds"] for run in rounds[side]],
            "peak_mib": max(run["peak_mib"] for run in rounds[side]),
            "gflop_computed": counts[side]["computed"] / 1e9,
            "utilisation": counts[side]["computed"] / seconds / peak,
            "mfu": counts[side]["needed"] / seconds / peak,
        }
    if len(sides) == 2:
        ours, theirs = (cell[side]["seconds_a_step"] for side in sides)
        cell["against_open_clip"] = ratio_stats(theirs, ours)
        cell["memory_of_open_clip"] = cell["lakeclip"]["peak_mib"] / cell["open_clip"]["peak_mib"]
    return cell


def _run(
    flags: argparse.Namespace, side: str, model: str, precision: str, *more: str, peer: str = ""
) -> dict[str, Any]:
    arguments = ["--side", side, "--model", model, "--precision", precision, "--peer", peer]
    arguments += ["--threads", str(flags.threads)]
    arguments += ["--batch", str(flags.batch), "--steps", str(flags.steps), "--warmup", str(flags.warmup), *more]
    arguments += ["--clock", flags.clock]
    arguments += ["--captions", flags.captions] if flags.captions else []
    arguments += ["--compile"] if flags.compile and not more else []
    return run_side(__file__, arguments, side=side, threads=flags.threads)


def show(result: dict[str, Any]) -> None:
    """Print a result."""
    threads = result["machine"]["threads_per_side"]
    print(f"{result['date']}  {result['machine']['cpu']}, {threads} threads a side, batch {result['batch']}")
    print(f"{result['tokens_a_caption']} tokens a caption; matrix products reach", end=" ")
    print(", ".join(f"{peak:.0f} GFLOP/s in {name}" for name, peak in result["matmul_peak_gflops"].items()) + "\n")
    print(f"{'':16}{'side':12}{'samples/s':>10}{'peak MiB':>10}{'of peak':>9}{'MFU':>6}{'× open_clip':>14}")
    for cell in result["cells"]:
        for side in ("lakeclip", "open_clip"):
            if side not in cell:
                continue
            row, ratio = cell[side], cell.get("against_open_clip")
            label = f"{cell['model']} {cell['precision']}"
            print(f"{label:16}{side:12}{row['samples_per_second']:10.1f}{row['peak_mib']:10.0f}", end="")
            print(f"{row['utilisation']:9.0%}{row['mfu']:6.0%}", end="")
            shown = side == "lakeclip" and ratio
            print(f"{ratio['median']:8.2f} ({ratio['min']:.2f}–{ratio['max']:.2f})" if shown else "")
        if "open_clip" in cell:
            tried = ", ".join(f"{options} {seconds:.2f} s" for options, seconds in cell["tried_seconds_a_step"].items())
            print(f"{'':16}open_clip with: {cell['open_clip_options']}" + (f" (tried: {tried})" if tried else ""))


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", nargs="+", choices=MODELS, default=["ViT-B/32", "RN50"], help="models to measure (ViT-B/32 RN50)")
    add("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"], help="bf16 is autocast (both)")
    add("--captions", metavar="FILE", help="file with a caption per line; random by default")
    add("--batch", type=int, default=64, help="pairs per step (64)")
    add("--steps", type=int, default=4, help="timed steps per measurement, of which the median counts (4)")
    add("--warmup", type=int, default=2, help="untimed steps before them, at most --steps (2)")
    add("--rounds", type=int, default=5, help="measurements of each side (5)")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of each side (all cores)")
    add(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: CPU time of the process, for a rough look on a busy machine",
    )
    add("--compile", action="store_true", help="torch.compile for open_clip's model and lakeclip's image tower")
    add("--sides", choices=("both", "lakeclip", "open_clip"), default="both", help="measure one side alone")
    add(
        "--peer",
        default="fastest",
        metavar="OPTIONS",
        help="open_clip's options, from fused,foreach,channels_last; '' for none; by default several are tried and the "
        "fastest is used",
    )
    add("--peer-context", type=int, metavar="N", help="open_clip's --force-context-length, which changes the model")
    add("--side", choices=("lakeclip", "open_clip", "peak"), help=argparse.SUPPRESS)
    add("--count", action="store_true", help=argparse.SUPPRESS)
    add("--out", metavar="FILE", help="write the result to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
