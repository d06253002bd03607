"""What a run is going to be, found out before it: its size, what it needs and how long it takes."""

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
from lakeclip.data.plan import parts_of
from lakeclip.errors import ConfigError
from lakeclip.lake.dataset import Lake
from lakeclip.lake.pairs import describe
from lakeclip.text.tokenizer import Tokenizer
from lakeclip.training.checks import checked_sizes
from lakeclip.training.module import ContrastiveModule
from lakeclip.training.parts import finetune_parts, make_datamodule, make_module
from lakeclip.training.planning.rehearsal import Footprint, Rehearsal, load_a_few, rehearse
from lakeclip.training.schedule import warmup_steps
from lakeclip.training.trainer import world_size
from lakeclip.training.watching.memory import resident_memory
from lakeclip.types import Batch

#: Batches that are timed.
_TIMED = 3


@dataclass(frozen=True)
class Plan:
    """One run, planned.

    Attributes:
        model: its name.
        image_parameters, text_parameters, other_parameters: of the towers, and of what belongs to neither.
        footprint: what a step holds on a device, for `embedded` pairs at once.
        minibatch_size: pairs embedded at once, as was asked for: the whole batch where nothing was.
        embedded: pairs embedded at once in the steps that were measured; fewer than asked for where those do not fit.
        pairs_that_fit: pairs that could be embedded at once in the memory there is; None where that is not known.
        memory: bytes that a device has for the run.
        on_cpu: the step shares its processor with the loader.
        rows, kept, held_out: in the lakes; of those by the query; of those for validation.
        batch_size, world_size, accumulate: pairs per device, devices, batches added up to a step.
        batches_per_epoch, epochs, steps: of all devices together; steps of the optimiser.
        warmup: steps of them.
        batches_timed: that the rates below are from.
        step_rate, loader_rate: pairs a second of one device, each alone.
        rate: pairs a second expected of all devices with everything at once.
        seconds_first: of the first step; with `compile` that is the compiling.
        mfu, peak: of the step alone, and what it is a share of.
        first_loss, expected_loss: of the first batch, and what towers that know nothing have; None where not known.
        checkpoint_bytes, free_bytes: what the checkpoints need on the disk, and what is free there.
        data: the data in words, with some rows.
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

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.image_parameters + self.text_parameters + self.other_parameters

    @property
    def global_batch(self) -> int:
        """Pairs that are compared with one another."""
        return self.batch_size * self.world_size

    @property
    def hours(self) -> float:
        """Of the whole run, validation and checkpoints not counted."""
        return self.steps * self.accumulate * self.global_batch / self.rate / 3600


def make_plan(config: TrainConfig | FinetuneConfig, *, token: str | None = None) -> Plan:
    """Prepare a run as `train` or `finetune` would, rehearse a few of its steps on its first device, and leave nothing.

    Raises:
        LakeclipError: whatever is wrong with the input, as it would stop the run.
    """
    module, datamodule = _prepared(config, token)
    wanted, data = config.trainer, config.data
    world = world_size(wanted)
    per_epoch = datamodule.num_train_rows // (data.batch_size * world)
    if not per_epoch:
        raise ConfigError(
            f"a batch of {data.batch_size:,} pairs on each of {world} devices is too large",
            found=f"{datamodule.num_train_rows:,} rows to train on",
            next_step=f"--batch-size {max(1, datamodule.num_train_rows // world)}",
        )
    batches, loader_rate = load_a_few(datamodule, _TIMED)
    on_cpu = _on_cpu(wanted)
    memory = _memory(on_cpu)
    asked = min(wanted.minibatch_size or data.batch_size, data.batch_size)
    embedded, rehearsal = _rehearse_what_fits(module, batches, wanted, asked, memory, per_epoch, on_cpu=on_cpu)
    footprint = rehearsal.footprint
    room = 0.9 * memory - (footprint.total - footprint.activations)
    each = footprint.activations / embedded
    steps = max(1, per_epoch * wanted.max_epochs // wanted.accumulate)
    if wanted.max_steps is not None:
        steps = min(steps, wanted.max_steps)
    warmup = warmup_steps(steps, module.optimizer_config.warmup_steps)
    alone = together(
        rehearsal.rate,
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
        minibatch_size=asked,
        embedded=embedded,
        pairs_that_fit=int(room / each) if each and room > 0 else None,
        memory=memory,
        on_cpu=on_cpu,
        rows=sum(part.total_rows if isinstance(part, Lake) else len(part) for part in parts_of(datamodule.source)),
        kept=len(datamodule.source),
        held_out=0 if datamodule.val_source else len(datamodule.source) - datamodule.num_train_rows,
        batch_size=data.batch_size,
        world_size=world,
        accumulate=wanted.accumulate,
        batches_per_epoch=per_epoch,
        epochs=steps * wanted.accumulate / per_epoch,
        steps=steps,
        warmup=warmup,
        num_workers=data.num_workers,
        batches_timed=rehearsal.batches,
        step_rate=rehearsal.rate,
        loader_rate=loader_rate,
        rate=alone * world,
        seconds_first=rehearsal.seconds_first,
        mfu=rehearsal.mfu,
        peak=rehearsal.peak,
        first_loss=rehearsal.first_loss,
        expected_loss=math.log(len(batches[0].images)) if softmax else None,
        checkpoint_bytes=3 * (footprint.weights + footprint.states),
        free_bytes=shutil.disk_usage(_nearest(Path(wanted.runs))).free,
        data=describe(datamodule.source),
    )


def together(step_rate: float, loader_rate: float, *, workers: int, cores: int, threads: int, on_cpu: bool) -> float:
    """Pairs a second of step and loader at once, from those of each alone.

    The slower of the two, unless they share: without workers one waits for the other, and on a CPU both want its cores.
    """
    if workers == 0:
        return 1 / (1 / step_rate + 1 / loader_rate)
    slower = min(step_rate, loader_rate)
    if not on_cpu:
        return slower
    core_seconds = min(threads, cores) / step_rate + min(workers, cores) / loader_rate
    return min(slower, cores / core_seconds)


# ── finding out ───────────────────────────────────────────────────────────────────────────────────────────────────


def _prepared(config: TrainConfig | FinetuneConfig, token: str | None) -> tuple[ContrastiveModule, PairDataModule]:
    if isinstance(config, FinetuneConfig):
        return finetune_parts(config, token=token)
    sizes = checked_sizes(config)
    datamodule = make_datamodule(config.data, sizes.image_resolution, Tokenizer(sizes.context_length), token=token)
    datamodule.setup("fit")
    return make_module(config, sizes), datamodule


def _rehearse_what_fits(
    module: ContrastiveModule,
    batches: list[Batch],
    wanted: TrainerConfig,
    asked: int,
    memory: int,
    per_epoch: int,
    *,
    on_cpu: bool,
) -> tuple[int, Rehearsal]:
    """Rehearse with as many pairs embedded at once as was asked for, or, where they do not fit, with fewer.

    A GPU says when its memory is out. A CPU's process is killed for it, so there a small step foretells a large one.
    """
    size, foretell = asked, on_cpu and asked >= 32
    untrained = {name: value.clone() for name, value in module.state_dict().items()} if foretell or not on_cpu else {}
    if foretell:
        part = max(8, asked // 8)
        module.minibatch_size = None
        small = rehearse(module, [_part(batches[0], part)], wanted, num=1, steps_per_epoch=per_epoch).footprint
        each = small.activations / part
        module.load_state_dict(untrained)
        # Both would count as the program's.
        untrained.clear()
        module.zero_grad(set_to_none=True)
        while size > 1 and small.total - small.activations + each * size > 0.9 * memory:
            size = max(1, size // 2)
    while True:
        module.minibatch_size = size if size < len(batches[0].images) else None
        try:
            return size, rehearse(module, batches, wanted, num=_TIMED, steps_per_epoch=per_epoch)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            module.load_state_dict(untrained)
            module.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            size = max(1, size // 2)


def _part(batch: Batch, num: int) -> Batch:
    texts = batch.texts
    taken = texts[:num] if isinstance(texts, Tensor) else {name: value[:num] for name, value in texts.items()}
    return Batch(batch.images[:num], taken, batch.rows[:num])


def _parameters(module: ContrastiveModule) -> tuple[int, int, int]:
    """Of the image tower, of the text tower, and of neither."""
    image = text = other = 0
    for name, parameter in module.model.named_parameters():
        if name.startswith(("visual.", "image_")):
            image += parameter.numel()
        elif name.startswith("logit_"):
            other += parameter.numel()
        else:
            text += parameter.numel()
    return image, text, other


def _on_cpu(wanted: TrainerConfig) -> bool:
    none_else = not torch.cuda.is_available() and not torch.backends.mps.is_available()
    return wanted.accelerator == "cpu" or (wanted.accelerator == "auto" and none_else)


def _memory(on_cpu: bool) -> int:
    """Bytes that the run may hold on its first device: those free, and those that this process has already."""
    if not on_cpu and torch.cuda.is_available():
        return torch.cuda.mem_get_info(0)[0] + torch.cuda.memory_reserved(0)
    meminfo = Path("/proc/meminfo")
    if meminfo.exists() and (found := re.search(r"MemAvailable:\s*(\d+) kB", meminfo.read_text())):
        free = int(found[1]) * 1024 + resident_memory()
        limit = Path("/sys/fs/cgroup/memory.max")
        text = limit.read_text().strip() if limit.exists() else ""
        return min(free, int(text)) if text.isdigit() else free
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _nearest(folder: Path) -> Path:
    """The folder, or the first above it that is there."""
    folder = folder.absolute()
    return next(above for above in (folder, *folder.parents) if above.exists())
