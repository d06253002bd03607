"""Tests that names of models are resolved to folders: local ones, the cache, and a hub that is a local server here."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from lakeclip import hub
from lakeclip.errors import CheckpointError
from lakeclip.hub import find_weights, is_hub_name, read_shards, resolve_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(http.server.ThreadingHTTPServer):
    """Server with the addresses of the hub that a download needs."""

    daemon_threads = True
    files: dict[str, bytes]
    status: int
    delay: float
    requests: list[str]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Hub

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        self.server.requests.append(self.path)
        time.sleep(self.server.delay)
        headers = {"X-Repo-Commit": COMMIT}
        if self.server.status != 200:
            body, status = b"{}", self.server.status
            headers["X-Error-Code"] = "RepoNotFound" if status == 404 else ""
        elif "/tree/" in self.path:
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha256(data).hexdigest()}
                for name, data in self.server.files.items()
            ]
            body, status = json.dumps(entries).encode(), 200
        elif self.path.startswith("/api/models/"):
            siblings = [{"rfilename": name, "size": len(data)} for name, data in self.server.files.items()]
            body, status = json.dumps({"id": "org/name", "sha": COMMIT, "siblings": siblings}).encode(), 200
        elif (name := self.path.rsplit("/", 1)[-1]) not in self.server.files:
            body, status = b"{}", 404
        else:
            body, status = self.server.files[name], 200
            headers["ETag"] = f'"{hashlib.sha256(body).hexdigest()}"'
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Print nothing."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Hub]:
    server = _Hub(("127.0.0.1", 0), _Handler)
    server.files, server.status, server.delay, server.requests = {}, 200, 0.0, []
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/name", True),
        ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K@refs/pr/1", True),
        ("/org/name", False),
        ("./org/name", False),
        ("org/name/more", False),
        ("name", False),
        ("there/missing", False),
        ("there", False),
    ],
)
def test_hub_names(name: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    assert is_hub_name(name) == expected


def test_a_local_folder_comes_first(server: _Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org/name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_folder("org/name") == Path("org/name")
    assert resolve_folder(Path("elsewhere/not/there")) == Path("elsewhere/not/there")
    assert server.requests == []


def test_downloads_one_set_of_weights_and_no_code(server: _Hub) -> None:
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    index = json.dumps({"weight_map": {"a": shards[0], "b": shards[1]}}).encode()
    names = ("config.json", "tokenizer.json", "spiece.model", "merges.txt", *shards)
    others = ("pytorch_model.bin", "modeling.py", "README.md", "flax_model.msgpack", "pytorch_model.bin.index.json")
    server.files = dict.fromkeys((*names, *others), b"{}") | {"model.safetensors.index.json": index}
    folder = resolve_folder("org/name")
    assert {path.name for path in folder.iterdir()} == {*names, "model.safetensors.index.json"}
    weights = find_weights(folder)
    assert weights is not None
    assert [path.name for path in read_shards(weights)] == list(shards)

    server.requests.clear()
    assert resolve_folder("org/name") == folder
    assert server.requests == []


def test_libraries_have_their_own_weights(server: _Hub) -> None:
    server.files = dict.fromkeys(
        ("config.json", "open_clip_config.json", "model.safetensors", "open_clip_model.safetensors"), b"{}"
    )
    assert not (resolve_folder("org/name") / "open_clip_model.safetensors").exists()
    assert (resolve_folder("org/name", "open_clip") / "open_clip_model.safetensors").is_file()
    server.files = {"README.md": b""}
    with pytest.raises(CheckpointError, match=r"no weights for huggingface\n.*README.md\n.*allowed: model.safetensors"):
        resolve_folder("org/other")


def test_an_unknown_model(server: _Hub) -> None:
    server.status = 404
    with pytest.raises(CheckpointError, match=r"no folder org/nmae, and no model of that name(.|\n)*next: .*spelling"):
        resolve_folder("org/nmae")


@pytest.mark.parametrize("reason", ["HF_HUB_OFFLINE is set", "no answer from http", "500"])
def test_an_unavailable_hub_ends_soon(reason: str, server: _Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_PATIENCE", 0.3 if reason.startswith("no answer") else 60.0)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", reason.startswith("HF_HUB"))
    server.status, server.delay = (500, 0.0) if reason == "500" else (200, 60.0)
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=rf"found: .*{reason}(.|\n)*hf download org/name --local-dir FOLDER"):
        resolve_folder("org/name")
    assert time.monotonic() - start < 30


def test_shards_are_all_there_and_in_the_folder(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"incomplete\n.*no model-00001-of-00002.safetensors"):
        read_shards(index)
    for content in ('{"weight_map": {"a": "../secret"}}', '{"weight_map": {"a": 1}}', "[]", "{"):
        index.write_text(content)
        with pytest.raises(CheckpointError, match="is not an index of weights"):
            read_shards(index)
