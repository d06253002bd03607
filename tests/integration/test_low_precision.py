"""Runs with bfloat16 states and text weights: interrupted and resumed, evaluated, and on two processes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from lakeclip.checkpoints.layouts import load
from lakeclip.checkpoints.native import read_checkpoint
from lakeclip.cli.app import main
from lakeclip.config.schema import OptimizerConfig
from lakeclip.models.clip import CLIP
from lakeclip.training.optim.optimizers import adamw, store_text_in_bfloat16, with_paper_values
from tests.conftest import TINY
from tests.integration.processes import run_on_processes
from tests.integration.test_train import curves, progress, stop_after, train_args

HALF = ("--states", "bf16", "--text-weights", "bf16")


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_bits(pairs_lake: Path, tiny_models: Path, tmp_path: Path) -> None:
    """The stochastic rounding resumes too: other random bits would change weights by one percent."""
    more = (*HALF, "--max-epochs", "4", "--val-every-steps", "20")
    main(train_args(pairs_lake, tiny_models, tmp_path, "whole", *more))
    code, output, errors = stop_after(35, signal.SIGINT, train_args(pairs_lake, tiny_models, tmp_path, "cut", *more))
    assert code == 130, output + errors
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


@pytest.mark.slow
def test_a_checkpoint_with_8_bit_states_has_plain_tensors(pairs_lake: Path, tiny_models: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="8-bit states need torchao")
    main(train_args(pairs_lake, tiny_models, tmp_path, "run", "--states", "8bit", "--max-steps", "3"))
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


@pytest.mark.slow
def test_processes_with_different_random_states_keep_equal_weights(tmp_path: Path) -> None:
    run_on_processes(take_steps, 2, tmp_path)
