"""Each fuzzing target over its committed inputs: what once harmed does not again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "tests/fuzz/corpus"


@pytest.mark.parametrize("target", sorted(path.name for path in CORPUS.iterdir()))
def test_no_committed_input_harms(target: str) -> None:
    """In a process of its own: an input may crash it, and its memory is limited."""
    files = sorted(map(str, (CORPUS / target).iterdir()))
    assert files
    command = [sys.executable, "-m", "tests.fuzz.session", target, "--replay", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("input ") >= len(files)
