"""Claim: the streamed loss takes at most 1/8 of the memory of dense logits at a batch of 32,768, and at most 1.3 times
their time; and a small batch, which fits into one tile, is no slower than the plain formula.

    .venv-peer/bin/python benchmarks/loss_memory.py --out benchmarks/results/NAME.json

It computes the loss and gradients of N image and N text features of width 512, in float32, on the CPU. Memory is the
peak of a separate process beyond its features. Time is measured in one process, in which the sides take turns. They are
`streamed`, lakeclip's; `dense`, figure 3 of the paper in PyTorch, with the logits computed once; and `open_clip`, its
ClipLoss, if it is installed. Dense logits at N = 32,768 need about 20 GB; `--dense-up-to` limits their size.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from common.machine import machine, peak_mib, resident_mib
from common.results import command_line, log, ratio_stats, today, write_result
from common.subprocess_side import run_side

_EMBED = 512
_LARGE = (4096, 8192, 16384, 32768)
_SMALL = (64, 256, 1024)


def main() -> None:
    """Parse the flags; measure all sides and sizes, print and write the result; or take one measurement."""
    flags = _flags()
    if flags.side:
        print(json.dumps(measure_peak(flags.side, flags.sizes[0], flags.threads)))
        return
    if flags.turns:
        print(json.dumps(seconds_in_turns(flags.turns, flags.sizes[0], flags.rounds, flags.threads)))
        return
    result = measure(flags)
    write_result(result, flags.out)
    show(result)


# ── the sides ───────────────────────────────────────────────────────────────────────────────────────────────────────


def streamed() -> Callable[..., Any]:
    """Return lakeclip's loss."""
    from lakeclip.losses import contrastive_loss

    return contrastive_loss


def dense() -> Callable[..., Any]:
    """Return the loss of the paper's figure 3."""
    import torch
    from torch.nn import functional as F

    def loss(images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        logits = scale.exp() * images @ texts.T
        labels = torch.arange(len(images))
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    return loss


def open_clip() -> Callable[..., Any]:
    """Return open_clip's ClipLoss for one process."""
    from open_clip.loss import ClipLoss

    clip_loss = ClipLoss(cache_labels=True)
    return lambda images, texts, scale: clip_loss(images, texts, scale.exp())


SIDES: dict[str, Callable[[], Callable[..., Any]]] = {side.__name__: side for side in (streamed, dense, open_clip)}


def _features(number: int) -> list[Any]:
    import torch
    from torch.nn import functional as F

    torch.manual_seed(0)
    # In place, so that creating the features does not raise the peak memory.
    features = [torch.empty(number, _EMBED).normal_() for _ in range(2)]
    with torch.no_grad():
        for side in features:
            for rows in side.split(1024):
                rows.copy_(F.normalize(rows, dim=-1))
    return [x.requires_grad_() for x in (*features, torch.tensor(math.log(1 / 0.07)))]


def measure_peak(side: str, number: int, threads: int) -> dict[str, float]:
    """Measure the peak memory of loss and gradients beyond the features, in MiB."""
    import torch

    torch.set_num_threads(threads)
    loss = SIDES[side]()
    # The first call loads libraries, which do not count.
    small = _features(64)
    torch.autograd.grad(loss(*small), small)
    inputs = _features(number)
    before = resident_mib()
    value = loss(*inputs)
    gradients = torch.autograd.grad(value, inputs)
    peak = peak_mib() - before
    return {"mib": peak, "loss": float(value.detach()), "scale_gradient": float(gradients[2])}


def seconds_in_turns(sides: list[str], number: int, rounds: int, threads: int) -> dict[str, list[float]]:
    """Time loss and gradients of each side, round by round, after one untimed round."""
    import torch

    torch.set_num_threads(threads)
    losses = {side: SIDES[side]() for side in sides}
    inputs = _features(number)
    # A small batch takes too little time to measure, so several are timed together.
    repeats = max(1, min(200, 2**26 // (number * _EMBED * 16)))
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(rounds + 1):
        for side in sides if turn % 2 == 0 else sides[::-1]:
            start = time.perf_counter()
            for _ in range(repeats):
                torch.autograd.grad(losses[side](*inputs), inputs)
            if turn:
                seconds[side].append((time.perf_counter() - start) / repeats)
    return seconds


# ── all sides ───────────────────────────────────────────────────────────────────────────────────────────────────────


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Measure memory and time at every size."""
    peer = ["open_clip"] if importlib.util.find_spec("open_clip") else []
    sizes: dict[str, Any] = {}
    for number in flags.sizes:
        sides = ["streamed", *(["dense", *peer] if number <= flags.dense_up_to else [])]
        peaks = {side: _run(number, flags, "--side", side) for side in sides} if number > max(_SMALL) else {}
        seconds = _run(number, flags, "--turns", *sides)
        sizes[str(number)] = {
            "peak": peaks,
            "seconds": seconds,
            "memory_of": {side: peaks["streamed"]["mib"] / peaks[side]["mib"] for side in list(peaks)[1:]},
            "time_of": {side: ratio_stats(seconds["streamed"], seconds[side]) for side in sides[1:]},
        }
        log(f"{number}: {json.dumps(sizes[str(number)]['memory_of'])} {json.dumps(sizes[str(number)]['time_of'])}")
    return {
        "date": today(),
        "command": command_line("loss_memory.py"),
        "machine": machine(flags.threads),
        "versions": {name: version(name) for name in ("torch", *(["open_clip_torch"] if peer else []))},
        "embed_dim": _EMBED,
        "sizes": sizes,
    }


def _run(number: int, flags: argparse.Namespace, *measurement: str) -> Any:
    arguments = ["--sizes", str(number), "--rounds", str(flags.rounds), "--threads", str(flags.threads), *measurement]
    return run_side(__file__, arguments, side=f"{' '.join(measurement)} at {number}")


def show(result: dict[str, Any]) -> None:
    """Print a result."""
    print(f"{result['date']}  {result['machine']['cpu']}, {result['machine']['threads_per_side']} threads\n")
    print(f"{'N':>6}  {'side':10}{'peak MiB':>10}{'ms':>10}   streamed relative to it: memory, time (min … max)")
    for number, size in result["sizes"].items():
        for side, seconds in size["seconds"].items():
            peak = f"{size['peak'][side]['mib']:.0f}" if side in size["peak"] else ""
            line = f"{number:>6}  {side:10}{peak:>10}{1000 * statistics.median(seconds):>10.2f}"
            if side in size["time_of"]:
                memory = f"{size['memory_of'][side]:.3f}" if size["memory_of"] else ""
                ratio = size["time_of"][side]
                line += f"   {memory:6}  {ratio['median']:.2f} ({ratio['min']:.2f} … {ratio['max']:.2f})"
            print(line)


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sizes", type=int, nargs="+", default=[*_SMALL, *_LARGE], metavar="N", help="pairs per batch")
    add("--dense-up-to", type=int, default=_LARGE[-1], metavar="N", help="largest batch for the dense sides")
    add("--rounds", type=int, default=3, help="timings of each side (3)")
    add("--threads", type=int, default=os.cpu_count() or 1, help="threads of each side (all cores)")
    add("--side", choices=SIDES, help=argparse.SUPPRESS)
    add("--turns", nargs="+", choices=SIDES, help=argparse.SUPPRESS)
    add("--out", metavar="FILE", help="write the result to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
