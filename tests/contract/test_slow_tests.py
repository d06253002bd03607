"""The page that lists which tests only `make test-all` runs."""

from __future__ import annotations

import ast
import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/slow-tests.md"
HEAD = """# Slow tests

`make test` runs every test but these. They are marked `pytest.mark.slow`: they train for long, start several
processes or servers, or repeat on more cases what a quick test shows on one. `make test-all` runs them too, and so does
CI. To run one of them: `pytest -m slow FILE -k NAME`.

`SLOW_TESTS=write pytest tests/contract/test_slow_tests.py` writes this page.

| File | Tests |
| --- | --- |
"""


def slow_tests(path: Path) -> list[str]:
    """Return the names of a file's slow tests, and say where only some of a test's cases are slow."""
    names = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
            if "pytest.mark.slow" in decorators:
                names.append(f"`{node.name}`")
            elif any("pytest.mark.slow" in decorator for decorator in decorators):
                names.append(f"`{node.name}` (some cases)")
    return names


def test_the_page_lists_the_slow_tests() -> None:
    page = HEAD
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if names := slow_tests(path):
            page += f"| `{path.relative_to(ROOT).as_posix()}` | {'<br>'.join(names)} |\n"
    if os.environ.get("SLOW_TESTS") == "write":
        PAGE.write_text(page, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page, "run SLOW_TESTS=write pytest tests/contract/test_slow_tests.py"
