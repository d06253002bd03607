"""The claim: a run that is killed again and again ends with the weights and curves of one that never was, to the bit.

    .venv/bin/python benchmarks/soak.py --kills 50 --out benchmarks/results/NAME.json

One run is left alone. Others are begun and gone on with by one command (`--resume auto`) and killed at random moments:
by SIGKILL, or, one time in five, by SIGTERM, after which they have to be gone within the grace; aimed at the writing of
a checkpoint, at validation, or at any time. Each part has another number of loading processes. So many runs are made as
it takes for the kills, and each is compared with the one that was left alone. An ingest is killed as well.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from machine import machine

_MODEL = """
tiny:
  {embed_dim: 32, image_resolution: 32, vision_layers: 2, vision_width: 64, vision_patch_size: 8, context_length: 77,
   vocab_size: 49408, transformer_width: 64, transformer_heads: 1, transformer_layers: 2}
"""
#: Every source of chance and every state that a run can have: dropped patches, an average, bfloat16 moments.
_SETTINGS = (
    *("--model", "tiny", "--lr", "1e-3", "--patch-dropout", "0.25", "--ema-decay", "0.9", "--states", "bf16"),
    *("--batch-size", "8", "--val-fraction", "0.2", "--save-every-steps", "10", "--keep-last", "3"),
    *("--accelerator", "cpu", "--track", "tensorboard"),
)
#: Columns of the curves that tell of the time and not of the run.
_CLOCKS = ("train/samples_per_second", "train/data_wait", "train/memory_gb", "train/seconds", "train/mfu")
_GRACE = 30.0


def main() -> None:
    """Parse the flags, kill, compare, and write the result."""
    flags = _flags()
    with tempfile.TemporaryDirectory(dir=flags.work) as work:
        result = soak(Path(work), flags.kills, flags.epochs, flags.seed)
    if flags.out:
        Path(flags.out).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(
        json.dumps({name: result[name] for name in ("kills", "during", "runs", "slowest_sigterm", "equal")}, indent=1)
    )
    if not result["equal"]:
        sys.exit(1)


def soak(work: Path, kills: int, epochs: int, seed: int) -> dict[str, Any]:
    """Kill runs until there were so many kills, and compare each run with one that was left alone."""
    chance = random.Random(seed)
    ingest_kills = _killed_ingest(work, chance)
    (work / "models.yaml").write_text(_MODEL)
    print("the run that is left alone", file=sys.stderr, flush=True)
    if _train(work, "whole", epochs, 0).wait():
        sys.exit("the run that is left alone failed")
    during: Counter[str] = Counter()
    graces: list[float] = []
    runs: list[dict[str, Any]] = []
    while sum(during.values()) < kills:
        name, parts = f"cut-{len(runs)}", 0
        while True:
            process = _train(work, name, epochs, chance.choice((0, 1, 2)))
            enough = sum(during.values()) >= kills
            ended = None if enough else _kill(process, work / "runs" / name, chance, during, graces)
            parts += 1
            if ended is None and process.wait() == 0:
                break
            if ended is None:
                sys.exit(f"{name} failed with code {process.returncode}")
        differences = compare(work / "runs/whole", work / "runs" / name)
        runs.append({"parts": parts, "differences": differences})
        print(
            f"{name}: {parts} parts, {differences or 'equal'}; {sum(during.values())} kills",
            file=sys.stderr,
            flush=True,
        )
    return {
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/soak.py --kills {kills} --epochs {epochs} --seed {seed} --out FILE",
        "machine": machine(1),
        "versions": {name: version(name) for name in ("torch", "lightning", "deeplake")},
        "settings": " ".join(_SETTINGS),
        "kills": sum(during.values()),
        "during": dict(during),
        "ingest_kills": ingest_kills,
        "slowest_sigterm": round(max(graces, default=0.0), 2),
        "runs": runs,
        "equal": not any(run["differences"] for run in runs),
    }


def compare(whole: Path, cut: Path) -> list[str]:
    """What of two runs is not the same to the bit: weights, average, optimiser, guard, data, curves."""
    import torch

    found = []
    states = [torch.load(run / "checkpoints/last.ckpt", map_location="cpu", weights_only=True) for run in (whole, cut)]
    # The time, and the place of the run's own folder, are others.
    for name in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "guard", "global_step"):
        found += _differences(name, states[0].get(name), states[1].get(name))
    places = [next(value for name, value in state.items() if name == "PairDataModule") for state in states]
    found += _differences("place in the data", *places)
    best = [torch.load(run / "checkpoints/best.ckpt", map_location="cpu", weights_only=True) for run in (whole, cut)]
    found += _differences("best", best[0]["state_dict"], best[1]["state_dict"])
    if (rows := [_curves(run) for run in (whole, cut)])[0] != rows[1]:
        place = next((n for n, (a, b) in enumerate(zip(*rows, strict=False)) if a != b), min(map(len, rows)))
        found.append(f"curves from row {place} of {len(rows[0])} ({len(rows[1])})")
    return found


def _differences(name: str, one: Any, other: Any) -> list[str]:
    import torch

    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) and one.dtype == other.dtype else [name]
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [line for key in one for line in _differences(f"{name}.{key}", one[key], other[key])][:5]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return [
            line for n, pair in enumerate(zip(one, other, strict=True)) for line in _differences(f"{name}.{n}", *pair)
        ][:5]
    return [] if one == other else [name]


def _curves(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        rows = [
            {name: value for name, value in row.items() if value and name not in _CLOCKS}
            for row in csv.DictReader(file)
        ]
    return [row for row in rows if row]


def _train(work: Path, name: str, epochs: int, workers: int) -> subprocess.Popen[bytes]:
    words = ["train", "--lake", str(work / "lake"), "--model-config", str(work / "models.yaml"), *_SETTINGS]
    words += ["--max-epochs", str(epochs), "--num-workers", str(workers), "--runs", str(work / "runs"), "--name", name]
    command = [sys.executable, "-m", "lakeclip", *words, "--resume", "auto"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})


def _kill(
    process: subprocess.Popen[bytes], run: Path, chance: random.Random, during: Counter[str], graces: list[float]
) -> bool | None:
    """Kill a run at some moment after it has begun; None where it came to its end before that."""
    aim = chance.choice(("any time", "any time", "a checkpoint", "a checkpoint", "validation"))
    by = signal.SIGTERM if chance.random() < 0.2 else signal.SIGKILL
    begun = _size(run / "metrics.csv")
    while process.poll() is None and _size(run / "metrics.csv") == begun:
        time.sleep(0.01)
    if aim == "a checkpoint":
        until = time.monotonic() + 5
        while process.poll() is None and time.monotonic() < until and not list(run.glob("checkpoints/*.part")):
            time.sleep(0.0005)
        time.sleep(0.01 * chance.random())
    elif aim == "validation":
        # It follows the end of an epoch, whose last checkpoint has another time than the one before.
        best, until = _time(run / "checkpoints/best.ckpt"), time.monotonic() + 5
        while process.poll() is None and time.monotonic() < until and _time(run / "checkpoints/best.ckpt") == best:
            time.sleep(0.0005)
    else:
        time.sleep(1.5 * chance.random())
    if process.poll() is not None:
        return None
    sent = time.monotonic()
    process.send_signal(by)
    try:
        code = process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        sys.exit(f"a run was still there {_GRACE:g} s after SIGTERM")
    if code == 0:
        return None
    if by == signal.SIGTERM:
        graces.append(time.monotonic() - sent)
        if code not in (128 + by, -by):
            sys.exit(f"a run ended with code {code} after SIGTERM")
    during[f"{by.name} aimed at {aim}"] += 1
    return True


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _time(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def _killed_ingest(work: Path, chance: random.Random) -> int:
    """Make the lake from a folder of drawn scenes, killed on the way; the same command goes on each time."""
    from lakeclip.lake.dataset import open_lake
    from lakeclip.lake.sources.scenes import scenes

    num = 1200
    photos = work / "photos"
    photos.mkdir()
    for sample in scenes("train", num, 0):
        (photos / f"{sample.key}.jpg").write_bytes(sample.image)
        (photos / f"{sample.key}.txt").write_text("\n".join(sample.captions), encoding="utf-8")
    command = [sys.executable, "-m", "lakeclip", "ingest", str(photos)]
    began = time.monotonic()
    subprocess.run([*command, str(work / "unharmed")], stdout=subprocess.DEVNULL, check=True)
    seconds = time.monotonic() - began
    kills = 0
    while kills < 5:
        process = subprocess.Popen(
            [*command, str(work / "lake")], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            # Its second half, where it writes; the first is spent on imports.
            process.wait(seconds * (0.4 + 0.6 * chance.random()))
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        errors = process.communicate()[1]
        if process.returncode >= 0:
            break
    if process.returncode < 0:
        done = subprocess.run([*command, str(work / "lake")], capture_output=True, text=True)
        process.returncode, errors = done.returncode, done.stderr
    if process.returncode and "there is a lake already" not in errors:
        sys.exit(errors)
    if len(open_lake(work / "lake")) != num:
        sys.exit(f"the lake has {len(open_lake(work / 'lake'))} rows of {num}")
    return kills


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--kills", type=int, default=50, help="of runs in training (50)")
    add("--epochs", type=int, default=3, help="of each run: 120 steps and a validation each (3)")
    add("--seed", type=int, default=0, help="of the moments (0)")
    add("--work", metavar="DIR", help="where lake and runs are made; a temporary folder by default")
    add("--out", metavar="FILE", help="write the result to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
