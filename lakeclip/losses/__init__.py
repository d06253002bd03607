"""What the towers are trained to agree on."""

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
