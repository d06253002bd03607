"""What an import costs and where it may lead: quick doors, and data that walks one way through the house."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lakeclip
from lakeclip.cli.app import VERBS

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "deeplake", "lightning", "transformers", "matplotlib")


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def _imported(code: str) -> str:
    """What of the heavy libraries a piece of code leaves imported, whether it ends by itself or exits."""
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
        *(f"from lakeclip.cli.app import main; main(['{verb}', '--help'])" for verb in VERBS),
    ],
)
def test_a_question_is_answered_without_torch(code: str) -> None:
    assert _imported(code) == ""


def test_the_seed_s_doors_answer_without_torch() -> None:
    for door in ("train_main", "finetune_main"):
        assert _imported(f"import lakeclip.cli.seed as seed; sys.argv = ['door', '--help']; seed.{door}()") == ""


def test_a_mistake_on_the_command_line_is_answered_without_torch() -> None:
    assert _imported("from lakeclip.cli.app import main; main(['train', '--no-such-flag'])") == ""
    assert _imported("from lakeclip.cli.app import main; main(['train', '--recipe', 'no-such-recipe'])") == ""


def test_every_public_name_is_there() -> None:
    assert sorted(lakeclip._HOME) == lakeclip.__all__
    for name in lakeclip.__all__:
        assert getattr(lakeclip, name).__module__ == lakeclip._HOME[name], name
    assert set(lakeclip.__all__) <= set(dir(lakeclip))


def test_a_name_that_is_not_there_gets_those_that_are() -> None:
    with pytest.raises(AttributeError, match="create_model"):
        _ = lakeclip.create_modle  # type: ignore[attr-defined]


def test_every_public_name_explains_itself() -> None:
    for name in lakeclip.__all__:
        assert (getattr(lakeclip, name).__doc__ or "").strip(), name


def test_imports_flow_one_way() -> None:
    """The contracts are in pyproject.toml."""
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
