"""The training step, as a LightningModule: what happens to a batch from the moment the loader hands it over."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from math import ceil, isfinite
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from lakeclip.config.schema import FinetuneConfig, LossConfig, ModelConfig, OptimizerConfig, TrainConfig
from lakeclip.data.keys import keys
from lakeclip.errors import ConfigError
from lakeclip.evaluation.retrieval import retrieval_metrics
from lakeclip.losses import contrastive_loss, sigmoid_loss
from lakeclip.models.clip import CLIP, unit
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.models.pretrained import TowersConfig
from lakeclip.models.zoo import model_config, model_config_from_dict
from lakeclip.training import sharding
from lakeclip.training.gradients import Agreed, agree, clip, gradients
from lakeclip.training.guard import Guard
from lakeclip.training.microbatch import Loss, backward_through_batch
from lakeclip.training.optimizers import (
    MAX_LOGIT_SCALE,
    adamw,
    store_text_in_bfloat16,
    with_paper_values,
)
from lakeclip.training.recovery import lineage
from lakeclip.training.schedule import warmup_cosine, warmup_steps


class ContrastiveModule(L.LightningModule):
    """Trains two towers to agree on pairs. Any dataloader will do whose batches hold images first and texts second.

    Args:
        model: the towers.
        model_name: what to call the model; the paper's names bring the paper's learning rate.
        minibatch_size: embed at most this many pairs at a time; the whole batch when None or 0.
        optimizer: learning rate, decay and warm-up; what it leaves open is the paper's.
        loss: what the towers are to agree on; by default CLIP's softmax over the batch.

    Attributes:
        accumulate: batches whose mean gradient makes a step. Those at the end of an epoch may be fewer.
        guard: decides which steps are not taken.
        stop_requested: this process was asked to stop.
        stop_agreed: one of the processes was, and all of them stand between the same two steps.
        save_requested, save_agreed: the same for a checkpoint that is due.
    """

    def __init__(
        self,
        model: CLIP | DualEncoder,
        *,
        model_name: str,
        minibatch_size: int | None = None,
        optimizer: OptimizerConfig | None = None,
        loss: LossConfig | None = None,
    ) -> None:
        super().__init__()
        if minibatch_size is not None and minibatch_size < 0:
            raise ConfigError(
                f"a minibatch_size of {minibatch_size} is asked for", allowed="a positive number of pairs"
            )
        self.loss_config = loss or LossConfig()
        if (self.loss_config.objective == "sigmoid") != (model.logit_bias is not None):
            raise ConfigError(
                f"the {self.loss_config.objective} objective does not fit the model",
                found="no logit_bias" if model.logit_bias is None else "a logit_bias",
                allowed="CLIP(config, sigmoid=True) for the sigmoid, and a model without a bias for the softmax",
            )
        # The step back-propagates once per micro-batch, so it calls the optimiser itself.
        self.automatic_optimization = False
        self.model = model
        self.model_name = model_name
        self.minibatch_size = minibatch_size or None
        is_resnet = not (isinstance(model, CLIP) and model.config.vision_patch_size)
        self.optimizer_config = with_paper_values(optimizer or OptimizerConfig(), model_name, is_resnet=is_resnet)
        if self.optimizer_config.text_weights == "bf16":
            if not isinstance(model, CLIP):
                raise ConfigError("text weights in bf16 are asked for, and the towers are not CLIP's", allowed="32")
            store_text_in_bfloat16(model)
        #: What the run was started with, for the checkpoint; set by `parts`.
        self.run_config: TrainConfig | FinetuneConfig | None = None
        #: What two towers were made from, where they can be made again by name; set by `parts`.
        self.towers: TowersConfig | None = None
        #: The lineage of the checkpoint that the run goes on from.
        self.past: dict[str, Any] | None = None
        #: sha256 of the weights that a fine-tuning begins with; set by `parts`.
        self.start: str | None = None
        #: Pairs over all processes so far, those before a resume included.
        self.samples_seen = 0
        #: Seconds of training in the parts of the run before this one.
        self.seconds_before = 0.0
        self._started = time.perf_counter()
        self._seed = 0
        self.accumulate = 1
        self.guard = Guard()
        self.stop_requested = self.stop_agreed = False
        self.save_requested = self.save_agreed = False
        #: The losses of the batches since the last step.
        self._losses: list[Tensor] = []
        self._validation_features: list[tuple[Tensor, Tensor]] = []

    def embed(self, images: Tensor, texts: Any) -> tuple[Tensor, Tensor]:
        """Unit-length features of both sides, each (batch, embed), in float32 or better."""
        return unit(self.model.encode_image(images)), unit(self.model.encode_text(texts))

    def forward(self, images: Tensor, texts: Any) -> tuple[Tensor, Tensor]:
        """The same as `embed`, so that calling the module gives the features that the loss compares."""
        return self.embed(images, texts)

    @property
    def scalars(self) -> tuple[nn.Parameter, ...]:
        """The parameters that the loss depends on besides the features."""
        scale, bias = self.model.logit_scale, self.model.logit_bias
        return (scale,) if bias is None else (scale, bias)

    def compare(self, images: Tensor, texts: Tensor, *, same: Tensor | None, alone: bool = False) -> Tensor:
        """The loss of both sides' features.

        Args:
            same: (batch, keys) hashes; rows that agree in any column are right answers for each other.
            alone: compare within this process only, and without label smoothing: for validation.
        """
        scale, bias = self.model.logit_scale, self.model.logit_bias
        if bias is not None:
            return sigmoid_loss(images, texts, scale, bias, same=same, alone=alone)
        smoothing = 0.0 if alone else self.loss_config.label_smoothing
        return contrastive_loss(images, texts, scale, same=same, label_smoothing=smoothing, alone=alone)

    def objective(self, batch: Any) -> Loss:
        """The loss of a batch as a function of both sides' features."""
        return partial(self.compare, same=getattr(batch, "same", None))

    @property
    def seconds(self) -> float:
        """Wall-clock time of the training so far, validation and earlier parts of the run included."""
        return self.seconds_before + time.perf_counter() - self._started

    @property
    def is_between_steps(self) -> bool:
        """Whether no batch waits for others to make a step with it."""
        return not self._losses

    def on_train_start(self) -> None:
        """The clock of the run starts with its first step."""
        self._started = time.perf_counter()
        self._losses.clear()
        self._seed = self.run_config.data.seed if self.run_config else torch.initial_seed()

    # ── the step ──────────────────────────────────────────────────────────────────────────────────────────────────

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Embed, compare over the global batch, back-propagate; and with the last batch of a step, take it."""
        optimizer = self.optimizers(use_pl_optimizer=True)
        assert isinstance(optimizer, LightningOptimizer)
        # What is dropped out is a function of the place in the run, as the data is: a run that goes on needs no state.
        place = keys(self._seed, self.trainer.global_step, len(self._losses), self.trainer.global_rank)
        torch.manual_seed(int(place[0] >> np.uint64(1)))
        if not self._losses:
            optimizer.zero_grad()
            self.guard.begin(self.model)
        is_last = (
            len(self._losses) + 1 == self.accumulate
            or self.trainer.is_last_batch
            or batch_idx + 1 == self.trainer.num_training_batches
        )
        # The processes average their gradients in the last backward of the last batch.
        with nullcontext() if is_last else self._no_sync():
            result = backward_through_batch(
                batch[0],
                batch[1],
                model=self.model,
                embed=self.embed,
                loss=self.objective(batch),
                scalars=self.scalars,
                minibatch_size=self.minibatch_size,
                backward=lambda scalar: self.manual_backward(scalar / self.accumulate),
                no_sync=self._no_sync if is_last else nullcontext,
            )
        self._losses.append(result.loss)
        self.guard.note(batch, batch_idx, result)
        self.samples_seen += len(batch[0]) * self.trainer.world_size
        if is_last:
            self._finish_step(optimizer)
        return result.loss

    def _finish_step(self, optimizer: LightningOptimizer) -> None:
        """Update the weights by the gradients of the batches since the last step, unless the guard finds fault."""
        losses, self._losses = torch.stack(self._losses), []
        # Float16's gradients are scaled until the optimiser has them; a norm is as easily read scaled.
        scaler: torch.amp.GradScaler | None = getattr(self.trainer.precision_plugin, "scaler", None)
        share = self.accumulate / len(losses)
        scale = scaler.get_scale() if scaler else 1.0
        agreed = agree(
            self.model,
            losses.mean(),
            scalars=self.scalars,
            factor=share / scale,
            stop=self.stop_requested,
            save=self.save_requested,
        )
        self.stop_agreed, self.save_agreed = agreed.stop, agreed.save
        fault = self.guard.judge(agreed, is_scaled=scaler is not None)
        if fault is None:
            clip(self, agreed.grad_norm, self.optimizer_config.max_grad_norm, share)
            self._log_step(agreed, optimizer)
        else:
            self._drop_gradients(is_scaled=scaler is not None)
        # One that is left out is a step all the same: the schedule and the place in the data hang on their number.
        optimizer.step()
        if fault is not None:
            self.guard.leave_out(self, fault, agreed)
        self.lr_schedulers().step()  # type: ignore[union-attr]
        with torch.no_grad():
            self.settle(is_taken=fault is None)

    def settle(self, *, is_taken: bool) -> None:
        """What remains to be done after a step, without gradients.

        Args:
            is_taken: False for a step that the guard left out.
        """
        if self.model.logit_bias is None:
            # The sigmoid's scale has no cap: SigLIP's published models end near 117.
            self.model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)

    def _drop_gradients(self, *, is_scaled: bool) -> None:
        """Let the optimiser's next step change nothing."""
        if is_scaled:
            # A scaler must be shown gradients, and passes over those that are not finite.
            for gradient in gradients(list(self.parameters())):
                gradient.fill_(torch.nan)
        else:
            self.zero_grad(set_to_none=True)

    def _log_step(self, agreed: Agreed, optimizer: LightningOptimizer) -> None:
        """The curves of the run, one point a step whatever the number of its batches."""
        self.log("train/loss", agreed.loss, prog_bar=True)
        self.log("train/lr", optimizer.param_groups[0]["lr"])
        self.log("train/logit_scale", self.model.logit_scale.detach().exp())
        if self.model.logit_bias is not None:
            self.log("train/logit_bias", self.model.logit_bias.detach())
        norms = {"": agreed.grad_norm, "_image": agreed.image_norm, "_text": agreed.text_norm}
        self.log_dict({f"train/grad_norm{part}": norm for part, norm in norms.items() if isfinite(norm)})
        if self.accumulate > 1:
            # Lightning would count batches.
            self.log("step", float(self.trainer.global_step))

    def _no_sync(self) -> AbstractContextManager[Any]:
        if isinstance(self.model, FSDPModule):
            return sharding.no_sync(self.model)
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def configure_model(self) -> None:
        """Cut the model up where the strategy is to (`--strategy fsdp2`)."""
        if self.device_mesh is not None:
            sharding.shard(self.model, self.device_mesh["data_parallel"])

    # ── the optimiser ─────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, those before a resume included.

        Raises:
            ConfigError: the run has no end.
        """
        batches = self.trainer.estimated_stepping_batches
        if self.accumulate > 1 and isfinite(self.trainer.num_training_batches):
            epochs = self.trainer.max_epochs
            steps = ceil(self.trainer.num_training_batches / self.accumulate)
            # Lightning's estimate takes each batch for a step.
            total = steps * max(1, epochs) if epochs is not None and epochs >= 0 else float("inf")
            batches = min(total, self.trainer.max_steps) if self.trainer.max_steps >= 0 else total
        if batches == float("inf"):
            raise ConfigError(
                "the length of the run is unknown, and the learning rate's schedule needs it",
                found="a dataloader without a length, or max_epochs=-1",
                next_step="give the trainer max_steps",
            )
        return int(batches)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW over weights and gains, and the schedule over the run's true number of steps."""
        total = self.total_steps
        warmup = warmup_steps(total, self.optimizer_config.warmup_steps)
        optimizer = self.make_optimizer()
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, warmup=warmup, total=total)
        )
        return [optimizer], [schedule]

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The paper's: Adam with decoupled weight decay on weights, not on gains and biases."""
        seed = self.run_config.data.seed if self.run_config else 0
        return adamw(self.model, self.optimizer_config, seed=seed)

    # ── validation ────────────────────────────────────────────────────────────────────────────────────────────────

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Loss over this batch, and its features for the retrieval over the whole split."""
        image_features, text_features = self.embed(batch[0], batch[1])
        # Processes may hold a different number of rows here, so each compares within its own batch.
        loss = self.compare(image_features, text_features, same=getattr(batch, "same", None), alone=True)
        self.log("val/loss", loss, batch_size=len(image_features), on_epoch=True, sync_dist=True, prog_bar=True)
        self._validation_features.append((image_features.cpu(), text_features.cpu()))

    def on_validation_epoch_end(self) -> None:
        """Retrieval both ways over all validation rows of all processes."""
        features, self._validation_features = self._validation_features, []
        if self.accumulate > 1:
            self.log("step", float(self.trainer.global_step - 1))
        if dist.is_available() and dist.is_initialized():
            everyone: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, features)
            features = [pair for part in everyone for pair in part]
        if not features:
            return
        images, texts = (torch.cat(side) for side in zip(*features, strict=True))
        scores = retrieval_metrics(images, texts, torch.arange(len(images)))
        for direction, ranks in (("image_to_text", scores.image_to_text), ("text_to_image", scores.text_to_image)):
            for k, recall in ranks.recall.items():
                self.log(f"val/{direction}_R@{k}", recall, rank_zero_only=True)

    # ── checkpoints ───────────────────────────────────────────────────────────────────────────────────────────────

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write where the weights come from beside them."""
        checkpoint["lakeclip"] = lineage.of(self)
        checkpoint["samples_seen"] = self.samples_seen
        checkpoint["seconds"] = self.seconds
        checkpoint["guard"] = self.guard.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting where the checkpoint was written."""
        self.samples_seen = checkpoint.get("samples_seen", 0)
        self.seconds_before = checkpoint.get("seconds", 0.0)
        if "guard" in checkpoint:
            self.guard.load_state_dict(checkpoint["guard"])
        self.past = checkpoint.get("lakeclip")


class CLIPWrapper(ContrastiveModule):
    """CLIP from scratch.

    Args:
        model_name: one of `lakeclip models`, or a name of your own with a `config`.
        config: the model's sizes, as in `lakeclip/models/configs`; by default those of `model_name`.
        minibatch_size: embed at most this many pairs at a time, for the same gradients in less memory.
        optimizer: learning rate, decay and warm-up; by default the paper's.
        loss: what the towers are to agree on; by default CLIP's softmax over the batch.

    Raises:
        ModelError: the name is unknown and no config is given, or the config cannot make a model.
    """

    def __init__(
        self,
        model_name: str,
        config: ModelConfig | Mapping[str, Any] | None = None,
        minibatch_size: int | None = None,
        *,
        optimizer: OptimizerConfig | None = None,
        loss: LossConfig | Mapping[str, Any] | None = None,
    ) -> None:
        if config is None:
            config = model_config(model_name)
        elif not isinstance(config, ModelConfig):
            config = model_config_from_dict(model_name, config)
        if not isinstance(loss, LossConfig):
            loss = LossConfig(**(loss or {}))
        super().__init__(
            CLIP(config, sigmoid=loss.objective == "sigmoid"),
            model_name=model_name,
            minibatch_size=minibatch_size,
            optimizer=optimizer,
            loss=loss,
        )
        self.save_hyperparameters(
            {
                "model_name": model_name,
                "config": _plain(asdict(config)),
                "minibatch_size": minibatch_size,
                "loss": asdict(loss),
            }
        )


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()}
