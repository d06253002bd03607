"""Tests of the tokenizer against open_clip's. They run in the second environment.

`python -m tests.parity.test_tokenizer_open_clip` writes the golden ids of the unit tests.
"""

from __future__ import annotations

import json
import random
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lakeclip.text.tokenizer import Tokenizer

open_clip = pytest.importorskip("open_clip")

GOLDEN = Path(__file__).parents[1] / "unit" / "text" / "golden_ids.json"

WHITESPACE = " \t\n\r\v\f\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2003\u2028\u2029\u200b\u202f\u205f\u3000\ufeff"

_LINES = (
    "it's DON'T we'LL I'd've o'clock 's ''s 'ſ rock'n'roll &amp; &lt;b&gt; &amp;amp;lt; &nbsp;",
    "&#128512; &#x1F600; &eacute &notit; &AMP; &; & AT&T <|endoftext|> <|startoftext|>",
    "<start_of_text> <END_OF_TEXT> x<end_of_text>y !<end_of_text> </w> <br/> 😀 👨‍👩‍👧 🇫🇷 👍🏽 café",
    "cafe\u0301 CAFÉ ΑΣ ΣΑΣ ὈΔΥΣΣΕΎΣ İstanbul ıI straße ß ﬁne ﬃ ＦＵＬＬ “quoted” ‘single’ â€™ Ã©",
    "schÃ¶n 日本語 中文字 한국어 العربية हिन्दी ไทย עברית ქართული አማርኛ 123 3.14 1,000 ٣ Ⅷ ² ½ _a_b",
    "http://x.y/z?a=b&c=d a@b.c #tag \x1b[31mred \x00 \ud800 \u0378 \ufffd ... !!! - -- — ‥ … $5 €9",
    '50% C++ .NET (photo) [sic] {x} "double" \\ / * ~ ` ^ |',
)
FRAGMENTS = [word for line in _LINES for word in line.split(" ")]

CAPTIONS = [
    "",
    " ",
    "a photo of a dog",
    "A Photo of the Large Dog.",
    "Two young guys with shaggy hair look at their hands while hanging out in the yard .",
    "antidisestablishmentarianism supercalifragilisticexpialidocious",
    "word " * 100,
    "a" * 10_000,
    "é" * 1_000,
    "x " * 5_000,
    *FRAGMENTS,
    *(f"a{space}b" for space in WHITESPACE),
    *("".join(FRAGMENTS[n : n + 7]) for n in range(0, len(FRAGMENTS), 7)),
    *(" ".join(FRAGMENTS[n : n + 9]) for n in range(0, len(FRAGMENTS), 9)),
]


@pytest.fixture(scope="module")
def theirs():
    return open_clip.SimpleTokenizer()


def test_the_golden_ids_equal_open_clips(theirs):
    assert json.loads(GOLDEN.read_text()) == golden(theirs)


@pytest.mark.parametrize("context_length", [77, 16, 2])
def test_padded_ids_are_equal(theirs, context_length):
    ours = Tokenizer(context_length)(CAPTIONS)
    assert ours.equal(theirs(CAPTIONS, context_length=context_length))


def test_every_code_point_alone_and_with_neighbours(theirs):
    """Tokenize all assigned code points of Unicode, half of them with neighbours, and the surrogates."""
    ours = Tokenizer()
    points = [chr(point) for point in range(sys.maxunicode + 1) if unicodedata.category(chr(point)) not in ("Cn", "Co")]
    for start in range(0, len(points), 64):
        block = points[start : start + 64]
        text = " ".join(block[:32]) + "b".join(block[32:])
        assert ours.encode(text) == theirs.encode(text), repr(text)


def test_a_random_corpus(theirs):
    ours = Tokenizer()
    draw = random.Random(0)
    for _ in range(10_000):
        text = "".join(draw.choice(FRAGMENTS) + draw.choice(WHITESPACE + "    ") for _ in range(draw.randrange(10)))
        assert ours.encode(text) == theirs.encode(text), repr(text)
    for _ in range(10_000):
        text = "".join(chr(draw.randrange(32, 127)) for _ in range(draw.randrange(80)))
        assert ours.encode(text) == theirs.encode(text), repr(text)


@settings(max_examples=1_000)
@given(st.text(max_size=60))
def test_any_text(text):
    assert Tokenizer().encode(text) == _theirs().encode(text)


def golden(theirs) -> list[list[object]]:
    """Return captions with open_clip's ids, truncated as there, without the padding."""
    captions = [caption for caption in dict.fromkeys(CAPTIONS) if len(caption) < 1_000]
    lengths = [min(len(theirs.encode(caption)) + 2, 77) for caption in captions]
    return [
        [caption, row[:length]]
        for caption, row, length in zip(captions, theirs(captions).tolist(), lengths, strict=True)
    ]


_cached = []


def _theirs():
    if not _cached:
        _cached.append(open_clip.SimpleTokenizer())
    return _cached[0]


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(pair) for pair in golden(_theirs()))
    GOLDEN.write_text(f"[\n{lines}\n]\n")
