"""`lakeclip train --dry-run`: print the plan of a run."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from lakeclip.config.command import format_command
from lakeclip.config.schema import FinetuneConfig, TrainConfig
from lakeclip.errors import ConfigError

if TYPE_CHECKING:
    from lakeclip.training.dry_run.plan import Plan


def print_plan(config: TrainConfig | FinetuneConfig) -> None:
    """Measure a few steps and print the plan.

    Raises:
        ConfigError: several processes were started.
        LakeclipError: an error that would stop the run too.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        verb, *flags = format_command(config).split()[1:]
        raise ConfigError(
            "a dry run uses one device, but several processes were started",
            found=f"WORLD_SIZE={os.environ['WORLD_SIZE']}",
            next_step=f"without torchrun: {' '.join(['lakeclip', verb, '--dry-run', *flags])}",
        )
    from lakeclip.training.dry_run.plan import make_plan

    sys.stdout.write(format_plan(make_plan(config, token=os.environ.get("ACTIVELOOP_TOKEN"))))


def format_plan(plan: Plan) -> str:
    """Format the plan as a page of text, with the warnings last."""
    from lakeclip.training.dry_run.warnings import plan_warnings

    lines = [plan.data.rstrip("\n"), ""]
    for name, facts in (
        ("model", _model(plan)),
        ("rows", _rows(plan)),
        ("steps", _steps(plan)),
        ("memory", _memory(plan)),
        ("step alone", _step(plan)),
        ("loader alone", f"{_rate(plan.loader_rate)} with {_count(plan.num_workers, 'worker')}: {_limit(plan)}"),
        ("whole run", _run(plan)),
        ("first loss", _loss(plan)),
        ("disk", f"{_bytes(plan.checkpoint_bytes)} for checkpoints, of {_bytes(plan.free_bytes)} free"),
    ):
        first, *more = facts.split("\n")
        lines += [f"{name:<14}{first}", *(" " * 14 + line for line in more)]
    warnings = plan_warnings(plan)
    lines += [""] if warnings else ["", "nothing looks wrong"]
    for warning in warnings:
        lines += str(warning).split("\n")
    return "\n".join(lines) + "\nnothing was trained or written: this was a dry run\n"


def _model(plan: Plan) -> str:
    return (
        f"{plan.model}: {plan.parameters / 1e6:,.1f} M parameters, {plan.image_parameters / 1e6:,.1f} M for images "
        f"and {plan.text_parameters / 1e6:,.1f} M for text"
    )


def _rows(plan: Plan) -> str:
    parts = [f"{plan.rows:,}"]
    if plan.kept != plan.rows:
        parts.append(f"{plan.kept:,} kept by the query")
    parts.append(f"{plan.held_out:,} held out for validation" if plan.held_out else "none held out")
    parts.append(f"{plan.kept - plan.held_out:,} to train on")
    return ", ".join(parts)


def _steps(plan: Plan) -> str:
    batch = f"a batch of {plan.global_batch:,} pairs"
    if plan.world_size > 1:
        batch += f" ({plan.batch_size:,} on each of {plan.world_size} devices)"
    if plan.accumulate > 1:
        batch += f", {plan.accumulate} of them per step"
    return (
        f"{plan.steps:,}, {plan.warmup:,} of them for warm-up; {batch}\n"
        f"{_count(plan.batches_per_epoch, 'batch', 'batches')} per epoch, {plan.epochs:,.3g} epochs"
    )


def _memory(plan: Plan) -> str:
    footprint = plan.footprint
    named = (
        ("weights", footprint.weights),
        ("gradients", footprint.gradients),
        ("optimiser", footprint.states),
        (f"activations of {_count(plan.embedded, 'pair')}", footprint.activations),
        ("the program", footprint.program),
    )
    suffix = ", not counting the loading processes" if plan.on_cpu else " on a device"
    return (
        f"{_bytes(footprint.total)} at the peak of a step, of {_bytes(plan.memory)} available{suffix}\n"
        + " + ".join(f"{_bytes(size)} {name}" for name, size in named if size)
    )


def _step(plan: Plan) -> str:
    words = f"{_rate(plan.step_rate)}, {plan.batch_size / plan.step_rate:.3g} s per batch"
    if plan.mfu is not None:
        words += f", {plan.mfu:.0%} of {plan.peak}"
    return (
        words + f"\nmean of {_count(plan.batches_timed, 'batch', 'batches')}; the first took {plan.seconds_first:.3g} s"
    )


def _limit(plan: Plan) -> str:
    ratio = plan.loader_rate / plan.step_rate
    if ratio < 1:
        return f"{ratio:.2f} of the step's rate, so the loader sets the pace"
    return f"{ratio:.1f} × the step's rate, so the step sets the pace"


def _run(plan: Plan) -> str:
    words = f"{_duration(plan.hours)} at {_rate(plan.rate)} with step and loader in parallel"
    if plan.world_size > 1:
        words += f" on {plan.world_size} devices, without the communication between them"
    return words + "; validation takes additional time"


def _loss(plan: Plan) -> str:
    if plan.expected_loss is None:
        return f"{plan.first_loss:.3f}"
    return f"{plan.first_loss:.3f}; ln {plan.batch_size:,} = {plan.expected_loss:.3f} expected for untrained towers"


def _rate(rate: float) -> str:
    return f"{rate:,.0f} samples/s" if rate >= 10 else f"{rate:.2g} samples/s"


def _bytes(size: int) -> str:
    return (
        f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"
    )


def _duration(hours: float) -> str:
    if hours < 1 / 30:
        return f"{hours * 3600:.0f} seconds"
    return (
        f"{hours * 60:.0f} minutes" if hours < 2 else f"{hours:,.1f} hours" if hours < 72 else f"{hours / 24:,.1f} days"
    )


def _count(num: int, singular: str, plural: str = "") -> str:
    return f"{num:,} {singular if num == 1 else plural or singular + 's'}"
