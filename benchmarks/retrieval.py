"""Claim: retrieval among 5,000 images and 25,000 captions takes less than 10 s and 1 GB on two cores, in both
directions and with mAP; and 50,000 × 50,000 works without the whole matrix.

    .venv/bin/python benchmarks/retrieval.py --out benchmarks/results/NAME.json

Features have width 512, in float32, on the CPU; a caption's feature is its image's plus noise. Memory is the peak of a
separate process beyond its features; time is the median of its rounds. `tiled` is lakeclip's; `dense` is the whole
matrix, sorted for each query, as is usual elsewhere: it gives the same scores if there are no ties. `--dense-up-to`
limits its size.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from common.machine import machine, peak_mib, resident_mib
from common.results import command_line, log, today, write_result
from common.subprocess_side import run_side

_EMBED = 512
_SIZES = ("5000x5", "50000x1")
#: Noise of a caption's feature: about half of the captions rank first among 5,000.
_NOISE = 7.0


def main() -> None:
    """Parse the flags; measure all sides and sizes, print and write the result; or take one measurement."""
    flags = _flags()
    if flags.side:
        print(json.dumps(measure_side(flags.side, flags.sizes[0], flags.rounds, flags.threads)))
        return
    result = measure(flags)
    write_result(result, flags.out)
    show(result)


# ── the sides ───────────────────────────────────────────────────────────────────────────────────────────────────────


def tiled(images: Any, texts: Any, owners: Any) -> dict[str, dict[str, float]]:
    """Compute the scores with lakeclip."""
    from lakeclip.evaluation.retrieval import retrieval_metrics

    metrics = retrieval_metrics(images, texts, owners)
    return {"image_to_text": metrics.image_to_text.to_json(), "text_to_image": metrics.text_to_image.to_json()}


def dense(images: Any, texts: Any, owners: Any) -> dict[str, dict[str, float]]:
    """Compute the scores from the whole matrix, with each row sorted."""
    import torch

    similarity = images @ texts.T
    both = {}
    for direction, scores, query_owners, candidate_owners in (
        ("image_to_text", similarity, torch.arange(len(images)), owners),
        ("text_to_image", similarity.T, owners, torch.arange(len(images))),
    ):
        first, precisions = [], []
        for start in range(0, len(scores), 500):
            order = scores[start : start + 500].argsort(dim=1, descending=True)
            is_right = candidate_owners[order] == query_owners[start : start + 500, None]
            query, position = is_right.nonzero(as_tuple=True)
            earlier_hits = torch.cat([torch.arange(int(count)) for count in is_right.sum(dim=1)])
            first.append(position[earlier_hits == 0] + 1)
            precision_sum = torch.zeros(len(order), dtype=torch.float64).index_add_(
                0, query, (earlier_hits + 1) / (position + 1.0).double()
            )
            precisions.append(precision_sum / is_right.sum(dim=1))
        ranks = torch.cat(first)
        both[direction] = {f"R@{k}": float((ranks <= k).double().mean()) for k in (1, 5, 10)}
        both[direction]["mAP"] = float(torch.cat(precisions).mean())
    return both


SIDES: dict[str, Callable[..., dict[str, dict[str, float]]]] = {"tiled": tiled, "dense": dense}


def features(size: str) -> tuple[Any, Any, Any]:
    """Create image and caption features and each caption's image, in place, so that this does not raise the peak."""
    import torch
    from torch.nn import functional as F

    num_images, captions = map(int, size.split("x"))
    generator = torch.Generator().manual_seed(0)
    owners = torch.arange(num_images).repeat_interleave(captions)
    images = torch.empty(num_images, _EMBED).normal_(generator=generator)
    texts = torch.empty(len(owners), _EMBED).normal_(generator=generator)
    for rows, row_owners in zip(texts.split(1024), owners.split(1024), strict=True):
        rows.mul_(_NOISE).add_(images[row_owners])
    for side in (images, texts):
        for rows in side.split(1024):
            rows.copy_(F.normalize(rows, dim=1))
    return images, texts, owners


def measure_side(side: str, size: str, rounds: int, threads: int) -> dict[str, Any]:
    """Return scores, seconds, and peak memory beyond the features in MiB."""
    import torch

    torch.set_num_threads(threads)
    # The first call loads libraries, which do not count.
    SIDES[side](*features("64x2"))
    data = features(size)
    before = resident_mib()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        scores = SIDES[side](*data)
        seconds.append(time.perf_counter() - start)
    return {"figures": scores, "seconds": seconds, "peak_mib": peak_mib() - before}


# ── all sides ───────────────────────────────────────────────────────────────────────────────────────────────────────


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Measure every side at every size."""
    sizes: dict[str, Any] = {}
    for size in flags.sizes:
        num_images, captions = map(int, size.split("x"))
        results: dict[str, Any] = {}
        for side in SIDES:
            if side == "dense" and num_images * num_images * captions > flags.dense_up_to:
                continue
            load = os.getloadavg()[0]
            arguments = ["--side", side, "--sizes", size, "--rounds", str(flags.rounds)]
            arguments += ["--threads", str(flags.threads)]
            results[side] = {**run_side(__file__, arguments, side=side, threads=flags.threads), "load_before": load}
            log(f"{size} {side}")
        sizes[size] = {"images": num_images, "captions": num_images * captions, "sides": results}
    return {
        "date": today(),
        "command": command_line("retrieval.py"),
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
        for side, measured in size["sides"].items():
            directions = measured["figures"].values()
            scores = "  ".join(f"{direction['R@1']:.4f} {direction['mAP']:.4f}" for direction in directions)
            seconds = statistics.median(measured["seconds"])
            line = f"{size['images']:>8,}{size['captions']:>10,}  {side:8}{seconds:>9.2f}{measured['peak_mib']:>9.0f}"
            print(f"{line}   {scores}")


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sizes", nargs="+", default=list(_SIZES), metavar="NxC", help="images x captions per image (5000x5 50000x1)")
    add("--dense-up-to", type=float, default=2e8, metavar="N", help="size limit of the dense matrix (2e8)")
    add("--rounds", type=int, default=3, help="timings of each side (3)")
    add("--threads", type=int, default=os.cpu_count() or 1, help="threads of each side (all cores)")
    add("--side", choices=SIDES, help=argparse.SUPPRESS)
    add("--out", metavar="FILE", help="write the result to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
