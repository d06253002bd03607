"""The teacher of self-distillation: an exponential moving average of the student (arXiv 2112.09445, section 3.3)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lakeclip.models.clip import CLIP, unit
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.training.microbatch import in_order, micro_batches, take


class Teacher(nn.Module):
    """Averages a model's weights and running statistics. It has no gradients and is always in evaluation mode.

    Args:
        student: the model, as it stands now: the teacher begins as its copy.
        decay: of the average, a step. Early it is (1 + n) / (10 + n) for n steps, so that the start is soon forgotten.
    """

    steps: Tensor

    def __init__(self, student: CLIP | DualEncoder, decay: float) -> None:
        super().__init__()
        self.model = copy.deepcopy(student).requires_grad_(False)
        self.decay = decay
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        """A teacher does not train: it stays in evaluation mode whatever becomes of the module that it is part of."""
        return super().train(False)

    @torch.no_grad()
    def follow(self, student: CLIP | DualEncoder) -> None:
        """Move towards the student, after a step of its."""
        self.steps += 1
        n = int(self.steps)
        share = 1 - min(self.decay, (1 + n) / (10 + n))
        mine, theirs = [], []
        for own, other in zip(_state(self.model), _state(student), strict=True):
            if own.is_floating_point():
                mine.append(own)
                theirs.append(other)
            else:
                own.copy_(other)
        torch._foreach_lerp_(mine, theirs, share)

    @torch.no_grad()
    def images(self, images: Tensor, minibatch_size: int | None) -> Tensor:
        """Unit-length features of images, (batch, embed).

        Args:
            images: as the model takes them.
            minibatch_size: embed at most so many at a time; the whole batch when None.
        """
        parts = torch.split(images, minibatch_size or len(images))
        return torch.cat([unit(self.model.encode_image(part)) for part in parts])

    @torch.no_grad()
    def texts(self, texts: Any, batch: int, minibatch_size: int | None) -> Tensor:
        """Unit-length features of texts, (batch, embed).

        Args:
            texts: as the model takes them.
            batch: how many they are.
            minibatch_size: embed at most so many at a time; the whole batch when None.
        """
        chunks = micro_batches(batch, texts, minibatch_size or batch)
        return in_order([unit(self.model.encode_text(take(texts, chunk))) for chunk in chunks], chunks)


def _state(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers that are saved: weights and running statistics."""
    return list(model.state_dict(keep_vars=True).values())
