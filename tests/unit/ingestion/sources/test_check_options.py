"""Options for sources: values that no source could use are refused before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from lakeclip.errors import ConfigError, SourceError
from lakeclip.ingestion.sources import SourceOptions, register_source, unregister_source
from lakeclip.ingestion.sources.check_options import check_options, parse_delimiter
from lakeclip.ingestion.sources.open import open_sources
from tests.unit.lake.sample_files import write_files


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"encoding": "utf-9"}, "utf-9"),
        ({"encoding": "base64"}, "not a text encoding"),
        ({"encoding": "undefined"}, ""),
        ({"delimiter": ",;"}, "2 characters"),
        ({"delimiter": ""}, "0 characters"),
        ({"delimiter": '"'}, "a quote"),
        ({"image_root": "/nowhere/at/all"}, "nothing at this path"),
        ({"image_root": __file__}, "a file"),
        ({"caption_template": "a {label"}, "expected '}'"),
        ({"caption_template": "a label"}, "names no column"),
        ({"caption_template": "a {}"}, "without a name"),
        ({"caption_template": "a {0}"}, "without a name"),
        ({"caption_columns": ("text", " ")}, ""),
    ],
)
def test_values_that_cannot_be(options: dict[str, object], found: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_options(SourceOptions((), **options))  # type: ignore[arg-type]
    assert found in caught.value.found
    assert caught.value.allowed


@pytest.mark.parametrize(
    "options",
    [
        {"encoding": "GB18030"},
        {"encoding": "Windows-1251"},
        {"delimiter": "|"},
        {"caption_template": "a {label}, {price:.2f} {{sic}}"},
        {"image_root": "/"},
    ],
)
def test_values_that_can_be(options: dict[str, str]) -> None:
    check_options(SourceOptions((), **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("written", "separator"), [("tab", "\t"), ("\\t", "\t"), ("\t", "\t"), ("|", "|"), ("| ", "|"), (" ", " ")]
)
def test_delimiters(written: str, separator: str) -> None:
    assert parse_delimiter(written) == separator


def test_options_reach_the_format_and_are_refused_where_none_applies(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.npz": b"x"})
    seen: list[SourceOptions] = []

    @register_source("npz", "arrays", suffixes=[".npz"], has_columns=True, options=("encoding", "delimiter"))
    def open_npz(paths: object, options: SourceOptions) -> list[object]:
        seen.append(options)
        return []

    try:
        open_sources([f"{tmp_path}/a.npz"], caption_column=["a", "b"], delimiter="tab", encoding="gbk")
        open_sources([f"{tmp_path}/a.npz"], caption_column="a", caption_template="a {b}")
        with pytest.raises(SourceError, match="--image-root does not apply to"):
            open_sources([f"{tmp_path}/a.npz"], image_root=str(tmp_path))
    finally:
        unregister_source("npz")
    assert (seen[0].caption_columns, seen[0].delimiter, seen[0].encoding) == (("a", "b"), "\t", "gbk")
    assert seen[0].caption_column == "a"
    assert (seen[1].caption_columns, seen[1].caption_template) == (("a",), "a {b}")
