"""Claim: a run that is killed again and again ends with the weights and curves of an uninterrupted run, to the bit.

    .venv/bin/python benchmarks/soak.py --kills 50 --out benchmarks/results/NAME.json

One run is uninterrupted. Others are started and resumed by one command (`--resume auto`) and killed at random moments:
by SIGKILL or, one time in five, by SIGTERM, after which they must exit within the grace period; while a checkpoint is
written, during validation, or at any time. Each segment has a random number of loading processes. The script runs until
it has made enough kills, and compares each run with the uninterrupted one. It kills an ingest as well.
"""

from __future__ import annotations

import argparse
import csv
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

from common.machine import machine
from common.results import log, today, write_result

_MODEL = """
tiny:
  {embed_dim: 32, image_resolution: 32, vision_layers: 2, vision_width: 64, vision_patch_size: 8, context_length: 77,
   vocab_size: 49408, transformer_width: 64, transformer_heads: 1, transformer_layers: 2}
"""
#: Every source of randomness and every state that a run can have: dropped patches, an average, bfloat16 moments.
_SETTINGS = (
    *("--model", "tiny", "--lr", "1e-3", "--patch-dropout", "0.25", "--ema-decay", "0.9", "--states", "bf16"),
    *("--batch-size", "8", "--val-fraction", "0.2", "--save-every-steps", "10", "--keep-last", "3"),
    *("--accelerator", "cpu", "--track", "tensorboard"),
)
#: Columns of the curves that depend on time and memory, not on the training.
_TIMINGS = ("train/samples_per_second", "train/data_wait", "train/memory_gb", "train/seconds", "train/mfu")
_GRACE = 30.0


def main() -> None:
    """Parse the flags, kill and compare runs, and write the result."""
    flags = _flags()
    with tempfile.TemporaryDirectory(dir=flags.work) as work:
        result = soak(Path(work), flags.kills, flags.epochs, flags.seed)
    write_result(result, flags.out)
    print(
        json.dumps({name: result[name] for name in ("kills", "during", "runs", "slowest_sigterm", "equal")}, indent=1)
    )
    if not result["equal"]:
        sys.exit(1)


def soak(work: Path, kills: int, epochs: int, seed: int) -> dict[str, Any]:
    """Kill runs until this many kills are reached, and compare each run with an uninterrupted one."""
    rng = random.Random(seed)
    ingest_kills = _ingest_with_kills(work, rng)
    (work / "models.yaml").write_text(_MODEL)
    log("training the uninterrupted run")
    if _train(work, "whole", epochs, 0).wait():
        sys.exit("the uninterrupted run failed")
    during: Counter[str] = Counter()
    graces: list[float] = []
    runs: list[dict[str, Any]] = []
    while sum(during.values()) < kills:
        name, segments = f"cut-{len(runs)}", 0
        while True:
            process = _train(work, name, epochs, rng.choice((0, 1, 2)))
            enough = sum(during.values()) >= kills
            killed = not enough and _kill(process, work / "runs" / name, rng, during, graces)
            segments += 1
            if killed:
                continue
            if process.wait():
                sys.exit(f"{name} failed with exit code {process.returncode}")
            break
        differences = compare(work / "runs/whole", work / "runs" / name)
        runs.append({"parts": segments, "differences": differences})
        log(f"{name}: {segments} segments, {differences or 'equal'}; {sum(during.values())} kills")
    return {
        "date": today(),
        "command": f"python benchmarks/soak.py --kills {kills} --epochs {epochs} --seed {seed}",
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
    """Return the names of what differs between two runs: weights, average, optimiser, guard, data position, curves."""
    import torch

    differences = []
    states = [torch.load(run / "checkpoints/last.ckpt", map_location="cpu", weights_only=True) for run in (whole, cut)]
    # Only what has to be equal: the time and the path of the run's folder differ.
    for name in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "guard", "global_step"):
        differences += _differences(name, states[0].get(name), states[1].get(name))
    differences += _differences("data position", *(state["PairDataModule"] for state in states))
    best = [torch.load(run / "checkpoints/best.ckpt", map_location="cpu", weights_only=True) for run in (whole, cut)]
    differences += _differences("best", best[0]["state_dict"], best[1]["state_dict"])
    if (rows := [_curves(run) for run in (whole, cut)])[0] != rows[1]:
        first = next((n for n, (a, b) in enumerate(zip(*rows, strict=False)) if a != b), min(map(len, rows)))
        differences.append(f"curves from row {first} of {len(rows[0])} ({len(rows[1])})")
    return differences


def _differences(name: str, left: Any, right: Any) -> list[str]:
    import torch

    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return [] if torch.equal(left, right) and left.dtype == right.dtype else [name]
    if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
        return [line for key in left for line in _differences(f"{name}.{key}", left[key], right[key])][:5]
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)) and len(left) == len(right):
        return [
            line for n, pair in enumerate(zip(left, right, strict=True)) for line in _differences(f"{name}.{n}", *pair)
        ][:5]
    return [] if left == right else [name]


def _curves(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        rows = [
            {name: value for name, value in row.items() if value and name not in _TIMINGS}
            for row in csv.DictReader(file)
        ]
    return [row for row in rows if row]


def _train(work: Path, name: str, epochs: int, workers: int) -> subprocess.Popen[bytes]:
    arguments = ["train", "--lake", str(work / "lake"), "--model-config", str(work / "models.yaml"), *_SETTINGS]
    arguments += ["--max-epochs", str(epochs), "--num-workers", str(workers)]
    arguments += ["--runs", str(work / "runs"), "--name", name]
    command = [sys.executable, "-m", "lakeclip", *arguments, "--resume", "auto"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})


def _kill(
    process: subprocess.Popen[bytes], run: Path, rng: random.Random, during: Counter[str], graces: list[float]
) -> bool:
    """Kill a run at some moment after its start; return False if it ended before that."""
    aim = rng.choice(("any time", "any time", "a checkpoint", "a checkpoint", "validation"))
    signal_sent = signal.SIGTERM if rng.random() < 0.2 else signal.SIGKILL
    initial_size = _size(run / "metrics.csv")
    while process.poll() is None and _size(run / "metrics.csv") == initial_size:
        time.sleep(0.01)
    if aim == "a checkpoint":
        until = time.monotonic() + 5
        while process.poll() is None and time.monotonic() < until and not list(run.glob("checkpoints/*.part")):
            time.sleep(0.0005)
        time.sleep(0.01 * rng.random())
    elif aim == "validation":
        # Validation follows the end of an epoch, which rewrites the best checkpoint.
        best, until = _mtime(run / "checkpoints/best.ckpt"), time.monotonic() + 5
        while process.poll() is None and time.monotonic() < until and _mtime(run / "checkpoints/best.ckpt") == best:
            time.sleep(0.0005)
    else:
        time.sleep(1.5 * rng.random())
    if process.poll() is not None:
        return False
    sent = time.monotonic()
    process.send_signal(signal_sent)
    try:
        code = process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        sys.exit(f"a run was still running {_GRACE:g} s after {signal_sent.name}")
    if code == 0:
        return False
    if signal_sent == signal.SIGTERM:
        graces.append(time.monotonic() - sent)
        if code not in (128 + signal_sent, -signal_sent):
            sys.exit(f"a run ended with exit code {code} after SIGTERM")
    during[f"{signal_sent.name} aimed at {aim}"] += 1
    return True


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _mtime(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def _ingest_with_kills(work: Path, rng: random.Random) -> int:
    """Ingest a folder of synthetic scenes, killing the ingest and repeating its command; return the number of kills."""
    from lakeclip.ingestion.sources.synthetic import scenes
    from lakeclip.lake.dataset import open_lake

    num = 1200
    photos = work / "photos"
    photos.mkdir()
    for sample in scenes("train", num, 0):
        (photos / f"{sample.key}.jpg").write_bytes(sample.image)
        (photos / f"{sample.key}.txt").write_text("\n".join(sample.captions), encoding="utf-8")
    command = [sys.executable, "-m", "lakeclip", "ingest", str(photos)]
    start = time.monotonic()
    subprocess.run([*command, str(work / "uninterrupted")], stdout=subprocess.DEVNULL, check=True)
    seconds = time.monotonic() - start
    kills = 0
    while kills < 5:
        process = subprocess.Popen(
            [*command, str(work / "lake")], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            # In the second half, when it writes; the first is spent on imports.
            process.wait(seconds * (0.4 + 0.6 * rng.random()))
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        errors = process.communicate()[1]
        if process.returncode >= 0:
            break
    if process.returncode < 0:
        finished = subprocess.run([*command, str(work / "lake")], capture_output=True, text=True)
        process.returncode, errors = finished.returncode, finished.stderr
    if process.returncode and "there is already a lake" not in errors:
        sys.exit(errors)
    if len(open_lake(work / "lake")) != num:
        sys.exit(f"the lake has {len(open_lake(work / 'lake'))} rows instead of {num}")
    return kills


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--kills", type=int, default=50, help="number of kills during training (50)")
    add("--epochs", type=int, default=3, help="epochs of each run, of 120 steps and a validation each (3)")
    add("--seed", type=int, default=0, help="seed of the random moments (0)")
    add("--work", metavar="DIR", help="folder for lake and runs; temporary by default")
    add("--out", metavar="FILE", help="write the result to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
