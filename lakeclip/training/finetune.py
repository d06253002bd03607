"""Fine-tuning of two pretrained towers, or of a whole CLIP, with self-distillation."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from lakeclip.checkpoints.native import weights_digest
from lakeclip.config.schema import FinetuneConfig, FinetuneOptimizerConfig, KeepConfig, LossConfig, TeacherConfig
from lakeclip.errors import ConfigError
from lakeclip.losses import Targets, distillation_loss, softmax_targets, transport_targets
from lakeclip.losses.registry import MAX_LOGIT_SCALE
from lakeclip.models.clip import CLIP, IMAGE_MEAN, IMAGE_STD
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.models.pretrained import TowersConfig
from lakeclip.training.freeze import build_finetune_optimizer, freeze_and_adapt, with_finetune_defaults
from lakeclip.training.grad_cache import LossFn
from lakeclip.training.gradients import parameters_by_tower
from lakeclip.training.guard import Guard
from lakeclip.training.module import ContrastiveModule
from lakeclip.training.teacher import Teacher


class FinetuneModule(ContrastiveModule):
    """LightningModule that fine-tunes a pretrained model with a teacher, which is an average of the model itself.

    loss = alpha · contrastive + (1 - alpha) · KL(teacher's targets ‖ student). Each term has its own learned
    temperature (OTTER: arXiv 2112.09445, equation 4). The contrastive term is the softmax, or the sigmoid for a model
    that was trained with it.

    Args:
        model: the towers, or a CLIP.
        model_name: the model's name.
        minibatch_size: pairs embedded at a time; the whole batch when None or 0.
        optimizer: unset values are the usual ones for the kind of model.
        teacher: the targets that the teacher gives, and their weight in the loss.
        keep: the layers that are frozen, and LoRA.
        accumulate, guard, run_config, towers, tokenizer: as for `ContrastiveModule`.

    Attributes:
        teacher: None without distillation.
        distillation_scale: logarithm of the student's inverse temperature in the distillation; its exponential stays
            between 1 and 100.

    Raises:
        ConfigError: settings that do not fit together, or not the model.
    """

    optimizer_config: FinetuneOptimizerConfig

    def __init__(
        self,
        model: CLIP | DualEncoder,
        *,
        model_name: str,
        minibatch_size: int | None = None,
        optimizer: FinetuneOptimizerConfig | None = None,
        teacher: TeacherConfig | None = None,
        keep: KeepConfig | None = None,
        accumulate: int = 1,
        guard: Guard | None = None,
        run_config: FinetuneConfig | None = None,
        towers: TowersConfig | None = None,
        tokenizer: Any = None,
    ) -> None:
        usual = with_finetune_defaults(optimizer or FinetuneOptimizerConfig(), is_clip=isinstance(model, CLIP))
        super().__init__(
            model,
            model_name=model_name,
            minibatch_size=minibatch_size,
            optimizer=usual,
            # A model with a bias was trained with the sigmoid objective, as SigLIP, and goes on with it.
            loss=LossConfig(objective="softmax" if model.logit_bias is None else "sigmoid"),
            accumulate=accumulate,
            guard=guard,
            run_config=run_config,
            towers=towers,
            tokenizer=tokenizer,
        )
        self.optimizer_config = usual
        self.teacher_config = teacher or TeacherConfig()
        self._held = freeze_and_adapt(model, keep or KeepConfig())
        self._is_fixed = {
            side: not any(parameter.requires_grad for parameter in parameters)
            for side, parameters in zip(("image", "text"), parameters_by_tower(model), strict=True)
        }
        self.teacher: Teacher | None = None
        if self.teacher_config.targets != "none" and self.teacher_config.alpha < 1:
            if usual.ema_decay is not None:
                raise ConfigError(
                    "ema_decay and a teacher exclude each other: the teacher is an average of the weights",
                    next_step="--targets none, or --teacher-decay instead of --ema-decay",
                )
            if self.teacher_config.initial_scale is not None:
                with torch.no_grad():
                    model.logit_scale.fill_(self.teacher_config.initial_scale)
            self.teacher = Teacher(model, self.teacher_config.teacher_decay)
            # Both terms start with one scale: at a higher one the teacher's would outweigh the pairs' several times.
            self.distillation_scale = nn.Parameter(model.logit_scale.detach().clone())
        if run_config is not None:
            self.start = weights_digest(self.model.state_dict())
        # `from_pretrained` returns models in evaluation mode, and Lightning leaves them so.
        self.train()

    def train(self, mode: bool = True) -> FinetuneModule:
        """Set training mode, except for frozen layers."""
        super().train(mode)
        for part in self._held:
            part.eval()
        return self

    def on_fit_start(self) -> None:
        """Silence Lightning's warning about modules in evaluation mode: teacher and frozen layers are meant to be."""
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")

    @property
    def scalars(self) -> tuple[nn.Parameter, ...]:
        """The temperatures."""
        scalars = super().scalars
        return (
            (*scalars, self.distillation_scale)
            if self.teacher is not None and self.distillation_scale.requires_grad
            else scalars
        )

    def loss_fn(self, batch: Any) -> LossFn:
        """Return the loss of a batch as a function of its features, with the teacher's features computed already."""
        contrastive = super().loss_fn(batch)
        if self.teacher is None:
            return contrastive
        teacher, alpha = self.teacher, self.teacher_config.alpha
        # A frozen tower is the same in student and teacher, so the student's features serve for both.
        teacher_images = None if self._is_fixed["image"] else teacher.encode_images(batch[0], self.minibatch_size)
        teacher_texts = (
            None if self._is_fixed["text"] else teacher.encode_texts(batch[1], len(batch[0]), self.minibatch_size)
        )

        def combined(images: Tensor, texts: Tensor) -> Tensor:
            targets = self._targets(
                teacher,
                images.detach() if teacher_images is None else teacher_images,
                texts.detach() if teacher_texts is None else teacher_texts,
            )
            distilled = distillation_loss(images, texts, self.distillation_scale, targets)
            if alpha == 0:
                # The scalars of the contrastive loss still get a gradient, of zero.
                return distilled + 0 * torch.stack(list(self.model.scalars.values())).sum()
            return alpha * contrastive(images, texts) + (1 - alpha) * distilled

        return combined

    def _targets(self, teacher: Teacher, images: Tensor, texts: Tensor) -> Targets:
        if self.teacher_config.targets == "softmax":
            return softmax_targets(images, texts, teacher.model.logit_scale)
        return transport_targets(
            images, texts, epsilon=self.teacher_config.epsilon, iterations=self.teacher_config.iterations
        )

    def after_step(self, *, is_taken: bool) -> None:
        """Restore the limits of the temperatures, and update the teacher."""
        super().after_step(is_taken=is_taken)
        if self.teacher is not None:
            if self.distillation_scale.requires_grad:
                self.distillation_scale.clamp_(0, MAX_LOGIT_SCALE)
            if is_taken:
                self.teacher.update(self.model)

    def _config(self) -> FinetuneConfig:
        """Return what is known of a run that the user's own script started."""
        return FinetuneConfig(optimizer=self.optimizer_config)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Return SGD with momentum or AdamW over the temperatures and all parameters that are not frozen."""
        seed = self.run_config.data.seed if self.run_config else 0
        scalars = [self.distillation_scale] if self.teacher is not None else []
        return build_finetune_optimizer(self.model, scalars, self.optimizer_config, seed=seed)


class CustomCLIPWrapper(FinetuneModule):
    """LightningModule that trains any image module and any Hugging Face text model; both are set to training mode.

    Args:
        image_encoder: a module that maps images to (batch, dim).
        text_encoder: a Hugging Face `AutoModel`.
        minibatch_size: pairs embedded at a time; the whole batch when None or 0.
        learning_rate: peak of SGD with momentum 0.9 and no weight decay (OTTER, arXiv 2112.09445, section 4).
        kl_coeff: weight of the self-distillation relative to a contrastive loss of weight 1; both are divided by their
            sum. 1 is OTTER's alpha of 0.5, and 0 means no teacher.
        avg_word_embs: represent a text by the mean of its tokens' vectors instead of the pooled first token.
        embed_dim: width of the shared space; the text model's by default.
        image_size: side of the images in pixels.
        image_mean, image_std: normalisation of uint8 images; set the values that the image encoder was trained with.
        optimizer: replaces `learning_rate`.
        teacher: replaces `kl_coeff`.
        keep: the layers that are frozen, and LoRA.
        accumulate: batches whose mean gradient makes a step.
        tokenizer: the text encoder's Hugging Face tokenizer, for a dataloader other than lakeclip's. With it, the
            dataloader may yield captions, and checkpoints record it.

    Raises:
        ConfigError: settings that do not fit together.
        ModelError: an encoder cannot be used.
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
        image_mean: tuple[float, float, float] = IMAGE_MEAN,
        image_std: tuple[float, float, float] = IMAGE_STD,
        optimizer: FinetuneOptimizerConfig | None = None,
        teacher: TeacherConfig | None = None,
        keep: KeepConfig | None = None,
        accumulate: int = 1,
        tokenizer: Any = None,
    ) -> None:
        if not (math.isfinite(kl_coeff) and kl_coeff >= 0):
            raise ConfigError(f"kl_coeff cannot be {kl_coeff}", allowed="0 (no teacher) or more")
        super().__init__(
            DualEncoder(
                image_encoder,
                text_encoder,
                embed_dim=embed_dim,
                average_word_embeddings=avg_word_embs,
                image_size=image_size,
                image_mean=image_mean,
                image_std=image_std,
            ),
            model_name="custom",
            minibatch_size=minibatch_size,
            optimizer=optimizer or FinetuneOptimizerConfig(lr=learning_rate),
            teacher=teacher or TeacherConfig(alpha=1 / (1 + kl_coeff)),
            keep=keep,
            accumulate=accumulate,
            tokenizer=tokenizer,
        )
