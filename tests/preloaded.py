"""Processes that run `lakeclip …` or `python …` with PyTorch and Lightning imported already.

The imports take five seconds, more than most commands that tests run. A server process imports them once and is forked
for each command; the fork is then given to the process that asked for it, as if that one had started it. Where this is
not possible (other systems than Linux), commands are started as usual.
"""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.integration.processes import communicate

#: Not deeplake: it starts threads when it is imported, which a fork would lack.
MODULES = ("lightning", "lakeclip.cli.train", "lakeclip.cli.finetune", "lakeclip.training.run", "pytest")
LAKECLIP = str(Path(sys.executable).parent / "lakeclip")
_PR_SET_CHILD_SUBREAPER = 36


class Process(subprocess.Popen[str]):
    """A `subprocess.Popen` of `[LAKECLIP, …]`, or `[python, …]` with FILE, `-m MODULE` or `-c CODE`.

    It takes the arguments `stdin`, `stdout`, `stderr`, `text`, `cwd` and `env`; of these `env` has no effect on what
    the imports read, such as OMP_NUM_THREADS, which is 1.
    """

    def _execute_child(self, args: list[str], *rest: Any) -> None:  # type: ignore[override]
        cwd, env = rest[4], rest[5]
        p2cread, _, _, c2pwrite, _, errwrite = rest[9:15]
        if not sys.platform.startswith("linux"):
            return super()._execute_child(args, *rest)  # type: ignore[misc]
        request = json.dumps({"argv": args, "cwd": str(cwd or os.getcwd()), "env": dict(env or os.environ)}).encode()
        own = (0, 1, 2)
        files = [fd if given == -1 else given for fd, given in zip(own, (p2cread, c2pwrite, errwrite), strict=True)]
        try:
            self.pid = _server().fork(request, files)
            self._child_created = True
        finally:
            self._close_pipe_fds(*rest[9:15])  # type: ignore[attr-defined]
        return None


def run(args: list[str], *, timeout: float, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, and return what it printed."""
    with Process(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        try:
            out, err = communicate(process, timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(args, process.returncode, out, err)


# ── the side of the tests ───────────────────────────────────────────────────────────────────────────────────────────


class _Server:
    """Handle of the process that imports once; it ends with this one."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], env=environment
            )
        atexit.register(self._socket.close)

    def fork(self, request: bytes, files: list[int]) -> int:
        """Return the id of a new process, a child of this one, that runs the request."""
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        assert prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
        try:
            socket.send_fds(self._socket, [len(request).to_bytes(8, "big")], files)
            self._socket.sendall(request)
            answer = self._socket.recv(8)
        finally:
            prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        assert answer, "the server of preloaded processes has ended"
        return int.from_bytes(answer, "big")


_servers: dict[int, _Server] = {}


def _server() -> _Server:
    """Return this process's server; a process that pytest has forked starts its own."""
    if os.getpid() not in _servers:
        _servers[os.getpid()] = _Server()
    return _servers[os.getpid()]


# ── the side of the server ──────────────────────────────────────────────────────────────────────────────────────────


def _serve(connection: socket.socket) -> dict[str, Any] | None:
    """Fork for each request. Return the request in the fork, and None in the server, when no more can come."""
    while True:
        head, files, _, _ = socket.recv_fds(connection, 8, 3)
        if not head:
            return None
        request = bytearray()
        while len(request) < int.from_bytes(head, "big"):
            request += connection.recv(int.from_bytes(head, "big") - len(request))
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            # The parent of a process whose parent ends is the nearest that takes in orphans: the one of the tests.
            if grandchild := os.fork():
                os.write(theirs, grandchild.to_bytes(8, "big"))
                os._exit(0)
            connection.close()
            os.close(ours)
            os.close(theirs)
            for number, file in enumerate(files):
                os.dup2(file, number)
                os.close(file)
            return dict(json.loads(request))
        os.close(theirs)
        os.waitpid(child, 0)
        connection.sendall(os.read(ours, 8))
        for file in (ours, *files):
            os.close(file)


def _become(request: dict[str, Any]) -> None:
    """Be the process of the request, as Python would start it."""
    import numpy as np

    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.enable()
    np.random.seed()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    argv = request["argv"]
    from tests.integration.steps import as_told

    with as_told(os.environ):
        if argv[0] == LAKECLIP:
            from lakeclip.cli.app import main

            sys.argv, sys.path[0] = argv, str(Path(LAKECLIP).parent)
            main()
        elif argv[1] == "-m":
            sys.argv, sys.path[0] = argv[2:], os.getcwd()
            runpy.run_module(argv[2], run_name="__main__", alter_sys=True)
        elif argv[1] == "-c":
            sys.argv, sys.path[0] = ["-c", *argv[3:]], ""
            exec(argv[2], {"__name__": "__main__"})
        else:
            sys.argv, sys.path[0] = argv[1:], str(Path(argv[1]).parent)
            runpy.run_path(argv[1], run_name="__main__")


if __name__ == "__main__":
    import importlib

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests to hear
    with socket.socket(fileno=int(sys.argv[1])) as listening:
        for module in MODULES:
            importlib.import_module(module)
        assert len(os.listdir("/proc/self/task")) == 1, "a fork would lack the other threads"
        gc.collect()
        gc.freeze()  # so that forks share the memory
        wanted = _serve(listening)
    if wanted is not None:
        _become(wanted)
