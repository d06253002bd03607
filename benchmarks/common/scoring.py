"""Scoring of a checkpoint of either side: features of the same photos and texts, then one metric for both.

Each side encodes with its own model, resize and crop, in float32. Everything after that is lakeclip's code, for both.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from common.trainer_comparison import TrainerComparison
from lakeclip.checkpoints.layouts import load
from lakeclip.evaluation.encode import encode_images, encode_texts
from lakeclip.evaluation.labels import read_labels
from lakeclip.evaluation.prompts import fill, find_templates
from lakeclip.evaluation.retrieval import RetrievalResult, retrieval_metrics
from lakeclip.evaluation.zeroshot import confusion_counts
from lakeclip.lake.dataset import open_lake

_TEMPLATES = "cifar"


class Scorer(ABC):
    """Metric over the photos of the comparison's lake `held-out` and some texts.

    Attributes:
        texts: encoded beside the photos; set by the subclasses.
    """

    texts: Sequence[str]

    def __init__(self, comparison: TrainerComparison) -> None:
        self.comparison = comparison
        self.lake = open_lake(comparison.work / "held-out")

    @abstractmethod
    def compute_scores(self, images: Tensor, texts: Tensor) -> dict[str, float]:
        """Return the scores for unit-length features of all photos and all texts."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Describe the scoring for the result, with the scores of chance."""

    def score(self, side: str, checkpoints: Sequence[Path]) -> list[dict[str, float]]:
        """Return the scores of each checkpoint of one side."""
        encode = self._encode_with_lakeclip if side == "lakeclip" else self._encode_with_open_clip
        return [self.compute_scores(images, texts) for images, texts in encode(checkpoints)]

    def _encode_with_lakeclip(self, checkpoints: Sequence[Path]) -> list[tuple[Tensor, Tensor]]:
        features = []
        for checkpoint in checkpoints:
            model, tokenize, transform = load(checkpoint)
            images = encode_images(model, self.lake, transform, with_captions=False)
            if images.undecodable:
                raise ValueError(f"{len(images.undecodable)} held-out photos cannot be decoded")
            features.append((images.features, encode_texts(model, tokenize, self.texts)))
        return features

    def _encode_with_open_clip(self, checkpoints: Sequence[Path]) -> list[tuple[Tensor, Tensor]]:
        inputs, out = self.comparison.work / "inputs", self.comparison.work / "features"
        for folder in (inputs, out):
            folder.mkdir()
        (inputs / "texts.json").write_text(json.dumps(list(self.texts)), encoding="utf-8")
        for number, photo in enumerate(self.lake.images(range(len(self.lake)))):
            (inputs / str(number)).write_bytes(photo)
        command = [*self.comparison.peer_command("encode"), str(inputs), str(out), *map(str, checkpoints)]
        self.comparison.call(command)
        files = [torch.load(out / f"{number}.pt", weights_only=True) for number in range(len(checkpoints))]
        return [(file["images"], file["texts"]) for file in files]


class ZeroShotScorer(Scorer):
    """Top-1 by class names: the class whose prompts' mean feature is nearest (Radford et al. 2021, section 3.1)."""

    def __init__(self, comparison: TrainerComparison) -> None:
        super().__init__(comparison)
        self.labels = read_labels(self.lake, "label")
        if self.labels.num_unlabelled:
            raise ValueError(f"{self.labels.num_unlabelled} held-out photos have no label")
        self.templates = find_templates(_TEMPLATES).templates
        self.texts = [text for name in self.labels.classes for text in fill(self.templates, name)]

    def compute_scores(self, images: Tensor, texts: Tensor) -> dict[str, float]:
        per_class = texts.view(len(self.labels.classes), len(self.templates), -1)
        weights = F.normalize(per_class.mean(dim=1), dim=-1)
        nearest = (images @ weights.T).topk(1, dim=1).indices.cpu()
        confusion, _ = confusion_counts(nearest, torch.tensor(self.labels.targets), len(weights))
        return {"top1": float(confusion.trace() / len(images))}

    def describe(self) -> dict[str, Any]:
        return {
            "photos": len(self.lake),
            "classes": self.labels.classes,
            "templates": self.templates,
            "chance": {"top1": 1 / len(self.labels.classes)},
        }


class RetrievalScorer(Scorer):
    """Recall of each photo's captions among all captions, and of each caption's photo among all photos."""

    def __init__(self, comparison: TrainerComparison) -> None:
        super().__init__(comparison)
        captions = [row.captions for row in self.lake.read(range(len(self.lake)))]
        self.texts = [text for photo_captions in captions for text in photo_captions]
        self.owners = torch.tensor([image for image, photo_captions in enumerate(captions) for _ in photo_captions])

    def compute_scores(self, images: Tensor, texts: Tensor) -> dict[str, float]:
        return _flat(retrieval_metrics(images, texts, self.owners))

    def describe(self) -> dict[str, Any]:
        # When all features are equal, the metric is the expectation over a random order.
        chance = retrieval_metrics(torch.ones(len(self.lake), 1), torch.ones(len(self.texts), 1), self.owners)
        return {"photos": len(self.lake), "captions": len(self.texts), "chance": _flat(chance)}


def _flat(result: RetrievalResult) -> dict[str, float]:
    """Return R@k of both directions, and their mean, by which the sides are compared."""
    both = {"image_to_text": result.image_to_text.recall, "text_to_image": result.text_to_image.recall}
    flat = {f"{way} R@{k}": share for way, recall in both.items() for k, share in recall.items()}
    return flat | {f"R@{k}": sum(recall[k] for recall in both.values()) / 2 for k in result.image_to_text.recall}
