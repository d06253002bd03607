"""The claim: retrieval of 5,000 images × 25,000 captions takes less than 10 s and 1 GB on two cores, both ways and with
mAP; and 50,000 × 50,000 do without the whole matrix.

    .venv/bin/python benchmarks/retrieval.py --out benchmarks/results/NAME.json

Features of width 512, in float32, on the CPU: captions are their image's feature and noise. Memory is the peak of a
process of its own beyond what it held with the features made; time is the median of its rounds. `tiled` is ours;
`dense` the whole matrix, sorted for each query, as is usual elsewhere: it finds the same figures where nothing ties.
`--dense-up-to` says how far its memory goes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from machine import machine, peak_mib
from sides import run_side, shown

_EMBED = 512
_SIZES = ("5000x5", "50000x1")
#: How far a caption is from its image: with this much noise about half are found first among 5,000.
_NOISE = 7.0


def main() -> None:
    """Parse the flags; measure every side at every size, print and write the result; or be one measurement."""
    flags = _flags()
    if flags.side:
        print(json.dumps(one_side(flags.side, flags.sizes[0], flags.rounds, flags.threads)))
        return
    result = measure(flags)
    if flags.out:
        Path(flags.out).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    show(result)


# ── the sides ───────────────────────────────────────────────────────────────────────────────────────────────────────


def tiled(images: Any, texts: Any, owners: Any) -> dict[str, dict[str, float]]:
    """lakeclip's."""
    from lakeclip.evaluation.retrieval import retrieval_metrics

    found = retrieval_metrics(images, texts, owners)
    return {"image_to_text": found.image_to_text.to_json(), "text_to_image": found.text_to_image.to_json()}


def dense(images: Any, texts: Any, owners: Any) -> dict[str, dict[str, float]]:
    """The whole matrix, each row sorted."""
    import torch

    similarity = images @ texts.T
    both = {}
    for way, scores, mine, candidates in (
        ("image_to_text", similarity, torch.arange(len(images)), owners),
        ("text_to_image", similarity.T, owners, torch.arange(len(images))),
    ):
        first, precisions = [], []
        for start in range(0, len(scores), 500):
            order = scores[start : start + 500].argsort(dim=1, descending=True)
            is_right = candidates[order] == mine[start : start + 500, None]
            query, place = is_right.nonzero(as_tuple=True)
            number = torch.cat([torch.arange(int(count)) for count in is_right.sum(dim=1)])
            first.append(place[number == 0] + 1)
            share = torch.zeros(len(order), dtype=torch.float64).index_add_(
                0, query, (number + 1) / (place + 1.0).double()
            )
            precisions.append(share / is_right.sum(dim=1))
        ranks = torch.cat(first)
        both[way] = {f"R@{k}": float((ranks <= k).double().mean()) for k in (1, 5, 10)}
        both[way]["mAP"] = float(torch.cat(precisions).mean())
    return both


SIDES: dict[str, Callable[..., dict[str, dict[str, float]]]] = {"tiled": tiled, "dense": dense}


def features(size: str) -> tuple[Any, Any, Any]:
    """Images, captions, and which caption is whose; made in place, so that making them does not raise the peak."""
    import torch
    from torch.nn import functional as F

    num_images, captions = map(int, size.split("x"))
    generator = torch.Generator().manual_seed(0)
    owners = torch.arange(num_images).repeat_interleave(captions)
    images = torch.empty(num_images, _EMBED).normal_(generator=generator)
    texts = torch.empty(len(owners), _EMBED).normal_(generator=generator)
    for rows, mine in zip(texts.split(1024), owners.split(1024), strict=True):
        rows.mul_(_NOISE).add_(images[mine])
    for side in (images, texts):
        for rows in side.split(1024):
            rows.copy_(F.normalize(rows, dim=1))
    return images, texts, owners


def one_side(side: str, size: str, rounds: int, threads: int) -> dict[str, Any]:
    """Figures, seconds, and peak memory beyond the features in MiB."""
    import torch

    torch.set_num_threads(threads)
    # What is loaded on the first call is no part of it.
    SIDES[side](*features("64x2"))
    data = features(size)
    before = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        figures = SIDES[side](*data)
        seconds.append(time.perf_counter() - began)
    return {"figures": figures, "seconds": seconds, "peak_mib": peak_mib() - before}


# ── all sides ───────────────────────────────────────────────────────────────────────────────────────────────────────


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Measure every side at every size."""
    sizes: dict[str, Any] = {}
    for size in flags.sizes:
        num_images, captions = map(int, size.split("x"))
        found = {}
        for side in SIDES:
            if side == "dense" and num_images * num_images * captions > flags.dense_up_to:
                continue
            load = os.getloadavg()[0]
            words = ["--side", side, "--sizes", size, "--rounds", str(flags.rounds), "--threads", str(flags.threads)]
            found[side] = {**run_side(__file__, words, side=side, threads=flags.threads), "load_before": load}
            print(f"{time.strftime('%H:%M:%S')} {size} {side}", file=sys.stderr, flush=True)
        sizes[size] = {"images": num_images, "captions": num_images * captions, "sides": found}
    return {
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", "benchmarks/retrieval.py", *shown(sys.argv[1:])]),
        "machine": machine(flags.threads),
        "versions": {"torch": version("torch")},
        "embed_dim": _EMBED,
        "sizes": sizes,
    }


def show(result: dict[str, Any]) -> None:
    """Print a result."""
    print(f"{result['date']}  {result['machine']['cpu']}, {result['machine']['threads_per_side']} threads\n")
    print(
        f"{'images':>8}{'captions':>10}  {'side':8}{'seconds':>9}{'MiB':>9}   R@1 and mAP, image → text, text → image"
    )
    for size in result["sizes"].values():
        for side, found in size["sides"].items():
            ways = found["figures"].values()
            scores = "  ".join(f"{way['R@1']:.4f} {way['mAP']:.4f}" for way in ways)
            seconds = statistics.median(found["seconds"])
            line = f"{size['images']:>8,}{size['captions']:>10,}  {side:8}{seconds:>9.2f}{found['peak_mib']:>9.0f}"
            print(f"{line}   {scores}")


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sizes", nargs="+", default=list(_SIZES), metavar="NxC", help="images, and captions of each (5000x5 50000x1)")
    add("--dense-up-to", type=float, default=2e8, metavar="N", help="most pairs that the dense side is given (2e8)")
    add("--rounds", type=int, default=3, help="times that every side is timed (3)")
    add("--threads", type=int, default=os.cpu_count() or 1, help="of each side; all cores by default")
    add("--side", choices=SIDES, help=argparse.SUPPRESS)
    add("--out", metavar="FILE", help="write the result to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
