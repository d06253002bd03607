"""Claim: other projects' evaluations of an exported model agree with lakeclip's to 0.1 point.

    .venv-peer/bin/python benchmarks/agreement.py --cifar10 DIR --checkpoint RUN --out benchmarks/results/NAME.json

RUN is a run of `lakeclip train` (any CLIP), DIR holds CIFAR-10's test-*.tar with KEY.jpg and KEY.json ("label").
--flickr8k names a folder with dev-*.tar, KEY.jpg and KEY.txt with a caption per line, and --flickr8k-checkpoint the run
that is scored on it. A run is exported to open_clip; open_clip's training code and CLIP_benchmark (LAION) score it,
each with its own loading, resize, tokenizer, averaging of prompts and counting. Class names and templates are the same.
"""

from __future__ import annotations

import argparse
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from common.machine import machine
from common.results import command_line, log, today, write_result
from common.trainer_comparison import find_tars

from lakeclip.checkpoints.exports import export
from lakeclip.checkpoints.layouts import load
from lakeclip.evaluation.labels import read_labels
from lakeclip.evaluation.prompts import clean_class_name, find_templates
from lakeclip.evaluation.run import EncodeConfig, score_retrieval
from lakeclip.evaluation.zeroshot import zero_shot
from lakeclip.ingestion.run import ingest
from lakeclip.lake.dataset import open_lake
from lakeclip.models.clip import CLIP

#: Largest difference between two evaluations, as a share.
_TOLERANCE = 0.001
_PACKAGES = ("torch", "torchvision", "open_clip_torch", "clip-benchmark", "scikit-learn")


def main() -> None:
    """Parse the flags, run every evaluation, write and print the result."""
    flags = _flags()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        parts = {"zero-shot classification of CIFAR-10's test photos": classification(flags, work)}
        if flags.flickr8k:
            parts["retrieval among Flickr8k's dev photos"] = retrieval(flags, work)
    gaps = [
        abs(share - scores["lakeclip"][name])
        for scores in (part["scores"] for part in parts.values())
        for peer_scores in scores.values()
        for name, share in peer_scores.items()
    ]
    result = {
        "claim": "peers' evaluations of the exported model give our figures, to 0.1 point",
        "holds": max(gaps) <= _TOLERANCE,
        "largest_gap": round(max(gaps), 6),
        "date": today(),
        "command": command_line("agreement.py"),
        "machine": machine(torch.get_num_threads()),
        "versions": {name: version(name) for name in _PACKAGES},
        "compared": parts,
    }
    write_result(result, flags.out)
    for title, part in parts.items():
        print(f"\n{title}, {part['photos']:,}\n{'':24}" + "".join(f"{side:>16}" for side in part["scores"]))
        for name in part["scores"]["lakeclip"]:
            shares = (f"{scores[name]:.3%}" if name in scores else "" for scores in part["scores"].values())
            print(f"{name:24}" + "".join(f"{share:>16}" for share in shares))


def classification(flags: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Classify with lakeclip, open_clip and CLIP_benchmark: top-1, top-5 and mean per class."""
    from common.peer_evaluations import clip_benchmark_classification, open_clip_classification, write_labelled

    ingest([str(path) for path in find_tars(flags.cifar10, "test")], str(work / "test"))
    lake = open_lake(work / "test")
    labels, templates = read_labels(lake, "label"), find_templates(flags.templates)
    loaded = load(flags.checkpoint)
    assert isinstance(loaded.model, CLIP)
    ours = zero_shot(*loaded, lake, labels, templates)
    exported = export(loaded.model, "open_clip", work / "classifier")
    log(f"exported, largest difference between features {exported.difference:.1e}")
    photos = list(zip(lake.images(labels.positions), labels.targets, strict=True))
    classes = [clean_class_name(name) for name in labels.classes]
    write_labelled(work / "labelled", photos, classes, templates.templates)
    return {
        "photos": len(photos),
        "model": vars(loaded.model.config),
        "templates": list(templates.templates),
        "chance": 1 / len(classes),
        "largest_difference_of_features": exported.difference,
        "scores": {
            "lakeclip": {"top1": ours.top1, "top5": ours.top5, "mean_per_class": ours.mean_per_class},
            "open_clip": open_clip_classification(work / "classifier", photos, classes, templates.templates),
            "CLIP_benchmark": clip_benchmark_classification(work / "classifier", work / "labelled"),
        },
    }


def retrieval(flags: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Retrieve with lakeclip and CLIP_benchmark: R@1, 5 and 10 in both directions."""
    from common.peer_evaluations import clip_benchmark_retrieval, write_captioned

    ingest([str(path) for path in find_tars(flags.flickr8k, "dev")], str(work / "dev"))
    lake = open_lake(work / "dev")
    loaded = load(flags.flickr8k_checkpoint or flags.checkpoint)
    assert isinstance(loaded.model, CLIP)
    _, ours = score_retrieval(loaded, lake, EncodeConfig(device="cpu"))
    exported = export(loaded.model, "open_clip", work / "retriever")
    rows = lake.read(range(len(lake)))
    write_captioned(work / "captioned", ((row.image, row.captions) for row in rows))
    both = {"image_to_text": ours.image_to_text, "text_to_image": ours.text_to_image}
    return {
        "photos": len(rows),
        "captions": sum(len(row.captions) for row in rows),
        "model": vars(loaded.model.config),
        "largest_difference_of_features": exported.difference,
        "scores": {
            "lakeclip": {f"{way} R@{k}": share for way, ranking in both.items() for k, share in ranking.recall.items()},
            "CLIP_benchmark": clip_benchmark_retrieval(work / "retriever", work / "captioned"),
        },
    }


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="RUN", help="folder of a run, or a .ckpt file")
    add("--cifar10", required=True, metavar="DIR", help="folder with test-*.tar")
    add("--flickr8k", metavar="DIR", help="folder with dev-*.tar; retrieval is skipped without it")
    add("--flickr8k-checkpoint", metavar="RUN", help="model for retrieval; --checkpoint by default")
    add("--templates", default="cifar", help="prompt templates for the class names (cifar)")
    add("--out", metavar="FILE", help="write the result here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
