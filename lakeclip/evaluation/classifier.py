"""The zero-shot classifier: class names and sentences to one vector a class, and from them to the answers.

Radford et al. 2021, section 3.1: the features of a class's sentences are scaled to unit length, averaged, and scaled to
unit length again; the classifier is then one matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from lakeclip.evaluation.calibration import softmax_confidence
from lakeclip.evaluation.encode import encode_texts
from lakeclip.evaluation.prompts import fill
from lakeclip.evaluation.remembered import RememberedClassifiers
from lakeclip.models.clip import CLIP
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.types import Tokenize

#: Classes whose prompts are encoded together.
_CLASSES_AT_ONCE = 512
#: Images whose logits are held together.
_IMAGES_AT_ONCE = 4096


class Answers(NamedTuple):
    """What a classifier says of images.

    Attributes:
        nearest: (images, up to 5) classes, the nearest first.
        confidence: (images,) probability of the nearest.
    """

    nearest: Int64[Tensor, "images classes"]
    confidence: Float[Tensor, " images"]


def classifier_weights(
    model: CLIP | DualEncoder,
    tokenize: Tokenize,
    classes: Sequence[str],
    templates: Sequence[str],
    *,
    remembered: RememberedClassifiers | None = None,
) -> Float[Tensor, "classes embed"]:
    """One unit vector per class: the mean of the unit-length features of its sentences.

    Args:
        remembered: where those of earlier evaluations are kept, and these are to be; by default nowhere.
    """
    key = remembered.key(model, tokenize, classes, templates) if remembered else None
    if remembered and key and (kept := remembered.load(key)) is not None:
        return kept.to(model.logit_scale.device)
    parts = []
    for start in range(0, len(classes), _CLASSES_AT_ONCE):
        names = classes[start : start + _CLASSES_AT_ONCE]
        features = encode_texts(model, tokenize, [text for name in names for text in fill(templates, name)])
        parts.append(F.normalize(features.view(len(names), len(templates), -1).mean(dim=1), dim=-1))
    weights = torch.cat(parts)
    if remembered and key:
        remembered.store(key, weights)
    return weights


def classify(
    image_features: Float[Tensor, "images embed"],
    weights: Float[Tensor, "classes embed"],
    logit_scale: Float[Tensor, ""],
) -> Answers:
    """The nearest classes of each image, on the CPU, and how sure the model is of the first.

    The probabilities are of the softmax over exp(logit_scale) · cosine. So they are, too, of a model that was trained
    with the sigmoid loss: what is asked is which of the classes it is, and that it is one of them is given. (Its
    logit_bias is the same for all classes and falls out.)

    Args:
        logit_scale: logarithm of the inverse temperature, as the model holds it.
    """
    nearest, confidence = [], []
    with torch.no_grad():
        for start in range(0, len(image_features), _IMAGES_AT_ONCE):
            cosine = image_features[start : start + _IMAGES_AT_ONCE] @ weights.T
            nearest.append(cosine.topk(min(5, len(weights)), dim=1).indices.cpu())
            confidence.append(softmax_confidence(logit_scale.float().exp() * cosine).cpu())
    return Answers(torch.cat(nearest), torch.cat(confidence))
