"""Claim: encoding for evaluation is at least twice as fast as open_clip's on the same machine.

    .venv-peer/bin/python benchmarks/encoding.py --data DIR --out benchmarks/results/NAME.json

DIR holds WebDataset shards with KEY.jpg (a few hundred photos or more) and KEY.txt; without it, photos and captions are
synthetic. Weights, bytes, batch and threads are the same; the sides take turns. README.md in this folder says more on
what is measured, and docs/LOG.md where the claim holds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from common.encoding_photos import SIZES, read_pairs, write_photos
from common.machine import machine
from common.results import command_line, log, ratio_stats, today, write_result
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lakeclip.checkpoints.exports import export
from lakeclip.models.zoo import create_model, model_config

_MODELS = Path(__file__).with_name("models.yaml")
#: lakeclip's precision → comparable values of open_clip's --precision, each compared separately.
PEER_PRECISIONS = {"32": ("fp32",), "bf16": ("amp_bf16", "bf16")}
_PACKAGES = ("torch", "torchvision", "open_clip_torch", "simplejpeg", "pillow")
#: A measurement is repeated after a pause in seconds if other processes used more than this many cores on average.
_MAX_OTHERS, _PAUSE = 0.1, 5.0
#: Number of texts per measurement.
_TEXTS = 256


class SideProcess:
    """A running side, common/encoding_sides.py, which answers one request at a time."""

    def __init__(self, side: str, threads: int, tries: int) -> None:
        self._tries = tries
        #: Cores that other processes used during each measurement.
        self.others: list[float] = []
        limits = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
        search_path = (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "common.encoding_sides", side],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **limits, "PYTHONPATH": os.pathsep.join(filter(None, search_path))},
        )

    def rate(self, **request: Any) -> float:
        """Measure the images or texts per second."""
        answer = self.measure(**request)
        return float(answer["count"] / answer["seconds"])

    def measure(self, **request: Any) -> dict[str, Any]:
        """Repeat a measurement until other processes do not disturb it; after some tries return the least disturbed."""
        answers: list[dict[str, Any]] = []
        while not answers or (answers[-1]["others"] > _MAX_OTHERS and len(answers) < self._tries):
            if answers:
                log(f"other processes used {answers[-1]['others']:.2f} cores: measuring again")
                time.sleep(_PAUSE)
            answers.append(self._send(request))
        best = min(answers, key=lambda answer: float(answer["others"]))
        self.others.append(best["others"])
        return best

    def _send(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"a side failed with exit code {self._process.wait()} at the request {request}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class EncodingBenchmark:
    """Both sides, with the models and data created for them in one folder."""

    def __init__(self, work: Path, flags: argparse.Namespace) -> None:
        self.work, self.flags = work, flags
        self.ours, self.theirs = (SideProcess(side, flags.threads, flags.tries) for side in ("lakeclip", "open_clip"))
        self.peaks: dict[str, float] = {}
        self.flops: dict[str, float] = {}
        self._exact: dict[tuple[str, str], Tensor] = {}

    def model(self, name: str) -> str:
        """Export a model in open_clip's layout, with random weights and batch-norm statistics; return its folder."""
        folder = self.work / name.replace("/", "-")
        if not folder.exists():
            torch.manual_seed(0)
            model = create_model(name, model_config_file=_MODELS).eval()
            for part in model.modules():
                if isinstance(part, nn.BatchNorm2d):
                    assert part.running_mean is not None
                    assert part.running_var is not None
                    part.running_mean.normal_(0, 0.1)
                    part.running_var.uniform_(0.5, 1.5)
                    nn.init.uniform_(part.weight, 0.3, 0.7)
            export(model, "open_clip", folder)
        if name not in self.flops:
            side = model_config(name, _MODELS).image_resolution
            with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
                create_model(name, model_config_file=_MODELS).eval().visual(torch.zeros(1, 3, side, side))
            self.flops[name] = counter.get_total_flops()
        return str(folder)

    def cell(self, do: str, name: str, precision: str, data: str) -> list[dict[str, Any]]:
        """Measure one model, kind of data and precision of lakeclip against each comparable precision of open_clip."""
        flags = self.flags
        if precision not in self.peaks:
            self.peaks[precision] = self.ours.measure(do="peak", way=precision)["flops_per_second"]
        request = {"do": do, "model": self.model(name), "data": str(self.work / data), "batch": flags.batch}
        count = flags.batch
        peers = {}
        for peer in PEER_PRECISIONS[precision]:
            ways = [peer, f"{peer},channels_last"] if name.startswith("RN") and do == "images" else [peer]
            candidates = [
                {"way": way, "workers": workers}
                for way, workers in itertools.product(ways, flags.workers if do == "images" else [0])
            ]
            if do == "texts":
                count = _TEXTS
            elif count == flags.batch:
                # As many as fit into the time, estimated from the rate of a few.
                rate = self.theirs.rate(**request, **candidates[0], count=2 * count)
                available = len(list((self.work / data / "photos").rglob("*.jpg")))
                count = min(max(2, round(rate * flags.seconds / count)), available // count) * count
            tried = {}
            if len(candidates) > 1:
                tried = {
                    f"{settings['way']}, {settings['workers']} workers": round(
                        self.theirs.rate(**request, **settings, count=count), 2
                    )
                    for settings in candidates
                }
            rates = list(tried.values()) or [0.0]
            peers[peer] = (candidates[rates.index(max(rates))], tried)
            log(f"{name} {precision}, {data}, {count}: open_clip with {peers[peer][0]}")
        return self._rounds(do, name, precision, data, request | {"count": count}, peers)

    def _rounds(
        self, do: str, name: str, precision: str, data: str, request: dict[str, Any], peers: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Measure all sides in turns, in alternating order."""
        rates: dict[str, list[float]] = {side: [] for side in ("lakeclip", *peers)}
        for process in (self.ours, self.theirs):
            process.others.clear()
        for turn in range(self.flags.rounds):
            for side in list(rates) if turn % 2 == 0 else list(rates)[::-1]:
                out = {"out": str(self.work / f"{side}.pt")} if turn == 0 else {}
                if side == "lakeclip":
                    # lakeclip decodes in threads instead of worker processes.
                    rates[side].append(self.ours.rate(**request, **out, way=precision, workers=0))
                else:
                    rates[side].append(self.theirs.rate(**request, **out, **peers[side][0]))
            log(
                f"{name} {precision}, {data}: "
                + ", ".join(f"{side} {measured[-1]:.1f}/s" for side, measured in rates.items())
            )
        cells = []
        # open_clip normalises in bfloat16 under autocast; only the direction is compared here.
        features = {
            side: F.normalize(torch.load(self.work / f"{side}.pt", weights_only=True), dim=-1) for side in rates
        }
        if precision == "32":
            self._exact[name, data] = features["lakeclip"]
        exact = self._exact.get((name, data))
        for peer, (settings, tried) in peers.items():
            ratio = ratio_stats(rates["lakeclip"], rates[peer])
            cells.append(
                {
                    "what": do,
                    "model": name,
                    "data": data if do == "images" else "captions",
                    "count": request["count"],
                    "lakeclip_precision": precision,
                    "open_clip_precision": peer,
                    "open_clip_settings": settings,
                    "open_clip_tried": tried,
                    "cores_of_others": round(max(self.ours.others + self.theirs.others), 2),
                    "lakeclip_per_second": [round(rate, 2) for rate in rates["lakeclip"]],
                    "open_clip_per_second": [round(rate, 2) for rate in rates[peer]],
                    "against_open_clip": {name: round(value, 3) for name, value in ratio.items()},
                    "matrix_products_alone_per_second": self._bound(name, precision) if do == "images" else None,
                    "largest_difference": float((features["lakeclip"] - features[peer]).abs().max()),
                    "smallest_cosine": _cosine(features["lakeclip"], features[peer]),
                    "smallest_cosine_with_float32": None
                    if exact is None
                    else {side: _cosine(features[side], exact) for side in ("lakeclip", peer)},
                }
            )
        return cells

    def _bound(self, name: str, precision: str) -> float:
        """Return the images a second if the machine computed only the tower's matrix products, at the measured peak."""
        return round(self.peaks[precision] / self.flops[name], 2)


def main() -> None:
    """Parse the flags; create data and models, measure, print and write the result."""
    flags = _flags()
    with nullcontext(flags.work) if flags.work else tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        pairs = read_pairs(flags.data)
        photos = {size: write_photos(pairs, work / size, *SIZES[size]) for size in flags.photos}
        captions = list(dict.fromkeys(caption for _, pair_captions in pairs for caption in pair_captions))
        (work / "captions").write_text("\n".join(captions[:_TEXTS]) + "\n", encoding="utf-8")
        bench = EncodingBenchmark(work, flags)
        for name in flags.model:
            bench.model(name)
        log("measuring")
        result: dict[str, Any] = {
            "claim": "encoding for evaluation is at least twice as fast as open_clip's",
            "holds": {},
            "date": today(),
            "command": command_line("encoding.py"),
            "machine": machine(flags.threads),
            "versions": {name: version(name) for name in _PACKAGES},
            "batch": flags.batch,
            "matmul_peak_gflops": {},
            "photos": photos,
            "cells": [],
        }
        for name, precision in itertools.product(flags.model, flags.precision):
            for do, data in [("images", size) for size in flags.photos] + [("texts", "captions")] * flags.texts:
                result["cells"] += bench.cell(do, name, precision, data)
                result["holds"] = {_row(cell): cell["against_open_clip"]["median"] >= 2 for cell in result["cells"]}
                result["matmul_peak_gflops"] = {name: round(peak / 1e9, 1) for name, peak in bench.peaks.items()}
                # Written after each cell, since the whole benchmark takes long.
                write_result(result, flags.out)
        bench.ours.close()
        bench.theirs.close()
    show(result)


def _cosine(left: Tensor, right: Tensor) -> float:
    """Return the smallest cosine similarity over the rows that both have."""
    rows = min(len(left), len(right))
    return round(float((left[:rows] * right[:rows]).sum(dim=1).min()), 6)


def _row(cell: dict[str, Any]) -> str:
    precisions = f"{cell['lakeclip_precision']} against {cell['open_clip_precision']}"
    return f"{cell['model']}, {cell['data']}, {precisions}"


def show(result: dict[str, Any]) -> None:
    """Print a result."""
    print(f"{result['date']}  {result['machine']['cpu']}, {result['machine']['threads_per_side']} threads a side\n")
    print(f"{'':48}{'lakeclip/s':>11}{'open_clip/s':>12}{'ratio':>8}{'':15}{'cosine':>9}")
    for cell in result["cells"]:
        ratio, ours, theirs = cell["against_open_clip"], cell["lakeclip_per_second"], cell["open_clip_per_second"]
        print(f"{_row(cell):48}{statistics.median(ours):11.1f}{statistics.median(theirs):12.1f}", end="")
        span = f"({ratio['min']:.2f}–{ratio['max']:.2f})"
        print(f"{ratio['median']:8.2f} {span:14}{cell['smallest_cosine']:9.6f}")


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="folder with *.tar; synthetic data by default")
    add("--model", nargs="+", default=["ViT-B/32", "RN50"], help="lakeclip's models, or those of models.yaml")
    add(
        "--precision",
        nargs="+",
        choices=PEER_PRECISIONS,
        default=list(PEER_PRECISIONS),
        help="lakeclip's precisions (both)",
    )
    add("--photos", nargs="+", choices=SIZES, default=["as given"], help="sizes of the photos (as given)")
    add("--texts", action="store_true", help="encode texts as well")
    add("--batch", type=int, default=64, help="batch size of both sides (64, open_clip's default)")
    add(
        "--workers",
        type=int,
        nargs="+",
        default=[1, 2],
        help="loading processes of open_clip, of which the fastest counts (1 2)",
    )
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of each side (all cores)")
    add("--rounds", type=int, default=3, help="measurements of each side (3)")
    add("--seconds", type=float, default=4.0, help="approximate length of a measurement of open_clip (4)")
    add("--tries", type=int, default=5, help="attempts at a measurement that other processes disturb (5)")
    add("--work", metavar="DIR", help="folder for data and models, reused if it exists; temporary by default")
    add("--out", metavar="FILE", help="write the result to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
