"""The locks: complete, hashed, of no index in particular; and an audit that finds what is planted."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "requirements"
LOCKS = sorted(FOLDER.glob("*.lock"))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_package_has_a_version_and_hashes(lock: Path) -> None:
    requirements = [text for text in re.split(r"^(?=\S)", lock.read_text(encoding="utf-8"), flags=re.MULTILINE) if text]
    assert requirements
    for text in requirements:
        assert re.match(r"[A-Za-z0-9._-]+==\S+ ", text), text[:80]
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", text), text[:80]
    assert "://" not in lock.read_text(encoding="utf-8")


def test_both_pytorch_builds_have_one_version_and_cuda_has_its_own_lock() -> None:
    pinned = re.search(r"^torch==\S+", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned
    assert f"{pinned[0]} ;" in (FOLDER / "demo.lock").read_text(encoding="utf-8")
    for name in ("demo", "docs", "dev"):
        assert "nvidia-" not in (FOLDER / f"{name}.lock").read_text(encoding="utf-8")
    assert (FOLDER / "cpu.lock").read_text(encoding="utf-8").startswith(f"{pinned[0]}+cpu ")
    assert "nvidia-cublas==" in (FOLDER / "cuda.lock").read_text(encoding="utf-8")


def test_each_package_is_locked_once() -> None:
    names = [
        name
        for lock in LOCKS
        if lock.name != "cpu.lock"
        for name in set(re.findall(r"^([\w.-]+)==", lock.read_text(encoding="utf-8"), re.MULTILINE))
    ]
    assert sorted(names) == sorted(set(names))


@contextmanager
def service(vulnerable: str) -> Iterator[str]:
    """OSV's answers for one vulnerable package."""

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]
            ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "999"}]}]
            found = {"id": "PYSEC-1", "details": "planted", "affected": [{"package": asked, "ranges": ranges}]}
            body = json.dumps({"vulns": [found]} if asked["name"] == vulnerable else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/query"
    server.shutdown()
    server.server_close()


def audit(url: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, FOLDER / "audit.py", FOLDER / "demo.lock"]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OSV_URL": url})


def test_audit_fails_on_a_vulnerability_and_reports_an_unreachable_service() -> None:
    pytest.importorskip("pip_audit")
    with service("jinja2") as url:
        found = audit(url)
    assert found.returncode == 1
    assert "PYSEC-1" in found.stdout
    with service("another") as url:
        assert audit(url).returncode == 0
    silent = audit(url)  # the service has ended
    assert silent.returncode == 0
    assert "NOT CHECKED" in silent.stdout


def test_the_licences_are_those_of_what_is_installed() -> None:
    pytest.importorskip("piplicenses")
    checked = subprocess.run([sys.executable, FOLDER / "licences.py"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_every_locked_package_has_a_licence() -> None:
    page = (ROOT / "docs/reference/licences.md").read_text(encoding="utf-8")
    for lock in LOCKS:
        for name in re.findall(r"^([\w.-]+)==", lock.read_text(encoding="utf-8"), re.MULTILINE):
            assert re.search(rf"^\| {re.escape(name)} \| \S", page, re.MULTILINE), name
