"""Write and check docs/reference/licences.md, the licences of the locked packages.

    .venv/bin/python requirements/licences.py           # part of `make check`: compare and check
    .venv/bin/python requirements/licences.py --write   # part of `make lock`

pip-licenses reads the licences from the metadata of the installed packages. `licences.toml` has those of packages that
Linux with Python 3.11 and PyTorch's CPU build does not install, and of packages whose metadata names none.
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
#: Lock → what it is for, the smallest lock first.
_PURPOSES = {"demo": "lakeclip", "cuda": "CUDA", "docs": "the site", "dev": "the tests", "peer": "the tests"}
#: Licences that allow use, modification and redistribution beside code of any licence.
_ALLOWED = re.compile(
    r"MIT|BSD|Apache|ISC|PSF|Python Software Foundation|MPL|Mozilla|HPND|Unlicense|CC0|zlib|CNRI", re.IGNORECASE
)
_HEAD = """# Licences

These are the packages in the locks in `requirements/`: those that lakeclip needs, those that PyTorch's CUDA build adds,
and those for the site and the tests. The licences come from the packages' own metadata; a note gives the source if the
metadata has none. `make check` fails if a licence is unknown, or if it neither allows use, modification and
redistribution nor has a note.

| Package | Licence | For |
|---|---|---|
"""


def main() -> None:
    """Write the page, or compare it with the installed packages and check the licences."""
    notes_file = tomli.loads((HERE / "licences.toml").read_text(encoding="utf-8"))
    installed, on_page = _installed(), _on_page()
    lines, notes, problems = [], {}, []
    for name, purpose in sorted(_locked().items()):
        note = notes_file.get(name, {})
        licence = note.get("licence") or installed.get(name) or on_page.get(name, "")
        if "note" in note:
            notes[name] = note["note"]
        if not licence:
            problems.append(f"{name}: unknown licence; add it to licences.toml")
        elif not _ALLOWED.search(licence) and "note" not in note:
            problems.append(
                f"{name}: {licence} is not among the allowed licences; if it is acceptable, add a note to licences.toml"
            )
        lines.append(f"| {name} | {licence} | {purpose} |\n")
    page = _HEAD + "".join(lines) + "\n" + "".join(f"- **{name}**: {note}\n" for name, note in notes.items())
    if "--write" in sys.argv:
        PAGE.write_text(page, encoding="utf-8")
    elif page != PAGE.read_text(encoding="utf-8"):
        problems.append(f"{PAGE.name} differs from the installed packages; run python requirements/licences.py --write")
    print("\n".join(f"licences: {line}" for line in problems) or f"licences: {len(lines)} packages, all allowed")
    sys.exit(1 if problems else 0)


def _locked() -> dict[str, str]:
    """Return every locked package and the purpose of its smallest lock."""
    purposes: dict[str, str] = {}
    for lock, purpose in _PURPOSES.items():
        for name in re.findall(r"^([\w.-]+)==", (HERE / f"{lock}.lock").read_text(encoding="utf-8"), re.MULTILINE):
            purposes.setdefault(_normalize(name), purpose)
    return purposes


def _installed() -> dict[str, str]:
    command = [sys.executable, "-m", "piplicenses", "--format=json", "--from=mixed", "--with-system"]
    listed = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return {_normalize(row["Name"]): row["License"].strip() for row in listed if row["License"] != "UNKNOWN"}


def _on_page() -> dict[str, str]:
    """Return the licences on the page, for locked packages that this system or Python does not install."""
    lines = PAGE.read_text(encoding="utf-8").splitlines() if PAGE.exists() else []
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return {row[0]: row[1] for row in rows[1:] if len(row) == 3}


def _normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
