"""The contrastive, sigmoid and distillation losses, and the registry of losses by name."""

from lakeclip.losses.contrastive import contrastive_loss
from lakeclip.losses.distillation import Targets, distillation_loss, sinkhorn, softmax_targets, transport_targets
from lakeclip.losses.sigmoid import sigmoid_loss

__all__ = [
    "Targets",
    "contrastive_loss",
    "distillation_loss",
    "sigmoid_loss",
    "sinkhorn",
    "softmax_targets",
    "transport_targets",
]
