"""Which licences the locked packages have: writes and checks docs/reference/licences.md.

    .venv/bin/python requirements/licences.py           # part of `make check`: is the page true, is all of it allowed?
    .venv/bin/python requirements/licences.py --write   # part of `make lock`

pip-licenses reads them from the installed packages. What this machine does not install (another system's, another
Python's, PyTorch's CUDA libraries) keeps its line of the page, or is written into it by hand.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "reference" / "licences.md"
#: What each lock is for, the smallest first.
_FOR = {"demo": "lakeclip", "cuda": "CUDA", "docs": "site", "dev": "tests"}
_ALLOWED = re.compile(
    r"MIT|BSD|Apache|ISC|PSF|Python Software Foundation|MPL|Mozilla|HPND|0BSD|Unlicense|CC0|zlib|NCSA|CNRI|LLVM", re.I
)
#: Allowed for what needs them, with the reason.
_EXCEPTIONS: dict[str, str] = {}
_HEAD = """# Licences

What lakeclip needs, and what its site and its tests need besides, by the locks in `requirements/`: each with its licence
as its own metadata says. `make check` fails where one is missing, or is none of those that may be used freely.

| Package | Version | Licence | For |
|---|---|---|---|
"""


class Package(NamedTuple):
    """A locked package."""

    name: str
    version: str
    used: str


def main() -> None:
    """Write the page, or compare it with what is installed."""
    held = _lines()
    lines, wrong = [], []
    installed = _installed()
    for package in _locked():
        licence = installed.get(package.name) or held.get(package.name, "")
        lines.append(f"| {package.name} | {package.version} | {licence} | {package.used} |\n")
        if not _ALLOWED.search(licence) and package.name not in _EXCEPTIONS:
            wrong.append(f"{package.name}: {licence or 'not known; write it into the page'}")
    page = _HEAD + "".join(lines) + _notes()
    if "--write" in sys.argv:
        PAGE.write_text(page, encoding="utf-8")
    elif page != PAGE.read_text(encoding="utf-8"):
        wrong.append(f"{PAGE.name} is not what is installed: python requirements/licences.py --write")
    print("\n".join(wrong) if wrong else f"licences: {len(lines)} packages, all allowed")
    sys.exit(1 if wrong else 0)


def _locked() -> list[Package]:
    found: dict[str, Package] = {}
    for lock, used in _FOR.items():
        for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", (HERE / f"{lock}.lock").read_text("utf-8"), re.M):
            found.setdefault(_normal(name), Package(_normal(name), version, used))
    return sorted(found.values())


def _installed() -> dict[str, str]:
    command = [sys.executable, "-m", "piplicenses", "--format=json", "--from=mixed", "--with-system"]
    listed = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    # Some put the whole text where the name belongs.
    return {
        _normal(one["Name"]): one["License"].strip().split("\n")[0][:80]
        for one in listed
        if one["License"] != "UNKNOWN"
    }


def _lines() -> dict[str, str]:
    """The page's licences, by package."""
    if not PAGE.exists():
        return {}
    cells = [line.split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return {row[0].removeprefix("| "): row[2] for row in cells[1:]}


def _notes() -> str:
    return "".join(f"\n{name}: {why}\n" for name, why in _EXCEPTIONS.items())


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
