"""Tests of `HuggingFaceTokenizer`."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BatchEncoding, PreTrainedTokenizerFast

from lakeclip.errors import ConfigError
from lakeclip.text.huggingface import FixedLengthTokenizer, HuggingFaceTokenizer, file_bytes


def word_tokenizer(**options) -> PreTrainedTokenizerFast:
    """Build a small tokenizer without a download."""
    words = ["[PAD]", "[UNK]", "a", "photo", "of", "dog", "cat"]
    rust = RustTokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    rust.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=rust, unk_token="[UNK]", **options)


def test_pads_to_the_longest_caption_and_truncates_at_the_limit():
    tokenize = HuggingFaceTokenizer(word_tokenizer(pad_token="[PAD]", model_max_length=4))
    encoding = tokenize(("a dog", "a photo of a cat"))
    assert isinstance(encoding, BatchEncoding)
    assert encoding["input_ids"].tolist() == [[2, 5, 0, 0], [2, 3, 4, 2]]
    assert encoding["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert encoding["input_ids"].dtype == torch.int64


def test_a_tokenizer_without_a_limit_gets_one():
    """Use a tokenizer whose `model_max_length` is 1e30, as for many."""
    tokenizer = word_tokenizer(pad_token="[PAD]")
    assert tokenizer.model_max_length > 1e20
    assert HuggingFaceTokenizer(tokenizer)(["a " * 2_000])["input_ids"].shape == (1, 512)
    assert HuggingFaceTokenizer(tokenizer, max_length=7)(["a " * 2_000])["input_ids"].shape == (1, 7)


def test_tokenizer_and_encoding_can_be_pickled():
    tokenize = pickle.loads(pickle.dumps(HuggingFaceTokenizer(word_tokenizer(pad_token="[PAD]"))))
    encoding = pickle.loads(pickle.dumps(tokenize(["a dog"])))
    assert encoding["input_ids"].tolist() == [[2, 5]]
    assert encoding.to("cpu")["input_ids"].shape == (1, 2)


def test_a_missing_padding_token_raises_with_a_next_step():
    with pytest.raises(ConfigError, match="no padding token") as error:
        HuggingFaceTokenizer(word_tokenizer())
    assert "pad_token" in error.value.next_step


def test_ids_of_a_fixed_length_fill_the_context():
    tokenize = FixedLengthTokenizer(word_tokenizer(pad_token="[PAD]"), max_length=4)
    for used in (tokenize, pickle.loads(pickle.dumps(tokenize))):
        ids = used(("a dog", "a photo of a cat"))
        assert ids.tolist() == [[2, 5, 0, 0], [2, 3, 4, 2]]
        assert ids.dtype == torch.int64
    again = FixedLengthTokenizer.from_files(tokenize.files(), 4)
    assert isinstance(again, FixedLengthTokenizer)
    assert again(["dog"]).tolist() == [[5, 0, 0, 0]]


@pytest.mark.parametrize(
    "content", [b"", b"text\r\n", "é".encode(), b"\xf8\x00\n", b"data:application/octet-stream;base64,AA"]
)
def test_files_that_are_no_text_are_kept(content, monkeypatch):
    """Sentencepiece models are binary files; a checkpoint keeps all files as text."""
    tokenizer = word_tokenizer(pad_token="[PAD]")
    save = tokenizer.save_pretrained

    def save_more(folder):
        save(folder)
        (Path(folder) / "spiece.model").write_bytes(content)

    monkeypatch.setattr(tokenizer, "save_pretrained", save_more)
    files = HuggingFaceTokenizer(tokenizer).files()
    assert all(isinstance(text, str) for text in files.values())
    assert file_bytes(files["spiece.model"]) == content
    again = HuggingFaceTokenizer.from_files(files, 7)
    assert again(["a dog"])["input_ids"].tolist() == [[2, 5]]


def test_a_sentencepiece_tokenizer_is_rebuilt_from_its_files(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    from transformers import SiglipTokenizer

    (tmp_path / "words.txt").write_text(
        "\n".join(f"a photo of a {colour} table" for colour in ("red", "blue", "green"))
    )
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "words.txt"),
        model_prefix=str(tmp_path / "x"),
        vocab_size=40,
        pad_id=-1,
        bos_id=-1,
        hard_vocab_limit=False,
    )
    tokenize = FixedLengthTokenizer(SiglipTokenizer(str(tmp_path / "x.model")), 8)
    again = FixedLengthTokenizer.from_files(tokenize.files(), 8)
    assert again(["a RED table!"]).equal(tokenize(["a red table"]))
