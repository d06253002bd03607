"""Two trainers on one data set: lakeclip's from a lake, open_clip's from WebDataset shards of the same photos.

Same model, recipe, arithmetic, threads and workers, one after the other and never at once. What `end_to_end.py` and
`quality.py` share: launching either side, timing it, and making sure that both train the same thing.
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
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from snapshots import Snapshot, Watch

SIDES = ("lakeclip", "open_clip")
_PEER = Path(__file__).with_name("open_clip_side.py")
_MODELS = Path(__file__).with_name("models.yaml")
#: Steps of the runs that all figures are measured against, at least; and by how many a pilot run has more.
_SHORT, _PILOT = 2, 10


@dataclass(frozen=True)
class Recipe:
    """What both sides are told."""

    batch_size: int
    lr: float
    weight_decay: float
    min_area: float
    precision: str
    num_workers: int
    seed: int


@dataclass(frozen=True)
class Rate:
    """A straight line through two runs' wall-clock times: seconds = start + steps / steps_per_second."""

    start: float
    steps_per_second: float

    @classmethod
    def between(cls, few: tuple[int, float], many: tuple[int, float]) -> Rate:
        """Through two runs' steps and seconds.

        Raises:
            SystemExit: more steps took no longer.
        """
        if many[1] <= few[1]:
            sys.exit(f"error: {few[0]} steps took {few[1]:.0f} s and {many[0]} took {many[1]:.0f} s: too noisy here")
        per_step = (many[1] - few[1]) / (many[0] - few[0])
        return cls(max(0.0, few[1] - few[0] * per_step), 1 / per_step)

    def steps_within(self, seconds: float) -> int:
        """Steps of a run that takes so long from the start of its process to the end; at least one."""
        return max(1, math.floor((seconds - self.start) * self.steps_per_second))


@dataclass(frozen=True)
class Run:
    """A finished training process.

    Attributes:
        seconds: wall-clock time from the start of the process to its end.
        losses: (seconds since the start, samples seen, loss).
        snapshots: checkpoints, the last of them at the end.
        load: of the machine, before.
    """

    steps: int
    seconds: float
    command: list[str]
    losses: list[tuple[float, int, float]]
    snapshots: list[Snapshot]
    load: float


class Contest:
    """One data set, one model, one recipe, two trainers.

    Args:
        work: empty or new folder for lakes, runs and logs.
        tars: the training shards.
        model: name of one of lakeclip's models, or of those in models.yaml.
        flags: as `add_flags` made them.
        points: moments of a run, equally far apart, at which a checkpoint is kept; the last is the end.
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
            sys.exit(f"error: no Python at {flags.peer_python}; `make peer` makes the environment with open_clip")
        self.work, self.model, self.recipe, self.points = work, model, recipe, points
        self.tars = [str(path) for path in tars]
        self._flags = flags
        self._lakeclip = str(Path(sys.executable).with_name("lakeclip"))
        self.peer_model = "lakeclip-" + model.replace("/", "-")
        self._log = (work / "log.txt").open("a", encoding="utf-8")
        self.rows, self.ingest_seconds = self.ingest("train", self.tars)
        self.figures = self._sizes()
        self.peer = self._describe()

    # ── preparation ───────────────────────────────────────────────────────────────────────────────────────────────

    def ingest(self, name: str, tars: Sequence[str]) -> tuple[int, float]:
        """Make the lake `work / name`. Returns its rows, and how long it took."""
        report = self.work / f"{name}.json"
        seconds = self.call([self._lakeclip, "ingest", *tars, str(self.work / name), "--report", str(report)])
        return int(json.loads(report.read_text(encoding="utf-8"))["rows"]), seconds

    def _sizes(self) -> dict[str, Any]:
        path = self.work / "models.json"
        self.call([self._lakeclip, "models", "--model-config", str(_MODELS), "--json", str(path)])
        models: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["models"]
        if self.model not in models:
            sys.exit(f"error: no model {self.model}; there are {', '.join(models)}")
        figures: dict[str, Any] = models[self.model]
        return figures

    def _describe(self) -> dict[str, Any]:
        """Write the model in open_clip's format, and make sure that it is the same size there."""
        config, expected = self.figures["config"], self.figures["parameters"]
        if self._flags.peer_context_length:
            expected -= (config["context_length"] - self._flags.peer_context_length) * config["transformer_width"]
            config = {**config, "context_length": self._flags.peer_context_length}
        models = self.work / "models"
        models.mkdir()
        content = json.dumps(open_clip_config(config), indent=2)
        (models / f"{self.peer_model}.json").write_text(content, encoding="utf-8")
        done = subprocess.run(self.peer_words("describe"), check=True, capture_output=True, text=True)
        peer: dict[str, Any] = json.loads(done.stdout)
        if peer["parameters"] != expected:
            sys.exit(f"error: {expected:,} parameters here, {peer['parameters']:,} in open_clip")
        return peer

    # ── training ──────────────────────────────────────────────────────────────────────────────────────────────────

    def train(self, side: str, steps: int, folder: Path) -> Run:
        """Run one side's training process to its end.

        Args:
            steps: rounded down to what can be divided into so many points, but at least one a point.
            folder: new; the run's.
        """
        load = os.getloadavg()[0]
        step = self.points * (self.recipe.num_workers if side == "open_clip" else 1)
        steps = max(1, steps // step) * step
        words = self.words(side, steps, folder)
        began = time.time()
        size = self.recipe.batch_size
        if side == "lakeclip":
            every = steps // self.points
            wanted = [every * point for point in range(1, self.points)]
            with Watch(folder / "checkpoints" / "last.ckpt", wanted) as watch:
                seconds = self.call(words)
            last = folder / "checkpoints" / "last.ckpt"
            kept = [*watch.kept, Snapshot(last, steps, last.stat().st_mtime)]
            losses = _tensorboard(folder, size)
        else:
            seconds = self.call(words)
            losses = _open_clip_log(folder / "out.log", steps // self.points * size)
            files = [folder / "checkpoints" / f"epoch_{point}.pt" for point in range(1, self.points + 1)]
            kept = [
                Snapshot(file, steps // self.points * point, file.stat().st_mtime)
                for point, file in enumerate(files, start=1)
            ]
        return Run(
            steps,
            seconds,
            words,
            [(at - began, seen, loss) for at, seen, loss in losses],
            [Snapshot(one.path, one.step, one.at - began) for one in kept],
            load,
        )

    def words(self, side: str, steps: int, folder: Path) -> list[str]:
        """The command of one side's training process."""
        return self._lakeclip_words(steps, folder) if side == "lakeclip" else self._open_clip_words(steps, folder)

    def _lakeclip_words(self, steps: int, folder: Path) -> list[str]:
        recipe, lake = self.recipe, str(self.work / "train")
        epochs = math.ceil(steps / (self.rows // recipe.batch_size))
        words = [self._lakeclip, "train", "--lake", lake, "--model-config", str(_MODELS), "--model", self.model]
        words += ["--max-steps", str(steps), "--max-epochs", str(epochs), "--batch-size", str(recipe.batch_size)]
        words += ["--lr", str(recipe.lr), "--weight-decay", str(recipe.weight_decay), "--betas", *map(str, self._betas)]
        words += ["--eps", str(self._eps), "--warmup-steps", str(_warmup(steps)), "--seed", str(recipe.seed)]
        words += ["--resize-ratio", str(recipe.min_area), "--precision", recipe.precision]
        # Nothing is held out, as nothing is on the other side.
        words += ["--val-fraction", "0", "--max-val-rows", "100"]
        if self.points > 1:
            # It keeps its last checkpoint whenever it validates, so it must validate: on rows that it trains on.
            words += ["--val-lake", lake, "--val-every-steps", str(steps // self.points)]
        words += ["--num-workers", str(recipe.num_workers), "--accelerator", "cpu"]
        return [*words, "--runs", str(folder.parent), "--name", folder.name, *shlex.split(self._flags.flags)]

    def _open_clip_words(self, steps: int, folder: Path) -> list[str]:
        recipe = self.recipe
        # "Epochs" of as many samples as fit: they go round the shards as often as needed, shuffling anew, and unlike
        # whole epochs leave none of the minutes unused. The schedule is one cosine over all of them.
        words = [*self.peer_words("train"), "--train-data", "::".join(self.tars), "--dataset-type", "webdataset"]
        words += ["--train-num-samples", str(steps // self.points * recipe.batch_size), "--epochs", str(self.points)]
        words += ["--batch-size", str(recipe.batch_size), "--lr", str(recipe.lr), "--wd", str(recipe.weight_decay)]
        words += ["--beta1", str(self._betas[0]), "--beta2", str(self._betas[1]), "--eps", str(self._eps)]
        words += ["--warmup", str(_warmup(steps)), "--aug-cfg", f"scale=({recipe.min_area},1.0)"]
        words += ["--precision", {"32": "fp32", "bf16": "amp_bf16"}[recipe.precision], "--seed", str(recipe.seed)]
        words += ["--workers", str(recipe.num_workers), "--device", "cpu", "--log-every-n-steps", "10"]
        return [*words, "--logs", str(folder.parent), "--name", folder.name, *shlex.split(self._flags.peer_flags)]

    # Table 19 of the paper, which both sides follow by default; said aloud so that it stays the same.
    @property
    def _betas(self) -> tuple[float, float]:
        return (0.9, 0.98) if self.figures["config"]["vision_patch_size"] else (0.9, 0.999)

    @property
    def _eps(self) -> float:
        return 1e-6 if self.figures["config"]["vision_patch_size"] else 1e-8

    # ── timing ────────────────────────────────────────────────────────────────────────────────────────────────────

    def pilot(self) -> dict[str, Rate]:
        """A rough rate of each side, from a few steps."""
        took: dict[str, list[tuple[int, float]]] = {side: [] for side in SIDES}
        for steps in (_SHORT, _SHORT + _PILOT):
            for side in SIDES:
                run = self.train(side, steps, self.work / f"pilot-{side}-{steps}")
                took[side].append((run.steps, run.seconds))
        return {side: Rate.between(*runs) for side, runs in took.items()}

    def measure(self, rough: dict[str, Rate], number: int, seconds: float) -> dict[str, Rate]:
        """The rate of each side, from a short run and one that takes so many seconds longer.

        Args:
            rough: as `pilot` found it.
            number: of the round. The sides begin in turns, so that a busy machine is busy for both.
        """
        took: dict[str, list[tuple[int, float]]] = {side: [] for side in SIDES}
        for length in ("short", "long"):
            for side in SIDES if number % 2 == 0 else SIDES[::-1]:
                steps = _SHORT + (length == "long") * max(1, round(seconds * rough[side].steps_per_second))
                run = self.train(side, steps, self.work / f"round{number}-{side}-{length}")
                took[side].append((run.steps, run.seconds))
        return {side: Rate.between(*runs) for side, runs in took.items()}

    # ── processes ─────────────────────────────────────────────────────────────────────────────────────────────────

    def peer_words(self, verb: str) -> list[str]:
        """The command of open_clip's half, up to its own arguments."""
        words = [self._flags.peer_python, str(_PEER), verb, str(self.work / "models")]
        return [*words, "--model", self.peer_model] if verb == "train" else [*words, self.peer_model]

    def call(self, words: list[str]) -> float:
        """Run a process to its end; its output goes to the log. Returns its wall-clock seconds."""
        self._log.write(f"$ {shlex.join(words)}\n")
        self._log.flush()
        began = time.perf_counter()
        code = subprocess.run(words, stdout=self._log, stderr=subprocess.STDOUT).returncode
        if code:
            lines = Path(self._log.name).read_text(encoding="utf-8").splitlines()
            sys.exit("\n".join([*lines[-20:], f"error: exit code {code} of {shlex.join(words)}"]))
        return time.perf_counter() - began

    def shown(self, words: Sequence[str]) -> str:
        """A command line that says nothing about where things are on this machine."""
        names = {str(self.work): "WORK", str(Path(self.tars[0]).parent): "DATA", self._lakeclip: "lakeclip"}
        names |= {str(file): f"benchmarks/{file.name}" for file in (_PEER, _MODELS)}
        names |= {self._flags.peer_python: "PEER_PYTHON"}
        line = shlex.join(words)
        for path, name in sorted(names.items(), key=lambda item: -len(item[0])):
            line = line.replace(path, name)
        # What is left is of no one's interest: other folders that were named.
        return re.sub(r"(?<![\w.])/[\w./-]*/", "", line)

    def facts(self) -> dict[str, Any]:
        """What a result says of the data, the model and the recipe."""
        return {
            "pairs": self.rows,
            "model": {
                "name": self.model,
                "parameters": self.figures["parameters"],
                "open_clip_parameters": self.peer["parameters"],
                **self.figures["config"],
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
    """A model's sizes in open_clip's format.

    Args:
        config: as `lakeclip models --json` writes it.
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
    """The shards KIND-*.tar of a folder.

    Raises:
        SystemExit: there are none.
    """
    tars = sorted(Path(folder).glob(f"{kind}-*.tar"))
    if not tars:
        sys.exit(f"error: {folder} holds no {kind}-*.tar")
    return tars


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Round by round: what else the machine does hits both sides of a round alike, if not exactly."""
    ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
    return {name: round(pick(ratios), 3) for name, pick in (("median", statistics.median), ("min", min), ("max", max))}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that every contest has."""
    add = parser.add_argument
    add("--peer-python", default=".venv-peer/bin/python", help="Python of the environment with open_clip")
    add("--peer-flags", default="", help="more flags for open_clip, e.g. --peer-flags=--torchcompile")
    add("--peer-context-length", type=int, metavar="N", help="open_clip's text tower gets N tokens instead of 77")
    add("--flags", default="", help="more flags for lakeclip, e.g. --flags=--compile")
    add("--precision", choices=("32", "bf16"), default="bf16", help="arithmetic of both sides (bf16)")
    add("--workers", type=int, default=1, help="loading processes of both sides (1)")
    add("--seed", type=int, default=0, help="of both sides")
    add("--work", metavar="DIR", help="empty or new folder for lakes, runs and logs; a temporary one by default")
    add("--out", metavar="FILE", help="write the result to this JSON file")


def command(script: str) -> str:
    """The command line that this script was started with, without where things are on this machine."""
    files = ("--out", "--resnet20", "--checkpoint", "--peer-python")
    folders = ("--cifar10", "--flickr8k", "--minilm", "--work")
    hidden = dict.fromkeys(files, "FILE") | dict.fromkeys(folders, "DIR")
    words = [hidden.get(before, word) for before, word in zip(["", *sys.argv[1:]], sys.argv[1:], strict=False)]
    return shlex.join(["python", f"benchmarks/{script}", *words])


def today() -> str:
    """The date, as results have it."""
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


def say(text: str) -> None:
    """What is being done, with the time, on standard error."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _warmup(steps: int) -> int:
    return max(1, steps // 10)


def _tensorboard(run: Path, batch_size: int) -> list[tuple[float, int, float]]:
    """(time, samples, loss) of a lakeclip run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    if "train/loss" not in events.Tags()["scalars"]:
        return []
    return [(event.wall_time, (event.step + 1) * batch_size, event.value) for event in events.Scalars("train/loss")]


def _open_clip_log(path: Path, epoch_samples: int) -> list[tuple[float, int, float]]:
    """(time, samples, loss) from the lines that open_clip's training logs."""
    line = re.compile(r"^(\S+) \| INFO \| Train Epoch: (\d+) \[ *(\d+)/.* Loss: ([\d.]+)", re.MULTILINE)
    found = line.findall(path.read_text(encoding="utf-8"))
    return [
        (
            datetime.datetime.strptime(at, "%Y-%m-%d,%H:%M:%S").timestamp(),
            int(epoch) * epoch_samples + int(seen),
            float(loss),
        )
        for at, epoch, seen, loss in found
    ]
