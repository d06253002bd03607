"""Warnings about a plan, each with advice."""

from __future__ import annotations

import math
from collections.abc import Callable

from lakeclip.errors import InputWarning
from lakeclip.training.dry_run.plan import Plan

#: (rows at most, recommended global batch), from published runs: CC3M 1,024, YFCC15M 2,048, DataComp-small (12.8M pairs
#: seen) 4,096, the paper's 400M 32,768. 12M pairs at 32,768 scored 18% zero-shot on ImageNet instead of 30%.
_RECOMMENDED_BATCHES = ((100_000, 128), (1_000_000, 512), (5_000_000, 1_024), (30_000_000, 2_048), (150_000_000, 8_192))
_LARGEST_RECOMMENDED_BATCH = 32_768
_MIN_STEPS = 200
_ZERO_LOSS = 1e-4


def recommended_batch_size(rows: int) -> int:
    """Return a global batch size that works well for this number of rows."""
    return next((batch for most, batch in _RECOMMENDED_BATCHES if rows <= most), _LARGEST_RECOMMENDED_BATCH)


def plan_warnings(plan: Plan) -> list[InputWarning]:
    """Return the warnings about a plan; an empty list for a reasonable one."""
    checks: tuple[Callable[[Plan], InputWarning | None], ...] = (
        _warmup,
        _batch,
        _few_steps,
        _loss,
        _loader,
        _fits,
        _disk,
    )
    return [*plan.warnings, *(warning for check in checks if (warning := check(plan)) is not None)]


def _warmup(plan: Plan) -> InputWarning | None:
    if plan.warmup * 2 <= plan.steps:
        return None
    how = "longer than the run" if plan.warmup > plan.steps else "over half of the run"
    return InputWarning(
        f"the warm-up is {how}: {plan.warmup:,} of {plan.steps:,} steps",
        f"--warmup-steps {max(1, plan.steps // 10)}, a tenth of the run; or train for longer",
    )


def _batch(plan: Plan) -> InputWarning | None:
    rows = plan.kept - plan.held_out
    recommended = recommended_batch_size(rows)
    if plan.global_batch <= 4 * recommended:
        return None
    return InputWarning(
        f"a global batch of {plan.global_batch:,} is large for {rows:,} rows: "
        f"an epoch has only {plan.batches_per_epoch:,} steps",
        f"about {recommended:,} pairs work well for this many rows: "
        f"--batch-size {max(1, recommended // plan.world_size)}"
        + (f" on each of {plan.world_size} devices" if plan.world_size > 1 else ""),
    )


def _few_steps(plan: Plan) -> InputWarning | None:
    if plan.steps >= _MIN_STEPS:
        return None
    return InputWarning(
        f"the run has only {plan.steps:,} steps, too few to learn from scratch",
        "more --max-epochs (and no small --max-steps), a smaller --batch-size, or more data",
    )


def _loss(plan: Plan) -> InputWarning | None:
    expected = plan.expected_loss
    if abs(plan.first_loss) < _ZERO_LOSS:
        return InputWarning(
            f"the loss starts at {plan.first_loss:.2g}, so there is nothing to learn",
            "look at the images and captions: lakeclip inspect; and at the batch size",
        )
    # At a temperature of 0.07 the random features of small models move the loss by up to 0.5.
    if expected is None or abs(plan.first_loss - expected) <= max(1.0, 0.15 * expected):
        return None
    return InputWarning(
        f"the loss starts at {plan.first_loss:.2f}; untrained towers have ln {round(math.exp(expected)):,} = "
        f"{expected:.2f}",
        "if it is lower, check for duplicate rows or captions, and whether the weights are pretrained; "
        "if it is higher or NaN, look at the images and captions (lakeclip inspect), and at the initial weights",
    )


def _loader(plan: Plan) -> InputWarning | None:
    if plan.loader_rate >= plan.step_rate:
        return None
    return InputWarning(
        f"the loader is slower than the step: {plan.loader_rate:,.0f} against {plan.step_rate:,.0f} samples/s, "
        f"so the step waits {1 - plan.loader_rate / plan.step_rate:.0%} of the time",
        f"more --num-workers than {plan.num_workers} if there are free cores; "
        "or smaller images in the lake, as decoding takes most of the time",
    )


def _fits(plan: Plan) -> InputWarning | None:
    bytes_per_pair = plan.footprint.activations / plan.embedded
    needed = plan.footprint.total + bytes_per_pair * (plan.minibatch_size - plan.embedded)
    if needed <= plan.memory and plan.embedded >= plan.minibatch_size:
        return None
    what = f"a step needs {needed / 1e9:.1f} GB, but {plan.memory / 1e9:.1f} GB are free"
    if not plan.pairs_that_fit:
        return InputWarning(what, "a smaller --model, --states bf16 or 8bit, or a larger device")
    size = min(1 << (plan.pairs_that_fit.bit_length() - 1), plan.minibatch_size)
    return InputWarning(
        what, f"--minibatch-size {size}, for the same gradients with fewer pairs in memory; or --checkpointing on"
    )


def _disk(plan: Plan) -> InputWarning | None:
    if plan.checkpoint_bytes <= plan.free_bytes:
        return None
    return InputWarning(
        f"the disk is too small for the checkpoints: {plan.checkpoint_bytes / 1e9:.1f} GB for the best, the last and "
        f"the one being written, but {plan.free_bytes / 1e9:.1f} GB are free",
        "free some space, or set --runs to a folder on another disk",
    )
