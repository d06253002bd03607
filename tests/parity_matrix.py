"""The matrix of docs/reference/parity.md: how far features are from those of the library that wrote the weights.

`make parity` writes the page. It runs the same tests with PARITY=write, in the second environment, one after the other.
"""

from __future__ import annotations

import os
import re
from importlib.metadata import version
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs/reference/parity.md"
#: Largest difference of a feature that a test accepts.
TOLERANCE = 1e-5
HEAD = """# Parity with other libraries

Each row is a model with random weights, which the library made and wrote. *Read*: its folder is read by lakeclip, and
both compute the features of random images and texts in float32. *Written*: lakeclip writes the model for the library,
and the library reads it. The figures are the largest differences of any feature of an image or a text; {tolerance} is
allowed. The sizes are small, and the ratios are those of the models named. Tests repeat every row; `make parity` writes
the page.

| library | model | read | written |
|---|---|---:|---:|
"""


def check_row(library: str, model: str, *, read: float, written: float) -> None:
    """Compare the differences of a model with what is allowed and with the page, or write them there if PARITY=write.

    Args:
        library: name of the package that wrote the weights.
        model: what is special about the model.
        read: largest difference after lakeclip has read the library's model.
        written: largest difference after the library has read lakeclip's.
    """
    assert read <= TOLERANCE
    assert written <= TOLERANCE
    rows = _rows()
    if os.environ.get("PARITY") == "write":
        named = f"{library} {version(library)}"
        rows[library, model] = f"| {named} | {model} | {_shown(read)} | {_shown(written)} |"
        lines = [rows[key] for key in sorted(rows, key=lambda key: key[0])]  # in a library, in the order of the tests
        PAGE.write_text(HEAD.format(tolerance=TOLERANCE) + "\n".join(lines) + "\n", encoding="utf-8")
    assert (library, model) in rows, "docs/reference/parity.md has fallen behind: make parity"


def _shown(difference: float) -> str:
    return f"{difference:.0e}" if difference else "0"


def _rows() -> dict[tuple[str, str], str]:
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    return {(row[1], row[2]): row[0] for row in re.finditer(r"^\| (\w+) [\d.]+\S* \| (.+?) \| .*$", text, re.M)}
