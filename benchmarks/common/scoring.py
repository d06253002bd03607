"""How a checkpoint of either side is scored: features of the same photos and texts, then one metric for both.

Each side encodes with its own model, resize and crop, in float32. What comes after that is lakeclip's, for both.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from contest import Contest
from torch import Tensor
from torch.nn import functional as F

from lakeclip.checkpoints.layouts import load
from lakeclip.evaluation.encode import encode_images, encode_texts
from lakeclip.evaluation.labels import read_labels
from lakeclip.evaluation.prompts import fill, find_templates
from lakeclip.evaluation.retrieval import RetrievalResult, retrieval_metrics
from lakeclip.evaluation.zeroshot import count
from lakeclip.lake.dataset import open_lake

_TEMPLATES = "cifar"


class Exam(ABC):
    """The photos of the contest's lake `held-out`, and texts.

    Attributes:
        texts: what is encoded beside the photos; set by the kinds of exam.
    """

    texts: Sequence[str]

    def __init__(self, contest: Contest) -> None:
        self.contest = contest
        self.lake = open_lake(contest.work / "held-out")

    @abstractmethod
    def grade(self, images: Tensor, texts: Tensor) -> dict[str, float]:
        """Scores from unit-length features of all photos and all texts."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What a result says of the exam, with the scores that chance would have."""

    def score(self, side: str, checkpoints: Sequence[Path]) -> list[dict[str, float]]:
        """The scores of each checkpoint of one side."""
        encode = self._lakeclip if side == "lakeclip" else self._open_clip
        return [self.grade(images, texts) for images, texts in encode(checkpoints)]

    def _lakeclip(self, checkpoints: Sequence[Path]) -> list[tuple[Tensor, Tensor]]:
        features = []
        for checkpoint in checkpoints:
            model, tokenize, transform = load(checkpoint)
            images = encode_images(model, self.lake, transform, with_captions=False)
            if images.undecodable:
                raise ValueError(f"{len(images.undecodable)} held-out photos cannot be decoded")
            features.append((images.features, encode_texts(model, tokenize, self.texts)))
        return features

    def _open_clip(self, checkpoints: Sequence[Path]) -> list[tuple[Tensor, Tensor]]:
        asked, out = self.contest.work / "asked", self.contest.work / "features"
        for folder in (asked, out):
            folder.mkdir()
        (asked / "texts.json").write_text(json.dumps(list(self.texts)), encoding="utf-8")
        for number, row in enumerate(self.lake.images(range(len(self.lake)))):
            (asked / str(number)).write_bytes(row)
        words = [*self.contest.peer_words("encode"), str(asked), str(out), *map(str, checkpoints)]
        self.contest.call(words)
        files = [torch.load(out / f"{number}.pt", weights_only=True) for number in range(len(checkpoints))]
        return [(file["images"], file["texts"]) for file in files]


class ZeroShotExam(Exam):
    """Top-1 by class names: the class whose prompts' mean feature is nearest (Radford et al. 2021, section 3.1)."""

    def __init__(self, contest: Contest) -> None:
        super().__init__(contest)
        self.labels = read_labels(self.lake, "label")
        if self.labels.num_unlabelled:
            raise ValueError(f"{self.labels.num_unlabelled} held-out photos have no label")
        self.templates = find_templates(_TEMPLATES).templates
        self.texts = [text for name in self.labels.classes for text in fill(self.templates, name)]

    def grade(self, images: Tensor, texts: Tensor) -> dict[str, float]:
        per_class = texts.view(len(self.labels.classes), len(self.templates), -1)
        weights = F.normalize(per_class.mean(dim=1), dim=-1)
        confusion, _ = count(images, weights, torch.tensor(self.labels.targets))
        return {"top1": float(confusion.trace() / len(images))}

    def describe(self) -> dict[str, Any]:
        return {
            "photos": len(self.lake),
            "classes": self.labels.classes,
            "templates": self.templates,
            "chance": {"top1": 1 / len(self.labels.classes)},
        }


class RetrievalExam(Exam):
    """Each photo's captions among all, and each caption's photo."""

    def __init__(self, contest: Contest) -> None:
        super().__init__(contest)
        captions = [row.captions for row in self.lake.read(range(len(self.lake)))]
        self.texts = [text for own in captions for text in own]
        self.owners = torch.tensor([image for image, own in enumerate(captions) for _ in own])

    def grade(self, images: Tensor, texts: Tensor) -> dict[str, float]:
        return _flat(retrieval_metrics(images, texts, self.owners))

    def describe(self) -> dict[str, Any]:
        # Where all features are the same, the metric is the expectation over a random order.
        blind = retrieval_metrics(torch.ones(len(self.lake), 1), torch.ones(len(self.texts), 1), self.owners)
        return {"photos": len(self.lake), "captions": len(self.texts), "chance": _flat(blind)}


def _flat(result: RetrievalResult) -> dict[str, float]:
    """R@k of both directions, and their mean, which is what sides are compared by."""
    both = {"image_to_text": result.image_to_text.recall, "text_to_image": result.text_to_image.recall}
    flat = {f"{way} R@{k}": share for way, recall in both.items() for k, share in recall.items()}
    return flat | {f"R@{k}": sum(recall[k] for recall in both.values()) / 2 for k in result.image_to_text.recall}
