"""Each fuzzing target with its committed inputs: crashes that were fixed stay fixed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "tests/fuzz/corpus"


@pytest.mark.parametrize("target", sorted(path.name for path in CORPUS.iterdir()))
def test_committed_fuzz_inputs_do_no_harm(target: str) -> None:
    """Replay in a separate process: an input may crash it, and its memory is limited."""
    files = sorted(map(str, (CORPUS / target).iterdir()))
    assert files
    command = [sys.executable, "-m", "tests.fuzz.session", target, "--replay", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("input ") >= len(files)
