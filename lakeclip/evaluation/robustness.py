"""How much of its accuracy a model keeps on other images: copies made worse by measure, and lakes of another kind.

Zero-shot CLIP is remarkable for what it keeps (Radford et al. 2021, section 3.3), and fine-tuning takes that away; the
clean score alone does not tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from lakeclip.data.transforms import EvalTransform
from lakeclip.errors import ImageError
from lakeclip.evaluation.classifier import classifier_weights, classify
from lakeclip.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from lakeclip.evaluation.encode import encode_images
from lakeclip.evaluation.labelled import encode_labelled
from lakeclip.evaluation.labels import Labels
from lakeclip.evaluation.prompts import TemplateSet
from lakeclip.evaluation.remembered import RememberedClassifiers
from lakeclip.lake.dataset import Lake
from lakeclip.lake.rows import Row, RowSource
from lakeclip.models.clip import CLIP
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.types import Tokenize

#: Features held at once, of all copies together: half a gigabyte with 512 numbers each.
_COPIES_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class Shift:
    """Another lake with the same labels: sketches, say, of what the first has photos of.

    Attributes:
        name: the lake.
        top1: zero-shot top-1 (0…1) on it.
        clean: … and on those images of the first lake whose class it has, too.
        num_samples: images of it that were scored.
    """

    name: str
    top1: float
    clean: float
    num_samples: int


@dataclass(frozen=True)
class RobustnessResult:
    """Zero-shot top-1 (0…1) on images as they are, and on others.

    Attributes:
        clean: on the images as they are.
        top1: corruption → top-1 by severity, in the order of `severities`.
        severities: 1 (least) to 5.
        shifts: other lakes.
        num_samples, num_classes: of the first lake.
        num_undecodable, num_unlabelled: its rows that were left out.
        templates: sentences that the names were put into.
    """

    clean: float
    top1: dict[str, tuple[float, ...]]
    severities: tuple[int, ...]
    shifts: tuple[Shift, ...]
    num_samples: int
    num_classes: int
    num_undecodable: int
    num_unlabelled: int
    templates: TemplateSet

    @property
    def mean(self) -> float:
        """Over all corruptions and severities."""
        return float(np.mean(list(self.top1.values())))

    @property
    def mean_relative_drop(self) -> float:
        """Share of the clean accuracy that is lost, over all corruptions and severities; below 0 where it is gained."""
        return 1 - self.mean / self.clean if self.clean else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values, as written by `lakeclip evaluate robustness --json`."""
        return {
            "clean": self.clean,
            "mean": self.mean,
            "mean_relative_drop": self.mean_relative_drop,
            "severities": list(self.severities),
            "top1": {name: list(scores) for name, scores in self.top1.items()},
            "shifts": [
                {"lake": one.name, "top1": one.top1, "clean_on_its_classes": one.clean, "num_samples": one.num_samples}
                for one in self.shifts
            ],
            "num_samples": self.num_samples,
            "num_classes": self.num_classes,
            "num_undecodable": self.num_undecodable,
            "num_unlabelled": self.num_unlabelled,
            "templates": list(self.templates.templates),
        }


def robustness(
    model: CLIP | DualEncoder,
    tokenize: Tokenize,
    transform: EvalTransform,
    source: RowSource,
    labels: Labels,
    templates: TemplateSet,
    *,
    corruptions: Sequence[str] = tuple(CORRUPTIONS),
    severities: Sequence[int] = SEVERITIES,
    shifted: Sequence[tuple[RowSource, Labels]] = (),
    seed: int = 0,
    batch_size: int = 128,
    num_workers: int = 0,
    remembered: RememberedClassifiers | None = None,
) -> RobustnessResult:
    """Score a model on a source's labelled images, on copies made worse, and on other sources.

    Args:
        labels: what the rows show; see `read_labels`.
        corruptions, severities: which copies; at least one of each.
        shifted: sources with labels that count the same classes.
        seed: of what is random in the copies.
        remembered: classifiers of earlier evaluations; see `remembered_classifiers`.

    Raises:
        LakeclipError: a source cannot be read, or the model's features are not finite.
    """
    weights = classifier_weights(model, tokenize, labels.classes, templates.templates, remembered=remembered)
    copies = ShiftedCopies(source, transform, [(name, level) for name in corruptions for level in severities], seed)
    right, num_of_class, num_undecodable = _score_copies(model, copies, labels, weights, batch_size, num_workers)
    num_samples = int(num_of_class.sum())
    share = (right.sum(axis=1) / num_samples).tolist()
    shifts = []
    for other, known in shifted:
        images = encode_labelled(model, transform, other, known, batch_size=batch_size, num_workers=num_workers)
        nearest = classify(images.features, weights, model.logit_scale).nearest[:, 0]
        both = np.unique(images.targets.numpy())
        clean = float(right[0, both].sum() / max(1, num_of_class[both].sum()))
        top1 = float((nearest == images.targets).double().mean())
        shifts.append(Shift(other.path, top1, clean, len(nearest)))
    width = len(severities)
    return RobustnessResult(
        clean=share[0],
        top1={name: tuple(share[1 + i * width : 1 + (i + 1) * width]) for i, name in enumerate(corruptions)},
        severities=tuple(severities),
        shifts=tuple(shifts),
        num_samples=num_samples,
        num_classes=len(labels.classes),
        num_undecodable=num_undecodable,
        num_unlabelled=labels.num_unlabelled,
        templates=templates,
    )


def _score_copies(
    model: CLIP | DualEncoder,
    copies: ShiftedCopies,
    labels: Labels,
    weights: Float[Tensor, "classes embed"],
    batch_size: int,
    num_workers: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Right answers, (copies, classes); images, (classes,); and how many could not be decoded."""
    each, num_classes = copies.num_each, len(labels.classes)
    target_of = dict(zip(labels.positions, labels.targets, strict=True))
    right = np.zeros((each, num_classes), np.int64)
    total = np.zeros(num_classes, np.int64)
    broken: set[int] = set()
    positions = np.array(labels.positions)
    for part in np.array_split(positions, math.ceil(len(positions) * each / _COPIES_AT_ONCE)):
        images = encode_images(
            model,
            copies,
            # What is there is as large as it is to be: nothing is resized again.
            copies.transform,
            positions=(part[:, None] * each + np.arange(each)).ravel().tolist(),
            with_captions=False,
            # Whole images, so that none is decoded for two batches.
            batch_size=batch_size // each * each or batch_size,
            num_workers=num_workers,
        )
        position, copy = np.divmod(np.array(images.positions), each)
        targets = np.array([target_of[one] for one in position.tolist()])
        is_right = classify(images.features, weights, model.logit_scale).nearest[:, 0] == torch.from_numpy(targets)
        np.add.at(right, (copy, targets), is_right.numpy())
        total += np.bincount(targets[copy == 0], minlength=num_classes)
        broken |= {one.row for one in images.undecodable}
    return right, total, len(broken)


class ShiftedCopies:
    """A `RowSource` of the images of another, each as it is and then once for each shift; decoded once for all.

    At `index` is copy `index % num_each` of the image at `index // num_each`, already cut to the model's square.
    Picklable.

    Args:
        shifts: (corruption, severity) of each copy but the first.
        seed: of what is random in them.
    """

    query = None

    def __init__(
        self, source: RowSource, transform: EvalTransform, shifts: Sequence[tuple[str, int]], seed: int
    ) -> None:
        self.source = source
        self.transform = transform
        self.shifts = list(shifts)
        self.seed = seed
        self.num_each = 1 + len(self.shifts)

    @property
    def path(self) -> str:
        """That of the source."""
        return self.source.path

    @property
    def version(self) -> str:
        """That of the source, and the shifts."""
        return f"{self.source.version} {self.shifts} {self.seed}"

    @property
    def columns(self) -> dict[str, str]:
        """Those of the source."""
        return self.source.columns

    def __len__(self) -> int:
        return len(self.source) * self.num_each

    def column(self, name: str) -> list[object]:
        """The values of one column, for every copy."""
        return [value for value in self.source.column(name) for _ in range(self.num_each)]

    def __getitem__(self, index: int) -> dict[str, object]:
        return self.source[index // self.num_each]

    def read(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> list[Row]:
        """The copies at these indices, without captions. One that cannot be decoded is handed on as it was stored."""
        wanted = [divmod(int(index), self.num_each) for index in indices]
        originals = sorted({position for position, _ in wanted})
        read = {position: self._decode(row) for position, row in zip(originals, self._read(originals), strict=True)}
        return [self._copy(*read[position], copy) for position, copy in wanted]

    def _read(self, positions: list[int]) -> list[Row]:
        if not isinstance(self.source, Lake):
            return self.source.read(positions)
        # A lake may have no captions.
        rows = self.source.base_rows(positions).tolist()
        return [Row(row, image, ()) for row, image in zip(rows, self.source.images(positions), strict=True)]

    def _decode(self, row: Row) -> tuple[Row, NDArray[np.uint8] | None]:
        try:
            return row, np.ascontiguousarray(self.transform(row.image).permute(1, 2, 0).numpy())
        except ImageError:
            return row, None

    def _copy(self, row: Row, pixels: NDArray[np.uint8] | None, copy: int) -> Row:
        if pixels is None:
            return Row(row.row, row.image, ())
        if copy:
            name, severity = self.shifts[copy - 1]
            pixels = np.ascontiguousarray(corrupt(pixels, name, severity, seed=self.seed, row=row.row))
        # The plainest format there is: what the encoder reads are bytes, and here they cost next to nothing.
        height, width = pixels.shape[:2]
        return Row(row.row, b"P6\n%d %d\n255\n" % (width, height) + pixels.tobytes(), ())
