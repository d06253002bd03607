"""The table of faults has a row for each fault, and each row a test that compares it with what is printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration import faults

TESTS = sorted(Path(faults.__file__).parent.glob("test_faults_*.py"))


def test_the_page_has_every_row_and_no_other() -> None:
    page = faults.PAGE.read_text(encoding="utf-8")
    assert page.startswith(faults.HEAD)
    assert [line.split(" | ")[0][2:] for line in page.removeprefix(faults.HEAD).splitlines()] == list(faults.FAULTS)


@pytest.mark.parametrize("fault", faults.FAULTS)
def test_every_row_is_recorded_by_a_test(fault: str) -> None:
    assert sum(path.read_text(encoding="utf-8").count(f'"{fault}"') for path in TESTS) == 1
