"""Captions in cells and JSON values."""

from __future__ import annotations

import json
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lakeclip.ingestion.sources.caption_values import CaptionReader, captions_in


@pytest.mark.parametrize(
    ("value", "captions"),
    [
        ("a cat", ("a cat",)),
        (" ", ()),
        (None, ()),
        (1984, ("1984",)),
        (1984.0, ("1984",)),
        (0.5, ("0.5",)),
        (math.nan, ()),
        (True, ()),
        ('["A red thing.", "It is red."]', ("A red thing.", "It is red.")),
        ("['A red thing.', 'It is red.']", ("A red thing.", "It is red.")),
        ("""['It\\'s green', "it's it"]""", ("It's green", "it's it")),
        ("['A red thing.' 'It is red.'\n \"it's\"]", ("A red thing.", "It is red.", "it's")),
        ("array(['a', 'b'], dtype=object)", ("a", "b")),
        ("('a', 'b')", ("a", "b")),
        ("['a', None, nan]", ("a",)),
        ("[{'caption': 'a', 'id': 1}, {'caption': 'b'}]", ("a", "b")),
        ('{"caption": "a"}', ("a",)),
        ("[]", ()),
        ("[null]", ()),
        ("[1984]", ("[1984]",)),
        ("[photo of a cat]", ("[photo of a cat]",)),
        ("[a] cat and [b]", ("[a] cat and [b]",)),
        ("('quoted')", ("('quoted')",)),
        ("(a red thing)", ("(a red thing)",)),
        ("{curly}", ("{curly}",)),
        ("['a' ... 'b']", ("['a' ... 'b']",)),
        ("['a'.upper()]", ("['a'.upper()]",)),
        (["a", None, "", 7], ("a", "7")),
        (["[a]", "b"], ("[a]", "b")),
        ([{"text": "a"}, {"Caption": "b"}, {"id": 3}], ("a", "b")),
        ({"raw": "a", "tokens": ["a"]}, ("a",)),
        ([["a"], ["b", ["c"]]], ("a", "b", "c")),
        (b"a cat", ("a cat",)),
    ],
)
def test_captions_in_a_value(value: object, captions: tuple[str, ...]) -> None:
    assert captions_in(value) == captions


_TEXTS = st.lists(st.text(st.characters(blacklist_categories=("Cs",)), max_size=20), max_size=5)


@given(_TEXTS, st.sampled_from([json.dumps, repr, lambda texts: json.dumps(texts, ensure_ascii=False)]))
@settings(max_examples=300)
def test_lists_survive_in_a_cell(texts: list[str], write: object) -> None:
    assert callable(write)
    assert captions_in(write(texts)) == tuple(text.strip() for text in texts if text.strip())


@given(st.text(alphabet="[](){}'\"\\,ab1 \n:#", max_size=40))
@settings(max_examples=300)
def test_any_text_gives_captions(text: str) -> None:
    assert all(caption == caption.strip() != "" for caption in captions_in(text))
    assert captions_in(text) or text.strip()[:1] in ("", "[", "{", "(")


def test_hostile_lists_take_no_time() -> None:
    start = time.process_time()  # not by the clock: the machine may be busy
    for text in ("[" * 100_000 + "]" * 100_000, "{" * 90_000 + "}" * 90_000, "[" + "'a'," * 49_000 + "]"):
        assert captions_in(text)
    assert time.process_time() - start < 20, "minutes, if the time grows with the square of the length"


def test_several_columns_give_several_captions() -> None:
    reader = CaptionReader(["first", "second"])
    assert reader.read({"first": "a cat", "second": '["b", "a cat"]', "third": "x"}) == ("a cat", "b")
    assert reader.read({"second": None}) == ()


@pytest.mark.parametrize(
    ("template", "values", "captions"),
    [
        ("{brand} {name}", {"brand": "Acme", "name": "chair"}, ("Acme chair",)),
        ("{brand} {name}", {"brand": None, "name": "chair"}, ("chair",)),
        ("{brand} {name}", {"brand": None, "name": ""}, ()),
        ("a photo of {tags}", {"tags": ["red", "blue"]}, ("a photo of red, blue",)),
        ("photo: {caption}", {"caption": "['a', 'b']"}, ("photo: a", "photo: b")),
        ("{price:.2f} euro", {"price": 3}, ("3.00 euro",)),
        ("{price:.2f} euro", {"price": "three"}, ("three euro",)),
        ("{meta.brand} chair", {"meta": {"brand": "Acme"}}, ("Acme chair",)),
        ("{{x}} {name}", {"name": "a"}, ("{x} a",)),
    ],
)
def test_captions_from_a_template(template: str, values: dict[str, object], captions: tuple[str, ...]) -> None:
    assert CaptionReader(["caption"], template).read(values) == captions
