"""The table of formats in the documentation: every line of it is ingested as it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from lakeclip.cli.app import main
from lakeclip.ingestion.sources import Sample
from lakeclip.ingestion.sources.base import account_of
from lakeclip.ingestion.sources.open import open_sources
from lakeclip.ingestion.sources.registry import source_formats
from lakeclip.lake.dataset import open_lake
from tests.contract.snippets import ROOT
from tests.unit.lake.sample_files import picture, write_files

PAGE = ROOT / "docs/guides/formats.md"


class Line(NamedTuple):
    """A line of the table."""

    name: str
    source: str
    image: str
    file: str
    lines: list[str]
    captions: tuple[str, ...]


def table_lines() -> list[Line]:
    found = []
    for row in re.findall(r"^\| (?!data set|option|`--)(.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE):
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)]
        if len(cells) != 5:
            continue
        name, source, image, example, captions = cells
        *titles, _ = ["", *re.findall(r"^`([^`]*)`[^`]*(?:`[^`]*`[^`]*)*:<br>", example), ""]
        lines = [line.strip("`").replace("\\|", "|").replace("⇥", "\t") for line in example.split("<br>")]
        file = titles[-1] or source.strip("`")
        lines = lines[1:] if titles[-1] else lines
        found.append(Line(name, source.strip("`"), image.strip("`"), file, lines, tuple(captions.split(" · "))))
    return found


LINES = table_lines()


@pytest.mark.parametrize("line", LINES, ids=[line.name for line in LINES])
def test_every_line_is_read_as_it_says(line: Line, tmp_path: Path) -> None:
    write_files(tmp_path, {line.file: "\n".join(line.lines) + "\n"})
    if line.image:
        write_files(tmp_path, {line.image: picture()})
    assert len(line.lines) + (line.file != line.source) == 3
    (source,) = open_sources([str(tmp_path / line.source)])
    samples = [item for item in source if isinstance(item, Sample)]
    account_of(source).check(line.name)
    assert samples[0].captions == line.captions
    assert (samples[0].image, samples[0].url) == ((picture(), "") if line.image else (b"", "https://example.org/1.jpg"))


def test_the_table_has_the_formats_that_people_have() -> None:
    names = " ".join(line.name for line in LINES)
    assert all(
        word in names for word in ("COCO", "Karpathy", "Flickr8k", "Flickr30k", "CC3M", "LLaVA", "ROCO", "Kaggle")
    )
    page = PAGE.read_text(encoding="utf-8")
    assert {known.name for known in source_formats()} == {
        *("lake", "image folder", "folder", "webdataset", "annotations", "caption list", "table")
    }, "a new format belongs on the page"
    assert "WebDataset" in page


def test_a_line_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = next(line for line in LINES if line.name.startswith("COCO"))
    write_files(tmp_path, {line.file: "\n".join(line.lines), line.image: picture()})
    main(["ingest", f"{tmp_path}/{line.source}", f"{tmp_path}/lake"])
    assert open_lake(f"{tmp_path}/lake").read([0])[0].captions == line.captions
    assert "COCO captions" in capsys.readouterr().out
