"""Killed processes of a run, as by the system when memory runs out, and a step that gives NaN."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lakeclip.checkpoints.native import read_checkpoint
from lakeclip.cli.app import main
from lakeclip.models.clip import CLIP
from tests.integration.faults import (
    check_resume,
    check_row,
    command,
    last_step,
    start,
    train_args,
    wait_for_checkpoint,
)
from tests.integration.processes import free_port
from tests.integration.steps import HOLD_AT, release, wait_until_held

#: Time within which the other processes must end.
SECONDS = 60


def children(pid: int) -> list[int]:
    """Return the child processes of a process, oldest first."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def last_error(errors: str) -> str:
    """Return the message at the end of a run's standard error."""
    return errors[errors.rindex("error: ") :]


@pytest.mark.slow
def test_a_killed_loader_worker(pairs_lake: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    args = train_args(pairs_lake, tmp_path, "run", "--num-workers", "1")
    with start(command(args), **{HOLD_AT: f"15:{tmp_path}"}) as process:
        wait_until_held(tmp_path, lambda: process.poll() is None)
        assert (run / "checkpoints/last.ckpt").exists()
        worker, *_ = [worker for server in children(process.pid) for worker in children(server)]
        os.kill(worker, signal.SIGKILL)
        release(tmp_path)
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 2, errors
    assert errors.startswith("error: ")
    check_resume(run, before=last_step(run))
    check_row(
        "A data loader worker is killed (out of memory)",
        errors,
        "the last checkpoint, complete",
        "`lakeclip train --resume RUN`",
        {run: "RUN"},
    )


def two_ranks(lake: Path, folder: Path) -> list[str]:
    return train_args(lake, folder, "run", "--strategy", "ddp", "--batch-size", "4", "--max-steps", "2000")


def check_resume_with_one_process(run: Path) -> None:
    """Resume with one process for 20 steps: two thousand would take a minute."""
    before = last_step(run)
    end = str(before + 20)
    alone = ["--devices", "1", "--strategy", "auto", "--batch-size", "8", "--max-steps", end]
    main(["train", "--resume", str(run), *alone])
    assert last_step(run) == before + 20


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 0])
def test_a_rank_killed_under_lightnings_launcher(rank: int, pairs_lake: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with start(command([*two_ranks(pairs_lake, tmp_path), "--devices", "2"])) as process:
        wait_for_checkpoint(run, process)
        (other,) = [pid for pid in children(process.pid) if b"lakeclip" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(other if rank else process.pid, signal.SIGKILL)
        # The pipe closes only when both processes have ended.
        _, errors = process.communicate(timeout=SECONDS)
    assert "Traceback" not in errors
    assert process.returncode == (2 if rank else -signal.SIGKILL)
    check_resume_with_one_process(run)
    check_row(
        "A rank is killed, under `--devices 2`" if rank else "The first rank is killed, under `--devices 2`",
        last_error(errors),
        "the last checkpoint, complete",
        "`lakeclip train --resume RUN`, also with a different number of processes",
        {run: "RUN"},
    )


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 0])
def test_a_rank_killed_under_torchrun(rank: int, pairs_lake: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    launcher += [str(free_port()), "-m", "lakeclip"]
    with start([*launcher, *two_ranks(pairs_lake, tmp_path)]) as process:
        wait_for_checkpoint(run, process)
        ranks = {
            int(re.search(rb"\0RANK=(\d+)", Path(f"/proc/{pid}/environ").read_bytes())[1]): pid  # type: ignore[index]
            for pid in children(process.pid)
        }
        os.kill(ranks[rank], signal.SIGKILL)
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    # torchrun's own report follows, with a traceback.
    ours = errors[errors.index("error: ") :]
    message = "\n".join(ours.splitlines()[:3])
    assert "Root Cause" in errors
    check_resume_with_one_process(run)
    check_row(
        "A rank is killed, under torchrun" if rank else "The first rank is killed, under torchrun",
        message,
        "the last checkpoint, complete",
        "`lakeclip train --resume RUN`, also with a different number of processes. torchrun prints a report of its "
        "own, in which “Root Cause” names the rank, and exits with code 1",
        {run: "RUN"},
    )


#: Two ranks. The first is in a call that no exception interrupts, like one of NCCL's, when the second dies.
BUSY = """
import os, sys, time, ctypes
import torch.distributed as dist
from lakeclip.training.callbacks.rank_watchdog import RankWatchdog
from lakeclip.training.errors import explain_error
from pathlib import Path
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
ranks = RankWatchdog(lambda error: explain_error(error, Path('RUN')), grace=1.0)
ranks.start([])
print("ready", os.getpid(), flush=True)
ctypes.CDLL(None).sleep(100)
"""


@pytest.mark.slow
def test_a_rank_killed_while_the_first_is_blocked(tmp_path: Path) -> None:
    """A process that does not communicate notices no timeout and no closed connection; its watchdog ends it."""
    first, second = (start([sys.executable, "-c", BUSY, str(rank), str(tmp_path / "store")]) for rank in (0, 1))
    with first, second:
        for process in (first, second):
            assert process.stdout is not None
            assert process.stdout.readline().startswith("ready")
        second.kill()
        _, errors = first.communicate(timeout=SECONDS)
    assert first.returncode == 2
    check_row(
        "A rank is killed while the first one is blocked",
        errors,
        "the last checkpoint, as above",
        "as above; the message comes after 15 seconds",
        {},
    )


def test_a_batch_with_nan_activations(pairs_lake: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No image bytes give NaN, so a hook sets the activations of one batch to NaN, like an overflow would."""
    run = tmp_path / "run"
    batches = 0

    def overflow(model: torch.nn.Module, arguments: object, output: torch.Tensor) -> torch.Tensor | None:
        nonlocal batches
        batches += model.training
        return output * float("nan") if batches == 7 and model.training else None

    original = CLIP.__init__

    def hooked(self: CLIP, *arguments: object, **named: object) -> None:
        original(self, *arguments, **named)  # type: ignore[arg-type]
        self.visual.register_forward_hook(overflow)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CLIP, "__init__", hooked)
        main(train_args(pairs_lake, tmp_path, "run", "--max-steps", "20"))
    assert last_step(run) == 20
    (entry,) = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    ((lake, rows),) = entry["rows"].items()
    assert lake == str(pairs_lake)
    assert len(rows) == 8
    state = read_checkpoint(run / "checkpoints/last.ckpt").state_dict
    assert all(bool(value.isfinite().all()) for value in state.values())
    (warning,) = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    check_row(
        "A batch gives NaN",
        "warning: " + warning.partition("; ")[0],
        "weights, optimiser and batch norm as before the step; its rows are listed in `RUN/skipped.jsonl`",
        "automatically, with the next batch; after `--max-skipped` such steps in a row, from the last checkpoint",
        {run: "RUN"},
    )


@pytest.mark.slow
def test_all_ranks_end_when_one_fails(pairs_lake: Path, tmp_path: Path) -> None:
    """The error of the failing rank is printed; the other one is not killed silently."""
    done = subprocess.run(
        command([*two_ranks(tmp_path / "no-lake", tmp_path), "--devices", "2"]),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2
    assert "no Deep Lake dataset" in done.stderr
    assert pairs_lake.exists()
