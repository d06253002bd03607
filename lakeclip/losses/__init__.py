"""What the towers are trained to agree on."""

from lakeclip.losses.contrastive import contrastive_loss
from lakeclip.losses.sigmoid import sigmoid_loss

__all__ = ["contrastive_loss", "sigmoid_loss"]
