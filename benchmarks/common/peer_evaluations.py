"""Evaluations of a model exported to open_clip by other projects: open_clip's training code and LAION's CLIP_benchmark.

Each uses its own code to load the export, the photos and the texts, and to count. CLIP_benchmark reads shards in the
layout of its `wds/` data sets, which this module writes. The functions call what its command line calls; the command
line itself does not start without a captioning evaluation of 100 MB, which nothing here needs.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import torch
from clip_benchmark.datasets.builder import build_dataset
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from clip_benchmark.models import load_clip
from open_clip_train import zero_shot as open_clip_zero_shot
from PIL import Image
from torch.utils.data import DataLoader, Dataset

_BATCH = 100


def write_labelled(
    folder: Path, photos: Iterable[tuple[bytes, int]], classes: Sequence[str], templates: Sequence[str]
) -> None:
    """Write photos and their class numbers for CLIP_benchmark."""
    _write(folder, ((photo, "cls", str(number).encode()) for photo, number in photos))
    (folder / "classnames.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")
    sentences = [template.replace("{}", "{c}") for template in templates]
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")


def write_captioned(folder: Path, photos: Iterable[tuple[bytes, Sequence[str]]]) -> None:
    """Write photos and their captions for CLIP_benchmark."""
    _write(folder, ((photo, "txt", "\n".join(captions).encode()) for photo, captions in photos))
    (folder / "dataset_type.txt").write_text("retrieval\n", encoding="utf-8")


def clip_benchmark_classification(exported: Path, folder: Path) -> dict[str, float]:
    """Run CLIP_benchmark's zero-shot classification on a folder from `write_labelled`."""
    model, tokenizer, loader = _clip_benchmark(exported, folder, "zeroshot_classification")
    classes, templates = loader.dataset.classes, loader.dataset.templates
    zeroshot_classification.accuracy = _shares
    scores = zeroshot_classification.evaluate(model, loader, tokenizer, classes, templates, device="cpu", amp=False)
    return {"top1": scores["acc1"], "top5": scores["acc5"], "mean_per_class": float(scores["mean_per_class_recall"])}


def clip_benchmark_retrieval(exported: Path, folder: Path, cutoffs: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Run CLIP_benchmark's zero-shot retrieval on a folder from `write_captioned`: "image_to_text R@1" and so on."""
    model, tokenizer, loader = _clip_benchmark(exported, folder, "zeroshot_retrieval")
    scores = zeroshot_retrieval.evaluate(model, loader, tokenizer, device="cpu", amp=False, recall_k_list=list(cutoffs))
    # CLIP_benchmark names a direction by what is retrieved.
    ways = {"image_to_text": "text_retrieval", "text_to_image": "image_retrieval"}
    return {f"{way} R@{k}": scores[f"{theirs}_recall@{k}"] for way, theirs in ways.items() for k in cutoffs}


def open_clip_classification(
    exported: Path, photos: Sequence[tuple[bytes, int]], classes: Sequence[str], templates: Sequence[str]
) -> dict[str, float]:
    """Run the zero-shot evaluation of open_clip's training code."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{exported}")
    model.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{exported}")
    classifier = open_clip.build_zero_shot_classifier(model, tokenizer, classes, templates)
    settings = SimpleNamespace(device="cpu", precision="fp32", batch_size=_BATCH)
    loader: DataLoader[Any] = DataLoader(_Photos(photos, preprocess), batch_size=_BATCH)
    open_clip_zero_shot.accuracy = _hits
    top1, top5 = open_clip_zero_shot.run(model, classifier, loader, settings)
    return {"top1": top1, "top5": top5}


class _Photos(Dataset[Any]):
    def __init__(self, photos: Sequence[tuple[bytes, int]], transform: Callable[[Image.Image], Any]) -> None:
        self.photos, self.transform = photos, transform

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        photo, target = self.photos[index]
        return self.transform(Image.open(io.BytesIO(photo)).convert("RGB")), target


def _hits(output: torch.Tensor, target: torch.Tensor, topk: tuple[int, ...] = (1,)) -> list[float]:
    """Count as open_clip's `accuracy` does; the published one fails on NumPy 2.4, which converts no array to float."""
    nearest = output.topk(max(topk), dim=1).indices
    return [float((nearest[:, :k] == target[:, None]).any(dim=1).sum()) for k in topk]


def _shares(output: torch.Tensor, target: torch.Tensor, topk: tuple[int, ...] = (1,)) -> list[float]:
    """Return what CLIP_benchmark's `accuracy` returns: the same counts as shares."""
    return [hits / len(target) for hits in _hits(output, target, topk)]


def _clip_benchmark(exported: Path, folder: Path, task: str) -> tuple[Any, Any, DataLoader[Any]]:
    """Return model, tokenizer and loader, built as CLIP_benchmark's command line builds them."""
    model, transform, tokenizer = load_clip(
        "open_clip", f"local-dir:{exported}", pretrained="", cache_dir=None, device="cpu"
    )
    model.eval()
    dataset = build_dataset("wds/own", root=str(folder), transform=transform, split="test", task=task)
    loader: DataLoader[Any] = DataLoader(dataset.batched(_BATCH), batch_size=None, shuffle=False, num_workers=0)
    return model, tokenizer, loader


def _write(folder: Path, samples: Iterable[tuple[bytes, str, bytes]]) -> None:
    (folder / "test").mkdir(parents=True)
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for number, (photo, suffix, other) in enumerate(samples):
            for name, content in (("jpg", photo), (suffix, other)):
                info = tarfile.TarInfo(f"{number:06}.{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    (folder / "test" / "nshards.txt").write_text("1\n", encoding="utf-8")
