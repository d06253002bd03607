"""Which licences the locked packages have: writes and checks docs/reference/licences.md.

    .venv/bin/python requirements/licences.py           # part of `make check`: is the page true, is all of it allowed?
    .venv/bin/python requirements/licences.py --write   # part of `make lock`

pip-licenses reads them from the metadata of the installed packages. What Linux with Python 3.11 and PyTorch's CPU build
does not install, and what names no licence, stands in `licences.toml`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import tomli

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "reference" / "licences.md"
#: What each lock is for, the smallest first.
_FOR = {"demo": "lakeclip", "cuda": "CUDA", "docs": "the site", "dev": "the tests", "peer": "the tests"}
#: Free to use, change and pass on beside code of any licence.
_ALLOWED = re.compile(
    r"MIT|BSD|Apache|ISC|PSF|Python Software Foundation|MPL|Mozilla|HPND|Unlicense|CC0|zlib|CNRI", re.IGNORECASE
)
_HEAD = """# Licences

What lakeclip needs, what PyTorch's CUDA build needs besides, and what the site and the tests do, by the locks in
`requirements/`. Each package's own metadata says its licence; where it says nothing, the notes tell who does. `make
check` fails where a licence is not known, or is neither one that lets code be used, changed and passed on, nor in the
notes.

| Package | Licence | For |
|---|---|---|
"""


def main() -> None:
    """Write the page, or compare it with what is installed."""
    noted = tomli.loads((HERE / "licences.toml").read_text(encoding="utf-8"))
    installed, held = _installed(), _held()
    lines, notes, wrong = [], {}, []
    for name, used in sorted(_locked().items()):
        note = noted.get(name, {})
        licence = note.get("licence") or installed.get(name) or held.get(name, "")
        if "note" in note:
            notes[name] = note["note"]
        if not licence:
            wrong.append(f"{name}: its licence is not known; licences.toml")
        elif not _ALLOWED.search(licence) and "note" not in note:
            wrong.append(f"{name}: {licence}; licences.toml, if that may be")
        lines.append(f"| {name} | {licence} | {used} |\n")
    page = _HEAD + "".join(lines) + "\n" + "".join(f"- **{name}**: {note}\n" for name, note in notes.items())
    if "--write" in sys.argv:
        PAGE.write_text(page, encoding="utf-8")
    elif page != PAGE.read_text(encoding="utf-8"):
        wrong.append(f"{PAGE.name} is not what is installed: python requirements/licences.py --write")
    print("\n".join(f"licences: {line}" for line in wrong) or f"licences: {len(lines)} packages, all allowed")
    sys.exit(1 if wrong else 0)


def _locked() -> dict[str, str]:
    """What is locked, and what for."""
    found: dict[str, str] = {}
    for lock, used in _FOR.items():
        for name in re.findall(r"^([\w.-]+)==", (HERE / f"{lock}.lock").read_text(encoding="utf-8"), re.MULTILINE):
            found.setdefault(_normal(name), used)
    return found


def _installed() -> dict[str, str]:
    command = [sys.executable, "-m", "piplicenses", "--format=json", "--from=mixed", "--with-system"]
    listed = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return {_normal(one["Name"]): one["License"].strip() for one in listed if one["License"] != "UNKNOWN"}


def _held() -> dict[str, str]:
    """What the page says: another system or Python does not install all that is locked."""
    lines = PAGE.read_text(encoding="utf-8").splitlines() if PAGE.exists() else []
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return {row[0]: row[1] for row in rows[1:] if len(row) == 3}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
