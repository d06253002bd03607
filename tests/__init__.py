"""Tests. In pytest's processes, annotations of arrays become checks of every call, before lakeclip is imported."""

import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]

# Not in the processes that tests start: they are to be as fast as a user's, and to compile what a user's can.
if "pytest" in sys.modules:
    from jaxtyping import install_import_hook

    # Shapes and dtypes are checked in the modules that state them; mypy checks other types.
    install_import_hook(
        [
            ".".join(file.relative_to(_ROOT).with_suffix("").parts)
            for file in sorted((_ROOT / "lakeclip").rglob("*.py"))
            if "from jaxtyping import" in file.read_text(encoding="utf-8")
        ],
        "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
    )
