"""The table of docs/reference/faults.md: each test of a fault holds its own row against the page.

`make faults` writes the page: the same tests with FAULTS=write, one after the other. A row is made of what the test has
seen, with what differs from run to run taken out, and of what it has found to be kept and to go on.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from lakeclip.checkpoints.native import read_checkpoint
from lakeclip.cli.app import main
from tests.integration.test_train import curves

PAGE = Path(__file__).parents[2] / "docs/reference/faults.md"

#: Every row of the page, in its order. Each is recorded by one test of test_faults_*.py.
FAULTS = (
    "The disk fills up while a checkpoint is written",
    "The disk fills up while the curves are written",
    "The disk fills up during an ingest",
    "A quota is used up during an ingest",
    "The lake's folder is removed or renamed",
    "Bytes of images change in a chunk of the lake",
    "Bytes of captions change in a chunk of the lake",
    "S3 is slow",
    "S3 dies",
    "S3 refuses the credentials (403)",
    "A process that loads data is killed (out of memory)",
    "A rank is killed, under `--devices 2`",
    "The first rank is killed, under `--devices 2`",
    "A rank is killed, under torchrun",
    "The first rank is killed, under torchrun",
    "A rank is killed while the first is busy by itself",
    "A batch gives NaN",
)

HEAD = """# Faults

What happens when something breaks in the middle of a run or an ingest. Each row was seen: the tests in
`tests/integration/test_faults_*.py` provoke the fault, compare the message with this table, look at what is kept, and
let the command go on to its end. `make faults` writes the table anew.

Every message is the last thing on standard error, without a traceback, and the exit code is 2, unless the row says that
the run goes on. Names in capitals and N stand for what differs from run to run.

| Fault | What you see | What is kept | How it goes on |
| --- | --- | --- | --- |
"""

#: The smallest model of the command line, with checkpoints of 6 MB instead of 40.
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


def row(fault: str, seen: str, kept: str, goes_on: str, names: Mapping[object, str]) -> None:
    """Hold one row against the page, or write it there.

    Args:
        fault: one of `FAULTS`.
        seen: what the user saw.
        kept: what the test has found to be whole.
        goes_on: what the test has done to go on.
        names: what is different in each run → what stands for it.
    """
    assert fault in FAULTS
    line = f"| {fault} | {_cell(seen, names)} | {kept} | {goes_on} |"
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
    # Who is first to see it, the parent or another process, differs.
    text = text.replace("process N was killed (SIGKILL)", "process N has ended")
    assert not re.search(r"/(tmp|home|root|work|var)\b|Traceback|\|", text), text
    return "<br>".join(f"`{' '.join(line.split())}`" for line in text.splitlines())


# ── runs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def train_words(lake: object, folder: Path, name: str, *more: str) -> list[str]:
    """A run of 60 steps, for one whose steps take some milliseconds, with a checkpoint every ten of them."""
    models = folder / "models.yaml"
    models.write_text(MODELS)
    data = ["--lake", str(lake), "--batch-size", "8", "--num-workers", "0", "--max-val-rows", "16"]
    model = ["--model", "faint-vit", "--model-config", str(models), "--lr", "1e-3", "--accelerator", "cpu"]
    schedule = ["--max-steps", "60", "--val-every-steps", "10"]
    return ["train", *data, *model, *schedule, "--runs", str(folder), "--name", name, *more]


def command(words: list[str]) -> list[str]:
    return [sys.executable, "-m", "lakeclip", *words]


def start(words: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def wait_for_checkpoint(run: Path, process: subprocess.Popen[str] | None = None) -> None:
    end = time.monotonic() + 60
    while not (run / "checkpoints/last.ckpt").exists():
        assert time.monotonic() < end
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.005)


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command of this process says before it ends with code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(words)
    errors = capsys.readouterr().err
    assert exit_.value.code == 2, errors
    assert "Traceback" not in errors
    assert errors.startswith("error: "), errors
    return errors


def refused_after(run: Path, fault: Callable[[], object], words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The same for a run that has the fault as soon as it has a checkpoint."""

    def provoke() -> None:
        wait_for_checkpoint(run)
        fault()

    thread = threading.Thread(target=provoke, daemon=True)
    thread.start()
    try:
        return refused(words, capsys)
    finally:
        thread.join(10)


def step_of(run: Path) -> int:
    """Where the last checkpoint stands, which must be whole; nothing that is half written lies beside it."""
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names <= {"best.ckpt", "last.ckpt"}, names
    return int(read_checkpoint(run / "checkpoints/last.ckpt").lineage["progress"]["step"])


def goes_on(run: Path, *, before: int, steps: int = 60) -> None:
    """`lakeclip train --resume RUN` goes on from the last checkpoint to the end."""
    assert 0 < before < steps
    main(["train", "--resume", str(run)])
    assert step_of(run) == steps
    taken = [int(row["step"]) for row in curves(run) if row["train/loss"]]
    assert taken == sorted(set(taken)), "each step is in the curves once"
    assert taken[-1] == steps - 1
