"""Every benchmark figure in the README comes from a file in benchmarks/results, as benchmarks/figures.yaml says."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

_ROOT = Path(__file__).parents[2]
_BENCHMARKS = _ROOT / "benchmarks"
_PAGES = ("README.md", "benchmarks/README.md")

# A number that is not part of a name (ViT-B/32, R@10), of a size (640×480) or of a longer number.
_NUMBER = r"(?<![\w@/×.,\-])\d+(?:,\d{3})*(?:\.\d+)?(?!,?\d|\.\d|×\d)"
_UNITS = {
    "times": r"times(?! \d)|×(?! ?\d)",
    "%": "%",
    "s": r"s(?:econds)?\b",
}
_FIGURES = {
    unit: re.compile(rf"({_NUMBER}(?: ?(?:and|or|to|against|±|–) ?{_NUMBER})*) ?(?:{pattern})")
    for unit, pattern in _UNITS.items()
}
#: Headers of tables of results, and of the columns in them in which every number is a figure, with or without a unit.
_RESULTS = re.compile(r"ratio|times|^measured|faster|×", re.IGNORECASE)
_COLUMNS = re.compile(rf"lakeclip|open_clip|{_RESULTS.pattern}", re.IGNORECASE)


class Figure(NamedTuple):
    """A number on a page.

    Attributes:
        unit: times, % or s; None for a bare number in a table.
        context: the paragraph, or the table's header with the row.
    """

    page: str
    number: str
    unit: str | None
    context: str

    def rounds(self, value: float, unit: str) -> bool:
        """Return whether the number is this value, rounded to the digits that the page prints."""
        if self.unit not in (None, unit):
            return False
        digits = len(self.number.partition(".")[2])
        expected = 100 * value if unit == "%" else value
        return abs(float(self.number.replace(",", "")) - expected) <= 0.5 * 10**-digits + 1e-9


class Entry(NamedTuple):
    """A value in a result that a page may quote."""

    file: str
    value: str
    unit: str
    words: list[str]

    def covers(self, figure: Figure) -> bool:
        """Return whether the figure quotes this value."""
        return _has_words(figure.context, self.words) and figure.rounds(self.measured(), self.unit)

    def measured(self) -> float:
        """Read the value from the result."""
        found = _read(json.loads((_BENCHMARKS / "results" / self.file).read_text(encoding="utf-8")), self.value)
        return float(statistics.median(found) if isinstance(found, list) else found)


def _read(content: Any, path: str) -> Any:
    for key in path.split(" > "):
        if key.startswith("["):
            wanted = dict(pair.split("=") for pair in key[1:-1].split(", "))
            (content,) = (row for row in content if all(row[name] == value for name, value in wanted.items()))
        else:
            content = content[int(key) if isinstance(content, list) else key]
    return content


def _has_words(context: str, words: list[str]) -> bool:
    return all(any(option.lower() in context.lower() for option in word.split("|")) for word in words)


@cache
def _table() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((_BENCHMARKS / "figures.yaml").read_text(encoding="utf-8"))
    return content


def _entries() -> list[Entry]:
    return [Entry(file, **row) for file, rows in _table()["measured"].items() for row in rows]


def _blocks(page: str) -> Iterator[str]:
    """Yield the paragraphs and tables of a page without its code blocks and link targets."""
    text = (_ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    yield from re.split(r"\n\s*\n", re.sub(r"\]\([^)]*\)", "]", text))


def _in_text(page: str, context: str, text: str) -> Iterator[Figure]:
    for unit, pattern in _FIGURES.items():
        for match in pattern.finditer(text):
            for number in re.findall(_NUMBER, match[1]):
                yield Figure(page, number, unit, context)


def _figures(page: str) -> Iterator[Figure]:
    for block in _blocks(page):
        lines = block.strip().splitlines()
        if not lines or not lines[0].startswith("|"):
            text = " ".join(lines)
            # The page of the benchmarks has targets and settings in its text; its figures are in tables.
            if page == "README.md":
                yield from _in_text(page, text, text)
            continue
        header, _, *rows = ([cell.strip() for cell in line.strip("| ").split("|")] for line in lines)
        is_result = any(_RESULTS.search(title) for title in header)
        for row in rows:
            context = " | ".join([*header, *row])
            for title, cell in zip(header, row, strict=False):
                all_numbers = is_result and _COLUMNS.search(title) is not None
                if not all_numbers and page != "README.md":
                    continue
                with_unit = list(_in_text(page, context, cell))
                yield from with_unit
                if all_numbers:
                    bare = re.findall(_NUMBER, cell)
                    for figure in with_unit:
                        bare.remove(figure.number)
                    yield from (Figure(page, number, None, context) for number in bare)


@pytest.mark.parametrize("page", _PAGES)
def test_every_figure_is_from_a_result(page: str) -> None:
    not_measured = _table()["not_measured"] if page == "README.md" else []
    unknown = [
        figure
        for figure in _figures(page)
        if not any(entry.covers(figure) for entry in _entries())
        if not any(
            f"{figure.number}{figure.unit}" in exception["figures"] and _has_words(figure.context, exception["words"])
            for exception in not_measured
        )
    ]
    lines = "\n".join(f"{figure.number} {figure.unit or ''}: {figure.context[:200]}" for figure in unknown)
    assert not unknown, (
        f"{page} has {len(unknown)} figures that no file in benchmarks/results confirms. Correct them, or enter the "
        f"measured value (or the reason why there is none) in benchmarks/figures.yaml:\n{lines}"
    )


def test_every_measured_value_is_quoted() -> None:
    quoted = [figure for page in _PAGES for figure in _figures(page)]
    unquoted = [entry for entry in _entries() if not any(entry.covers(figure) for figure in quoted)]
    assert not unquoted, "benchmarks/figures.yaml lists values that no page quotes:\n" + "\n".join(
        f"{entry.file}, {entry.value}: {entry.measured():.4g} {entry.unit}, beside {entry.words}" for entry in unquoted
    )


def test_every_script_and_every_result_is_on_the_benchmarks_page() -> None:
    text = (_BENCHMARKS / "README.md").read_text(encoding="utf-8")
    files = [*_BENCHMARKS.glob("*.py"), *(_BENCHMARKS / "results").glob("*.json")]
    missing = [file.name for file in files if f"({file.relative_to(_BENCHMARKS)})" not in text]
    assert not missing, f"benchmarks/README.md does not link {', '.join(sorted(missing))}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ViT-B/32 is 2.1 times as fast, of RN50 1.6 and 1.4 times", ["2.1", "1.6", "1.4"]),
        ("photos of 640×480, 3.3× as many; R@10 of 8.9 ± 0.5%", ["3.3", "8.9", "0.5"]),
        ("50,000 times 50,000 need no large memory; 1,024.5 s", ["1,024.5"]),
        ("after 20 seconds and 81.6% after 98", ["81.6", "20"]),
    ],
)
def test_figures_are_recognized(text: str, expected: list[str]) -> None:
    assert [figure.number for figure in _in_text("README.md", text, text)] == expected
