"""Test the description of code and environment in checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

import lakeclip
from lakeclip.provenance.environment import code_version, describe_environment


def test_the_environment_is_plain_and_anonymous() -> None:
    environment = describe_environment()
    assert environment["torch"] == torch.__version__
    assert environment["threads"] == torch.get_num_threads()
    text = json.dumps(environment)
    assert str(Path.home()) not in text
    assert str(Path.cwd()) not in text


def test_the_code_is_identified_by_its_files() -> None:
    """Check that a process in another folder computes the same hash."""
    code = "import json; from lakeclip.provenance.environment import code_version; print(json.dumps(code_version()))"
    root = Path(lakeclip.__file__).parents[1]
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd="/",
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(result.stdout)["sources"] == code_version()["sources"]
    assert len(code_version()["sources"]) == 64
