"""The claim: a step over 512 pairs, of which 64 at a time are embedded, is faster in lakeclip than in open_clip with
`--accum-freq 8` and than in the seed; it takes at most 1.35 times as long as lakeclip's step with all 512 at once, and
no more memory than open_clip's.

    .venv-peer/bin/python benchmarks/microbatch.py --captions FILE --out benchmarks/results/NAME.json

FILE holds a caption a line; without it, lengths are drawn. Each measurement is a process of its own; the sides take
turns. README.md beside this file says what each side does.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import math
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from machine import machine, peak_mib
from sides import median_seconds, run_side, shown

if TYPE_CHECKING:
    from optimisation_step import Side
    from torch import Tensor

MODELS = {"ViT-B/32": "ViT-B-32-quickgelu", "RN50": "RN50-quickgelu"}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    """Parse the flags; measure every side in turns, print and write the result; or be one side."""
    flags = _flags()
    if flags.side:
        print(json.dumps(_side(flags)))
        return
    result = measure(flags)
    if flags.out:
        Path(flags.out).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    show(result)


# ── one side, in a process of its own ───────────────────────────────────────────────────────────────────────────────


def lakeclip_in_parts(flags: argparse.Namespace, *, bf16: bool) -> Side:
    """lakeclip with `minibatch_size`."""
    from optimisation_step import lakeclip

    from lakeclip.models.zoo import model_config

    return lakeclip(model_config(flags.model), bf16=bf16, minibatch_size=flags.micro)


def lakeclip_at_once(flags: argparse.Namespace, *, bf16: bool) -> Side:
    """lakeclip's plain step over the whole batch."""
    from optimisation_step import lakeclip

    from lakeclip.models.zoo import model_config

    return lakeclip(model_config(flags.model), bf16=bf16)


def open_clip_accumulating(flags: argparse.Namespace, *, bf16: bool) -> Side:
    """open_clip with `--accum-freq`: it embeds every part twice, and back-propagates a whole loss for each."""
    from optimisation_step import open_clip

    return open_clip(MODELS[flags.model], bf16=bf16, options=["fused"], accumulate=flags.batch // flags.micro)


def seed(flags: argparse.Namespace, *, bf16: bool) -> Side:
    """The seed's way, written anew from what is known of it.

    It embeds all parts without a graph. Then it embeds the images of each part again, and afterwards the texts of each
    part; each time it puts them into a deep copy of all features, computes the whole batch's loss, and back-propagates
    that: twice as many losses as there are parts, and as often the full gradient of the temperature. It always computes
    77 tokens. The towers are open_clip's and the optimiser is fused, which are faster than what the seed had: what is
    compared is the algorithm.
    """
    import torch
    from optimisation_step import autocast, open_clip, peer_optimizer
    from torch.nn import functional as F

    side = open_clip(MODELS[flags.model], bf16=bf16)
    model: Any = side.model
    optimizer = peer_optimizer(model, ["fused"])

    def step(images: Tensor, ids: Tensor) -> Tensor:
        own = torch.arange(len(images))
        parts = own.split(flags.micro)
        with torch.no_grad(), autocast(bf16, "cpu"):
            known = {
                "image": [model.encode_image(images[part], normalize=True) for part in parts],
                "text": [model.encode_text(ids[part], normalize=True) for part in parts],
            }
        optimizer.zero_grad()
        for tower, encode, given in (("image", model.encode_image, images), ("text", model.encode_text, ids)):
            for number, part in enumerate(parts):
                with autocast(bf16, "cpu"):
                    features = copy.deepcopy(known)
                    features[tower][number] = encode(given[part], normalize=True)
                    logits = model.logit_scale.exp() * torch.cat(features["image"]) @ torch.cat(features["text"]).T
                    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
                loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(-math.log(100), math.log(100))
        return loss.detach()

    side.step = step
    return side


SIDES: dict[str, Callable[..., Side]] = {
    side.__name__: side for side in (lakeclip_in_parts, open_clip_accumulating, seed, lakeclip_at_once)
}


def _side(flags: argparse.Namespace) -> dict[str, Any]:
    import torch
    from optimisation_step import caption_ids

    torch.set_num_threads(flags.threads)
    torch.manual_seed(0)
    side = SIDES[flags.side](flags, bf16=flags.precision == "bf16")
    images = side.images(flags.batch, 224)
    before = peak_mib()
    first, *timed = map(side.texts, caption_ids(flags.captions, flags.batch, flags.steps + 1))
    losses = [float(side.step(images, first))]
    clock = CLOCKS[flags.clock]
    seconds = []
    for ids in timed:
        began = clock()
        losses.append(float(side.step(images, ids)))
        seconds.append(clock() - began)
    if not all(math.isfinite(loss) for loss in losses):
        sys.exit(f"{flags.side}: a loss is not finite: {losses}")
    return {
        "seconds": seconds,
        "first_loss": losses[0],
        "parameters": side.parameters,
        "peak_mib": peak_mib(),
        "before_the_first_step_mib": before,
    }


# ── all sides in turns ──────────────────────────────────────────────────────────────────────────────────────────────


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Every side, round by round."""
    load = os.getloadavg()[0]
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for turn in range(flags.rounds):
        for side in list(SIDES)[:: 1 if turn % 2 == 0 else -1]:
            rounds[side].append(_run(flags, side))
            found = rounds[side][-1]
            _say(f"round {turn + 1}: {side} {median_seconds(found):.1f} s, {found['peak_mib']:.0f} MiB")
    if len({found["parameters"] for run in rounds.values() for found in run}) > 1:
        sys.exit("the models differ in size")
    parts, whole = (rounds[side][0]["first_loss"] for side in ("lakeclip_in_parts", "lakeclip_at_once"))
    if abs(parts - whole) > 0.01:
        sys.exit(f"the same weights and pairs give a loss of {parts} in parts and of {whole} at once")
    sides = {
        side: {
            "seconds_a_step": [median_seconds(found) for found in run],
            "peak_mib": max(found["peak_mib"] for found in run),
            "before_the_first_step_mib": max(found["before_the_first_step_mib"] for found in run),
            "first_loss": run[0]["first_loss"],
        }
        for side, run in rounds.items()
    }
    return {
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", "benchmarks/microbatch.py", *shown(sys.argv[1:])]),
        "machine": machine(flags.threads),
        "load_before": round(load, 2),
        "versions": {name: version(name) for name in ("torch", "lightning", "open_clip_torch")},
        "model": flags.model,
        "precision": flags.precision,
        "batch": flags.batch,
        "micro_batch": flags.micro,
        "captions": "drawn: log-normal lengths" if flags.captions is None else "from a file",
        "clock": flags.clock,
        "sides": sides,
        "time_against": {
            "open_clip": _ratio(sides, "open_clip_accumulating", "lakeclip_in_parts"),
            "seed": _ratio(sides, "seed", "lakeclip_in_parts"),
        },
        "time_of_at_once": _ratio(sides, "lakeclip_in_parts", "lakeclip_at_once"),
        "memory_of": {
            side: sides["lakeclip_in_parts"]["peak_mib"] / sides[side]["peak_mib"]
            for side in SIDES
            if side != "lakeclip_in_parts"
        },
    }


def _ratio(sides: dict[str, Any], above: str, below: str) -> dict[str, float]:
    """Round by round, as the machine may do other things in the one and not in the other."""
    pairs = zip(sides[above]["seconds_a_step"], sides[below]["seconds_a_step"], strict=True)
    ratios = [over / under for over, under in pairs]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def _run(flags: argparse.Namespace, side: str) -> dict[str, Any]:
    words = ["--side", side, "--model", flags.model, "--precision", flags.precision, "--clock", flags.clock]
    words += ["--batch", str(flags.batch), "--micro", str(flags.micro), "--steps", str(flags.steps)]
    words += ["--threads", str(flags.threads), *(["--captions", flags.captions] if flags.captions else [])]
    return run_side(__file__, words, side=side, threads=flags.threads)


def show(result: dict[str, Any]) -> None:
    """Print a result."""
    threads = result["machine"]["threads_per_side"]
    print(f"{result['date']}  {result['machine']['cpu']}, {threads} threads a side")
    print(f"{result['model']} {result['precision']}, {result['batch']} pairs, {result['micro_batch']} at a time\n")
    print(f"{'':26}{'s a step':>10}{'peak MiB':>10}")
    for name, side in result["sides"].items():
        print(f"{name:26}{statistics.median(side['seconds_a_step']):10.2f}{side['peak_mib']:10.0f}")
    print()
    ratios = {f"× {peer}": ratio for peer, ratio in result["time_against"].items()}
    for name, ratio in (ratios | {"time of at once": result["time_of_at_once"]}).items():
        print(f"{name:26}{ratio['median']:10.2f} ({ratio['min']:.2f}–{ratio['max']:.2f})")
    for side, share in result["memory_of"].items():
        print(f"{'memory of ' + side:33}{share:.2f}")


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", choices=MODELS, default="ViT-B/32", help="(ViT-B/32)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 is autocast (fp32)")
    add("--captions", metavar="FILE", help="one a line; drawn lengths by default")
    add("--batch", type=int, default=512, help="pairs a step (512)")
    add("--micro", type=int, default=64, help="pairs embedded at a time; it must divide the batch (64)")
    add("--steps", type=int, default=2, help="timed in each measurement, after one (2); their median counts")
    add("--rounds", type=int, default=3, help="times that each side is measured (3)")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each side (all cores)")
    add(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: the process's own time, for a first look on a busy machine",
    )
    add("--side", choices=SIDES, help=argparse.SUPPRESS)
    add("--out", metavar="FILE", help="write the result to this JSON file")
    flags = parser.parse_args()
    if flags.batch % flags.micro:
        parser.error("--micro must divide --batch: open_clip's batches are all of one size")
    return flags


if __name__ == "__main__":
    main()
