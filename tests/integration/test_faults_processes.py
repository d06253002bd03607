"""Processes of a run that are killed, as the system does when memory runs out; and a step that gives NaN."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lakeclip.checkpoints.native import read_checkpoint
from lakeclip.cli.app import main
from lakeclip.models.clip import CLIP
from tests.integration.faults import command, goes_on, row, start, step_of, train_words, wait_for_checkpoint

#: Within which the others have to end. (A minute is promised.)
SECONDS = 40


def children(pid: int) -> list[int]:
    """Processes that a process has started, the oldest first."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def last_error(errors: str) -> str:
    """The message at the end of what a run said."""
    return errors[errors.rindex("error: ") :]


def test_a_loading_process_that_is_killed(pairs_lake: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = train_words(pairs_lake, tmp_path, "run", "--num-workers", "1")
    with start(command(words)) as process:
        wait_for_checkpoint(run, process)
        os.kill(children(process.pid)[0], signal.SIGKILL)
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 2, errors
    assert errors.startswith("error: ")
    goes_on(run, before=step_of(run))
    row(
        "A process that loads data is killed (out of memory)",
        errors,
        "the last checkpoint, whole",
        "`lakeclip train --resume RUN`",
        {run: "RUN"},
    )


def two(lake: Path, folder: Path) -> list[str]:
    return train_words(lake, folder, "run", "--strategy", "ddp", "--batch-size", "4", "--max-steps", "2000")


def resumed(run: Path) -> None:
    """With one process, and to a nearer end: two thousand steps would take a minute."""
    before = step_of(run)
    end = str(before + 20)
    alone = ["--devices", "1", "--strategy", "auto", "--batch-size", "8", "--max-steps", end]
    main(["train", "--resume", str(run), *alone])
    assert step_of(run) == before + 20


@pytest.mark.parametrize("rank", [1, 0])
def test_a_rank_that_is_killed_under_lightnings_launcher(rank: int, pairs_lake: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with start(command([*two(pairs_lake, tmp_path), "--devices", "2"])) as process:
        wait_for_checkpoint(run, process)
        (other,) = [pid for pid in children(process.pid) if b"lakeclip" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(other if rank else process.pid, signal.SIGKILL)
        # The pipe is closed only when both have ended.
        _, errors = process.communicate(timeout=SECONDS)
    assert "Traceback" not in errors
    assert process.returncode == (2 if rank else -signal.SIGKILL)
    resumed(run)
    row(
        "A rank is killed, under `--devices 2`" if rank else "The first rank is killed, under `--devices 2`",
        last_error(errors),
        "the last checkpoint, whole",
        "`lakeclip train --resume RUN`, also with another number of processes",
        {run: "RUN"},
    )


@pytest.mark.parametrize("rank", [1, 0])
def test_a_rank_that_is_killed_under_torchrun(rank: int, pairs_lake: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    launcher += [str(22000 + os.getpid() % 20000), "-m", "lakeclip"]
    with start([*launcher, *two(pairs_lake, tmp_path)]) as process:
        wait_for_checkpoint(run, process)
        ranks = {
            int(re.search(rb"\0RANK=(\d+)", Path(f"/proc/{pid}/environ").read_bytes())[1]): pid  # type: ignore[index]
            for pid in children(process.pid)
        }
        os.kill(ranks[rank], signal.SIGKILL)
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    # torchrun's own account follows, with a traceback of its own.
    ours = errors[errors.index("error: ") :]
    message = "\n".join(ours.splitlines()[:3])
    assert "Root Cause" in errors
    resumed(run)
    row(
        "A rank is killed, under torchrun" if rank else "The first rank is killed, under torchrun",
        message,
        "the last checkpoint, whole",
        "`lakeclip train --resume RUN`, also with another number of processes. torchrun adds its own account, in "
        "which “Root Cause” names the rank, and ends with code 1",
        {run: "RUN"},
    )


#: Two ranks, of which the first is in a call that no exception reaches, as in one of NCCL's, when the second dies.
BUSY = """
import os, sys, time, ctypes
import torch.distributed as dist
from lakeclip.training.recovery.ranks import Ranks
from lakeclip.training.recovery.faults import explained
from pathlib import Path
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
ranks = Ranks(lambda error: explained(error, Path('RUN')), grace=1.0)
ranks.begin([])
print("ready", os.getpid(), flush=True)
ctypes.CDLL(None).sleep(100)
"""


def test_a_rank_that_is_killed_while_the_first_cannot_hear_of_it(tmp_path: Path) -> None:
    """Deadlines and closed connections do not help a process that asks nobody; the watch does."""
    first, second = (start([sys.executable, "-c", BUSY, str(rank), str(tmp_path / "store")]) for rank in (0, 1))
    with first, second:
        for process in (first, second):
            assert process.stdout is not None
            assert process.stdout.readline().startswith("ready")
        second.kill()
        began = time.monotonic()
        _, errors = first.communicate(timeout=SECONDS)
    assert time.monotonic() - began < 10
    assert first.returncode == 2
    row(
        "A rank is killed while the first is busy by itself",
        errors,
        "the last checkpoint, as above",
        "as above; the message comes after 15 seconds",
        {},
    )


def test_a_batch_that_gives_nan(pairs_lake: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No bytes of an image give NaN, so the activations of one batch are made what an overflow makes them."""
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
        main(train_words(pairs_lake, tmp_path, "run", "--max-steps", "20"))
    assert step_of(run) == 20
    (entry,) = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    ((lake, rows),) = entry["rows"].items()
    assert lake == str(pairs_lake)
    assert len(rows) == 8
    state = read_checkpoint(run / "checkpoints/last.ckpt").state_dict
    assert all(bool(value.isfinite().all()) for value in state.values())
    (warning,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    row(
        "A batch gives NaN",
        "warning: " + warning.partition("; ")[0],
        "weights, optimiser and batch norm as they were before the step; its rows are listed in `RUN/skipped.jsonl`",
        "by itself, with the next batch; after `--max-skipped` such steps in a row, from the last checkpoint",
        {run: "RUN"},
    )


def test_the_others_end_when_one_is_wrong_by_itself(pairs_lake: Path, tmp_path: Path) -> None:
    """A rank that ends with an error of its own is not followed by a kill without a word."""
    done = subprocess.run(
        command([*two(tmp_path / "no-lake", tmp_path), "--devices", "2"]),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2
    assert "no Deep Lake dataset" in done.stderr
    assert pairs_lake.exists()
