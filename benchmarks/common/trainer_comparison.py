"""Comparison of two trainers: lakeclip's from a lake, open_clip's from WebDataset shards of the same photos.

Both use the same model, recipe, precision, threads and workers, and never run at the same time. end_to_end.py and
quality.py share this code: it launches either side, times it, and ensures that both train the same model.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.snapshots import Snapshot, SnapshotWatcher

SIDES = ("lakeclip", "open_clip")
_PEER = Path(__file__).with_name("open_clip_side.py")
_MODELS = Path(__file__).parents[1] / "models.yaml"
#: Steps of a short run, which rates are measured against, and how many more a pilot run takes.
_SHORT, _PILOT = 2, 10


@dataclass(frozen=True)
class Recipe:
    """Settings of both sides."""

    batch_size: int
    lr: float
    weight_decay: float
    min_area: float
    precision: str
    num_workers: int
    seed: int


@dataclass(frozen=True)
class Rate:
    """Line through the wall-clock times of two runs: seconds = start + steps / steps_per_second."""

    start: float
    steps_per_second: float

    @classmethod
    def between(cls, few: tuple[int, float], many: tuple[int, float]) -> Rate:
        """Fit the line to (steps, seconds) of a short and a long run.

        Raises:
            SystemExit: the longer run did not take longer.
        """
        if many[1] <= few[1]:
            sys.exit(
                f"error: {few[0]} steps took {few[1]:.0f} s but {many[0]} only {many[1]:.0f} s; is the machine busy?"
            )
        per_step = (many[1] - few[1]) / (many[0] - few[0])
        return cls(max(0.0, few[1] - few[0] * per_step), 1 / per_step)

    def steps_within(self, seconds: float) -> int:
        """Return how many steps fit into a process of this length, start-up included; at least one."""
        return max(1, math.floor((seconds - self.start) * self.steps_per_second))


@dataclass(frozen=True)
class Run:
    """A finished training process.

    Attributes:
        seconds: wall-clock time from the start of the process to its end.
        losses: (seconds since the start, samples seen, loss).
        snapshots: checkpoints; the last one is from the end.
        load: load average of the machine before the run.
    """

    steps: int
    seconds: float
    command: list[str]
    losses: list[tuple[float, int, float]]
    snapshots: list[Snapshot]
    load: float


class TrainerComparison:
    """Comparison of both trainers on one data set with one model and recipe.

    Args:
        work: empty or new folder for lakes, runs and logs.
        tars: the training shards.
        model: one of lakeclip's models, or of those in models.yaml.
        flags: parsed flags, among them those of `add_flags`.
        points: number of checkpoints to keep, at equal distances; the last one is from the end.
    """

    def __init__(
        self,
        work: Path,
        tars: Sequence[Path],
        model: str,
        recipe: Recipe,
        flags: argparse.Namespace,
        *,
        points: int = 1,
    ) -> None:
        work.mkdir(parents=True, exist_ok=True)
        if any(work.iterdir()):
            sys.exit(f"error: {work} is not empty")
        if shutil.which(flags.peer_python) is None:
            sys.exit(f"error: no Python at {flags.peer_python}; `make peer` creates the environment with open_clip")
        self.work, self.model, self.recipe, self.points = work, model, recipe, points
        self.tars = [str(path) for path in tars]
        self._flags = flags
        self._lakeclip = str(Path(sys.executable).with_name("lakeclip"))
        self.peer_model = "lakeclip-" + model.replace("/", "-")
        self._log = (work / "log.txt").open("a", encoding="utf-8")
        self.rows, self.ingest_seconds = self.ingest("train", self.tars)
        self.sizes = self._model_sizes()
        self.peer = self._check_sizes()

    # ── preparation ───────────────────────────────────────────────────────────────────────────────────────────────

    def ingest(self, name: str, tars: Sequence[str]) -> tuple[int, float]:
        """Write the lake `work / name`; return its number of rows and the seconds that it took."""
        report = self.work / f"{name}.json"
        seconds = self.call([self._lakeclip, "ingest", *tars, str(self.work / name), "--report", str(report)])
        return int(json.loads(report.read_text(encoding="utf-8"))["rows"]), seconds

    def _model_sizes(self) -> dict[str, Any]:
        path = self.work / "models.json"
        self.call([self._lakeclip, "models", "--model-config", str(_MODELS), "--json", str(path)])
        models: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["models"]
        if self.model not in models:
            sys.exit(f"error: unknown model {self.model!r}; available: {', '.join(models)}")
        sizes: dict[str, Any] = models[self.model]
        return sizes

    def _check_sizes(self) -> dict[str, Any]:
        """Write the model in open_clip's format, and check that open_clip builds as many parameters.

        Raises:
            SystemExit: the numbers of parameters differ.
        """
        config, expected = self.sizes["config"], self.sizes["parameters"]
        if self._flags.peer_context_length:
            expected -= (config["context_length"] - self._flags.peer_context_length) * config["transformer_width"]
            config = {**config, "context_length": self._flags.peer_context_length}
        models = self.work / "models"
        models.mkdir()
        content = json.dumps(open_clip_config(config), indent=2)
        (models / f"{self.peer_model}.json").write_text(content, encoding="utf-8")
        finished = subprocess.run(self.peer_command("describe"), check=True, capture_output=True, text=True)
        peer: dict[str, Any] = json.loads(finished.stdout)
        if peer["parameters"] != expected:
            sys.exit(f"error: the model has {expected:,} parameters in lakeclip, {peer['parameters']:,} in open_clip")
        return peer

    # ── training ──────────────────────────────────────────────────────────────────────────────────────────────────

    def train(self, side: str, steps: int, folder: Path) -> Run:
        """Run one side's training process to its end.

        Args:
            steps: rounded down to a multiple of `points`, but at least one step per point.
            folder: new folder for the run.
        """
        load = os.getloadavg()[0]
        multiple = self.points * (self.recipe.num_workers if side == "open_clip" else 1)
        steps = max(1, steps // multiple) * multiple
        command = self.command(side, steps, folder)
        start = time.time()
        batch_size = self.recipe.batch_size
        if side == "lakeclip":
            every = steps // self.points
            last = folder / "checkpoints" / "last.ckpt"
            with SnapshotWatcher(last, [every * point for point in range(1, self.points)]) as watcher:
                seconds = self.call(command)
            snapshots = [*watcher.snapshots, Snapshot(last, steps, last.stat().st_mtime)]
            losses = _tensorboard_losses(folder, batch_size)
        else:
            seconds = self.call(command)
            losses = _open_clip_losses(folder / "out.log", steps // self.points * batch_size)
            files = [folder / "checkpoints" / f"epoch_{point}.pt" for point in range(1, self.points + 1)]
            snapshots = [
                Snapshot(file, steps // self.points * point, file.stat().st_mtime)
                for point, file in enumerate(files, start=1)
            ]
        return Run(
            steps,
            seconds,
            command,
            [(seconds - start, samples, loss) for seconds, samples, loss in losses],
            [snapshot._replace(seconds=snapshot.seconds - start) for snapshot in snapshots],
            load,
        )

    def command(self, side: str, steps: int, folder: Path) -> list[str]:
        """Return the command of one side's training process."""
        return self._lakeclip_command(steps, folder) if side == "lakeclip" else self._open_clip_command(steps, folder)

    def _lakeclip_command(self, steps: int, folder: Path) -> list[str]:
        recipe, lake = self.recipe, str(self.work / "train")
        epochs = math.ceil(steps / (self.rows // recipe.batch_size))
        command = [self._lakeclip, "train", "--lake", lake, "--model-config", str(_MODELS), "--model", self.model]
        command += ["--max-steps", str(steps), "--max-epochs", str(epochs), "--batch-size", str(recipe.batch_size)]
        command += ["--lr", str(recipe.lr), "--weight-decay", str(recipe.weight_decay)]
        command += ["--betas", *map(str, self._betas), "--eps", str(self._eps)]
        command += ["--warmup-steps", str(_warmup(steps)), "--seed", str(recipe.seed)]
        command += ["--resize-ratio", str(recipe.min_area), "--precision", recipe.precision]
        # open_clip holds no rows out either.
        command += ["--val-fraction", "0", "--max-val-rows", "100"]
        if self.points > 1:
            # lakeclip writes its last checkpoint whenever it validates, so it has to validate: on its training rows.
            command += ["--val-lake", lake, "--val-every-steps", str(steps // self.points)]
        command += ["--num-workers", str(recipe.num_workers), "--accelerator", "cpu"]
        return [*command, "--runs", str(folder.parent), "--name", folder.name, *shlex.split(self._flags.flags)]

    def _open_clip_command(self, steps: int, folder: Path) -> list[str]:
        recipe = self.recipe
        # "Epochs" of as many samples as fit: they repeat the shards as often as needed, shuffled each time, and unlike
        # whole epochs leave none of the minutes unused. The schedule is one cosine over all of them.
        command = [*self.peer_command("train"), "--train-data", "::".join(self.tars), "--dataset-type", "webdataset"]
        command += ["--train-num-samples", str(steps // self.points * recipe.batch_size), "--epochs", str(self.points)]
        command += ["--batch-size", str(recipe.batch_size), "--lr", str(recipe.lr), "--wd", str(recipe.weight_decay)]
        command += ["--beta1", str(self._betas[0]), "--beta2", str(self._betas[1]), "--eps", str(self._eps)]
        command += ["--warmup", str(_warmup(steps)), "--aug-cfg", f"scale=({recipe.min_area},1.0)"]
        command += ["--precision", {"32": "fp32", "bf16": "amp_bf16"}[recipe.precision], "--seed", str(recipe.seed)]
        command += ["--workers", str(recipe.num_workers), "--device", "cpu", "--log-every-n-steps", "10"]
        return [*command, "--logs", str(folder.parent), "--name", folder.name, *shlex.split(self._flags.peer_flags)]

    # Table 19 of the paper. Both sides have these defaults; they are passed so that they stay equal.
    @property
    def _betas(self) -> tuple[float, float]:
        return (0.9, 0.98) if self.sizes["config"]["vision_patch_size"] else (0.9, 0.999)

    @property
    def _eps(self) -> float:
        return 1e-6 if self.sizes["config"]["vision_patch_size"] else 1e-8

    # ── timing ────────────────────────────────────────────────────────────────────────────────────────────────────

    def pilot(self) -> dict[str, Rate]:
        """Estimate the rate of each side from a few steps."""
        times: dict[str, list[tuple[int, float]]] = {side: [] for side in SIDES}
        for steps in (_SHORT, _SHORT + _PILOT):
            for side in SIDES:
                run = self.train(side, steps, self.work / f"pilot-{side}-{steps}")
                times[side].append((run.steps, run.seconds))
        return {side: Rate.between(*runs) for side, runs in times.items()}

    def measure(self, rough: dict[str, Rate], number: int, seconds: float) -> dict[str, Rate]:
        """Measure the rate of each side, from a short run and one that takes this many seconds longer.

        Args:
            rough: result of `pilot`.
            number: of the round. The sides take turns at starting, so that other work on the machine affects both.
        """
        times: dict[str, list[tuple[int, float]]] = {side: [] for side in SIDES}
        for length in ("short", "long"):
            for side in SIDES if number % 2 == 0 else SIDES[::-1]:
                steps = _SHORT + (length == "long") * max(1, round(seconds * rough[side].steps_per_second))
                run = self.train(side, steps, self.work / f"round{number}-{side}-{length}")
                times[side].append((run.steps, run.seconds))
        return {side: Rate.between(*runs) for side, runs in times.items()}

    # ── processes ─────────────────────────────────────────────────────────────────────────────────────────────────

    def peer_command(self, verb: str) -> list[str]:
        """Return the command of open_clip's side, up to its own arguments."""
        command = [self._flags.peer_python, str(_PEER), verb, str(self.work / "models")]
        return [*command, "--model", self.peer_model] if verb == "train" else [*command, self.peer_model]

    def call(self, command: list[str]) -> float:
        """Run a process to its end, with its output in the log; return its wall-clock seconds.

        Raises:
            SystemExit: the process failed.
        """
        self._log.write(f"$ {shlex.join(command)}\n")
        self._log.flush()
        start = time.perf_counter()
        code = subprocess.run(command, stdout=self._log, stderr=subprocess.STDOUT).returncode
        if code:
            lines = Path(self._log.name).read_text(encoding="utf-8").splitlines()
            sys.exit("\n".join([*lines[-20:], f"error: {shlex.join(command)} failed with exit code {code}"]))
        return time.perf_counter() - start

    def without_local_paths(self, command: Sequence[str]) -> str:
        """Return a command line without paths on this machine."""
        names = {str(self.work): "WORK", str(Path(self.tars[0]).parent): "DATA", self._lakeclip: "lakeclip"}
        names |= {str(file): str(file.relative_to(_MODELS.parents[1])) for file in (_PEER, _MODELS)}
        names |= {self._flags.peer_python: "PEER_PYTHON"}
        line = shlex.join(command)
        for path, name in sorted(names.items(), key=lambda item: -len(item[0])):
            line = line.replace(path, name)
        # Drop the folders of any other path.
        return re.sub(r"(?<![\w.])/[\w./-]*/", "", line)

    def describe(self) -> dict[str, Any]:
        """Describe the data, the model and the recipe for the result."""
        return {
            "pairs": self.rows,
            "model": {
                "name": self.model,
                "parameters": self.sizes["parameters"],
                "open_clip_parameters": self.peer["parameters"],
                **self.sizes["config"],
            },
            "recipe": {
                **vars(self.recipe),
                "betas": self._betas,
                "eps": self._eps,
                "warmup": "a tenth of the steps",
                "schedule": "cosine to 0",
            },
            "versions": {
                "lakeclip": {
                    "python": platform.python_version(),
                    **{name: version(name) for name in ("lakeclip", "torch", "lightning", "deeplake")},
                },
                "open_clip": self.peer["versions"],
            },
        }


def open_clip_config(config: dict[str, Any]) -> dict[str, Any]:
    """Convert a model's sizes to open_clip's format.

    Args:
        config: the sizes as `lakeclip models --json` writes them.
    """
    vision: dict[str, Any] = {
        "image_size": config["image_resolution"],
        "layers": config["vision_layers"],
        "width": config["vision_width"],
        "head_width": 64,
    }
    if config["vision_patch_size"]:
        vision["patch_size"] = config["vision_patch_size"]
    return {
        "embed_dim": config["embed_dim"],
        "quick_gelu": True,
        "vision_cfg": vision,
        "text_cfg": {
            "context_length": config["context_length"],
            "vocab_size": config["vocab_size"],
            "width": config["transformer_width"],
            "heads": config["transformer_heads"],
            "layers": config["transformer_layers"],
        },
    }


def find_tars(folder: str, kind: str) -> list[Path]:
    """Return the shards KIND-*.tar of a folder, sorted.

    Raises:
        SystemExit: the folder has none.
    """
    tars = sorted(Path(folder).glob(f"{kind}-*.tar"))
    if not tars:
        sys.exit(f"error: {folder} contains no {kind}-*.tar")
    return tars


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every comparison of trainers has."""
    add = parser.add_argument
    add("--peer-python", default=".venv-peer/bin/python", help="Python of the environment with open_clip")
    add("--peer-flags", default="", help="more flags for open_clip, e.g. --peer-flags=--torchcompile")
    add("--peer-context-length", type=int, metavar="N", help="give open_clip's text tower N tokens instead of 77")
    add("--flags", default="", help="more flags for lakeclip, e.g. --flags=--compile")
    add("--precision", choices=("32", "bf16"), default="bf16", help="precision of both sides (bf16)")
    add("--workers", type=int, default=1, help="loading processes of both sides (1)")
    add("--seed", type=int, default=0, help="seed of both sides (0)")
    add("--work", metavar="DIR", help="empty or new folder for lakes, runs and logs; a temporary one by default")
    add("--out", metavar="FILE", help="write the result to this JSON file")


def _warmup(steps: int) -> int:
    return max(1, steps // 10)


def _tensorboard_losses(run: Path, batch_size: int) -> list[tuple[float, int, float]]:
    """Read (time, samples, loss) of a lakeclip run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    if "train/loss" not in events.Tags()["scalars"]:
        return []
    return [(event.wall_time, (event.step + 1) * batch_size, event.value) for event in events.Scalars("train/loss")]


def _open_clip_losses(path: Path, epoch_samples: int) -> list[tuple[float, int, float]]:
    """Read (time, samples, loss) from the log of open_clip's training."""
    line = re.compile(r"^(\S+) \| INFO \| Train Epoch: (\d+) \[ *(\d+)/.* Loss: ([\d.]+)", re.MULTILINE)
    matches = line.findall(path.read_text(encoding="utf-8"))
    return [
        (
            datetime.datetime.strptime(logged_at, "%Y-%m-%d,%H:%M:%S").timestamp(),
            int(epoch) * epoch_samples + int(samples),
            float(loss),
        )
        for logged_at, epoch, samples, loss in matches
    ]
