"""What an error may show: words, on as many lines as it has, and nothing that a terminal would obey."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lakeclip.cli.output import plain
from lakeclip.errors import LakeclipError, printable

#: Clears the screen, names the window, turns the line round, goes back over what was written.
EVIL = "a\x1b[2Jb\x1b]0;title\x07c\u202ed\re\x9b31mf"


def test_an_error_moves_no_terminal() -> None:
    error = LakeclipError(f"what {EVIL}", found=f"one\n  two {EVIL}", allowed=EVIL, next_step=EVIL)
    assert all(letter.isprintable() or letter == "\n" for letter in str(error))
    assert "one\n  two a" in str(error)


@given(st.text())
def test_what_is_printable_stays(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) == len(text)
    assert all(one == two for one, two in zip(shown, text, strict=True) if two.isprintable())


def test_no_markup_of_datas_reaches_the_screen() -> None:
    assert plain(f"[red]x[/red] {EVIL}") == r"\[red]x\[/red] a [2Jb ]0;title c d e 31mf"
