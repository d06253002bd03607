"""A real S3 server on loopback (moto) behind a proxy that counts and can fail, each a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType

BUCKET = "lakes"


class Store:
    """The server and its proxy. Use it as a context manager; `environment` is what clients need."""

    def __init__(self, folder: Path) -> None:
        # The first requests of the fixture itself are those that make the bucket.
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        with (folder / "moto.log").open("wb") as log:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
            )
        self._proxy = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("s3_proxy.py")), str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._proxy.stdout is not None
        self.endpoint = f"http://127.0.0.1:{int(self._proxy.stdout.readline())}"
        self._direct = f"http://127.0.0.1:{port}"
        self._make_bucket()

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "never-to-be-shown",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def __enter__(self) -> Store:
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

    def tell(self, command: str) -> str:
        assert self._proxy.stdin is not None
        assert self._proxy.stdout is not None
        self._proxy.stdin.write(command + "\n")
        self._proxy.stdin.flush()
        return self._proxy.stdout.readline().strip()

    def sent(self) -> int:
        """Bytes that clients have received since this was last asked."""
        return int(self.tell("sent").split()[0])

    def _make_bucket(self) -> None:
        request = urllib.request.Request(f"{self._direct}/{BUCKET}", method="PUT")
        for _ in range(200):
            try:
                urllib.request.urlopen(request, timeout=5).close()
                return
            except urllib.error.HTTPError:
                raise
            except OSError:
                assert self._server.poll() is None, "moto has ended"
                time.sleep(0.1)
        raise AssertionError("moto does not answer")
