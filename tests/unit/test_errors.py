"""Tests that error messages contain no control characters and no markup."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakeclip.cli.output import plain, save
from lakeclip.errors import LakeclipError, escape_surrogates, printable
from lakeclip.report.page import write_page

#: Escape sequences that clear the screen, rename the window, reverse the text direction, and overwrite the line.
MALICIOUS = "a\x1b[2Jb\x1b]0;title\x07c\u202ed\re\x9b31mf"


def test_errors_contain_no_control_characters() -> None:
    error = LakeclipError(f"what {MALICIOUS}", found=f"one\n  two {MALICIOUS}", allowed=MALICIOUS, next_step=MALICIOUS)
    assert all(char.isprintable() or char == "\n" for char in str(error))
    assert "one\n  two a" in str(error)


@given(st.text())
def test_printable_characters_are_kept(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) == len(text)
    assert all(after == before for after, before in zip(shown, text, strict=True) if before.isprintable())


def test_markup_in_data_is_escaped() -> None:
    assert plain(f"[red]x[/red] {MALICIOUS}") == r"\[red]x\[/red] a [2Jb ]0;title c d e 31mf"


@pytest.mark.parametrize(
    ("name", "written"),
    [
        (os.fsdecode(b"caf\xe9.jpg"), r"caf\xe9.jpg"),
        (os.fsdecode("日本.jpg".encode("shift_jis")), r"\x93\xfa\x96{.jpg"),
        ("half \ud83d of an emoji", r"half \ud83d of an emoji"),
        ("café.jpg", "café.jpg"),
        ("plain.jpg", "plain.jpg"),
    ],
)
def test_names_that_are_not_utf_8_are_written_escaped(tmp_path: Path, name: str, written: str) -> None:
    """In messages, in JSON, in pages and in the list of unusable rows, which is read again."""
    assert printable(name) == escape_surrogates(name) == written
    assert str(LakeclipError(f"cannot read {name}")) == f"cannot read {written}"
    save(tmp_path / "report.json", {"files": [{"key": name}], name: (name,)})
    assert json.loads((tmp_path / "report.json").read_text()) == {"files": [{"key": written}], written: [written]}
    assert write_page(tmp_path / "page.html", f"<p>{name}").read_text() == f"<p>{written}"
