"""Self-distillation as train-CLIP's published code computes it, for comparison; its faults are kept on purpose.

- One backward pass for the images and one for the texts. So the temperatures get their gradients twice, the towers
  run three times a step, and batch norm's statistics are updated three times.
- The temperature of the distillation is used without exp, and both temperatures are kept within ± ln 100.
- Sinkhorn gets a cost and computes exp(+cost / 0.05), with three iterations that end on the columns and with the given
  pairs included; the KL term and the contrastive term both have a weight of 1.
- The teacher runs in training mode, its buffers are not averaged, and its decay does not warm up.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lakeclip.models.clip import l2_normalize
from lakeclip.training.finetune import CustomCLIPWrapper


class TrainCLIPWrapper(CustomCLIPWrapper):
    """LightningModule with train-CLIP's step, for one process without micro-batches, and lakeclip's optimiser."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.distillation_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.old_teacher = copy.deepcopy(self.model).requires_grad_(False).train()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Take a step with three passes of the student and one of the teacher."""
        optimizer = self.optimizers()
        images, texts = batch[0], batch[1]
        with torch.no_grad():
            fixed_images, fixed_texts = self.embed(images, texts)
            old_images = l2_normalize(self.old_teacher.encode_image(images))
            old_texts = l2_normalize(self.old_teacher.encode_text(texts))
            within = old_images @ old_images.T + old_texts @ old_texts.T
            across = old_images @ old_texts.T
            targets = _transport(-(within + across)), _transport(-(within + across.T))
        optimizer.zero_grad()
        self.manual_backward(self._loss(l2_normalize(self.model.encode_image(images)), fixed_texts, targets))
        loss = self._loss(fixed_images, l2_normalize(self.model.encode_text(texts)), targets)
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
        similarity, labels = images @ texts.T, torch.arange(len(images))
        logits = similarity * self.model.logit_scale.exp()
        contrastive = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        distilled = [
            F.kl_div(F.log_softmax(side * self.distillation_scale, dim=-1), target, reduction="batchmean")
            for side, target in zip((similarity, similarity.T), targets, strict=True)
        ]
        return contrastive + sum(distilled) / 2

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Build the optimiser, with the distillation's temperature among its parameters."""
        optimizer = super().make_optimizer()
        optimizer.add_param_group({"params": [self.distillation_scale], "weight_decay": 0.0})
        return optimizer


def _transport(cost: Tensor) -> Tensor:
    """Run the published Sinkhorn iteration, which treats its cost as a similarity."""
    plan = torch.exp(cost / 0.05).T
    plan = plan / plan.sum()
    for _ in range(3):
        plan = plan / plan.sum(dim=1, keepdim=True) / plan.shape[0]
        plan = plan / plan.sum(dim=0, keepdim=True) / plan.shape[1]
    return (plan * plan.shape[1]).T
