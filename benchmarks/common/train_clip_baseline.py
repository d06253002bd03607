"""Self-distillation as an earlier trainer's published code computes it, for comparison: its faults are kept on purpose.

The numbers are those of this project's list of that code's defects, each of which has a test here.

- One backward pass for the images and one for the texts, so that the temperatures get their gradients twice, the towers
  are run three times a step and batch norm's statistics move three times (5, 8).
- The temperature of the distillation is used without exp, and both are kept within ± ln 100 (3, 14).
- Sinkhorn is given a cost and computes exp(+cost / 0.05), three iterations, on the columns last, with the given pairs
  left in; the KL weight is 1 beside a contrastive weight of 1 (13, 15).
- The teacher runs in training mode, its buffers are not averaged, and its decay does not warm up (16).
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lakeclip.models.clip import unit
from lakeclip.training.finetune import CustomCLIPWrapper


class EarlierWrapper(CustomCLIPWrapper):
    """The earlier step, on one process and without micro-batches, with this project's optimiser and schedule."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.distillation_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.old_teacher = copy.deepcopy(self.model).requires_grad_(False).train()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Three passes of the student and one of the teacher."""
        optimizer = self.optimizers()
        images, texts = batch[0], batch[1]
        with torch.no_grad():
            fixed = self.embed(images, texts)
            old_images = unit(self.old_teacher.encode_image(images))
            old_texts = unit(self.old_teacher.encode_text(texts))
            alike = old_images @ old_images.T + old_texts @ old_texts.T
            cross = old_images @ old_texts.T
            targets = _transport(-(alike + cross)), _transport(-(alike + cross.T))
        optimizer.zero_grad()
        self.manual_backward(self._loss(unit(self.model.encode_image(images)), fixed[1], targets))
        loss = self._loss(fixed[0], unit(self.model.encode_text(texts)), targets)
        self.manual_backward(loss)
        optimizer.step()
        self.lr_schedulers().step()
        with torch.no_grad():
            for scale in (self.model.logit_scale, self.distillation_scale):
                scale.clamp_(-math.log(100), math.log(100))
            for old, new in zip(self.old_teacher.parameters(), self.model.parameters(), strict=True):
                old.lerp_(new, 1 - 0.999)
        self.log("train/loss", loss.detach())
        return loss.detach()

    def _loss(self, images: Tensor, texts: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
        similar, own = images @ texts.T, torch.arange(len(images))
        logits = similar * self.model.logit_scale.exp()
        contrastive = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        distilled = [
            F.kl_div(F.log_softmax(side * self.distillation_scale, dim=-1), target, reduction="batchmean")
            for side, target in zip((similar, similar.T), targets, strict=True)
        ]
        return contrastive + sum(distilled) / 2

    def make_optimizer(self) -> torch.optim.Optimizer:
        """With the temperature of the distillation."""
        optimizer = super().make_optimizer()
        optimizer.add_param_group({"params": [self.distillation_scale], "weight_decay": 0.0})
        return optimizer


def _transport(cost: Tensor) -> Tensor:
    """The published iteration, given what it takes for a similarity."""
    plan = torch.exp(cost / 0.05).T
    plan = plan / plan.sum()
    for _ in range(3):
        plan = plan / plan.sum(dim=1, keepdim=True) / plan.shape[0]
        plan = plan / plan.sum(dim=0, keepdim=True) / plan.shape[1]
    return (plan * plan.shape[1]).T
