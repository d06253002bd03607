"""Test which tokenizer a folder of transformers has, and that one which does not fit is refused."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lakeclip.checkpoints.convert import NotNativeError
from lakeclip.checkpoints.huggingface_config import CLIP_FAMILY, SIGLIP_FAMILY, Description, Family
from lakeclip.checkpoints.huggingface_tokenizer import MissingTokenizer, read_tokenizer, tokenizer_files
from lakeclip.config.schema import ModelConfig
from lakeclip.errors import CheckpointError
from lakeclip.text.huggingface import HuggingFaceTokenizer
from tests.unit.checkpoints.huggingface_models import write_word_tokenizer

CONFIG = ModelConfig(
    embed_dim=8,
    image_resolution=32,
    vision_layers=1,
    vision_width=64,
    vision_patch_size=8,
    context_length=12,
    vocab_size=49408,
    transformer_width=64,
    transformer_heads=1,
    transformer_layers=1,
)


def described(vocab_size: int = 49408, end: int | None = 49407, family: Family = CLIP_FAMILY) -> Description:
    return Description(family, dataclasses.replace(CONFIG, vocab_size=vocab_size), end)


def write_clip_tokenizer(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in tokenizer_files(None, CLIP_FAMILY, CONFIG).items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_clips_own_tokenizer_in_each_form(tmp_path: Path) -> None:
    """Check the files of older versions, and those that transformers writes today."""
    old = write_clip_tokenizer(tmp_path / "old")
    assert read_tokenizer(old, described()) == (None, ())
    AutoTokenizer.from_pretrained(old).save_pretrained(tmp_path / "new")
    assert (tmp_path / "new/tokenizer.json").is_file()
    assert read_tokenizer(tmp_path / "new", described()) == (None, ())
    assert read_tokenizer(tmp_path / "new", described(end=None)) == (None, ())
    # More embeddings than tokens, as models are padded for speed.
    assert read_tokenizer(tmp_path / "new", described(49536)) == (None, ())


@pytest.mark.parametrize("form", ["a merge", "an id", "a token"])
def test_a_changed_vocabulary_is_not_clips(form: str, tmp_path: Path) -> None:
    folder = write_clip_tokenizer(tmp_path / "x")
    if form == "a merge":
        lines = (folder / "merges.txt").read_text().splitlines()
        lines[1], lines[2] = lines[2], lines[1]
        (folder / "merges.txt").write_text("\n".join(lines))
    elif form == "an id":
        vocab = json.loads((folder / "vocab.json").read_text())
        first, second = list(vocab)[:2]
        vocab[first], vocab[second] = vocab[second], vocab[first]
        (folder / "vocab.json").write_text(json.dumps(vocab))
    else:
        (folder / "added_tokens.json").write_text(json.dumps({"<person>": 49408}))
    tokenizer, _ = read_tokenizer(folder, described(49409))
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    assert tokenizer.context_length == 12


def test_the_end_token_is_that_of_the_model(tmp_path: Path) -> None:
    folder = write_clip_tokenizer(tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"does not fit the model(.|\n)*end with the token 49407(.|\n)*token 5,"):
        read_tokenizer(folder, described(end=5))
    words = tmp_path / "words"
    write_word_tokenizer(words)
    assert isinstance(read_tokenizer(words, described(8, end=2))[0], HuggingFaceTokenizer)
    assert isinstance(read_tokenizer(words, described(8, end=None))[0], HuggingFaceTokenizer)
    with pytest.raises(CheckpointError, match=r"end with the token 2(.|\n)*token 7,"):
        read_tokenizer(words, described(8, end=7))


def test_a_tokenizer_with_more_tokens_than_the_model(tmp_path: Path) -> None:
    write_word_tokenizer(tmp_path, extra=("cat", "bird"))
    assert isinstance(read_tokenizer(tmp_path, described(10, end=2))[0], HuggingFaceTokenizer)
    with pytest.raises(CheckpointError, match=r"10 tokens, a vocabulary of 8"):
        read_tokenizer(tmp_path, described(8, end=2))


def test_padding_on_the_left(tmp_path: Path) -> None:
    write_word_tokenizer(tmp_path, side="left")
    with pytest.raises(NotNativeError, match="padding_side 'left'"):
        read_tokenizer(tmp_path, described(8, end=2))
    assert isinstance(read_tokenizer(tmp_path, described(8, None, SIGLIP_FAMILY))[0], HuggingFaceTokenizer)


@pytest.mark.parametrize(("family", "vocab_size"), [(CLIP_FAMILY, 300), (SIGLIP_FAMILY, 32000), (SIGLIP_FAMILY, 49408)])
def test_without_a_tokenizer_captions_are_refused(family: Family, vocab_size: int, tmp_path: Path) -> None:
    tokenizer, _ = read_tokenizer(tmp_path, described(vocab_size, None, family))
    assert isinstance(tokenizer, MissingTokenizer)
    for tokenize in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):
        with pytest.raises(CheckpointError, match=r"cannot be tokenized(.|\n)*copy them from the original model"):
            tokenize(["a photo"])


def test_without_a_tokenizer_clips_vocabulary_is_assumed(tmp_path: Path) -> None:
    tokenizer, assumed = read_tokenizer(tmp_path, described())
    assert tokenizer is None
    assert "CLIP's tokenizer" in assumed[0]


def test_a_damaged_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        read_tokenizer(tmp_path, described())
