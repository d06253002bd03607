"""Zero-shot classifier: one weight vector per class, computed from prompts, and the predictions it makes.

Radford et al. 2021, section 3.1: the features of a class's prompts are scaled to unit length, averaged, and scaled to
unit length again; the classifier is then one matrix product.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from lakeclip.errors import DataError, InputWarning
from lakeclip.evaluation.calibration import softmax_confidence
from lakeclip.evaluation.classifier_cache import ClassifierCache
from lakeclip.evaluation.encode import encode_texts
from lakeclip.evaluation.prompts import fill
from lakeclip.models.clip import CLIP
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.types import Tokenize

#: Classes whose prompts are encoded together.
_CLASSES_AT_ONCE = 512
#: Images whose logits are held together.
_IMAGES_AT_ONCE = 4096


class Predictions(NamedTuple):
    """Predictions of a classifier.

    Attributes:
        nearest: (images, up to 5) classes, the nearest first.
        confidence: (images,) probability of the nearest class.
    """

    nearest: Int64[Tensor, "images classes"]
    confidence: Float[Tensor, " images"]


def classifier_weights(
    model: CLIP | DualEncoder,
    tokenize: Tokenize,
    classes: Sequence[str],
    templates: Sequence[str],
    *,
    cache: ClassifierCache | None = None,
) -> Float[Tensor, "classes embed"]:
    """Return one unit vector per class: the normalized mean of the unit-length features of its prompts.

    Args:
        cache: classifiers of earlier evaluations, where this one is stored as well; by default nothing is cached.
    """
    key = cache.key(model, tokenize, classes, templates) if cache else None
    if cache and key and (cached := cache.load(key)) is not None:
        return cached.to(model.logit_scale.device)
    parts = []
    for start in range(0, len(classes), _CLASSES_AT_ONCE):
        names = classes[start : start + _CLASSES_AT_ONCE]
        features = encode_texts(model, tokenize, [text for name in names for text in fill(templates, name)])
        parts.append(F.normalize(features.view(len(names), len(templates), -1).mean(dim=1), dim=-1))
    weights = torch.cat(parts)
    if cache and key:
        cache.store(key, weights)
    return weights


def check_prompts(tokenize: Tokenize, classes: Sequence[str], templates: Sequence[str]) -> list[InputWarning]:
    """Check that the model can tell the classes apart by their prompts, after tokenizing and truncation.

    Returns:
        A warning if some classes have the token ids of another.

    Raises:
        DataError: all classes have the same token ids.
    """
    first: dict[Hashable, int] = {}
    equal: list[tuple[str, str]] = []
    for start in range(0, len(classes), _CLASSES_AT_ONCE):
        names = classes[start : start + _CLASSES_AT_ONCE]
        ids = tokenize([fill(templates[:1], name)[0] for name in names])
        tensors = [ids] if isinstance(ids, Tensor) else [value for value in ids.values() if isinstance(value, Tensor)]
        for number, rows in enumerate(zip(*(tensor.tolist() for tensor in tensors), strict=True), start):
            # Hugging Face pads to the longest text of a call.
            key = tuple(tuple(row[: len(row) - _num_trailing_zeros(row)]) for row in rows)
            other = first.setdefault(key, number)
            if other != number:
                equal.append((classes[other], classes[number]))
    if not equal:
        return []
    example = f"{equal[0][0][:100]!r} and {equal[0][1][:100]!r}"
    names_needed = "class names that differ in their first words, in the script that the tokenizer knows"
    if len(first) == 1:
        raise DataError(
            "all classes have the same prompt for the model, so it cannot tell them apart",
            found=f"{example}: equal token ids",
            allowed=names_needed,
            next_step="--classes FILE with other names",
        )
    what = f"{len(equal):,} of {len(classes):,} classes have the prompt of another for the model, such as {example}"
    return [InputWarning(f"{what}; it cannot tell these apart", f"--classes FILE with {names_needed}")]


def _num_trailing_zeros(row: Sequence[int]) -> int:
    return next((index for index, value in enumerate(reversed(row)) if value), len(row))


def classify(
    image_features: Float[Tensor, "images embed"],
    weights: Float[Tensor, "classes embed"],
    logit_scale: Float[Tensor, ""],
) -> Predictions:
    """Return the nearest classes of each image, and the confidence in the first, on the CPU.

    The confidence is the softmax probability over exp(logit_scale) · cosine. This also holds for a model trained with
    the sigmoid loss: exactly one of the classes is assumed to be correct, and its logit_bias, which is the same for all
    classes, cancels out.

    Args:
        logit_scale: logarithm of the inverse temperature, as the model stores it.
    """
    nearest, confidence = [], []
    with torch.no_grad():
        for start in range(0, len(image_features), _IMAGES_AT_ONCE):
            cosine = image_features[start : start + _IMAGES_AT_ONCE] @ weights.T
            nearest.append(cosine.topk(min(5, len(weights)), dim=1).indices.cpu())
            confidence.append(softmax_confidence(logit_scale.float().exp() * cosine).cpu())
    return Predictions(torch.cat(nearest), torch.cat(confidence))
