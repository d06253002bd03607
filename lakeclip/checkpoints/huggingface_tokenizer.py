"""Read the tokenizer in a folder of transformers, and write one there."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from lakeclip.checkpoints.convert import NotNativeError
from lakeclip.checkpoints.huggingface_config import CLIP_FAMILY, HIGHEST_ID, Description, Family, read_json
from lakeclip.config.schema import ModelConfig
from lakeclip.errors import CheckpointError, ConfigError
from lakeclip.text.cleaning import Cleaning
from lakeclip.text.huggingface import FixedLengthTokenizer, HuggingFaceTokenizer, file_bytes
from lakeclip.text.tokenizer import VOCAB_SIZE, Tokenizer, merges, vocabulary
from lakeclip.types import Tokenize

_log = logging.getLogger(__name__)

#: transformers' spelling of CLIP's two special tokens.
_START, _END = "<|startoftext|>", "<|endoftext|>"
#: Files of which a folder with a tokenizer has at least one.
_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model", "vocab.txt", "sentencepiece.bpe.model")


class MissingTokenizer:
    """Tokenizer of a model whose folder has none that fits: the model encodes images and token ids, no captions."""

    def __init__(self, folder: Path, found: str) -> None:
        self.folder, self.found = folder, found

    def __call__(self, texts: Sequence[str]) -> NoReturn:
        """Raise, since there is no tokenizer.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError(
            f"captions cannot be tokenized for the model in {self.folder}",
            found=self.found,
            allowed="the tokenizer's files that belong to the model, such as tokenizer.json or spiece.model",
            next_step=f"copy them from the original model into {self.folder}; or lakeclip.load(…, tokenize=YOURS)",
        )


def read_tokenizer(folder: Path, description: Description) -> tuple[Tokenize | None, tuple[str, ...]]:
    """Return a model's tokenizer, None for CLIP's own, and what had to be assumed.

    Raises:
        CheckpointError: the tokenizer in the folder does not fit the model.
        NotNativeError: lakeclip's own model cannot compute with its token ids.
    """
    vocab_size = description.config.vocab_size
    if not has_tokenizer(folder):
        if description.family is CLIP_FAMILY and vocab_size == VOCAB_SIZE:
            return None, (f"CLIP's tokenizer: there is none in {folder.name}, and the vocabulary is as large",)
        return MissingTokenizer(folder, "a folder without a tokenizer"), ()
    if description.family is not CLIP_FAMILY or not _is_clip_bpe(folder):
        return _huggingface_tokenizer(folder, description), ()
    if vocab_size < VOCAB_SIZE:
        return MissingTokenizer(folder, f"CLIP's, which has {VOCAB_SIZE:,} tokens; the model has {vocab_size:,}"), ()
    _check_end(folder, description, Tokenizer.eot_token)
    return None, ()


def tokenizer_files(tokenizer: Tokenize | None, family: Family, config: ModelConfig) -> dict[str, Any]:
    """Return the tokenizer's files by name: bytes, text, or the content of a JSON file; none for an unknown tokenizer.

    Args:
        tokenizer: the model's tokenizer, None for CLIP's own.
        family: kind of the model.
        config: settings of the model.
    """
    processor = {"processor_class": f"{family.architecture.removesuffix('Model')}Processor"}
    if isinstance(tokenizer, HuggingFaceTokenizer):
        files: dict[str, Any] = {name: file_bytes(text) for name, text in tokenizer.files().items()}
        name = "tokenizer_config.json"
        files[name] = json.loads(files.get(name, "{}")) | processor | {"model_max_length": config.context_length}
        return files
    is_clip_bpe = tokenizer is None or isinstance(tokenizer, Tokenizer)
    # A model that attends to padding needs zeros there; transformers' CLIPTokenizer pads with the end of text.
    if not is_clip_bpe or config.vocab_size < VOCAB_SIZE or family is not CLIP_FAMILY:
        _log.warning("no tokenizer was written: transformers has none that gives the model's token ids")
        return {}
    special = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}
    return {
        "tokenizer_config.json": special
        | processor
        | {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": config.context_length,
            "do_lower_case": True,
            "errors": "replace",
        },
        "special_tokens_map.json": special,
        "vocab.json": _clip_vocabulary(),
        "merges.txt": "#version: 0.2\n" + "\n".join(f"{first} {second}" for first, second in merges()) + "\n",
    }


def special_ids(tokenizer: Tokenize | None, config: ModelConfig) -> dict[str, int]:
    """Return the ids of the text's first and last token and of the padding, by their names in config.json."""
    ids: dict[str, int | None] = {"pad_token_id": config.pad_token}
    if isinstance(tokenizer, HuggingFaceTokenizer):
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        ids = {name: getattr(tokenizer.tokenizer, name) for name in names}
    elif config.text_pool == "eot":
        end = config.vocab_size - 1 if config.end_token is None else config.end_token
        ids = {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    if config.text_pool == "eot" and config.end_token is not None:
        ids["eos_token_id"] = config.end_token
    elif config.text_pool == "eot" and ids.get("eos_token_id") != config.vocab_size - 1:
        ids["eos_token_id"] = HIGHEST_ID
    return {name: value for name, value in ids.items() if value is not None}


@lru_cache(maxsize=1)
def _clip_vocabulary() -> dict[str, int]:
    """Return the ids of all pieces, with the special ones in OpenAI's spelling."""
    pieces = vocabulary()
    return {piece: index for index, piece in enumerate(pieces[:-2])} | {
        _START: len(pieces) - 2,
        _END: len(pieces) - 1,
    }


def _is_clip_bpe(folder: Path) -> bool:
    """Return True if the folder's tokenizer has CLIP's vocabulary and merges, whatever its files are called."""
    file = folder / "tokenizer.json"
    if file.is_file():
        content = read_json(file)
        model = content.get("model")
        if not isinstance(model, dict):
            return False
        added: dict[Any, Any] = {
            entry.get("content"): entry.get("id") for entry in _entries(content.get("added_tokens"))
        }
        vocab, pairs = model.get("vocab"), model.get("merges")
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        added = read_json(folder / "added_tokens.json") if (folder / "added_tokens.json").is_file() else {}
        vocab = read_json(folder / "vocab.json")
        lines = (folder / "merges.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        pairs = [line for line in lines if line and not line.startswith("#version")]
    else:
        return False
    known = _clip_vocabulary()
    if not isinstance(vocab, dict) or {**vocab, **added} != known or not isinstance(pairs, list):
        return False
    given = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in pairs]
    return given == merges()


def _entries(value: object) -> Iterable[Mapping[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def has_tokenizer(folder: Path) -> bool:
    """Return True if a folder has the files of a tokenizer."""
    return any((folder / name).is_file() for name in _FILES)


def load_tokenizer(folder: Path, config: ModelConfig, cleaning: Cleaning = "none") -> FixedLengthTokenizer:
    """Load the tokenizer in a folder with transformers, for a model that takes ids as long as its context.

    Raises:
        CheckpointError: it cannot be loaded, or its ids are not in the model's vocabulary.
    """
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        tokenizer = FixedLengthTokenizer(loaded, config.context_length, cleaning)
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError, ConfigError) as error:
        raise CheckpointError(
            f"the tokenizer in {folder} cannot be loaded",
            found=(str(error).strip() or type(error).__name__).splitlines()[0][:200],
            next_step="pip install sentencepiece protobuf, if it is a sentencepiece model",
        ) from None
    if len(loaded) > config.vocab_size:
        raise CheckpointError(
            f"the tokenizer in {folder} does not fit the model beside it",
            found=f"{len(loaded):,} tokens, a vocabulary of {config.vocab_size:,} in the model",
            allowed="a tokenizer whose ids are all in the model's vocabulary",
        )
    return tokenizer


def _huggingface_tokenizer(folder: Path, description: Description) -> FixedLengthTokenizer:
    tokenizer = load_tokenizer(folder, description.config)
    loaded = tokenizer.tokenizer
    if description.family is CLIP_FAMILY:
        ids = loaded("a").input_ids
        _check_end(folder, description, int(ids[-1]) if ids else -1)
        if loaded.padding_side != "right":
            raise NotNativeError(
                f"lakeclip's own model cannot compute with the token ids of {folder}",
                found=f"padding_side {loaded.padding_side!r} in tokenizer_config.json",
                allowed="right",
            )
    return tokenizer


def _check_end(folder: Path, description: Description, last: int) -> None:
    """Raise if a caption's last token is not the one at which the model reads the feature."""
    if description.end_token not in (None, last):
        raise CheckpointError(
            f"the tokenizer in {folder} does not fit the model beside it",
            found=f"captions that end with the token {last}",
            allowed=f"the token {description.end_token}, at which the model reads the feature (eos_token_id in "
            "text_config)",
        )
