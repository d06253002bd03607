"""An S3 server on loopback (moto) behind a proxy that counts bytes and can fail; each is a process."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType

from tests.integration.processes import free_port

BUCKET = "lakes"


class S3Server:
    """The server and its proxy, as a context manager; `environment` has the variables for clients."""

    def __init__(self, folder: Path) -> None:
        for _ in range(5):  # another process may take the port before the server does
            port = free_port()
            with (folder / "moto.log").open("wb") as log:
                self._server = subprocess.Popen(
                    [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
                )
            self._direct = f"http://127.0.0.1:{port}"
            if self._create_bucket():
                break
        else:
            raise AssertionError((folder / "moto.log").read_text())
        self._proxy = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("s3_proxy.py")), str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._proxy.stdout is not None
        self.endpoint = f"http://127.0.0.1:{int(self._proxy.stdout.readline())}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "never-to-be-shown",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def __enter__(self) -> S3Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in (self._proxy, self._server):
            process.kill()
            process.wait()
        for stream in (self._proxy.stdin, self._proxy.stdout):
            if stream is not None:
                stream.close()

    def command(self, command: str) -> str:
        """Send the proxy a command and return its answer; see `s3_proxy`."""
        assert self._proxy.stdin is not None
        assert self._proxy.stdout is not None
        self._proxy.stdin.write(command + "\n")
        self._proxy.stdin.flush()
        return self._proxy.stdout.readline().strip()

    def bytes_sent(self) -> int:
        """Return the number of bytes that clients have received since the last call."""
        return int(self.command("sent").split()[0])

    def _create_bucket(self) -> bool:
        """Create the bucket as soon as the server answers; return False if the server has ended."""
        request = urllib.request.Request(f"{self._direct}/{BUCKET}", method="PUT")
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                urllib.request.urlopen(request, timeout=60).close()
                return True
            except urllib.error.HTTPError:
                raise
            except OSError:
                if self._server.poll() is not None:
                    return False
                time.sleep(0.1)
        raise AssertionError("moto does not answer")
