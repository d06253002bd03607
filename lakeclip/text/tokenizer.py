"""CLIP's tokenizer: byte-pair encoding of cleaned, lower-cased text (Radford et al. 2021, §2.4; Sennrich et al. 2016).

Ids equal those of open_clip's `SimpleTokenizer` and, unless a caption spells out a special token, OpenAI's. (There the
two differ. As in open_clip, `<start_of_text>` and `<end_of_text>` are special and OpenAI's spellings are plain text.)

What makes it quick: the pattern that splits words never crosses whitespace, so every whitespace-separated chunk has its
ids whatever stands around it, and a cache of chunks nearly always knows them. The rest goes to the Rust `tokenizers`.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import ftfy
import numpy as np
import regex
import torch
from jaxtyping import Int64
from tokenizers.models import BPE
from torch import Tensor

from lakeclip.errors import DataError

MERGES_FILE = Path(__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
#: Of the table as text; gzip files of the same text may differ.
MERGES_SHA256 = "67603cfda2e032ad77b5f8808af37789d590db664b26df8705d2bf8b3c553fc8"

VOCAB_SIZE = 49408
CONTEXT_LENGTH = 77

_SPECIAL = ("<start_of_text>", "<end_of_text>")
_WORDS = regex.compile(
    rf"{'|'.join(_SPECIAL)}|'s|'t|'re|'ve|'m|'ll|'d|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+",
    regex.IGNORECASE,
)

#: About 30 MB when full; longer chunks are links and noise that do not come back.
_CACHED_CHUNKS = 1 << 17
_CACHED_CHUNK_LENGTH = 40


class Tokenizer:
    """Captions to ids. Small to pickle: a worker process loads the merges table again.

    Attributes:
        context_length: width of what `__call__` returns; two of its tokens are the start and the end of text.
        vocab_size: number of ids, 49,408.
        sot_token: id that starts every caption.
        eot_token: id that ends every caption, the largest, so `ids.argmax(dim=-1)` finds it.
        fingerprint: SHA-256 of the merges table, as kept in checkpoints.
    """

    vocab_size: int = VOCAB_SIZE
    sot_token: int = VOCAB_SIZE - 2
    eot_token: int = VOCAB_SIZE - 1
    fingerprint: str = MERGES_SHA256

    def __init__(self, context_length: int = CONTEXT_LENGTH) -> None:
        if context_length < 2:
            raise ValueError(
                f"context_length must hold the start and the end of text, so at least 2, not {context_length}"
            )
        self.context_length = context_length
        self._chunks = _chunks()

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[int]]:
        return type(self), (self.context_length,)

    def __call__(self, texts: str | Iterable[str]) -> Int64[Tensor, "batch context"]:
        """Token ids of one or more captions.

        Args:
            texts: a caption, or captions.

        Returns:
            (batch, context_length) int64: start of text, the caption, end of text, zeros. A caption that is too long is
            cut so that the end of text still stands at the end.

        Raises:
            TypeError: something is not a string.
        """
        longest = self.context_length - 2
        captions = [self.encode(text)[:longest] for text in _as_captions(texts)]
        ids = np.zeros((len(captions), self.context_length), dtype=np.int64)
        ids[:, 0] = self.sot_token
        for row, caption in zip(ids, captions, strict=True):
            end = len(caption) + 1
            row[1:end] = caption
            row[end] = self.eot_token
        return torch.from_numpy(ids)

    def encode(self, text: str) -> list[int]:
        """Ids of one caption, without start, end, padding or limit."""
        chunks = self._chunks
        ids: list[int] = []
        for chunk in _clean(text).split():
            ids += chunks[chunk]
        return ids

    def decode(self, ids: Iterable[int] | Int64[Tensor, " context"]) -> str:
        """The text that ids stand for, up to the end of text; a broken UTF-8 sequence becomes U+FFFD."""
        values = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        if self.eot_token in values:
            values = values[: values.index(self.eot_token)]
        pieces = "".join(_tables().pieces[value] for value in values if value != self.sot_token)
        text = bytes(_BYTE_OF[letter] for letter in pieces.replace("</w>", " ")).decode("utf-8", errors="replace")
        return text.rstrip(" ")


@lru_cache(maxsize=4)
def _default(context_length: int) -> Tokenizer:
    return Tokenizer(context_length)


def tokenize(texts: str | Sequence[str], context_length: int = CONTEXT_LENGTH) -> Int64[Tensor, "batch context"]:
    """Token ids of one or more captions, (batch, context_length) int64; see `Tokenizer`.

    Raises:
        TypeError: something is not a string.
    """
    return _default(context_length)(texts)


def vocabulary() -> list[str]:
    """The piece of text of each id, as the merges table spells it; the last two are start and end of text."""
    return list(_tables().pieces)


def merges() -> list[tuple[str, str]]:
    """The merges of the table, in order."""
    return list(_tables().merges)


def trim(ids: Int64[Tensor, "batch context"]) -> Int64[Tensor, "batch trimmed"]:
    """Cut the padding that every caption of the batch has.

    Exact: CLIP's text attention is causal and its features are read at the end of text, so nothing after it counts.
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
    # On plain ASCII without entities the repairs change nothing, and they cost twenty times the tokenising.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return text.lower()


# Every byte as a printable letter: itself where it has one in Latin-1, else one from 256 on. Also the first 256 ids.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_LETTER_OF = {byte: chr(byte) for byte in _PRINTABLE}
_LETTER_OF |= {byte: chr(256 + n) for n, byte in enumerate(sorted(set(range(256)) - set(_PRINTABLE)))}
_BYTE_OF = {letter: byte for byte, letter in _LETTER_OF.items()} | {" ": 0x20}


def _pair(line: str) -> tuple[str, str]:
    first, second = line.split()
    return first, second


class _Tables:
    """The merges table as the Rust engine and as the piece of text of each id."""

    def __init__(self) -> None:
        letters = list(_LETTER_OF.values())
        num_merges = VOCAB_SIZE - 2 * len(letters) - len(_SPECIAL)
        self.merges = [_pair(line) for line in _read_merges().split("\n")[1 : num_merges + 1]]
        self.pieces = [
            *letters,
            *(letter + "</w>" for letter in letters),
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
                letters = "".join([_LETTER_OF[byte] for byte in word.encode()])
                ids += [token.id for token in self.engine.tokenize(letters)]
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


class _Chunks(dict[str, list[int]]):
    """Ids of whitespace-separated chunks, found when first asked for."""

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
def _chunks() -> _Chunks:
    return _Chunks(_tables())
