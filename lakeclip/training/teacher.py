"""The teacher of self-distillation: an exponential moving average of the student (arXiv 2112.09445, section 3.3)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lakeclip.models.clip import CLIP, l2_normalize
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.training.grad_cache import micro_batches, restore_order, select_rows


class Teacher(nn.Module):
    """Exponential moving average of a model's weights and running statistics, always in evaluation mode.

    Args:
        student: the model; the teacher starts as a copy of it.
        decay: decay of the average per step. In the first steps it is at most (1 + n) / (10 + n) after n steps, so that
            the initial weights lose their influence soon.
    """

    steps: Tensor

    def __init__(self, student: CLIP | DualEncoder, decay: float) -> None:
        super().__init__()
        self.model = copy.deepcopy(student).requires_grad_(False)
        self.decay = decay
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode, also when the enclosing module is put into training mode."""
        return super().train(False)

    @torch.no_grad()
    def update(self, student: CLIP | DualEncoder) -> None:
        """Move the average towards the student's weights, after each of its steps."""
        self.steps += 1
        n = int(self.steps)
        share = 1 - min(self.decay, (1 + n) / (10 + n))
        averages, values = [], []
        for average, value in zip(_state(self.model), _state(student), strict=True):
            if average.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, values, share)

    @torch.no_grad()
    def encode_images(self, images: Tensor, minibatch_size: int | None) -> Tensor:
        """Return unit-length features of images, (batch, embed).

        Args:
            images: input of the model's `encode_image`.
            minibatch_size: number of images to embed at a time; the whole batch when None.
        """
        parts = torch.split(images, minibatch_size or len(images))
        return torch.cat([l2_normalize(self.model.encode_image(part)) for part in parts])

    @torch.no_grad()
    def encode_texts(self, texts: Any, batch: int, minibatch_size: int | None) -> Tensor:
        """Return unit-length features of texts, (batch, embed).

        Args:
            texts: input of the model's `encode_text`.
            batch: number of texts.
            minibatch_size: number of texts to embed at a time; the whole batch when None.
        """
        chunks = micro_batches(batch, texts, minibatch_size or batch)
        features = [l2_normalize(self.model.encode_text(select_rows(texts, chunk))) for chunk in chunks]
        return restore_order(features, chunks)


def _state(model: nn.Module) -> list[Tensor]:
    """Return the tensors of the state dict: weights and running statistics."""
    return list(model.state_dict(keep_vars=True).values())
