"""Runs with half-precision states and text weights: end to end, stopped and resumed, evaluated, on two processes."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from lakeclip.checkpoints.layouts import load
from lakeclip.checkpoints.native import read_checkpoint
from lakeclip.cli.app import main
from lakeclip.config.schema import OptimizerConfig
from lakeclip.models.clip import CLIP
from lakeclip.training.optimizers import adamw, store_text_in_bfloat16, with_paper_values
from tests.conftest import TINY
from tests.integration.processes import on_processes
from tests.integration.test_train import curves, progress, start, words

HALF = ("--states", "bf16", "--text-weights", "bf16")


def test_a_run_that_was_stopped_ends_with_the_same_bits(pairs_lake: Path, tiny_models: Path, tmp_path: Path) -> None:
    """Also the rounding goes on where it was: another throw of the dice would move weights by a hundredth."""
    more = (*HALF, "--max-epochs", "4", "--val-every-steps", "20")
    main(words(pairs_lake, tiny_models, tmp_path, "whole", *more))
    with start(words(pairs_lake, tiny_models, tmp_path, "cut", *more)) as process:
        metrics = tmp_path / "cut/metrics.csv"
        while process.poll() is None and not metrics.exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=240)
    assert process.returncode == 130, output + errors
    assert 0 < progress(tmp_path / "cut")["step"] < progress(tmp_path / "whole")["step"]
    main(["train", "--resume", str(tmp_path / "cut")])
    whole, cut = (read_checkpoint(tmp_path / name / "checkpoints/last.ckpt").state_dict for name in ("whole", "cut"))
    assert whole["transformer.resblocks.0.mlp.c_fc.weight"].dtype == torch.bfloat16
    assert whole["visual.proj"].dtype == torch.float32
    for key, expected in whole.items():
        assert torch.equal(cut[key], expected), key
    losses = [float(row["train/loss"]) for row in curves(tmp_path / "whole") if row["train/loss"]]
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5]), "it learns"
    model, tokenize, _ = load(tmp_path / "whole")
    with torch.no_grad():
        assert model.encode_text(tokenize(["a red circle"])).dtype == torch.float32


def test_8_bit_states_train_and_leave_plain_tensors(pairs_lake: Path, tiny_models: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="8-bit states are torchao's")
    main(words(pairs_lake, tiny_models, tmp_path, "run", "--states", "8bit", "--max-steps", "3"))
    assert read_checkpoint(tmp_path / "run").lineage["progress"]["step"] == 3


def take_steps(rank: int, world: int) -> None:
    torch.manual_seed(0)
    model = CLIP(TINY)
    store_text_in_bfloat16(model)
    wrapped = DistributedDataParallel(model)
    config = OptimizerConfig(states="bf16", text_weights="bf16", lr=1e-3)
    optimizer = adamw(model, with_paper_values(config, "mine", is_resnet=False))
    torch.manual_seed(rank)
    for _ in range(3):
        images, texts = torch.rand(4, 3, 32, 32), torch.randint(1, 1000, (4, 24))
        optimizer.zero_grad()
        wrapped(images, texts)[0].diagonal().sum().backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        mine = parameter.detach().float()
        mean = mine.clone()
        torch.distributed.all_reduce(mean)
        assert torch.equal(mean / world, mine), name


def test_processes_with_random_states_of_their_own_keep_the_same_weights(tmp_path: Path) -> None:
    on_processes(take_steps, 2, tmp_path)
