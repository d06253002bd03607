"""The claim: on CIFAR-10's captioned photos, in the same minutes and with a model of the same size, lakeclip's
zero-shot top-1 is above open_clip's.

    python benchmarks/cifar10.py --data DIR --out benchmarks/results/NAME.json

DIR holds WebDataset shards: train-*.tar with KEY.jpg and KEY.txt, test-*.tar with KEY.jpg and KEY.json ("label").
The two never run at once. README.md beside this file says what is the same on both sides and why.
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
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from machine import machine

_PEER = Path(__file__).with_name("cifar10_open_clip.py")
#: Share of the minutes that is planned for, as rates vary and checkpoints take time.
_MARGIN = 0.97
#: Steps of each side's two calibration runs. Both have the same start-up; what differs is steps.
_CALIBRATION = {"lakeclip": (10, 50), "open_clip": (5, 20)}


@dataclass(frozen=True)
class Recipe:
    """What both sides are told."""

    batch_size: int
    lr: float
    weight_decay: float
    min_area: float
    precision: str
    betas: tuple[float, float]
    eps: float
    seed: int


@dataclass(frozen=True)
class Rate:
    """A straight line through two runs' wall-clock times: seconds = start + steps / steps_per_second."""

    start: float
    steps_per_second: float

    def steps_within(self, seconds: float) -> int:
        """Steps of a run that takes so long from the start of its process to the end; at least one."""
        return max(1, math.floor((seconds - self.start) * self.steps_per_second))


@dataclass(frozen=True)
class Run:
    """A finished training process.

    Attributes:
        seconds: wall-clock time from the start of the process to its end.
        curve: (seconds since the start, samples seen, loss).
    """

    steps: int
    seconds: float
    command: list[str]
    curve: list[tuple[float, int, float]]


def main() -> None:
    """Parse the flags, run both sides, write and print the result."""
    flags = _flags()
    data = Path(flags.data)
    train, test = sorted(data.glob("train-*.tar")), sorted(data.glob("test-*.tar"))
    if not train or not test:
        sys.exit(f"error: {data} holds no train-*.tar or no test-*.tar")
    if shutil.which(flags.peer_python) is None:
        sys.exit(f"error: no Python at {flags.peer_python}; `make peer` makes the environment with open_clip")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(flags.work or temporary)
        work.mkdir(parents=True, exist_ok=True)
        if any(work.iterdir()):
            sys.exit(f"error: {work} is not empty")
        result = Benchmark(flags, work, train, test).run()
    _show(result)
    if flags.out:
        Path(flags.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


class Benchmark:
    """One comparison.

    Args:
        work: empty folder for lakes, runs and logs.
        train, test: shards.
    """

    def __init__(self, flags: argparse.Namespace, work: Path, train: Sequence[Path], test: Sequence[Path]) -> None:
        self.flags = flags
        self.work = work
        self.train_tars = [str(path) for path in train]
        self.test_tars = [str(path) for path in test]
        self.lakeclip = str(Path(sys.executable).with_name("lakeclip"))
        self.peer_model = "lakeclip-" + flags.model.replace("/", "-")
        self.num_rows = 0
        self.log = (work / "log.txt").open("a", encoding="utf-8")

    def run(self) -> dict[str, Any]:
        """Everything, one after the other."""
        _say("ingest")
        rows, ingest_seconds = self._ingest("train", self.train_tars)
        self._ingest("test", self.test_tars)
        self.num_rows = rows
        figures = self._sizes()
        recipe = self._recipe(figures["config"])
        peer = self._describe(figures)
        threads = peer.pop("threads")

        sides: dict[str, Callable[[int, Path], Run]] = {
            "lakeclip": lambda steps, folder: self._train_lakeclip(recipe, steps, folder),
            "open_clip": lambda steps, folder: self._train_open_clip(recipe, steps, folder),
        }
        rates = self._calibrate(sides)
        budget = self.flags.minutes * 60
        results: dict[str, dict[str, Any]] = {}
        for name, train in sides.items():
            steps = rates[name].steps_within(budget * _MARGIN)
            before = os.getloadavg()[0]
            _say(f"{name}: {steps:,} steps in {self.flags.minutes:g} minutes")
            done = train(steps, self.work / name)
            if done.seconds > budget:
                _say(f"warning: {name} took {done.seconds - budget:.0f} s longer than planned")
            results[name] = self._result(done, rates[name], recipe, before)
        prompts = self._score_lakeclip(results["lakeclip"])
        self._score_open_clip(results["open_clip"], prompts)
        if results["lakeclip"]["num_samples"] != results["open_clip"]["num_samples"]:
            sys.exit("error: the two sides scored a different number of photos")

        results["lakeclip"]["ingest_seconds"] = round(ingest_seconds, 1)
        results["lakeclip"]["versions"] = {
            "python": platform.python_version(),
            **{name: version(name) for name in ("lakeclip", "torch", "lightning", "deeplake")},
        }
        results["open_clip"]["versions"] = peer["versions"]
        return {
            "claim": "lakeclip's zero-shot top-1 is above open_clip's after the same minutes",
            "holds": results["lakeclip"]["top1"] > results["open_clip"]["top1"],
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "command": self._without_paths(["benchmarks/cifar10.py", *sys.argv[1:]]),
            "machine": machine(threads),
            "minutes": self.flags.minutes,
            "pairs": rows,
            "model": {"name": self.flags.model, "parameters": figures["parameters"], **figures["config"]},
            "recipe": {**vars(recipe), "warmup": "a tenth of the steps", "schedule": "cosine to 0"},
            "prompts": prompts,
            **results,
        }

    # ── preparation ───────────────────────────────────────────────────────────────────────────────────────────────

    def _ingest(self, name: str, tars: list[str]) -> tuple[int, float]:
        report = self.work / f"{name}.json"
        seconds = self._call([self.lakeclip, "ingest", *tars, str(self.work / name), "--report", str(report)])
        return int(json.loads(report.read_text(encoding="utf-8"))["rows"]), seconds

    def _sizes(self) -> dict[str, Any]:
        path = self.work / "models.json"
        self._call([self.lakeclip, "models", "--json", str(path)])
        models: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["models"]
        if self.flags.model not in models:
            sys.exit(f"error: no model {self.flags.model}; there are {', '.join(models)}")
        figures: dict[str, Any] = models[self.flags.model]
        return figures

    def _recipe(self, config: dict[str, Any]) -> Recipe:
        flags = self.flags
        # Table 19 of the paper, which both sides follow by default; said aloud so that it stays the same.
        betas, eps = ((0.9, 0.98), 1e-6) if config["vision_patch_size"] else ((0.9, 0.999), 1e-8)
        return Recipe(
            flags.batch_size, flags.lr, flags.weight_decay, flags.min_area, flags.precision, betas, eps, flags.seed
        )

    def _describe(self, figures: dict[str, Any]) -> dict[str, Any]:
        """Write the model in open_clip's format, and make sure that it is the same size there."""
        models = self.work / "models"
        models.mkdir()
        content = json.dumps(open_clip_config(figures["config"]), indent=2)
        (models / f"{self.peer_model}.json").write_text(content, encoding="utf-8")
        words = [self.flags.peer_python, str(_PEER), "describe", str(models), self.peer_model]
        peer: dict[str, Any] = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
        if peer["parameters"] != figures["parameters"]:
            sys.exit(f"error: {figures['parameters']:,} parameters here, {peer['parameters']:,} in open_clip")
        return peer

    def _calibrate(self, sides: dict[str, Callable[[int, Path], Run]]) -> dict[str, Rate]:
        """Short and long runs of both sides in turns, so that a busy machine is busy for both."""
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for length in range(2):
            for name, train in sides.items():
                steps = _CALIBRATION[name][length]
                _say(f"calibration: {name}, {steps} steps")
                seconds[name].append(train(steps, self.work / f"calibration-{name}-{steps}").seconds)
        rates = {}
        for name, (short, long) in seconds.items():
            few, many = _CALIBRATION[name]
            if long <= short:
                sys.exit(
                    f"error: {name} took {short:.0f} s for {few} steps and {long:.0f} s for {many}: too noisy here"
                )
            per_step = (long - short) / (many - few)
            rates[name] = Rate(max(0.0, short - few * per_step), 1 / per_step)
        return rates

    # ── training ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _train_lakeclip(self, recipe: Recipe, steps: int, folder: Path) -> Run:
        epochs = math.ceil(steps / (self.num_rows // recipe.batch_size))
        words = [self.lakeclip, "train", "--lake", str(self.work / "train"), "--model", self.flags.model]
        words += ["--max-steps", str(steps), "--max-epochs", str(epochs), "--batch-size", str(recipe.batch_size)]
        words += ["--lr", str(recipe.lr), "--weight-decay", str(recipe.weight_decay)]
        words += ["--betas", *map(str, recipe.betas), "--eps", str(recipe.eps), "--warmup-steps", str(_warmup(steps))]
        words += ["--resize-ratio", str(recipe.min_area), "--precision", recipe.precision, "--seed", str(recipe.seed)]
        # Nothing is held out, as nothing is on the other side.
        words += ["--val-fraction", "0", "--max-val-rows", "100", "--num-workers", "1", "--accelerator", "cpu"]
        words += ["--runs", str(folder.parent), "--name", folder.name]
        began = time.time()
        seconds = self._call(words)
        curve = [(at - began, step * recipe.batch_size, loss) for at, step, loss in _tensorboard(folder)]
        return Run(steps, seconds, words, curve)

    def _train_open_clip(self, recipe: Recipe, steps: int, folder: Path) -> Run:
        # One "epoch" of as many samples as fit: it goes round the shards as often as needed, shuffling anew, and unlike
        # whole epochs it leaves none of the minutes unused.
        words = [self.flags.peer_python, str(_PEER), "train", str(self.work / "models"), "--model", self.peer_model]
        words += ["--train-data", "::".join(self.train_tars), "--dataset-type", "webdataset"]
        words += ["--train-num-samples", str(steps * recipe.batch_size), "--epochs", "1"]
        words += ["--batch-size", str(recipe.batch_size), "--lr", str(recipe.lr), "--wd", str(recipe.weight_decay)]
        words += ["--beta1", str(recipe.betas[0]), "--beta2", str(recipe.betas[1]), "--eps", str(recipe.eps)]
        words += ["--warmup", str(_warmup(steps)), "--aug-cfg", f"scale=({recipe.min_area},1.0)"]
        words += ["--precision", {"32": "fp32", "bf16": "amp_bf16"}[recipe.precision], "--seed", str(recipe.seed)]
        words += ["--workers", "1", "--device", "cpu", "--log-every-n-steps", "10"]
        words += ["--logs", str(folder.parent), "--name", folder.name, *shlex.split(self.flags.peer_flags)]
        began = time.time()
        seconds = self._call(words)
        curve = [(at - began, seen, loss) for at, seen, loss in _open_clip_log(folder / "out.log")]
        return Run(steps, seconds, words, curve)

    # ── scores ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _score_lakeclip(self, result: dict[str, Any]) -> dict[str, list[str]]:
        """Fill in the score; the sentences and names that it was made with are for the other side."""
        path = self.work / "zeroshot-lakeclip.json"
        checkpoint = self.work / "lakeclip" / "checkpoints" / "last.ckpt"
        words = [self.lakeclip, "evaluate", "zeroshot", "--checkpoint", str(checkpoint)]
        words += ["--lake", str(self.work / "test"), "--label-column", "label", "--templates", self.flags.templates]
        self._call([*words, "--json", str(path)])
        score = json.loads(path.read_text(encoding="utf-8"))
        result |= {"top1": score["top1"], "num_samples": score["num_samples"]}
        return {name: score[name] for name in ("classes", "templates")}

    def _score_open_clip(self, result: dict[str, Any], prompts: dict[str, list[str]]) -> None:
        asked, path = self.work / "prompts.json", self.work / "zeroshot-open_clip.json"
        asked.write_text(json.dumps(prompts), encoding="utf-8")
        checkpoint = self.work / "open_clip" / "checkpoints" / "epoch_1.pt"
        words = [self.flags.peer_python, str(_PEER), "zeroshot", str(self.work / "models"), self.peer_model]
        self._call([*words, str(checkpoint), str(asked), str(path), *self.test_tars])
        result |= json.loads(path.read_text(encoding="utf-8"))

    def _result(self, run: Run, rate: Rate, recipe: Recipe, load: float) -> dict[str, Any]:
        samples = run.steps * recipe.batch_size
        every = max(1, len(run.curve) // 60)
        return {
            "command": self._without_paths(run.command),
            "samples_per_second": round(samples / (run.seconds - rate.start), 1),
            "calibration_samples_per_second": round(rate.steps_per_second * recipe.batch_size, 1),
            "start_seconds": round(rate.start, 1),
            "steps": run.steps,
            "epochs": round(samples / self.num_rows, 2),
            "seconds": round(run.seconds, 1),
            "load_before": round(load, 2),
            "loss_curve": {
                "columns": ["seconds", "samples", "loss"],
                "rows": [[round(at, 1), seen, round(loss, 3)] for at, seen, loss in run.curve[::every]],
            },
        }

    # ── processes ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _call(self, words: list[str]) -> float:
        """Run a process to its end; its output goes to the log. Returns its wall-clock seconds."""
        self.log.write(f"$ {shlex.join(words)}\n")
        self.log.flush()
        began = time.perf_counter()
        code = subprocess.run(words, stdout=self.log, stderr=subprocess.STDOUT).returncode
        if code:
            lines = Path(self.log.name).read_text(encoding="utf-8").splitlines()
            sys.exit("\n".join([*lines[-20:], f"error: exit code {code} of {shlex.join(words)}"]))
        return time.perf_counter() - began

    def _without_paths(self, words: list[str]) -> str:
        """A command line that says nothing about where things are on this machine."""
        names = {str(self.work): "WORK", self.flags.data.rstrip("/"): "DATA", str(_PEER): f"benchmarks/{_PEER.name}"}
        names |= {self.flags.peer_python: "PEER_PYTHON", self.lakeclip: "lakeclip"}
        line = shlex.join(words)
        for path, name in sorted(names.items(), key=lambda item: -len(item[0])):
            line = line.replace(path, name)
        # What is left is of no one's interest: other folders that were named.
        return re.sub(r"(?<![\w.])/[\w./-]*/", "", line)


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


def _warmup(steps: int) -> int:
    return max(1, steps // 10)


def _tensorboard(run: Path) -> list[tuple[float, int, float]]:
    """(time, steps, loss) of a lakeclip run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    if "train/loss" not in events.Tags()["scalars"]:
        return []
    return [(event.wall_time, event.step + 1, event.value) for event in events.Scalars("train/loss")]


def _open_clip_log(path: Path) -> list[tuple[float, int, float]]:
    """(time, samples, loss) from the lines that open_clip's training logs."""
    line = re.compile(r"^(\S+) \| INFO \| Train Epoch: \d+ \[ *(\d+)/.* Loss: ([\d.]+)", re.MULTILINE)
    found = line.findall(path.read_text(encoding="utf-8"))
    return [
        (datetime.datetime.strptime(at, "%Y-%m-%d,%H:%M:%S").timestamp(), int(seen), float(loss))
        for at, seen, loss in found
    ]


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _show(result: dict[str, Any]) -> None:
    ours, theirs = result["lakeclip"], result["open_clip"]
    print(f"{result['date']}  {result['machine']['cpu']}, {result['machine']['cores']} cores")
    print(
        f"{result['model']['name']}, {result['model']['parameters']:,} parameters on both sides, {result['command']}\n"
    )
    print(f"{'':22}{'lakeclip':>12}{'open_clip':>12}")
    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("torch", lambda side: side["versions"]["torch"].partition("+")[0]),
        ("samples/s", lambda side: f"{side['samples_per_second']:.0f}"),
        ("steps", lambda side: f"{side['steps']:,}"),
        ("epochs", lambda side: f"{side['epochs']:.1f}"),
        ("minutes, all in", lambda side: f"{side['seconds'] / 60:.1f}"),
        ("zero-shot top-1", lambda side: f"{side['top1']:.1%}"),
    ]
    for name, value in rows:
        print(f"{name:22}{value(ours):>12}{value(theirs):>12}")
    ratio = ours["samples_per_second"] / theirs["samples_per_second"]
    print(f"\n{ratio:.1f} times the samples; {100 * (ours['top1'] - theirs['top1']):+.1f} points on", end=" ")
    print(f"{ours['num_samples']:,} photos (chance {1 / len(result['prompts']['classes']):.0%}).")
    print(f"Ingest, before the clock starts: {ours['ingest_seconds']:.1f} s.")


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", help="folder with train-*.tar and test-*.tar")
    add("--minutes", type=float, default=10.0, help="wall-clock time of each side's training process (10)")
    add("--peer-python", default=".venv-peer/bin/python", help="Python of the environment with open_clip")
    add("--peer-flags", default="", help="more flags for open_clip, e.g. '--force-context-length 16'")
    add("--work", metavar="DIR", help="empty or new folder for lakes, runs and logs; a temporary one by default")
    add("--model", default="ViT-Ti/4-32px", help="one of `lakeclip models`; open_clip gets the same sizes")
    add("--precision", choices=("32", "bf16"), default="bf16", help="arithmetic of both sides (bf16)")
    add("--batch-size", type=int, default=125, help="of both sides")
    add("--lr", type=float, default=1e-3, help="peak learning rate of both sides")
    add("--weight-decay", type=float, default=0.1, help="of both sides")
    add("--min-area", type=float, default=0.5, help="smallest share of the photo that a random crop keeps, both sides")
    add("--seed", type=int, default=0, help="of both sides")
    add("--templates", default="cifar", help="`lakeclip evaluate zeroshot --templates`; open_clip gets the same")
    add("--out", metavar="FILE", help="write the result to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
