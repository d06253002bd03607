"""Training on what has learned already: two pretrained towers, or a whole CLIP, with a teacher."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from lakeclip.config.schema import FinetuneOptimizerConfig, KeepConfig, TeacherConfig
from lakeclip.errors import ConfigError
from lakeclip.losses import Targets, distillation_loss, softmax_targets, transport_targets
from lakeclip.models.clip import CLIP, IMAGE_MEAN, IMAGE_STD
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.training.gradients import by_tower
from lakeclip.training.microbatch import Loss
from lakeclip.training.module import ContrastiveModule
from lakeclip.training.optimizers import MAX_LOGIT_SCALE
from lakeclip.training.teacher import Teacher
from lakeclip.training.tuning import fine_optimizer, prepare, with_usual_values


class FinetuneModule(ContrastiveModule):
    """Trains a model that has learned already, beside a teacher that is its average.

    loss = alpha · contrastive + (1 - alpha) · KL(teacher's targets ‖ student), each with a temperature of its own, both
    learned (OTTER: arXiv 2112.09445, equation 4).

    Args:
        model: the towers, or a CLIP.
        model_name: what to call it.
        minibatch_size: embed at most this many pairs at a time; the whole batch when None or 0.
        optimizer: what it leaves open is usual for the kind of model.
        teacher: what the teacher teaches.
        keep: what stays as it is.

    Attributes:
        teacher: None where nothing is distilled.
        distillation_scale: logarithm of the inverse temperature of the student's second opinion; 1 to 100 once exp'd.
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
    ) -> None:
        if model.logit_bias is not None:
            raise ConfigError(
                "a model of the sigmoid objective cannot be fine-tuned here",
                found="a logit_bias",
                allowed="a model trained with the softmax, as OpenAI's are",
            )
        usual = with_usual_values(optimizer or FinetuneOptimizerConfig(), is_whole=isinstance(model, CLIP))
        super().__init__(model, model_name=model_name, minibatch_size=minibatch_size, optimizer=usual)
        self.optimizer_config = usual
        self.teacher_config = teacher or TeacherConfig()
        self._held = prepare(model, keep or KeepConfig())
        self._is_fixed = {
            side: not any(parameter.requires_grad for parameter in parameters)
            for side, parameters in zip(("image", "text"), by_tower(model), strict=True)
        }
        self.teacher: Teacher | None = None
        if self.teacher_config.targets != "none" and self.teacher_config.alpha < 1:
            if usual.ema_decay is not None:
                raise ConfigError(
                    "an average of the weights (ema_decay) is asked for beside a teacher, which is one",
                    next_step="--targets none, or --teacher-decay instead of --ema-decay",
                )
            if self.teacher_config.initial_scale is not None:
                with torch.no_grad():
                    model.logit_scale.fill_(self.teacher_config.initial_scale)
            self.teacher = Teacher(model, self.teacher_config.teacher_decay)
            # Both parts begin alike: at a higher factor the teacher's would pull several times harder than the pairs'.
            self.distillation_scale = nn.Parameter(model.logit_scale.detach().clone())
        # `from_pretrained` hands out models that are ready to evaluate, and Lightning leaves them so.
        self.train()

    def train(self, mode: bool = True) -> FinetuneModule:
        """Training mode, but for what is locked."""
        super().train(mode)
        for part in self._held:
            part.eval()
        return self

    def on_fit_start(self) -> None:
        """Lightning warns of parts in evaluation mode; here they are the teacher and what is locked, and meant so."""
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")

    @property
    def scalars(self) -> tuple[nn.Parameter, ...]:
        """The temperatures."""
        return super().scalars if self.teacher is None else (*super().scalars, self.distillation_scale)

    def objective(self, batch: Any) -> Loss:
        """The loss of a batch; the teacher has looked at it by then."""
        contrastive = super().objective(batch)
        if self.teacher is None:
            return contrastive
        teacher, alpha = self.teacher, self.teacher_config.alpha
        # A locked tower is the teacher's too: what the student makes of its side will do.
        seen_images = None if self._is_fixed["image"] else teacher.images(batch[0], self.minibatch_size)
        seen_texts = None if self._is_fixed["text"] else teacher.texts(batch[1], len(batch[0]), self.minibatch_size)

        def both(images: Tensor, texts: Tensor) -> Tensor:
            targets = self._targets(
                teacher,
                images.detach() if seen_images is None else seen_images,
                texts.detach() if seen_texts is None else seen_texts,
            )
            distilled = distillation_loss(images, texts, self.distillation_scale, targets)
            if alpha == 0:
                # The contrastive temperature still gets a gradient, of zero.
                return distilled + 0 * self.model.logit_scale
            return alpha * contrastive(images, texts) + (1 - alpha) * distilled

        return both

    def _targets(self, teacher: Teacher, images: Tensor, texts: Tensor) -> Targets:
        if self.teacher_config.targets == "softmax":
            return softmax_targets(images, texts, teacher.model.logit_scale)
        return transport_targets(
            images, texts, epsilon=self.teacher_config.epsilon, iterations=self.teacher_config.iterations
        )

    def settle(self, *, is_taken: bool) -> None:
        """The teacher follows, and the temperatures stay within their bounds."""
        super().settle(is_taken=is_taken)
        if self.teacher is not None:
            self.distillation_scale.clamp_(0, MAX_LOGIT_SCALE)
            if is_taken:
                self.teacher.follow(self.model)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """SGD with momentum or AdamW over what is not locked, and the temperatures."""
        seed = self.run_config.data.seed if self.run_config else 0
        scalars = [self.distillation_scale] if self.teacher is not None else []
        return fine_optimizer(self.model, scalars, self.optimizer_config, seed=seed)


class CustomCLIPWrapper(FinetuneModule):
    """Any image module and any Hugging Face text model, trained to agree; both are put into training mode.

    Args:
        image_encoder: images → (batch, dim).
        text_encoder: a Hugging Face `AutoModel`.
        minibatch_size: embed at most this many pairs at a time; the whole batch when None or 0.
        learning_rate: peak of SGD with momentum 0.9 and no weight decay (OTTER, arXiv 2112.09445, section 4).
        kl_coeff: weight of the self-distillation beside a contrastive loss of weight 1, both then divided by their
            sum: 1 is OTTER's alpha of 0.5, and 0 is no teacher.
        avg_word_embs: represent a text by the mean of its words' vectors instead of the pooled first token.
        embed_dim: width of the shared space; the text model's by default.
        image_size: side of the images in pixels.
        image_mean, image_std: what uint8 images are normalised with; set those that the image encoder was trained with.
        optimizer: in place of `learning_rate`.
        teacher: in place of `kl_coeff`.
        keep: what of the towers stays as it is.
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
        )
