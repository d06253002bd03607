"""What looks wrong in a plan, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lakeclip.training.planning.plan import Plan

#: Rows up to which a global batch is known to do well, from others' runs: CC3M 1,024, YFCC15M 2,048, DataComp-small
#: (12.8M seen) 4,096, the paper's 400M 32,768. 12M pairs at 32,768 did badly: 18% zero-shot on ImageNet instead of 30.
_GOOD_BATCHES = ((100_000, 128), (1_000_000, 512), (5_000_000, 1_024), (30_000_000, 2_048), (150_000_000, 8_192))
_GOOD_BATCH_BEYOND = 32_768
_FEW_STEPS = 200


@dataclass(frozen=True)
class Doubt:
    """Something that looks wrong, and what to do about it."""

    what: str
    remedy: str


def good_batch(rows: int) -> int:
    """A global batch that is known to do well on so many rows."""
    return next((batch for most, batch in _GOOD_BATCHES if rows <= most), _GOOD_BATCH_BEYOND)


def doubts(plan: Plan) -> list[Doubt]:
    """What in a plan looks wrong, with what to do; nothing for a sane one."""
    checks: tuple[Callable[[Plan], Doubt | None], ...] = (
        _warmup,
        _batch,
        _few_steps,
        _loss,
        _loader,
        _fits,
        _disk,
    )
    return [doubt for check in checks if (doubt := check(plan)) is not None]


def _warmup(plan: Plan) -> Doubt | None:
    if plan.warmup * 2 <= plan.steps:
        return None
    how = "longer than the run" if plan.warmup > plan.steps else "over half of the run"
    return Doubt(
        f"the warm-up is {how}: {plan.warmup:,} of {plan.steps:,} steps",
        f"--warmup-steps {max(1, plan.steps // 10)}, a tenth of it; or train for longer",
    )


def _batch(plan: Plan) -> Doubt | None:
    rows, good = plan.kept - plan.held_out, good_batch(plan.kept - plan.held_out)
    if plan.global_batch <= 4 * good:
        return None
    return Doubt(
        f"a global batch of {plan.global_batch:,} is large for {rows:,} rows: "
        f"{plan.batches_per_epoch:,} steps an epoch teach little",
        f"about {good:,} pairs do well on so many rows: --batch-size {max(1, good // plan.world_size)}"
        + (f" on each of {plan.world_size} devices" if plan.world_size > 1 else ""),
    )


def _few_steps(plan: Plan) -> Doubt | None:
    if plan.steps >= _FEW_STEPS:
        return None
    return Doubt(
        f"the run has only {plan.steps:,} steps, too few to learn from scratch",
        "more --max-epochs (and no small --max-steps), a smaller --batch-size, or more data",
    )


def _loss(plan: Plan) -> Doubt | None:
    expected = plan.expected_loss
    # At a temperature of 0.07 random features of small models differ enough for half a unit.
    if expected is None or abs(plan.first_loss - expected) <= max(1.0, 0.15 * expected):
        return None
    return Doubt(
        f"the loss starts at {plan.first_loss:.2f}; towers that know nothing have ln {round(math.exp(expected)):,} = "
        f"{expected:.2f}",
        "lower: are many rows or captions the same, or are the weights trained already? "
        "Higher, or not a number: look at the images and captions (lakeclip inspect), and at the initial weights",
    )


def _loader(plan: Plan) -> Doubt | None:
    if plan.loader_rate >= plan.step_rate:
        return None
    return Doubt(
        f"the loader is slower than the step: {plan.loader_rate:,.0f} against {plan.step_rate:,.0f} samples/s, "
        f"so the step waits {1 - plan.loader_rate / plan.step_rate:.0%} of the time",
        f"more --num-workers than {plan.num_workers} where there are cores for them; "
        "or smaller images in the lake: decoding is most of the work",
    )


def _fits(plan: Plan) -> Doubt | None:
    each = plan.footprint.activations / plan.embedded
    needed = plan.footprint.total + each * (plan.minibatch_size - plan.embedded)
    if needed <= plan.memory and plan.embedded >= plan.minibatch_size:
        return None
    what = f"a step needs {needed / 1e9:.1f} GB, and {plan.memory / 1e9:.1f} GB are free"
    if not plan.pairs_that_fit:
        return Doubt(what, "a smaller --model, --states bf16 or 8bit, or a larger device")
    size = min(1 << (plan.pairs_that_fit.bit_length() - 1), plan.minibatch_size)
    return Doubt(what, f"--minibatch-size {size}: the same gradients, fewer pairs in memory; or --checkpointing on")


def _disk(plan: Plan) -> Doubt | None:
    if plan.checkpoint_bytes <= plan.free_bytes:
        return None
    return Doubt(
        f"the disk is too small for the checkpoints: {plan.checkpoint_bytes / 1e9:.1f} GB for the best, the last and "
        f"the one being written, and {plan.free_bytes / 1e9:.1f} GB are free",
        "make room, or give --runs a folder on another disk",
    )
