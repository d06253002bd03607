"""Claim: a step of 512 pairs in micro-batches of 64 is faster in lakeclip than in open_clip with `--accum-freq 8` and
than in train-CLIP; it takes at most 1.35 times as long as lakeclip's step with all 512 at once, and no more memory than
open_clip's.

    .venv-peer/bin/python benchmarks/microbatch.py --captions FILE --out benchmarks/results/NAME.json

FILE holds a caption per line; without it, captions are random. Each measurement is a separate process; the sides take
turns. README.md in this folder says what each side does.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from common.machine import machine, peak_mib
from common.results import command_line, log, ratio_stats, today, write_result
from common.subprocess_side import median_seconds, run_side

if TYPE_CHECKING:
    from common.training_step import Side
    from torch import Tensor

MODELS = {"ViT-B/32": "ViT-B-32-quickgelu", "RN50": "RN50-quickgelu"}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    """Parse the flags; measure all sides, print and write the result; or run one side for the main process."""
    flags = _flags()
    if flags.side:
        print(json.dumps(_side(flags)))
        return
    result = measure(flags)
    write_result(result, flags.out)
    show(result)


# ── one side, in a separate process ────────────────────────────────────────────────────────────────────────────────


def lakeclip_in_parts(flags: argparse.Namespace, *, bf16: bool) -> Side:
    """Build lakeclip's side with `minibatch_size`."""
    from common.training_step import lakeclip_side

    from lakeclip.models.zoo import model_config

    return lakeclip_side(model_config(flags.model), bf16=bf16, minibatch_size=flags.micro)


def lakeclip_at_once(flags: argparse.Namespace, *, bf16: bool) -> Side:
    """Build lakeclip's side with the plain step over the whole batch."""
    from common.training_step import lakeclip_side

    from lakeclip.models.zoo import model_config

    return lakeclip_side(model_config(flags.model), bf16=bf16)


def open_clip_accumulating(flags: argparse.Namespace, *, bf16: bool) -> Side:
    """Build open_clip's side with `--accum-freq`, which embeds each part twice and back-propagates a full loss."""
    from common.training_step import open_clip_side

    return open_clip_side(MODELS[flags.model], bf16=bf16, options=["fused"], accumulate=flags.batch // flags.micro)


def train_clip(flags: argparse.Namespace, *, bf16: bool) -> Side:
    """Build train-CLIP's algorithm, rewritten from its description.

    It embeds all parts without a graph. Then it embeds the images of each part again, and afterwards the texts of each
    part. Each time it puts them into a deep copy of all features, computes the whole batch's loss, and back-propagates
    it: that makes two losses per part, each with the full gradient of the temperature. It always computes 77 tokens.
    The towers are open_clip's and the optimiser is fused, both faster than train-CLIP's own, so that only the
    algorithms differ.
    """
    import torch
    from common.training_step import autocast, open_clip_side, peer_optimizer
    from torch.nn import functional as F

    side = open_clip_side(MODELS[flags.model], bf16=bf16)
    model: Any = side.model
    optimizer = peer_optimizer(model, ["fused"])

    def step(images: Tensor, ids: Tensor) -> Tensor:
        labels = torch.arange(len(images))
        parts = labels.split(flags.micro)
        with torch.no_grad(), autocast(bf16, "cpu"):
            cached = {
                "image": [model.encode_image(images[part], normalize=True) for part in parts],
                "text": [model.encode_text(ids[part], normalize=True) for part in parts],
            }
        optimizer.zero_grad()
        for tower, encode, inputs in (("image", model.encode_image, images), ("text", model.encode_text, ids)):
            for number, part in enumerate(parts):
                with autocast(bf16, "cpu"):
                    features = copy.deepcopy(cached)
                    features[tower][number] = encode(inputs[part], normalize=True)
                    logits = model.logit_scale.exp() * torch.cat(features["image"]) @ torch.cat(features["text"]).T
                    loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
                loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(-math.log(100), math.log(100))
        return loss.detach()

    side.step = step
    return side


SIDES: dict[str, Callable[..., Side]] = {
    "lakeclip_in_parts": lakeclip_in_parts,
    "open_clip_accumulating": open_clip_accumulating,
    "seed": train_clip,
    "lakeclip_at_once": lakeclip_at_once,
}


def _side(flags: argparse.Namespace) -> dict[str, Any]:
    import torch
    from common.training_step import caption_ids

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
        start = clock()
        losses.append(float(side.step(images, ids)))
        seconds.append(clock() - start)
    if not all(math.isfinite(loss) for loss in losses):
        sys.exit(f"{flags.side}: the losses are not all finite: {losses}")
    return {
        "seconds": seconds,
        "first_loss": losses[0],
        "parameters": side.num_parameters,
        "peak_mib": peak_mib(),
        "before_the_first_step_mib": before,
    }


# ── all sides in turns ──────────────────────────────────────────────────────────────────────────────────────────────


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Measure every side, round by round."""
    load = os.getloadavg()[0]
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for turn in range(flags.rounds):
        for side in list(SIDES)[:: 1 if turn % 2 == 0 else -1]:
            run = _run(flags, side)
            rounds[side].append(run)
            log(f"round {turn + 1}: {side} {median_seconds(run):.1f} s, {run['peak_mib']:.0f} MiB")
    if len({run["parameters"] for runs in rounds.values() for run in runs}) > 1:
        sys.exit("the sides' models have different numbers of parameters")
    in_parts, at_once = (rounds[side][0]["first_loss"] for side in ("lakeclip_in_parts", "lakeclip_at_once"))
    if abs(in_parts - at_once) > 0.01:
        sys.exit(f"for equal weights and pairs, the loss is {in_parts} in parts but {at_once} at once")
    sides = {
        side: {
            "seconds_a_step": [median_seconds(run) for run in runs],
            "peak_mib": max(run["peak_mib"] for run in runs),
            "before_the_first_step_mib": max(run["before_the_first_step_mib"] for run in runs),
            "first_loss": runs[0]["first_loss"],
        }
        for side, runs in rounds.items()
    }
    seconds = {side: figures["seconds_a_step"] for side, figures in sides.items()}
    return {
        "date": today(),
        "command": command_line("microbatch.py"),
        "machine": machine(flags.threads),
        "load_before": round(load, 2),
        "versions": {name: version(name) for name in ("torch", "lightning", "open_clip_torch")},
        "model": flags.model,
        "precision": flags.precision,
        "batch": flags.batch,
        "micro_batch": flags.micro,
        "captions": "random: log-normal lengths" if flags.captions is None else "from a file",
        "clock": flags.clock,
        "sides": sides,
        "time_against": {
            "open_clip": ratio_stats(seconds["open_clip_accumulating"], seconds["lakeclip_in_parts"]),
            "seed": ratio_stats(seconds["seed"], seconds["lakeclip_in_parts"]),
        },
        "time_of_at_once": ratio_stats(seconds["lakeclip_in_parts"], seconds["lakeclip_at_once"]),
        "memory_of": {
            side: sides["lakeclip_in_parts"]["peak_mib"] / sides[side]["peak_mib"]
            for side in SIDES
            if side != "lakeclip_in_parts"
        },
    }


def _run(flags: argparse.Namespace, side: str) -> dict[str, Any]:
    arguments = ["--side", side, "--model", flags.model, "--precision", flags.precision, "--clock", flags.clock]
    arguments += ["--batch", str(flags.batch), "--micro", str(flags.micro), "--steps", str(flags.steps)]
    arguments += ["--threads", str(flags.threads), *(["--captions", flags.captions] if flags.captions else [])]
    return run_side(__file__, arguments, side=side, threads=flags.threads)


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


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", choices=MODELS, default="ViT-B/32", help="model to measure (ViT-B/32)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 is autocast (fp32)")
    add("--captions", metavar="FILE", help="file with a caption per line; random by default")
    add("--batch", type=int, default=512, help="pairs per step (512)")
    add("--micro", type=int, default=64, help="pairs per micro-batch; must divide --batch (64)")
    add("--steps", type=int, default=2, help="timed steps per measurement, after an untimed one (2)")
    add("--rounds", type=int, default=3, help="measurements of each side (3)")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of each side (all cores)")
    add(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: CPU time of the process, for a rough look on a busy machine",
    )
    add("--side", choices=SIDES, help=argparse.SUPPRESS)
    add("--out", metavar="FILE", help="write the result to this JSON file")
    flags = parser.parse_args()
    if flags.batch % flags.micro:
        parser.error("--micro must divide --batch: open_clip's batches all have the same size")
    return flags


if __name__ == "__main__":
    main()
