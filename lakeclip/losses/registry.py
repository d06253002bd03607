"""Registry of contrastive losses by name: what `--objective` chooses from.

A loss owns the scalars that it learns beside the towers, such as a temperature. The model stores them as parameters
under the same names, so a checkpoint tells which scalars its loss has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

from lakeclip.errors import ConfigError
from lakeclip.losses.contrastive import contrastive_loss
from lakeclip.losses.sigmoid import sigmoid_loss

#: The paper caps the factor on the similarities at 100 (Radford et al. 2021, section 2.5).
MAX_LOGIT_SCALE = math.log(100)


@runtime_checkable
class LossFunction(Protocol):
    """A loss of the features of a batch."""

    def __call__(
        self,
        image_features: Tensor,
        text_features: Tensor,
        scalars: Mapping[str, Tensor],
        *,
        positive_ids: Tensor | None,
        label_smoothing: float,
        local_only: bool,
    ) -> Tensor:
        """Return the loss of this process's part of the global batch.

        Args:
            image_features, text_features: (batch, embed), unit length; row i of one belongs to row i of the other.
            scalars: the learned scalars by name.
            positive_ids: (batch, keys) hashes; rows that share one in any column are positives of each other.
            label_smoothing: share of each target that is spread over the batch.
            local_only: compare within this process only, as validation does.
        """


@dataclass(frozen=True)
class Loss:
    """An entry of the registry.

    Attributes:
        compute: the loss function.
        scalars: the learned scalars and their initial values. `logit_scale` is the logarithm of the factor on the
            cosine similarities; every loss has one.
        limits: lowest and highest value of a scalar, restored after each step.
        has_label_smoothing: the loss uses `label_smoothing`.
        min_batch: fewest pairs of a global batch from which the loss learns; 1 for a loss that compares no pairs.
    """

    compute: LossFunction
    scalars: Mapping[str, float]
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    has_label_smoothing: bool = False
    min_batch: int = 2


LOSSES: dict[str, Loss] = {}


def register_loss(name: str, loss: Loss) -> None:
    """Add a loss under the name that `LossConfig.objective` selects.

    Raises:
        ConfigError: the name is taken, or the loss has no `logit_scale`.
    """
    if name in LOSSES:
        raise ConfigError(f"a loss named {name!r} is registered already", next_step="choose another name")
    if "logit_scale" not in loss.scalars:
        raise ConfigError(
            f"the loss {name!r} has no scalar logit_scale, which evaluation and export need",
            found=", ".join(loss.scalars) or "no scalars",
        )
    LOSSES[name] = loss


def find_loss(name: str, *, label_smoothing: float = 0.0) -> Loss:
    """Return the registered loss of that name.

    Raises:
        ConfigError: there is none, or it cannot smooth labels.
    """
    if name not in LOSSES:
        raise ConfigError(f"unknown objective {name!r}", allowed=", ".join(LOSSES))
    loss = LOSSES[name]
    if label_smoothing and not loss.has_label_smoothing:
        raise ConfigError(
            f"the {name} objective cannot smooth labels",
            found=f"label_smoothing {label_smoothing}",
            allowed=f"0, or an objective that can: {', '.join(k for k, v in LOSSES.items() if v.has_label_smoothing)}",
        )
    return loss


def check_batch_size(objective: str, size: int, *, found: str = "", next_step: str = "") -> None:
    """Check that a loss can learn from batches of a size.

    A pair in a batch of one has no other pair to be compared with. The softmax loss is then 0; the sigmoid loss falls,
    but by making all pairs alike.

    Args:
        objective: name of the loss.
        size: pairs in a batch over all devices.
        found, next_step: parts of the error.

    Raises:
        ConfigError: the batch is smaller than the loss's `min_batch`.
    """
    least = find_loss(objective).min_batch
    if size >= least:
        return
    if size == 1:
        reason = "its loss is 0" if objective == "softmax" else "the loss can only make all pairs alike"
        reason = f"has no other pair to compare with: {reason}, and nothing is learned"
    else:
        reason = f"is too small for the {objective} loss"
    raise ConfigError(
        f"a batch of {size} pair{'s' * (size != 1)} {reason}",
        found=found or f"{size} pair{'s' * (size != 1)} over all devices",
        allowed=f"{least} pairs or more over all devices; 32 or more learn well",
        next_step=next_step or "a larger batch size, with minibatch_size for as much memory as now",
    )


def _softmax(
    image_features: Tensor,
    text_features: Tensor,
    scalars: Mapping[str, Tensor],
    *,
    positive_ids: Tensor | None,
    label_smoothing: float,
    local_only: bool,
) -> Tensor:
    return contrastive_loss(
        image_features,
        text_features,
        scalars["logit_scale"],
        positive_ids=positive_ids,
        label_smoothing=label_smoothing,
        local_only=local_only,
    )


def _sigmoid(
    image_features: Tensor,
    text_features: Tensor,
    scalars: Mapping[str, Tensor],
    *,
    positive_ids: Tensor | None,
    label_smoothing: float,
    local_only: bool,
) -> Tensor:
    return sigmoid_loss(
        image_features,
        text_features,
        scalars["logit_scale"],
        scalars["logit_bias"],
        positive_ids=positive_ids,
        local_only=local_only,
    )


register_loss(
    "softmax",
    Loss(
        _softmax,
        {"logit_scale": math.log(1 / 0.07)},
        limits={"logit_scale": (-math.inf, MAX_LOGIT_SCALE)},
        has_label_smoothing=True,
    ),
)
# SigLIP's initial values (Zhai et al. 2023, section 3.2). Its scale has no cap: published models end near 117.
register_loss("sigmoid", Loss(_sigmoid, {"logit_scale": math.log(10), "logit_bias": -10.0}))
