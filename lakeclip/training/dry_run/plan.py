"""Plan of a run before it starts: its steps, memory, speed and duration, from a few profiled steps."""

from __future__ import annotations

import math
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lakeclip.config.schema import FinetuneConfig, TrainConfig, TrainerConfig
from lakeclip.data.datamodule import PairDataModule
from lakeclip.errors import ConfigError, InputWarning
from lakeclip.lake.pairs import describe
from lakeclip.models.layers import IMAGE_TOWER_PREFIXES
from lakeclip.text.tokenizer import Tokenizer
from lakeclip.training.build import build_datamodule, build_finetune_module, build_module, load_start
from lakeclip.training.checks import check_train
from lakeclip.training.data_checks import check_data
from lakeclip.training.dry_run.profile import Footprint, StepProfile, profile_loader, profile_steps
from lakeclip.training.memory import resident_memory
from lakeclip.training.module import ContrastiveModule
from lakeclip.training.optim.schedule import warmup_steps
from lakeclip.training.precision import precision_warnings, resolve_precision
from lakeclip.training.trainer import world_size
from lakeclip.types import Batch

#: Number of batches to time.
_NUM_TIMED = 3


@dataclass(frozen=True)
class Plan:
    """Plan of one run.

    Attributes:
        model: name of the model.
        image_parameters, text_parameters, other_parameters: number of parameters in the towers, and in neither.
        footprint: memory of a step on one device, for `embedded` pairs at a time.
        minibatch_size: requested number of pairs to embed at a time; by default the whole batch.
        embedded: pairs embedded at a time in the profiled steps; fewer than requested if those do not fit.
        pairs_that_fit: pairs that fit into the memory at a time; None if unknown.
        memory: bytes available to the run on a device.
        on_cpu: True if step and loader share the CPU.
        rows, kept, held_out: rows in the lakes, those that the query selects, and of these the rows for validation.
        batch_size, world_size, accumulate: pairs per device, number of devices, batches per step.
        batches_per_epoch, epochs, steps: over all devices together; steps of the optimiser.
        warmup: number of warm-up steps.
        batches_timed: number of batches behind the rates below.
        step_rate, loader_rate: pairs per second of one device, for step and loader alone.
        rate: expected pairs per second of all devices, with step and loader together.
        seconds_first: duration of the first batch, including compilation.
        mfu, peak: model FLOPs utilization of the step alone, and the peak that it is a share of.
        first_loss, expected_loss: loss of the first batch, and loss of untrained towers (None for the sigmoid).
        checkpoint_bytes, free_bytes: disk space that the checkpoints need, and free space on the disk.
        data: description of the data with some rows.
        warnings: those that the run itself prints: about its data, and its precision on this device.
    """

    model: str
    image_parameters: int
    text_parameters: int
    other_parameters: int
    footprint: Footprint
    minibatch_size: int
    embedded: int
    pairs_that_fit: int | None
    memory: int
    on_cpu: bool
    rows: int
    kept: int
    held_out: int
    batch_size: int
    world_size: int
    accumulate: int
    batches_per_epoch: int
    epochs: float
    steps: int
    warmup: int
    num_workers: int
    batches_timed: int
    step_rate: float
    loader_rate: float
    rate: float
    seconds_first: float
    mfu: float | None
    peak: str
    first_loss: float
    expected_loss: float | None
    checkpoint_bytes: int
    free_bytes: int
    data: str = ""
    warnings: tuple[InputWarning, ...] = ()

    @property
    def parameters(self) -> int:
        """Total number of parameters."""
        return self.image_parameters + self.text_parameters + self.other_parameters

    @property
    def global_batch(self) -> int:
        """Pairs in a batch over all devices."""
        return self.batch_size * self.world_size

    @property
    def hours(self) -> float:
        """Expected duration of the run in hours, without validation and checkpoints."""
        return self.steps * self.accumulate * self.global_batch / self.rate / 3600


def make_plan(config: TrainConfig | FinetuneConfig, *, token: str | None = None) -> Plan:
    """Prepare a run as `train` or `finetune` would, profile a few steps on the first device, and leave nothing behind.

    Raises:
        LakeclipError: any error that would stop the run.
    """
    config = resolve_precision(config)
    module, datamodule = _build(config, token)
    trainer, data = config.trainer, config.data
    world = world_size(trainer)
    warnings = [*precision_warnings(config), *check_data(config, datamodule, world_size=world)]
    per_epoch = datamodule.num_train_rows // (data.batch_size * world)
    if per_epoch < trainer.accumulate:
        raise ConfigError(
            f"a batch of {data.batch_size:,} pairs on each of {world} devices"
            + (f", {trainer.accumulate} times a step," if trainer.accumulate > 1 else "")
            + " is too large",
            found=f"{datamodule.num_train_rows:,} rows to train on",
            next_step=f"--batch-size {max(1, datamodule.num_train_rows // (world * trainer.accumulate))}",
        )
    batches, loader_rate = profile_loader(datamodule, _NUM_TIMED)
    on_cpu = _on_cpu(trainer)
    memory = _memory(on_cpu)
    minibatch_size = min(trainer.minibatch_size or data.batch_size, data.batch_size)
    embedded, profile = _profile_largest_fit(module, batches, trainer, minibatch_size, memory, per_epoch, on_cpu=on_cpu)
    footprint = profile.footprint
    free_memory = 0.9 * memory - (footprint.total - footprint.activations)
    bytes_per_pair = footprint.activations / embedded
    steps = max(1, per_epoch * trainer.max_epochs // trainer.accumulate)
    if trainer.max_steps is not None:
        steps = min(steps, trainer.max_steps)
    warmup = warmup_steps(steps, module.optimizer_config.warmup_steps)
    device_rate = combined_rate(
        profile.rate,
        loader_rate,
        workers=data.num_workers,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        on_cpu=on_cpu,
    )
    image, text, other = _parameters(module)
    softmax = not isinstance(config, TrainConfig) or config.loss.objective == "softmax"
    return Plan(
        model=module.model_name,
        image_parameters=image,
        text_parameters=text,
        other_parameters=other,
        footprint=footprint,
        minibatch_size=minibatch_size,
        embedded=embedded,
        pairs_that_fit=int(free_memory / bytes_per_pair) if bytes_per_pair and free_memory > 0 else None,
        memory=memory,
        on_cpu=on_cpu,
        rows=datamodule.source.num_total_rows,
        kept=len(datamodule.source),
        held_out=0 if datamodule.val_source else len(datamodule.source) - datamodule.num_train_rows,
        batch_size=data.batch_size,
        world_size=world,
        accumulate=trainer.accumulate,
        batches_per_epoch=per_epoch,
        epochs=steps * trainer.accumulate / per_epoch,
        steps=steps,
        warmup=warmup,
        num_workers=data.num_workers,
        batches_timed=profile.batches,
        step_rate=profile.rate,
        loader_rate=loader_rate,
        rate=device_rate * world,
        seconds_first=profile.seconds_first,
        mfu=profile.mfu,
        peak=profile.peak,
        first_loss=profile.first_loss,
        expected_loss=math.log(len(batches[0].images)) if softmax else None,
        checkpoint_bytes=3 * (footprint.weights + footprint.states),
        free_bytes=shutil.disk_usage(_nearest_existing(Path(trainer.runs))).free,
        data=describe(datamodule.source),
        warnings=tuple(warnings),
    )


def combined_rate(
    step_rate: float, loader_rate: float, *, workers: int, cores: int, threads: int, on_cpu: bool
) -> float:
    """Estimate the pairs per second of step and loader together from the rate of each alone.

    It is the slower rate, unless they share resources: without workers they alternate, and on a CPU they share cores.
    """
    if workers == 0:
        return 1 / (1 / step_rate + 1 / loader_rate)
    slower = min(step_rate, loader_rate)
    if not on_cpu:
        return slower
    core_seconds = min(threads, cores) / step_rate + min(workers, cores) / loader_rate
    return min(slower, cores / core_seconds)


# ── measurements ──────────────────────────────────────────────────────────────────────────────────────────────────


def _build(config: TrainConfig | FinetuneConfig, token: str | None) -> tuple[ContrastiveModule, PairDataModule]:
    if isinstance(config, FinetuneConfig):
        start = load_start(config)
        datamodule = build_datamodule(
            config.data,
            start.image_size,
            start.tokenize,
            model=start.model_config,
            batches_per_step=config.trainer.accumulate,
            token=token,
        )
        datamodule.setup("fit")
        return build_finetune_module(config, start), datamodule
    sizes = check_train(config)
    datamodule = build_datamodule(
        config.data,
        sizes.image_resolution,
        Tokenizer(sizes.context_length),
        model=sizes,
        batches_per_step=config.trainer.accumulate,
        token=token,
    )
    datamodule.setup("fit")
    return build_module(config, sizes), datamodule


def _profile_largest_fit(
    module: ContrastiveModule,
    batches: list[Batch],
    config: TrainerConfig,
    minibatch_size: int,
    memory: int,
    per_epoch: int,
    *,
    on_cpu: bool,
) -> tuple[int, StepProfile]:
    """Profile steps with the requested micro-batch, or with a smaller one if it does not fit.

    A GPU raises an error when its memory is full. On a CPU the system would kill the process, so there the memory of a
    small step predicts that of a large one.

    Returns:
        Pairs embedded at a time in the profiled steps, and their profile.
    """
    size, predict = minibatch_size, on_cpu and minibatch_size >= 32
    initial = {name: value.clone() for name, value in module.state_dict().items()} if predict or not on_cpu else {}
    if predict:
        num_pairs = max(8, minibatch_size // 8)
        module.minibatch_size = None
        small_batch = _first_pairs(batches[0], num_pairs)
        small = profile_steps(module, [small_batch], config, num=1, steps_per_epoch=per_epoch).footprint
        bytes_per_pair = small.activations / num_pairs
        module.load_state_dict(initial)
        # This copy and the gradients would count as memory of the program.
        initial.clear()
        module.zero_grad(set_to_none=True)
        while size > 1 and small.total - small.activations + bytes_per_pair * size > 0.9 * memory:
            size = max(1, size // 2)
    while True:
        module.minibatch_size = size if size < len(batches[0].images) else None
        try:
            return size, profile_steps(module, batches, config, num=_NUM_TIMED, steps_per_epoch=per_epoch)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            module.load_state_dict(initial)
            module.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            size = max(1, size // 2)


def _first_pairs(batch: Batch, num: int) -> Batch:
    texts = batch.texts
    first_texts = texts[:num] if isinstance(texts, Tensor) else {name: value[:num] for name, value in texts.items()}
    return Batch(batch.images[:num], first_texts, batch.rows[:num])


def _parameters(module: ContrastiveModule) -> tuple[int, int, int]:
    """Count the parameters of the image tower, of the text tower, and of neither."""
    image = text = other = 0
    for name, parameter in module.model.named_parameters():
        if name.startswith(IMAGE_TOWER_PREFIXES):
            image += parameter.numel()
        elif name.startswith("logit_"):
            other += parameter.numel()
        else:
            text += parameter.numel()
    return image, text, other


def _on_cpu(config: TrainerConfig) -> bool:
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    return config.accelerator == "cpu" or (config.accelerator == "auto" and not has_gpu)


def _memory(on_cpu: bool) -> int:
    """Return the bytes available to the run on its first device: the free ones, and those this process has already."""
    if not on_cpu and torch.cuda.is_available():
        return torch.cuda.mem_get_info(0)[0] + torch.cuda.memory_reserved(0)
    meminfo = Path("/proc/meminfo")
    if meminfo.exists() and (match := re.search(r"MemAvailable:\s*(\d+) kB", meminfo.read_text())):
        free = int(match[1]) * 1024 + resident_memory()
        limit = Path("/sys/fs/cgroup/memory.max")
        text = limit.read_text().strip() if limit.exists() else ""
        return min(free, int(text)) if text.isdigit() else free
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _nearest_existing(folder: Path) -> Path:
    """Return the folder, or its nearest ancestor that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())
