"""What a run computes with, as its checkpoints say it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

import lakeclip
from lakeclip.training.recovery.environment import code, environment


def test_the_environment_is_plain_and_names_nobody() -> None:
    found = environment()
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    text = json.dumps(found)
    assert str(Path.home()) not in text
    assert str(Path.cwd()) not in text


def test_the_code_is_known_by_its_files() -> None:
    """Another process, in another folder, finds the same; another file, something else."""
    asked = "import json; from lakeclip.training.recovery.environment import code; print(json.dumps(code()))"
    root = Path(lakeclip.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", asked],
        cwd="/",
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["sources"] == code()["sources"]
    assert len(code()["sources"]) == 64
