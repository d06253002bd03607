"""The claim: encoding for evaluation gives at least twice open_clip's images a second on the same machine.

    .venv-peer/bin/python benchmarks/encoding.py --data DIR --out benchmarks/results/NAME.json

DIR holds WebDataset shards with KEY.jpg (a few hundred photos or more) and KEY.txt; without it, photos and captions are
made up. Same weights, bytes, batch, threads and worker processes; the sides take turns. README.md beside this file says
what is the same on both sides, what is not, and for what the claim holds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
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
from contest import say, today
from encoding_photos import SIZES, read_pairs, write_photos
from machine import machine
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lakeclip.checkpoints.exports import export
from lakeclip.models.zoo import create_model, model_config

_SIDES = Path(__file__).with_name("encoding_sides.py")
_MODELS = Path(__file__).with_name("models.yaml")
#: Our arithmetic → the values of open_clip's --precision that are of the same kind, each a rival of its own.
RIVALS = {"32": ("fp32",), "bf16": ("amp_bf16", "bf16")}
_PACKAGES = ("torch", "torchvision", "open_clip_torch", "simplejpeg", "pillow")
#: A measurement in which others had more cores than this, on the mean, is made again, after so many seconds.
_OTHERS, _PAUSE = 0.1, 5.0
#: Texts of a measurement.
_TEXTS = 256


class Process:
    """A side, running."""

    def __init__(self, side: str, threads: int, tries: int) -> None:
        self._tries = tries
        #: Cores that others had, of each measurement.
        self.others: list[float] = []
        limits = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(_SIDES), side],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **limits},
        )

    def rate(self, **order: Any) -> float:
        """Images or texts a second."""
        found = self.ask(**order)
        return float(found["count"] / found["seconds"])

    def ask(self, **order: Any) -> dict[str, Any]:
        """What it answers, when nothing else has been going on. After some tries, the least disturbed."""
        answers: list[dict[str, Any]] = []
        while not answers or (answers[-1]["others"] > _OTHERS and len(answers) < self._tries):
            if answers:
                say(f"others had {answers[-1]['others']:.2f} cores: once more")
                time.sleep(_PAUSE)
            answers.append(self._ask(order))
        best = min(answers, key=lambda answer: float(answer["others"]))
        self.others.append(best["others"])
        return best

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"a side ended with {self._process.wait()} at {order}")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Bench:
    """Both sides, and the models and data that are made for them in one folder."""

    def __init__(self, work: Path, flags: argparse.Namespace) -> None:
        self.work, self.flags = work, flags
        self.ours, self.theirs = (Process(side, flags.threads, flags.tries) for side in ("lakeclip", "open_clip"))
        self.peaks: dict[str, float] = {}
        self.flops: dict[str, float] = {}
        self._exact: dict[tuple[str, str], Tensor] = {}

    def model(self, name: str) -> str:
        """A model in open_clip's layout, of random weights but with norms that have seen something."""
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
        """One model and one kind of data in one of our precisions, against each of its rivals."""
        flags = self.flags
        if precision not in self.peaks:
            self.peaks[precision] = self.ours.ask(do="peak", way=precision)["flops_per_second"]
        order = {"do": do, "model": self.model(name), "data": str(self.work / data), "batch": flags.batch}
        count = flags.batch
        rivals = {}
        for rival in RIVALS[precision]:
            ways = [rival, f"{rival},channels_last"] if name.startswith("RN") and do == "images" else [rival]
            candidates = [
                {"way": way, "workers": workers}
                for way, workers in itertools.product(ways, flags.workers if do == "images" else [0])
            ]
            if do == "texts":
                count = _TEXTS
            elif count == flags.batch:
                # As many as fit the time, by the rate of a few.
                rate = self.theirs.rate(**order, **candidates[0], count=2 * count)
                available = len(list((self.work / data / "photos").rglob("*.jpg")))
                count = min(max(2, round(rate * flags.seconds / count)), available // count) * count
            tried = {}
            if len(candidates) > 1:
                tried = {
                    f"{one['way']}, {one['workers']} workers": round(self.theirs.rate(**order, **one, count=count), 2)
                    for one in candidates
                }
            rates = list(tried.values()) or [0.0]
            rivals[rival] = (candidates[rates.index(max(rates))], tried)
            say(f"{name} {precision}, {data}, {count}: open_clip with {rivals[rival][0]}")
        return self._rounds(do, name, precision, data, order | {"count": count}, rivals)

    def _rounds(
        self, do: str, name: str, precision: str, data: str, order: dict[str, Any], rivals: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """In turns: the rivals and we, and in the other order."""
        rates: dict[str, list[float]] = {side: [] for side in ("lakeclip", *rivals)}
        for process in (self.ours, self.theirs):
            process.others.clear()
        for turn in range(self.flags.rounds):
            for side in list(rates) if turn % 2 == 0 else list(rates)[::-1]:
                out = {"out": str(self.work / f"{side}.pt")} if turn == 0 else {}
                if side == "lakeclip":
                    # Its threads take the place of worker processes.
                    rates[side].append(self.ours.rate(**order, **out, way=precision, workers=0))
                else:
                    rates[side].append(self.theirs.rate(**order, **out, **rivals[side][0]))
            say(f"{name} {precision}, {data}: " + ", ".join(f"{side} {own[-1]:.1f}/s" for side, own in rates.items()))
        cells = []
        # open_clip divides by the length in bfloat16 under autocast; what is compared here is the direction.
        features = {
            side: F.normalize(torch.load(self.work / f"{side}.pt", weights_only=True), dim=-1) for side in rates
        }
        if precision == "32":
            self._exact[name, data] = features["lakeclip"]
        exact = self._exact.get((name, data))
        for rival, (settings, tried) in rivals.items():
            ratios = [our / their for our, their in zip(rates["lakeclip"], rates[rival], strict=True)]
            cells.append(
                {
                    "what": do,
                    "model": name,
                    "data": data if do == "images" else "captions",
                    "count": order["count"],
                    "lakeclip_precision": precision,
                    "open_clip_precision": rival,
                    "open_clip_settings": settings,
                    "open_clip_tried": tried,
                    "cores_of_others": round(max(self.ours.others + self.theirs.others), 2),
                    "lakeclip_per_second": [round(rate, 2) for rate in rates["lakeclip"]],
                    "open_clip_per_second": [round(rate, 2) for rate in rates[rival]],
                    "against_open_clip": {
                        "median": round(statistics.median(ratios), 3),
                        "min": round(min(ratios), 3),
                        "max": round(max(ratios), 3),
                    },
                    "matrix_products_alone_per_second": self._bound(name, precision) if do == "images" else None,
                    "largest_difference": float((features["lakeclip"] - features[rival]).abs().max()),
                    "smallest_cosine": _cosine(features["lakeclip"], features[rival]),
                    "smallest_cosine_with_float32": None
                    if exact is None
                    else {side: _cosine(features[side], exact) for side in ("lakeclip", rival)},
                }
            )
        return cells

    def _bound(self, name: str, precision: str) -> float:
        """Images a second of a machine that did nothing but the tower's products, at the peak that was measured."""
        return round(self.peaks[precision] / self.flops[name], 2)


def main() -> None:
    """Parse the flags; make data and models, measure, print and write the result."""
    flags = _flags()
    with nullcontext(flags.work) if flags.work else tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        pairs = read_pairs(flags.data)
        photos = {size: write_photos(pairs, work / size, *SIZES[size]) for size in flags.photos}
        captions = list(dict.fromkeys(caption for _, own in pairs for caption in own))
        (work / "captions").write_text("\n".join(captions[:_TEXTS]) + "\n", encoding="utf-8")
        bench = Bench(work, flags)
        for name in flags.model:
            bench.model(name)
        say("measuring")
        result: dict[str, Any] = {
            "claim": "encoding for evaluation gives at least twice open_clip's images a second",
            "holds": {},
            "date": today(),
            "command": shlex.join(["python", "benchmarks/encoding.py", *_shown(sys.argv[1:])]),
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
                # Now, not at the end: it takes minutes of a machine that does nothing else.
                if flags.out:
                    text = json.dumps(result, indent=1, ensure_ascii=False)
                    Path(flags.out).write_text(text + "\n", encoding="utf-8")
        bench.ours.close()
        bench.theirs.close()
    show(result)


def _cosine(one: Tensor, other: Tensor) -> float:
    """Of the rows that both have, the least."""
    rows = min(len(one), len(other))
    return round(float((one[:rows] * other[:rows]).sum(dim=1).min()), 6)


def _row(cell: dict[str, Any]) -> str:
    rival = f"{cell['lakeclip_precision']} against {cell['open_clip_precision']}"
    return f"{cell['model']}, {cell['data']}, {rival}"


def show(result: dict[str, Any]) -> None:
    """Print a result."""
    print(f"{result['date']}  {result['machine']['cpu']}, {result['machine']['threads_per_side']} threads a side\n")
    print(f"{'':48}{'lakeclip/s':>11}{'open_clip/s':>12}{'ratio':>8}{'':15}{'cosine':>9}")
    for cell in result["cells"]:
        ratio, ours, theirs = cell["against_open_clip"], cell["lakeclip_per_second"], cell["open_clip_per_second"]
        print(f"{_row(cell):48}{statistics.median(ours):11.1f}{statistics.median(theirs):12.1f}", end="")
        span = f"({ratio['min']:.2f}–{ratio['max']:.2f})"
        print(f"{ratio['median']:8.2f} {span:14}{cell['smallest_cosine']:9.6f}")


def _shown(words: list[str]) -> list[str]:
    """The command without this machine's folders."""
    hidden = {"--data": "DIR", "--work": "DIR", "--out": "FILE"}
    return [hidden.get(before, word) for before, word in zip(["", *words], words, strict=False)]


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="folder with *.tar; made up by default")
    add("--model", nargs="+", default=["ViT-B/32", "RN50"], help="lakeclip's names, or those of models.yaml")
    add("--precision", nargs="+", choices=RIVALS, default=list(RIVALS), help="ours; both by default")
    add("--photos", nargs="+", choices=SIZES, default=["as given"], help="their sizes (as given)")
    add("--texts", action="store_true", help="texts too")
    add("--batch", type=int, default=64, help="of both sides (64, open_clip's default)")
    add("--workers", type=int, nargs="+", default=[1, 2], help="of open_clip's loader; the fastest competes (1 2)")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each side (all cores)")
    add("--rounds", type=int, default=3, help="times that every side is measured (3)")
    add("--seconds", type=float, default=4.0, help="of a measurement of open_clip, about (4)")
    add("--tries", type=int, default=5, help="of a measurement that others disturb (5)")
    add("--work", metavar="DIR", help="where data and models are made, and used again; a temporary folder by default")
    add("--out", metavar="FILE", help="write the result to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
