"""What comes up from the depths of a run, as a message."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lakeclip.errors import ConfigError, LakeError, OutputError, ProcessError
from lakeclip.training.recovery.faults import explained, full_disks_are_not_for_threads
from lakeclip.training.recovery.ranks import _has_ended


def test_a_full_disk_is_known_wherever_it_stands(tmp_path: Path) -> None:
    direct = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    behind = RuntimeError("cannot save")
    behind.__cause__ = direct
    for error in (direct, behind, OSError(errno.EDQUOT, "quota"), RuntimeError("PytorchStreamWriter failed")):
        found = explained(error, tmp_path)
        assert isinstance(found, OutputError)
        assert found.next_step == "make room; then the same command again", "there is no checkpoint yet"


def test_with_a_checkpoint_the_way_on_is_to_resume(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").touch()
    found = explained(LakeError("the lake is gone", found="nothing"), tmp_path, verb="finetune")
    assert isinstance(found, LakeError)
    assert found.next_step == f"lakeclip finetune --resume {tmp_path}"
    assert found.found == "nothing"


def test_what_is_a_file_of_the_run_s(tmp_path: Path) -> None:
    refused = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "metrics.csv"))
    assert "metrics.csv cannot be written" in str(explained(refused, tmp_path))
    assert "is gone" in str(explained(refused, tmp_path / "run"))


def test_what_is_nobody_s_fault_but_ours_stays_as_it_is(tmp_path: Path) -> None:
    for error in (RuntimeError("a shape"), OSError(errno.EACCES, "no", "/etc/x"), ConfigError("a value")):
        assert explained(error, tmp_path) is error


@pytest.mark.parametrize(
    ("said", "name", "advice"),
    [
        ("DataLoader worker (pid 12) is killed by signal: Killed. ", "SIGKILL", "memory"),
        ("DataLoader worker (pid 12) is killed by signal: Bus error. It is possible", "SIGBUS", "--shm-size"),
        ("DataLoader worker (pid 12) is killed by signal: Segmentation fault. ", "SIGSEGV", "damaged"),
        ("DataLoader worker (pid(s) 12) exited unexpectedly", "error of its own", ""),
    ],
)
def test_a_worker_s_end(said: str, name: str, advice: str, tmp_path: Path) -> None:
    found = explained(RuntimeError(said), tmp_path)
    assert isinstance(found, ProcessError)
    assert name in found.what
    assert advice in found.next_step
    assert found.found == "process 12"


def test_threads_keep_quiet_about_full_disks_alone(capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[BaseException | None] = []

    def fail(error: Exception) -> None:
        raise error

    before, threading.excepthook = threading.excepthook, lambda arguments: heard.append(arguments.exc_value)
    try:
        with full_disks_are_not_for_threads():
            for error in (OSError(errno.ENOSPC, "full"), ValueError("another")):
                thread = threading.Thread(target=fail, args=(error,))
                thread.start()
                thread.join()
    finally:
        threading.excepthook = before
    assert [type(error) for error in heard] == [ValueError]


def test_a_process_that_nobody_has_asked_after_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert not _has_ended(process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert _has_ended(process.pid), "a zombie"
    assert _has_ended(process.pid)
