"""The claim: peers' own zero-shot evaluations of an exported model give the figure that lakeclip reports, to 0.1 point.

    .venv-peer/bin/python benchmarks/agreement.py --checkpoint RUN --cifar10 DIR --out benchmarks/results/NAME.json

RUN is a run of `lakeclip train` (any CLIP), DIR holds CIFAR-10's test-*.tar with KEY.jpg and KEY.json ("label"). The
checkpoint is exported to open_clip; then open_clip's training code scores it, and LAION's CLIP_benchmark where that is
installed (pip install --no-deps clip-benchmark), each with its own loading, resize, tokenizer, prompts' average and
counting. The class names and sentences are the same.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import torch
from contest import command, find_tars, say, today
from machine import machine
from open_clip_train import zero_shot as peers_zero_shot
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from lakeclip.checkpoints.exports import export
from lakeclip.checkpoints.layouts import load
from lakeclip.evaluation.labels import read_labels
from lakeclip.evaluation.prompts import find_templates
from lakeclip.evaluation.zeroshot import zero_shot
from lakeclip.lake.dataset import open_lake
from lakeclip.lake.ingest import ingest
from lakeclip.models.clip import CLIP

_LARGEST = 0.001


class Photos(Dataset[Any]):
    """Photos and the numbers of their classes, for a peer's loader."""

    def __init__(self, photos: list[bytes], targets: tuple[int, ...], transform: Callable[[Image.Image], Any]) -> None:
        self.photos, self.targets, self.transform = photos, targets, transform

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.open(io.BytesIO(self.photos[index])).convert("RGB")), self.targets[index]


def _accuracy(output: torch.Tensor, target: torch.Tensor, topk: tuple[int, ...] = (1,)) -> list[float]:
    """What open_clip's function of that name counts; as published it stops at a newer NumPy."""
    nearest = output.topk(max(topk), dim=1).indices
    return [float((nearest[:, :k] == target[:, None]).any(dim=1).sum()) for k in topk]


def main() -> None:
    """Parse the flags, score by each, write and print the result."""
    flags = _flags()
    with tempfile.TemporaryDirectory() as temporary:
        result = compare(flags, Path(temporary))
    for name, share in result["top1"].items():
        print(f"{name:28}{share:8.2%}")
    if flags.out:
        Path(flags.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def compare(flags: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Export, and score with everybody's code."""
    ingest([str(path) for path in find_tars(flags.cifar10, "test")], str(work / "test"))
    lake = open_lake(work / "test")
    labels, templates = read_labels(lake, "label"), find_templates(flags.templates)
    model, tokenize, transform = load(flags.checkpoint)
    assert isinstance(model, CLIP)
    top1 = {"lakeclip": zero_shot(model, tokenize, transform, lake, labels, templates).top1}
    done = export(model, "open_clip", work / "exported")
    say(f"exported, largest difference of a feature {done.difference:.1e}")

    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{work}/exported")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{work}/exported")
    theirs.eval()
    loader: DataLoader[Any] = DataLoader(
        Photos(list(lake.images(labels.positions)), labels.targets, preprocess), batch_size=100
    )
    classifier = open_clip.build_zero_shot_classifier(theirs, tokenizer, labels.classes, templates.templates)
    settings = SimpleNamespace(device="cpu", precision="fp32", batch_size=100)
    peers_zero_shot.accuracy = _accuracy
    top1["open_clip"] = peers_zero_shot.run(theirs, classifier, loader, settings)[0]
    versions = {"open_clip": open_clip.__version__}
    if find_spec("clip_benchmark") is not None:
        from importlib.metadata import version

        from clip_benchmark.metrics.zeroshot_classification import evaluate

        found = evaluate(
            theirs, loader, tokenizer, list(labels.classes), list(templates.templates), device="cpu", amp=False
        )
        top1["CLIP_benchmark"] = found["acc1"]
        versions["clip_benchmark"] = version("clip-benchmark")
    return {
        "claim": "peers' evaluations of the exported model give our figure, to 0.1 point",
        "holds": all(abs(share - top1["lakeclip"]) <= _LARGEST for share in top1.values()),
        "date": today(),
        "command": command("agreement.py"),
        "machine": machine(torch.get_num_threads()),
        "versions": versions,
        "photos": len(labels.positions),
        "top1": {name: round(share, 5) for name, share in top1.items()},
        "largest_difference_of_features": done.difference,
    }


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="RUN", help="a run's folder or a .ckpt file")
    add("--cifar10", required=True, metavar="DIR", help="folder with test-*.tar")
    add("--templates", default="cifar", help="sentences for the class names (cifar)")
    add("--out", metavar="FILE", help="write the result here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
