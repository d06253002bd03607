"""Test that tokens in the environment and in addresses leak nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lakeclip.errors import LakeError, redact
from tests.integration.processes import communicate

#: Secrets in the environment of every command.
PLANTED = {
    "ACTIVELOOP_TOKEN": "planted-activeloop-7f3a",
    "AWS_ACCESS_KEY_ID": "AKIAPLANTED7F3A",
    "AWS_SECRET_ACCESS_KEY": "planted/aws+secret7f3a",
    "AWS_SESSION_TOKEN": "planted-aws-session-7f3a",
    "HF_TOKEN": "hf_planted7f3a",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdefplanted7",
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-7f3a",
}
#: Secrets in addresses.
IN_ADDRESSES = ("planted-password-9b1c", "planted-query-9b1c")


def test_secrets_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_TOKEN", "no")
    text = f"no: {PLANTED['ACTIVELOOP_TOKEN']} s3://u:{IN_ADDRESSES[0]}@host/x https://h/?a=1&X-Amz-Signature=abc&b=2"
    assert redact(text) == "no: *** s3://***@host/x https://h/?a=1&X-Amz-Signature=***&b=2"
    assert redact("mail a@b.example about https://h/x@y") == "mail a@b.example about https://h/x@y"
    error = LakeError(f"cannot read {text}", found=text, next_step=text)
    assert "7f3a" not in str(error) + error.found + error.next_step
    assert "9b1c" not in str(error)


@pytest.mark.slow
@pytest.mark.timeout(900)  # many commands, one after another
def test_a_full_run_leaves_no_token_anywhere(pairs_folder: Path, tiny_models: Path, tmp_path: Path) -> None:
    """Ingest, inspect, train with every tracker and evaluate; also try addresses that cannot be opened."""
    inherited = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH", "LANG")}
    environment = {
        **inherited,
        **PLANTED,
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "tmp"),
        "LAKECLIP_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",
        "WANDB_MODE": "offline",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": f"http://user:{IN_ADDRESSES[0]}@127.0.0.1:9/?token={IN_ADDRESSES[1]}",
        "LAKECLIP_REMOTE_PATIENCE": "1",
    }
    for name in ("home", "tmp", "cache"):
        (tmp_path / name).mkdir()
    (tmp_path / "urls.csv").write_text(
        f"url,caption\nhttp://user:{IN_ADDRESSES[0]}@127.0.0.1:9/a.jpg?token={IN_ADDRESSES[1]},a cat\n"
    )
    texts: list[str] = []

    def run(code: int, *arguments: str) -> None:
        with subprocess.Popen(
            [sys.executable, "-m", "lakeclip", *arguments],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            watcher = threading.Thread(target=watch, args=(process,))
            watcher.start()
            output = communicate(process, 250)[0]
            watcher.join()
        assert process.returncode == code, output
        texts.append(output)

    def watch(process: subprocess.Popen[str]) -> None:
        """Collect the command lines of the process and its descendants."""
        while process.poll() is None:
            texts.extend(command_lines(process.pid))
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                continue

    settings = ["--model", "tiny-vit", "--model-config", str(tiny_models), "--max-steps", "4", "--batch-size", "8"]
    settings += ["--accelerator", "cpu", "--num-workers", "1", "--track", "tensorboard", "wandb", "mlflow"]
    run(0, "ingest", str(pairs_folder), "lake")
    run(0, "inspect", "lake", "--html", "lake.html", "--json", "lake.json")
    run(0, "train", "--lake", "lake", *settings, "--name", "a")
    run(0, "evaluate", "retrieval", "--lake", "lake", "--checkpoint", "runs/a")
    run(0, "inspect", "runs/a", "--json", "run.json")
    run(2, "train", "--lake", "s3://bucket/lake", *settings)
    run(2, "inspect", f"s3://user:{IN_ADDRESSES[0]}@bucket/lake?token={IN_ADDRESSES[1]}")
    run(1, "ingest", "urls.csv", "urls.lake", "--download")

    secrets = [*PLANTED.values(), *IN_ADDRESSES]
    assert len("".join(texts)) > 1000
    for secret in secrets:
        assert secret not in "\n".join(texts), secret
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "urls.csv"]
    assert len(files) > 20
    for path in files:
        content = path.read_bytes()
        # The addresses of a table are data and stay in its lake; no other file may contain them.
        planted = [*PLANTED.values()] if "urls.lake" in path.parts else secrets
        for secret in planted:
            assert secret.encode() not in content, (path.relative_to(tmp_path), secret)


def command_lines(pid: int) -> list[str]:
    """Return the command lines of a process and its descendants."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # the process has ended
        return []
    # The test itself puts addresses on the command line; that is no leak.
    lines = [] if any(secret in line for secret in IN_ADDRESSES) else [line]
    return lines + [line for child in children for line in command_lines(int(child))]
