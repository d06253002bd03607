"""Peers' own evaluations of a model exported to open_clip: open_clip's training code and LAION's CLIP_benchmark.

Each loads the export, its photos and its texts with its own code, and counts with its own code. CLIP_benchmark reads
shards in the layout that its `wds/` data sets have, which are written here; what is called is what its command line
calls. (That cannot be started: it imports a captioning evaluation of 100 MB, which nothing here needs.)
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
    """Photos and the numbers of their classes, as CLIP_benchmark reads them."""
    _write(folder, ((photo, "cls", str(number).encode()) for photo, number in photos))
    (folder / "classnames.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")
    sentences = [template.replace("{}", "{c}") for template in templates]
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")


def write_captioned(folder: Path, photos: Iterable[tuple[bytes, Sequence[str]]]) -> None:
    """Photos and their captions, as CLIP_benchmark reads them."""
    _write(folder, ((photo, "txt", "\n".join(captions).encode()) for photo, captions in photos))
    (folder / "dataset_type.txt").write_text("retrieval\n", encoding="utf-8")


def clip_benchmark_classifies(exported: Path, folder: Path) -> dict[str, float]:
    """CLIP_benchmark's zero-shot classification of `write_labelled`'s folder."""
    model, tokenizer, loader = _clip_benchmark(exported, folder, "zeroshot_classification")
    classes, templates = loader.dataset.classes, loader.dataset.templates
    zeroshot_classification.accuracy = _shares
    found = zeroshot_classification.evaluate(model, loader, tokenizer, classes, templates, device="cpu", amp=False)
    return {"top1": found["acc1"], "top5": found["acc5"], "mean_per_class": float(found["mean_per_class_recall"])}


def clip_benchmark_retrieves(exported: Path, folder: Path, cutoffs: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """CLIP_benchmark's zero-shot retrieval in `write_captioned`'s folder: "image_to_text R@1" and so on."""
    model, tokenizer, loader = _clip_benchmark(exported, folder, "zeroshot_retrieval")
    found = zeroshot_retrieval.evaluate(model, loader, tokenizer, device="cpu", amp=False, recall_k_list=list(cutoffs))
    # It says what is retrieved.
    ways = {"image_to_text": "text_retrieval", "text_to_image": "image_retrieval"}
    return {f"{way} R@{k}": found[f"{theirs}_recall@{k}"] for way, theirs in ways.items() for k in cutoffs}


def open_clip_classifies(
    exported: Path, photos: Sequence[tuple[bytes, int]], classes: Sequence[str], templates: Sequence[str]
) -> dict[str, float]:
    """The zero-shot evaluation of open_clip's training code."""
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
    """What open_clip's `accuracy` counts; as published it stops at NumPy 2.4, which makes no number of an array."""
    nearest = output.topk(max(topk), dim=1).indices
    return [float((nearest[:, :k] == target[:, None]).any(dim=1).sum()) for k in topk]


def _shares(output: torch.Tensor, target: torch.Tensor, topk: tuple[int, ...] = (1,)) -> list[float]:
    """What CLIP_benchmark's function of that name counts, which is the same code, as shares."""
    return [hits / len(target) for hits in _hits(output, target, topk)]


def _clip_benchmark(exported: Path, folder: Path, task: str) -> tuple[Any, Any, DataLoader[Any]]:
    """Model, tokenizer and loader, made as its command line makes them."""
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
