"""Tests of imports: `import lakeclip` and `--help` import no heavy library, and packages import only lower layers."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import lakeclip
from lakeclip.cli.app import VERBS

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "deeplake", "lightning", "transformers", "matplotlib")


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def _imported(code: str) -> str:
    """Return the heavy libraries that a piece of code imports, even if it raises SystemExit."""
    found = f"print('heavy:', *(set(sys.modules) & set({HEAVY})))"
    result = _python(f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\n{found}")
    assert result.returncode == 0, result.stderr
    return result.stdout.rpartition("heavy:")[2].strip()


@pytest.mark.parametrize(
    "code",
    [
        "import lakeclip",
        "from lakeclip.config.load import read_recipe; read_recipe('small')",
        "from lakeclip.cli.app import main; main([])",
        "from lakeclip.cli.app import main; main(['--help'])",
        "from lakeclip.cli.app import main; main(['--version'])",
        "from lakeclip.cli.app import main; main(['weights'])",
        *(f"from lakeclip.cli.app import main; main(['{verb}', '--help'])" for verb in VERBS),
    ],
)
def test_imports_and_help_do_not_import_torch(code: str) -> None:
    assert _imported(code) == ""


def test_the_train_clip_commands_print_help_without_torch() -> None:
    for main in ("train_main", "finetune_main"):
        assert (
            _imported(f"import lakeclip.compat.train_clip_cli as cli; sys.argv = ['train', '--help']; cli.{main}()")
            == ""
        )


def test_command_line_errors_do_not_import_torch() -> None:
    assert _imported("from lakeclip.cli.app import main; main(['train', '--no-such-flag'])") == ""
    assert _imported("from lakeclip.cli.app import main; main(['train', '--recipe', 'no-such-recipe'])") == ""


def test_every_public_name_can_be_imported() -> None:
    assert sorted(lakeclip._HOME) == lakeclip.__all__
    for name in lakeclip.__all__:
        value, home = getattr(lakeclip, name), lakeclip._HOME[name]
        assert vars(import_module(home))[name] is value, name
        # Registries are dicts, which do not know their module.
        assert isinstance(value, dict) or value.__module__ == home, name
    assert set(lakeclip.__all__) <= set(dir(lakeclip))


def test_the_error_for_an_unknown_name_lists_the_public_ones() -> None:
    with pytest.raises(AttributeError, match="create_model"):
        _ = lakeclip.create_modle  # type: ignore[attr-defined]


def test_every_public_name_has_a_docstring() -> None:
    for name in lakeclip.__all__:
        assert (getattr(lakeclip, name).__doc__ or "").strip(), name


def test_import_contracts_hold() -> None:
    """Run import-linter with the contracts in pyproject.toml."""
    program = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run(
        [str(program), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stdout + result.stderr
