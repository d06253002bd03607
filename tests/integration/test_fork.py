"""A process that has asked a lake's storage for something, and forks: Deep Lake alone would crash or wait for ever."""

from __future__ import annotations

import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Event, Thread

import pytest

FORK = """
import os, sys
from lakeclip.errors import LakeError
from lakeclip.lake import engine, timeouts
timeouts.FORK_SECONDS = float(sys.argv[1])
try:
    engine.open_dataset("s3://bucket/lake", seconds=0.5)
except LakeError as error:
    assert "no answer" in str(error), error
try:
    child = os.fork()
except LakeError as error:
    sys.exit(str(error))
if child == 0:
    os._exit(7)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("is_answered", [True, False])
def test_a_fork_waits_for_pending_requests(is_answered: bool) -> None:
    """Requests that have timed out are still pending: a fork waits for their answers, or is refused."""
    asked, answer = Event(), Event()

    class Silent(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.set()
            answer.wait(60)
            self.send_error(403)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Silent) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        environment = {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "never-to-be-shown",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        }
        command = [sys.executable, "-c", FORK, "60" if is_answered else "2"]
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            assert asked.wait(60)
            time.sleep(2)
            assert process.poll() is None
            if is_answered:
                answer.set()
            message = process.communicate(timeout=60)[1]
            answer.set()
        server.shutdown()
    if is_answered:
        assert (process.returncode, message) == (7, "")
    else:
        assert process.returncode == 1
        assert "cannot start another process while requests to a lake's storage are pending" in message
        assert "run the command again" in message
