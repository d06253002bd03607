"""Fine-tuning two pretrained towers on one's own pairs."""

from __future__ import annotations

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from lakeclip.config.schema import OptimizerConfig
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.training.module import ContrastiveModule
from lakeclip.training.optimizers import parameter_groups


class CustomCLIPWrapper(ContrastiveModule):
    """Any image module and any Hugging Face text model, trained to agree; both are put into training mode.

    Args:
        image_encoder: images → (batch, dim).
        text_encoder: a Hugging Face `AutoModel`.
        minibatch_size: embed at most this many pairs at a time; the whole batch when None or 0.
        learning_rate: peak of SGD with momentum 0.9 and no weight decay (OTTER, arXiv 2112.09445, section 4).
        kl_coeff: weight of the self-distillation. This version trains with the contrastive loss alone and says so.
        avg_word_embs: represent a text by the mean of its words' vectors instead of the pooled first token.
        embed_dim: width of the shared space; the text model's by default.
        image_size: side of the images in pixels.
    """

    def __init__(
        self,
        image_encoder: nn.Module,
        text_encoder: nn.Module,
        minibatch_size: int | None = None,
        learning_rate: float = 3e-3,
        kl_coeff: float = 1.0,
        avg_word_embs: bool = False,
        *,
        embed_dim: int | None = None,
        image_size: int = 224,
    ) -> None:
        super().__init__(
            DualEncoder(
                image_encoder,
                text_encoder,
                embed_dim=embed_dim,
                average_word_embeddings=avg_word_embs,
                image_size=image_size,
            ),
            model_name="custom",
            minibatch_size=minibatch_size,
            optimizer=OptimizerConfig(lr=learning_rate, weight_decay=0.0),
        )
        # `from_pretrained` hands out models that are ready to evaluate, and Lightning leaves them so.
        self.train()
        if kl_coeff:
            rank_zero_warn(
                "self-distillation is not in this version: kl_coeff is unused, the loss is contrastive alone"
            )

    def make_optimizer(self) -> torch.optim.Optimizer:
        """SGD with momentum, without weight decay."""
        assert self.optimizer_config.lr is not None
        return torch.optim.SGD(parameter_groups(self.model, 0.0), lr=self.optimizer_config.lr, momentum=0.9)
