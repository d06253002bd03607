"""The training step as a LightningModule: everything that happens to a batch after the loader hands it over."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from math import isfinite
from typing import Any

import numpy as np
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from lakeclip.config.schema import FinetuneConfig, LossConfig, ModelConfig, OptimizerConfig, TrainConfig
from lakeclip.data.counter_rng import keys
from lakeclip.data.datamodule import PairDataModule
from lakeclip.errors import CheckpointError, ConfigError
from lakeclip.losses.registry import check_batch_size, find_loss
from lakeclip.models.clip import CLIP, l2_normalize
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.models.pretrained import OwnTowersConfig, TowersConfig
from lakeclip.models.zoo import model_config, model_config_from_dict
from lakeclip.text.custom import as_tokenize
from lakeclip.training import sharding
from lakeclip.training.grad_cache import LossFn, backward_through_batch
from lakeclip.training.gradients import StepStats, clip_gradients, local_gradients, reduce_step_stats
from lakeclip.training.guard import Guard
from lakeclip.training.lineage import lineage_of
from lakeclip.training.optim.optimizers import adamw, store_text_in_bfloat16, with_paper_values
from lakeclip.training.optim.schedule import warmup_steps
from lakeclip.training.optim.stepping import check_optimizers
from lakeclip.training.progress import load_progress
from lakeclip.training.scheduled import ScheduledModule
from lakeclip.training.scoring import ScoredModule


class ContrastiveModule(ScheduledModule, ScoredModule):
    """LightningModule that trains two towers on pairs.

    Any dataloader works whose batches are (images, texts, …) or dicts, with token ids or captions (see `batches`). A
    subclass may override `configure_optimizers`: one optimiser, and schedulers as in automatic optimisation.

    Args:
        model: the towers.
        model_name: the model's name; the paper's names select the paper's learning rate.
        minibatch_size: pairs embedded at a time; the whole batch when None or 0.
        optimizer: learning rate, decay and warm-up; unset values are the paper's.
        loss: the objective; CLIP's softmax over the batch by default.
        accumulate: batches whose mean gradient makes a step. The last step of an epoch may have fewer.
        guard: the check that decides which steps are skipped.
        run_config: the configuration of the run, which checkpoints record. With one, dropout is seeded by the position
            in the run, so that a resumed run repeats it; without one, PyTorch's random state is left alone.
        towers: the names by which two pretrained towers can be loaded again, which checkpoints record.
        tokenizer: tokenizer of the captions, for a dataloader other than lakeclip's. Checkpoints record it.

    Attributes:
        stop_requested: this process received a signal to stop.
        stop_agreed: some process did, and all of them are between the same two steps.
        save_requested, save_agreed: the same for a checkpoint that is due.

    Raises:
        ConfigError: settings that do not fit together, or not the model.
    """

    def __init__(
        self,
        model: CLIP | DualEncoder,
        *,
        model_name: str,
        minibatch_size: int | None = None,
        optimizer: OptimizerConfig | None = None,
        loss: LossConfig | None = None,
        accumulate: int = 1,
        guard: Guard | None = None,
        run_config: TrainConfig | FinetuneConfig | None = None,
        towers: TowersConfig | None = None,
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        for name, value, least in (("minibatch_size", minibatch_size or 0, 0), ("accumulate", accumulate, 1)):
            if value < least:
                raise ConfigError(f"{name} cannot be {value}", allowed=f"{least} or more")
        self.loss_config = loss or LossConfig()
        objective = self.loss_config.objective
        self.loss = find_loss(objective, label_smoothing=self.loss_config.label_smoothing)
        if set(model.scalars) != set(self.loss.scalars):
            raise ConfigError(
                f"the {objective} objective does not fit the model",
                found=f"a model that learns {', '.join(model.scalars)} beside its towers",
                allowed=f"{', '.join(self.loss.scalars)}: CLIP(config, scalars=LOSSES[{objective!r}].scalars)",
            )
        self.model = model
        self.model_name = model_name
        self.minibatch_size = minibatch_size or None
        is_resnet = not (isinstance(model, CLIP) and model.config.vision_patch_size)
        self.optimizer_config = with_paper_values(optimizer or OptimizerConfig(), model_name, is_resnet=is_resnet)
        if self.optimizer_config.text_weights == "bf16":
            if not isinstance(model, CLIP):
                raise ConfigError("text_weights bf16 needs CLIP's own text tower", allowed="32")
            store_text_in_bfloat16(model)
        self.run_config = replace(run_config, optimizer=self.optimizer_config) if run_config else None  # type: ignore[arg-type]
        self.towers = towers
        self.tokenizer = as_tokenize(tokenizer)
        #: Lineage of the checkpoint that the run resumes from.
        self.past: dict[str, Any] | None = None
        #: sha256 of the weights that a fine-tuning starts from.
        self.start: str | None = None
        #: Pairs over all processes so far, including those before a resume.
        self.samples_seen = 0
        #: Seconds of training in earlier segments of the run.
        self.seconds_before = 0.0
        self._started = time.perf_counter()
        self.accumulate = accumulate
        self.guard = guard or Guard()
        self.stop_requested = self.stop_agreed = False
        self.save_requested = self.save_agreed = False
        #: Losses of the batches since the last step.
        self._losses: list[Tensor] = []
        self._is_tower_compiled = False

    def embed(self, images: Tensor, texts: Any) -> tuple[Tensor, Tensor]:
        """Return unit-length image and text features, each (batch, embed), in float32 or better."""
        self._compile_image_tower()
        return l2_normalize(self.model.encode_image(images)), l2_normalize(self.model.encode_text(texts))

    def _compile_image_tower(self) -> None:
        """Compile the image tower if `torch.compile` was called on the module; the training step cannot be compiled.

        The text tower's shapes change with each batch's captions.
        """
        if (self._compiler_ctx is not None) == self._is_tower_compiled:
            return
        self._is_tower_compiled = self._compiler_ctx is not None
        tower = self.model.visual if isinstance(self.model, CLIP) else self.model.image_encoder
        # PyTorch compiles no frame of its own modules, so the call goes through a lambda.
        call = lambda *arguments: tower._call_impl(*arguments)  # type: ignore[no-untyped-call]  # noqa: E731
        tower._compiled_call_impl = self._compiler_ctx["dynamo_ctx"](call) if self._compiler_ctx is not None else None

    def forward(self, images: Tensor, texts: Any) -> tuple[Tensor, Tensor]:
        """Call `embed`: calling the module returns the features that the loss compares."""
        return self.embed(images, texts)

    @property
    def scalars(self) -> tuple[nn.Parameter, ...]:
        """The learned scalars of the loss, such as the temperature, unless they are frozen."""
        return tuple(scalar for scalar in self.model.scalars.values() if scalar.requires_grad)

    def compute_loss(
        self, images: Tensor, texts: Tensor, *, positive_ids: Tensor | None, local_only: bool = False
    ) -> Tensor:
        """Return the loss of image and text features, each (batch, embed).

        Args:
            positive_ids: (batch, keys) hashes; rows that agree in any column are positives of each other.
            local_only: compare within this process only and without label smoothing, as validation does.
        """
        return self.loss.compute(
            images,
            texts,
            self.model.scalars,
            positive_ids=positive_ids,
            label_smoothing=0.0 if local_only else self.loss_config.label_smoothing,
            local_only=local_only,
        )

    def loss_fn(self, batch: Any) -> LossFn:
        """Return the loss of a batch as a function of its image and text features."""
        return partial(self.compute_loss, positive_ids=getattr(batch, "positive_ids", None))

    @property
    def seconds(self) -> float:
        """Wall-clock time of the training so far, including validation and earlier segments of the run."""
        return self.seconds_before + time.perf_counter() - self._started

    @property
    def is_between_steps(self) -> bool:
        """True if no batch waits for others to complete a step."""
        return not self._losses

    def on_train_start(self) -> None:
        """Start the clock of the run, and apply the settings of this segment in place of the checkpoint's."""
        super().on_train_start()
        self._started = time.perf_counter()
        self._losses.clear()

    # ── the step ──────────────────────────────────────────────────────────────────────────────────────────────────

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Embed a batch, compute the loss over the global batch and back-propagate; update after the last of a step."""
        loss: Tensor = self._train_on(batch, batch_idx)
        return loss

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _train_on(self, batch: Any, batch_idx: int) -> Tensor:
        optimizer = self.optimizers(use_pl_optimizer=True)
        if not isinstance(optimizer, LightningOptimizer):
            check_optimizers(self.trainer.optimizers)
        assert isinstance(optimizer, LightningOptimizer)
        batch = self.pairs_of(batch)
        if batch_idx == 0:
            # A batch may have no other pair to compare a pair with.
            check_batch_size(self.loss_config.objective, len(batch[0]) * self.trainer.world_size)
        if self.run_config is not None:
            # Dropout is a function of the position in the run, as the data is: resuming needs no random state.
            position = self.trainer.global_step, len(self._losses), self.trainer.global_rank
            torch.manual_seed(int(keys(self.run_config.data.seed, *position)[0] >> np.uint64(1)))
        if not self._losses:
            optimizer.zero_grad()
            self.guard.begin_step(self.model)
        ends_epoch = self.trainer.is_last_batch or batch_idx + 1 == self.trainer.num_training_batches
        is_last = len(self._losses) + 1 == self.accumulate or ends_epoch
        # The processes average their gradients in the last backward pass of the last batch.
        with nullcontext() if is_last else self._no_sync():
            result = backward_through_batch(
                batch[0],
                batch[1],
                model=self.model,
                embed=self.embed,
                loss=self.loss_fn(batch),
                scalars=self.scalars,
                minibatch_size=self.minibatch_size,
                backward=lambda scalar: self.manual_backward(scalar / self.accumulate),
                no_sync=self._no_sync if is_last else nullcontext,
            )
        self._losses.append(result.loss)
        self.guard.record_batch(batch, batch_idx, result)
        self.samples_seen += len(batch[0]) * self.trainer.world_size
        if is_last:
            self._finish_step(optimizer)
        if ends_epoch:
            self.scheduler_stepper.step(self, "epoch", on_plateau=False)
        return result.loss

    def _finish_step(self, optimizer: LightningOptimizer) -> None:
        """Update the weights by the gradients since the last step, unless the guard finds a fault."""
        losses, self._losses = torch.stack(self._losses), []
        # Float16's gradients are scaled until the optimiser has them; their norm is easily read scaled.
        scaler: torch.amp.GradScaler | None = getattr(self.trainer.precision_plugin, "scaler", None)
        share = self.accumulate / len(losses)
        scale = scaler.get_scale() if scaler else 1.0
        stats = reduce_step_stats(
            self.model,
            losses.mean(),
            scalars=self.scalars,
            factor=share / scale,
            stop=self.stop_requested,
            save=self.save_requested,
        )
        self.stop_agreed, self.save_agreed = stats.stop, stats.save
        fault = self.guard.check(stats, is_scaled=scaler is not None)
        if fault is None:
            clip_gradients(self, stats.grad_norm, self.optimizer_config.max_grad_norm, share)
            self._log_step(stats, optimizer)
        else:
            self._drop_gradients(is_scaled=scaler is not None)
        # A skipped step counts as a step: the schedule and the position in the data depend on the number of steps.
        optimizer.step()
        if fault is not None:
            self.guard.skip_step(self.trainer, fault, stats)
        self.scheduler_stepper.step(self, "step", on_plateau=False)
        if fault is None:
            self.scheduler_stepper.step(self, "step", on_plateau=True)
        with torch.no_grad():
            self.after_step(is_taken=fault is None)

    def after_step(self, *, is_taken: bool) -> None:
        """Restore the limits of the learned scalars after a step. Runs without gradients.

        Args:
            is_taken: False for a step that the guard skipped.
        """
        for name, (lowest, highest) in self.loss.limits.items():
            if self.model.scalars[name].requires_grad:
                self.model.scalars[name].clamp_(lowest, highest)

    def _drop_gradients(self, *, is_scaled: bool) -> None:
        """Make the optimiser's next step change nothing."""
        if is_scaled:
            # A scaler needs gradients, and skips those that are not finite.
            for gradient in local_gradients(list(self.parameters())):
                gradient.fill_(torch.nan)
        else:
            self.zero_grad(set_to_none=True)

    def _log_step(self, stats: StepStats, optimizer: LightningOptimizer) -> None:
        """Log one point per step, whatever the number of its batches."""
        self.log("train/loss", stats.loss, prog_bar=True)
        if optimizer.param_groups and optimizer.param_groups[0].get("lr") is not None:
            self.log("train/lr", float(optimizer.param_groups[0]["lr"]))
        for name, scalar in self.model.scalars.items():
            self.log(f"train/{name}", scalar.detach().exp() if name == "logit_scale" else scalar.detach())
        norms = {"": stats.grad_norm, "_image": stats.image_norm, "_text": stats.text_norm}
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
        """Shard the model if the strategy does so (`--strategy fsdp2`)."""
        if self.device_mesh is not None:
            sharding.shard(self.model, self.device_mesh["data_parallel"])

    # ── the optimiser ─────────────────────────────────────────────────────────────────────────────────────────────

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Return the paper's AdamW, which decays weights but not gains and biases."""
        seed = self.run_config.data.seed if self.run_config else 0
        return adamw(self.model, self.optimizer_config, seed=seed)

    # ── checkpoints ───────────────────────────────────────────────────────────────────────────────────────────────

    def lineage(self) -> dict[str, Any]:
        """Return the lineage of the weights: model, data, configuration and position of the run."""
        model_config = (
            self.model.config if isinstance(self.model, CLIP) else self.towers or OwnTowersConfig.of(self.model)
        )
        return lineage_of(
            self.trainer,
            model_name=self.model_name,
            model_config=model_config,
            config=self.run_config or self._config(),
            samples_seen=self.samples_seen,
            seconds=self.seconds,
            schedule=self.planned_steps,
            start=self.start,
            past=self.past,
            tokenizer=self.tokenizer,
        )

    def _config(self) -> TrainConfig | FinetuneConfig:
        """Return what is known of a run that the user's own script started."""
        return TrainConfig(model=self.model_name, loss=self.loss_config, optimizer=self.optimizer_config)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the lineage and the state of the run beside the weights.

        Raises:
            CheckpointError: the run is still being restored from another checkpoint, so its state is incomplete.
        """
        if not self.is_restored:
            raise CheckpointError(
                f"no checkpoint was written: the run was not completely restored from {self.trainer.ckpt_path}",
                next_step="resume again; the checkpoints on the disk are unchanged",
            )
        checkpoint["lakeclip"] = self.lineage()
        checkpoint["samples_seen"] = self.samples_seen
        checkpoint["seconds"] = self.seconds
        checkpoint["guard"] = self.guard.state_dict()
        checkpoint["warmup_steps"] = self._planned[0]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state of the run."""
        self.samples_seen = checkpoint.get("samples_seen", 0)
        self.seconds_before = checkpoint.get("seconds", 0.0)
        if "guard" in checkpoint:
            self.guard.load_state_dict(checkpoint["guard"])
        self.past = checkpoint.get("lakeclip")
        self._past_warmup = checkpoint.get("warmup_steps")
        if self._past_warmup is None and self.past is not None and "total_steps" in self.past["progress"]:
            self._past_warmup = warmup_steps(self.past["progress"]["total_steps"])
        datamodule = getattr(self._trainer, "datamodule", None)
        if isinstance(datamodule, PairDataModule) and datamodule.batches_per_step == self.accumulate:
            self.progress = load_progress(checkpoint, datamodule)
        self._is_loaded = True

    @property
    def is_restored(self) -> bool:
        """False from the start of a fit that resumes from a checkpoint until all of its states are restored."""
        trainer = self.trainer
        if trainer.state.fn != TrainerFn.FITTING or not trainer.ckpt_path:
            return True
        # Lightning keeps the content of the file until the last state is restored from it.
        return self._is_loaded and not trainer._checkpoint_connector._loaded_checkpoint


class CLIPWrapper(ContrastiveModule):
    """CLIP trained from scratch.

    Args:
        model_name: a name that `lakeclip models` lists, or your own together with `config`.
        config: the model's sizes, as in `lakeclip/models/configs`; by default those of `model_name`.
        minibatch_size: pairs embedded at a time, for the same gradients in less memory; the whole batch by default.
        optimizer: learning rate, decay and warm-up; unset values are the paper's.
        loss: the objective; CLIP's softmax over the batch by default.
        accumulate, guard, run_config, tokenizer: as for `ContrastiveModule`.

    Raises:
        ModelError: the name is unknown and no config is given, or the config is not that of a model.
        ConfigError: as for `ContrastiveModule`.
    """

    def __init__(
        self,
        model_name: str,
        config: ModelConfig | Mapping[str, Any] | None = None,
        minibatch_size: int | None = None,
        *,
        optimizer: OptimizerConfig | None = None,
        loss: LossConfig | Mapping[str, Any] | None = None,
        accumulate: int = 1,
        guard: Guard | None = None,
        run_config: TrainConfig | None = None,
        tokenizer: Any = None,
    ) -> None:
        if config is None:
            config = model_config(model_name)
        elif not isinstance(config, ModelConfig):
            config = model_config_from_dict(model_name, config)
        if not isinstance(loss, LossConfig):
            loss = LossConfig(**(loss or {}))
        super().__init__(
            CLIP(config, scalars=find_loss(loss.objective).scalars),
            model_name=model_name,
            minibatch_size=minibatch_size,
            optimizer=optimizer,
            loss=loss,
            accumulate=accumulate,
            guard=guard,
            run_config=run_config,
            tokenizer=tokenizer,
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
