from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakeclip.lake.folder.captions import parse_captions


@pytest.mark.parametrize(
    ("data", "captions"),
    [
        (b"a cat\na dog\n", ("a cat", "a dog")),
        (b"\n  a cat \r\n\r\n\ta dog", ("a cat", "a dog")),
        ("\ufeffein Käfer\n".encode(), ("ein Käfer",)),
        ("ein Käfer".encode("latin-1"), ("ein Käfer",)),
        (b"\x93quoted\x94", ("“quoted”",)),
        ("猫\n犬".encode("utf-16"), ("猫", "犬")),
        ("one\u2028caption".encode(), ("one\u2028caption",)),
        (b"\n \n", ()),
        (b"", ()),
    ],
)
def test_one_caption_per_line_in_any_encoding(data: bytes, captions: tuple[str, ...]) -> None:
    assert parse_captions(data) == captions


@given(st.binary())
def test_any_bytes_can_be_decoded(data: bytes) -> None:
    assert all(caption.strip() for caption in parse_captions(data))
