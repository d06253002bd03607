"""Builds the wheel, installs it and uses it, on each Python that is named.

    .venv/bin/python requirements/wheels.py python3.10 python3.12 python3.13 --out FILE

Each gets an environment of its own from `demo.lock`, with hashes. There the wheel's modules are all imported, and its
commands go through a small whole: draw, train, score, write a report, resume, inspect, export, load.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
_UV = [sys.executable, "-m", "uv"]
_IMPORT_ALL = """
import importlib, pkgutil, lakeclip
names = [one.name for one in pkgutil.walk_packages(lakeclip.__path__, "lakeclip.") if not one.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
_USE = """
import lakeclip
model, tokenize, transform = lakeclip.load("runs/demo")
print(tuple(model.encode_text(tokenize(["a red circle"])).shape))
"""
_COMMANDS = (
    "demo --max-steps 20",
    "train --resume runs/demo --max-steps 25",
    "inspect runs/demo",
    "inspect runs/demo/lakes/train --samples 4 --html lake.html",
    "export --checkpoint runs/demo --to openai --out demo.pt",
    "evaluate retrieval --checkpoint openai:demo.pt --lake runs/demo/lakes/unseen",
)


def main() -> None:
    """Try each interpreter, say what became of it, and end with 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="+", metavar="PYTHON")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write what came of it to this JSON file")
    flags = parser.parse_args()
    tried = [attempt(python) for python in flags.pythons]
    if flags.out:
        about = {"date": datetime.date.today().isoformat(), "machine": f"{platform.system()} {platform.machine()}"}
        about["command"] = "python requirements/wheels.py " + " ".join(f"python{one['python'][:4]}" for one in tried)
        flags.out.write_text(json.dumps({**about, "pythons": tried}, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if all(one["works"] for one in tried) else 1)


def attempt(python: str) -> dict[str, Any]:
    """Build, install and use the wheel with one interpreter."""
    began = time.monotonic()
    result: dict[str, Any] = {"python": _said([python, "-c", "import platform; print(platform.python_version())"])}
    with tempfile.TemporaryDirectory() as folder:
        try:
            result |= _attempt(python, Path(folder))
            result["works"] = True
        except subprocess.CalledProcessError as error:
            words = [Path(str(word)).name for word in error.cmd]
            result |= {"works": False, "failed": " ".join(words)[:300], "said": (error.output or "")[-1500:]}
    result["seconds"] = round(time.monotonic() - began)
    print(json.dumps(result, indent=1), flush=True)
    return result


def _attempt(python: str, folder: Path) -> dict[str, Any]:
    venv, place = folder / "venv", folder / "place"
    place.mkdir()
    _said([*_UV, "build", "--quiet", "--wheel", "--python", python, "--out-dir", str(folder), str(HERE.parent)])
    (wheel,) = folder.glob("*.whl")
    _said([*_UV, "venv", "--quiet", "--python", python, str(venv)])
    bin_ = venv / "bin"
    install = [*_UV, "pip", "install", "--quiet", "--python", str(bin_ / "python"), "--no-deps"]
    locked = [*install, "--require-hashes", "--requirement"]
    check = [*_UV, "pip", "check", "--quiet", "--python", str(bin_ / "python")]
    # As `make env` does: PyTorch's CPU build where there is one, else what the other needs besides.
    subprocess.run([*locked, str(HERE / "cpu.lock")], stderr=subprocess.DEVNULL)
    _said([*locked, str(HERE / "demo.lock")])
    if subprocess.run(check, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
        _said([*locked, str(HERE / "cuda.lock")])
    _said([*install, str(wheel)])
    _said(check)
    versions = "import torch, deeplake, numpy; print(torch.__version__, deeplake.__version__, numpy.__version__)"
    found = dict(
        zip(("torch", "deeplake", "numpy"), _said([str(bin_ / "python"), "-c", versions]).split(), strict=True)
    )
    found["modules_imported"] = _said([str(bin_ / "python"), "-c", _IMPORT_ALL], place)
    for command in _COMMANDS:
        _said([str(bin_ / "lakeclip"), *command.split()], place)
    found["features"] = _said([str(bin_ / "python"), "-c", _USE], place)
    return {"wheel": wheel.name, **found, "commands": [f"lakeclip {command}" for command in _COMMANDS]}


def _said(command: list[str], place: Path | None = None) -> str:
    """What a command prints; its errors with it where it fails."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout + done.stderr)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
