"""What a plan finds wrong, each alone, and that it finds nothing in a sane one."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lakeclip.cli.plan import in_words
from lakeclip.config.schema import TrainerConfig
from lakeclip.training.planning.doubts import doubts, good_batch
from lakeclip.training.planning.plan import Plan, together, world_size
from lakeclip.training.planning.rehearsal import Footprint

GB = 10**9
SANE = Plan(
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


def test_a_sane_plan_raises_no_doubts() -> None:
    assert doubts(SANE) == []
    assert "nothing looks wrong" in in_words(SANE)


@pytest.mark.parametrize(
    ("change", "what", "remedy"),
    [
        ({"warmup": 100_000}, "warm-up is longer than the run", "--warmup-steps 8478"),
        ({"warmup": 50_000}, "over half of the run", "--warmup-steps"),
        ({"batch_size": 8_192}, "global batch of 32,768 is large for 2,894,000 rows", "--batch-size 256 on each of 4"),
        ({"steps": 90, "warmup": 9}, "only 90 steps", "--max-epochs"),
        ({"first_loss": 9.0}, "loss starts at 9.00", "initial weights"),
        ({"first_loss": 2.0}, "loss starts at 2.00", "captions the same"),
        ({"first_loss": math.nan}, "loss starts at nan", "lakeclip inspect"),
        ({"loader_rate": 250.0}, "waits 75% of the time", "more --num-workers than 8"),
        ({"memory": 8 * GB, "pairs_that_fit": 130}, "needs 12.0 GB, and 8.0 GB are free", "--minibatch-size 128"),
        ({"embedded": 64, "pairs_that_fit": 100}, "needs 42.0 GB, and 40.0 GB", "--minibatch-size 64"),
        ({"memory": 8 * GB, "pairs_that_fit": None}, "needs 12.0 GB", "a smaller --model"),
        ({"free_bytes": GB}, "disk is too small for the checkpoints: 5.0 GB", "--runs"),
    ],
)
def test_each_doubt_comes_alone_and_says_what_to_do(change: dict[str, float], what: str, remedy: str) -> None:
    plan = replace(SANE, **change)  # type: ignore[arg-type]
    (doubt,) = doubts(plan)
    assert what in doubt.what
    assert remedy in doubt.remedy
    assert doubt.what in in_words(plan)


def test_the_papers_batch_suits_the_papers_data_alone() -> None:
    huge = replace(SANE, world_size=128, rows=400_000_000, kept=400_000_000)
    assert doubts(huge) == []
    (doubt,) = doubts(replace(huge, rows=12_000_000, kept=12_000_000))
    assert "32,768" in doubt.what
    assert good_batch(12_000_000) == 2_048


def test_a_sigmoid_loss_is_not_held_against_the_softmaxs() -> None:
    assert doubts(replace(SANE, first_loss=18.0, expected_loss=None)) == []


def test_the_hours_count_every_pair_of_every_device() -> None:
    assert SANE.hours == pytest.approx(84_780 * 1_024 / 4_000 / 3_600)
    assert replace(SANE, accumulate=2).hours == pytest.approx(2 * SANE.hours)


def test_step_and_loader_together_are_the_slower_where_they_share_nothing() -> None:
    assert together(100, 300, workers=4, cores=16, threads=1, on_cpu=False) == 100
    assert together(300, 100, workers=4, cores=16, threads=1, on_cpu=False) == 100


def test_without_workers_one_waits_for_the_other() -> None:
    assert together(100, 100, workers=0, cores=16, threads=1, on_cpu=False) == 50


def test_on_a_cpu_they_share_its_cores() -> None:
    assert together(100, 100, workers=2, cores=2, threads=2, on_cpu=True) == pytest.approx(50)
    assert together(100, 100, workers=2, cores=8, threads=4, on_cpu=True) == 100, "there are cores for both"


def test_devices_of_all_machines_count() -> None:
    assert world_size(TrainerConfig(accelerator="cpu")) == 1
    assert world_size(TrainerConfig(accelerator="cpu", devices=2, num_nodes=3)) == 6
