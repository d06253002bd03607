"""`lakeclip demo`: ingest, train, evaluate and report in a few minutes, on scenes that it draws itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from lakeclip.config.load import read_recipe

if TYPE_CHECKING:
    from lakeclip.ingestion.sources.synthetic import Split

#: Scenes to draw for each split.
_SCENES: dict[Split, int] = {"train": 6000, "unseen": 400, "seen": 400}
_SEED = 0


@dataclass(frozen=True)
class DemoFlags:
    """Draw scenes into a lake, train a small CLIP on it, score it zero-shot, and write a report.

    Some pairs of colour and shape never occur in training. The demo's score is how often the model names them right.
    """

    runs: str = "runs"
    """Folder for the demo's lakes and its run."""
    max_steps: int | None = None
    """End training after this many steps, for a quick look."""


def run(argv: list[str]) -> None:
    """Parse the flags and run the demo."""
    flags = tyro.cli(DemoFlags, args=argv, prog="lakeclip demo")
    demo(Path(flags.runs), max_steps=flags.max_steps)


def demo(runs: Path, *, max_steps: int | None = None) -> None:
    """Draw the lakes, train, score, write the report, and print what to do next."""
    from lakeclip.evaluation.run import ZeroShotTest
    from lakeclip.report.run import conclude, make_report
    from lakeclip.training.run import train

    name = next(name for name in _names() if not (runs / name).exists())
    _say(f"1/3  drawing {sum(_SCENES.values()):,} scenes into lakes under {runs / name}")
    lakes = {split: _draw(split, runs / name / "lakes" / split) for split in _SCENES}

    config = read_recipe("demo")
    _say(f"2/3  training {config.model} on {_SCENES['train']:,} scenes")
    config = replace(
        config,
        data=replace(config.data, lake=str(lakes["train"])),
        trainer=replace(config.trainer, runs=str(runs), name=name, max_steps=max_steps),
    )
    conclude(train(config), "train", report=False)

    _say("3/3  classifying pairs that were not in the training data")
    unseen = ZeroShotTest(
        "Pairs never seen in training",
        str(lakes["unseen"]),
        "label",
        "No training image shows these combinations of colour and shape, and no training caption names them.",
        templates="scenes",
    )
    seen = replace(
        unseen,
        title="Pairs seen in training",
        lake=str(lakes["seen"]),
        about="As many pairs of the same colours and shapes: new drawings of combinations seen in training.",
    )
    report = make_report(runs / name, [unseen, seen], match_column="scene")
    _say("")
    for score in report.zeroshot:
        share, chance = score.result.top1, score.result.chance
        _say(f"{score.title}: {share:.1%} right, {share / chance:.1f} times chance ({chance:.1%})")
    _say(f"report: {report.page}\n\ntry next:")
    _say(f"  lakeclip evaluate zeroshot --checkpoint {runs / name} --lake {lakes['unseen']} --label-column label")
    _say("  lakeclip ingest YOUR_FOLDER my.lake      # images and .txt captions that share a name")
    _say("  lakeclip train --recipe small --lake my.lake")


def _names() -> Iterator[str]:
    yield "demo"
    number = 2
    while True:
        yield f"demo-{number}"
        number += 1


def _draw(split: Split, lake: Path) -> Path:
    from lakeclip.ingestion.run import fill_lake
    from lakeclip.ingestion.sources.base import Samples
    from lakeclip.ingestion.sources.synthetic import scenes

    lake.parent.mkdir(parents=True, exist_ok=True)
    fill_lake([Samples(f"scenes {split}", scenes(split, _SCENES[split], _SEED), _SCENES[split])], str(lake))
    return lake


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
