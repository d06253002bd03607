"""Adapter that makes any Hugging Face tokenizer a `Tokenize`, for text towers with a tokenizer of their own."""

from __future__ import annotations

import base64
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from lakeclip.errors import ConfigError
from lakeclip.text.cleaning import Cleaning, clean

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase
    from typing_extensions import Self

#: Limit on the tokens of a caption. Many tokenizers have none, and one long caption pads its whole batch.
MAX_CAPTION_TOKENS = 512


#: Start of the text of a file that is no text, such as a sentencepiece model.
_BINARY = "data:application/octet-stream;base64,"


def file_bytes(text: str) -> bytes:
    """Return the content of a file of `HuggingFaceTokenizer.files`."""
    return base64.b64decode(text[len(_BINARY) :]) if text.startswith(_BINARY) else text.encode()


def _as_text(content: bytes) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = _BINARY
    return _BINARY + base64.b64encode(content).decode() if text.startswith(_BINARY) else text


class HuggingFaceTokenizer:
    """Tokenizer of captions to a `BatchEncoding` of tensors, padded to the longest caption of the batch. Picklable.

    Args:
        tokenizer: any tokenizer of `transformers`, e.g. from `AutoTokenizer.from_pretrained`.
        max_length: truncate captions to this many tokens. Default: the tokenizer's limit, at most 512.

    Raises:
        ConfigError: the tokenizer has no padding token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None) -> None:
        if tokenizer.pad_token is None:
            raise ConfigError(
                f"the tokenizer {type(tokenizer).__name__} cannot pad captions of different lengths to a batch",
                found="no padding token",
                next_step="tokenizer.pad_token = tokenizer.eos_token",
            )
        self.tokenizer = tokenizer
        self.max_length = max_length or int(min(tokenizer.model_max_length, MAX_CAPTION_TOKENS))

    def __call__(self, texts: Sequence[str]) -> BatchEncoding:
        """Return token ids and attention mask, each (batch, longest) int64."""
        from transformers import BatchEncoding

        encoding = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        # Drop the Rust encodings: they are as large again, and would be sent between processes too.
        return BatchEncoding(dict(encoding))

    @property
    def context_length(self) -> int:
        """Largest number of tokens of a caption."""
        return self.max_length

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the vocabulary and the rules that determine the ids, stored in checkpoints."""
        rules: Any = sorted(self.tokenizer.get_vocab().items())
        if self.tokenizer.is_fast:
            rules = json.loads(self.tokenizer.backend_tokenizer.to_str())
            rules = {name: rule for name, rule in rules.items() if name not in ("padding", "truncation")}
        return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()

    def files(self) -> dict[str, str]:
        """Return the tokenizer's files by name, for a checkpoint; see `file_bytes`."""
        with tempfile.TemporaryDirectory() as folder:
            self.tokenizer.save_pretrained(folder)
            return {path.name: _as_text(path.read_bytes()) for path in Path(folder).iterdir() if path.is_file()}

    @classmethod
    def from_files(cls, files: Mapping[str, str], max_length: int) -> Self:
        """Build the tokenizer from the result of `files`.

        Raises:
            ConfigError: these are not the files of a tokenizer.
        """
        from transformers import AutoTokenizer

        with tempfile.TemporaryDirectory() as folder:
            for name, text in files.items():
                # A file name from a checkpoint must not escape the folder.
                (Path(folder) / PurePath(name).name).write_bytes(file_bytes(text))
            try:
                return cls(AutoTokenizer.from_pretrained(folder, trust_remote_code=False), max_length)
            except (OSError, ValueError, KeyError) as error:
                raise ConfigError(
                    "the tokenizer cannot be rebuilt from its files", found=str(error).splitlines()[0]
                ) from None


class FixedLengthTokenizer(HuggingFaceTokenizer):
    """Tokenizer of captions to a tensor of ids, all as long as the model's context, for `CLIP`. Picklable.

    A model that attends to padding, such as SigLIP, was trained with all of it.

    Args:
        tokenizer, max_length: as for `HuggingFaceTokenizer`.
        cleaning: how captions are cleaned first.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None, cleaning: Cleaning = "none"
    ) -> None:
        super().__init__(tokenizer, max_length)
        self.cleaning: Cleaning = cleaning

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the vocabulary and the rules that determine the ids, stored in checkpoints."""
        rules = super().fingerprint
        return rules if self.cleaning == "none" else hashlib.sha256(f"{rules} {self.cleaning}".encode()).hexdigest()

    def __call__(self, texts: Sequence[str]) -> Any:
        """Return token ids, (batch, context) int64."""
        encoding = self.tokenizer(
            [clean(text, self.cleaning) for text in texts],
            padding="max_length",
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        return encoding["input_ids"]
