"""Tests. Before lakeclip is imported, its annotations of arrays become checks of every call."""

from pathlib import Path

from jaxtyping import install_import_hook

_ROOT = Path(__file__).parents[1]

# Shapes and dtypes are checked in the modules that state them; mypy checks other types.
install_import_hook(
    [
        ".".join(file.relative_to(_ROOT).with_suffix("").parts)
        for file in sorted((_ROOT / "lakeclip").rglob("*.py"))
        if "from jaxtyping import" in file.read_text(encoding="utf-8")
    ],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)
