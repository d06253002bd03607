"""train-CLIP's commands, as its users type them. Each takes a real step on the CPU."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lakeclip.checkpoints.native import read_checkpoint
from tests import preloaded

ROOT = Path(__file__).parents[2]


def run(command: str, cwd: Path, *, timeout: int = 240) -> subprocess.CompletedProcess[str]:
    """Run a command as typed, `python` and `lakeclip` being this environment's."""
    program, *words = shlex.split(command)
    program = {"python": sys.executable, "lakeclip": preloaded.LAKECLIP}[program]
    return preloaded.run([program, *words], cwd=cwd, timeout=timeout, env=_env())


_PF_FORKNOEXEC = 0x40  # include/linux/sched.h


def command_lines(*, without: int) -> Iterator[str]:
    """Yield the command line of every process but one, as any user of this machine can see them.

    Leave out forked processes that run no program of their own yet: they show the command line of their parent.
    """
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            flags = int((folder / "stat").read_text().rpartition(")")[2].split()[6])
            if folder.name != str(without) and not flags & _PF_FORKNOEXEC:
                yield (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def _env() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_train_command_reads_a_lake(pairs_lake: Path, tmp_path: Path) -> None:
    """train-CLIP's first command requests two GPUs; without them it fails and prints a command that works here."""
    refused = run(
        f"python {ROOT}/train.py --path {pairs_lake} --token TOKEN --model_name ViT-B/16 --batch_size 2 "
        "--accelerator gpu --gpus 2 --strategy ddp --filter_NSFW --fp 16",
        tmp_path,
    )
    assert refused.returncode == 2, refused.stderr
    assert "accelerator gpu" in refused.stderr
    assert "no GPU" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert f"lakeclip train --model ViT-B/16 --lake {pairs_lake} --filter-nsfw" in refused.stdout
    assert "TOKEN" not in refused.stdout.replace("ACTIVELOOP_TOKEN", "")
    assert not (tmp_path / "runs").exists()

    offered = refused.stderr.split("next:")[1].strip()
    trained = run(f"{offered} --max-steps 1 --num-workers 0 --name seed", tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "runs/seed/checkpoints/last.ckpt").exists()
    lineage = read_checkpoint(tmp_path / "runs/seed").lineage
    assert lineage["data"]["query"] == "NSFW == 'UNLIKELY'"
    assert lineage["data"]["rows"] == 180


@pytest.mark.slow
def test_train_command_reads_a_folder(pairs_folder: Path, tmp_path: Path) -> None:
    trained = run(
        f"python {ROOT}/train.py --model_name RN50 --folder {pairs_folder} --batchsize 2 --max_steps 1", tmp_path
    )
    assert trained.returncode == 0, trained.stderr
    assert f"lakeclip train --model RN50 --folder {pairs_folder} --batch-size 2" in trained.stdout
    assert list(tmp_path.glob("runs/*/checkpoints/last.ckpt"))


def test_a_batch_larger_than_the_folder_is_refused_with_advice(pairs_folder: Path, tmp_path: Path) -> None:
    refused = run(f"python {ROOT}/train.py --model_name RN50 --folder {pairs_folder} --batchsize 512", tmp_path)
    assert refused.returncode == 2
    assert "512" in refused.stderr
    assert "--batch" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("flag", ["--batch_size", "--batchsize", "--batch-size"])
def test_every_spelling_of_a_flag(flag: str, pairs_folder: Path, tmp_path: Path) -> None:
    refused = run(
        f"python {ROOT}/train.py --model-name RN51 --folder {pairs_folder} {flag} 7 --image-size=96", tmp_path
    )
    assert refused.returncode == 2
    assert "RN50" in refused.stderr, "near names are offered"
    assert "--batch-size 7" in refused.stdout
    assert "--image-size 96" in refused.stdout


@pytest.mark.parametrize(
    ("given", "printed"), [("--shuffle False", True), ("--shuffle", False), ("--shuffle=true", False)]
)
def test_shuffle_false_is_false(given: str, printed: bool, tmp_path: Path) -> None:
    """In train-CLIP `--shuffle False` was true."""
    result = run(f"python {ROOT}/train.py --model_name RN50 --folder nowhere {given}", tmp_path)
    assert ("--no-shuffle" in result.stdout) is printed


@pytest.mark.slow
def test_a_token_reaches_no_file_and_no_other_process(pairs_lake: Path, tiny_models: Path, tmp_path: Path) -> None:
    """The first of two processes starts the second, and must not pass the token where others can read it."""
    secret = "s3cr3t-t0k3n"
    words = (
        f"{ROOT}/train.py --path {pairs_lake} --token {secret} --model_name ViT-Ti/4-32px --batch_size 4 "
        "--accelerator cpu --gpus 2 --strategy ddp --max_steps 2 --num_workers 0"
    )
    others: set[str] = set()
    with subprocess.Popen(
        [sys.executable, *shlex.split(words)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=_env(),
    ) as process:
        while process.poll() is None:
            others |= {line for line in command_lines(without=process.pid) if "train.py" in line}
            time.sleep(0.05)
        assert process.stdout is not None
        output = process.stdout.read()
    assert process.returncode == 0, output
    assert others, "the second process was seen"
    assert not any(secret in line for line in others)
    assert secret not in output
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert secret.encode() not in path.read_bytes(), path
