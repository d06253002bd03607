"""Exceptions that end a run, translated into errors for the user."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lakeclip.errors import ConfigError, LakeError, OutputError, ProcessError
from lakeclip.training.callbacks.rank_watchdog import _has_ended
from lakeclip.training.errors import explain_error, silence_full_disk_in_threads


def test_a_full_disk_is_recognized_in_any_exception(tmp_path: Path) -> None:
    direct = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    wrapped = RuntimeError("cannot save")
    wrapped.__cause__ = direct
    for error in (direct, wrapped, OSError(errno.EDQUOT, "quota"), RuntimeError("PytorchStreamWriter failed")):
        found = explain_error(error, tmp_path)
        assert isinstance(found, OutputError)
        assert found.next_step == "free some space; then the same command again", "without a checkpoint, start again"


def test_with_a_checkpoint_the_next_step_is_to_resume(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").touch()
    found = explain_error(LakeError("the lake is gone", found="nothing"), tmp_path, verb="finetune")
    assert isinstance(found, LakeError)
    assert found.next_step == f"lakeclip finetune --resume {tmp_path}"
    assert found.found == "nothing"


def test_errors_of_the_runs_own_files_are_explained(tmp_path: Path) -> None:
    refused = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "metrics.csv"))
    assert "metrics.csv cannot be written" in str(explain_error(refused, tmp_path))
    assert "is gone" in str(explain_error(refused, tmp_path / "run"))


def test_other_exceptions_are_unchanged(tmp_path: Path) -> None:
    for error in (RuntimeError("a shape"), OSError(errno.EACCES, "no", "/etc/x"), ConfigError("a value")):
        assert explain_error(error, tmp_path) is error


@pytest.mark.parametrize(
    ("message", "name", "advice"),
    [
        ("DataLoader worker (pid 12) is killed by signal: Killed. ", "SIGKILL", "memory"),
        ("DataLoader worker (pid 12) is killed by signal: Bus error. It is possible", "SIGBUS", "--shm-size"),
        ("DataLoader worker (pid 12) is killed by signal: Segmentation fault. ", "SIGSEGV", "damaged"),
        ("DataLoader worker (pid(s) 12) exited unexpectedly", "error of its own", ""),
    ],
)
def test_a_dead_loader_worker_is_explained(message: str, name: str, advice: str, tmp_path: Path) -> None:
    found = explain_error(RuntimeError(message), tmp_path)
    assert isinstance(found, ProcessError)
    assert name in found.what
    assert advice in found.next_step
    assert found.found == "process 12"


def test_only_full_disks_are_silenced_in_threads(capsys: pytest.CaptureFixture[str]) -> None:
    reported: list[BaseException | None] = []

    def fail(error: Exception) -> None:
        raise error

    before, threading.excepthook = threading.excepthook, lambda arguments: reported.append(arguments.exc_value)
    try:
        with silence_full_disk_in_threads():
            for error in (OSError(errno.ENOSPC, "full"), ValueError("another")):
                thread = threading.Thread(target=fail, args=(error,))
                thread.start()
                thread.join()
    finally:
        threading.excepthook = before
    assert [type(error) for error in reported] == [ValueError]


def test_a_zombie_process_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert not _has_ended(process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert _has_ended(process.pid), "a zombie"
    assert _has_ended(process.pid)
