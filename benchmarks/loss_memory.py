"""The claim: the streamed loss takes at most 1/8 of the memory of dense logits at a batch of 32,768, and at most 1.3
times their time; and a small batch, which is one tile, is no slower than the plain formula.

    .venv-peer/bin/python benchmarks/loss_memory.py --out benchmarks/results/NAME.json

Loss and gradients of N image and N text features of width 512, in float32, on the CPU. Memory is the peak of a process
of its own beyond what it held with the features made. Time is of one process, in which the sides take turns. They are
`streamed`, ours; `dense`, figure 3 of the paper in PyTorch, its logits computed once; and `open_clip`, its ClipLoss,
where it is installed. Dense at N = 32,768 needs some 20 GB: `--dense-up-to` says how far it goes.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from machine import machine, peak_mib

_EMBED = 512
_LARGE = (4096, 8192, 16384, 32768)
_SMALL = (64, 256, 1024)


def main() -> None:
    """Parse the flags; measure every side at every size, print and write the result; or be one measurement."""
    flags = _flags()
    if flags.side:
        print(json.dumps(one_peak(flags.side, flags.sizes[0], flags.threads)))
        return
    if flags.turns:
        print(json.dumps(seconds_in_turns(flags.turns, flags.sizes[0], flags.rounds, flags.threads)))
        return
    result = measure(flags)
    if flags.out:
        Path(flags.out).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    show(result)


# ── the sides ───────────────────────────────────────────────────────────────────────────────────────────────────────


def streamed() -> Callable[..., Any]:
    """lakeclip's."""
    from lakeclip.losses import contrastive_loss

    return contrastive_loss


def dense() -> Callable[..., Any]:
    """Figure 3 of the paper."""
    import torch
    from torch.nn import functional as F

    def loss(images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        logits = scale.exp() * images @ texts.T
        own = torch.arange(len(images))
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    return loss


def open_clip() -> Callable[..., Any]:
    """open_clip's ClipLoss, of one process."""
    from open_clip.loss import ClipLoss

    theirs = ClipLoss(cache_labels=True)
    return lambda images, texts, scale: theirs(images, texts, scale.exp())


SIDES: dict[str, Callable[[], Callable[..., Any]]] = {side.__name__: side for side in (streamed, dense, open_clip)}


def _features(number: int) -> list[Any]:
    import torch
    from torch.nn import functional as F

    torch.manual_seed(0)
    # Noise in place: what makes the features must not raise the peak that the loss is measured by.
    features = [torch.empty(number, _EMBED).normal_() for _ in range(2)]
    with torch.no_grad():
        for side in features:
            for rows in side.split(1024):
                rows.copy_(F.normalize(rows, dim=-1))
    return [x.requires_grad_() for x in (*features, torch.tensor(math.log(1 / 0.07)))]


def one_peak(side: str, number: int, threads: int) -> dict[str, float]:
    """Peak memory of loss and gradients beyond the features, in MiB."""
    import torch

    torch.set_num_threads(threads)
    loss = SIDES[side]()
    # What is loaded on the first call is no part of the loss.
    small = _features(64)
    torch.autograd.grad(loss(*small), small)
    inputs = _features(number)
    before = _resident_mib()
    value = loss(*inputs)
    gradients = torch.autograd.grad(value, inputs)
    peak = peak_mib() - before
    return {"mib": peak, "loss": float(value.detach()), "scale_gradient": float(gradients[2])}


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def seconds_in_turns(sides: list[str], number: int, rounds: int, threads: int) -> dict[str, list[float]]:
    """Seconds of loss and gradients of each side, round by round, after one round that does not count."""
    import torch

    torch.set_num_threads(threads)
    losses = {side: SIDES[side]() for side in sides}
    inputs = _features(number)
    # A small batch takes less than the clock and the machine's moods can tell: several in a row.
    repeats = max(1, min(200, 2**26 // (number * _EMBED * 16)))
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(rounds + 1):
        for side in sides if turn % 2 == 0 else sides[::-1]:
            began = time.perf_counter()
            for _ in range(repeats):
                torch.autograd.grad(losses[side](*inputs), inputs)
            if turn:
                seconds[side].append((time.perf_counter() - began) / repeats)
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
            "time_of": {side: _ratio(seconds["streamed"], seconds[side]) for side in sides[1:]},
        }
        _say(f"{number}: {json.dumps(sizes[str(number)]['memory_of'])} {json.dumps(sizes[str(number)]['time_of'])}")
    return {
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", "benchmarks/loss_memory.py", *_shown(sys.argv[1:])]),
        "machine": machine(flags.threads),
        "versions": {name: version(name) for name in ("torch", *(["open_clip_torch"] if peer else []))},
        "embed_dim": _EMBED,
        "sizes": sizes,
    }


def _run(number: int, flags: argparse.Namespace, *what: str) -> Any:
    command = [sys.executable, __file__, "--sizes", str(number), "--rounds", str(flags.rounds)]
    command += ["--threads", str(flags.threads), *what]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(what)} at {number} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Round by round: what else the machine does hits both sides of a round alike, if not exactly."""
    ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def _shown(words: list[str]) -> list[str]:
    """The command without this machine's folders."""
    return ["FILE" if before == "--out" else word for before, word in zip(["", *words], words, strict=False)]


def show(result: dict[str, Any]) -> None:
    """Print a result."""
    print(f"{result['date']}  {result['machine']['cpu']}, {result['machine']['threads_per_side']} threads\n")
    print(f"{'N':>6}  {'side':10}{'peak MiB':>10}{'ms':>10}   streamed, of its memory and time (min … max)")
    for number, size in result["sizes"].items():
        for side, seconds in size["seconds"].items():
            peak = f"{size['peak'][side]['mib']:.0f}" if side in size["peak"] else ""
            line = f"{number:>6}  {side:10}{peak:>10}{1000 * statistics.median(seconds):>10.2f}"
            if side in size["time_of"]:
                memory = f"{size['memory_of'][side]:.3f}" if size["memory_of"] else ""
                ratio = size["time_of"][side]
                line += f"   {memory:6}  {ratio['median']:.2f} ({ratio['min']:.2f} … {ratio['max']:.2f})"
            print(line)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sizes", type=int, nargs="+", default=[*_SMALL, *_LARGE], metavar="N", help="pairs in the batch")
    add("--dense-up-to", type=int, default=_LARGE[-1], metavar="N", help="largest batch of the dense sides")
    add("--rounds", type=int, default=3, help="times that every side is timed (3)")
    add("--threads", type=int, default=os.cpu_count() or 1, help="of each side; all cores by default")
    add("--side", choices=SIDES, help=argparse.SUPPRESS)
    add("--turns", nargs="+", choices=SIDES, help=argparse.SUPPRESS)
    add("--out", metavar="FILE", help="write the result to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
