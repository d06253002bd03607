"""Hugging Face tokenizers as a `Tokenize`."""

from __future__ import annotations

import pickle

import pytest
import torch
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BatchEncoding, PreTrainedTokenizerFast

from lakeclip.errors import ConfigError
from lakeclip.text.huggingface import HuggingFaceTokenizer


def word_tokenizer(**options) -> PreTrainedTokenizerFast:
    """A real one, made here: no download."""
    words = ["[PAD]", "[UNK]", "a", "photo", "of", "dog", "cat"]
    rust = RustTokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    rust.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=rust, unk_token="[UNK]", **options)


def test_pads_to_the_longest_and_cuts_at_the_limit():
    """Defect 25: the Hugging Face tokenizer path could not run."""
    tokenize = HuggingFaceTokenizer(word_tokenizer(pad_token="[PAD]", model_max_length=4))
    encoding = tokenize(("a dog", "a photo of a cat"))
    assert isinstance(encoding, BatchEncoding)
    assert encoding["input_ids"].tolist() == [[2, 5, 0, 0], [2, 3, 4, 2]]
    assert encoding["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert encoding["input_ids"].dtype == torch.int64


def test_a_tokenizer_that_knows_no_limit_gets_one():
    """Defect 25: `model_max_length` is 1e30 for many tokenizers."""
    tokenizer = word_tokenizer(pad_token="[PAD]")
    assert tokenizer.model_max_length > 1e20
    assert HuggingFaceTokenizer(tokenizer)(["a " * 2_000])["input_ids"].shape == (1, 512)
    assert HuggingFaceTokenizer(tokenizer, max_length=7)(["a " * 2_000])["input_ids"].shape == (1, 7)


def test_travels_between_processes():
    tokenize = pickle.loads(pickle.dumps(HuggingFaceTokenizer(word_tokenizer(pad_token="[PAD]"))))
    encoding = pickle.loads(pickle.dumps(tokenize(["a dog"])))
    assert encoding["input_ids"].tolist() == [[2, 5]]
    assert encoding.to("cpu")["input_ids"].shape == (1, 2)


def test_without_a_padding_token_the_way_out_is_named():
    with pytest.raises(ConfigError, match="no padding token") as error:
        HuggingFaceTokenizer(word_tokenizer())
    assert "pad_token" in error.value.next_step
