"""Warnings about a plan, each on its own, and none about a reasonable plan."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lakeclip.cli.dry_run import format_plan
from lakeclip.config.schema import TrainerConfig
from lakeclip.training.dry_run.plan import Plan, combined_rate, world_size
from lakeclip.training.dry_run.profile import Footprint
from lakeclip.training.dry_run.warnings import plan_warnings, recommended_batch_size

GB = 10**9
REASONABLE = Plan(
    model="RN50",
    image_parameters=38_000_000,
    text_parameters=64_000_000,
    other_parameters=1,
    footprint=Footprint(GB // 2, GB // 2, GB, 10 * GB),
    minibatch_size=256,
    embedded=256,
    pairs_that_fit=1_000,
    memory=40 * GB,
    on_cpu=False,
    rows=3_000_000,
    kept=2_900_000,
    held_out=6_000,
    batch_size=256,
    world_size=4,
    accumulate=1,
    batches_per_epoch=2_826,
    epochs=30,
    steps=84_780,
    warmup=2_000,
    num_workers=8,
    batches_timed=3,
    step_rate=1_000,
    loader_rate=2_000,
    rate=4_000,
    seconds_first=1.5,
    mfu=0.5,
    peak="312 TFLOP/s, data sheet",
    first_loss=5.6,
    expected_loss=math.log(256),
    checkpoint_bytes=5 * GB,
    free_bytes=100 * GB,
    data="data: cc3m.lake",
)


def test_reasonable_plan_has_no_warnings() -> None:
    assert plan_warnings(REASONABLE) == []
    assert "nothing looks wrong" in format_plan(REASONABLE)


@pytest.mark.parametrize(
    ("change", "what", "advice"),
    [
        ({"warmup": 100_000}, "warm-up is longer than the run", "--warmup-steps 8478"),
        ({"warmup": 50_000}, "over half of the run", "--warmup-steps"),
        ({"batch_size": 8_192}, "global batch of 32,768 is large for 2,894,000 rows", "--batch-size 256 on each of 4"),
        ({"steps": 90, "warmup": 9}, "only 90 steps", "--max-epochs"),
        ({"first_loss": 9.0}, "loss starts at 9.00", "initial weights"),
        ({"first_loss": 2.0}, "loss starts at 2.00", "duplicate rows or captions"),
        ({"first_loss": math.nan}, "loss starts at nan", "lakeclip inspect"),
        ({"loader_rate": 250.0}, "waits 75% of the time", "more --num-workers than 8"),
        ({"memory": 8 * GB, "pairs_that_fit": 130}, "needs 12.0 GB, but 8.0 GB are free", "--minibatch-size 128"),
        ({"embedded": 64, "pairs_that_fit": 100}, "needs 42.0 GB, but 40.0 GB", "--minibatch-size 64"),
        ({"memory": 8 * GB, "pairs_that_fit": None}, "needs 12.0 GB", "a smaller --model"),
        ({"free_bytes": GB}, "disk is too small for the checkpoints: 5.0 GB", "--runs"),
    ],
)
def test_each_problem_gives_one_warning_with_advice(change: dict[str, float], what: str, advice: str) -> None:
    plan = replace(REASONABLE, **change)  # type: ignore[arg-type]
    (warning,) = plan_warnings(plan)
    assert what in warning.what
    assert advice in warning.advice
    assert warning.what in format_plan(plan)


def test_papers_batch_is_recommended_only_for_as_much_data() -> None:
    huge = replace(REASONABLE, world_size=128, rows=400_000_000, kept=400_000_000)
    assert plan_warnings(huge) == []
    (warning,) = plan_warnings(replace(huge, rows=12_000_000, kept=12_000_000))
    assert "32,768" in warning.what
    assert recommended_batch_size(12_000_000) == 2_048


def test_first_loss_of_the_sigmoid_is_not_checked() -> None:
    assert plan_warnings(replace(REASONABLE, first_loss=18.0, expected_loss=None)) == []


def test_hours_count_all_pairs_of_all_devices() -> None:
    assert REASONABLE.hours == pytest.approx(84_780 * 1_024 / 4_000 / 3_600)
    assert replace(REASONABLE, accumulate=2).hours == pytest.approx(2 * REASONABLE.hours)


def test_combined_rate_is_the_slower_one_without_shared_cores() -> None:
    assert combined_rate(100, 300, workers=4, cores=16, threads=1, on_cpu=False) == 100
    assert combined_rate(300, 100, workers=4, cores=16, threads=1, on_cpu=False) == 100


def test_without_workers_step_and_loader_alternate() -> None:
    assert combined_rate(100, 100, workers=0, cores=16, threads=1, on_cpu=False) == 50


def test_step_and_loader_share_the_cores_of_a_cpu() -> None:
    assert combined_rate(100, 100, workers=2, cores=2, threads=2, on_cpu=True) == pytest.approx(50)
    assert combined_rate(100, 100, workers=2, cores=8, threads=4, on_cpu=True) == 100, "enough cores for both"


def test_world_size_counts_devices_of_all_machines() -> None:
    assert world_size(TrainerConfig(accelerator="cpu")) == 1
    assert world_size(TrainerConfig(accelerator="cpu", devices=2, num_nodes=3)) == 6
