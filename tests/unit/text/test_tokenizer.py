"""Tests of the tokenizer: golden ids from open_clip, and properties that hold for any text."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from lakeclip.errors import DataError
from lakeclip.text import tokenizer as module
from lakeclip.text.tokenizer import MERGES_SHA256, Tokenizer, tokenize, trim_padding

GOLDEN = json.loads(Path(__file__).with_name("golden_ids.json").read_text())


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer()


def test_ids_equal_open_clips(tokenizer):
    for (caption, expected), row in zip(GOLDEN, tokenizer([text for text, _ in GOLDEN]).tolist(), strict=True):
        assert row == expected + [0] * (77 - len(expected)), repr(caption)


@given(st.text())
@example("a" * 10_000)
@example("\ud800 lone surrogate")
def test_any_text_is_tokenized(text):
    ids = Tokenizer()(text)
    assert ids.shape == (1, 77)
    assert ids.dtype == torch.int64
    end = int(ids[0].argmax())
    assert ids[0, 0] == 49406
    assert ids[0, end] == 49407
    assert not ids[0, end + 1 :].any() or "<end_of_text>" in text.lower()


@given(st.text(), st.integers(2, 100))
def test_truncation_keeps_the_end_of_text(text, context_length):
    full = Tokenizer().encode(text)
    ids = Tokenizer(context_length)([text])[0]
    assert ids[: len(full) + 2].tolist() == [49406, *full[: context_length - 2], 49407]


def test_a_caption_over_77_tokens_is_truncated(tokenizer):
    ids = tokenizer(["word " * 500])
    assert ids.shape == (1, 77)
    assert ids[0, 76] == tokenizer.eot_token


@given(st.lists(st.sampled_from(["a", "Dog's", "ΑΣ", "x<end_of_text>", "&amp", "日本", "!!", "İ", "\x85"]), max_size=6))
def test_the_cache_does_not_change_ids(words):
    text = " ".join(words)
    first = Tokenizer().encode(text)
    assert Tokenizer().encode(text) == first
    module._chunk_cache().clear()
    assert Tokenizer().encode(text) == first


def test_the_cache_is_bounded(monkeypatch, tokenizer):
    monkeypatch.setattr(module, "_CACHED_CHUNKS", 10)
    module._chunk_cache().clear()
    tokenizer([f"w{n}" for n in range(100)] + ["long" * 100])
    assert len(module._chunk_cache()) <= 10


@given(st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="&<")))
def test_decode_inverts_encode(text):
    tokenizer = Tokenizer()
    decoded = tokenizer.decode(tokenizer([text])[0]) if len(tokenizer.encode(text)) < 76 else ""
    assert decoded.replace(" ", "") == (text.lower() if decoded else "")


def test_decode(tokenizer):
    assert tokenizer.decode(tokenizer("A photo, of a café 😀")[0]) == "a photo , of a café 😀"
    assert tokenizer.decode([]) == ""
    assert tokenizer.decode([320]) == "a"


def test_tokenize_accepts_one_caption_and_none():
    assert tokenize("a dog").equal(tokenize(["a dog"]))
    assert tokenize(["a dog"], context_length=5).shape == (1, 5)
    assert tokenize([]).shape == (0, 77)


@pytest.mark.parametrize("texts", [None, 5, b"bytes", {"a": 1}, [None], ["fine", 3], ("a", b"b"), [["a"]]])
def test_captions_that_are_not_text_raise(texts):
    with pytest.raises(TypeError):
        tokenize(texts)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (None, "not None"),
        (5, "not int 5"),
        (b"bytes", "not bytes b'bytes'"),
        (["a", None], "number 1 is None"),
        ([3.5], "number 0 is float 3.5"),
    ],
)
def test_the_error_shows_the_wrong_value(texts, message):
    with pytest.raises(TypeError, match=message):
        module._as_captions(texts)


def test_a_context_length_of_one_raises():
    with pytest.raises(ValueError, match="at least 2"):
        Tokenizer(1)


def test_trim_padding_keeps_the_longest_caption(tokenizer):
    ids = tokenizer(["a", "a photo of a dog", ""])
    trimmed = trim_padding(ids)
    assert trimmed.shape == (3, 7)
    assert trimmed.equal(ids[:, :7])
    assert trim_padding(tokenizer(["word " * 100])).shape == (1, 77)
    assert trim_padding(ids[:0]).shape == (0, 77)


def test_the_pickle_is_small_and_equal(tokenizer):
    data = pickle.dumps(Tokenizer(20))
    assert len(data) < 200
    copy = pickle.loads(data)
    assert copy(["a dog"]).equal(Tokenizer(20)(["a dog"]))
    assert (copy.vocab_size, copy.sot_token, copy.eot_token) == (49408, 49406, 49407)
    assert copy.fingerprint == MERGES_SHA256


@pytest.mark.parametrize("damage", ["missing", "truncated", "other text", "not gzip"])
def test_a_damaged_merges_table_raises(tmp_path, damage):
    file = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    content = module.MERGES_FILE.read_bytes()
    if damage != "missing":
        contents = {"truncated": content[:1000], "other text": gzip.compress(b"i n\n"), "not gzip": b"text"}
        file.write_bytes(contents[damage])
    with pytest.raises(DataError, match="merges table") as error:
        module._read_merges(file)
    assert "reinstall" in error.value.next_step


def test_the_licence_is_beside_the_table():
    assert "Copyright (c) 2021 OpenAI" in module.MERGES_FILE.with_name("bpe_simple_vocab_16e6.LICENSE").read_text()
