"""What the towers are trained to agree on."""

from lakeclip.losses.contrastive import contrastive_loss, gather_features

__all__ = ["contrastive_loss", "gather_features"]
