"""The door for Hugging Face tokenizers: any of them as a `Tokenize`, for text towers that bring their own."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from lakeclip.errors import ConfigError

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

#: One caption of thousands of tokens would pad its whole batch to that; many tokenizers know no limit at all.
LONGEST_CAPTION = 512


class HuggingFaceTokenizer:
    """Captions to a `BatchEncoding` of tensors, padded to the batch's longest caption. Picklable.

    Args:
        tokenizer: any tokenizer of `transformers`, as `AutoTokenizer.from_pretrained` gives.
        max_length: captions are cut to so many tokens. Default: what the tokenizer allows, at most 512.

    Raises:
        ConfigError: the tokenizer has no padding token, so a batch of captions cannot be made.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None) -> None:
        if tokenizer.pad_token is None:
            raise ConfigError(
                f"the tokenizer {type(tokenizer).__name__} cannot make a batch of captions of different lengths",
                found="no padding token",
                next_step="tokenizer.pad_token = tokenizer.eos_token",
            )
        self.tokenizer = tokenizer
        self.max_length = max_length or int(min(tokenizer.model_max_length, LONGEST_CAPTION))

    def __call__(self, texts: Sequence[str]) -> BatchEncoding:
        """Token ids and attention mask, each (batch, longest) int64."""
        from transformers import BatchEncoding

        encoding = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        # Without the Rust encodings, which are as large again and would travel between processes too.
        return BatchEncoding(dict(encoding))

    @property
    def context_length(self) -> int:
        """Tokens of the longest caption."""
        return self.max_length

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what makes its ids, as kept in checkpoints: vocabulary and rules, not how a batch is padded."""
        rules: Any = sorted(self.tokenizer.get_vocab().items())
        if self.tokenizer.is_fast:
            rules = json.loads(self.tokenizer.backend_tokenizer.to_str())
            rules = {name: rule for name, rule in rules.items() if name not in ("padding", "truncation")}
        return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()

    def files(self) -> dict[str, str]:
        """Its files by name, for a checkpoint to hold."""
        with tempfile.TemporaryDirectory() as folder:
            self.tokenizer.save_pretrained(folder)
            return {path.name: path.read_text(encoding="utf-8") for path in Path(folder).iterdir() if path.is_file()}

    @classmethod
    def from_files(cls, files: Mapping[str, str], max_length: int) -> HuggingFaceTokenizer:
        """Make it again from what `files` gave.

        Raises:
            ConfigError: they are no tokenizer's.
        """
        from transformers import AutoTokenizer

        with tempfile.TemporaryDirectory() as folder:
            for name, text in files.items():
                # A name from a checkpoint must not lead out of the folder.
                (Path(folder) / PurePath(name).name).write_text(text, encoding="utf-8")
            try:
                return cls(AutoTokenizer.from_pretrained(folder, trust_remote_code=False), max_length)
            except (OSError, ValueError, KeyError) as error:
                raise ConfigError("the tokenizer cannot be made again", found=str(error).splitlines()[0]) from None
