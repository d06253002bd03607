"""The table in docs/reference/faults.md: each test of a fault compares its row with the page.

`make faults` writes the page: it runs the same tests with FAULTS=write, one after the other. A row consists of the
output that the test sees, with placeholders for what differs between runs, of what is kept, and of how to resume.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from lakeclip.checkpoints.native import read_checkpoint
from lakeclip.cli.app import main
from tests.integration.steps import after_step
from tests.integration.test_train import curves
from tests.preloaded import Process

PAGE = Path(__file__).parents[2] / "docs/reference/faults.md"

#: All rows of the page in order. Each is written by one test in test_faults_*.py.
FAULTS = (
    "The disk fills up while a checkpoint is written",
    "The disk fills up while the curves are written",
    "The disk fills up during an ingest",
    "A quota is used up during an ingest",
    "The lake's folder is removed or renamed",
    "Bytes of images change in a chunk of the lake",
    "Bytes of captions change in a chunk of the lake",
    "S3 is slow",
    "S3 stops answering",
    "S3 refuses the credentials (403)",
    "A data loader worker is killed (out of memory)",
    "A rank is killed, under `--devices 2`",
    "The first rank is killed, under `--devices 2`",
    "A rank is killed, under torchrun",
    "The first rank is killed, under torchrun",
    "A rank is killed while the first one is blocked",
    "A batch gives NaN",
)

HEAD = """# Faults

What happens when something breaks in the middle of a run or an ingest. The tests in
`tests/integration/test_faults_*.py` provoke each fault, compare the message with this table, check what is kept, and
resume the command until it completes. `make faults` writes the table anew.

Every message is the last output on standard error, without a traceback, and the exit code is 2, unless the row says
that the run continues. Names in capitals and N stand for values that differ from run to run.

| Fault | What you see | What is kept | How it resumes |
| --- | --- | --- | --- |
"""

#: The smallest possible model, with checkpoints of 6 MB.
MODELS = """
faint-vit:
  embed_dim: 16
  image_resolution: 32
  vision_layers: 1
  vision_width: 64
  vision_patch_size: 16
  context_length: 24
  vocab_size: 49408
  transformer_width: 8
  transformer_heads: 1
  transformer_layers: 1
"""


def check_row(fault: str, seen: str, kept: str, resumes: str, names: Mapping[object, str]) -> None:
    """Compare a row with the page, or write it there if FAULTS=write.

    Args:
        fault: one of `FAULTS`.
        seen: output that the user sees.
        kept: what the test has found to be complete.
        resumes: how the test resumed the command.
        names: text that differs in each run → its placeholder in the table.
    """
    assert fault in FAULTS
    line = f"| {fault} | {_cell(seen, names)} | {kept} | {resumes} |"
    rows = _rows()
    if os.environ.get("FAULTS") == "write":
        rows[fault] = line
        PAGE.write_text(HEAD + "".join(rows[name] + "\n" for name in FAULTS if name in rows), encoding="utf-8")
    assert rows.get(fault) == line, "docs/reference/faults.md has fallen behind: make faults"


def _rows() -> dict[str, str]:
    lines = PAGE.read_text(encoding="utf-8").splitlines() if PAGE.exists() else []
    return {line.split(" | ")[0][2:]: line for line in lines if line.startswith("| ") and " | " in line}


def _cell(seen: str, names: Mapping[object, str]) -> str:
    text = seen.strip()
    for found, name in sorted(names.items(), key=lambda item: -len(str(item[0]))):
        text = text.replace(str(found), name)
    text = re.sub(r"\b0x[0-9a-f]+", "0xN", text)
    text = re.sub(r"(?<![\w.%])\d[\d.,]*(?= (MB|GB|s|rows|bytes|steps)\b)", "N", text)
    text = re.sub(r"(?<=process )\d+|(?<=rows )\d+ … \d+|(?<=step )\d+|(?<=row )\d+|(?<=not )[1-9][\d,]*", "N", text)
    # Either the parent or another process may report it first.
    text = text.replace("process N was killed (SIGKILL)", "process N has ended")
    assert not re.search(r"/(tmp|home|root|work|var)\b|Traceback|\|", text), text
    return "<br>".join(f"`{' '.join(line.split())}`" for line in text.splitlines())


# ── runs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def train_args(lake: object, folder: Path, name: str, *more: str) -> list[str]:
    """Return the arguments of a run of 60 steps of a few milliseconds, with a checkpoint every ten steps."""
    models = folder / "models.yaml"
    models.write_text(MODELS)
    data = ["--lake", str(lake), "--batch-size", "8", "--num-workers", "0", "--max-val-rows", "16"]
    model = ["--model", "faint-vit", "--model-config", str(models), "--lr", "1e-3", "--accelerator", "cpu"]
    schedule = ["--max-steps", "60", "--val-every-steps", "10"]
    return ["train", *data, *model, *schedule, "--runs", str(folder), "--name", name, *more]


def command(args: list[str]) -> list[str]:
    return [sys.executable, "-m", "lakeclip", *args]


def start(args: list[str], **environment: str) -> subprocess.Popen[str]:
    kind = subprocess.Popen if "LD_PRELOAD" in environment else Process
    return kind(
        args,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def wait_for_checkpoint(run: Path, process: subprocess.Popen[str] | None = None) -> None:
    end = time.monotonic() + 200
    while not (run / "checkpoints/last.ckpt").exists():
        assert time.monotonic() < end
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.005)


def error_of(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command in this process, check that it ends with code 2, and return its standard error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(args)
    errors = capsys.readouterr().err
    assert exit_.value.code == 2, errors
    assert "Traceback" not in errors
    assert errors.startswith("error: "), errors
    return errors


def error_after_fault(
    run: Path, fault: Callable[[], object], args: list[str], capsys: pytest.CaptureFixture[str]
) -> str:
    """Provoke a fault after step 15, when the run has a checkpoint; otherwise like `error_of`."""

    def provoke() -> None:
        assert (run / "checkpoints/last.ckpt").exists()
        fault()

    with after_step(15, provoke):
        return error_of(args, capsys)


def last_step(run: Path) -> int:
    """Return the step of the last checkpoint, and check that it is complete and that there are no partial files."""
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names <= {"best.ckpt", "last.ckpt"}, names
    return int(read_checkpoint(run / "checkpoints/last.ckpt").lineage["progress"]["step"])


def check_resume(run: Path, *, before: int, steps: int = 60) -> None:
    """Check that `lakeclip train --resume RUN` continues from the last checkpoint to the end."""
    assert 0 < before < steps
    main(["train", "--resume", str(run)])
    assert last_step(run) == steps
    taken = [int(row["step"]) for row in curves(run) if row["train/loss"]]
    assert taken == sorted(set(taken)), "each step is in the curves once"
    assert taken[-1] == steps - 1
