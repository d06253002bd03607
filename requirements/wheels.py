"""Build the wheel, install it and use it on each of the given Python interpreters.

    .venv/bin/python requirements/wheels.py python3.10 python3.12 python3.13 --out FILE

Each gets its own environment from `demo.lock`, with hashes. There the script imports all modules of the wheel, and runs
its commands: create data, train, score, write a report, resume, inspect, export, load.
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
names = [m.name for m in pkgutil.walk_packages(lakeclip.__path__, "lakeclip.") if not m.name.endswith("__main__")]
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
    """Try each interpreter, write the results, and exit with 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="+", metavar="PYTHON")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result to this JSON file")
    flags = parser.parse_args()
    results = [try_wheel(python) for python in flags.pythons]
    if flags.out:
        about = {"date": datetime.date.today().isoformat(), "machine": f"{platform.system()} {platform.machine()}"}
        about["command"] = "python requirements/wheels.py " + " ".join(
            f"python{result['python'][:4]}" for result in results
        )
        flags.out.write_text(json.dumps({**about, "pythons": results}, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if all(result["works"] for result in results) else 1)


def try_wheel(python: str) -> dict[str, Any]:
    """Build, install and use the wheel with one interpreter."""
    start = time.monotonic()
    result: dict[str, Any] = {"python": _output([python, "-c", "import platform; print(platform.python_version())"])}
    with tempfile.TemporaryDirectory() as folder:
        try:
            result |= _install_and_use(python, Path(folder))
            result["works"] = True
        except subprocess.CalledProcessError as error:
            command = " ".join(Path(str(argument)).name for argument in error.cmd)
            result |= {"works": False, "failed": command[:300], "said": (error.output or "")[-1500:]}
    result["seconds"] = round(time.monotonic() - start)
    print(json.dumps(result, indent=1), flush=True)
    return result


def _install_and_use(python: str, folder: Path) -> dict[str, Any]:
    venv, workdir = folder / "venv", folder / "workdir"
    workdir.mkdir()
    _output([*_UV, "build", "--quiet", "--wheel", "--python", python, "--out-dir", str(folder), str(HERE.parent)])
    (wheel,) = folder.glob("*.whl")
    _output([*_UV, "venv", "--quiet", "--python", python, str(venv)])
    bin_ = venv / "bin"
    install = [*_UV, "pip", "install", "--quiet", "--python", str(bin_ / "python"), "--no-deps"]
    locked = [*install, "--require-hashes", "--requirement"]
    check = [*_UV, "pip", "check", "--quiet", "--python", str(bin_ / "python")]
    # As `make env` does: PyTorch's CPU build if available, otherwise the CUDA packages.
    subprocess.run([*locked, str(HERE / "cpu.lock")], stderr=subprocess.DEVNULL)
    _output([*locked, str(HERE / "demo.lock")])
    if subprocess.run(check, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
        _output([*locked, str(HERE / "cuda.lock")])
    _output([*install, str(wheel)])
    _output(check)
    print_versions = "import torch, deeplake, numpy; print(torch.__version__, deeplake.__version__, numpy.__version__)"
    installed = dict(
        zip(("torch", "deeplake", "numpy"), _output([str(bin_ / "python"), "-c", print_versions]).split(), strict=True)
    )
    installed["modules_imported"] = _output([str(bin_ / "python"), "-c", _IMPORT_ALL], workdir)
    for command in _COMMANDS:
        _output([str(bin_ / "lakeclip"), *command.split()], workdir)
    installed["features"] = _output([str(bin_ / "python"), "-c", _USE], workdir)
    return {"wheel": wheel.name, **installed, "commands": [f"lakeclip {command}" for command in _COMMANDS]}


def _output(command: list[str], cwd: Path | None = None) -> str:
    """Run a command and return its output.

    Raises:
        subprocess.CalledProcessError: it failed; `output` has both its streams.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    finished = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    if finished.returncode:
        raise subprocess.CalledProcessError(finished.returncode, command, finished.stdout + finished.stderr)
    return finished.stdout.strip()


if __name__ == "__main__":
    main()
