"""The claim: peers' own evaluations of an exported model give the figures that lakeclip reports, to 0.1 point.

    .venv-peer/bin/python benchmarks/agreement.py --cifar10 DIR --checkpoint RUN --out benchmarks/results/NAME.json

RUN is a run of `lakeclip train` (any CLIP), DIR holds CIFAR-10's test-*.tar with KEY.jpg and KEY.json ("label").
--flickr8k names a folder with dev-*.tar, KEY.jpg and KEY.txt with a caption a line, and --flickr8k-checkpoint the run
that is scored on it. A run is exported to open_clip; open_clip's training code and CLIP_benchmark (LAION) score it,
each with its own loading, resize, tokenizer, prompts' average and counting. The class names and sentences are the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from contest import find_tars, say, today
from machine import machine
from peers import (
    clip_benchmark_classifies,
    clip_benchmark_retrieves,
    open_clip_classifies,
    write_captioned,
    write_labelled,
)

from lakeclip.checkpoints.exports import export
from lakeclip.checkpoints.layouts import load
from lakeclip.cli.report import Effort, retrieve
from lakeclip.evaluation.labels import read_labels
from lakeclip.evaluation.prompts import clean_class_name, find_templates
from lakeclip.evaluation.zeroshot import zero_shot
from lakeclip.lake.dataset import open_lake
from lakeclip.lake.ingest import ingest
from lakeclip.models.clip import CLIP

_LARGEST = 0.001
_PACKAGES = ("torch", "torchvision", "open_clip_torch", "clip-benchmark", "scikit-learn")


def main() -> None:
    """Parse the flags, score by each, write and print the result."""
    flags = _flags()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        parts = {"zero-shot classification of CIFAR-10's test photos": classification(flags, work)}
        if flags.flickr8k:
            parts["retrieval among Flickr8k's dev photos"] = retrieval(flags, work)
    gaps = [
        abs(share - of["lakeclip"][name])
        for of in (part["scores"] for part in parts.values())
        for peer in of.values()
        for name, share in peer.items()
    ]
    result = {
        "claim": "peers' evaluations of the exported model give our figures, to 0.1 point",
        "holds": max(gaps) <= _LARGEST,
        "largest_gap": round(max(gaps), 6),
        "date": today(),
        "command": _command(),
        "machine": machine(torch.get_num_threads()),
        "versions": {name: version(name) for name in _PACKAGES},
        "compared": parts,
    }
    if flags.out:
        Path(flags.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for title, part in parts.items():
        print(f"\n{title}, {part['photos']:,}\n{'':24}" + "".join(f"{side:>16}" for side in part["scores"]))
        for name in part["scores"]["lakeclip"]:
            shares = (f"{scores[name]:.3%}" if name in scores else "" for scores in part["scores"].values())
            print(f"{name:24}" + "".join(f"{share:>16}" for share in shares))


def classification(flags: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Top-1, top-5 and mean per class, by everybody's code."""
    ingest([str(path) for path in find_tars(flags.cifar10, "test")], str(work / "test"))
    lake = open_lake(work / "test")
    labels, templates = read_labels(lake, "label"), find_templates(flags.templates)
    loaded = load(flags.checkpoint)
    assert isinstance(loaded.model, CLIP)
    ours = zero_shot(*loaded, lake, labels, templates)
    done = export(loaded.model, "open_clip", work / "classifier")
    say(f"exported, largest difference of a feature {done.difference:.1e}")
    photos = list(zip(lake.images(labels.positions), labels.targets, strict=True))
    classes = [clean_class_name(name) for name in labels.classes]
    write_labelled(work / "labelled", photos, classes, templates.templates)
    return {
        "photos": len(photos),
        "model": vars(loaded.model.config),
        "templates": list(templates.templates),
        "chance": 1 / len(classes),
        "largest_difference_of_features": done.difference,
        "scores": {
            "lakeclip": {"top1": ours.top1, "top5": ours.top5, "mean_per_class": ours.mean_per_class},
            "open_clip": open_clip_classifies(work / "classifier", photos, classes, templates.templates),
            "CLIP_benchmark": clip_benchmark_classifies(work / "classifier", work / "labelled"),
        },
    }


def retrieval(flags: argparse.Namespace, work: Path) -> dict[str, Any]:
    """R@1, 5 and 10 both ways, by us and by CLIP_benchmark."""
    ingest([str(path) for path in find_tars(flags.flickr8k, "dev")], str(work / "dev"))
    lake = open_lake(work / "dev")
    loaded = load(flags.flickr8k_checkpoint or flags.checkpoint)
    assert isinstance(loaded.model, CLIP)
    _, ours = retrieve(loaded, lake, Effort(device="cpu"))
    done = export(loaded.model, "open_clip", work / "retriever")
    rows = lake.read(range(len(lake)))
    write_captioned(work / "captioned", ((row.image, row.captions) for row in rows))
    both = {"image_to_text": ours.image_to_text, "text_to_image": ours.text_to_image}
    return {
        "photos": len(rows),
        "captions": sum(len(row.captions) for row in rows),
        "model": vars(loaded.model.config),
        "largest_difference_of_features": done.difference,
        "scores": {
            "lakeclip": {f"{way} R@{k}": share for way, of in both.items() for k, share in of.recall.items()},
            "CLIP_benchmark": clip_benchmark_retrieves(work / "retriever", work / "captioned"),
        },
    }


def _command() -> str:
    hidden = {"--checkpoint": "RUN", "--cifar10": "DIR", "--flickr8k": "DIR", "--flickr8k-checkpoint": "RUN"}
    hidden["--out"] = "FILE"
    words = [hidden.get(before, word) for before, word in zip(["", *sys.argv[1:]], sys.argv[1:], strict=False)]
    return " ".join(["python", "benchmarks/agreement.py", *words])


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="RUN", help="a run's folder or a .ckpt file")
    add("--cifar10", required=True, metavar="DIR", help="folder with test-*.tar")
    add("--flickr8k", metavar="DIR", help="folder with dev-*.tar; without it, no retrieval")
    add("--flickr8k-checkpoint", metavar="RUN", help="what is scored on it; --checkpoint by default")
    add("--templates", default="cifar", help="sentences for the class names (cifar)")
    add("--out", metavar="FILE", help="write the result here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
