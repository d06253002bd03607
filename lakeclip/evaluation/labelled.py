"""Labelled rows of a source as features and targets, to fit and score classifiers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lakeclip.data.transforms import EvalTransform
from lakeclip.evaluation.encode import Undecodable, encode_images
from lakeclip.evaluation.labels import Labels
from lakeclip.lake.rows import RowSource
from lakeclip.models.clip import CLIP
from lakeclip.models.dual_encoder import DualEncoder


@dataclass(frozen=True)
class LabelledFeatures:
    """Features and classes of the images that have a label and could be decoded.

    Attributes:
        features: (images, embed) float32 of unit length, on the model's device.
        targets: class of each image, on the CPU.
        undecodable: skipped images.
    """

    features: Float[Tensor, "images embed"]
    targets: Int64[Tensor, " images"]
    undecodable: list[Undecodable]


def encode_labelled(
    model: CLIP | DualEncoder,
    transform: EvalTransform,
    source: RowSource,
    labels: Labels,
    *,
    batch_size: int = 128,
    num_workers: int = 0,
) -> LabelledFeatures:
    """Encode the images of a source that have a label.

    Args:
        labels: class of each row; see `read_labels`.
        num_workers: processes that read and decode; 0 decodes in this process.

    Raises:
        LakeclipError: the source cannot be read, none of its images can be decoded, or the features are not finite.
    """
    images = encode_images(
        model,
        source,
        transform,
        positions=labels.positions,
        with_captions=False,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    target_of = dict(zip(labels.positions, labels.targets, strict=True))
    targets = torch.tensor([target_of[position] for position in images.positions])
    return LabelledFeatures(images.features, targets, images.undecodable)
