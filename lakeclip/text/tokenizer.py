"""CLIP's tokenizer: byte-pair encoding of cleaned, lower-cased text (Radford et al. 2021, §2.4; Sennrich et al. 2016).

Ids equal those of open_clip's `SimpleTokenizer`. They also equal OpenAI's, unless a caption contains the text of a
special token: as in open_clip, `<start_of_text>` and `<end_of_text>` are special and OpenAI's spellings are plain text.

It is fast because the pattern that splits words never crosses whitespace. So the ids of a whitespace-separated chunk do
not depend on its context, and nearly all chunks are found in a cache. The Rust `tokenizers` encode the others.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import regex
import torch
from jaxtyping import Int64
from tokenizers.models import BPE
from torch import Tensor

from lakeclip.errors import DataError
from lakeclip.text.cleaning import repair

MERGES_FILE = Path(__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
#: Hash of the decompressed table, because gzip files of the same text may differ.
MERGES_SHA256 = "67603cfda2e032ad77b5f8808af37789d590db664b26df8705d2bf8b3c553fc8"

VOCAB_SIZE = 49408
CONTEXT_LENGTH = 77

_SPECIAL = ("<start_of_text>", "<end_of_text>")
_WORDS = regex.compile(
    rf"{'|'.join(_SPECIAL)}|'s|'t|'re|'ve|'m|'ll|'d|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+",
    regex.IGNORECASE,
)

#: About 30 MB when full. Longer chunks are not cached: they are URLs and noise that rarely repeat.
_CACHED_CHUNKS = 1 << 17
_CACHED_CHUNK_LENGTH = 40


class Tokenizer:
    """CLIP's tokenizer. Its pickle is small, because a worker process reads the merges table itself.

    Attributes:
        context_length: width of the result of `__call__`, including the start and the end of text.
        vocab_size: number of ids, 49,408.
        sot_token: id that starts every caption.
        eot_token: id that ends every caption, the largest, so `ids.argmax(dim=-1)` finds it.
        fingerprint: SHA-256 of the merges table, stored in checkpoints.
    """

    vocab_size: int = VOCAB_SIZE
    sot_token: int = VOCAB_SIZE - 2
    eot_token: int = VOCAB_SIZE - 1
    fingerprint: str = MERGES_SHA256

    def __init__(self, context_length: int = CONTEXT_LENGTH) -> None:
        if context_length < 2:
            raise ValueError(
                f"context_length must be at least 2, for the start and the end of text, not {context_length}"
            )
        self.context_length = context_length
        self._chunks = _chunk_cache()

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[int]]:
        return type(self), (self.context_length,)

    def __call__(self, texts: str | Iterable[str]) -> Int64[Tensor, "batch context"]:
        """Return the token ids of one or more captions.

        Args:
            texts: a caption, or captions.

        Returns:
            (batch, context_length) int64: start of text, the caption, end of text, zeros. A caption that is too long is
            truncated and still ends with the end of text.

        Raises:
            TypeError: a caption is not a string.
        """
        max_tokens = self.context_length - 2
        captions = [self.encode(text)[:max_tokens] for text in _as_captions(texts)]
        ids = np.zeros((len(captions), self.context_length), dtype=np.int64)
        ids[:, 0] = self.sot_token
        for row, caption in zip(ids, captions, strict=True):
            end = len(caption) + 1
            row[1:end] = caption
            row[end] = self.eot_token
        return torch.from_numpy(ids)

    def encode(self, text: str) -> list[int]:
        """Return the ids of one caption, without start, end, padding or truncation."""
        chunks = self._chunks
        ids: list[int] = []
        for chunk in _clean(text).split():
            ids += chunks[chunk]
        return ids

    def decode(self, ids: Iterable[int] | Int64[Tensor, " context"]) -> str:
        """Convert ids to text, up to the end of text; an invalid UTF-8 sequence becomes U+FFFD."""
        values = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        if self.eot_token in values:
            values = values[: values.index(self.eot_token)]
        pieces = "".join(_tables().pieces[value] for value in values if value != self.sot_token)
        text = bytes(_CHAR_TO_BYTE[char] for char in pieces.replace("</w>", " ")).decode("utf-8", errors="replace")
        return text.rstrip(" ")


@lru_cache(maxsize=4)
def _default(context_length: int) -> Tokenizer:
    return Tokenizer(context_length)


def tokenize(texts: str | Sequence[str], context_length: int = CONTEXT_LENGTH) -> Int64[Tensor, "batch context"]:
    """Return the token ids of one or more captions, (batch, context_length) int64; see `Tokenizer`.

    Raises:
        TypeError: a caption is not a string.
    """
    return _default(context_length)(texts)


def vocabulary() -> list[str]:
    """Return the piece of text of each id, as spelled in the merges table; the last two are start and end of text."""
    return list(_tables().pieces)


def merges() -> list[tuple[str, str]]:
    """Return the merges of the table, in order."""
    return list(_tables().merges)


def trim_padding(ids: Int64[Tensor, "batch context"]) -> Int64[Tensor, "batch trimmed"]:
    """Trim the padding that all captions of a batch share.

    This does not change the features: CLIP's text attention is causal, and its features are read at the end of text.
    """
    return ids[:, : int(ids.argmax(dim=-1).max()) + 1] if len(ids) else ids


def _as_captions(texts: object) -> list[str]:
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, (bytes, dict)) or not isinstance(texts, Iterable):
        raise TypeError(f"captions must be a string or a sequence of strings, not {_describe(texts)}")
    captions = list(texts)
    for index, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise TypeError(f"every caption must be a string; number {index} is {_describe(caption)}")
    return captions


def _describe(value: object) -> str:
    return "None" if value is None else f"{type(value).__name__} {value!r:.60}"


def _clean(text: str) -> str:
    return repair(text).lower()


# Every byte maps to a printable character: its own in Latin-1 if there is one, otherwise one from code point 256 on.
# These characters are also the first 256 ids.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTE_TO_CHAR = {byte: chr(byte) for byte in _PRINTABLE}
_BYTE_TO_CHAR |= {byte: chr(256 + n) for n, byte in enumerate(sorted(set(range(256)) - set(_PRINTABLE)))}
_CHAR_TO_BYTE = {char: byte for byte, char in _BYTE_TO_CHAR.items()} | {" ": 0x20}


def _parse_merge(line: str) -> tuple[str, str]:
    first, second = line.split()
    return first, second


class _Tables:
    """The merges table: as a Rust encoder, and as the piece of text of each id."""

    def __init__(self) -> None:
        chars = list(_BYTE_TO_CHAR.values())
        num_merges = VOCAB_SIZE - 2 * len(chars) - len(_SPECIAL)
        self.merges = [_parse_merge(line) for line in _read_merges().split("\n")[1 : num_merges + 1]]
        self.pieces = [
            *chars,
            *(char + "</w>" for char in chars),
            *(a + b for a, b in self.merges),
            *_SPECIAL,
        ]
        self.engine = BPE(
            {piece: index for index, piece in enumerate(self.pieces)},
            self.merges,
            end_of_word_suffix="</w>",
        )

    def encode_chunk(self, chunk: str) -> list[int]:
        ids: list[int] = []
        for word in _WORDS.findall(chunk):
            if word in _SPECIAL:
                ids.append(VOCAB_SIZE - 2 + _SPECIAL.index(word))
            else:
                chars = "".join([_BYTE_TO_CHAR[byte] for byte in word.encode()])
                ids += [token.id for token in self.engine.tokenize(chars)]
        return ids


def _read_merges(file: Path = MERGES_FILE) -> str:
    try:
        content = gzip.decompress(file.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(file, str(error)) from None
    if (digest := hashlib.sha256(content).hexdigest()) != MERGES_SHA256:
        raise _damaged(file, f"SHA-256 {digest}")
    return content.decode()


def _damaged(file: Path, found: str) -> DataError:
    return DataError(
        f"the tokenizer's merges table {file.name} is missing or damaged",
        found=found,
        allowed=f"SHA-256 {MERGES_SHA256}",
        next_step="pip install --force-reinstall lakeclip",
    )


class _ChunkCache(dict[str, list[int]]):
    """Cache of the ids of whitespace-separated chunks, which encodes a missing chunk."""

    def __init__(self, tables: _Tables) -> None:
        super().__init__()
        self.tables = tables

    def __missing__(self, chunk: str) -> list[int]:
        ids = self.tables.encode_chunk(chunk)
        if len(chunk) <= _CACHED_CHUNK_LENGTH:
            if len(self) >= _CACHED_CHUNKS:
                self.clear()
            self[chunk] = ids
        return ids


@lru_cache(maxsize=1)
def _tables() -> _Tables:
    return _Tables()


@lru_cache(maxsize=1)
def _chunk_cache() -> _ChunkCache:
    return _ChunkCache(_tables())
